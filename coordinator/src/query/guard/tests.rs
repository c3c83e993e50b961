//! A plan of each class that is refused, and beside it the plan of the same shape that is right.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{JoinType, NullEquality, ScalarValue};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::{Operator, WindowFrame, WindowFunctionDefinition};
use datafusion::physical_expr::expressions::{BinaryExpr, Literal};
use datafusion::physical_plan::InputOrderMode;
use datafusion::physical_plan::aggregates::PhysicalGroupBy;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::windows::create_window_expr;

use self::plans::*;
use super::*;

mod each_task;
mod leaves;
mod orders;
mod plans;

/// Rows that are grouped by these columns of theirs.
fn grouped_in(mode: AggregateMode, input: Plan, by: &[&str]) -> Plan {
    let by = by.iter().map(|name| (col(&input, name), (*name).to_owned()));
    grouped_by(mode, Arc::clone(&input), PhysicalGroupBy::new_single(by.collect()))
}

fn grouped_by(mode: AggregateMode, input: Plan, by: PhysicalGroupBy) -> Plan {
    let schema = input.schema();
    Arc::new(AggregateExec::try_new(mode, by, Vec::new(), Vec::new(), input, schema).unwrap())
}

fn grouped(input: Plan, by: &[&str]) -> Plan {
    grouped_in(AggregateMode::FinalPartitioned, input, by)
}

/// What an operator that has one task's rows for all is refused with.
const ONE_FOR_ALL: &str = "takes the rows of one task for all rows";

#[test]
fn groups_are_in_one_task_each() {
    for mode in [AggregateMode::FinalPartitioned, AggregateMode::SinglePartitioned] {
        let grouped = |input, by: &[&str]| grouped_in(mode, input, by);
        passes(grouped(by_key(ONE), &["k"]));
        passes(grouped(by_key(ONE), &["v", "k"]));
        passes(grouped(shuffled(by_key(ONE), &["v"]), &["v"]));
        // Hashed by something else, by more than they are grouped by, or not at all.
        refused(grouped(by_key(ONE), &["v"]), ONE_FOR_ALL);
        refused(grouped(shuffled(by_key(ONE), &["k", "v"]), &["k"]), ONE_FOR_ALL);
        refused(grouped(by_load(ONE), &["k"]), ONE_FOR_ALL);
        // One group over all rows.
        refused(grouped(by_key(ONE), &[]), ONE_FOR_ALL);
        // The same in one task, where it is right.
        passes_in(1, grouped(whole(ONE), &["v"]));
    }
}

#[test]
fn groups_by_what_is_equal_to_the_key_are_in_one_task_each() {
    passes(grouped(named(by_key(ONE), &[("k", "l")]), &["l"]));
    refused(grouped(named(by_key(ONE), &[("v", "k")]), &["k"]), ONE_FOR_ALL);
    passes(grouped(where_equal(by_key(ONE)), &["v"]));
    let joined = || joined_with(JoinType::Inner, by_key(ONE), by_key(OTHER));
    passes(grouped(named_at(joined(), &[(0, "l")]), &["l"]));
    passes(grouped(named_at(joined(), &[(2, "l")]), &["l"]));
    // Rows without a partner have no key there.
    let outer = joined_with(JoinType::Left, by_key(ONE), by_key(OTHER));
    refused(grouped(named_at(outer, &[(2, "l")]), &["l"]), ONE_FOR_ALL);
}

#[test]
fn groups_of_one_partition_are_not_made_of_the_rows_of_one_task() {
    for mode in [AggregateMode::Single, AggregateMode::Final] {
        refused(grouped_in(mode, by_key(ONE), &["k"]), ONE_FOR_ALL);
        passes_in(1, grouped_in(mode, whole(ONE), &["k"]));
    }
    passes(grouped_in(AggregateMode::Partial, by_load(ONE), &["v"]));
}

