//! Groups that are made once. DataFusion groups rows where they are, deals the groups, and groups those:
//! that spares nothing where nearly each row is a group of its own. Then rows are dealt as they are.

use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
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

/// There is a column that has a value of its own for so many rows, at least. What follows from a column adds nothing to
/// its values, such as the name to the key of a small table: then groups made first are fewer than rows by no more than this
/// over the partitions.
const ROWS_FOR_VALUE: usize = 16;

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
    let first = halves.first;
    // Rows that come in an order for a function would lose it.
    let is_plain =
        first.limit_options().is_none() && first.required_input_ordering().iter().all(Option::is_none);
    let Some(columns) = halves.grouped_by().filter(|_| is_plain) else { return Ok(None) };
    if !are_nearly_all_groups(&columns, &halves)? || !reads_little(first.input())? {
        return Ok(None);
    }
    // The first half gives what it groups by first.
    let groups = first.group_expr().expr();
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
    let first = replace_children_if_necessary(Arc::clone(halves.deal.input()), vec![Arc::new(deal)])?;
    Ok(Some(replace_children_if_necessary(Arc::clone(node), vec![first])?))
}

/// Whether nearly each row is expected to be a group of its own, and none has much beside what it is grouped by.
fn are_nearly_all_groups(columns: &[usize], halves: &Halves<'_>) -> Result<bool> {
    let statistics = halves.statistics()?;
    let Some(&rows) = statistics.num_rows.get_value() else { return Ok(false) };
    let distinct = |columns: &[usize]| distinct_at_most(&statistics, columns).unwrap_or(0);
    let of_one = columns.iter().map(|column| distinct(&[*column])).max().unwrap_or(0);
    let schema = halves.first.input().schema();
    let is_narrow = |(index, field): (usize, &FieldRef)| {
        columns.contains(&index) || field.data_type().primitive_width().is_some()
    };
    Ok(distinct(columns) / GROUPS_FOR_ROW >= rows
        && of_one >= rows / ROWS_FOR_VALUE
        && schema.fields().iter().enumerate().all(is_narrow))
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
