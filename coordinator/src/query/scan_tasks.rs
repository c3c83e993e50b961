//! How a scan of shards becomes tasks: how many, which shards in which, and
//! on which worker each task runs. All three read the one view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedExt, DistributedLeafExec,
    RouteTasksEvent, RouteTasksEventResponse, ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse,
};
use shoal_data::SegmentName;
use shoal_data::shard_store::SHARD_STORE_URL;
use shoal_proto::TableId;

use super::each_task::ReadByEachTask;
use super::view::{ShardLoad, View};
use crate::sql::ShoalConfig;

/// What a text has beside its bytes, at least.
const VIEW_BYTES: usize = 16;

/// Adds the three handlers to a session.
pub(crate) fn add_handlers(config: SessionConfig) -> SessionConfig {
    config
        .with_distributed_desired_task_count_handler(desired_task_count)
        .with_distributed_scale_up_leaf_node_handler(scale_up_leaf)
        .with_distributed_route_tasks_handler(route_tasks)
}

/// The scan below a leaf, where it reads shards.
pub(crate) fn shard_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    file_scan(plan).filter(|scan| scan.object_store_url.as_str().starts_with(SHARD_STORE_URL))
}

/// The scan below a leaf, where it reads files; also behind a mark.
pub(super) fn file_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    ReadByEachTask::behind(plan)
        .downcast_ref::<DataSourceExec>()?
        .data_source()
        .downcast_ref::<FileScanConfig>()
}

/// Whether a file of a scan may be read in pieces: not where a value may go over several lines, so that
/// nobody can tell where a row begins, nor where it is compressed.
pub(super) fn can_be_cut(scan: &FileScanConfig) -> bool {
    scan.file_source.supports_repartitioning() && !scan.file_compression_type.is_compressed()
}

/// A scan of no files that is the same otherwise: to be copied and given some. Not by
/// copying it with its files, of which there may be 100,000.
pub(crate) fn without_files(scan: &FileScanConfig) -> FileScanConfig {
    let builder = FileScanConfigBuilder::new(scan.object_store_url.clone(), Arc::clone(&scan.file_source));
    let mut bare = builder.with_statistics(scan.statistics()).build();
    bare.constraints = scan.constraints.clone();
    bare.limit = scan.limit;
    bare.preserve_order = scan.preserve_order;
    bare.output_ordering.clone_from(&scan.output_ordering);
    bare.file_compression_type = scan.file_compression_type;
    bare.batch_size = scan.batch_size;
    bare.expr_adapter_factory.clone_from(&scan.expr_adapter_factory);
    bare.output_partitioning.clone_from(&scan.output_partitioning);
    bare
}

/// The segment behind a file of a scan.
///
/// # Errors
/// `Internal`: plans name segments and nothing else.
pub(crate) fn segment_of(file: &PartitionedFile) -> Result<SegmentName> {
    match file.object_meta.location.as_ref().parse() {
        Ok(name) => Ok(name),
        Err(error) => internal_err!("a scan names `{}`: {error}", file.object_meta.location),
    }
}

/// Bytes that a scan reads, by the share of the columns that it keeps.
pub(crate) fn scan_bytes(scan: &FileScanConfig) -> u64 {
    let files = scan.file_groups.iter().flat_map(FileGroup::files);
    let bytes: u64 = files.map(PartitionedFile::effective_size).sum();
    let all = scan.file_schema().fields().len().max(1) as u64;
    let kept = scan.projected_schema().map_or(all, |schema| schema.fields().len() as u64);
    bytes * kept.min(all) / all
}

/// Bytes of the columns that a scan reads, decoded, by what is known of its rows: numbers by their width, all
/// else by its share of the files. How long rows are worked on follows from that, not from how well they are
/// packed.
fn decoded_bytes(scan: &FileScanConfig) -> u64 {
    let statistics = scan.statistics();
    let Some(rows) = statistics.num_rows.get_value() else { return scan_bytes(scan) };
    let stored = scan.file_schema().fields();
    // What is computed from a column takes all of it.
    let read: BTreeSet<usize> = match scan.file_source.projection() {
        Some(given) => given
            .as_ref()
            .iter()
            .flat_map(|given| collect_columns(&given.expr))
            .map(|column| column.index())
            .collect(),
        None => (0..stored.len()).collect(),
    };
    let width = |field: &FieldRef| match field.data_type() {
        DataType::Boolean | DataType::Null => Some(1),
        data_type => data_type.primitive_width(),
    };
    let read: Vec<Option<usize>> =
        read.into_iter().filter_map(|index| stored.get(index)).map(width).collect();
    let row_bytes: usize = read.iter().map(|width| width.unwrap_or(VIEW_BYTES)).sum();
    let files = scan.file_groups.iter().flat_map(FileGroup::files);
    let files_bytes: u64 = files.map(PartitionedFile::effective_size).sum();
    let long = read.iter().filter(|width| width.is_none()).count() as u64;
    let all_long = stored.iter().filter(|field| width(field).is_none()).count() as u64;
    let long_bytes = files_bytes.saturating_mul(long) / all_long.max(1);
    (*rows as u64).saturating_mul(row_bytes as u64).saturating_add(long_bytes)
}

