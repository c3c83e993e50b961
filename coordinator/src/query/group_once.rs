//! Groups that are counted in: `COUNT(DISTINCT x) ... GROUP BY g` is planned as groups of (g, x), and
//! groups of g over those. DataFusion deals rows by (g, x) and then what comes of them by g. Where
//! there are many g, rows that are dealt by g at once need not be dealt again.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;

use super::halves::{Halves, distinct_at_most};
use super::planner_rules::{Rule, behind};
use crate::sql::ShoalConfig;

/// The rule of DataFusion after which it is known where rows are dealt anew, and before those halves
/// of aggregates become one between which they are not.
const AFTER: &str = "EnsureRequirements";

/// With fewer groups some partitions would have clearly more of them than others, up to 64
/// workers. It is what is known of single columns, multiplied: there may be fewer.
const GROUPS_MIN: usize = 8192;

/// Deals rows once for groups of groups.
#[derive(Debug, Default)]
pub(crate) struct GroupOnce;

impl GroupOnce {
    /// The rules with this one in its place.
    pub(crate) fn among(rules: Vec<Rule>) -> Vec<Rule> {
        behind(rules, AFTER, &(Arc::new(Self) as Rule))
    }
}

impl PhysicalOptimizerRule for GroupOnce {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !ShoalConfig::of(config).group_once {
            return Ok(plan);
        }
        let dealt = plan.transform_down(|node| match dealt_once(&node)? {
            Some(once) => Ok(Transformed::yes(once)),
            None => Ok(Transformed::no(node)),
        })?;
        Ok(dealt.data)
    }

    fn name(&self) -> &str {
        "group_once"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Groups of groups for which rows are dealt once, by the outer groups; none for other plans and
/// where there may be few outer groups.
fn dealt_once(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(outer) = Halves::of(node) else { return Ok(None) };
    let first = outer.first;
    let projection = first.input().downcast_ref::<ProjectionExec>();
    let groups = projection.map_or(first.input(), ProjectionExec::input);
    let Some(inner) = Halves::of(groups) else { return Ok(None) };
    // By what rows are dealt for the outer groups, in the rows that the inner ones are made of so far:
    // those have what they are grouped by first. It may be less than what they are grouped by, where this
    // was done for groups of them before.
    let inner_groups = inner.last.group_expr().expr().len();
    let column = |hashed: &Arc<dyn PhysicalExpr>| {
        let group = hashed.downcast_ref::<Column>()?.index();
        let (group, _) = first.group_expr().expr().get(group)?;
        let column = group.downcast_ref::<Column>()?.index();
        let column = match projection {
            Some(projection) => projection.expr().get(column)?.expr.downcast_ref::<Column>()?.index(),
            None => column,
        };
        (column < inner_groups).then_some(column)
    };
    let columns = outer.hashed.iter().map(column).collect::<Option<Vec<usize>>>();
    let Some(columns) = columns.filter(|columns| !columns.is_empty()) else { return Ok(None) };
    if !are_many(&columns, &inner)? {
        return Ok(None);
    }
    let hashed_by = |column: &usize| {
        let is_it = |expr: &&Arc<dyn PhysicalExpr>| {
            expr.downcast_ref::<Column>().is_some_and(|hashed| hashed.index() == *column)
        };
        inner.hashed.iter().find(is_it).cloned()
    };
    let Some(by) = columns.iter().map(hashed_by).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let count = inner.deal.partitioning().partition_count();
    let deal = RepartitionExec::try_new(Arc::clone(inner.deal.input()), Partitioning::Hash(by, count))?;
    let mut input = replace_children_if_necessary(Arc::clone(groups), vec![Arc::new(deal)])?;
    if projection.is_some() {
        input = replace_children_if_necessary(Arc::clone(first.input()), vec![input])?;
    }
    let first = replace_children_if_necessary(Arc::clone(outer.deal.input()), vec![input])?;
    Ok(Some(replace_children_if_necessary(Arc::clone(node), vec![first])?))
}

/// Whether the values of these groups, together, are known to be many, and none of them is often
/// missing: all rows without it could be in one group.
fn are_many(groups: &[usize], inner: &Halves<'_>) -> Result<bool> {
    let Some(grouped_by) = inner.grouped_by() else { return Ok(false) };
    let columns = groups.iter().map(|group| grouped_by.get(*group).copied()).collect::<Option<Vec<_>>>();
    let statistics = inner.statistics()?;
    let distinct = columns.and_then(|columns| distinct_at_most(&statistics, &columns));
    Ok(distinct.is_some_and(|distinct| distinct >= GROUPS_MIN))
}

#[cfg(test)]
mod tests;
