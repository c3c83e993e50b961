//! Scans of which each task reads all: where they are right, and where each row would be there once for
//! each task.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::physical_plan::aggregates::AggregateMode;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::PartitionMode;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion_distributed::DistributedExec;

use super::plans::*;
use super::{A_PART, collecting, crossed, grouped_in, hash_joined, joined_with, merged_on, named_at, nested};
use crate::query::each_task::{ReadByEachTask, read_in_each_task};
use crate::query::guard::check;
use crate::query::planned_reads::PlannedReads;

/// What a scan is refused with whose rows would be there once for each task.
const AS_OFTEN: &str = "whose rows would be given as often";
const NOT_ALL: &str = "does not read all of a scan";

const OF_OTHER: [JoinType; 5] =
    [JoinType::Inner, JoinType::Right, JoinType::RightSemi, JoinType::RightAnti, JoinType::RightMark];
const OF_COLLECTED: [JoinType; 5] =
    [JoinType::Left, JoinType::Full, JoinType::LeftSemi, JoinType::LeftAnti, JoinType::LeftMark];

/// The scan of a table of two shards.
fn few() -> Plan {
    scan(None, vec![vec![file(FEW, 0)], vec![file(FEW, 1)]])
}

/// The same, read by each of two tasks.
fn read_by_each() -> Plan {
    ReadByEachTask::leaf(few(), 2).unwrap()
}

/// The same in one task of a stage.
fn few_whole() -> Plan {
    leaf(few(), vec![few()])
}

#[test]
fn each_task_may_read_all_of_what_a_join_collects_and_does_not_give() {
    for join_type in OF_OTHER {
        passes(collecting(join_type, put_together(read_by_each()), by_load(OTHER)));
    }
    for join_type in OF_COLLECTED {
        refused(collecting(join_type, put_together(read_by_each()), by_load(OTHER)), AS_OFTEN);
    }
    // Other joins are not known to be asked for it.
    for join in [nested, crossed] {
        refused(join(JoinType::Inner, put_together(read_by_each()), by_load(OTHER)), AS_OFTEN);
    }
}

#[test]
fn each_task_may_join_such_scans_with_each_other_and_collect_that() {
    let two = |join_type| {
        let joined = collecting(join_type, put_together(read_by_each()), read_by_each());
        put_together(named_at(joined, &[(0, "k"), (1, "v")]))
    };
    passes(collecting(JoinType::Inner, two(JoinType::Inner), by_load(OTHER)));
    passes(collecting(JoinType::RightAnti, two(JoinType::RightSemi), by_load(OTHER)));
    // As many rows as there are, where they are joined, and as often where they are not collected.
    refused(two(JoinType::Inner), AS_OFTEN);
    refused(collecting(JoinType::Inner, two(JoinType::Left), by_load(OTHER)), AS_OFTEN);
    // Of one of the two each task has a part.
    let half = collecting(JoinType::Inner, put_together(read_by_each()), by_load(ONE));
    let half = put_together(named_at(half, &[(0, "k"), (1, "v")]));
    refused(collecting(JoinType::Inner, half, by_load(OTHER)), A_PART);
}

#[test]
fn what_each_task_reads_is_not_the_other_side_of_a_join() {
    refused(collecting(JoinType::Inner, sent_to_all(by_load(ONE)), read_by_each()), AS_OFTEN);
    refused(collecting(JoinType::Inner, put_together(read_by_each()), read_by_each()), AS_OFTEN);
    refused(joined_with(JoinType::Inner, read_by_each(), by_key(OTHER)), AS_OFTEN);
    refused(joined_with(JoinType::Inner, by_key(OTHER), read_by_each()), AS_OFTEN);
    let merged = merged_on(sorted(read_by_each(), &["k"]), sorted(by_key(OTHER), &["k"]), ("k", "k"));
    refused(merged, AS_OFTEN);
    let (mode, on) = (PartitionMode::Auto, [("k", "k")]);
    refused(hash_joined(mode, JoinType::Inner, put_together(read_by_each()), by_load(OTHER), &on), AS_OFTEN);
}

#[test]
fn what_each_task_reads_is_nowhere_else() {
    let column = |input| named_at(input, &[(1, "v")]);
    // On top of a stage, alone or below what passes rows on.
    refused(read_by_each(), AS_OFTEN);
    refused(sorted(column(read_by_each()), &["v"]), AS_OFTEN);
    refused(shuffled(read_by_each(), &["k"]), AS_OFTEN);
    // Sent to all tasks, from each that reads it.
    refused(collecting(JoinType::Inner, sent_to_all(read_by_each()), by_load(OTHER)), AS_OFTEN);
    // Counted, or put together with others.
    refused(grouped_in(AggregateMode::Partial, read_by_each(), &["k"]), AS_OFTEN);
    refused(UnionExec::try_new(vec![by_load(ONE), read_by_each()]).unwrap(), AS_OFTEN);
    refused(isolated(&[2, 2], vec![column(by_load(ONE)), column(read_by_each())]), AS_OFTEN);
}

#[test]
fn only_what_is_the_same_in_each_task_is_between_a_join_and_what_each_reads() {
    let collected = |side| collecting(JoinType::Inner, put_together(side), by_load(OTHER));
    passes(collected(named_at(read_by_each(), &[(0, "k"), (1, "v")])));
    refused(collected(grouped_in(AggregateMode::Partial, read_by_each(), &["k", "v"])), AS_OFTEN);
    refused(collected(UnionExec::try_new(vec![read_by_each(), read_by_each()]).unwrap()), AS_OFTEN);
    refused(collected(sorted(read_by_each(), &["k"])), AS_OFTEN);
    refused(collected(locally_dealt(read_by_each(), &["k"])), AS_OFTEN);
    refused(collected(Arc::new(LocalLimitExec::new(read_by_each(), 3))), AS_OFTEN);
    let some: Plan = Arc::new(CoalescePartitionsExec::new(read_by_each()).with_fetch(Some(3)));
    refused(collecting(JoinType::Inner, some, by_load(OTHER)), AS_OFTEN);
}

