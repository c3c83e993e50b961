use arrow::datatypes::{DataType, Field, Schema};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::{BinaryExpr, binary, cast, lit};
use datafusion::physical_plan::aggregates::{AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::joins::PartitionMode;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{Partitioning, displayable};
use datafusion_distributed::NetworkShuffleExec;

use super::*;

type Plan = Arc<dyn ExecutionPlan>;

/// Rows of two columns: a key and something else.
fn scan_of(key: &str, data_type: DataType) -> Plan {
    let fields = [Field::new(key, data_type, true), Field::new(format!("{key}_v"), DataType::Int64, true)];
    Arc::new(EmptyExec::new(Arc::new(Schema::new(fields.to_vec()))).with_partitions(2))
}

fn scan(key: &str) -> Plan {
    scan_of(key, DataType::Int64)
}

fn col(plan: &Plan, index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(plan.schema().field(index).name(), index))
}

/// In another stage, hashed by a column.
fn sent_by(plan: Plan, index: usize) -> Plan {
    let hashed = Partitioning::Hash(vec![col(&plan, index)], 2);
    let head = Arc::new(RepartitionExec::try_new(plan, hashed).unwrap());
    Arc::new(NetworkShuffleExec::try_new(head, 2).unwrap())
}

fn sent(plan: Plan) -> Plan {
    sent_by(plan, 0)
}

fn restricted(plan: Plan) -> Plan {
    let predicate = Arc::new(BinaryExpr::new(col(&plan, 1), Operator::Gt, lit(5_i64)));
    Arc::new(FilterExec::try_new(predicate, plan).unwrap())
}

fn join_with(left: Plan, right: Plan, on: [usize; 2], join_type: JoinType, nulls: NullEquality) -> Plan {
    let on = vec![(col(&left, on[0]), col(&right, on[1]))];
    let mode = PartitionMode::Partitioned;
    Arc::new(HashJoinExec::try_new(left, right, on, None, &join_type, None, mode, nulls, false).unwrap())
}

fn join(left: Plan, right: Plan, on: [usize; 2], join_type: JoinType) -> Plan {
    join_with(left, right, on, join_type, NullEquality::NullEqualsNothing)
}

fn inner(left: Plan, right: Plan, on: [usize; 2]) -> Plan {
    join(left, right, on, JoinType::Inner)
}

/// What becomes of a plan that workers run.
fn made_of(plan: Plan) -> Plan {
    let made = with_runtime_filters(sent(plan)).unwrap();
    let head = Arc::clone(made.children()[0]);
    Arc::clone(head.children()[0])
}

fn text(plan: &Plan) -> String {
    displayable(plan.as_ref()).indent(false).to_string()
}

fn check(plan: Plan, expected: &str) {
    let lines = text(&made_of(plan));
    let lines = lines.lines().map(|line| match line.trim_start().starts_with("HashJoin") {
        true => line.split(':').next().unwrap_or(line),
        false => line,
    });
    let lines: Vec<&str> = lines.collect();
    let expected: Vec<&str> =
        expected.lines().map(|line| line.strip_prefix("        ").unwrap_or(line)).collect();
    assert_eq!(lines, expected[1..expected.len() - 1], "\n{}", lines.join("\n"));
}

