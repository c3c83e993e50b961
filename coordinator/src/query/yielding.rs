//! Joins that look at many rows for each give way now and then: a query that
//! was cancelled must not hold its thread until two large sides are joined.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use shoal_data::operators::{OnceExec, PiecesExec};

/// Puts a place to give way above each join without an equality, as DataFusion
/// counts the batches that leaves give, and such a join makes thousands of
/// each; and above each merge, whose rows a filter may refuse. One that may make none
/// of very many pairs, because its filter refuses them, gets its probe side in pieces.
/// The other side of a nested loop join is read once: DataFusion reads it anew where
/// memory runs out, and may then read less.
#[derive(Debug, Default)]
pub(crate) struct YieldInJoins;

impl PhysicalOptimizerRule for YieldInJoins {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wrapped = plan.transform_up(|node| {
            let makes_many = node.is::<NestedLoopJoinExec>()
                || node.is::<CrossJoinExec>()
                || node.is::<SortMergeJoinExec>();
            let node = match node.children().as_slice() {
                [build, probe] if node.is::<NestedLoopJoinExec>() || is_filtered(&node) => {
                    let probe = Arc::new(PiecesExec::new(Arc::clone(probe)));
                    let build = match node.is::<NestedLoopJoinExec>() {
                        true => read_once(build)?,
                        false => Arc::clone(build),
                    };
                    let sides: Vec<Arc<dyn ExecutionPlan>> = vec![build, probe];
                    replace_children_if_necessary(Arc::clone(&node), sides)?
                }
                _ if !makes_many => return Ok(Transformed::no(node)),
                _ => node,
            };
            let node = if makes_many { Arc::new(CooperativeExec::new(node)) } else { node };
            Ok(Transformed::yes(node))
        })?;
        Ok(wrapped.data)
    }

    fn name(&self) -> &str {
        "yield_in_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The side of a join that is read once. Where its partitions are put together
/// stays next to the join: whoever cuts the plan into stages looks for it there.
fn read_once(side: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    match side.children().as_slice() {
        [below] if side.is::<CoalescePartitionsExec>() => {
            let once = Arc::new(OnceExec::new(Arc::clone(below)));
            replace_children_if_necessary(Arc::clone(side), vec![once])
        }
        _ => Ok(Arc::new(OnceExec::new(Arc::clone(side)))),
    }
}

/// Whether a join with an equality refuses pairs of rows that it has put
/// together.
fn is_filtered(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<HashJoinExec>().is_some_and(|join| join.filter().is_some())
}
