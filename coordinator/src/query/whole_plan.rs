//! A plan that runs on one worker as a whole: one call instead of the
//! machinery of stages, which is what small queries would pay most for.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::source_as_provider;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use parking_lot::Mutex;
use shoal_proto::Channels;
use shoal_proto::exchange::{
    Arrivals, Progress, QueryOptions, ReadLog, metrics_from_wire, run_plan, worker_of,
};
use shoal_proto::query::RunRequest;
use url::Url;

use super::admission::Class;
use super::shard_table::as_shard_table;
use super::weight::{share, weigh};

mod kept;

pub(crate) use kept::{KeptWhole, World};

/// What reads fewer bytes runs on one worker without asking what else could be.
pub(super) const SMALL_BYTES: u64 = 1024 * 1024;
/// But not more rows: of what is nearly constant there are many in few bytes.
const SMALL_ROWS: u64 = 100_000;
/// Nor from more segments: they are opened one after the other.
const SEGMENTS_MAX: usize = 256;

/// Sends its plan to one worker and gives back the rows.
pub(crate) struct WholePlanExec {
    plan: Arc<dyn ExecutionPlan>,
    encoded: Bytes,
    url: Url,
    query: QueryOptions,
    channels: Channels,
    collect_metrics: bool,
    at_once: bool,
    metrics: Arc<Mutex<Option<Vec<MetricsSet>>>>,
    arrived: ExecutionPlanMetricsSet,
}

impl WholePlanExec {
    /// Will run `plan`, which has one output partition and is encoded as
    /// `encoded`, on the worker at `url`.
    pub(crate) fn new(
        plan: Arc<dyn ExecutionPlan>,
        encoded: Bytes,
        url: Url,
        query: QueryOptions,
        channels: Channels,
        collect_metrics: bool,
    ) -> Self {
        let (metrics, arrived) = (Arc::default(), ExecutionPlanMetricsSet::new());
        Self { plan, encoded, url, query, channels, collect_metrics, at_once: false, metrics, arrived }
    }

    /// The same of a plan that reads the rows of one key: the worker may run it among the
    /// threads that talk to the network.
    pub(crate) fn at_once(self) -> Self {
        Self { at_once: true, ..self }
    }

    /// The plan as the worker runs it.
    pub(crate) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The same, encoded.
    pub(crate) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The worker's name.
    pub(crate) fn worker(&self) -> &str {
        worker_of(&self.url)
    }

    /// Metrics of each node in pre-order, once the stream has ended and where
    /// they were asked for.
    pub(crate) fn node_metrics(&self) -> Option<Vec<MetricsSet>> {
        self.metrics.lock().clone()
    }

    /// What came from the worker so far, as metrics.
    pub(crate) fn arrived(&self) -> MetricsSet {
        self.arrived.clone_inner()
    }
}

impl fmt::Debug for WholePlanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WholePlanExec({})", self.worker())
    }
}

impl DisplayAs for WholePlanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WholePlanExec: worker={}", self.worker())
    }
}

impl ExecutionPlan for WholePlanExec {
    fn name(&self) -> &str {
        "WholePlanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.plan.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.plan]
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
        // It is encoded already: another child would not be what runs.
        match children.as_slice() {
            [child] if Arc::ptr_eq(child, &self.plan) => Ok(self),
            _ => internal_err!("the plan of a WholePlanExec cannot be changed"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("WholePlanExec has one partition, not a number {partition}");
        }
        let request = RunRequest {
            query: self.query.query.0.as_bytes().to_vec().into(),
            plan: self.encoded.clone(),
            worker_url: self.url.to_string(),
            collect_metrics: self.collect_metrics,
            at_once: self.at_once,
            ..RunRequest::default()
        };
        let metrics = Arc::clone(&self.metrics);
        let reads = ReadLog::of(&context);
        let progress = Progress::of(&context, Arrivals::among(&self.arrived));
        let headers = self.query.to_headers()?;
        let rows = run_plan(&self.channels, &self.url, headers, request, progress, move |ended| {
            reads.take_in(ended.reads.news(&mut 0));
            reads.take_in_crossed(ended.reads.crossed_news(&mut 0));
            if let Some(wire) = ended.metrics {
                *metrics.lock() = Some(wire.nodes.into_iter().map(metrics_from_wire).collect());
            }
            Ok(())
        })?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// Whether a plan reads anything that workers hold or should read. What does
/// not (system tables, constants) runs on the coordinator.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(crate) fn reads_segments_or_files(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut reads = false;
    plan.apply(|node| {
        if let Some(scan) = node.downcast_ref::<DataSourceExec>()
            && scan.data_source().downcast_ref::<FileScanConfig>().is_some()
        {
            reads = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(reads)
}

/// Whether an optimised plan is done with soon: it is short, or reads few bytes.
pub(crate) fn is_brief(plan: &LogicalPlan, session: &dyn Session) -> bool {
    weigh(plan, session).class == Class::Short || is_small(plan, SMALL_BYTES).unwrap_or_default()
}

/// Whether an optimised plan reads few bytes and rows of shards, and nothing else, where a task reads so many,
/// and does not join each row with each, which is much of the smallest tables.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(super) fn is_small(plan: &LogicalPlan, task_bytes: u64) -> Result<bool> {
    let (mut read_bytes, mut rows, mut scans) = (0_u64, 0_u64, 0);
    let mut is_small = true;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(scan) => {
                let provider = source_as_provider(&scan.source)?;
                let table =
                    as_shard_table(&provider).filter(|table| table.table().segments.len() <= SEGMENTS_MAX);
                is_small &= table.is_some();
                if let Some(table) = table {
                    let segments = || table.table().segments.iter();
                    let bytes = segments().map(|segment| segment.bytes).fold(0, u64::saturating_add);
                    read_bytes = read_bytes.saturating_add(share(bytes, table, scan));
                    rows = segments().map(|segment| segment.rows).fold(rows, u64::saturating_add);
                }
                scans += 1;
            }
            LogicalPlan::Join(join) => is_small &= !join.on.is_empty(),
            LogicalPlan::Extension(_) | LogicalPlan::RecursiveQuery(_) => is_small = false,
            _ => {}
        }
        is_small &= read_bytes <= SMALL_BYTES.min(task_bytes) && rows <= SMALL_ROWS;
        Ok(if is_small { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_small && scans > 0)
}