#[test]
fn the_other_side_is_filtered_where_it_is_read() {
    let probe = sent(restricted(scan("b")));
    check(
        inner(sent(scan("a")), probe, [0, 0]),
        "
        HashJoinExec
          JoinKeysExec: join=0, keys=[a@0]
            [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
              RepartitionExec: partitioning=Hash([a@0], 2), input_partitions=2
                EmptyExec
          [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
            RepartitionExec: partitioning=Hash([b@0], 2), input_partitions=2
              RuntimeFilterExec: join=0, keys=[b@0]
                FilterExec: b_v@1 > 5
                  EmptyExec
        ",
    );
}

#[test]
fn a_filter_goes_down_through_what_keeps_its_columns() {
    let scan_b = scan("b");
    let turned = ProjectionExec::try_new(
        [(col(&scan_b, 1), "x".to_owned()), (col(&scan_b, 0), "y".to_owned())],
        Arc::clone(&scan_b),
    );
    let below = inner(sent(scan("c")), sent_by(Arc::new(turned.unwrap()), 0), [0, 0]);
    check(
        inner(sent(scan("a")), sent_by(below, 3), [0, 3]),
        "
        HashJoinExec
          JoinKeysExec: join=1, keys=[a@0]
            [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
              RepartitionExec: partitioning=Hash([a@0], 2), input_partitions=2
                EmptyExec
          [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
            RepartitionExec: partitioning=Hash([y@3], 2), input_partitions=2
              HashJoinExec
                JoinKeysExec: join=0, keys=[c@0]
                  [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
                    RepartitionExec: partitioning=Hash([c@0], 2), input_partitions=2
                      EmptyExec
                [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
                  RepartitionExec: partitioning=Hash([x@0], 2), input_partitions=2
                    ProjectionExec: expr=[b_v@1 as x, b@0 as y]
                      RuntimeFilterExec: join=0, keys=[b_v@1]
                        RuntimeFilterExec: join=1, keys=[b@0]
                          EmptyExec
        ",
    );
}

/// How many rows of `b` have each key.
fn counted_by_key() -> Plan {
    let input = scan("b");
    let counted = AggregateExprBuilder::new(count_udaf(), vec![col(&input, 1)])
        .schema(input.schema())
        .alias("n")
        .build()
        .unwrap();
    let groups = PhysicalGroupBy::new_single(vec![(col(&input, 0), "b".to_owned())]);
    let schema = input.schema();
    let aggregate = AggregateExec::try_new(
        AggregateMode::Partial,
        groups,
        vec![Arc::new(counted)],
        vec![None],
        input,
        schema,
    );
    Arc::new(aggregate.unwrap())
}

#[test]
fn rows_of_whole_groups_are_left_out_below_an_aggregate() {
    let aggregate = counted_by_key();
    // By the group, and by what is counted.
    for (key, is_below) in [(0, true), (1, false)] {
        let made = made_of(inner(sent(scan("a")), sent_by(Arc::clone(&aggregate), key), [0, key]));
        let lines = text(&made);
        let (filter, aggregate) =
            (lines.find("RuntimeFilterExec").unwrap(), lines.find("AggregateExec").unwrap());
        assert_eq!(filter > aggregate, is_below, "{lines}");
    }
}

#[test]
fn groups_that_lost_rows_are_computed_with_where_that_is_no_error() {
    let aggregate = counted_by_key();
    let (key, count) = (col(&aggregate, 0), col(&aggregate, 1));
    let schema = aggregate.schema();
    let as_float = cast(Arc::clone(&count), &schema, DataType::Float64).unwrap();
    let share = binary(lit(0.2), Operator::Multiply, as_float, &schema).unwrap();
    let part = binary(lit(12_i64), Operator::Divide, count, &schema).unwrap();
    for (computed, is_below) in [(share, true), (part, false)] {
        let columns = [(Arc::clone(&key), "b".to_owned()), (computed, "c".to_owned())];
        let projection = ProjectionExec::try_new(columns, Arc::clone(&aggregate)).unwrap();
        let lines = text(&made_of(inner(sent(scan("a")), sent(Arc::new(projection)), [0, 0])));
        let place = |name: &str| lines.find(name).unwrap();
        assert_eq!(place("RuntimeFilterExec") > place("AggregateExec"), is_below, "{lines}");
    }
}

#[test]
fn groups_that_lost_rows_are_aggregated_where_that_is_no_error() {
    let counted = counted_by_key();
    let schema = counted.schema();
    let count = || col(&counted, 1);
    let part = || binary(lit(12_i64), Operator::Divide, count(), &schema).unwrap();
    let is_large = || Some(binary(part(), Operator::Gt, lit(3_i64), &schema).unwrap());
    for (argument, filter, is_below) in
        [(count(), None, true), (part(), None, false), (count(), is_large(), false)]
    {
        let function = AggregateExprBuilder::new(count_udaf(), vec![argument])
            .schema(Arc::clone(&schema))
            .alias("m")
            .build()
            .unwrap();
        let groups = PhysicalGroupBy::new_single(vec![(col(&counted, 0), "b".to_owned())]);
        let aggregate = AggregateExec::try_new(
            AggregateMode::Partial,
            groups,
            vec![Arc::new(function)],
            vec![filter],
            Arc::clone(&counted),
            Arc::clone(&schema),
        );
        let lines = text(&made_of(inner(sent(scan("a")), sent(Arc::new(aggregate.unwrap())), [0, 0])));
        // Below the upper aggregate in any case, and below the lower one where nothing fails.
        let aggregates: Vec<usize> = lines.match_indices("AggregateExec").map(|(at, _)| at).collect();
        let filter = lines.find("RuntimeFilterExec").unwrap();
        assert_eq!((filter > aggregates[0], filter > aggregates[1]), (true, is_below), "{lines}");
    }
}

#[test]
fn no_row_is_left_out_below_a_limit() {
    let limited: Plan = Arc::new(LocalLimitExec::new(scan("b"), 5));
    let lines = text(&made_of(inner(sent(scan("a")), sent(limited), [0, 0])));
    assert!(lines.find("RuntimeFilterExec").unwrap() < lines.find("LocalLimitExec").unwrap(), "{lines}");
}

#[test]
fn joins_that_keep_rows_of_the_other_side_without_a_partner_have_none() {
    for (join_type, has_filter) in [
        (JoinType::Inner, true),
        (JoinType::LeftSemi, true),
        (JoinType::RightSemi, true),
        // These give rows of the left side that have none.
        (JoinType::Left, true),
        (JoinType::LeftAnti, true),
        (JoinType::LeftMark, true),
        (JoinType::Right, false),
        (JoinType::Full, false),
        (JoinType::RightAnti, false),
        (JoinType::RightMark, false),
    ] {
        let lines = text(&made_of(join(sent(scan("a")), sent(scan("b")), [0, 0], join_type)));
        assert_eq!(lines.contains("RuntimeFilterExec"), has_filter, "{join_type}\n{lines}");
        assert_eq!(lines.contains("JoinKeysExec"), has_filter, "{join_type}\n{lines}");
    }
}

#[test]
fn keys_that_cannot_be_told_have_none() {
    let sides = |data_type: DataType| (sent(scan_of("a", data_type.clone())), sent(scan_of("b", data_type)));
    let nothing = NullEquality::NullEqualsNothing;
    for (data_type, nulls, has_filter) in [
        (DataType::Utf8View, nothing, true),
        (DataType::Int64, NullEquality::NullEqualsNull, false),
        (DataType::Float64, nothing, false),
    ] {
        let (left, right) = sides(data_type);
        let lines = text(&made_of(join_with(left, right, [0, 0], JoinType::Inner, nulls)));
        assert_eq!(lines.contains("RuntimeFilterExec"), has_filter, "{lines}");
    }
}

#[test]
fn rows_that_a_join_below_keeps_for_others_stay() {
    // Columns of the lower join: of its left side 0 and 1, of its right side 2 and 3.
    for (join_type, key, depth) in [
        (JoinType::Left, 0, 2),
        (JoinType::Left, 2, 1),
        (JoinType::Right, 0, 1),
        (JoinType::Right, 2, 2),
        (JoinType::Full, 0, 1),
        (JoinType::LeftSemi, 0, 2),
        (JoinType::LeftAnti, 0, 1),
    ] {
        let below = join(sent(scan("c")), sent(scan("d")), [0, 0], join_type);
        let made = made_of(inner(sent(scan("a")), sent_by(below, key), [0, key]));
        let lines = text(&made);
        let upto = lines
            .lines()
            .take_while(|line| !line.contains("RuntimeFilterExec: join=") || !is_upper(&lines, line));
        let joins = upto.filter(|line| line.contains("HashJoinExec")).count();
        assert_eq!(joins, depth, "{join_type} by {key}\n{lines}");
    }
}

/// Whether a line is the filter of the join at the top.
fn is_upper(lines: &str, line: &str) -> bool {
    let keys = lines.lines().find(|line| line.contains("JoinKeysExec")).unwrap();
    let join =
        |line: &str| line.split("join=").nth(1).and_then(|rest| rest.split(',').next()).map(str::to_owned);
    join(keys) == join(line)
}

#[test]
fn a_side_that_is_read_by_the_tasks_of_the_join_has_none() {
    let lines = text(&made_of(inner(sent(scan("a")), scan("b"), [0, 0])));
    assert!(!lines.contains("RuntimeFilterExec") && !lines.contains("JoinKeysExec"), "{lines}");
    // Nor has a join that the coordinator runs.
    let plan = inner(sent(scan("a")), sent(scan("b")), [0, 0]);
    assert!(!text(&with_runtime_filters(plan).unwrap()).contains("RuntimeFilterExec"));
}

#[test]
fn keys_of_a_side_that_goes_to_all_are_gathered_before_it_does() {
    let built: Plan = Arc::new(BroadcastExec::new(scan("a"), 2));
    let built = Arc::new(NetworkBroadcastExec::try_new(built, 2).unwrap());
    let built: Plan = Arc::new(CoalescePartitionsExec::new(built));
    let probe = sent(scan("b"));
    let on = vec![(col(&built, 0), col(&probe, 0))];
    let (kind, mode) = (JoinType::Inner, PartitionMode::CollectLeft);
    let nulls = NullEquality::NullEqualsNothing;
    let join = HashJoinExec::try_new(built, probe, on, None, &kind, None, mode, nulls, false);
    let lines = text(&made_of(Arc::new(join.unwrap())));
    assert!(lines.find(" BroadcastExec").unwrap() < lines.find("JoinKeysExec").unwrap(), "{lines}");
    assert!(lines.contains("RuntimeFilterExec"), "{lines}");
}

#[test]
fn no_two_plans_have_one_filter() {
    let id = || {
        let made = made_of(inner(sent(scan("a")), sent(scan("b")), [0, 0]));
        let keys = made.children()[0].downcast_ref::<JoinKeysExec>().unwrap().keys().clone();
        keys.id
    };
    assert_ne!(id(), id());
}

#[test]
fn keys_of_a_join_below_are_those_that_the_join_above_leaves() {
    // The lower join builds of `c`, whose other column has a partner in `a` or has none.
    let below = || inner(scan("c"), sent(scan("d")), [0, 0]);
    check(
        inner(sent(scan("a")), below(), [0, 1]),
        "
        HashJoinExec
          JoinKeysExec: join=1, keys=[a@0]
            [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
              RepartitionExec: partitioning=Hash([a@0], 2), input_partitions=2
                EmptyExec
          HashJoinExec
            JoinKeysExec: join=0, keys=[c@0]
              RuntimeFilterExec: join=1, keys=[c_v@1]
                EmptyExec
            [Stage 0] => NetworkShuffleExec: output_partitions=2, input_tasks=2
              RepartitionExec: partitioning=Hash([d@0], 2), input_partitions=2
                RuntimeFilterExec: join=0, keys=[d@0]
                  EmptyExec
        ",
    );
    // What keeps rows without a partner is not built of fewer, and what is only looked up in the
    // same task is no gain.
    for (below, key) in [
        (join(scan("c"), sent(scan("d")), [0, 0], JoinType::Full), 1),
        (inner(sent(scan("c")), scan("d"), [0, 0]), 3),
    ] {
        let lines = text(&made_of(inner(sent(scan("a")), below, [0, key])));
        assert!(!lines.contains("RuntimeFilterExec"), "{lines}");
    }
}
