//! Whether the order that an operator rests on is there. Rows of several tasks come out of an exchange
//! in any order, also where each gave its own sorted, and DataFusion does not know of exchanges.

use std::sync::Arc;

use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::joins::SortMergeJoinExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{NetworkBoundaryExt, NetworkCoalesceExec, NetworkShuffleExec, Stage};

use super::ISOLATED_UNION;

/// Whether the sort below a window is by all columns that it partitions by.
/// The planner leaves out those that a filter makes constant; what is constant
/// is forgotten where a plan is cut into stages, and the window then fails.
pub(super) fn partitions_are_sorted(node: &Arc<dyn ExecutionPlan>, windows: &[Arc<dyn WindowExpr>]) -> bool {
    let mut below = Arc::clone(node);
    let sort = loop {
        if let Some(sort) = below.downcast_ref::<SortExec>() {
            break sort.expr().clone();
        }
        let next = match below.as_network_boundary().map(|boundary| boundary.input_stage()) {
            Some(Stage::Local(stage)) => Arc::clone(&stage.plan),
            Some(Stage::Remote(_)) => return true,
            None => match below.children().as_slice() {
                [only] => Arc::clone(only),
                _ => return windows.iter().all(|window| window.partition_by().is_empty()),
            },
        };
        below = next;
    };
    let sorted: Vec<_> = sort.iter().map(|key| &key.expr).collect();
    windows.iter().flat_map(|window| window.partition_by()).all(|key| sorted.iter().any(|expr| expr.eq(&key)))
}

/// Whether a node needs its rows in an order that an exchange below it has lost. `is_here`: it runs
/// as it was planned; on workers an aggregate looks for itself whether its rows have an order.
pub(super) fn rests_on_lost_order(node: &Arc<dyn ExecutionPlan>, is_here: bool) -> bool {
    if let Some(merge) = node.downcast_ref::<SortMergeJoinExec>() {
        // A merge of rows that are not sorted is no error, and loses some.
        return !(is_sorted_here(merge.left()) && is_sorted_here(merge.right()));
    }
    if node.is::<AggregateExec>() && !is_here {
        return false;
    }
    let mut inputs = node.children().into_iter().zip(node.required_input_ordering());
    inputs.any(|(input, order)| order.is_some() && has_lost_order(input))
}

/// Whether the order of a side of a merge was made in its own stage.
fn is_sorted_here(side: &Arc<dyn ExecutionPlan>) -> bool {
    if side.is::<SortExec>() || side.is::<SortPreservingMergeExec>() {
        return true;
    }
    if side.as_network_boundary().is_some() || side.name() == ISOLATED_UNION {
        return false;
    }
    let children = side.children();
    if children.is_empty() {
        // A leaf says itself how its files are sorted.
        return true;
    }
    let is_union = side.is::<UnionExec>();
    let of_children = children.into_iter().zip(side.maintains_input_order());
    let mut kept = of_children.filter(|(_, is_kept)| *is_kept || is_union).peekable();
    kept.peek().is_some() && kept.all(|(child, _)| is_sorted_here(child))
}

/// Whether the order of a node's rows, as it was planned, is that of an exchange that mixes rows of
/// several streams.
fn has_lost_order(node: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(boundary) = node.as_network_boundary() {
        let Stage::Local(stage) = boundary.input_stage() else { return false };
        if node.is::<NetworkCoalesceExec>() {
            // Hands each stream on as it is.
            return has_lost_order(&stage.plan);
        }
        // What deals rows mixes those of its partitions, also in one task.
        let are_mixed = node.is::<NetworkShuffleExec>()
            && stage.plan.children().iter().any(|input| input.output_partitioning().partition_count() > 1);
        return node.output_ordering().is_some() && (stage.tasks > 1 || are_mixed);
    }
    if node.is::<SortExec>() {
        return false;
    }
    let is_union = node.is::<UnionExec>() || node.name() == ISOLATED_UNION;
    let mut children = node.children().into_iter().zip(node.maintains_input_order());
    children.any(|(child, is_kept)| (is_kept || is_union) && has_lost_order(child))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::physical_expr::expressions::Column;
    use datafusion::physical_expr::{Partitioning, PhysicalSortExpr};
    use datafusion::physical_plan::coop::CooperativeExec;
    use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
    use datafusion::physical_plan::repartition::RepartitionExec;

    use super::*;

    #[test]
    fn an_order_is_told_from_one_that_was_lost() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
        let rows = || -> Arc<dyn ExecutionPlan> {
            Arc::new(PlaceholderRowExec::new(Arc::clone(&schema)).with_partitions(2))
        };
        let sorted = |input| -> Arc<dyn ExecutionPlan> {
            let keys = [PhysicalSortExpr::new_default(Arc::new(Column::new("a", 0)))].into();
            Arc::new(SortExec::new(keys, input).with_preserve_partitioning(true))
        };
        let mixed = |input| -> Arc<dyn ExecutionPlan> {
            Arc::new(RepartitionExec::try_new(input, Partitioning::RoundRobinBatch(2)).unwrap())
        };
        let gives_way = |input| -> Arc<dyn ExecutionPlan> { Arc::new(CooperativeExec::new(input)) };
        let both = |one, other| UnionExec::try_new(vec![one, other]).unwrap();
        assert!(is_sorted_here(&rows()));
        assert!(is_sorted_here(&gives_way(sorted(mixed(rows())))));
        assert!(is_sorted_here(&both(sorted(rows()), sorted(rows()))));
        assert!(!is_sorted_here(&mixed(sorted(rows()))));
        assert!(!is_sorted_here(&gives_way(mixed(sorted(rows())))));
        assert!(!is_sorted_here(&both(sorted(rows()), mixed(sorted(rows())))));
    }
}
