//! Scans of one table, shard by shard: one stream per shard, each on a worker
//! that holds the shard. When a worker is lost, its shards go on elsewhere; when
//! one is far behind, its shards begin a second time elsewhere, and who is
//! first counts. So nothing needs to wait for the whole query to be safe.
//!
//! A shard's rows come in one order only, whichever replica they are read from,
//! or they are given when a run over the shard has ended: [`Giving`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, replace_children_if_necessary};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use parking_lot::Mutex;
use shoal_proto::exchange::QueryOptions;
use shoal_proto::{Channels, WorkerId};
use url::Url;

use self::stragglers::Stragglers;
use self::stream::ShardStream;
use super::registry::QueryRecord;
use super::scan_tasks::{scan_bytes, segment_of, shard_scan, without_files};
use super::view::{ShardLoad, View};
use crate::cluster::Cluster;

mod stragglers;
mod stream;

/// Rows of a shard that are kept until all are there, at most: of a query that
/// asks for the first so many.
const KEPT_ROWS_MAX: usize = 10_000;
/// Bytes of them over all shards, by the size of the rows on disk.
const KEPT_BYTES_MAX: u64 = 16 << 20;
/// What a shard counts at least, however small: each costs a call.
const WEIGHT_MIN: f64 = 0.5;
/// Aggregates whose state is small, however many rows they have seen.
const SMALL_AGGREGATES: [&str; 18] = [
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "stddev",
    "stddev_pop",
    "var",
    "var_pop",
    "covar_samp",
    "covar_pop",
    "corr",
    "approx_distinct",
];

/// What streams need beside the plan.
#[derive(Clone)]
pub(crate) struct StreamContext {
    /// Who is alive, and whom to suspect.
    pub(crate) cluster: Arc<Cluster>,
    /// Where losses are told; none for a plan that is only explained.
    pub(crate) record: Option<Arc<QueryRecord>>,
    /// The way to workers.
    pub(crate) channels: Channels,
    /// Where this coordinator stands; may be empty.
    pub(crate) zone: String,
    /// Id, memory limit and settings.
    pub(crate) query: QueryOptions,
    /// Whether operators' metrics are brought back.
    pub(crate) collect_metrics: bool,
}

/// Whether a query is a scan of one table, row by row: the same rows in the
/// same order whenever a shard is read.
///
/// # Errors
/// None in practice; those of walking a plan.
fn is_row_by_row(plan: &LogicalPlan) -> Result<bool> {
    let mut is_eligible = true;
    plan.apply(|node| {
        let is_known = match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
            LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
            _ => false,
        };
        is_eligible &= is_known;
        node.apply_expressions(|expr| {
            is_eligible &= !has_subquery(expr)? && !expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_eligible { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_eligible)
}

/// The shape of a query that can be read shard by shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Giving {
    /// Rows as they are read: they come in one order, can be given at once, and
    /// go on elsewhere at the row where they stopped.
    AsTheyCome,
    /// Few rows that are made of many (an aggregate, the first of an order):
    /// given when a run over the shard has ended, and made anew elsewhere.
    WhenWhole,
}

/// How a query can be read shard by shard, if it can.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(crate) fn giving(plan: &LogicalPlan) -> Result<Option<Giving>> {
    Ok(match is_row_by_row(plan)? {
        true => Some(Giving::AsTheyCome),
        false => is_few_of_many(plan)?.then_some(Giving::WhenWhole),
    })
}

/// Whether a query makes few rows of one table, with no groups.
fn is_few_of_many(plan: &LogicalPlan) -> Result<bool> {
    let mut is_eligible = true;
    let mut are_few = false;
    plan.apply(|node| {
        is_eligible &= match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_) => true,
            LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
            LogicalPlan::Aggregate(aggregate) => {
                are_few = true;
                aggregate.group_expr.is_empty()
            }
            LogicalPlan::Sort(sort) => {
                let is_short = sort.fetch.is_some_and(|rows| rows <= KEPT_ROWS_MAX);
                are_few |= is_short;
                is_short || are_few
            }
            _ => false,
        };
        node.apply_expressions(|expr| {
            is_eligible &= !has_subquery(expr)?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_eligible { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_eligible && are_few)
}

fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|part| {
        Ok(matches!(
            part,
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
        ))
    })
}

/// Whether the plan below the place where partitions meet makes few rows of
/// one shard, and all that it does can be done shard by shard.
fn makes_few_of_a_shard(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let mut are_few = false;
    let mut rows_kept = 1;
    let mut node = plan;
    loop {
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            let is_small = aggregate
                .aggr_expr()
                .iter()
                .all(|each| SMALL_AGGREGATES.contains(&each.fun().name()) && !each.is_distinct());
            if *aggregate.mode() != AggregateMode::Partial || !aggregate.group_expr().is_empty() || !is_small
            {
                return false;
            }
            are_few = true;
        } else if let Some(sort) = node.downcast_ref::<SortExec>() {
            if !sort.preserve_partitioning() || sort.fetch().is_none_or(|rows| rows > KEPT_ROWS_MAX) {
                return false;
            }
            are_few = true;
            rows_kept = sort.fetch().unwrap_or_default() as u64;
        } else if let Some(scan) = shard_scan(node) {
            // Of files in an order of their own a sort may have been left out.
            return are_few
                && scan.output_ordering.is_empty()
                && kept_bytes(scan, rows_kept) <= KEPT_BYTES_MAX;
        } else if !(node.is::<FilterExec>() || node.is::<ProjectionExec>() || node.is::<CooperativeExec>()) {
            return false;
        }
        match node.children().as_slice() {
            [only] => node = only,
            _ => return false,
        }
    }
}

