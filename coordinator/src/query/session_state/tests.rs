//! Tests of plans: which exchanges they have over four workers. Below are those of
//! what stands where in them.

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider,
};
use datafusion::common::tree_node::TreeNode;
use datafusion_distributed::{DistributedConfig, DistributedLeafExec};
use shoal_data::shard_store::{Locate, Located};
use shoal_data::{ColumnStatistics, KeyHash, Segment, SegmentName};
use shoal_proto::exchange::ExchangeCompression;
use shoal_proto::{ErrorCode, Failure, QueryId, TableId, WorkerId};

use super::*;
use crate::catalog::state::tests::{segment, table};
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::{ShardTable, as_meant, explain};

mod each_task;
mod in_place;
mod limits;
mod rows_stay;
mod scans;
mod tpch;
mod whole_plans;

const SHARDS: u32 = 8;
const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];

/// Nobody is asked for bytes where plans are only made.
#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl Locate for Nowhere {
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure> {
        Err(Failure::new(ErrorCode::NotFound, format!("{name} is nowhere")))
    }
}

/// A table of `k`, `v` and `s`, with so many rows in each shard; no column has a NULL,
/// though each may.
struct Made {
    name: &'static str,
    rows: u64,
    shards: u32,
    shard_key: &'static [&'static str],
    /// The type of `k`.
    key: DataType,
    hash: KeyHash,
}

/// One that is sharded by the number `k`.
fn made(name: &'static str, rows: u64) -> Made {
    let (key, hash) = (DataType::Int64, KeyHash::CURRENT);
    Made { name, rows, shards: SHARDS, shard_key: &["k"], key, hash }
}

/// One that is sharded by the text `k`.
fn of_text(name: &'static str) -> Made {
    Made { key: DataType::Utf8, ..made(name, 1_000_000) }
}

fn tables() -> Vec<Made> {
    vec![
        made("t", 1_000_000),
        made("u", 1_000_000),
        made("few", 1_000),
        made("some", 1_200),
        Made { shards: 12, ..made("twelve", 1_000_000) },
        Made { shard_key: &["k", "v"], ..made("pairs", 1_000_000) },
        Made { shard_key: &["k", "v"], ..made("other_pairs", 1_000_000) },
        Made { shard_key: &["k", "v"], ..made("few_pairs", 1_000) },
        of_text("names"),
        of_text("other_names"),
        Made { rows: 1_000, ..of_text("few_names") },
        Made { hash: KeyHash::DataFusion55, ..of_text("old_names") },
        Made { hash: KeyHash::DataFusion55, ..made("old_t", 1_000_000) },
    ]
}

/// A table of eight shards with a segment each. No column has a NULL, though each may.
fn provider(made: Table, rows_of_shard: u64, bytes_of_shard: u64) -> Arc<ShardTable> {
    let mut made = made;
    made.layout.shards = SHARDS;
    placed(made, rows_of_shard, bytes_of_shard)
}

/// The same with as many shards as it says, spread over the workers in order.
fn placed(made: Table, rows: u64, bytes: u64) -> Arc<ShardTable> {
    let statistics = vec![ColumnStatistics::default(); made.columns.fields().len()];
    let shards = made.layout.shards;
    let on = |shard: u32| WORKERS[shard as usize * WORKERS.len() / shards as usize];
    let segments = (0..shards).map(|shard| {
        let columns = statistics.clone().into();
        Arc::new(Segment { columns, rows, bytes, ..segment(made.id, shard, on(shard)) })
    });
    let mut made = Table { segments: segments.collect(), ..made };
    made.placement = (0..shards).map(|shard| vec![WorkerId::from(on(shard))]).collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(made)))))
}

fn provider_of(id: u64, of: &Made) -> Arc<ShardTable> {
    let columns = [("k", of.key.clone()), ("v", DataType::Int64), ("s", DataType::Int64)];
    let columns = columns.map(|(name, data_type)| Field::new(name, data_type, true));
    let columns = Arc::new(Schema::new(columns.to_vec()));
    let mut made = Table { columns, ..table(TableId(id), of.name) };
    made.layout.shards = of.shards;
    made.layout.shard_key = of.shard_key.iter().map(|key| (*key).to_owned()).collect();
    made.layout.hash = of.hash;
    placed(made, of.rows, of.rows * 100)
}

