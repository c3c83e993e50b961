//! Which segments a physical plan reads, and whether those were read. The check
//! rests on nothing that planned, sent or ran the plan: what was read is
//! counted where files are opened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::common::{JoinSide, JoinType};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, InputOrderMode};
use datafusion_distributed::{
    BroadcastExec, DistributedExec, DistributedLeafExec, NetworkBoundaryExt, NetworkCoalesceExec, Stage,
};
use shoal_data::counted_segment;
use shoal_data::operators::{CompactExec, JoinKeysExec, OnceExec, PiecesExec, RuntimeFilterExec, SlicesExec};
use shoal_proto::exchange::{ReadLog, Reads};
use shoal_proto::{ErrorCode, Failure, TableId, WorkerId};

use super::each_task::ReadByEachTask;
use super::guard::ISOLATED_UNION;
use super::rows_stay::is_rows_stay;
use super::scan_tasks::shard_scan;
use super::shard_streams::ShardStreamsExec;
use super::view::View;
use super::whole_plan::WholePlanExec;

/// What a plan reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlannedReads {
    tables: BTreeMap<TableId, Planned>,
    /// A part of the plan runs as often as its rows make it.
    is_repeated: bool,
    /// Tasks of each stage that workers run.
    stages: BTreeSet<usize>,
    /// Where a plan goes that is sent whole.
    whole: Option<WorkerId>,
}

/// What a plan reads of one table.
#[derive(Clone, Copy, Debug, Default)]
struct Planned {
    /// The segments of all scans.
    all: Reads,
    /// How many of them nothing may leave out.
    needed: u64,
    /// Some may be read a second time.
    may_repeat: bool,
}

/// How much of its rows is taken from a node by what is above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Taken {
    /// Each partition to its end.
    All,
    /// Of each partition the first batch at least, where it has one.
    First,
    /// Perhaps nothing.
    Perhaps,
}

impl Taken {
    /// Of a child, where a node passes rows on until it has enough.
    fn until_enough(self, fetch: Option<usize>) -> Self {
        match fetch {
            None => self,
            Some(0) => Self::Perhaps,
            Some(_) => self.max(Self::First),
        }
    }

    /// Of a child, where a node mixes partitions.
    fn mixed(self) -> Self {
        if self == Self::All { Self::All } else { Self::Perhaps }
    }

    /// Of a child, where a node takes all before it gives any.
    fn gathered(self) -> Self {
        if self == Self::Perhaps { Self::Perhaps } else { Self::All }
    }
}

impl PlannedReads {
    /// Of a plan that has not run yet.
    pub(crate) fn of(plan: &Arc<dyn ExecutionPlan>) -> datafusion::common::Result<Self> {
        let mut reads = Self::default();
        let mut open = vec![(Arc::clone(plan), Taken::All, false)];
        while let Some((node, taken, may_repeat)) = open.pop() {
            if let Some(boundary) = node.as_network_boundary() {
                if let Stage::Local(stage) = boundary.input_stage() {
                    reads.stages.insert(stage.tasks);
                    let taken = if node.is::<NetworkCoalesceExec>() { taken } else { taken.mixed() };
                    open.push((Arc::clone(&stage.plan), taken, may_repeat));
                }
                continue;
            }
            if let Some(streams) = node.downcast_ref::<ShardStreamsExec>() {
                // A stream tells what was read when it ends.
                open.push((Arc::clone(streams.plan()), taken.mixed(), may_repeat));
                continue;
            }
            if let Some(whole) = node.downcast_ref::<WholePlanExec>() {
                reads.whole = Some(WorkerId::from(whole.worker()));
            }
            reads.is_repeated |= node.is::<RecursiveQueryExec>();
            let leaf = node.downcast_ref::<DistributedLeafExec>();
            if let Some(leaf) = leaf.filter(|leaf| ReadByEachTask::marks(leaf)) {
                // Each task reads all of it.
                for scan in leaf.variants().iter().filter_map(shard_scan) {
                    reads.add_scan(scan, taken, may_repeat);
                }
                continue;
            }
            if let Some(scan) = shard_scan(leaf.map_or(&node, DistributedLeafExec::original)) {
                reads.add_scan(scan, taken, may_repeat);
                continue;
            }
            let children = node.children().into_iter().zip(taken_of_children(&node, taken)?);
            for (index, (child, taken)) in children.enumerate() {
                // One side is read anew where it does not fit in memory.
                let may_repeat = may_repeat || (index == 0 && node.is::<NestedLoopJoinExec>());
                open.push((Arc::clone(child), taken, may_repeat));
            }
        }
        Ok(reads)
    }