#[test]
fn a_scan_that_each_task_reads_says_so() {
    // The same scans, and the mark was lost.
    let unmarked = || leaf(few(), vec![few(), few()]);
    refused(collecting(JoinType::Inner, put_together(unmarked()), by_load(OTHER)), A_PART);
    refused(unmarked(), "each must be read once");
    // A mark, and each task has a part, or another number of tasks.
    let part = |shard| scan(None, vec![vec![file(FEW, shard)], vec![]]);
    let marked = ReadByEachTask::mark(few());
    let collected = |side| collecting(JoinType::Inner, put_together(side), by_load(OTHER));
    passes(collected(leaf(Arc::clone(&marked), vec![few(), few()])));
    refused(collected(leaf(Arc::clone(&marked), vec![part(0), part(1)])), NOT_ALL);
    refused(collected(leaf(Arc::clone(&marked), vec![few(), part(1)])), NOT_ALL);
    refused(collected(leaf(Arc::clone(&marked), vec![few()])), "was given to 1 tasks of 2");
    refused(collected(leaf(Arc::clone(&marked), vec![few(), sorted(few(), &["k"])])), "something else");
    // Whoever says that rows are hashed may be met where they are not.
    let hashed = || scan(Some("k"), vec![vec![file(FEW, 0)], vec![file(FEW, 1)]]);
    refused(collected(ReadByEachTask::leaf(hashed(), 2).unwrap()), "a part of a scan as if it were all");
    // Not dealt at all.
    refused(collected(marked), A_PART);
}

/// What stands where in a plan, by name.
fn names(plan: &Plan) -> Vec<String> {
    let mut names = vec![plan.name().to_owned()];
    plan.children().into_iter().for_each(|child| names.extend(self::names(child)));
    names
}

/// A stage of two tasks, looked at by the rule, and as it was.
fn ruled(stage: Plan) -> (Plan, Plan) {
    let plan: Plan = Arc::new(DistributedExec::new(put_together(coalesced(stage, 2))));
    (read_in_each_task(&plan, &view()).unwrap(), plan)
}

/// Segments that a plan reads of the little table.
fn reads(plan: &Plan) -> u64 {
    let reads = PlannedReads::of(plan).unwrap();
    reads.tables().filter(|(table, _)| table.0 == FEW).map(|(_, segments)| segments).sum()
}

fn is_sent(plan: &Plan) -> bool {
    names(plan).iter().any(|name| name == "NetworkBroadcastExec")
}

#[test]
fn what_was_sent_to_all_tasks_is_read_by_each_and_passes() {
    for join_type in OF_OTHER {
        let (ruled, before) = ruled(collecting(join_type, sent_to_all(few_whole()), by_load(OTHER)));
        assert!(is_sent(&before) && !is_sent(&ruled), "{join_type}: {:?}", names(&ruled));
        assert_eq!((reads(&before), reads(&ruled)), (2, 4), "{join_type}");
        assert_eq!(check(&ruled, &view()).map_err(|error| error.to_string()), Ok(()));
    }
}

#[test]
fn a_join_of_little_tables_is_made_in_each_task() {
    // In two tasks of its own, one side of which was sent there; and in one.
    let joined = |left, right| named_at(collecting(JoinType::Inner, left, right), &[(0, "k"), (1, "v")]);
    let in_two = joined(sent_to_all(few_whole()), leaf(few(), vec![few(), scan(None, vec![vec![], vec![]])]));
    for side in [in_two, joined(put_together(few_whole()), few_whole())] {
        let (ruled, _) = ruled(collecting(JoinType::Inner, sent_to_all(side), by_load(OTHER)));
        assert!(!is_sent(&ruled), "{:?}", names(&ruled));
        assert_eq!(reads(&ruled), 8);
        assert_eq!(check(&ruled, &view()).map_err(|error| error.to_string()), Ok(()));
    }
}

#[test]
fn what_must_be_put_together_once_is_sent_to_all() {
    let limited = |rows| -> Plan { Arc::new(LocalLimitExec::new(few_whole(), rows)) };
    let first: Plan = Arc::new(CoalescePartitionsExec::new(few_whole()).with_fetch(Some(3)));
    for side in [
        limited(3),
        first,
        grouped_in(AggregateMode::Single, few_whole(), &["k", "v"]),
        UnionExec::try_new(vec![few_whole(), few_whole()]).unwrap(),
        // More segments than each task should open.
        whole(ONE),
        // Rows of another stage, and files that are no segments.
        shuffled_in(1, few_whole(), &["k"]),
        named_at(outside(1, None), &[(0, "k"), (1, "v")]),
    ] {
        let (ruled, before) = ruled(collecting(JoinType::Inner, sent_to_all(side), by_load(OTHER)));
        assert_eq!(names(&ruled), names(&before));
        assert_eq!(reads(&ruled), reads(&before));
    }
    for stage in [
        nested(JoinType::Inner, sent_to_all(few_whole()), by_load(OTHER)),
        crossed(JoinType::Inner, sent_to_all(few_whole()), by_load(OTHER)),
        collecting(JoinType::Left, sent_to_all(few_whole()), by_load(OTHER)),
    ] {
        let (ruled, before) = ruled(stage);
        assert_eq!(names(&ruled), names(&before));
    }
}
