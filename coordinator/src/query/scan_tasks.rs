//! How a scan of shards becomes tasks: how many, which shards in which, and
//! on which worker each task runs. All three read the one view.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::{Result, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedExt, DistributedLeafExec, RouteTasksEvent,
    RouteTasksEventResponse, ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse,
};
use shoal_data::SegmentName;
use shoal_data::shard_store::SHARD_STORE_URL;

use super::view::{ShardLoad, View};
use crate::sql::ShoalConfig;

/// Adds the three handlers to a session.
pub fn add_handlers(config: SessionConfig) -> SessionConfig {
    config
        .with_distributed_desired_task_count_handler(desired_task_count)
        .with_distributed_scale_up_leaf_node_handler(scale_up_leaf)
        .with_distributed_route_tasks_handler(route_tasks)
}

/// The scan below a leaf, where it reads shards.
pub fn shard_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    let scan = plan.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref::<FileScanConfig>()?;
    scan.object_store_url.as_str().starts_with(SHARD_STORE_URL).then_some(scan)
}

/// The segment behind a file of a scan.
///
/// # Errors
/// `Internal`: plans name segments and nothing else.
pub fn segment_of(file: &PartitionedFile) -> Result<SegmentName> {
    match file.object_meta.location.as_ref().parse() {
        Ok(name) => Ok(name),
        Err(error) => internal_err!("a scan names `{}`: {error}", file.object_meta.location),
    }
}

/// Bytes that a scan reads, by the share of the columns that it keeps.
fn scan_bytes(scan: &FileScanConfig) -> u64 {
    let files = scan.file_groups.iter().flat_map(FileGroup::files);
    let bytes: u64 = files.map(PartitionedFile::effective_size).sum();
    let all = scan.file_schema().fields().len().max(1) as u64;
    let kept = scan.projected_schema().map_or(all, |schema| schema.fields().len() as u64);
    bytes * kept.min(all) / all
}

fn desired_task_count(event: DesiredTaskCountEvent) -> Option<Result<DesiredTaskCountEventResponse>> {
    let scan = shard_scan(event.plan)?;
    let shoal = ShoalConfig::of(event.session_config.options());
    let tasks = scan_bytes(scan).div_ceil(shoal.task_bytes.max(1) as u64).max(1);
    Some(Ok(DesiredTaskCountEventResponse::desired(usize::try_from(tasks).unwrap_or(usize::MAX))))
}

fn scale_up_leaf(event: ScaleUpLeafNodeEvent) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    let scan = shard_scan(event.plan)?;
    let view = event.session_config.get_extension::<View>()?;
    let partitions = event.session_config.target_partitions();
    Some(deal_scan(event.plan, scan, &view, event.task_count, partitions).map(ScaleUpLeafNodeEventResponse::new))
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
    let dealt = view.deal(&loads, tasks);

    let mut groups: Vec<Vec<FileGroup>> = vec![vec![FileGroup::default(); partitions]; tasks];
    for ((task, load), files) in dealt.into_iter().zip(&loads).zip(shards.into_values()) {
        let _whole_shard = load;
        for file in files {
            let lightest = groups[task]
                .iter_mut()
                .min_by_key(|group| group.files().iter().map(PartitionedFile::effective_size).sum::<u64>());
            match lightest {
                Some(group) => group.push(file),
                None => return internal_err!("a task without partitions"),
            }
        }
    }
    let variants = groups.into_iter().map(|file_groups| {
        let mut scan = scan.clone();
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
