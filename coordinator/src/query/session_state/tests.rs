//! Tests of plans: which exchanges they have over four workers. Below are those of
//! what stands where in them.

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider,
};
use shoal_data::shard_store::{Locate, Located};
use shoal_data::{ColumnStatistics, Segment};
use shoal_proto::{ErrorCode, Failure, QueryId, WorkerId};

use super::*;
use crate::catalog::state::tests::{segment, table};
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::{ShardTable, as_meant, explain};

mod limits;
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

/// A table of eight shards with a segment each, two on each worker. No column has a NULL,
/// though each may.
fn provider(made: Table, rows_of_shard: u64, bytes_of_shard: u64) -> Arc<ShardTable> {
    let statistics = vec![ColumnStatistics::default(); made.columns.fields().len()];
    let segments = (0..SHARDS).map(|shard| {
        let columns = statistics.clone().into();
        let on = WORKERS[shard as usize / 2];
        let (rows, bytes) = (rows_of_shard, bytes_of_shard);
        Arc::new(Segment { columns, rows, bytes, ..segment(made.id, shard, on) })
    });
    let mut made = Table { segments: segments.collect(), ..made };
    made.layout.shards = SHARDS;
    made.placement = (0..SHARDS as usize).map(|shard| vec![WorkerId::from(WORKERS[shard / 2])]).collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(made)))))
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

/// How a query is run by four workers, as text.
async fn plan(sql: &str) -> String {
    let tables = [(1, "t", 1_000_000), (2, "u", 1_000_000), (3, "few", 1_000)];
    plan_over(tables.map(|(id, name, rows)| of_numbers(id, name, rows)).to_vec(), &[], sql).await
}

/// The same over these tables, in a session with such settings.
async fn plan_over(tables: Vec<Arc<ShardTable>>, settings: &[(&str, &str)], sql: &str) -> String {
    let channels = Channels::new(tokio::runtime::Handle::current());
    let shards = Arc::new(ShardStore::new(None, Arc::new(Nowhere), channels.clone()));
    let template = StateTemplate::new(Arc::default(), shards, channels, ImportRoots::new(&[]));
    let schema = MemorySchemaProvider::new();
    for table in tables {
        schema.register_table(table.table().name.clone(), table).unwrap();
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("public", Arc::new(schema)).unwrap();
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog("shoal".to_owned(), Arc::new(catalog));
    let mut options = template.options();
    for (name, value) in settings {
        options.set(name, value).unwrap();
    }
    let planning = template.planning(&options, Arc::new(catalogs));
    let logical = planning.state().create_logical_plan(sql).await.unwrap();
    let logical = planning.state().optimize(&as_meant(logical).unwrap()).unwrap();
    let workers = WORKERS.into_iter().map(LiveWorker::named).collect();
    let live = LiveWorkers { workers, ..LiveWorkers::default() };
    let view = View::new(&live, &facts_of(&logical).unwrap(), &BTreeSet::new(), "", 0, PARTITIONS).unwrap();
    let view = Arc::new(view);
    let query = QueryOptions {
        query: QueryId::random(),
        attempt: 1,
        memory_limit_bytes: 1 << 30,
        is_short: false,
        settings: Vec::new(),
    };
    let planned = planning.physical(&logical, &view, &query, false, None, Joins::ByRoom).await.unwrap();
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
async fn rows_that_are_hashed_by_a_part_of_the_groups_do_not_move_again() {
    // One exchange for each side of the join, and none for its groups.
    check("SELECT t.v, t.k, sum(u.k) FROM t JOIN u ON t.v = u.v GROUP BY t.v, t.k", (2, 0)).await;
}

#[tokio::test]
async fn rows_that_are_not_in_a_set_without_nulls_stay_where_they_are() {
    for sql in [
        "SELECT v FROM t WHERE k NOT IN (SELECT k FROM u)",
        "SELECT k, v, sum(s) FROM t WHERE k NOT IN (SELECT k FROM u WHERE s > 3) GROUP BY k, v",
    ] {
        let plan = plan(sql).await;
        assert!(plan.contains("Anti") && !plan.contains("null_aware"), "{sql}\n{plan}");
        check(sql, (0, 0)).await;
    }
}

#[tokio::test]
async fn a_small_side_whose_rows_are_given_joins_where_it_is() {
    for sql in [
        "SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.k = few.k)",
        "SELECT v FROM few WHERE EXISTS (SELECT 1 FROM t WHERE t.k = few.k AND t.s > 3)",
        "SELECT few.v, t.v FROM few LEFT JOIN t ON t.k = few.k",
        "SELECT few.k, count(t.s) FROM few LEFT JOIN t ON t.k = few.k GROUP BY few.k",
        "SELECT v FROM few WHERE k NOT IN (SELECT k FROM t)",
    ] {
        check(sql, (0, 0)).await;
    }
    // Sharded by another column than that of the join.
    check("SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.v = few.k)", (2, 0)).await;
}
