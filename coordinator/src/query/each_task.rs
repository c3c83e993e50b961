//! Little tables that are on the disk of every worker of a stage are read by each of its
//! tasks, where a join collects them, instead of by one task that sends them to all: that
//! spares a stage, and what is sent.
//!
//! A scan of which each task has all rows is right in one place only: where a join collects
//! it for the rows of its other side, and gives none of its own. Everywhere else each row
//! would be there once for each task. So such a scan is marked, for this coordinator alone:
//! `guard` refuses a mark in any other place, and without one a scan of which a segment is
//! read twice; `PlannedReads` expects its segments from each task.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinType, Result, Statistics, internal_err};
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use datafusion_distributed::{
    BroadcastExec, DistributedLeafExec, NetworkBoundaryExt, NetworkBroadcastExec, Stage,
};
use shoal_data::operators::PiecesExec;

use super::guard::ISOLATED_UNION;
use super::scan_tasks::{scan_bytes, segment_of, shard_scan};
use super::view::View;

/// Compressed bytes, of the columns that are needed, that each task reads of one collected side at
/// most: as many as are one task's work without asking further (`SMALL_BYTES`).
const BYTES_MAX: u64 = 1024 * 1024;
/// Segments of it, at most: each task opens them all.
const SEGMENTS_MAX: usize = 4;

/// The scan of a leaf of which each task reads all. It stands for the leaf's original, which stays
/// on the coordinator: what tasks are sent is plain scans.
#[derive(Debug)]
pub(super) struct ReadByEachTask {
    scan: Arc<dyn ExecutionPlan>,
}

impl ReadByEachTask {
    /// What stands for a scan of which each task reads all.
    pub(super) fn mark(scan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { scan })
    }

    /// A leaf of which each of so many tasks reads all that `scan` does.
    pub(super) fn leaf(scan: Arc<dyn ExecutionPlan>, tasks: usize) -> Result<Arc<dyn ExecutionPlan>> {
        let variants = vec![Arc::clone(&scan); tasks];
        Ok(Arc::new(DistributedLeafExec::try_new(Self::mark(scan), variants)?))
    }

    /// Whether a leaf is one.
    pub(super) fn marks(leaf: &DistributedLeafExec) -> bool {
        leaf.original().is::<Self>()
    }

    /// The scan behind a mark; what is none, as it is.
    pub(super) fn behind(plan: &Arc<dyn ExecutionPlan>) -> &Arc<dyn ExecutionPlan> {
        plan.downcast_ref::<Self>().map_or(plan, |mark| &mark.scan)
    }
}

impl DisplayAs for ReadByEachTask {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scan.fmt_as(t, f)?;
        write!(f, ", read by each task")
    }
}

impl ExecutionPlan for ReadByEachTask {
    fn name(&self) -> &str {
        "ReadByEachTask"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.scan.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.scan.apply_expressions(f)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.as_slice() {
            [] => Ok(self),
            _ => internal_err!("a scan has no children"),
        }
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        // Tasks run what was made for them. Where there are none, there is nobody to read it for.
        internal_err!("a scan that each task reads is run by none")
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        self.scan.statistics_from_inputs(inputs, args)
    }
}

/// The plan with each collected side that is little, and that all workers of the join's stage have on
/// their disks, read by each task of that stage.
///
/// # Errors
/// `Internal` where a scan names something else than segments; those of rebuilding a plan.
pub(super) fn read_in_each_task(
    plan: &Arc<dyn ExecutionPlan>,
    view: &View,
) -> Result<Arc<dyn ExecutionPlan>> {
    in_stage(plan, 1, view)
}

/// The same for a part of a stage of so many tasks, and for all that feeds it.
fn in_stage(node: &Arc<dyn ExecutionPlan>, tasks: usize, view: &View) -> Result<Arc<dyn ExecutionPlan>> {
    // Its children run in tasks that are counted anew.
    if node.name() == ISOLATED_UNION {
        return Ok(Arc::clone(node));
    }
    let tasks = match node.as_network_boundary().map(|boundary| boundary.input_stage()) {
        Some(Stage::Local(stage)) => stage.tasks,
        Some(Stage::Remote(_)) => return Ok(Arc::clone(node)),
        None => tasks,
    };
    let children = node.children().into_iter().map(|child| in_stage(child, tasks, view));
    let node = replace_children_if_necessary(Arc::clone(node), children.collect::<Result<_>>()?)?;
    if tasks < 2 || !gives_nothing_collected(&node) {
        return Ok(node);
    }
    let Some(sent) = sent_to_all(&node) else { return Ok(node) };
    let mut side = Side { tasks, view, bytes: 0, segments: 0 };
    let Some(built) = side.in_each_task(sent)? else { return Ok(node) };
    if side.segments == 0 {
        return Ok(node);
    }
    let mut sides: Vec<_> = node.children().into_iter().cloned().collect();
    sides[0] = Arc::new(CoalescePartitionsExec::new(built));
    replace_children_if_necessary(node, sides)
}

