//! An input that can be read once only, and says so.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err, resources_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};

/// Hands its input's rows on, and refuses to begin again. A join without an
/// equality that runs out of memory reads its first side anew, and what comes
/// then may be less: files that were opened before are not opened again, and
/// rows of an exchange are gone.
#[derive(Debug)]
pub struct OnceExec {
    input: Arc<dyn ExecutionPlan>,
    /// Of each partition.
    has_begun: Vec<AtomicBool>,
}

impl OnceExec {
    pub(super) const NAME_BYTES: &[u8] = Self::NAME.as_bytes();
    const NAME: &str = "OnceExec";

    /// The rows of `input`, once.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self { input, has_begun: (0..partitions).map(|_| AtomicBool::default()).collect() }
    }
}

impl DisplayAs for OnceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAME)
    }
}

impl ExecutionPlan for OnceExec {
    fn name(&self) -> &str {
        Self::NAME
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
            _ => internal_err!("a {} has one input", Self::NAME),
        }
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
            _ => internal_err!("a {} has one input", Self::NAME),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(has_begun) = self.has_begun.get(partition) else {
            return internal_err!("a {} has no partition {partition}", Self::NAME);
        };
        if has_begun.swap(true, Ordering::Relaxed) {
            return resources_err!(
                "a join without an equality needs more memory for its smaller side than the query may have: \
                 raise shoal.query_memory, or give the join an equality"
            );
        }
        self.input.execute(partition, context)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use datafusion::physical_plan::empty::EmptyExec;

    use super::*;

    #[tokio::test]
    async fn what_was_begun_is_not_begun_again() {
        let input = Arc::new(EmptyExec::new(Arc::new(Schema::empty())));
        let once = OnceExec::new(input);
        let context = Arc::new(TaskContext::default());
        assert!(once.execute(0, Arc::clone(&context)).is_ok());
        let message = once.execute(0, context).err().unwrap().to_string();
        assert!(message.contains("shoal.query_memory"), "{message}");
    }
}
