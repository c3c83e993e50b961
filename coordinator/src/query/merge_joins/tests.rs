//! Tests of which joins are merged, where, and that they give the same rows.

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::TableProvider;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::UnboundedMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::PartitionMode;
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};
use shoal_data::{Segment, Table};
use shoal_proto::query_pool::sort_kept_bytes;
use shoal_proto::{QueryPool, TableId};

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};
use crate::query::ShardTable;
use crate::query::told::Told;
use crate::query::yielding::YieldInJoins;
use crate::sql::ShoalConfig;

const MIB: u64 = 1 << 20;

fn context(room: JoinRoom, batch_rows: usize, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let mut config = SessionConfig::new()
        .with_target_partitions(2)
        .with_batch_size(batch_rows)
        .with_option_extension(ShoalConfig::default())
        .with_option_extension(room);
    // As the engine has them for shards that meet where they are.
    config.options_mut().optimizer.preserve_file_partitions = 1;
    config.options_mut().execution.sort_spill_reservation_bytes = sort_kept_bytes(8 * MIB);
    let mut rules = MergeLargeJoins::among(PhysicalOptimizer::new().rules);
    rules.push(Arc::new(YieldInJoins));
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_physical_optimizer_rules(rules)
        .build();
    SessionContext::new_with_state(state)
}

fn room(joins: Joins, bytes: u64, tasks_max: usize) -> JoinRoom {
    let task_bytes = ShoalConfig::default().task_bytes as u64;
    JoinRoom { joins, bytes, tasks_max, task_bytes }
}

async fn plan_of(context: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
    context.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
}

fn text(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(false).to_string()
}

#[test]
fn the_rule_has_its_place() {
    let rules = MergeLargeJoins::among(PhysicalOptimizer::new().rules);
    let place = |name: &str| rules.iter().position(|rule| rule.name() == name);
    let own = place("merge_large_joins").unwrap();
    assert_eq!(place(AFTER), Some(own - 1), "DataFusion has no rule `{AFTER}` any more");
}

#[test]
fn the_largest_go_until_the_rest_fits() {
    let check = |sizes: &[(u64, bool)], room: u64, expected: &[usize]| {
        let sizes: Vec<Size> = sizes.iter().map(|&(bytes, can_merge)| Size { bytes, can_merge }).collect();
        assert_eq!(outgrown(&sizes, room), expected.iter().copied().collect(), "{sizes:?} in {room}");
    };
    check(&[], 0, &[]);
    check(&[(5, true)], 5, &[]);
    check(&[(6, true)], 5, &[0]);
    check(&[(4, true), (9, true), (3, true)], 8, &[1]);
    check(&[(4, true), (9, true), (3, true)], 3, &[0, 1]);
    // One that must be hashed takes its room all the same.
    check(&[(4, true), (9, false), (3, true)], 12, &[0]);
    check(&[(4, true), (9, false), (3, true)], 8, &[0, 2]);
    check(&[(u64::MAX, true), (u64::MAX, true), (1, true)], 1, &[0, 1]);
}

/// Tables of shards: each of 8 shards by `a`, with so many rows.
const TABLES: [(&str, u64); 3] = [("big", 10_000_000), ("large", 2_000_000), ("small", 80)];

fn shard_table(id: u64, name: &str, shards: u32, rows: u64) -> Arc<dyn TableProvider> {
    let id = TableId(id);
    let columns = Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
        Field::new("w", DataType::Int64, true),
    ]));
    let rows = rows / u64::from(shards);
    let mut made = Table { columns, ..table(id, name) };
    made.layout.shards = shards;
    made.placement = (0..shards).map(|_| vec!["w1".into()]).collect();
    made.segments = (0..shards)
        .map(|shard| Arc::new(Segment { rows, bytes: rows * 40, ..segment(id, shard, "w1") }))
        .collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(made)))))
}

fn shards(room: JoinRoom) -> SessionContext {
    let context = context(room, 8192, Arc::default());
    for (id, (name, rows)) in (1..).zip(TABLES) {
        context.register_table(name, shard_table(id, name, 8, rows)).unwrap();
    }
    context
}

/// The operators of a plan, those in it in parentheses; without those that only choose columns or
/// give way.
fn shape(plan: &Arc<dyn ExecutionPlan>) -> String {
    let inputs: Vec<String> = plan.children().into_iter().map(shape).collect();
    let inputs = inputs.join(", ");
    match plan.is::<ProjectionExec>() || plan.is::<CooperativeExec>() {
        true => inputs,
        false if inputs.is_empty() => plan.name().to_owned(),
        false => format!("{}({inputs})", plan.name()),
    }
}

