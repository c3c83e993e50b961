//! Aggregates in two halves: groups that are made where rows are, and groups of those, where all of a group
//! were dealt to.

use std::sync::Arc;

use datafusion::common::{Result, Statistics};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode};

/// Of so many rows at most one may have no value in a column that groups are by.
const NULL_ROWS_SHARE: usize = 8;

/// An aggregate by columns in two halves, with what it needs to be made anew.
pub(super) struct Halves<'a> {
    pub(super) last: &'a AggregateExec,
    pub(super) deal: &'a RepartitionExec,
    /// By what groups are dealt, in what the first half gives.
    pub(super) hashed: &'a [Arc<dyn PhysicalExpr>],
    pub(super) first: &'a AggregateExec,
}

impl<'a> Halves<'a> {
    /// The halves of an aggregate between which groups are dealt by hash, of which `node` is the last one. None for
    /// other nodes, and where groups come in an order or are those of several sets.
    pub(super) fn of(node: &'a Arc<dyn ExecutionPlan>) -> Option<Self> {
        let last = of_mode(node, AggregateMode::FinalPartitioned)?;
        let deal = last.input().downcast_ref::<RepartitionExec>()?;
        let Partitioning::Hash(hashed, _) = deal.partitioning() else { return None };
        let first = of_mode(deal.input(), AggregateMode::Partial)?;
        (!deal.preserve_order()).then_some(Self { last, deal, hashed, first })
    }

    /// Which columns of the rows are grouped by, in the order of the groups. None where something is computed.
    pub(super) fn grouped_by(&self) -> Option<Vec<usize>> {
        let groups = self.first.group_expr().expr().iter();
        groups.map(|(group, _)| Some(group.downcast_ref::<Column>()?.index())).collect()
    }

    /// What is known of the rows.
    ///
    /// # Errors
    /// Those of the plan's statistics.
    pub(super) fn statistics(&self) -> Result<Arc<Statistics>> {
        StatisticsContext::new().compute(self.first.input().as_ref(), &StatisticsArgs::new())
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

/// How many different values these columns have together, at most: those of each, multiplied. None where that is
/// not known of one, or many rows have no value in it: these could be in one group.
pub(super) fn distinct_at_most(statistics: &Statistics, columns: &[usize]) -> Option<usize> {
    let rows = statistics.num_rows.get_value().copied().unwrap_or(usize::MAX);
    let distinct = |column: &usize| {
        let column = statistics.column_statistics.get(*column)?;
        let nulls = column.null_count.get_value().copied().unwrap_or(0);
        column.distinct_count.get_value().copied().filter(|_| nulls <= rows / NULL_ROWS_SHARE)
    };
    columns.iter().map(distinct).try_fold(1_usize, |all, one| Some(all.saturating_mul(one?)))
}