/// Whether a node is a join that collects one side for the rows of the other, and gives only rows
/// of that one, with or without their partners.
fn gives_nothing_collected(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<HashJoinExec>().is_some_and(|join| {
        *join.partition_mode() == PartitionMode::CollectLeft
            && !join.null_aware
            && join.fetch().is_none()
            && matches!(
                join.join_type(),
                JoinType::Inner
                    | JoinType::Right
                    | JoinType::RightSemi
                    | JoinType::RightAnti
                    | JoinType::RightMark
            )
    })
}

/// What another stage sends to all tasks of a join as its collected side.
fn sent_to_all(join: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    let collected = join.children().first()?.downcast_ref::<CoalescePartitionsExec>()?;
    let boundary = collected.input().downcast_ref::<NetworkBroadcastExec>()?;
    match (collected.fetch(), (boundary as &dyn ExecutionPlan).as_network_boundary()?.input_stage()) {
        (None, Stage::Local(stage)) => Some(&stage.plan),
        _ => None,
    }
}

/// A collected side, as far as it was looked at.
struct Side<'a> {
    tasks: usize,
    view: &'a View,
    bytes: u64,
    segments: usize,
}

impl Side<'_> {
    /// The plan of a stage as each task makes it for itself; none where that would not be the same in
    /// each of them, or is too much.
    fn in_each_task(&mut self, node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let leaf = node.downcast_ref::<DistributedLeafExec>().map_or(node, DistributedLeafExec::original);
        let scan = ReadByEachTask::behind(leaf);
        if shard_scan(scan).is_some() {
            return self.scan(scan);
        }
        if node.fetch().is_some() || !can_be_repeated(node) || computes_otherwise_each_time(node)? {
            return Ok(None);
        }
        let mut children = Vec::new();
        for child in node.children() {
            let Some(child) = self.in_each_task(child)? else { return Ok(None) };
            children.push(child);
        }
        match children.as_slice() {
            // It gives each row to each of its readers, of which there is one now.
            [child] if node.is::<BroadcastExec>() => Ok(Some(Arc::clone(child))),
            _ => replace_children_if_necessary(Arc::clone(node), children).map(Some),
        }
    }

    fn scan(&mut self, plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(scan) = shard_scan(plan) else { return Ok(None) };
        if scan.limit.is_some() || computes_otherwise_each_time(plan)? {
            return Ok(None);
        }
        self.bytes = self.bytes.saturating_add(scan_bytes(scan));
        self.segments += scan.file_groups.iter().map(FileGroup::len).sum::<usize>();
        if self.bytes > BYTES_MAX || self.segments > SEGMENTS_MAX {
            return Ok(None);
        }
        for file in scan.file_groups.iter().flat_map(FileGroup::files) {
            let name = segment_of(file)?;
            if !self.view.is_read_by_each(name.table, name.shard, self.tasks) {
                return Ok(None);
            }
        }
        let mut scan = scan.clone();
        // Of the shards of all tasks it would be wrong.
        scan.output_partitioning = None;
        ReadByEachTask::leaf(DataSourceExec::from_data_source(scan), self.tasks).map(Some)
    }
}

/// Whether an operator gives the same rows wherever it gets the same, in whichever order.
fn can_be_repeated(node: &Arc<dyn ExecutionPlan>) -> bool {
    let deals_anyhow = node
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|dealt| matches!(dealt.partitioning(), Partitioning::RoundRobinBatch(_)));
    deals_anyhow
        || gives_nothing_collected(node)
        || node.is::<FilterExec>()
        || node.is::<ProjectionExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<CooperativeExec>()
        || node.is::<PiecesExec>()
        || node.is::<BroadcastExec>()
}

/// Whether an operator computes something that may be another value in another task.
fn computes_otherwise_each_time(node: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut is_so = false;
    node.apply_expressions(&mut |expr| {
        is_so |= is_volatile(expr) || has_subquery(expr);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(is_so)
}

/// Whether a value comes from elsewhere in the plan, where its rows are put together once.
fn has_subquery(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.is::<ScalarSubqueryExpr>() || expr.children().into_iter().any(has_subquery)
}
