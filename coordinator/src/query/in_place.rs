//! Joins of shards that meet stay where they are.
//!
//! DataFusion collects a side that is small for each of its joins. Where rows of that
//! side are given (outer, semi and anti joins), this is possible in one task only, so
//! the library deals both sides anew by hash, however they were dealt before: also all
//! rows of the large side.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinType, Result};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::guard::sides_meet;

/// A rule of the planner.
type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// The rule of DataFusion after which it is known which joins collect a side, and before
/// the sides of others are dealt by hash.
const AFTER: &str = "join_selection";

/// Has each join that gives rows of its collected side, and whose sides are hashed alike
/// already, join partition by partition.
#[derive(Debug, Default)]
pub(crate) struct JoinInPlace;

impl JoinInPlace {
    /// The rules with this one in its place.
    pub(crate) fn among(rules: Vec<Rule>) -> Vec<Rule> {
        let with_this = |rule: Rule| {
            let this = (rule.name() == AFTER).then(|| -> Rule { Arc::new(Self) });
            [rule].into_iter().chain(this)
        };
        rules.into_iter().flat_map(with_this).collect()
    }
}

impl PhysicalOptimizerRule for JoinInPlace {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let joined = plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>().filter(|join| can_stay(join)) else {
                return Ok(Transformed::no(node));
            };
            let join = join.builder().with_partition_mode(PartitionMode::Partitioned).build()?;
            Ok(Transformed::yes(Arc::new(join) as Arc<dyn ExecutionPlan>))
        })?;
        Ok(joined.data)
    }

    fn name(&self) -> &str {
        "join_in_place"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn can_stay(join: &HashJoinExec) -> bool {
    let gives_collected = matches!(
        join.join_type(),
        JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark
    );
    let (left, right) = (join.left().output_partitioning(), join.right().output_partitioning());
    // A join of partitions asks for rows that are hashed by all that they are joined by.
    let is_by_all = matches!(left, Partitioning::Hash(keys, _) if keys.len() == join.on().len());
    *join.partition_mode() == PartitionMode::CollectLeft
        // Whether there is a NULL on the other side is known only where all of it is.
        && !join.null_aware
        && gives_collected
        && is_by_all
        && sides_meet(left, right, join.on())
}

#[cfg(test)]
mod tests {
    use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

    use super::*;

    #[test]
    fn the_rule_is_where_joins_are_settled_and_nothing_is_dealt_yet() {
        let rules = JoinInPlace::among(PhysicalOptimizer::new().rules);
        let names: Vec<&str> = rules.iter().map(|rule| rule.name()).collect();
        let place = |name: &str| names.iter().position(|other| *other == name);
        let this = place(JoinInPlace.name());
        assert!(this.is_some(), "{names:?}");
        assert_eq!(this, place(AFTER).map(|after| after + 1), "{names:?}");
        assert!(this < place("EnsureRequirements"), "{names:?}");
    }
}
