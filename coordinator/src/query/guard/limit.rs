//! Whether the first rows of something are the same for all who read them: in a stage of several tasks
//! each would take its own.

use std::sync::Arc;

use datafusion::common::{Result, internal_err};
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{DistributedLeafExec, NetworkBoundaryExt, NetworkCoalesceExec, Stage};

use super::{ISOLATED_UNION, is_whole, isolated_tasks};

/// Checks a part of a plan that runs in so many tasks, and all below it. No more than the first `bound` rows
/// of it are asked for, where that is known: then its own limit only saves work.
///
/// # Errors
/// `Internal`, naming the operator.
pub(super) fn check_limits(node: &Arc<dyn ExecutionPlan>, tasks: usize, bound: Option<usize>) -> Result<()> {
    if let Some(boundary) = node.as_network_boundary() {
        let Stage::Local(stage) = boundary.input_stage() else { return Ok(()) };
        let bound = bound.filter(|_| node.is::<NetworkCoalesceExec>());
        return check_limits(&stage.plan, stage.tasks, bound);
    }
    if node.name() == ISOLATED_UNION {
        let mut children = node.children().into_iter().zip(isolated_tasks(node)?);
        return children.try_for_each(|(child, tasks)| check_limits(child, tasks, bound));
    }
    // Of many partitions something above takes the first rows of all.
    let planned = node.downcast_ref::<DistributedLeafExec>().map_or(node, DistributedLeafExec::original);
    let limit = planned.fetch().filter(|_| planned.output_partitioning().partition_count() == 1);
    let own = match tasks {
        1 => limit,
        _ => None,
    };
    if let Some(limit) = limit.filter(|_| tasks > 1)
        && bound.is_none_or(|bound| limit < bound)
        && !node.is::<LocalLimitExec>()
        && !are_alike(node)
    {
        return internal_err!(
            "{} in {tasks} tasks takes the first {limit} rows in each of them",
            node.name()
        );
    }
    let bound = bound.into_iter().chain(own).min().filter(|_| node.supports_limit_pushdown());
    node.children().into_iter().try_for_each(|child| check_limits(child, tasks, bound))
}

/// Whether it does not matter which rows are first: each task has all, and they have no columns.
fn are_alike(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.schema().fields().is_empty() && is_whole(node)
}
