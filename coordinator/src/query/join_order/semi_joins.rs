//! Semi joins go down to the one leaf of a tree of inner joins that they ask about: the others
//! are then joined with fewer rows.
//!
//! DataFusion leaves what comes of `IN (SELECT ...)` and `EXISTS` above all joins of its query.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::logical_plan::Projection;
use datafusion::logical_expr::{Expr, Join, JoinType, LogicalPlan};

use super::cost::Graph;
use super::estimate::Facts;
use super::selectivity::UNKNOWN;
use super::tree::{Tree, inner_join};

/// What it may leave of the leaf's rows at most, by each guess.
const LEFT_SHARE: f64 = 0.5;

/// The plan with semi joins where they leave most out, where that is known.
///
/// # Errors
/// Those of walking a plan.
pub(super) fn with_semi_joins_below(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|node| {
        let below = match &node {
            LogicalPlan::Join(join) => joined_below(join),
            _ => None,
        };
        Ok(match below {
            Some(below) => Transformed::yes(below),
            None => Transformed::no(node),
        })
    })
}

/// The joins that a semi join is above, with it above the leaf that all its keys are of; none where
/// it should stay.
fn joined_below(semi: &Join) -> Option<LogicalPlan> {
    // A filter reads more columns than the keys, and may be an error for rows that the joins leave out.
    if semi.join_type != JoinType::LeftSemi || semi.filter.is_some() || semi.on.is_empty() {
        return None;
    }
    inner_join(&semi.left)?;
    let mut tree = Tree::of(&semi.left)?;
    if !tree.may_be_moved() {
        return None;
    }
    let leaves = semi.on.iter().map(|(key, _)| match key {
        Expr::Column(column) => tree.leaf_of(column),
        _ => None,
    });
    let leaves = leaves.collect::<Option<Vec<_>>>()?;
    let leaf = *leaves.first().filter(|first| leaves.iter().all(|leaf| leaf == *first))?;
    let kept = LogicalPlan::Join(
        Join::try_new(
            Arc::clone(&tree.leaves[leaf]),
            Arc::clone(&semi.right),
            semi.on.clone(),
            None,
            JoinType::LeftSemi,
            semi.join_constraint,
            semi.null_equality,
            semi.null_aware,
        )
        .ok()?,
    );
    let is_worth_it = UNKNOWN.iter().all(|unknown| {
        let rows = |plan: &LogicalPlan| Facts::of(plan, *unknown).map(|facts| facts.rows);
        let of_joins = Graph::of(&tree, *unknown).and_then(|graph| graph.rows_of_all());
        let Some(((all, left), of_joins)) = rows(&tree.leaves[leaf]).zip(rows(&kept)).zip(of_joins) else {
            return false;
        };
        // Where other joins leave out more, it is cheaper asked of what they leave.
        left <= all * LEFT_SHARE && all <= of_joins
    });
    if !is_worth_it {
        return None;
    }
    tree.leaves[leaf] = Arc::new(kept);
    let joined = tree.joined(&tree.written).ok()?;
    Some(LogicalPlan::Projection(Projection::new_from_schema(joined, Arc::clone(&semi.schema))))
}