#[test]
fn groups_of_a_set_without_the_key_are_in_many_tasks() {
    let by_sets = |sets: &[[bool; 2]]| {
        let input = by_key(ONE);
        let by = ["k", "v"].map(|name| (col(&input, name), name.to_owned()));
        let null: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(ScalarValue::Int64(None)));
        let nulls = ["k", "v"].map(|name| (Arc::clone(&null), name.to_owned()));
        let sets = sets.iter().map(|set| set.to_vec()).collect();
        let by = PhysicalGroupBy::new(by.to_vec(), nulls.to_vec(), sets, true);
        grouped_by(AggregateMode::SinglePartitioned, input, by)
    };
    passes(by_sets(&[[false, false], [false, true]]));
    refused(by_sets(&[[false, false], [true, false]]), ONE_FOR_ALL);
    // Put together, they are told apart by what says which set a group is of.
    let named = || named(by_key(ONE), &[("k", "k"), ("v", "__grouping_id")]);
    let by = ["k", "__grouping_id"];
    refused(grouped(named(), &by), ONE_FOR_ALL);
    passes(grouped(shuffled(named(), &by), &by));
}

#[test]
fn what_needs_all_rows_is_in_one_task() {
    let limit = |input| -> Plan { Arc::new(GlobalLimitExec::new(input, 2, Some(3))) };
    refused(limit(by_key(ONE)), ONE_FOR_ALL);
    passes_in(1, limit(whole(ONE)));
    refused(Arc::new(sort(by_key(ONE), &["v"])), ONE_FOR_ALL);
    passes(sorted(by_key(ONE), &["v"]));
    passes_in(1, Arc::new(sort(whole(ONE), &["v"])));
}

/// Counts over windows, each of which is over partitions by these columns; sorted by the first's.
fn windows(bounded: bool, input: Plan, over: &[&[&str]]) -> Plan {
    let input = match over[0] {
        [] => input,
        by => sorted(input, by),
    };
    windows_over_sorted(bounded, input, over)
}

fn windows_over_sorted(bounded: bool, input: Plan, over: &[&[&str]]) -> Plan {
    let window = |by: &&[&str]| {
        let by: Vec<_> = by.iter().map(|name| col(&input, name)).collect();
        create_window_expr(
            &WindowFunctionDefinition::AggregateUDF(count_udaf()),
            "n".to_owned(),
            &[col(&input, "v")],
            &by,
            &[],
            Arc::new(WindowFrame::new(None)),
            input.schema(),
            false,
            false,
            None,
        )
        .unwrap()
    };
    let over: Vec<_> = over.iter().map(window).collect();
    match bounded {
        true => Arc::new(BoundedWindowAggExec::try_new(over, input, InputOrderMode::Sorted, true).unwrap()),
        false => Arc::new(WindowAggExec::try_new(over, input, true).unwrap()),
    }
}

#[test]
fn partitions_of_windows_are_in_one_task_each() {
    for bounded in [true, false] {
        let windows = |input, over: &[&[&str]]| windows(bounded, input, over);
        passes(windows(by_key(ONE), &[&["k"]]));
        passes(windows(by_key(ONE), &[&["v", "k"]]));
        passes(windows(shuffled(by_key(ONE), &["v"]), &[&["v"]]));
        passes(windows(named(by_key(ONE), &[("k", "l"), ("v", "v")]), &[&["l"]]));
        passes(windows(where_equal(by_key(ONE)), &[&["v"]]));
        // Hashed, and by something else.
        refused(windows(by_key(ONE), &[&["v"]]), ONE_FOR_ALL);
        refused(windows(shuffled(by_key(ONE), &["k", "v"]), &[&["k"]]), ONE_FOR_ALL);
        refused(windows(named(by_key(ONE), &[("v", "k"), ("k", "v")]), &[&["k"]]), ONE_FOR_ALL);
        // One of several is enough.
        refused(windows(by_key(ONE), &[&["v", "k"], &["v"]]), ONE_FOR_ALL);
        passes(windows(by_key(ONE), &[&["v", "k"], &["k", "v"]]));
        // One partition over all rows.
        refused(windows(by_key(ONE), &[&[]]), ONE_FOR_ALL);
        refused(windows(by_load(ONE), &[&["k"]]), ONE_FOR_ALL);
        passes_in(1, windows(whole(ONE), &[&["v"]]));
    }
}