/// Tasks that a scan is worth: one for each `task_bytes` that it reads, decoded. What reads one shard is mostly
/// restricted by its key, and decodes few pages: there what is stored counts.
///
/// # Errors
/// `Internal`: plans name segments and nothing else.
pub(crate) fn tasks_of_scan(scan: &FileScanConfig, task_bytes: u64) -> Result<u64> {
    let bytes = if has_several_shards(scan)? { decoded_bytes(scan) } else { scan_bytes(scan) };
    Ok(tasks_worthwhile(bytes, task_bytes))
}

/// Whether a scan reads more than one shard.
///
/// # Errors
/// `Internal`: plans name segments and nothing else.
pub(crate) fn has_several_shards(scan: &FileScanConfig) -> Result<bool> {
    let mut files = scan.file_groups.iter().flat_map(FileGroup::files);
    let Some(first) = files.next() else { return Ok(false) };
    let first = segment_of(first)?.shard;
    for file in files {
        if segment_of(file)?.shard != first {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same for so many bytes. There is a second task from half of one's bytes on: with it a query has twice the
/// threads, and with each further one there is more to be told and to be sent.
fn tasks_worthwhile(bytes: u64, task_bytes: u64) -> u64 {
    bytes.saturating_add(task_bytes / 2).div_ceil(task_bytes.max(1)).max(1)
}

/// As many tasks as are wanted, or nearly, of a table of so many shards: those that shards are dealt to
/// evenly, so that stages of one query meet. Up to a third more rather than fewer: with fewer there may be
/// no more than half of them.
fn tasks_that_meet(wanted: usize, most: usize, shards: usize, partitions: usize) -> usize {
    let is_even = |tasks: &usize| shards.is_multiple_of(tasks * partitions);
    let more = (wanted..=most.min(wanted * 4 / 3)).find(is_even);
    more.or_else(|| (1..wanted).rev().find(is_even)).unwrap_or(if shards == 1 { 1 } else { wanted })
}

/// The table that a scan reads; none where every segment was pruned.
fn scan_table(scan: &FileScanConfig) -> Option<TableId> {
    let file = scan.file_groups.iter().flat_map(FileGroup::files).next()?;
    segment_of(file).ok().map(|name| name.table)
}

fn desired_task_count(event: DesiredTaskCountEvent) -> Option<Result<DesiredTaskCountEventResponse>> {
    let scan = shard_scan(event.plan)?;
    let shoal = ShoalConfig::of(event.session_config.options());
    let view = event.session_config.get_extension::<View>()?;
    let wanted = match tasks_of_scan(scan, view.task_bytes(shoal.task_bytes)) {
        Ok(wanted) => wanted,
        Err(error) => return Some(Err(error)),
    };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).clamp(1, view.workers().len());
    let partitions = event.session_config.target_partitions();
    let shards = scan_table(scan).map_or(1, |table| view.shards_of(table));
    let tasks = tasks_that_meet(wanted, view.workers().len(), shards, partitions);
    Some(Ok(DesiredTaskCountEventResponse::desired(tasks)))
}

fn scale_up_leaf(event: ScaleUpLeafNodeEvent) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    let Some(scan) = shard_scan(event.plan) else {
        let dealt = deal_whole_files(event.plan, event.task_count)?;
        return Some(dealt.map(ScaleUpLeafNodeEventResponse::new));
    };
    let view = event.session_config.get_extension::<View>()?;
    let partitions = event.session_config.target_partitions();
    Some(
        deal_scan(event.plan, scan, &view, event.task_count, partitions)
            .map(ScaleUpLeafNodeEventResponse::new),
    )
}

/// The scan of each task: whole shards, dealt by the view, in `partitions`
/// groups of files (some may be empty).
fn deal_scan(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &FileScanConfig,
    view: &View,
    tasks: usize,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut shards: BTreeMap<u32, Vec<PartitionedFile>> = BTreeMap::new();
    let mut table = None;
    for file in scan.file_groups.iter().flat_map(FileGroup::files) {
        let name = segment_of(file)?;
        table = Some(name.table);
        shards.entry(name.shard).or_default().push(file.clone());
    }
    let loads: Vec<ShardLoad> = shards
        .iter()
        .map(|(&shard, files)| ShardLoad {
            table: table.unwrap_or_default(),
            shard,
            bytes: files.iter().map(PartitionedFile::effective_size).sum(),
        })
        .collect();
    if scan.output_partitioning.is_some() {
        return deal_hashed(plan, scan, view, tasks, partitions);
    }
    let dealt = view.deal(&loads, tasks);
    if plan.output_ordering().is_some() {
        let tasks_of: BTreeMap<u32, usize> = shards.keys().copied().zip(dealt).collect();
        return deal_sorted(plan, scan, tasks, partitions, &tasks_of);
    }

    let mut groups: Vec<Vec<FileGroup>> = vec![vec![FileGroup::default(); partitions]; tasks];
    let mut sizes = vec![vec![0_u64; partitions]; tasks];
    for (task, files) in dealt.into_iter().zip(shards.into_values()) {
        for file in files {
            let Some(lightest) = (0..partitions).min_by_key(|&index| sizes[task][index]) else {
                return internal_err!("a task without partitions");
            };
            sizes[task][lightest] += file.effective_size();
            groups[task][lightest].push(file);
        }
    }
    leaf_of(plan, scan, groups)
}

/// The scan of each task where the order of the rows in each group of files is part of the
/// plan: a group of a task has of one group of the scan the files that are the task's, in their order.
fn deal_sorted(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &FileScanConfig,
    tasks: usize,
    partitions: usize,
    tasks_of: &BTreeMap<u32, usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if scan.file_groups.len() > partitions {
        return plan_err!("{} sorted groups of files cannot be {partitions}", scan.file_groups.len());
    }
    let mut groups: Vec<Vec<FileGroup>> = vec![vec![FileGroup::default(); partitions]; tasks];
    for (index, group) in scan.file_groups.iter().enumerate() {
        for file in group.files() {
            let Some(&task) = tasks_of.get(&segment_of(file)?.shard) else {
                return internal_err!("a shard was dealt to no task");
            };
            groups[task][index].push(file.clone());
        }
    }
    leaf_of(plan, scan, groups)
}

/// The scan of each task where the scan's hash layout is part of the plan: of
/// all partitions of all tasks, the one with number g holds exactly the shards
/// s for which s % (tasks * partitions) is g, as an exchange into as many
/// partitions would put the rows.
fn deal_hashed(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &FileScanConfig,
    view: &View,
    tasks: usize,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let all = scan_table(scan).map_or(0, |table| view.shards_of(table));
    let count = tasks * partitions;
    if !all.is_multiple_of(count) {
        return plan_err!(
            "{all} shards cannot be dealt to {tasks} tasks of {partitions} partitions as they are hashed"
        );
    }
    let mut groups: Vec<Vec<FileGroup>> = vec![vec![FileGroup::default(); partitions]; tasks];
    // In the order of the scan, which may be one of the rows: what comes to one group was in one.
    for file in scan.file_groups.iter().flat_map(FileGroup::files) {
        let number = segment_of(file)?.shard as usize % count;
        groups[number / partitions][number % partitions].push(file.clone());
    }
    leaf_of(plan, scan, groups)
}

/// The scan of each task of files that are no segments and cannot be read in pieces: the library would
/// cut them all the same. None for other leaves.
fn deal_whole_files(plan: &Arc<dyn ExecutionPlan>, tasks: usize) -> Option<Result<Arc<dyn ExecutionPlan>>> {
    let scan = file_scan(plan).filter(|scan| !can_be_cut(scan))?;
    let mut groups = vec![vec![FileGroup::default(); scan.file_groups.len()]; tasks];
    for (index, group) in scan.file_groups.iter().enumerate() {
        for (place, file) in group.files().iter().enumerate() {
            groups[(index + place) % tasks][index].push(file.clone());
        }
    }
    Some(leaf_of(plan, scan, groups))
}

fn leaf_of(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &FileScanConfig,
    tasks: Vec<Vec<FileGroup>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let bare = without_files(scan);
    let variants = tasks.into_iter().map(|file_groups| {
        let mut scan = bare.clone();
        scan.file_groups = file_groups;
        DataSourceExec::from_data_source(scan) as Arc<dyn ExecutionPlan>
    });
    Ok(Arc::new(DistributedLeafExec::try_new(Arc::clone(plan), variants)?))
}

fn route_tasks(event: RouteTasksEvent) -> Option<Result<RouteTasksEventResponse>> {
    let view = event.task_ctx.session_config().get_extension::<View>()?;
    let workers = view.task_workers(event.task_count);
    let urls = workers.iter().map(|&index| view.workers()[index].url.clone()).collect();
    Some(Ok(RouteTasksEventResponse::new(urls)))
}

#[cfg(test)]
mod tests;
