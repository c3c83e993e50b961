//! Joins that collect a side of some rows, whichever come first. The library puts what it
//! sends to all tasks of such a join below the place where that side's partitions meet, and
//! with it below the limit: each task would take others of all rows for the first.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};

/// Puts a place where partitions meet, for which one is all there is, above the limit of
/// each collected side: rows are then sent to all tasks from above the limit, and chosen once.
#[derive(Debug, Default)]
pub(crate) struct LimitOnce;

impl PhysicalOptimizerRule for LimitOnce {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let chosen_once = plan.transform_up(|node| match node.children().as_slice() {
            [built, probe] if collects(&node) && is_limited(built) => {
                let built = Arc::new(CoalescePartitionsExec::new(Arc::clone(built)));
                let sides: Vec<Arc<dyn ExecutionPlan>> = vec![built, Arc::clone(probe)];
                Ok(Transformed::yes(replace_children_if_necessary(Arc::clone(&node), sides)?))
            }
            _ => Ok(Transformed::no(Arc::clone(&node))),
        })?;
        Ok(chosen_once.data)
    }

    fn name(&self) -> &str {
        "limit_once"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether a join has all rows of its left side wherever it has some of the other.
fn collects(node: &Arc<dyn ExecutionPlan>) -> bool {
    let is_collected = |join: &HashJoinExec| *join.partition_mode() == PartitionMode::CollectLeft;
    node.downcast_ref::<HashJoinExec>().is_some_and(is_collected)
        || node.is::<NestedLoopJoinExec>()
        || node.is::<CrossJoinExec>()
}

/// Whether a side is the first rows of any partition.
fn is_limited(side: &Arc<dyn ExecutionPlan>) -> bool {
    side.is::<CoalescePartitionsExec>() && side.fetch().is_some()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::common::{JoinType, NullEquality};
    use datafusion::physical_expr::PhysicalExpr;
    use datafusion::physical_expr::expressions::Column;
    use datafusion::physical_plan::displayable;
    use datafusion::physical_plan::empty::EmptyExec;

    use super::*;

    type Plan = Arc<dyn ExecutionPlan>;

    fn scan() -> Plan {
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        Arc::new(EmptyExec::new(Arc::new(schema)).with_partitions(2))
    }

    /// All rows in one partition, or so many of them.
    fn met(fetch: Option<usize>) -> Plan {
        Arc::new(CoalescePartitionsExec::new(scan()).with_fetch(fetch))
    }

    fn hashed(built: Plan, mode: PartitionMode) -> Plan {
        let key = || Arc::new(Column::new("a", 0)) as Arc<dyn PhysicalExpr>;
        let (on, nulls) = (vec![(key(), key())], NullEquality::NullEqualsNothing);
        let join = HashJoinExec::try_new(built, scan(), on, None, &JoinType::Inner, None, mode, nulls, false);
        Arc::new(join.unwrap())
    }

    fn crossed(built: Plan) -> Plan {
        Arc::new(CrossJoinExec::new(built, scan()))
    }

    fn looped(built: Plan) -> Plan {
        Arc::new(NestedLoopJoinExec::try_new(built, scan(), None, &JoinType::Inner, None).unwrap())
    }

    fn optimized(plan: &Plan) -> Plan {
        LimitOnce.optimize(Arc::clone(plan), &ConfigOptions::new()).unwrap()
    }

    /// How often partitions meet on the way down the built side, from the join.
    fn meetings(plan: &Plan) -> Vec<Option<usize>> {
        let mut meetings = Vec::new();
        let mut node = Arc::clone(plan.children()[0]);
        while node.is::<CoalescePartitionsExec>() {
            meetings.push(node.fetch());
            let below = Arc::clone(node.children()[0]);
            node = below;
        }
        meetings
    }

    #[test]
    fn a_limit_of_a_collected_side_is_not_next_to_the_join() {
        let joins: [fn(Plan) -> Plan; 3] =
            [|built| hashed(built, PartitionMode::CollectLeft), crossed, looped];
        for join in joins {
            assert_eq!(meetings(&optimized(&join(met(Some(10))))), [None, Some(10)]);
        }
    }

    #[test]
    fn other_joins_stay_as_they_are() {
        let collected = |built| hashed(built, PartitionMode::CollectLeft);
        for plan in [
            collected(met(None)),
            crossed(met(None)),
            looped(met(None)),
            hashed(met(Some(10)), PartitionMode::Partitioned),
        ] {
            let text = |plan: &Plan| displayable(plan.as_ref()).indent(false).to_string();
            assert_eq!(text(&optimized(&plan)), text(&plan));
        }
    }
}