#[test]
fn sides_of_a_join_meet() {
    let joined = |left, right, on| joined_on(JoinType::Inner, left, right, on);
    passes(joined(by_key(ONE), by_key(OTHER), &[("k", "k")]));
    passes(joined(by_key(ONE), shuffled(by_load(OTHER), &["v"]), &[("k", "v")]));
    passes(joined(
        shuffled(by_key(ONE), &["k", "v"]),
        shuffled(by_key(OTHER), &["v", "k"]),
        &[("k", "v"), ("v", "k")],
    ));
    // Other keys, or the same in another order.
    refused(joined(by_key(ONE), by_key(OTHER), &[("k", "v")]), ONE_FOR_ALL);
    refused(joined(by_key(ONE), shuffled(by_load(OTHER), &["v"]), &[("k", "k")]), ONE_FOR_ALL);
    let crossed = [("k", "k"), ("v", "v")];
    let sides =
        |keys: &[&str]| joined(shuffled(by_key(ONE), &["k", "v"]), shuffled(by_key(OTHER), keys), &crossed);
    passes(sides(&["k", "v"]));
    refused(sides(&["v", "k"]), ONE_FOR_ALL);
    // By one of two keys on one side.
    refused(joined(by_key(ONE), shuffled(by_key(OTHER), &["k", "v"]), &crossed), ONE_FOR_ALL);
    // Other numbers of partitions, or not hashed at all.
    refused(joined(by_key(ONE), dealt(OTHER, Some("k"), 2, 4), &[("k", "k")]), ONE_FOR_ALL);
    refused(joined(by_load(ONE), by_load(OTHER), &[("k", "k")]), ONE_FOR_ALL);
    passes_in(1, joined(whole(ONE), whole(OTHER), &[("k", "v")]));
}

#[test]
fn sides_of_a_merge_meet() {
    let merged = |left, right, on| merged_on(sorted(left, &["k"]), sorted(right, &["k"]), on);
    passes(merged(by_key(ONE), by_key(OTHER), ("k", "k")));
    refused(merged(by_key(ONE), by_key(OTHER), ("k", "v")), ONE_FOR_ALL);
    refused(merged(by_key(ONE), dealt(OTHER, Some("k"), 2, 4), ("k", "k")), ONE_FOR_ALL);
    refused(merged(by_load(ONE), by_load(OTHER), ("k", "k")), ONE_FOR_ALL);
}

/// What a join is refused with that needs all of its left side.
const A_PART: &str = "collects a side";

#[test]
fn a_collected_side_is_whole_in_each_task() {
    for collecting in [collecting, nested, crossed] {
        passes(collecting(JoinType::Inner, sent_to_all(by_key(ONE)), by_load(OTHER)));
        refused(collecting(JoinType::Inner, put_together(by_key(ONE)), by_load(OTHER)), A_PART);
        refused(
            collecting(JoinType::Inner, put_together(shuffled(by_key(ONE), &["k"])), by_load(OTHER)),
            A_PART,
        );
        // Also where something that is whole is in it.
        let half = collecting(JoinType::Inner, sent_to_all(by_key(ONE)), by_load(OTHER));
        let half = put_together(named_at(half, &[(0, "k"), (1, "v")]));
        refused(collecting(JoinType::Inner, half, by_load(OTHER)), A_PART);
        passes_in(1, collecting(JoinType::Inner, put_together(whole(ONE)), whole(OTHER)));
    }
}

