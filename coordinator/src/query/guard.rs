//! The last look at a plan before it runs: classes of plans that are known to
//! give wrong answers without an error are refused here.
//!
//! What is refused is planned in another way, which moves more rows. So nothing is refused
//! that is right.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result, internal_err};
use datafusion::logical_expr::Aggregate;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, JoinOnRef, NestedLoopJoinExec, PartitionMode, SortMergeJoinExec,
};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable};
use datafusion_distributed::{
    DistributedExec, DistributedLeafExec, NetworkBoundaryExt, NetworkBroadcastExec, Stage,
};

use self::each_task::check_marks;
use self::leaf::check_leaf;
use self::limit::check_limits;
use self::order::{partitions_are_sorted, rests_on_lost_order};
use super::each_task::ReadByEachTask;
use super::scan_tasks::shard_scan;
use super::view::View;

mod each_task;
mod leaf;
mod limit;
mod order;
#[cfg(test)]
mod tests;

/// Checks a whole plan, which was made for this view.
///
/// # Errors
/// `Internal`, naming the operator and the stage.
pub(crate) fn check(plan: &Arc<dyn ExecutionPlan>, view: &View) -> Result<()> {
    if !plan.is::<DistributedExec>() {
        return Ok(());
    }
    for child in plan.children() {
        let plan = Arc::clone(child);
        check_part(&Part { plan, tasks: 1, number: 0, is_stage: true, is_here: true }, view)?;
        check_limits(child, 1, None)?;
    }
    Ok(())
}

/// A part of a plan that runs in so many tasks.
struct Part {
    plan: Arc<dyn ExecutionPlan>,
    tasks: usize,
    /// Of the stage that it is, or is in.
    number: usize,
    /// Whether it is all of the stage.
    is_stage: bool,
    /// Whether the coordinator runs it itself, as it was planned.
    is_here: bool,
}

