//! In which order inner joins are made: the one that is estimated to compute and to send least,
//! where that is clearly less than as the query is written. And how far below them semi joins are.
//!
//! Nothing here changes what a join means: the same leaves are joined by the same equalities
//! and filters, and a projection above gives the columns as they were. What is not understood
//! is left alone, and so is a tree over anything whose rows are not known
//! ([why so](../../../docs/decisions/021-join-order.md)).

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::logical_expr::logical_plan::Projection;
use datafusion::logical_expr::{Join, JoinType, LogicalPlan};
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use crate::sql::ShoalConfig;

mod cost;
mod enumerate;
mod estimate;
mod selectivity;
mod semi_joins;
#[cfg(test)]
mod tests;
mod tree;

use cost::Graph;
use enumerate::cheapest;
use selectivity::UNKNOWN;
use semi_joins::with_semi_joins_below;
use tree::{Seen, Shape, Tree};

/// A rule of the optimiser.
type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// The rule of DataFusion before which joins are ordered: filters are where they will be by
/// then, and it drops the columns that the new joins need not hand on.
const BEFORE: &str = "optimize_projections";
/// Two inputs have one order: which of them is hashed is settled later.
const LEAVES_MIN: usize = 3;
/// What another order may cost, as a share of the written one's cost. An estimate that is wrong by
/// less changes nothing.
const WORTH_SHARE: f64 = 0.7;
/// And by a guess at filters by which it is not better it may cost so much of it.
const NOT_WORSE_SHARE: f64 = 1.1;
/// A written order of less cost, in bytes, is never changed: there is nothing to gain.
const COST_MIN: f64 = (1 << 20) as f64;

/// Orders inner joins by what they are estimated to cost.
#[derive(Debug, Default)]
pub(crate) struct JoinOrder;

impl JoinOrder {
    /// The rules with this one in its place.
    pub(crate) fn among(rules: &[Rule]) -> Vec<Rule> {
        let place = rules.iter().rposition(|rule| rule.name() == BEFORE).unwrap_or(rules.len());
        let mut with_this = rules.to_vec();
        with_this.insert(place, Arc::new(Self));
        with_this
    }
}

impl OptimizerRule for JoinOrder {
    fn name(&self) -> &str {
        "shoal_join_order"
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !ShoalConfig::of(&config.options()).join_order || !has_order(&plan)? {
            return Ok(Transformed::no(plan));
        }
        // How wide rows are depends on what is needed of them.
        let slim = OptimizeProjections::new().rewrite(plan, config)?;
        let below = with_semi_joins_below(slim.data)?;
        let is_changed = slim.transformed || below.transformed;
        let mut seen = Seen::default();
        let ordered = below.data.transform_down_with_subqueries(|node| {
            if !matches!(node, LogicalPlan::Join(_)) || seen.has(&node) {
                return Ok(Transformed::no(node));
            }
            let better = ordered(&node);
            let is_better = better.is_some();
            let node = better.unwrap_or(node);
            seen.add(&node);
            Ok(Transformed::new_transformed(node, is_better))
        })?;
        if !ordered.transformed {
            return Ok(Transformed::new_transformed(ordered.data, is_changed));
        }
        Ok(Transformed::yes(ordered.data))
    }
}

/// Whether a plan has joins of which there could be another order: a semi join counts as one, since it may go
/// below a single inner one.
fn has_order(plan: &LogicalPlan) -> Result<bool> {
    let mut joins = 0;
    plan.apply_with_subqueries(|node| {
        let is_ordered = |join: &Join| matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi);
        joins += usize::from(matches!(node, LogicalPlan::Join(join) if is_ordered(join)));
        Ok(if joins + 1 < LEAVES_MIN { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(joins + 1 >= LEAVES_MIN)
}

/// The joins below and with this one, which is a join, in a clearly better order, with the same columns; none
/// where there is no such order, or it is not known.
fn ordered(plan: &LogicalPlan) -> Option<LogicalPlan> {
    let tree = Tree::of(plan)?;
    if tree.leaves.len() < LEAVES_MIN || !tree.may_be_moved() {
        return None;
    }
    let graphs = UNKNOWN.map(|unknown| Graph::of(&tree, unknown));
    let graphs = graphs.into_iter().collect::<Option<Vec<_>>>()?;
    let written = graphs.iter().map(|graph| graph.cost_of(&tree.written)).collect::<Option<Vec<_>>>()?;
    if written.iter().all(|cost| *cost < COST_MIN) {
        return None;
    }
    // Each of them as a share of what the written order costs, for each guess.
    let shares = |shape: &Shape| {
        let shares =
            graphs.iter().zip(&written).map(|(graph, written)| Some(graph.cost_of(shape)? / written));
        shares.collect::<Option<Vec<f64>>>()
    };
    let (shares, shape) = graphs
        .iter()
        .filter_map(cheapest)
        .filter_map(|shape| Some((shares(&shape)?, shape)))
        .filter(|(shares, _)| is_worth_it(shares))
        .min_by(|(one, _), (other, _)| one.iter().sum::<f64>().total_cmp(&other.iter().sum()))?;
    tracing::debug!(?shares, leaves = tree.leaves.len(), "joins are made in another order");
    // A tree that cannot be built anew stays as it is.
    let joined = tree.joined(&shape).ok()?;
    let schema = Arc::clone(plan.schema());
    Some(LogicalPlan::Projection(Projection::new_from_schema(joined, schema)))
}

/// Whether an order with these shares of the written one's cost, one for each guess at filters of
/// which nothing is known, is clearly better by one of them, and hardly worse by any.
fn is_worth_it(shares: &[f64]) -> bool {
    shares.iter().any(|share| *share <= WORTH_SHARE) && shares.iter().all(|share| *share <= NOT_WORSE_SHARE)
}