#[tokio::test]
async fn shards_that_meet_are_merged_where_they_are() {
    let sql = "SELECT x.v, y.v FROM big x JOIN large y ON x.a = y.a";
    let hashed = plan_of(&shards(room(Joins::Hashed, 0, 1)), sql).await;
    assert_eq!(shape(&hashed), "HashJoinExec(DataSourceExec, DataSourceExec)", "{}", text(&hashed));
    let merged = plan_of(&shards(room(Joins::ByRoom, 0, 1)), sql).await;
    assert_eq!(
        shape(&merged),
        "SortMergeJoinExec(SortExec(DataSourceExec), SortExec(DataSourceExec))",
        "{}",
        text(&merged)
    );
    let gives_way = merged.exists(|node| {
        let below = node.children();
        Ok(node.is::<CooperativeExec>() && below.iter().all(|child| child.is::<SortMergeJoinExec>()))
    });
    assert!(gives_way.unwrap(), "{}", text(&merged));
}

#[tokio::test]
async fn what_is_not_sharded_alike_is_exchanged_and_sorted() {
    let sql = "SELECT x.a, y.a FROM big x JOIN large y ON x.v = y.v";
    let merged = plan_of(&shards(room(Joins::ByRoom, 0, 1)), sql).await;
    assert_eq!(
        shape(&merged),
        "SortMergeJoinExec(SortExec(RepartitionExec(DataSourceExec)), SortExec(RepartitionExec(DataSourceExec)))",
        "{}",
        text(&merged)
    );
}

#[tokio::test]
async fn only_what_is_not_expected_to_fit_is_merged() {
    let is_merged = async |sql: &str, bytes, tasks_max| {
        let plan = plan_of(&shards(room(Joins::ByRoom, bytes, tasks_max)), sql).await;
        let text = text(&plan);
        assert_ne!(text.contains("SortMergeJoinExec"), text.contains("HashJoinExec"), "{text}");
        text.contains("SortMergeJoinExec")
    };
    // 2,000,000 rows of 16 bytes, and what a hash table takes: 96 MB, over the tasks of four workers.
    let large = "SELECT x.v, y.v FROM big x JOIN large y ON x.a = y.a";
    assert!(is_merged(large, 90_000_000, 1).await);
    assert!(!is_merged(large, 100_000_000, 1).await);
    assert!(!is_merged(large, 90_000_000, 4).await);
    assert!(is_merged(large, 20_000_000, 4).await);
    // Few rows stay hashed, though there is little room, and whichever side they are.
    for sql in [
        "SELECT x.v, y.v FROM big x JOIN small y ON x.v = y.v",
        "SELECT x.v, y.v FROM small x JOIN big y ON x.v = y.v",
    ] {
        assert!(!is_merged(sql, MIB, 1).await, "{sql}");
    }
}