/// Checks one part, then those that feed it.
fn check_part(part: &Part, view: &View) -> Result<()> {
    let &Part { tasks, number, is_here, .. } = part;
    check_marks(&part.plan, number, false)?;
    let mut inputs = Vec::new();
    part.plan.apply(|node| {
        if let Some(boundary) = node.as_network_boundary() {
            if let Stage::Local(stage) = boundary.input_stage() {
                let plan = Arc::clone(&stage.plan);
                let (tasks, number) = (stage.tasks, stage.num);
                inputs.push(Part { plan, tasks, number, is_stage: true, is_here: false });
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        if node.name() == ISOLATED_UNION {
            // Each child runs in tasks of its own, as if it were a stage.
            for (child, tasks) in node.children().into_iter().zip(isolated_tasks(node)?) {
                let plan = Arc::clone(child);
                inputs.push(Part { plan, tasks, number, is_stage: false, is_here });
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        let is_head = part.is_stage && Arc::ptr_eq(node, &part.plan);
        if tasks > 1
            && let Some(wrong) = wrong_in_a_task(node, is_head)
        {
            return internal_err!("{} in stage {number} of {tasks} tasks {wrong}", node.name());
        }
        if let Some(window) = windows_of(node)
            && !partitions_are_sorted(node, window)
        {
            return internal_err!(
                "{} in stage {number} rests on an order that is not told to workers",
                node.name()
            );
        }
        if rests_on_lost_order(node, is_here) {
            return internal_err!(
                "{} in stage {number} rests on an order from before an exchange",
                node.name()
            );
        }
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            check_leaf(leaf, tasks, number, view)?;
            return Ok(TreeNodeRecursion::Jump);
        }
        if tasks > 1 && shard_scan(node).is_some() {
            return internal_err!(
                "a scan in stage {number} of {tasks} tasks was not dealt to them: each would read all"
            );
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    inputs.iter().try_for_each(|input| check_part(input, view))
}

/// The library's union whose children are spread over the tasks of a stage; its
/// type is not public.
pub(super) const ISOLATED_UNION: &str = "ChildrenIsolatorUnionExec";

/// Tasks that each child of such a union was given: what it says of them, as `c1(0/3)` for the first of
/// three tasks of the second child; as many as its scans were dealt to, at least.
///
/// # Errors
/// None in practice; those of walking a plan.
fn isolated_tasks(union: &Arc<dyn ExecutionPlan>) -> Result<Vec<usize>> {
    let said = displayable(union.as_ref()).one_line().to_string();
    let children = union.children().into_iter().enumerate();
    let tasks = children.map(|(index, child)| Ok(dealt_tasks(child)?.max(said_tasks(&said, index))));
    tasks.collect()
}

fn said_tasks(said: &str, child: usize) -> usize {
    let name = format!("c{child}(");
    let said = said.split(['[', ' ']).filter_map(|word| word.strip_prefix(name.as_str()));
    let counts = said.filter_map(|task| task.split_once('/')?.1.split(')').next()?.parse().ok());
    counts.max().unwrap_or(1)
}

/// Tasks that the scans of a part were dealt to; one where it has none.
fn dealt_tasks(part: &Arc<dyn ExecutionPlan>) -> Result<usize> {
    let mut tasks = 1;
    part.apply(|node| {
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

/// What is wrong about a node that runs in several tasks, each of which has only its part of
/// the rows.
fn wrong_in_a_task(node: &Arc<dyn ExecutionPlan>, is_head: bool) -> Option<&'static str> {
    if takes_one_partition_for_all(node) {
        return Some("takes the rows of one task for all rows");
    }
    if collects_a_part(node) {
        return Some("collects a side of which each task has a part, or of which each would give rows");
    }
    // What deals the rows of a stage stands on top of it.
    let deals = node.downcast_ref::<RepartitionExec>().map(RepartitionExec::partitioning);
    if !is_head && matches!(deals, Some(Partitioning::Hash(..))) {
        return Some("deals the rows of one task as if they were all rows");
    }
    None
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
        return !sides_meet(join.left(), join.right(), join.on());
    }
    if let Some(join) = node.downcast_ref::<SortMergeJoinExec>() {
        return !sides_meet(join.left(), join.right(), join.on());
    }
    if node.is::<GlobalLimitExec>() {
        return true;
    }
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        return !sort.preserve_partitioning() && sort.fetch().is_none();
    }
    if let Some(windows) = windows_of(node) {
        let is_whole = |window: &Arc<dyn WindowExpr>| {
            node.children().iter().all(|input| are_together(input, window.partition_by().iter()))
        };
        return !windows.iter().all(is_whole);
    }
    false
}

/// Whether all rows of each group are in one partition.
fn groups_are_whole(aggregate: &AggregateExec) -> bool {
    let groups = aggregate.group_expr();
    if !are_together(aggregate.input(), groups.expr().iter().map(|(expr, _)| expr)) {
        return false;
    }
    let Partitioning::Hash(keys, _) = aggregate.input().output_partitioning() else { return false };
    // Of grouping sets, some are not by all of these columns: their groups have rows of many keys.
    match aggregate.mode() {
        AggregateMode::FinalPartitioned => {
            let is_id = |expr: &Arc<dyn PhysicalExpr>| {
                expr.downcast_ref::<Column>()
                    .is_some_and(|column| column.name() == Aggregate::INTERNAL_GROUPING_ID)
            };
            !groups.expr().iter().any(|(expr, _)| is_id(expr)) || keys.iter().any(is_id)
        }
        _ => !groups.has_grouping_set() || are_in_all_sets(groups, aggregate.input(), keys),
    }
}

/// Whether every set of grouping sets has all these keys.
fn are_in_all_sets(
    groups: &PhysicalGroupBy,
    input: &Arc<dyn ExecutionPlan>,
    keys: &[Arc<dyn PhysicalExpr>],
) -> bool {
    let partitioning = Partitioning::Hash(keys.to_vec(), 1);
    groups.groups().iter().all(|left_out| {
        let of_set = groups.expr().iter().zip(left_out).filter(|(_, is_left_out)| !**is_left_out);
        are_dealt_by(&partitioning, input, of_set.map(|((expr, _), _)| expr))
    })
}

/// Whether all rows of an input that are equal in these expressions are in one partition of it.
fn are_together<'a>(
    input: &Arc<dyn ExecutionPlan>,
    by: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
) -> bool {
    are_dealt_by(input.output_partitioning(), input, by)
}

/// Whether rows are hashed by some of these expressions, or by what is equal to one of those in every
/// row, such as the other side's key after an inner join.
fn are_dealt_by<'a>(
    partitioning: &Partitioning,
    input: &Arc<dyn ExecutionPlan>,
    by: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
) -> bool {
    let Partitioning::Hash(keys, _) = partitioning else { return false };
    let equals = input.equivalence_properties().eq_group();
    let one_for_all = |expr: &Arc<dyn PhysicalExpr>| equals.normalize_expr(Arc::clone(expr));
    let by: Vec<_> = by.map(one_for_all).collect();
    !keys.is_empty() && keys.iter().all(|key| by.contains(&one_for_all(key)))
}

/// Whether both sides of a partitioned join are hashed alike: into as many
/// partitions, each by its side of the same equalities in the same order, and as
/// values of one type: the same text has other hashes as a view.
pub(super) fn sides_meet(
    left: &Arc<dyn ExecutionPlan>,
    right: &Arc<dyn ExecutionPlan>,
    on: JoinOnRef,
) -> bool {
    let (Partitioning::Hash(left_keys, left_count), Partitioning::Hash(right_keys, right_count)) =
        (left.output_partitioning(), right.output_partitioning())
    else {
        return false;
    };
    let (left_schema, right_schema) = (left.schema(), right.schema());
    let are_one = |left: &Arc<dyn PhysicalExpr>, right: &Arc<dyn PhysicalExpr>| {
        let types = (left.data_type(&left_schema), right.data_type(&right_schema));
        matches!(types, (Ok(left), Ok(right)) if left == right)
            && on.iter().any(|(l, r)| l.eq(left) && r.eq(right))
    };
    left_count == right_count
        && left_keys.len() == right_keys.len()
        && !left_keys.is_empty()
        && left_keys.iter().zip(right_keys).all(|(left, right)| are_one(left, right))
}

/// Whether a join collects one side for all rows of the other, and has not all of that side in
/// each task, or gives rows of it, which every task would give; or whether it must know of all rows
/// of both.
fn collects_a_part(node: &Arc<dyn ExecutionPlan>) -> bool {
    let (collected, join_type) = if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        match join.partition_mode() {
            // Whether there is a NULL anywhere on the other side.
            _ if join.null_aware => return true,
            PartitionMode::CollectLeft => (join.left(), *join.join_type()),
            PartitionMode::Partitioned | PartitionMode::Auto => return false,
        }
    } else if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
        (join.left(), *join.join_type())
    } else if let Some(join) = node.downcast_ref::<CrossJoinExec>() {
        (join.left(), JoinType::Inner)
    } else {
        return false;
    };
    gives_left(join_type) || !is_whole(collected)
}

/// Whether a join gives rows of its left side that have no partner, or each of them once.
fn gives_left(join_type: JoinType) -> bool {
    match join_type {
        JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
            true
        }
        JoinType::Inner
        | JoinType::Right
        | JoinType::RightSemi
        | JoinType::RightAnti
        | JoinType::RightMark => false,
    }
}

/// Whether each task of a stage has all rows of a node: they were sent to all tasks, or each makes
/// them itself.
fn is_whole(node: &Arc<dyn ExecutionPlan>) -> bool {
    if node.is::<NetworkBroadcastExec>() {
        return true;
    }
    if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
        return ReadByEachTask::marks(leaf);
    }
    let is_in_parts =
        node.as_network_boundary().is_some() || node.name() == ISOLATED_UNION || shard_scan(node).is_some();
    !is_in_parts && node.children().into_iter().all(is_whole)
}
