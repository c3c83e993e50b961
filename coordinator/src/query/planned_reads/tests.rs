use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::Partitioning;
use datafusion::physical_plan::joins::PartitionMode;
use proptest::prelude::*;
use shoal_data::SegmentName;
use shoal_data::shard_store::SHARD_STORE_URL;
use shoal_proto::SegmentId;
use shoal_proto::query::TableReads;

use super::*;

fn names(table: u64, count: u32) -> Vec<SegmentName> {
    (0..count)
        .map(|shard| SegmentName { table: TableId(table), shard, segment: SegmentId::random() })
        .collect()
}

/// A scan of these segments, in two partitions.
fn scan_with(
    names: &[SegmentName],
    limit: Option<usize>,
    ordering: Option<LexOrdering>,
) -> Arc<dyn ExecutionPlan> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
    ]));
    let file = |name: &SegmentName| PartitionedFile::new(name.to_string(), 1000);
    let (first, second) = names.split_at(names.len() / 2);
    let groups = [first, second].map(|names| FileGroup::new(names.iter().map(file).collect()));
    let url = ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap();
    let scan = FileScanConfigBuilder::new(url, Arc::new(ParquetSource::new(schema)))
        .with_file_groups(groups.to_vec())
        .with_limit(limit)
        .with_output_ordering(ordering.into_iter().collect())
        .build();
    DataSourceExec::from_data_source(scan)
}

fn scan(names: &[SegmentName]) -> Arc<dyn ExecutionPlan> {
    scan_with(names, None, None)
}

fn column(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(["k", "v"][index], index))
}

fn by(index: usize) -> LexOrdering {
    [PhysicalSortExpr::new(column(index), SortOptions { descending: false, nulls_first: false })].into()
}

/// The segments of each table that a plan needs, and all that it has.
fn needed(plan: &Arc<dyn ExecutionPlan>) -> Vec<(u64, u64)> {
    let reads = PlannedReads::of(plan).unwrap();
    reads.tables.values().map(|planned| (planned.needed, planned.all.segments)).collect()
}

fn merged(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    Arc::new(CoalescePartitionsExec::new(plan))
}

fn top(input: Arc<dyn ExecutionPlan>, keys: LexOrdering) -> Arc<dyn ExecutionPlan> {
    let sort = SortExec::new(keys.clone(), input).with_preserve_partitioning(true).with_fetch(Some(3));
    Arc::new(SortPreservingMergeExec::new(keys, Arc::new(sort)).with_fetch(Some(3)))
}

fn join(left: &[SegmentName], right: &[SegmentName], join_type: JoinType) -> Arc<dyn ExecutionPlan> {
    let on = vec![(column(0), column(0))];
    let mode = PartitionMode::CollectLeft;
    let nulls = datafusion::common::NullEquality::NullEqualsNothing;
    let (left, right) = (merged(scan(left)), scan(right));
    Arc::new(HashJoinExec::try_new(left, right, on, None, &join_type, None, mode, nulls, false).unwrap())
}

fn merge(left: &[SegmentName], right: &[SegmentName], join_type: JoinType) -> Arc<dyn ExecutionPlan> {
    let sorted = |names| -> Arc<dyn ExecutionPlan> {
        Arc::new(SortExec::new(by(0), scan(names)).with_preserve_partitioning(true))
    };
    let on = vec![(column(0), column(0))];
    let order = vec![SortOptions { descending: false, nulls_first: false }];
    let nulls = datafusion::common::NullEquality::NullEqualsNothing;
    let (left, right) = (sorted(left), sorted(right));
    Arc::new(SortMergeJoinExec::try_new(left, right, on, None, join_type, order, nulls).unwrap())
}

#[test]
fn what_may_stop_early_is_told_from_what_may_not() {
    let (t, u) = (names(1, 6), names(2, 4));
    let limited =
        |fetch| -> Arc<dyn ExecutionPlan> { Arc::new(GlobalLimitExec::new(merged(scan(&t)), 0, fetch)) };
    let repartitioned: Arc<dyn ExecutionPlan> =
        Arc::new(RepartitionExec::try_new(scan(&t), Partitioning::Hash(vec![column(0)], 4)).unwrap());
    let union = UnionExec::try_new(vec![scan(&t), scan(&u)]).unwrap();
    // One file for each partition: of several an order is not known.
    let sorted = scan_with(&t[..2], None, Some(by(0)));
    let by_both = LexOrdering::new(by(0).into_iter().chain(by(1))).unwrap();
    for (what, plan, expected) in [
        ("a scan", scan(&t), vec![(6, 6)]),
        ("a scan with a limit of its own", scan_with(&t, Some(5), None), vec![(0, 6)]),
        ("merged", merged(scan(&t)), vec![(6, 6)]),
        ("repartitioned", repartitioned, vec![(6, 6)]),
        ("a union", union, vec![(6, 6), (4, 4)]),
        (
            "rows left out at the start",
            Arc::new(GlobalLimitExec::new(merged(scan(&t)), 5, None)),
            vec![(6, 6)],
        ),
        ("a limit", limited(Some(5)), vec![(0, 6)]),
        ("a limit of none", limited(Some(0)), vec![(0, 6)]),
        ("the first few of all", top(scan(&t), by(1)), vec![(6, 6)]),
        ("the first few, which come in that order", top(Arc::clone(&sorted), by(0)), vec![(0, 2)]),
        ("the first few, in the order of the first key", top(sorted, by_both), vec![(0, 2)]),
        ("a join", join(&t, &u, JoinType::Inner), vec![(6, 6), (0, 4)]),
        ("a join that keeps the other side", join(&t, &u, JoinType::Right), vec![(6, 6), (4, 4)]),
        ("a merge", merge(&t, &u, JoinType::Inner), vec![(6, 6), (4, 4)]),
        ("a merge for the rows of one side", merge(&t, &u, JoinType::LeftSemi), vec![(6, 6), (0, 4)]),
        ("a merge for those of the other", merge(&t, &u, JoinType::RightAnti), vec![(0, 6), (4, 4)]),
        ("twice the same table", join(&t, &t, JoinType::Full), vec![(12, 12)]),
    ] {
        assert_eq!(needed(&plan), expected, "{what}");
    }
}