    fn add_scan(&mut self, scan: &FileScanConfig, taken: Taken, may_repeat: bool) {
        let is_needed = taken == Taken::All && scan.limit.is_none();
        for name in scan.file_groups.iter().flat_map(FileGroup::files).filter_map(counted_segment) {
            let planned = self.tables.entry(name.table).or_default();
            planned.all.add(Reads { segments: 1, rows: 0, digest: name.digest() });
            planned.needed += u64::from(is_needed);
            planned.may_repeat |= may_repeat;
        }
    }

    /// Segments of all tables.
    pub(crate) fn segments(&self) -> u64 {
        self.tables.values().map(|planned| planned.all.segments).sum()
    }

    /// The tables, and how many segments of each.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (TableId, u64)> {
        self.tables.iter().map(|(table, planned)| (*table, planned.all.segments))
    }

    /// The workers that run the plan.
    pub(crate) fn workers(&self, view: &View) -> BTreeSet<WorkerId> {
        let tasks = self.stages.iter().flat_map(|&tasks| view.task_workers(tasks).to_vec());
        tasks.map(|index| view.workers()[index].id.clone()).chain(self.whole.clone()).collect()
    }

    /// Compares with what was read by the time that all rows have come.
    ///
    /// # Errors
    /// `Internal`, naming the table, what was planned and what was read.
    pub(crate) fn check(
        &self,
        read: &BTreeMap<TableId, Reads>,
        name: impl Fn(TableId) -> String,
    ) -> Result<(), Failure> {
        if self.is_repeated {
            return Ok(());
        }
        let tables: BTreeSet<&TableId> = self.tables.keys().chain(read.keys()).collect();
        for table in tables {
            let planned = self.tables.get(table).copied().unwrap_or_default();
            let read = read.get(table).copied().unwrap_or_default();
            let Some(what) = planned.difference(read) else { continue };
            return Err(Failure::new(
                ErrorCode::Internal,
                format!(
                    "the plan has {} segments of `{}` and {what}: the answer would be wrong. \
                     This is a defect of Shoal; please report it, with the statement",
                    planned.all.segments,
                    name(*table)
                ),
            ));
        }
        Ok(())
    }
}

impl Planned {
    /// What is wrong with what was read; none where nothing is.
    fn difference(self, read: Reads) -> Option<String> {
        let Self { all, needed, may_repeat } = self;
        if read.segments < needed {
            return Some(format!("only {} were read", read.segments));
        }
        let most = if may_repeat { 2 * all.segments } else { all.segments };
        if read.segments > most {
            return Some(format!("{} were read", read.segments));
        }
        // Some again and others not at all may make as many.
        let is_known = !may_repeat || needed == all.segments;
        (is_known && read.segments == all.segments && read.digest != all.digest)
            .then(|| "as many were read, but not the same".to_owned())
    }
}

/// Takes in what was read for one shard by a run of `plan` that gave all its
/// rows, once it is what the plan has. What other runs of the shard read before
/// they failed is not taken in, and of several that ended one counts.
///
/// # Errors
/// `Internal`, as [`PlannedReads::check`].
pub(crate) fn take_in_shard(
    plan: &Arc<dyn ExecutionPlan>,
    shard: u32,
    of_run: &ReadLog,
    of_attempt: &ReadLog,
) -> Result<(), Failure> {
    let read = of_run.by_table();
    let planned = PlannedReads::of(plan).map_err(|error| Failure::from_datafusion(&error))?;
    planned.check(&read, |table| format!("shard {shard} of table {table}"))?;
    of_attempt.take_in_as(u64::from(shard), read);
    Ok(())
}