#[test]
fn rows_of_a_side_that_all_tasks_have_are_not_given() {
    let of_other =
        [JoinType::Inner, JoinType::Right, JoinType::RightSemi, JoinType::RightAnti, JoinType::RightMark];
    let of_collected =
        [JoinType::Left, JoinType::Full, JoinType::LeftSemi, JoinType::LeftAnti, JoinType::LeftMark];
    for collecting in [collecting, nested] {
        for join_type in of_other {
            passes(collecting(join_type, sent_to_all(by_key(ONE)), by_load(OTHER)));
        }
        for join_type in of_collected {
            refused(collecting(join_type, sent_to_all(by_key(ONE)), by_load(OTHER)), A_PART);
            passes_in(1, collecting(join_type, put_together(whole(ONE)), whole(OTHER)));
        }
    }
}

#[test]
fn whether_there_is_a_null_is_known_where_all_rows_are() {
    let not_in = |left: Plan, right: Plan, knows_of_nulls| -> Plan {
        let on = vec![(col(&left, "k"), col(&right, "k"))];
        let (kind, mode) = (JoinType::LeftAnti, PartitionMode::Partitioned);
        let nulls = NullEquality::NullEqualsNothing;
        Arc::new(
            HashJoinExec::try_new(left, right, on, None, &kind, None, mode, nulls, knows_of_nulls).unwrap(),
        )
    };
    passes(not_in(by_key(ONE), by_key(OTHER), false));
    refused(not_in(by_key(ONE), by_key(OTHER), true), A_PART);
    passes_in(1, not_in(whole(ONE), whole(OTHER), true));
}

#[test]
fn rows_that_were_dealt_in_one_task_are_not_dealt_to_all() {
    let bad = grouped(locally_dealt(by_key(ONE), &["v"]), &["v"]);
    refused(bad, "deals the rows of one task as if they were all rows");
    passes(grouped(shuffled(by_key(ONE), &["v"]), &["v"]));
    passes_in(1, grouped(locally_dealt(whole(ONE), &["v"]), &["v"]));
}

#[test]
fn the_first_rows_are_the_first_of_all_tasks() {
    let first = "takes the first 3 rows in each of them";
    let next_stage = |plan| shuffled(plan, &["v"]);
    refused(next_stage(outside(2, Some(3))), first);
    passes(next_stage(outside(2, None)));
    passes(shuffled_in(1, outside(1, Some(3)), &["v"]));
    // A sort of one partition.
    let top = |input| -> Plan { Arc::new(sort(input, &["v"]).with_fetch(Some(3))) };
    refused(next_stage(top(outside(2, None))), first);
    // A hint, where something above takes the first of all.
    let limited =
        |input, rows| -> Plan { Arc::new(CoalescePartitionsExec::new(input).with_fetch(Some(rows))) };
    let check = |rows| check_whole(limited(coalesced(outside(2, Some(3)), 2), rows));
    assert!(check(3).is_ok(), "{:?}", check(3));
    assert!(check(4).unwrap_err().contains(first));
    let of_union = |rows| check_whole(limited(coalesced(isolated(&[2], vec![outside(2, Some(3))]), 2), rows));
    assert!(of_union(3).is_ok(), "{:?}", of_union(3));
    assert!(of_union(4).unwrap_err().contains(first));
    // Of what all tasks get, they do not get the same rows first.
    let some_of = |side| collecting(JoinType::Inner, limited(side, 3), by_load(OTHER));
    refused(some_of(broadcast(by_key(ONE))), first);
    let alike = |side| crossed(JoinType::Inner, limited(named(side, &[]), 3), by_load(OTHER));
    passes(alike(broadcast(by_key(ONE))));
    passes(next_stage(Arc::new(LocalLimitExec::new(outside(2, None), 3))));
}

#[test]
fn children_of_a_union_with_tasks_of_their_own_are_looked_at() {
    let column = |input| named(input, &[("v", "v")]);
    let both = |tasks: &[usize], child: Plan| isolated(tasks, vec![column(by_load(ONE)), child]);
    passes(both(&[2, 2], column(by_load(OTHER))));
    refused(both(&[2, 2], grouped(by_key(OTHER), &["v"])), ONE_FOR_ALL);
    passes(both(&[2, 1], grouped(whole(OTHER), &["v"])));
    // Also one that reads other stages only.
    let top =
        |tasks| both(&[2, tasks], grouped_in(AggregateMode::Single, shuffled(by_key(OTHER), &["k"]), &["v"]));
    refused(top(3), ONE_FOR_ALL);
    passes(top(1));
}