#[tokio::test]
async fn an_array_of_all_numbers_between_the_keys_takes_room_however_few_rows_there_are() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("t", DataType::Utf8, true),
    ]));
    let bytes_of = async |sql: &str, number_max: Option<i64>, threshold: usize| {
        let context = context(room(Joins::Hashed, 0, 1), 8192, Arc::default());
        for name in ["x", "y"] {
            let rows = MemTable::try_new(Arc::clone(&schema), vec![Vec::new()]).unwrap();
            let told = Told { rows, distinct: Precision::Absent, number_max };
            context.register_table(name, Arc::new(told)).unwrap();
        }
        let plan = plan_of(&context, sql).await;
        let mut config = ConfigOptions::new();
        config.execution.perfect_hash_join_small_build_threshold = threshold;
        let mut found = Vec::new();
        plan.apply(|node| {
            if let Some(join) = node.downcast_ref::<HashJoinExec>() {
                let partitions = match join.partition_mode() {
                    PartitionMode::CollectLeft => 1,
                    PartitionMode::Partitioned | PartitionMode::Auto => 2,
                };
                let bytes = build_bytes(join, room(Joins::Hashed, 0, 1), &config).unwrap();
                found.push(bytes / partitions);
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
        assert_eq!(found.len(), 1, "{}", text(&plan));
        found[0]
    };
    let by_number = "SELECT * FROM x JOIN y ON x.k = y.k";
    assert_eq!(bytes_of(by_number, Some(99_999), 100_000).await, 400_000);
    // By hash from there on, where nobody knows, and for other keys.
    assert_eq!(bytes_of(by_number, Some(99_999), 99_999).await, 0);
    assert_eq!(bytes_of(by_number, None, 100_000).await, 0);
    assert_eq!(bytes_of("SELECT * FROM x JOIN y ON x.t = y.t", Some(99_999), 100_000).await, 0);
    assert_eq!(bytes_of("SELECT * FROM x JOIN y ON x.k = y.k AND x.t = y.t", Some(9), 100_000).await, 0);
}

#[tokio::test]
async fn joins_without_an_equality_and_plans_without_a_room_stay() {
    let sql = "SELECT count(*) FROM small x JOIN small y ON x.a < y.a";
    let plan = plan_of(&shards(room(Joins::Merged, 0, 1)), sql).await;
    assert!(text(&plan).contains("NestedLoopJoinExec"), "{}", text(&plan));
    let sql = "SELECT x.v, y.v FROM big x JOIN large y ON x.a = y.a";
    let plan = plan_of(&shards(room(Joins::Hashed, 0, 1)), sql).await;
    let unchanged = MergeLargeJoins.optimize(Arc::clone(&plan), &ConfigOptions::new()).unwrap();
    assert_eq!(text(&plan), text(&unchanged));
    assert!(has_mergeable(&plan).unwrap());
    let merged = plan_of(&shards(room(Joins::Merged, 0, 1)), sql).await;
    assert!(!has_mergeable(&merged).unwrap(), "{}", text(&merged));
}

/// Rows of a table in memory, in two partitions and small batches: keys with nulls, one of them
/// far more often than the others.
fn rows_in_memory(rows: i64, keys: i64, batch_rows: usize) -> Arc<MemTable> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("t", DataType::Utf8, true),
        Field::new("v", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
    ]));
    let key = |row: i64| match row {
        row if row % 11 == 3 => None,
        row if row % 3 == 0 => Some(0),
        row => Some(row % keys),
    };
    let numbers: Vec<i64> = (0..rows).collect();
    let batches = numbers.chunks(batch_rows).map(|rows| {
        let keys = || rows.iter().map(|row| key(*row));
        let columns: [Arc<dyn arrow::array::Array>; 4] = [
            Arc::new(keys().collect::<Int64Array>()),
            Arc::new(keys().map(|key| key.map(|key| format!("text {key}"))).collect::<StringArray>()),
            Arc::new(rows.iter().map(|row| (row % 7 != 2).then_some(row % 10)).collect::<Int64Array>()),
            Arc::new(keys().map(|key| key.map(|key| key as f64)).collect::<Float64Array>()),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns.to_vec()).unwrap()
    });
    let (first, second) = batches.enumerate().partition::<Vec<_>, _>(|(number, _)| number % 2 == 0);
    let partition =
        |batches: Vec<(usize, RecordBatch)>| batches.into_iter().map(|(_, batch)| batch).collect();
    Arc::new(MemTable::try_new(Arc::clone(&schema), vec![partition(first), partition(second)]).unwrap())
}

/// Rows as text, in an order of their own.
async fn rows_of(context: &SessionContext, sql: &str) -> (String, Vec<String>) {
    let plan = plan_of(context, sql).await;
    let batches = collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
    let table = pretty_format_batches(&batches).unwrap().to_string();
    let mut rows: Vec<String> = table.lines().map(str::to_owned).collect();
    rows.sort_unstable();
    (text(&plan), rows)
}

/// Each with whether it is merged where that is wanted.
const QUERIES: [(&str, bool); 24] = [
    ("SELECT x.k, x.v, y.k, y.v FROM x JOIN y ON x.k = y.k", true),
    ("SELECT y.v, x.t FROM x JOIN y ON x.t = y.t", true),
    ("SELECT x.k, x.v, y.v FROM x JOIN y ON x.k = y.k AND x.t = y.t", true),
    ("SELECT x.k, y.v FROM x JOIN y ON x.k + 1 = y.k", true),
    ("SELECT x.k, x.v, y.k, y.v FROM x JOIN y ON x.k IS NOT DISTINCT FROM y.k", true),
    ("SELECT x.k, x.v, y.k, y.v FROM x LEFT JOIN y ON x.k = y.k", true),
    ("SELECT x.k, x.v, y.k, y.v FROM x RIGHT JOIN y ON x.k = y.k", true),
    ("SELECT x.k, x.v, y.k, y.v FROM x FULL JOIN y ON x.k = y.k", true),
    ("SELECT x.k, x.v, y.k, y.v FROM x FULL JOIN y ON x.k = y.k AND x.v = y.v", true),
    ("SELECT y.k, y.v, x.v FROM y LEFT JOIN x ON x.k = y.k AND x.v > 3", true),
    // Both columns of the filter are not given: it must not look at others.
    ("SELECT x.k, y.t FROM x JOIN y ON x.k = y.k AND x.v > y.v", true),
    ("SELECT y.k FROM y JOIN x ON x.k = y.k AND x.v + y.v > 9", true),
    ("SELECT v FROM x WHERE EXISTS (SELECT 1 FROM y WHERE y.k = x.k)", true),
    ("SELECT v FROM y WHERE k IN (SELECT k FROM x)", true),
    ("SELECT v, t FROM x WHERE EXISTS (SELECT 1 FROM y WHERE y.k = x.k AND y.v > x.v)", true),
    ("SELECT v, t FROM y WHERE EXISTS (SELECT 1 FROM x WHERE y.k = x.k AND y.v <> x.v)", true),
    ("SELECT v FROM x WHERE NOT EXISTS (SELECT 1 FROM y WHERE y.k = x.k)", true),
    ("SELECT v, k FROM y WHERE NOT EXISTS (SELECT 1 FROM x WHERE y.k = x.k AND x.v > y.v + 2)", true),
    ("SELECT v FROM x WHERE EXISTS (SELECT 1 FROM y WHERE y.k = x.k) OR v = 3", true),
    ("SELECT v FROM y WHERE EXISTS (SELECT 1 FROM x WHERE y.k = x.k) OR v = 3", true),
    // What a merge may give wrong.
    ("SELECT x.k, x.v, y.v FROM x LEFT JOIN y ON x.k = y.k AND x.v < y.v", false),
    ("SELECT x.k, x.v, y.v FROM x FULL JOIN y ON x.k = y.k AND x.v < y.v", false),
    ("SELECT v FROM x WHERE k NOT IN (SELECT k FROM y)", false),
    ("SELECT x.v, y.v FROM x JOIN y ON x.f = y.f", false),
];

