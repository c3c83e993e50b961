//! A plan that runs on one worker as a whole: one call instead of the
//! machinery of stages, which is what small queries would pay most for.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use datafusion_distributed::MaybeEncoded;
use parking_lot::Mutex;
use shoal_proto::Channels;
use shoal_proto::exchange::{QueryOptions, metrics_from_wire, run_plan, worker_of};
use shoal_proto::query::RunRequest;
use url::Url;

/// Sends its plan to one worker and gives back the rows.
pub struct WholePlanExec {
    plan: Arc<dyn ExecutionPlan>,
    url: Url,
    query: QueryOptions,
    channels: Channels,
    collect_metrics: bool,
    metrics: Arc<Mutex<Option<Vec<MetricsSet>>>>,
}

impl WholePlanExec {
    /// Will run `plan`, which has one output partition, on the worker at `url`.
    pub fn new(
        plan: Arc<dyn ExecutionPlan>,
        url: Url,
        query: QueryOptions,
        channels: Channels,
        collect_metrics: bool,
    ) -> Self {
        Self { plan, url, query, channels, collect_metrics, metrics: Arc::default() }
    }

    /// The plan as the worker runs it.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The worker's name.
    pub fn worker(&self) -> &str {
        worker_of(&self.url)
    }

    /// Metrics of each node in pre-order, once the stream has ended and where
    /// they were asked for.
    pub fn node_metrics(&self) -> Option<Vec<MetricsSet>> {
        self.metrics.lock().clone()
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

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [plan] = <[_; 1]>::try_from(children).or_else(|children| {
            internal_err!("WholePlanExec has one child, not {}", children.len())
        })?;
        let (url, query, channels) = (self.url.clone(), self.query.clone(), self.channels.clone());
        Ok(Arc::new(Self::new(plan, url, query, channels, self.collect_metrics)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("WholePlanExec has one partition, not a number {partition}");
        }
        let request = RunRequest {
            query: self.query.query.0.as_bytes().to_vec().into(),
            plan: MaybeEncoded::Decoded(Arc::clone(&self.plan)).encode(&context)?.into(),
            worker_url: self.url.to_string(),
            collect_metrics: self.collect_metrics,
        };
        let metrics = Arc::clone(&self.metrics);
        let rows = run_plan(&self.channels, &self.url, self.query.to_headers()?, request, move |wire| {
            *metrics.lock() = Some(wire.nodes.into_iter().map(metrics_from_wire).collect());
        })?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// Whether a plan reads anything that workers hold or should read. What does
/// not (system tables, constants) runs on the coordinator.
///
/// # Errors
/// None in practice; those of walking a plan.
pub fn reads_segments_or_files(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
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

