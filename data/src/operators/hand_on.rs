//! Operators that hand their input's rows on, unchanged and in order.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};

/// How rows are handed on.
pub trait HandOn: fmt::Debug + Send + Sync + Sized + 'static {
    /// Of the operator: in plans, and between nodes.
    const NAME: &'static str;

    /// For an input of so many partitions.
    fn of(partitions: usize) -> Self;

    /// The rows of a partition that `open` begins to read.
    ///
    /// # Errors
    /// Those of `open`, and its own.
    fn hand_on(
        &self,
        partition: usize,
        open: impl FnOnce() -> Result<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream>;

    /// What it took, where it takes anything.
    fn metrics(&self) -> Option<MetricsSet> {
        None
    }
}

/// Hands its input's rows on as `H` does it. Everything else about it is the
/// input's.
#[derive(Debug)]
pub struct HandOnExec<H> {
    input: Arc<dyn ExecutionPlan>,
    how: H,
}

impl<H: HandOn> HandOnExec<H> {
    pub(super) const NAME_BYTES: &[u8] = H::NAME.as_bytes();

    /// The rows of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let how = H::of(input.output_partitioning().partition_count());
        Self { input, how }
    }
}

impl<H: HandOn> DisplayAs for HandOnExec<H> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(H::NAME)
    }
}

impl<H: HandOn> ExecutionPlan for HandOnExec<H> {
    fn name(&self) -> &str {
        H::NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
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
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("a {} has one input", H::NAME),
        }
    }

    fn metrics(&self) -> Option<MetricsSet> {
        self.how.metrics()
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        match inputs {
            [input] => Ok(Arc::clone(input)),
            _ => internal_err!("a {} has one input", H::NAME),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.how.hand_on(partition, || self.input.execute(partition, context))
    }
}
