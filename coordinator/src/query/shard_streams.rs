//! A scan that streams: one stream per shard, each on a worker that holds the
//! shard. A shard's rows come in one order only, whichever replica they are
//! read from; so when a worker is lost, its streams go on elsewhere at the
//! row where they stopped, and rows need not wait for the end to be safe.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use datafusion_distributed::MaybeEncoded;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_proto::exchange::{QueryOptions, ReadLog, metrics_from_wire, run_plan, worker_url};
use shoal_proto::query::RunRequest;
use shoal_proto::{Channels, ErrorCode, Failure, WorkerId};
use url::Url;

use super::attempt::worker_lost;
use super::planned_reads::take_in_shard;
use super::registry::QueryRecord;
use super::retry::{Attempted, Decision, Event};
use super::scan_tasks::{segment_of, shard_scan};
use super::view::{ShardLoad, View};
use crate::cluster::Cluster;

/// How long a stream waits for a live worker to go on with.
const WORKER_WAIT: Duration = Duration::from_secs(5);

/// What streams need beside the plan.
#[derive(Clone)]
pub(crate) struct StreamContext {
    /// Who is alive, and whom to suspect.
    pub(crate) cluster: Arc<Cluster>,
    /// Where losses are told; none for a plan that is only explained.
    pub(crate) record: Option<Arc<QueryRecord>>,
    /// The way to workers.
    pub(crate) channels: Channels,
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
pub(crate) fn is_row_by_row(plan: &LogicalPlan) -> Result<bool> {
    let mut is_eligible = true;
    plan.apply(|node| {
        let is_known = match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
            LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
            _ => false,
        };
        is_eligible &= is_known;
        node.apply_expressions(|expr| {
            let has_subquery = expr.exists(|part| {
                Ok(matches!(
                    part,
                    Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
                ))
            })?;
            is_eligible &= !has_subquery && !expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_eligible { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_eligible)
}

/// One stream for each shard that a plan reads.
pub(crate) struct ShardStreamsExec {
    shards: Vec<Arc<ShardPlan>>,
    plan: Arc<dyn ExecutionPlan>,
    context: StreamContext,
    properties: Arc<PlanProperties>,
    metrics: Arc<Mutex<Vec<MetricsSet>>>,
}

/// The part of the plan that reads one shard.
struct ShardPlan {
    shard: u32,
    plan: Arc<dyn ExecutionPlan>,
    segments: Vec<SegmentName>,
    /// Where it runs first.
    worker: (WorkerId, Url),
}

impl ShardStreamsExec {
    /// `plan` has one partition and one scan, of shards; none where it has
    /// another shape.
    ///
    /// # Errors
    /// `Internal` where a scan names no segments.
    pub(crate) fn new(
        plan: &Arc<dyn ExecutionPlan>,
        view: &View,
        context: StreamContext,
    ) -> Result<Option<Self>> {
        let Some(shards) = files_by_shard(plan)? else { return Ok(None) };
        if shards.is_empty() || plan.output_partitioning().partition_count() != 1 {
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
        let mut plans = Vec::with_capacity(shards.len());
        for ((shard, files), task) in shards.into_iter().zip(dealt) {
            let segments = files.iter().map(segment_of).collect::<Result<Vec<_>>>()?;
            let worker = &view.workers()[workers[task]];
            plans.push(Arc::new(ShardPlan {
                shard,
                plan: with_files(plan, files)?,
                segments,
                worker: (worker.id.clone(), worker.url.clone()),
            }));
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(plan.schema()),
            Partitioning::UnknownPartitioning(plans.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Some(Self {
            shards: plans,
            plan: Arc::clone(plan),
            context,
            properties: Arc::new(properties),
            metrics: Arc::default(),
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

/// The plan over these files only, in this order.
fn with_files(plan: &Arc<dyn ExecutionPlan>, files: Vec<PartitionedFile>) -> Result<Arc<dyn ExecutionPlan>> {
    let replaced = Arc::clone(plan).transform_up(|node| {
        let Some(scan) = shard_scan(&node) else { return Ok(Transformed::no(node)) };
        let mut scan = scan.clone();
        scan.file_groups = vec![FileGroup::new(files.clone())];
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
        let stream = ShardStream {
            shard: Arc::clone(shard),
            context: self.context.clone(),
            task,
            metrics: Arc::clone(&self.metrics),
            attempted: Attempted::new(Instant::now()),
            rows_given: 0,
            rows: None,
        };
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

/// The rows of one shard, over as many workers as it takes.
struct ShardStream {
    shard: Arc<ShardPlan>,
    context: StreamContext,
    task: Arc<TaskContext>,
    metrics: Arc<Mutex<Vec<MetricsSet>>>,
    attempted: Attempted,
    rows_given: usize,
    /// From which worker.
    rows: Option<(WorkerId, BoxStream<'static, Result<RecordBatch>>)>,
}

impl ShardStream {
    async fn next(&mut self) -> Option<Result<RecordBatch, Failure>> {
        loop {
            let polled = match &mut self.rows {
                Some((worker, rows)) => {
                    let used = || BTreeSet::from([worker.clone()]);
                    tokio::select! {
                        biased;
                        polled = rows.next() => polled,
                        failure = worker_lost(&self.context.cluster, used) => Some(Err(failure.into())),
                    }
                }
                None => match self.open().await {
                    Ok(rows) => {
                        self.rows = Some(rows);
                        continue;
                    }
                    Err(failure) => Some(Err(failure.into())),
                },
            };
            match polled {
                Some(Ok(batch)) => {
                    self.rows_given += batch.num_rows();
                    if batch.num_rows() > 0 {
                        self.attempted.progressed(Instant::now());
                    }
                    return Some(Ok(batch));
                }
                None => return None,
                Some(Err(error)) => {
                    self.rows = None;
                    let failure = Failure::from_datafusion(&error);
                    if let Err(failure) = self.failed(failure) {
                        return Some(Err(failure));
                    }
                }
            }
        }
    }

    /// What a failure comes to: the next replica, or the end.
    fn failed(&mut self, failure: Failure) -> Result<(), Failure> {
        let event = match (&failure.worker, failure.code) {
            (None, ErrorCode::Unavailable) => Event::NoWorkerLeft(failure.clone()),
            _ => Event::Failed(failure.clone()),
        };
        let (suspect, outcome) = match self.attempted.on(event, Instant::now()) {
            Decision::GoOn => (None, Ok(())),
            Decision::Again { suspect } => (suspect, Ok(())),
            Decision::Fail { failure, suspect } => (suspect, Err(failure)),
        };
        if let Some(worker) = suspect {
            self.context.cluster.suspect(&worker, &failure.message);
        }
        if let Some(record) = &self.context.record
            && failure.worker.is_some()
            && failure.code.is_retryable()
        {
            record.lost(&format!("shard {} at row {}: {failure}", self.shard.shard, self.rows_given));
        }
        tracing::warn!(
            query_id = %self.context.query.query, shard = self.shard.shard, row = self.rows_given,
            goes_on = outcome.is_ok(), "stream of a shard failed: {failure}"
        );
        outcome
    }

    /// Starts to read behind the rows that were given already.
    async fn open(&mut self) -> Result<(WorkerId, BoxStream<'static, Result<RecordBatch>>), Failure> {
        let (worker, url) = self.worker().await?;
        self.attempted.begin();
        let plan = match self.rows_given {
            0 => Arc::clone(&self.shard.plan),
            rows => Arc::new(GlobalLimitExec::new(Arc::clone(&self.shard.plan), rows, None)) as _,
        };
        let named = |error: datafusion::common::DataFusionError| Failure::from_datafusion(&error);
        let request = RunRequest {
            query: self.context.query.query.0.as_bytes().to_vec().into(),
            plan: MaybeEncoded::Decoded(plan).encode(&self.task).map_err(named)?.into(),
            worker_url: url.to_string(),
            collect_metrics: self.context.collect_metrics,
        };
        tracing::debug!(
            query_id = %self.context.query.query, shard = self.shard.shard, %worker, row = self.rows_given,
            "stream of a shard begins"
        );
        let is_whole = self.rows_given == 0;
        let metrics = Arc::clone(&self.metrics);
        let headers = self.context.query.to_headers()?;
        let (shard, reads) = (Arc::clone(&self.shard), ReadLog::of(&self.task));
        let (record, from) = (self.context.record.clone(), worker.clone());
        let rows = run_plan(&self.context.channels, &url, headers, request, move |ended| {
            // Also a run that began in the middle reads the shard from its start.
            take_in_shard(&shard.plan, shard.shard, &ended.reads, &reads)?;
            record.inspect(|record| record.streamed_by(from));
            // A resumed plan has a node more.
            let nodes = ended.metrics.into_iter().flat_map(|wire| wire.nodes);
            add_metrics(&mut metrics.lock(), nodes.map(metrics_from_wire).skip(usize::from(!is_whole)));
            Ok(())
        })
        .map_err(named)?;
        Ok((worker, rows))
    }

    /// The worker to read from: the one that was dealt, then others that hold
    /// the shard, then any: every worker can fetch what it lacks.
    async fn worker(&mut self) -> Result<(WorkerId, Url), Failure> {
        if self.attempted.losses().is_empty() {
            return Ok(self.shard.worker.clone());
        }
        let mut live = self.context.cluster.watch();
        let avoid = self.attempted.avoid().clone();
        let is_there = live.wait_for(|live| live.workers.iter().any(|worker| !avoid.contains(&worker.id)));
        let live = match tokio::time::timeout(WORKER_WAIT, is_there).await {
            Ok(Ok(live)) => Arc::clone(&live),
            Ok(Err(_)) | Err(_) => {
                let tried: Vec<&str> = avoid.iter().map(WorkerId::as_str).collect();
                let message = format!(
                    "no live worker is left to read shard {} from (tried {})",
                    self.shard.shard,
                    tried.join(", ")
                );
                return Err(Failure::new(ErrorCode::Unavailable, message));
            }
        };
        let best = live.workers.iter().filter(|worker| !avoid.contains(&worker.id)).max_by_key(|worker| {
            let held = self.shard.segments.iter().filter(|name| worker.holds.contains(name)).count();
            (held, std::cmp::Reverse(worker.tasks_running))
        });
        let Some(best) = best else {
            return Err(Failure::new(ErrorCode::Unavailable, "no live worker is left"));
        };
        let url = worker_url(&best.address, &best.id).map_err(|error| Failure::from_datafusion(&error))?;
        Ok((best.id.clone(), url))
    }
}

/// Adds the metrics of one shard's nodes to those of the others.
fn add_metrics(all: &mut Vec<MetricsSet>, nodes: impl Iterator<Item = MetricsSet>) {
    for (index, node) in nodes.enumerate() {
        if all.len() <= index {
            all.push(MetricsSet::new());
        }
        node.iter().for_each(|metric| all[index].push(Arc::clone(metric)));
    }
}
