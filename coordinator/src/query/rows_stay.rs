//! Rows of a query that stay on the workers that compute them, for whoever takes them
//! there: where nothing but gathering is left for the coordinator to do.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::datasource::source_as_provider;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, replace_children_if_necessary};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use datafusion_distributed::{
    DistributedExec, DistributedLeafExec, NetworkBoundaryExt, NetworkCoalesceExec, Stage,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use shoal_proto::cluster::LoadedTask;
use shoal_proto::cluster::load_rows::Source;
use shoal_proto::exchange::{QueryOptions, ReadLog, worker_of};
use shoal_proto::{Failure, WorkerId};
use url::Url;

use super::scan_tasks::{file_scan, scan_bytes};
use super::shard_table::as_shard_table;
use super::whole_plan::WholePlanExec;

/// Takes the rows of a query on the workers that compute them.
pub trait TakesRows: Send + Sync {
    /// The attempt of this number begins, and what those before it gave is worth nothing. Whether
    /// rows are still taken so: otherwise they come to the coordinator.
    fn begin(&self, attempt: u32) -> bool;

    /// Why the rows of the attempt that began last are not taken, where it is not the query that failed.
    fn refusal(&self) -> Option<Refusal>;

    /// Takes all rows that these tasks give, once all of them have come to their end.
    fn take(self: Arc<Self>, last: LastTasks) -> BoxFuture<'static, Result<(), Failure>>;
}

/// That rows were computed, and not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub failure: Failure,
    /// They may be taken where they come to the coordinator.
    pub may_come_here: bool,
}

/// The tasks of an attempt that give its rows. Their plans are on their way.
pub struct LastTasks {
    /// The query, and which attempt it is.
    pub query: QueryOptions,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// On which worker each runs, and what it is.
    pub tasks: Vec<(WorkerId, Source)>,
    /// Takes in what was read for the rows.
    pub reads: Arc<ReadLog>,
}

/// That rows are to stay on workers where they can.
#[derive(Clone)]
pub struct Stay {
    /// Who takes them there.
    pub taker: Arc<dyn TakesRows>,
    /// A query that reads fewer bytes is not worth it.
    pub bytes_min: u64,
}

/// Whether a plan may read so many bytes, before it is known which of them are left out.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(super) fn may_read(plan: &LogicalPlan, bytes_min: u64) -> Result<bool> {
    let (mut bytes, mut has_files) = (0_u64, false);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            match source_as_provider(&scan.source).ok().as_ref().and_then(as_shard_table) {
                Some(table) => {
                    bytes = bytes.saturating_add(table.facts().shard_bytes().iter().sum());
                }
                None => has_files = true,
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(has_files || bytes >= bytes_min)
}

/// The plan with its rows left to `stay`. None where the coordinator has more to do than to
/// gather them, and where too little is read.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(super) fn staying(
    plan: &Arc<dyn ExecutionPlan>,
    stay: &Stay,
    query: &QueryOptions,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let stays = |input: &Arc<dyn ExecutionPlan>| -> Arc<dyn ExecutionPlan> {
        Arc::new(RowsStayExec::new(Arc::clone(input), Arc::clone(&stay.taker), query.clone()))
    };
    if bytes_read(plan)? < stay.bytes_min {
        return Ok(None);
    }
    if plan.is::<WholePlanExec>() {
        return Ok(Some(stays(plan)));
    }
    let Some(gathered) = gathered(plan) else { return Ok(None) };
    replace_children_if_necessary(Arc::clone(plan), vec![stays(gathered)]).map(Some)
}

/// The exchange of a plan for which the coordinator does nothing but to gather its rows.
fn gathered(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    let head = plan.is::<DistributedExec>().then(|| plan.children())?.pop()?;
    let gathers = head.downcast_ref::<CoalescePartitionsExec>()?;
    (gathers.fetch().is_none() && gathers.input().is::<NetworkCoalesceExec>()).then(|| gathers.input())
}

/// Bytes that all scans of a plan read.
fn bytes_read(plan: &Arc<dyn ExecutionPlan>) -> Result<u64> {
    let mut bytes = 0_u64;
    plan.apply(|node| {
        let leaf = node.downcast_ref::<DistributedLeafExec>().map_or(node, DistributedLeafExec::original);
        if let Some(scan) = file_scan(leaf) {
            bytes = bytes.saturating_add(scan_bytes(scan));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(bytes)
}

/// Has the rows of its input taken where they are; it gives none.
struct RowsStayExec {
    /// Is not run here: an exchange, or a plan that is sent whole.
    input: Arc<dyn ExecutionPlan>,
    taker: Arc<dyn TakesRows>,
    query: QueryOptions,
    properties: Arc<PlanProperties>,
}

impl RowsStayExec {
    fn new(input: Arc<dyn ExecutionPlan>, taker: Arc<dyn TakesRows>, query: QueryOptions) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, taker, query, properties: Arc::new(properties) }
    }

    /// The tasks whose rows these are: workers are known when the plan runs.
    fn tasks(&self) -> Result<Vec<(WorkerId, Source)>> {
        if let Some(whole) = self.input.downcast_ref::<WholePlanExec>() {
            let worker = WorkerId::from(whole.worker());
            return Ok(vec![(worker, Source::Plan(whole.encoded().clone()))]);
        }
        let Some(Stage::Remote(stage)) =
            self.input.as_network_boundary().map(|boundary| boundary.input_stage())
        else {
            return internal_err!("rows are to stay in a stage that no worker has");
        };
        let all = self.input.output_partitioning().partition_count();
        let tasks = stage.workers.len();
        if tasks == 0 || all == 0 || !all.is_multiple_of(tasks) {
            return internal_err!("{all} partitions are not those of {tasks} tasks");
        }
        let partitions = (all / tasks) as u64;
        let task = |(task, url): (usize, &Url)| {
            let source = LoadedTask {
                query: stage.query_id.as_bytes().to_vec().into(),
                stage: stage.num as u64,
                task: task as u64,
                partitions,
            };
            (WorkerId::from(worker_of(url)), Source::Task(source))
        };
        Ok(stage.workers.iter().enumerate().map(task).collect())
    }
}

impl fmt::Debug for RowsStayExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowsStayExec({})", self.input.name())
    }
}

impl DisplayAs for RowsStayExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowsStayExec")
    }
}

impl ExecutionPlan for RowsStayExec {
    fn name(&self) -> &str {
        "RowsStayExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => {
                Ok(Arc::new(Self::new(input, Arc::clone(&self.taker), self.query.clone())))
            }
            _ => internal_err!("RowsStayExec has one child"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("RowsStayExec has one partition, not a number {partition}");
        }
        let columns = self.schema().fields().iter().map(|field| field.name().clone()).collect();
        let last = LastTasks {
            query: self.query.clone(),
            columns,
            tasks: self.tasks()?,
            reads: ReadLog::of(&context),
        };
        let taken = Arc::clone(&self.taker).take(last);
        let end = futures::stream::once(taken).filter_map(|taken| {
            std::future::ready(taken.err().map(|failure| Err(DataFusionError::from(failure))))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), end)))
    }
}

/// Whether rows of this node are taken where they are.
pub(super) fn is_rows_stay(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<RowsStayExec>()
}
