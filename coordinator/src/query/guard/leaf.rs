//! Whether the tasks of a stage read a scan's shards, each once, and where their layout says they are.

use datafusion::common::{Result, internal_err};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::physical_expr::Partitioning;
use datafusion_distributed::DistributedLeafExec;
use shoal_data::SegmentName;

use super::each_task::check_each_reads_all;
use crate::query::each_task::ReadByEachTask;
use crate::query::scan_tasks::{can_be_cut, file_scan, segment_of, shard_scan};
use crate::query::view::View;

/// A segment that is read, and the bytes that its piece begins and ends at where it is read in pieces.
type Piece = (SegmentName, Option<(i64, i64)>);

/// What a scan reads, in order.
pub(super) fn pieces(scan: &FileScanConfig) -> Result<Vec<Piece>> {
    let files = scan.file_groups.iter().flat_map(|group| group.files());
    let piece = files.map(|file| {
        let range = file.range.as_ref().map(|range| (range.start, range.end));
        Ok((segment_of(file)?, range))
    });
    let mut pieces = piece.collect::<Result<Vec<_>>>()?;
    pieces.sort_unstable();
    Ok(pieces)
}

/// A leaf must read every segment of its scan in exactly one task, or, where it is marked, in each.
///
/// # Errors
/// `Internal`, saying what would be read instead.
pub(super) fn check_leaf(leaf: &DistributedLeafExec, tasks: usize, number: usize, view: &View) -> Result<()> {
    if ReadByEachTask::marks(leaf) {
        return check_each_reads_all(leaf, tasks, number);
    }
    let Some(original) = shard_scan(leaf.original()) else { return check_whole_files(leaf, number) };
    if leaf.variants().len() != tasks {
        return internal_err!(
            "a scan of stage {number} was dealt to {} tasks of {tasks}",
            leaf.variants().len()
        );
    }
    let planned = pieces(original)?;
    let mut dealt = Vec::with_capacity(planned.len());
    for (task, variant) in leaf.variants().iter().enumerate() {
        let Some(scan) = shard_scan(variant) else {
            return internal_err!("a task of stage {number} reads something else than its scan");
        };
        check_layout(scan, task, tasks, number, view)?;
        dealt.extend(pieces(scan)?);
    }
    dealt.sort_unstable();
    if planned != dealt {
        return internal_err!(
            "stage {number} would read {} segments where its scan has {}: each must be read once",
            dealt.len(),
            planned.len()
        );
    }
    Ok(())
}

/// Of other files those are read whole of which no piece can be read.
fn check_whole_files(leaf: &DistributedLeafExec, number: usize) -> Result<()> {
    let must_be_whole = file_scan(leaf.original()).is_some_and(|scan| !can_be_cut(scan));
    let groups = leaf.variants().iter().filter_map(file_scan).flat_map(|scan| &scan.file_groups);
    if must_be_whole && groups.flat_map(|group| group.files()).any(|file| file.range.is_some()) {
        return internal_err!("stage {number} reads pieces of files in which no row is known to begin");
    }
    Ok(())
}

/// Where a scan says that its rows are hashed, they are where an exchange into the partitions of all
/// tasks would put them: what meets them relies on it.
fn check_layout(scan: &FileScanConfig, task: usize, tasks: usize, number: usize, view: &View) -> Result<()> {
    let Some(Partitioning::Hash(_, partitions)) = &scan.output_partitioning else { return Ok(()) };
    let all = tasks * partitions;
    for (group, files) in scan.file_groups.iter().enumerate() {
        for file in files.files() {
            let name = segment_of(file)?;
            let shards = view.shards_of(name.table);
            if !shards.is_multiple_of(all) || name.shard as usize % all != task * partitions + group {
                return internal_err!(
                    "task {task} of stage {number} reads shard {} of {shards} as partition {group} of \
                     {partitions}, where the other side of a join would not look for it",
                    name.shard
                );
            }
        }
    }
    Ok(())
}