/// The columns `k`, `v` and `s`.
fn numbers() -> SchemaRef {
    let columns = ["k", "v", "s"].map(|name| Field::new(name, DataType::Int64, true));
    Arc::new(Schema::new(columns.to_vec()))
}

/// A table of `k`, by which it is sharded, `v` and `s`, with so many rows of 100 bytes in
/// each shard.
fn of_numbers(id: u64, name: &str, rows: u64) -> Arc<ShardTable> {
    let mut made = Table { columns: numbers(), ..table(TableId(id), name) };
    made.layout.shard_key = vec!["k".to_owned()];
    provider(made, rows, rows * 100)
}

fn options_of_query() -> QueryOptions {
    QueryOptions {
        query: QueryId::random(),
        attempt: 1,
        memory_limit_bytes: 1 << 30,
        is_short: false,
        compression: ExchangeCompression::default(),
        settings: Vec::new(),
    }
}

#[tokio::test]
async fn sessions_start_from_our_own_defaults() {
    let options = template().options();
    assert_eq!(options.execution.perfect_hash_join_small_build_threshold, 1 << 18);
    assert_eq!(options.execution.max_spill_file_size_bytes.get(), 1);
}

fn template() -> StateTemplate {
    let channels = Channels::new(tokio::runtime::Handle::current());
    let shards = Arc::new(ShardStore::new(None, Arc::new(Nowhere), channels.clone()));
    StateTemplate::new(Arc::default(), shards, channels, ImportRoots::new(&[]))
}

/// How a query is run by four workers in a session with these settings.
async fn planned(sql: &str, set: impl FnOnce(&mut ConfigOptions)) -> (PhysicalPlan, Arc<View>) {
    let tables = (1..).zip(tables()).map(|(id, of)| provider_of(id, &of));
    planned_over(tables.collect(), sql, set).await
}

/// The same over these tables.
async fn planned_over(
    tables: Vec<Arc<ShardTable>>,
    sql: &str,
    set: impl FnOnce(&mut ConfigOptions),
) -> (PhysicalPlan, Arc<View>) {
    let (planning, logical) = optimised_over(tables, sql, set).await;
    let view = view_of(&logical, &WORKERS);
    let planned =
        planning.physical(&logical, &view, &options_of_query(), false, None, Joins::ByRoom).await.unwrap();
    (planned, view)
}

/// An optimised plan, and what it is planned further with.
async fn optimised_over(
    tables: Vec<Arc<ShardTable>>,
    sql: &str,
    set: impl FnOnce(&mut ConfigOptions),
) -> (Planning, LogicalPlan) {
    let template = template();
    let schema = MemorySchemaProvider::new();
    for table in tables {
        schema.register_table(table.table().name.clone(), table).unwrap();
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("public", Arc::new(schema)).unwrap();
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog("shoal".to_owned(), Arc::new(catalog));
    let mut options = template.options();
    set(&mut options);
    let planning = template.planning(&options, Arc::new(catalogs));
    let logical = planning.state().create_logical_plan(sql).await.unwrap();
    let logical = planning.state().optimize(&as_meant(logical).unwrap()).unwrap();
    (planning, logical)
}

/// What an attempt at a plan sees of these workers.
fn view_of(logical: &LogicalPlan, workers: &[&str]) -> Arc<View> {
    let workers = workers.iter().map(|name| LiveWorker::named(*name)).collect();
    let live = LiveWorkers { workers, ..LiveWorkers::default() };
    let view = View::new(&live, &facts_of(logical).unwrap(), &BTreeSet::new(), "", 0, PARTITIONS).unwrap();
    Arc::new(view)
}

/// The same as text, with the settings of a new session.
async fn plan(sql: &str) -> String {
    let (planned, view) = planned(sql, |_| {}).await;
    explain(&planned.plan, &view, false)
}

/// The same over these tables, in a session with such settings.
async fn plan_over(tables: Vec<Arc<ShardTable>>, settings: &[(&str, &str)], sql: &str) -> String {
    let set = |options: &mut ConfigOptions| {
        settings.iter().for_each(|(name, value)| options.set(name, value).unwrap());
    };
    let (planned, view) = planned_over(tables, sql, set).await;
    explain(&planned.plan, &view, false)
}

/// The stages of a plan, each with its title and its operators; the coordinator's first.
fn stages(plan: &str) -> Vec<&str> {
    plan.split("┌─ ").skip(1).collect()
}

/// The stage that has an operator in which this stands. There is one.
fn stage_of<'a>(plan: &'a str, operator: &str) -> &'a str {
    let having: Vec<&str> = stages(plan).into_iter().filter(|stage| stage.contains(operator)).collect();
    let [stage] = having.as_slice() else {
        panic!("{} stages have `{operator}`, and not one:\n{plan}", having.len());
    };
    stage
}

