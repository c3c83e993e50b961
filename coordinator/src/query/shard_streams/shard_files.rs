//! A plan with one scan of shards, and the files of that scan.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;

use crate::query::scan_tasks::{segment_of, shard_scan, without_files};

/// The files of the plan's one scan, by shard; none where it has no scan of
/// shards, or several.
pub(super) fn files_by_shard(
    plan: &Arc<dyn ExecutionPlan>,
) -> Result<Option<BTreeMap<u32, Vec<PartitionedFile>>>> {
    let mut shards: BTreeMap<u32, Vec<PartitionedFile>> = BTreeMap::new();
    let mut scans = 0;
    plan.apply(|node| {
        if node.children().is_empty() {
            scans += 1;
            match shard_scan(node) {
                Some(scan) => {
                    for file in scan.file_groups.iter().flat_map(FileGroup::files) {
                        shards.entry(segment_of(file)?.shard).or_default().push(file.clone());
                    }
                }
                None => scans += 1,
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((scans == 1).then_some(shards))
}

/// The plan's one scan of shards, without its files: it is copied for each shard,
/// and they would be, too.
pub(super) fn bare_scan(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<FileScanConfig>> {
    let mut bare = None;
    plan.apply(|node| {
        if let Some(scan) = shard_scan(node) {
            bare = Some(without_files(scan));
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(bare)
}

/// The plan over one of its files: what can be sent of that can be sent of all.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(crate) fn over_one_file(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(bare) = bare_scan(plan)? else { return Ok(Arc::clone(plan)) };
    let mut first = None;
    plan.apply(|node| {
        let groups = shard_scan(node).into_iter().flat_map(|scan| &scan.file_groups);
        first = groups.flat_map(FileGroup::files).next().cloned();
        Ok(if first.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    with_files(plan, &bare, first.into_iter().collect())
}

/// The plan over these files only, in this order; its scan is `bare` otherwise.
pub(super) fn with_files(
    plan: &Arc<dyn ExecutionPlan>,
    bare: &FileScanConfig,
    files: Vec<PartitionedFile>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut files = Some(files);
    let replaced = Arc::clone(plan).transform_up(|node| {
        if shard_scan(&node).is_none() {
            return Ok(Transformed::no(node));
        }
        let mut scan = bare.clone();
        scan.file_groups = vec![FileGroup::new(files.take().unwrap_or_default())];
        scan.output_partitioning = None;
        Ok(Transformed::yes(DataSourceExec::from_data_source(scan) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(replaced.data)
}
