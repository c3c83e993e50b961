//! Groups that are made once. DataFusion groups rows where they are, deals the groups, and groups those:
//! that spares nothing where nearly each row is a group of its own. Then rows are dealt as they are.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};

use super::halves::{Halves, distinct_at_most};
use super::planner_rules::{Rule, behind};
use crate::sql::ShoalConfig;

/// The rule of DataFusion after which it is known where rows are dealt anew, and before those halves
/// of aggregates become one between which they are not.
const AFTER: &str = "EnsureRequirements";

/// So many times as many groups there must be, by the values that single columns have, as there are rows: of groups that
/// are drawn by chance, seven of eight rows have one of their own then.
const GROUPS_FOR_ROW: usize = 4;

/// Of larger tables it is found out while rows are grouped. Columns that follow from one another have fewer values together
/// than is reckoned here, and filters may leave more rows: it must not matter much that all are sent then.
const ROWS_MAX: usize = 1 << 20;

/// Groups rows once that are nearly all in groups of their own.
#[derive(Debug, Default)]
pub(crate) struct GroupLate;

impl GroupLate {
    /// The rules with this one in its place.
    pub(crate) fn among(rules: Vec<Rule>) -> Vec<Rule> {
        behind(rules, AFTER, &(Arc::new(Self) as Rule))
    }
}

impl PhysicalOptimizerRule for GroupLate {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !ShoalConfig::of(config).group_late {
            return Ok(plan);
        }
        let grouped = plan.transform_down(|node| match grouped_late(&node)? {
            Some(late) => Ok(Transformed::yes(late)),
            None => Ok(Transformed::no(node)),
        })?;
        Ok(grouped.data)
    }

    fn name(&self) -> &str {
        "group_late"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The aggregate over rows that were dealt as they are. None for other nodes, and where groups made first are
/// fewer, or may be.
fn grouped_late(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(halves) = Halves::of(node) else { return Ok(None) };
    let Some(first) = halves.first.downcast_ref::<AggregateExec>() else { return Ok(None) };
    let groups = first.group_expr().expr();
    let columns = groups.iter().map(|(group, _)| Some(group.downcast_ref::<Column>()?.index()));
    let Some(columns) = columns.collect::<Option<Vec<usize>>>() else { return Ok(None) };
    let statistics = StatisticsContext::new().compute(first.input().as_ref(), &StatisticsArgs::new())?;
    let Some(&rows) = statistics.num_rows.get_value() else { return Ok(None) };
    let distinct = distinct_at_most(&statistics, &columns);
    if !distinct.is_some_and(|distinct| distinct / GROUPS_FOR_ROW >= rows) || !reads_little(first.input())? {
        return Ok(None);
    }
    // The first half gives what it groups by first.
    let of_rows = |hashed: &Arc<dyn PhysicalExpr>| {
        let (group, _) = groups.get(hashed.downcast_ref::<Column>()?.index())?;
        Some(Arc::clone(group))
    };
    let Some(by) = halves.hashed.iter().map(of_rows).collect::<Option<Vec<_>>>() else { return Ok(None) };
    // Rows that were only spread over partitions are dealt from where they were.
    let spread = first.input().downcast_ref::<RepartitionExec>().filter(|spread| {
        matches!(spread.partitioning(), Partitioning::RoundRobinBatch(_)) && !spread.preserve_order()
    });
    let input = spread.map_or(first.input(), RepartitionExec::input);
    let count = halves.deal.partitioning().partition_count();
    let deal = RepartitionExec::try_new(Arc::clone(input), Partitioning::Hash(by, count))?;
    let first = replace_children_if_necessary(Arc::clone(halves.first), vec![Arc::new(deal)])?;
    Ok(Some(replace_children_if_necessary(Arc::clone(node), vec![first])?))
}

/// Whether all that is read is known to be little.
fn reads_little(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let reads_much = plan.exists(|node| {
        if !node.children().is_empty() {
            return Ok(false);
        }
        let statistics = StatisticsContext::new().compute(node.as_ref(), &StatisticsArgs::new())?;
        Ok(statistics.num_rows.get_value().is_none_or(|rows| *rows > ROWS_MAX))
    })?;
    Ok(!reads_much)
}

#[cfg(test)]
mod tests;