/// Bytes of so many rows of each segment, as they are on disk.
fn kept_bytes(scan: &FileScanConfig, rows: u64) -> u64 {
    let files: Vec<&PartitionedFile> = scan.file_groups.iter().flat_map(FileGroup::files).collect();
    let known = |file: &PartitionedFile| file.statistics.as_ref()?.num_rows.get_value().copied();
    let of_files: Option<usize> = files.iter().map(|file| known(file)).sum();
    let of_scan = || scan.statistics().num_rows.get_value().copied();
    let all_rows = of_files.or_else(of_scan).unwrap_or_default();
    let row_bytes = scan_bytes(scan) / (all_rows as u64).max(1);
    row_bytes.max(1) * rows * files.len() as u64
}

/// A plan in which what is below the place where partitions meet is read shard
/// by shard; none where it has another shape.
///
/// # Errors
/// As [`ShardStreamsExec::new`].
pub(crate) fn with_streams(
    plan: &Arc<dyn ExecutionPlan>,
    view: &View,
    context: &StreamContext,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let children = plan.children();
    let [child] = children.as_slice() else { return Ok(None) };
    let meets = plan.is::<CoalescePartitionsExec>() || plan.is::<SortPreservingMergeExec>();
    let child: Option<Arc<dyn ExecutionPlan>> = if meets && makes_few_of_a_shard(child) {
        let streams = ShardStreamsExec::new(child, view, context.clone(), Giving::WhenWhole)?;
        streams.map(|streams| Arc::new(streams) as _)
    } else {
        with_streams(child, view, context)?
    };
    child.map(|child| replace_children_if_necessary(Arc::clone(plan), vec![child])).transpose()
}

/// The streams of a plan that is read shard by shard.
pub(crate) fn streams_of(plan: &Arc<dyn ExecutionPlan>) -> Option<&ShardStreamsExec> {
    let mut node = plan;
    loop {
        if let Some(streams) = node.downcast_ref::<ShardStreamsExec>() {
            return Some(streams);
        }
        match node.children().as_slice() {
            [only] => node = only,
            _ => return None,
        }
    }
}

/// One stream for each shard that a plan reads.
pub(crate) struct ShardStreamsExec {
    shards: Vec<Arc<ShardPlan>>,
    giving: Giving,
    plan: Arc<dyn ExecutionPlan>,
    context: StreamContext,
    properties: Arc<PlanProperties>,
    metrics: Arc<Mutex<Vec<MetricsSet>>>,
    stragglers: Arc<Mutex<Stragglers>>,
}

/// The part of the plan that reads one shard.
struct ShardPlan {
    shard: u32,
    /// The plan over all shards, and its scan without files.
    whole: Arc<dyn ExecutionPlan>,
    bare: Arc<FileScanConfig>,
    files: Vec<PartitionedFile>,
    plan: OnceLock<Arc<dyn ExecutionPlan>>,
    /// Its bytes, against the mean of all shards that are read.
    weight: f64,
    /// Those that can read all of it from their own disk.
    readers: BTreeSet<WorkerId>,
    /// Where it runs first.
    worker: (WorkerId, Url),
}