/// What a node takes from each of its children when so much is taken from it.
/// Of operators that are not known here nothing is sure.
fn taken_of_children(node: &Arc<dyn ExecutionPlan>, taken: Taken) -> datafusion::common::Result<Vec<Taken>> {
    let children = node.children().len();
    let of_all = |taken: Taken| vec![taken; children];
    if let Some(limit) = node.downcast_ref::<GlobalLimitExec>() {
        return Ok(of_all(taken.until_enough(limit.fetch())));
    }
    if let Some(limit) = node.downcast_ref::<LocalLimitExec>() {
        return Ok(of_all(taken.until_enough(Some(limit.fetch()))));
    }
    if let Some(coalesce) = node.downcast_ref::<CoalescePartitionsExec>() {
        let is_one = coalesce.input().output_partitioning().partition_count() == 1;
        return Ok(of_all(match coalesce.fetch() {
            fetch if is_one => taken.until_enough(fetch),
            None => taken.mixed(),
            Some(_) => Taken::Perhaps,
        }));
    }
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        let is_gathered = sorts_all(sort)?;
        return Ok(of_all(if is_gathered { taken.gathered() } else { taken.until_enough(sort.fetch()) }));
    }
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        return Ok(of_all(match aggregate.limit_options() {
            Some(_) => Taken::Perhaps,
            None if aggregates_all(aggregate) => taken.gathered(),
            None => taken.mixed(),
        }));
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        // Where the built side is empty, others need not look at this one.
        let needs_probe = matches!(
            join.join_type(),
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        );
        let probe = if needs_probe && node.fetch().is_none() { taken.mixed() } else { Taken::Perhaps };
        return Ok(vec![taken.gathered(), probe]);
    }
    if let Some(join) = node.downcast_ref::<SortMergeJoinExec>() {
        // Where only rows of one side are given, the other one is of no use once that has ended.
        return Ok(match join.join_type() {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => of_all(taken.mixed()),
            given => match SortMergeJoinExec::probe_side(&given) {
                JoinSide::Right => vec![Taken::Perhaps, taken.mixed()],
                _ => vec![taken.mixed(), Taken::Perhaps],
            },
        });
    }
    if node.is::<CrossJoinExec>() || node.is::<NestedLoopJoinExec>() {
        return Ok(vec![taken.gathered(), Taken::Perhaps]);
    }
    if node.is::<ScalarSubqueryExec>() {
        let mut children = of_all(taken.gathered());
        children[0] = taken;
        return Ok(children);
    }
    if node.is::<InterleaveExec>() || node.is::<RepartitionExec>() || node.is::<BroadcastExec>() {
        return Ok(of_all(taken.mixed()));
    }
    let passes_on = node.is::<ProjectionExec>()
        || node.is::<FilterExec>()
        || node.is::<CooperativeExec>()
        || node.is::<CompactExec>()
        || node.is::<OnceExec>()
        || node.is::<PiecesExec>()
        || node.is::<SlicesExec>()
        || node.is::<JoinKeysExec>()
        || node.is::<RuntimeFilterExec>()
        || node.is::<SortPreservingMergeExec>()
        || node.is::<UnionExec>()
        || node.is::<UnnestExec>()
        || node.is::<WindowAggExec>()
        || node.is::<BoundedWindowAggExec>()
        || node.is::<DistributedExec>()
        || node.is::<WholePlanExec>()
        || is_rows_stay(node)
        || node.name() == ISOLATED_UNION;
    Ok(of_all(if passes_on { taken.until_enough(node.fetch()) } else { Taken::Perhaps }))
}

/// Whether a sort takes all rows before it gives any: not where they come in
/// that order already, or in the order of its first keys.
fn sorts_all(sort: &SortExec) -> datafusion::common::Result<bool> {
    let input = sort.input().equivalence_properties();
    let (prefix, is_sorted) = input.extract_common_sort_prefix(sort.expr().clone())?;
    Ok(!is_sorted && (prefix.is_empty() || sort.fetch().is_none()))
}

/// Whether an aggregate takes all rows before it gives any: partial ones may
/// run out of memory for their groups, and ordered ones give each group when it
/// is over.
fn aggregates_all(aggregate: &AggregateExec) -> bool {
    if aggregate.group_expr().is_true_no_grouping() {
        return true;
    }
    let is_partial = matches!(aggregate.mode(), AggregateMode::Partial | AggregateMode::PartialReduce);
    !is_partial && *aggregate.input_order_mode() == InputOrderMode::Linear
}

#[cfg(test)]
mod tests;
