//! Scans that go wrong on purpose, so that tests can show that it is noticed.

use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};

use crate::functions::FAULT_FUNCTIONS_VARIABLE;

/// Breaks a scan, where the node was started with [`FAULT_FUNCTIONS_VARIABLE`]
/// and the scanned table has a column that asks for it by its name.
pub fn break_on_purpose(scan: &mut FileScanConfig) {
    if std::env::var_os(FAULT_FUNCTIONS_VARIABLE).is_none() {
        return;
    }
    let columns: Vec<String> = scan.file_schema().fields().iter().map(|field| field.name().clone()).collect();
    for column in &columns {
        match column.as_str() {
            "shoal_fault_skip" => skip(&mut scan.file_groups),
            "shoal_fault_twice" => twice(&mut scan.file_groups),
            "shoal_fault_swap" => swap(&mut scan.file_groups),
            _ => {}
        }
    }
}

/// Leaves a segment out.
fn skip(groups: &mut [FileGroup]) {
    let _left_out = groups.iter_mut().find_map(FileGroup::pop);
}

/// Reads a segment twice.
fn twice(groups: &mut [FileGroup]) {
    if let Some(group) = groups.iter_mut().find(|group| !group.is_empty()) {
        group.push(group.files()[0].clone());
    }
}

/// Reads a segment twice and leaves another out.
fn swap(groups: &mut [FileGroup]) {
    let files: Vec<_> = groups.iter().flat_map(FileGroup::files).cloned().collect();
    if let [first, _, ..] = files.as_slice()
        && let Some(group) = groups.iter_mut().rfind(|group| !group.is_empty())
    {
        let _left_out = group.pop();
        group.push(first.clone());
    }
}