impl ShardPlan {
    /// The plan over this shard. It is made when its rows are wanted: there may be a
    /// thousand of them.
    ///
    /// # Errors
    /// None in practice; those of changing a plan.
    fn plan(&self) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(plan) = self.plan.get() {
            return Ok(Arc::clone(plan));
        }
        let plan = with_files(&self.whole, &self.bare, self.files.clone())?;
        Ok(Arc::clone(self.plan.get_or_init(|| plan)))
    }
}

impl ShardStreamsExec {
    /// `plan` has one scan, of shards, and one partition for rows that are
    /// given as they come; none where it has another shape.
    ///
    /// # Errors
    /// `Internal` where a scan names no segments.
    pub(crate) fn new(
        plan: &Arc<dyn ExecutionPlan>,
        view: &View,
        context: StreamContext,
        giving: Giving,
    ) -> Result<Option<Self>> {
        let Some(shards) = files_by_shard(plan)? else { return Ok(None) };
        let is_in_order = giving == Giving::WhenWhole || plan.output_partitioning().partition_count() == 1;
        if shards.is_empty() || !is_in_order {
            return Ok(None);
        }
        let mut loads = Vec::with_capacity(shards.len());
        for (&shard, files) in &shards {
            let table = files.first().map(segment_of).transpose()?.map(|name| name.table).unwrap_or_default();
            let bytes = files.iter().map(PartitionedFile::effective_size).sum();
            loads.push(ShardLoad { table, shard, bytes });
        }
        let tasks = view.workers().len().min(shards.len());
        let dealt = view.deal(&loads, tasks);
        let workers = view.task_workers(tasks);
        let mean_bytes = loads.iter().map(|load| load.bytes).sum::<u64>().max(1) as f64 / loads.len() as f64;
        let Some(bare) = bare_scan(plan)?.map(Arc::new) else { return Ok(None) };
        let mut plans = Vec::with_capacity(shards.len());
        for (((shard, files), load), task) in shards.into_iter().zip(&loads).zip(dealt) {
            let worker = &view.workers()[workers[task]];
            plans.push(Arc::new(ShardPlan {
                shard,
                whole: Arc::clone(plan),
                bare: Arc::clone(&bare),
                files,
                plan: OnceLock::new(),
                weight: (load.bytes.max(1) as f64 / mean_bytes).max(WEIGHT_MIN),
                readers: view.readers(load.table, shard),
                worker: (worker.id.clone(), worker.url.clone()),
            }));
        }
        let properties = PlanProperties::new(
            plan.equivalence_properties().clone(),
            Partitioning::UnknownPartitioning(plans.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let stragglers = Arc::new(Mutex::new(Stragglers::of(plans.len())));
        Ok(Some(Self {
            shards: plans,
            giving,
            plan: Arc::clone(plan),
            context,
            properties: Arc::new(properties),
            metrics: Arc::default(),
            stragglers,
        }))
    }

    /// The plan over all shards.
    pub(crate) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// Shards that it reads.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The workers that it starts on.
    pub(crate) fn workers(&self) -> BTreeSet<&WorkerId> {
        self.shards.iter().map(|shard| &shard.worker.0).collect()
    }

    /// Metrics of each node in pre-order, over all shards that ended.
    pub(crate) fn node_metrics(&self) -> Vec<MetricsSet> {
        self.metrics.lock().clone()
    }
}

/// The files of the plan's one scan, by shard; none where it has no scan of
/// shards, or several.
fn files_by_shard(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<BTreeMap<u32, Vec<PartitionedFile>>>> {
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
fn bare_scan(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<FileScanConfig>> {
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
fn with_files(
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

impl fmt::Debug for ShardStreamsExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardStreamsExec({} shards)", self.shards.len())
    }
}

impl DisplayAs for ShardStreamsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardStreamsExec: shards={}", self.shards.len())
    }
}

impl ExecutionPlan for ShardStreamsExec {
    fn name(&self) -> &str {
        "ShardStreamsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("a ShardStreamsExec has no children") }
    }

    fn execute(&self, partition: usize, task: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(shard) = self.shards.get(partition) else {
            return internal_err!("there are {} shards, and no number {partition}", self.shards.len());
        };
        let stream = ShardStream::new(
            Arc::clone(shard),
            self.giving,
            self.context.clone(),
            task,
            Arc::clone(&self.metrics),
            Arc::clone(&self.stragglers),
        );
        let rows = futures::stream::unfold(Some(stream), |stream| async move {
            let mut stream = stream?;
            match stream.next().await {
                Some(Ok(batch)) => Some((Ok(batch), Some(stream))),
                Some(Err(failure)) => Some((Err(failure.into()), None)),
                None => None,
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
