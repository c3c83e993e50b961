//! Joins of shards stay where they are, as far as the rows of one side are hashed by what
//! they are joined by: then only the other side moves, or none.
//!
//! DataFusion collects a side that is small for each of its joins, and sends it to all tasks,
//! also where each task has its part of it. Where rows of that side are given (outer, semi and
//! anti joins), collecting is possible in one task only, so the library deals both sides anew
//! by hash, however they were dealt before. And what is
//! hashed by several columns meets a join by the same columns in that order only.

use std::any::Any;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, JoinType, Result};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::joins::{HashJoinExec, JoinOn, JoinOnRef, PartitionMode};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::guard::sides_meet;
use super::planner_rules::{Rule, behind};

/// The rule of DataFusion after which it is known which joins collect a side, and before
/// the sides of others are dealt by hash.
const AFTER: &str = "join_selection";

/// Of more keys than these a filter seldom leaves out a page of the other side: what is between the least and
/// the greatest of them is nearly all there is.
const COLLECTED_ROWS_MAX: usize = 8192;

/// Has joins of which both sides are hashed alike by all keys already, or that give rows of their
/// collected side and of which one side is so hashed, join partition by partition; and names the keys of such joins in the order in
/// which that side is hashed.
#[derive(Debug, Default)]
pub(crate) struct JoinInPlace;

impl JoinInPlace {
    /// The rules with this one in its place.
    pub(crate) fn among(rules: Vec<Rule>) -> Vec<Rule> {
        behind(rules, AFTER, &(Arc::new(Self) as Rule))
    }
}

impl PhysicalOptimizerRule for JoinInPlace {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let one_side_moves = OneSideMoves::of(config);
        let joined = plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
            let Some(on) = in_place(join, one_side_moves) else { return Ok(Transformed::no(node)) };
            let join = join.builder().with_partition_mode(PartitionMode::Partitioned).with_on(on).build()?;
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

/// The keys, in their new order, of a join that is made partition by partition for this rule;
/// none for one that stays as it is.
fn in_place(join: &HashJoinExec, one_side_moves: bool) -> Option<JoinOn> {
    // A join of partitions asks for rows that are hashed by all that they are joined by.
    let on = as_hashed(join)?;
    match join.partition_mode() {
        PartitionMode::Partitioned => (on.as_slice() != join.on()).then_some(on),
        PartitionMode::CollectLeft => {
            let both_stay = sides_meet(join.left(), join.right(), &on);
            let is_better = match gives_collected(join) {
                true => both_stay || one_side_moves,
                false => both_stay && is_of_many_rows(join.left()),
            };
            (is_better && can_be_parted(join)).then_some(on)
        }
        PartitionMode::Auto => None,
    }
}

/// Whether a join gives rows of the side that it collects.
fn gives_collected(join: &HashJoinExec) -> bool {
    matches!(
        join.join_type(),
        JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark
    )
}

/// Whether a collected side has so many rows that it is not worth it to send them to all tasks for a filter by
/// its keys, which joins of partitions do not have.
fn is_of_many_rows(side: &Arc<dyn ExecutionPlan>) -> bool {
    let statistics = StatisticsContext::new().compute(side.as_ref(), &StatisticsArgs::new());
    statistics.is_ok_and(|known| known.num_rows.get_value().is_some_and(|rows| *rows > COLLECTED_ROWS_MAX))
}

/// Whether parts of a join can be made in many tasks.
fn can_be_parted(join: &HashJoinExec) -> bool {
    // Whether there is a NULL on the other side is known only where all of it is. And of one
    // partition DataFusion knows things that are not so of its part.
    !join.null_aware && join.right().output_partitioning().partition_count() > 1
}

/// The keys of a join in the order by which one of its sides is hashed, by all of them; none
/// where neither side is.
fn as_hashed(join: &HashJoinExec) -> Option<JoinOn> {
    ordered(join.on(), join.left().output_partitioning(), |(left, _)| left)
        .or_else(|| ordered(join.on(), join.right().output_partitioning(), |(_, right)| right))
}

/// `on` in the order of the columns by which a side is hashed, where these are the keys of
/// that side, each once.
fn ordered(
    on: JoinOnRef,
    partitioning: &Partitioning,
    of_side: impl Fn(&Pair) -> &Arc<dyn PhysicalExpr>,
) -> Option<JoinOn> {
    let Partitioning::Hash(hashed, _) = partitioning else { return None };
    let mut left = on.to_vec();
    let mut ordered = JoinOn::with_capacity(left.len());
    for column in hashed {
        let place = left.iter().position(|pair| of_side(pair).eq(column))?;
        ordered.push(left.remove(place));
    }
    (left.is_empty() && !ordered.is_empty()).then_some(ordered)
}

/// What is equal in both sides of a join.
type Pair = (Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>);

/// Whether rows of one side may come to where those of the other one are, for joins that give
/// rows of a collected side. Beside the settings of the session, but no setting itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OneSideMoves(pub(super) bool);

impl OneSideMoves {
    fn of(options: &ConfigOptions) -> bool {
        options.extensions.get::<Self>().is_some_and(|told| told.0)
    }
}

impl ConfigExtension for OneSideMoves {
    const PREFIX: &'static str = "shoal_one_side_moves";
}

impl ExtensionOptions for OneSideMoves {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(*self)
    }

    fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(DataFusionError::Configuration(format!("`{}.{key}` is no setting", Self::PREFIX)))
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_expr::expressions::Column;
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

    #[test]
    fn keys_are_put_in_order_and_none_is_lost() {
        let column = |index: usize| Arc::new(Column::new("c", index)) as Arc<dyn PhysicalExpr>;
        let pairs = |pairs: &[(usize, usize)]| -> JoinOn {
            pairs.iter().map(|&(left, right)| (column(left), column(right))).collect()
        };
        let hashed = |columns: &[usize]| Partitioning::Hash(columns.iter().copied().map(column).collect(), 2);
        let check = |on: &[(usize, usize)], by: &[usize], expected: Option<&[(usize, usize)]>| {
            assert_eq!(
                ordered(&pairs(on), &hashed(by), |(left, _)| left),
                expected.map(pairs),
                "{on:?} {by:?}"
            );
        };
        check(&[(0, 5)], &[0], Some(&[(0, 5)]));
        check(&[(0, 5), (1, 6)], &[1, 0], Some(&[(1, 6), (0, 5)]));
        // Rows of one pair of keys are in several partitions, or must come out of several.
        check(&[(0, 5)], &[1], None);
        check(&[(0, 5)], &[0, 1], None);
        check(&[(0, 5), (1, 6)], &[0], None);
        check(&[(0, 5), (0, 6)], &[0, 0], Some(&[(0, 5), (0, 6)]));
        check(&[(0, 5), (0, 6)], &[0, 1], None);
        check(&[], &[], None);
        let dealt = Partitioning::RoundRobinBatch(2);
        assert_eq!(ordered(&pairs(&[(0, 5)]), &dealt, |(left, _)| left), None);
    }
}
