//! Orders that operators rest on.

use std::sync::Arc;

use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;

use super::plans::*;
use super::{grouped, named, windows, windows_over_sorted};

/// What is refused that needs an order that is not there.
const LOST: &str = "rests on an order from before an exchange";

/// `ORDER BY k`, which merges the partitions of a stage of two tasks.
fn ordered(input: Plan) -> Plan {
    merging(coalesced(input, 2))
}

fn merging(input: Plan) -> Plan {
    let keys = LexOrdering::new([PhysicalSortExpr::new_default(col(&input, "k"))]).unwrap();
    Arc::new(SortPreservingMergeExec::new(keys, input))
}

/// Sorted, and then dealt by something else.
fn sorted_before(by: &[&str]) -> Plan {
    shuffled_in_order(2, sorted(by_key(ONE), &["k"]), by)
}

#[track_caller]
fn is_lost(plan: Plan) {
    let said = check_whole(plan);
    assert!(matches!(&said, Err(said) if said.contains(LOST)), "{said:?}");
}

#[track_caller]
fn is_kept(plan: Plan) {
    assert_eq!(check_whole(plan), Ok(()));
}

#[test]
fn rows_that_are_merged_were_sorted_after_the_last_exchange() {
    let gives_way = |input| -> Plan { Arc::new(CooperativeExec::new(input)) };
    is_kept(ordered(sorted(by_key(ONE), &["k"])));
    is_kept(ordered(sorted(shuffled(by_key(ONE), &["v"]), &["k"])));
    is_kept(ordered(gives_way(sorted(sorted_before(&["v"]), &["k"]))));
    is_lost(ordered(sorted_before(&["v"])));
    is_lost(ordered(gives_way(named(sorted_before(&["v"]), &[("k", "k"), ("v", "v")]))));
    is_lost(merging(sorted_before(&["v"])));
    // Each child of a union keeps its own.
    let both = |child| ordered(isolated(&[2, 2], vec![sorted(by_key(OTHER), &["k"]), child]));
    is_kept(both(sorted(by_key(ONE), &["k"])));
    is_lost(both(sorted_before(&["v"])));
}

#[test]
fn one_stream_that_is_dealt_keeps_its_order() {
    let one = |tasks| sorted(outside(tasks, None), &["k"]);
    is_kept(ordered(shuffled_in(1, one(1), &["v"])));
    // The streams of two tasks, and those of two partitions of one task.
    is_lost(ordered(shuffled_in(2, one(2), &["v"])));
    is_lost(ordered(shuffled_in_order(1, sorted(whole(ONE), &["k"]), &["v"])));
}

#[test]
fn sides_of_a_merge_were_sorted_in_their_stage() {
    let by_k = |table| sorted(shuffled(by_key(table), &["k"]), &["k"]);
    passes(merged_on(by_k(ONE), by_k(OTHER), ("k", "k")));
    refused(merged_on(sorted_before(&["k"]), by_k(OTHER), ("k", "k")), LOST);
    refused(merged_on(by_k(OTHER), sorted_before(&["k"]), ("k", "k")), LOST);
    // Also where nothing says that there was an order.
    refused(merged_on(by_k(ONE), shuffled(by_key(OTHER), &["k"]), ("k", "k")), LOST);
}

#[test]
fn partitions_of_windows_are_sorted_after_the_last_exchange() {
    for bounded in [true, false] {
        passes(windows(bounded, shuffled(by_key(ONE), &["k"]), &[&["k"]]));
        refused(windows_over_sorted(bounded, sorted_before(&["k"]), &[&["k"]]), LOST);
        // By all that they are partitioned by, also what a filter makes constant.
        let not_told = "rests on an order that is not told to workers";
        refused(windows_over_sorted(bounded, sorted(by_key(ONE), &["v"]), &[&["k", "v"]]), not_told);
        passes(windows_over_sorted(bounded, sorted(by_key(ONE), &["v", "k"]), &[&["k", "v"]]));
    }
}

#[test]
fn groups_that_are_taken_to_come_sorted_do() {
    // Workers look for themselves, and find no order.
    passes(grouped(sorted_before(&["k"]), &["k"]));
    is_lost(put_together(grouped(sorted_before(&["k"]), &["k"])));
    is_kept(put_together(grouped(shuffled(by_key(ONE), &["k"]), &["k"])));
}
