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
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode};

use super::planner_rules::{Rule, behind};
use crate::sql::ShoalConfig;

/// The rule of DataFusion after which it is known where rows are dealt anew, and before those halves
/// of aggregates become one between which they are not.
const AFTER: &str = "EnsureRequirements";

/// With fewer groups some partitions would have clearly more of them than others, up to 64
/// workers. It is what is known of single columns, multiplied: there may be fewer.
const GROUPS_MIN: usize = 8192;

/// Of so many rows at most one may have no value in a column that groups are by.
const NULL_ROWS_SHARE: usize = 8;

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

/// An aggregate whose halves are not apart, with what it needs to be made anew.
struct Dealt<'a> {
    last: &'a AggregateExec,
    deal: &'a RepartitionExec,
    hashed: &'a [Arc<dyn PhysicalExpr>],
    first: &'a Arc<dyn ExecutionPlan>,
}

impl<'a> Dealt<'a> {
    /// The halves of an aggregate by columns, between which rows are dealt by hash.
    fn of(node: &'a Arc<dyn ExecutionPlan>) -> Option<Self> {
        let last = of_mode(node, AggregateMode::FinalPartitioned)?;
        let deal = last.input().downcast_ref::<RepartitionExec>()?;
        let Partitioning::Hash(hashed, _) = deal.partitioning() else { return None };
        of_mode(deal.input(), AggregateMode::Partial)?;
        (!deal.preserve_order()).then_some(Self { last, deal, hashed, first: deal.input() })
    }
}

fn of_mode(node: &Arc<dyn ExecutionPlan>, mode: AggregateMode) -> Option<&AggregateExec> {
    node.downcast_ref::<AggregateExec>().filter(|aggregate| {
        let groups = aggregate.group_expr();
        *aggregate.mode() == mode
            && groups.is_single()
            && !groups.is_empty()
            && *aggregate.input_order_mode() == InputOrderMode::Linear
    })
}

/// Groups of groups for which rows are dealt once, by the outer groups; none for other plans and
/// where there may be few outer groups.
fn dealt_once(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(outer) = Dealt::of(node) else { return Ok(None) };
    let Some(first) = outer.first.downcast_ref::<AggregateExec>() else { return Ok(None) };
    let projection = first.input().downcast_ref::<ProjectionExec>();
    let groups = projection.map_or(first.input(), ProjectionExec::input);
    let Some(inner) = Dealt::of(groups) else { return Ok(None) };
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
    let deal = RepartitionExec::try_new(Arc::clone(inner.first), Partitioning::Hash(by, count))?;
    let mut input = replace_children_if_necessary(Arc::clone(groups), vec![Arc::new(deal)])?;
    if projection.is_some() {
        input = replace_children_if_necessary(Arc::clone(first.input()), vec![input])?;
    }
    let first = replace_children_if_necessary(Arc::clone(outer.first), vec![input])?;
    Ok(Some(replace_children_if_necessary(Arc::clone(node), vec![first])?))
}

/// Whether the values of these columns, together, are known to be many, and none of them is often
/// missing: all rows without it could be in one group.
fn are_many(columns: &[usize], inner: &Dealt<'_>) -> Result<bool> {
    let statistics = StatisticsContext::new().compute(inner.first.as_ref(), &StatisticsArgs::new())?;
    let rows = statistics.num_rows.get_value().copied().unwrap_or(usize::MAX);
    let distinct = |column: &usize| {
        let column = statistics.column_statistics.get(*column)?;
        let nulls = column.null_count.get_value().copied().unwrap_or(0);
        column.distinct_count.get_value().copied().filter(|_| nulls <= rows / NULL_ROWS_SHARE)
    };
    let groups = columns.iter().map(distinct).try_fold(1_usize, |all, one| Some(all.saturating_mul(one?)));
    Ok(groups.is_some_and(|groups| groups >= GROUPS_MIN))
}

#[cfg(test)]
mod tests;
