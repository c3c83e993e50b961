//! Whether a scan of which each task of a stage reads all is only where a join collects it for the rows
//! of its other side: anywhere else its rows would be there once for each task.

use std::sync::Arc;

use datafusion::common::{Result, internal_err};
use datafusion::physical_expr::Partitioning;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion_distributed::{DistributedLeafExec, NetworkBoundaryExt};
use shoal_data::operators::{JoinKeysExec, PiecesExec, RuntimeFilterExec};

use super::leaf::pieces;
use super::{ISOLATED_UNION, gives_left, is_whole};
use crate::query::each_task::ReadByEachTask;
use crate::query::scan_tasks::shard_scan;

/// Checks a part of a stage, down to what feeds it. `is_collected`: its rows are gathered in each task for
/// a join that gives none of them without a row of the other side, which is in one task.
///
/// # Errors
/// `Internal`, naming the stage.
pub(super) fn check_marks(node: &Arc<dyn ExecutionPlan>, number: usize, is_collected: bool) -> Result<()> {
    // What is below them are parts of their own.
    if node.as_network_boundary().is_some() || node.name() == ISOLATED_UNION {
        return Ok(());
    }
    let leaf = node.downcast_ref::<DistributedLeafExec>();
    if leaf.is_some_and(ReadByEachTask::marks) && !is_collected {
        return internal_err!(
            "each task of stage {number} reads all of a scan whose rows would be given as often"
        );
    }
    for (index, child) in node.children().into_iter().enumerate() {
        let is_collected = match index {
            0 if collects(node) => is_whole(child),
            _ => is_collected && keeps_rows(node),
        };
        check_marks(child, number, is_collected)?;
    }
    Ok(())
}

/// Whether a join collects its first side, and gives no row of it for itself.
fn collects(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<HashJoinExec>().is_some_and(|join| {
        *join.partition_mode() == PartitionMode::CollectLeft
            && !join.null_aware
            && !gives_left(*join.join_type())
    })
}

/// Whether an operator on a collected side makes the same rows in each task. Of those that are not known
/// here nothing is sure.
fn keeps_rows(node: &Arc<dyn ExecutionPlan>) -> bool {
    let deals_anyhow = node
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|dealt| matches!(dealt.partitioning(), Partitioning::RoundRobinBatch(_)));
    let is_known = deals_anyhow
        || collects(node)
        || node.is::<FilterExec>()
        || node.is::<ProjectionExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<CooperativeExec>()
        || node.is::<PiecesExec>()
        || node.is::<JoinKeysExec>()
        || node.is::<RuntimeFilterExec>();
    is_known && node.fetch().is_none()
}

/// A marked leaf must read all segments of its scan in each task.
///
/// # Errors
/// `Internal`, saying what would be read instead.
pub(super) fn check_each_reads_all(leaf: &DistributedLeafExec, tasks: usize, number: usize) -> Result<()> {
    let Some(original) = shard_scan(leaf.original()) else {
        return internal_err!("each task of stage {number} would read all of files that are no segments");
    };
    if leaf.variants().len() != tasks {
        return internal_err!(
            "a scan of stage {number} was given to {} tasks of {tasks}",
            leaf.variants().len()
        );
    }
    let planned = pieces(original)?;
    for (task, variant) in leaf.variants().iter().enumerate() {
        let Some(scan) = shard_scan(variant) else {
            return internal_err!("task {task} of stage {number} reads something else than its scan");
        };
        if pieces(scan)? != planned {
            return internal_err!(
                "task {task} of stage {number} does not read all of a scan that is its own"
            );
        }
        // Others would look for its shards in other tasks, or take other rows for the first.
        if scan.output_partitioning.is_some() || scan.limit.is_some() {
            return internal_err!("task {task} of stage {number} reads a part of a scan as if it were all");
        }
    }
    Ok(())
}
