//! The last look at a plan before it runs: classes of plans that are known to
//! give wrong answers without an error are refused here.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{HashJoinExec, JoinOnRef, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{DistributedExec, DistributedLeafExec, NetworkBoundaryExt, Stage};

use super::scan_tasks::{segment_of, shard_scan};

/// Checks a whole plan.
///
/// # Errors
/// `Internal`, naming the operator and the stage.
pub(crate) fn check(plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    if !plan.is::<DistributedExec>() {
        return Ok(());
    }
    for child in plan.children() {
        check_stage(child, 1, 0)?;
    }
    Ok(())
}

/// Checks one stage, then the stages that feed it.
fn check_stage(root: &Arc<dyn ExecutionPlan>, tasks: usize, number: usize) -> Result<()> {
    let mut inputs = Vec::new();
    root.apply(|node| {
        if let Some(boundary) = node.as_network_boundary() {
            if let Stage::Local(stage) = boundary.input_stage() {
                inputs.push((Arc::clone(&stage.plan), stage.tasks, stage.num));
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        if node.name() == ISOLATED_UNION {
            // Each child runs in tasks of its own, as if it were a stage.
            for child in node.children() {
                let (plan, tasks) = (Arc::clone(child), isolated_tasks(child)?);
                inputs.push((plan, tasks, number));
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        if tasks > 1 && takes_one_partition_for_all(node) {
            return internal_err!(
                "{} in stage {number} of {tasks} tasks takes the rows of one task for all rows",
                node.name()
            );
        }
        if let Some(window) = windows_of(node)
            && !partitions_are_sorted(node, window)
        {
            return internal_err!(
                "{} in stage {number} rests on an order that is not told to workers",
                node.name()
            );
        }
        if let Some(merge) = node.downcast_ref::<SortMergeJoinExec>()
            && !(is_sorted_here(merge.left()) && is_sorted_here(merge.right()))
        {
            return internal_err!(
                "{} in stage {number} rests on an order from before an exchange",
                node.name()
            );
        }
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            check_leaf(leaf, tasks, number)?;
            return Ok(TreeNodeRecursion::Jump);
        }
        if tasks > 1 && shard_scan(node).is_some() {
            return internal_err!(
                "a scan in stage {number} of {tasks} tasks was not dealt to them: each would read all"
            );
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    for (plan, tasks, number) in inputs {
        check_stage(&plan, tasks, number)?;
    }
    Ok(())
}

/// The library's union whose children are spread over the tasks of a stage; its
/// type is not public.
pub(super) const ISOLATED_UNION: &str = "ChildrenIsolatorUnionExec";

/// Tasks that a child of such a union was given: as many as its scans were
/// dealt to; one where it has none.
fn isolated_tasks(child: &Arc<dyn ExecutionPlan>) -> Result<usize> {
    let mut tasks = 1;
    child.apply(|node| {
        if node.as_network_boundary().is_some() {
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            tasks = tasks.max(leaf.variants().len());
            return Ok(TreeNodeRecursion::Jump);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(tasks)
}

/// The window expressions of a node that computes windows.
fn windows_of(node: &Arc<dyn ExecutionPlan>) -> Option<&[Arc<dyn WindowExpr>]> {
    let bounded = node.downcast_ref::<BoundedWindowAggExec>().map(BoundedWindowAggExec::window_expr);
    bounded.or_else(|| node.downcast_ref::<WindowAggExec>().map(WindowAggExec::window_expr))
}

/// Whether the sort below a window is by all columns that it partitions by.
/// The planner leaves out those that a filter makes constant; what is constant
/// is forgotten where a plan is cut into stages, and the window then fails.
fn partitions_are_sorted(node: &Arc<dyn ExecutionPlan>, windows: &[Arc<dyn WindowExpr>]) -> bool {
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

/// Whether the order of a side of a merge was made in its own stage. Rows of several tasks
/// come out of an exchange in any order, also where each gave its own sorted; a merge of rows that
/// are not sorted is no error, and loses some.
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

/// Operators for which a single partition is all there is. In a stage of many
/// tasks each task has only its part.
fn takes_one_partition_for_all(node: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        return match aggregate.mode() {
            AggregateMode::Single | AggregateMode::Final => true,
            // Grouped by nothing, it has one group over all rows.
            AggregateMode::FinalPartitioned | AggregateMode::SinglePartitioned => {
                !groups_are_whole(aggregate)
            }
            AggregateMode::Partial | AggregateMode::PartialReduce => false,
        };
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>()
        && *join.partition_mode() == PartitionMode::Partitioned
    {
        return !sides_meet(join.left().output_partitioning(), join.right().output_partitioning(), join.on());
    }
    if let Some(join) = node.downcast_ref::<SortMergeJoinExec>() {
        return !sides_meet(join.left().output_partitioning(), join.right().output_partitioning(), join.on());
    }
    if node.is::<GlobalLimitExec>() {
        return true;
    }
    if let Some(coalesce) = node.downcast_ref::<CoalescePartitionsExec>() {
        // Of rows that all tasks are sent, each would take others for the first.
        return coalesce.fetch().is_some();
    }
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        return !sort.preserve_partitioning() && sort.fetch().is_none();
    }
    if node.is::<WindowAggExec>() || node.is::<BoundedWindowAggExec>() {
        return !is_hashed(node);
    }
    false
}

/// Whether all rows of each group are in one partition: hashed by some of the
/// columns that they are grouped by, or by what is equal to one of those in every
/// row, such as the other side's key after an inner join.
fn groups_are_whole(aggregate: &AggregateExec) -> bool {
    let input = aggregate.input();
    let Partitioning::Hash(keys, _) = input.output_partitioning() else { return false };
    let equals = input.equivalence_properties().eq_group();
    let one_for_all = |expr: &Arc<dyn PhysicalExpr>| equals.normalize_expr(Arc::clone(expr));
    let grouped: Vec<_> = aggregate.group_expr().expr().iter().map(|(expr, _)| one_for_all(expr)).collect();
    !keys.is_empty() && keys.iter().all(|key| grouped.contains(&one_for_all(key)))
}

/// Whether both sides of a partitioned join are hashed alike: into as many
/// partitions, each by its side of the same equalities in the same order.
pub(super) fn sides_meet(left: &Partitioning, right: &Partitioning, on: JoinOnRef) -> bool {
    let (Partitioning::Hash(left, left_count), Partitioning::Hash(right, right_count)) = (left, right) else {
        return false;
    };
    left_count == right_count
        && left.len() == right.len()
        && !left.is_empty()
        && left.iter().zip(right).all(|(left, right)| on.iter().any(|(l, r)| l.eq(left) && r.eq(right)))
}

/// Whether the rows of the operator's input come out of a hash exchange (or a
/// declared hash layout), so that no key is in two partitions.
fn is_hashed(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.children().iter().all(|child| matches!(child.output_partitioning(), Partitioning::Hash(..)))
}

/// A leaf must read every segment of its scan in exactly one task.
fn check_leaf(leaf: &DistributedLeafExec, tasks: usize, number: usize) -> Result<()> {
    let Some(original) = shard_scan(leaf.original()) else { return Ok(()) };
    if leaf.variants().len() != tasks {
        return internal_err!(
            "a scan of stage {number} was dealt to {} tasks of {tasks}",
            leaf.variants().len()
        );
    }
    let names = |scan: &datafusion::datasource::physical_plan::FileScanConfig| {
        scan.file_groups.iter().flat_map(|group| group.files()).map(segment_of).collect::<Result<Vec<_>>>()
    };
    let mut planned = names(original)?;
    let mut dealt = Vec::with_capacity(planned.len());
    for variant in leaf.variants() {
        let Some(scan) = shard_scan(variant) else {
            return internal_err!("a task of stage {number} reads something else than its scan");
        };
        dealt.extend(names(scan)?);
    }
    planned.sort_unstable();
    dealt.sort_unstable();
    if planned != dealt {
        return internal_err!(
            "stage {number} would read {} segments where its scan has {}: each must be read once",
            dealt.len(),
            planned.len()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::physical_expr::PhysicalSortExpr;
    use datafusion::physical_expr::expressions::Column;
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

    #[test]
    fn no_task_takes_first_rows_of_what_all_are_sent() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
        let rows = Arc::new(PlaceholderRowExec::new(schema).with_partitions(2));
        let met = CoalescePartitionsExec::new(rows);
        let limited: Arc<dyn ExecutionPlan> = Arc::new(met.clone().with_fetch(Some(10)));
        assert!(takes_one_partition_for_all(&limited));
        let all: Arc<dyn ExecutionPlan> = Arc::new(met);
        assert!(!takes_one_partition_for_all(&all));
    }
}