/// The scan of a table, as it stands in a plan. There is one.
fn scan_of<'a>(plan: &'a str, table: &str) -> &'a str {
    let table = format!("table={table},");
    let scans: Vec<&str> = plan.lines().filter(|line| line.contains(&table)).collect();
    let [scan] = scans.as_slice() else {
        panic!("{} scans of {table} and not one:\n{plan}", scans.len());
    };
    scan
}

/// Exchanges by hash and to all tasks.
fn exchanges(plan: &str) -> (usize, usize) {
    let lines = |name: &str| plan.lines().filter(|line| line.contains(name)).count();
    (lines("NetworkShuffleExec from"), lines("NetworkBroadcastExec from"))
}

async fn check(sql: &str, expected: (usize, usize)) {
    let plan = plan(sql).await;
    assert!(plan.contains("4 tasks on"), "{sql}\n{plan}");
    assert_eq!(exchanges(&plan), expected, "{sql}\n{plan}");
}

#[tokio::test]
async fn groups_by_more_than_the_shard_key_are_made_where_they_are() {
    for sql in [
        "SELECT k, v, sum(s) FROM t GROUP BY k, v",
        "SELECT v, k, count(DISTINCT s) FROM t GROUP BY v, k",
        "SELECT DISTINCT v, k FROM t",
        "SELECT k, v, row_number() OVER (PARTITION BY k, v ORDER BY s) FROM t",
        "SELECT t.k, t.v, sum(u.v) FROM t JOIN u ON t.k = u.k GROUP BY t.k, t.v",
        // By the other side's key.
        "SELECT u.k, t.v, sum(u.v) FROM t JOIN u ON t.k = u.k GROUP BY u.k, t.v",
    ] {
        check(sql, (0, 0)).await;
    }
}

#[tokio::test]
async fn groups_that_are_in_several_tasks_are_put_together() {
    check("SELECT v, s, sum(k) FROM t GROUP BY v, s", (1, 0)).await;
    check("SELECT DISTINCT v, s FROM t", (1, 0)).await;
    check("SELECT k + 1 AS l, v, count(*) FROM t GROUP BY l, v", (1, 0)).await;
    check("SELECT v, row_number() OVER (PARTITION BY v ORDER BY k) FROM t", (1, 0)).await;
    // Rows of one key are in one task, but not those of no key.
    check("SELECT k, v, count(*) FROM t GROUP BY ROLLUP (k, v)", (1, 0)).await;
    check("SELECT u.k, t.v, count(*) FROM t LEFT JOIN u ON t.k = u.k GROUP BY u.k, t.v", (1, 0)).await;
}

#[tokio::test]
async fn rows_that_are_hashed_by_a_part_of_the_groups_do_not_move_again() {
    // One exchange for each side of the join, and none for its groups.
    check("SELECT t.v, t.k, sum(u.k) FROM t JOIN u ON t.v = u.v GROUP BY t.v, t.k", (2, 0)).await;
}

#[tokio::test]
async fn windows_over_the_shard_key_and_more_are_computed_where_rows_are() {
    let over = |function: &str, window: &str| format!("SELECT k, v, {function} OVER ({window}) FROM t");
    for function in ["sum(s)", "rank()"] {
        for keys in ["k", "k, v", "v, k", "s, v, k"] {
            check(&over(function, &format!("PARTITION BY {keys} ORDER BY s")), (0, 0)).await;
        }
        // Rows of one partition are in many shards.
        for keys in ["v", "v, s", "k + 1", "k % 10, v"] {
            check(&over(function, &format!("PARTITION BY {keys} ORDER BY k")), (1, 0)).await;
        }
    }
    let grouped = "SELECT k, v, sum(sum(s)) OVER (PARTITION BY v, k) FROM t GROUP BY k, v";
    check(grouped, (0, 0)).await;
    let joined = "SELECT rank() OVER (PARTITION BY u.v, u.k ORDER BY t.s) FROM t JOIN u ON t.k = u.k";
    check(joined, (0, 0)).await;
}