#[test]
fn only_what_was_planned_and_all_that_is_needed_passes() {
    let (t, others) = (names(1, 6), names(1, 6));
    let read = |names: &[SegmentName]| {
        let log = ReadLog::new();
        names.iter().for_each(|name| log.add_segment(name.table, name.digest()));
        log.by_table()
    };
    let swapped: Vec<_> = t[..5].iter().chain(&others[..1]).copied().collect();
    let twice: Vec<_> = t.iter().chain(&t[..1]).copied().collect();
    let twice_and_one_less: Vec<_> = t[1..].iter().chain(&t[1..2]).copied().collect();
    let elsewhere = names(9, 1);
    let strict = PlannedReads::of(&scan(&t)).unwrap();
    let lenient = PlannedReads::of(&scan_with(&t, Some(1), None)).unwrap();
    for (what, names, strictly, leniently) in [
        ("all", t.as_slice(), true, true),
        ("one less", &t[1..], false, true),
        ("none", &[], false, true),
        ("another one", swapped.as_slice(), false, false),
        ("one twice", twice.as_slice(), false, false),
        ("one twice and one not", twice_and_one_less.as_slice(), false, false),
        ("another table", elsewhere.as_slice(), false, false),
    ] {
        let read = read(names);
        for (plan, passes) in [(&strict, strictly), (&lenient, leniently)] {
            let checked = plan.check(&read, |table| format!("public.t{}", table.0));
            assert_eq!(checked.is_ok(), passes, "{what}: {checked:?}");
        }
    }
    let error = strict.check(&read(&t[1..]), |_| "public.t".into()).unwrap_err();
    assert!(
        error.message.starts_with("the plan has 6 segments of `public.t` and only 5 were read"),
        "{error}"
    );
}

#[test]
fn a_shard_is_taken_in_once_from_a_run_that_read_it_all() {
    let shard = names(1, 3);
    let attempt = ReadLog::new();
    let run = |names: &[SegmentName]| {
        let log = ReadLog::new();
        names.iter().for_each(|name| log.add_segment(name.table, name.digest()));
        take_in_shard(&scan(&shard), 4, &log, &attempt)
    };
    run(&shard[..1]).unwrap_err();
    assert!(attempt.by_table().is_empty());
    run(&shard).unwrap();
    run(&shard).unwrap();
    assert_eq!(attempt.by_table()[&TableId(1)].segments, 3);
}

/// A step of one of four nodes.
#[derive(Clone, Debug)]
enum Step {
    Read {
        node: usize,
        table: u64,
        digest: u64,
        rows: u64,
    },
    Tell {
        from: usize,
        to: usize,
    },
    /// Something old arrives late, or again.
    TellAgain {
        index: usize,
        to: usize,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_usize, 0..3_u64, any::<u64>(), 0..1000_u64)
            .prop_map(|(node, table, digest, rows)| Step::Read { node, table, digest, rows }),
        (0..4_usize, 0..4_usize).prop_map(|(from, to)| Step::Tell { from, to }),
        (any::<usize>(), 0..4_usize).prop_map(|(index, to)| Step::TellAgain { index, to }),
    ]
}

proptest! {
    /// However reads are told on, in whatever order, by whatever way and how
    /// often: nobody ever counts one twice, and whoever heard of all of them
    /// has the exact sums.
    #[test]
    fn sums_are_exact_whichever_way_they_came(steps in proptest::collection::vec(any_step(), 0..60)) {
        let nodes: Vec<ReadLog> = (0..4).map(|_| ReadLog::new()).collect();
        let mut seen = [[0_u64; 4]; 4];
        let mut messages: Vec<Vec<TableReads>> = Vec::new();
        let mut exact: BTreeMap<TableId, Reads> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Read { node, table, digest, rows } => {
                    nodes[node].add_segment(TableId(table), digest);
                    nodes[node].add_rows(TableId(table), rows);
                    exact.entry(TableId(table)).or_default().add(Reads { segments: 1, rows, digest });
                }
                Step::Tell { from, to } => {
                    let news = nodes[from].news(&mut seen[from][to]);
                    messages.push(news.clone());
                    nodes[to].take_in(news);
                }
                Step::TellAgain { index, to } if !messages.is_empty() => {
                    nodes[to].take_in(messages[index % messages.len()].clone());
                }
                Step::TellAgain { .. } => {}
            }
        }
        let last = ReadLog::new();
        for node in &nodes {
            last.take_in(node.news(&mut 0));
            for (table, reads) in node.by_table() {
                prop_assert!(reads.segments <= exact[&table].segments && reads.rows <= exact[&table].rows);
            }
        }
        prop_assert_eq!(last.by_table(), exact);
    }
}