#[test]
fn tasks_of_a_child_are_those_that_the_union_says() {
    let said = "DistributedUnionExec: t0:[c0(0/2), c1] t1:[c0(1/2)] t2:[c11(0/3)] t3:[c11(1/3), c2(0/12)]";
    let tasks: Vec<usize> = [0, 1, 2, 3, 11].map(|child| said_tasks(said, child)).to_vec();
    assert_eq!(tasks, [2, 1, 12, 1, 3]);
}

fn named(input: Plan, columns: &[(&str, &str)]) -> Plan {
    let columns = columns.iter().map(|(name, alias)| (col(&input, name), (*alias).to_owned()));
    Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), Arc::clone(&input)).unwrap())
}

fn named_at(input: Plan, columns: &[(usize, &str)]) -> Plan {
    let columns = columns.iter().map(|(index, alias)| (col_at(&input, *index), (*alias).to_owned()));
    Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), Arc::clone(&input)).unwrap())
}

/// Rows whose two columns are equal.
fn where_equal(input: Plan) -> Plan {
    let equal = BinaryExpr::new(col(&input, "k"), Operator::Eq, col(&input, "v"));
    Arc::new(FilterExec::try_new(Arc::new(equal), input).unwrap())
}

fn joined_with(join_type: JoinType, left: Plan, right: Plan) -> Plan {
    joined_on(join_type, left, right, &[("k", "k")])
}

fn joined_on(join_type: JoinType, left: Plan, right: Plan, on: &[(&str, &str)]) -> Plan {
    hash_joined(PartitionMode::Partitioned, join_type, left, right, on)
}

fn collecting(join_type: JoinType, left: Plan, right: Plan) -> Plan {
    hash_joined(PartitionMode::CollectLeft, join_type, left, right, &[("k", "k")])
}

fn hash_joined(
    mode: PartitionMode,
    join_type: JoinType,
    left: Plan,
    right: Plan,
    on: &[(&str, &str)],
) -> Plan {
    let on = on.iter().map(|(one, other)| (col(&left, one), col(&right, other))).collect();
    let nulls = NullEquality::NullEqualsNothing;
    Arc::new(HashJoinExec::try_new(left, right, on, None, &join_type, None, mode, nulls, false).unwrap())
}

fn nested(join_type: JoinType, left: Plan, right: Plan) -> Plan {
    Arc::new(NestedLoopJoinExec::try_new(left, right, None, &join_type, None).unwrap())
}

fn crossed(_inner: JoinType, left: Plan, right: Plan) -> Plan {
    Arc::new(CrossJoinExec::new(left, right))
}

#[test]
fn sides_that_are_hashed_as_other_types_do_not_meet() {
    let side = |data_type: DataType, partitions| -> (Arc<dyn PhysicalExpr>, Plan) {
        let key: Arc<dyn PhysicalExpr> = Arc::new(Column::new("a", 0));
        let schema = Arc::new(Schema::new(vec![Field::new("a", data_type, true)]));
        let dealt = Partitioning::Hash(vec![Arc::clone(&key)], partitions);
        let rows = Arc::new(PlaceholderRowExec::new(schema));
        (key, Arc::new(RepartitionExec::try_new(rows, dealt).unwrap()))
    };
    let meet = |left: (DataType, usize), right: (DataType, usize)| {
        let ((left_key, left), (right_key, right)) = (side(left.0, left.1), side(right.0, right.1));
        sides_meet(&left, &right, &[(left_key, right_key)])
    };
    assert!(meet((DataType::Utf8View, 2), (DataType::Utf8View, 2)));
    assert!(!meet((DataType::Utf8View, 2), (DataType::Utf8, 2)));
    assert!(!meet((DataType::Int64, 2), (DataType::Int32, 2)));
    assert!(!meet((DataType::Int64, 2), (DataType::Int64, 3)));
}