#[tokio::test]
async fn merges_give_what_hash_joins_give() {
    // Groups of a key that end with a batch, and those that go over several.
    for batch_rows in [2, 7, 64] {
        let tables = [("x", rows_in_memory(300, 17, batch_rows)), ("y", rows_in_memory(190, 23, batch_rows))];
        let with = |joins| {
            let context = context(room(joins, 0, 1), batch_rows, Arc::default());
            for (name, table) in &tables {
                context.register_table(*name, Arc::<MemTable>::clone(table)).unwrap();
            }
            context
        };
        let (hashed, merged) = (with(Joins::Hashed), with(Joins::Merged));
        for (sql, is_merged) in QUERIES {
            let (plan, expected) = rows_of(&hashed, sql).await;
            assert!(plan.contains("HashJoinExec") && !plan.contains("SortMergeJoinExec"), "{sql}\n{plan}");
            let (plan, rows) = rows_of(&merged, sql).await;
            assert_eq!(plan.contains("SortMergeJoinExec"), is_merged, "{sql}\n{plan}");
            assert_eq!(plan.contains("HashJoinExec"), !is_merged, "{sql}\n{plan}");
            assert_eq!(rows, expected, "{sql} in batches of {batch_rows}\n{plan}");
        }
    }
}

#[tokio::test]
async fn a_merge_spills_where_a_hash_join_fails() {
    let tables = [("x", rows_with_text(200_000)), ("y", rows_with_text(150_000))];
    let with = |joins| {
        let pool = QueryPool::new(Arc::new(UnboundedMemoryPool::default()), "w1", 8 * MIB);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc().unwrap();
        let context = context(room(joins, 0, 1), 512, runtime);
        for (name, table) in &tables {
            context.register_table(*name, Arc::<MemTable>::clone(table)).unwrap();
        }
        context
    };
    let sql = "SELECT count(*), sum(x.v + y.v), min(x.t), max(y.t) FROM x JOIN y ON x.k = y.k";
    let hashed = with(Joins::Hashed);
    let failed = collect(plan_of(&hashed, sql).await, hashed.task_ctx()).await.unwrap_err().to_string();
    assert!(failed.contains("memory limit of 8.0 MiB") && failed.contains("HashJoinInput"), "{failed}");
    let merged = with(Joins::Merged);
    let plan = plan_of(&merged, sql).await;
    let batches = collect(Arc::clone(&plan), merged.task_ctx()).await.unwrap();
    let expected = "150000   | 22499850000";
    let rows = pretty_format_batches(&batches).unwrap().to_string();
    assert!(rows.contains(expected), "{rows}");
    let mut spills = 0;
    plan.apply(|node| {
        spills += node.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    })
    .unwrap();
    assert!(spills > 0, "{}", text(&plan));
}

/// Rows with one key each and some text, in no order.
fn rows_with_text(rows: i64) -> Arc<MemTable> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, false),
        Field::new("v", DataType::Int64, false),
        Field::new("t", DataType::Utf8, false),
    ]));
    // A number without a common divisor with any of these: each key comes once.
    let keys: Vec<i64> = (0..rows).map(|row| row * 7_919 % rows).collect();
    let batches = keys.chunks(512).map(|keys| {
        let texts = keys.iter().map(|key| Some(format!("a text of some length for each key {key}")));
        let columns: [Arc<dyn arrow::array::Array>; 3] = [
            Arc::new(Int64Array::from(keys.to_vec())),
            Arc::new(Int64Array::from(keys.to_vec())),
            Arc::new(texts.collect::<StringArray>()),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns.to_vec()).unwrap()
    });
    Arc::new(MemTable::try_new(Arc::clone(&schema), vec![batches.collect()]).unwrap())
}
