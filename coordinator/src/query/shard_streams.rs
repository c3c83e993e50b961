//! Scans of one table, shard by shard: one stream per shard, each on a worker
//! that holds the shard. When a worker is lost, its shards go on elsewhere; when
//! one is far behind, its shards begin a second time elsewhere, and who is
//! first counts. So nothing needs to wait for the whole query to be safe.
//!
//! A shard's rows come in one order only, whichever replica they are read from,
//! or they are given when a run over the shard has ended: [`Giving`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, replace_children_if_necessary};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use parking_lot::Mutex;
use shoal_proto::exchange::{Arrivals, QueryOptions};
use shoal_proto::{Channels, WorkerId};
use url::Url;

use self::giving::makes_few_of_a_shard;
use self::shard_files::{bare_scan, files_by_shard, with_files};
use self::stragglers::Stragglers;
use self::stream::ShardStream;
use super::registry::QueryRecord;
use super::scan_tasks::segment_of;
use super::view::{ShardLoad, View};
use crate::cluster::Cluster;

mod giving;
mod kept_rows;
mod shard_files;
mod stragglers;
mod stream;

pub(crate) use giving::{Giving, giving};
pub(crate) use shard_files::over_one_file;

/// What a shard counts at least, however small: each costs a call.
const WEIGHT_MIN: f64 = 0.5;

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
    arrived: ExecutionPlanMetricsSet,
    /// One for all shards: counts in `arrived`.
    arrivals: Arrivals,
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
        let arrived = ExecutionPlanMetricsSet::new();
        let arrivals = Arrivals::among(&arrived);
        Ok(Some(Self {
            shards: plans,
            giving,
            plan: Arc::clone(plan),
            context,
            properties: Arc::new(properties),
            metrics: Arc::default(),
            arrived,
            arrivals,
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

    /// What came from workers so far, as metrics; of two runs over a shard both.
    pub(crate) fn arrived(&self) -> MetricsSet {
        self.arrived.clone_inner()
    }
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
            self.arrivals.clone(),
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