#[tokio::test]
async fn a_join_of_shards_has_no_filter_that_goes_by_partition() {
    // Such a filter finds the partition whose keys it asks by the hash of the row, as an exchange deals rows:
    // the partition of a task in which the shard is has another number.
    let shards = plan("SELECT t.v, u.s FROM t JOIN u ON t.k = u.k").await;
    assert!(shards.contains("mode=Partitioned"), "{shards}");
    assert!(!shards.contains("DynamicFilter"), "{shards}");
    assert_eq!(exchanges(&shards), (0, 0), "{shards}");
    // That of a side which each task has whole is the same for all rows.
    let collected = plan("SELECT t.s FROM t JOIN few ON t.v = few.k").await;
    assert!(collected.contains("mode=CollectLeft"), "{collected}");
    assert!(collected.contains("DynamicFilter"), "{collected}");
}

#[tokio::test]
async fn shards_of_two_tables_are_not_taken_for_those_of_one() {
    let sql = "SELECT k, count(*) FROM (SELECT k FROM t UNION ALL SELECT k FROM u) GROUP BY k";
    let (planned, view) = planned(sql, |options| options.optimizer.prefer_existing_union = false).await;
    let plan = explain(&planned.plan, &view, false);
    assert!(!plan.contains("InterleaveExec"), "{plan}");
    assert_eq!(exchanges(&plan), (1, 0), "{plan}");
}

#[tokio::test]
async fn a_union_says_in_how_many_tasks_its_children_run() {
    // The guard reads it there, also of children that read other stages only.
    let plan = plan("SELECT v FROM t GROUP BY v UNION ALL SELECT v FROM u GROUP BY v").await;
    assert!(
        plan.contains("DistributedUnionExec: t0:[c0(0/2)] t1:[c0(1/2)] t2:[c1(0/2)] t3:[c1(1/2)]"),
        "{plan}"
    );
    assert_eq!(exchanges(&plan), (2, 0), "{plan}");
}

#[tokio::test]
async fn plans_are_fixed_and_tasks_have_partitions() {
    let (planned, _view) = planned("SELECT v, count(*) FROM t GROUP BY v", |options| {
        DistributedConfig::from_config_options_mut(options).unwrap().dynamic_task_count = true;
    })
    .await;
    // Its adaptive mode may wait for ever.
    assert!(!DistributedConfig::from_task_context(&planned.context).unwrap().dynamic_task_count);
    // With one partition in a task an operator takes the rows of the task for all rows.
    let mut partitions = Vec::new();
    let walked = planned.plan.apply(|node| {
        let leaf = node.downcast_ref::<DistributedLeafExec>();
        let tasks = leaf.into_iter().flat_map(DistributedLeafExec::variants);
        partitions.extend(tasks.map(|task| task.output_partitioning().partition_count()));
        Ok(TreeNodeRecursion::Continue)
    });
    walked.unwrap();
    assert_eq!(partitions, [2; 4]);
}

#[tokio::test]
async fn some_rows_that_are_joined_are_the_same_in_all_tasks() {
    for (select, joined) in [
        ("t.s FROM", "x JOIN t ON x.k = t.v"),
        ("t.s FROM", "x JOIN t ON x.k < t.v"),
        ("t.s, x.k FROM", "x CROSS JOIN t"),
    ] {
        let sql = |rows| format!("SELECT {select} (SELECT k FROM few {rows}) {joined}");
        // Each task would take the first that come, were they all sent to it: they are put together before.
        for rows in ["", "LIMIT 3", "ORDER BY v LIMIT 3"] {
            let plan = plan(&sql(rows)).await;
            assert_eq!(exchanges(&plan), (0, 1), "{plan}");
            assert!(plan.contains("4 tasks on"), "{plan}");
        }
    }
}
