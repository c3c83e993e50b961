//! Tests of plans: which exchanges they have over four workers.

use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider,
};
use futures::future::BoxFuture;
use shoal_data::shard_store::{Locate, Located};
use shoal_data::{ColumnStatistics, Segment};
use shoal_proto::{ErrorCode, Failure, QueryId, WorkerId};

use super::*;
use crate::catalog::state::tests::{segment, table};
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::planned_reads::PlannedReads;
use crate::query::rows_stay::staying;
use crate::query::{LastTasks, ShardTable, Stay, TakesRows, as_meant, explain};

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

/// A table of `k`, by which it is sharded, `v` and `s`, with so many rows in each shard;
/// no column has a NULL, though each may.
fn provider(id: u64, name: &str, rows: u64) -> Arc<ShardTable> {
    let id = TableId(id);
    let columns = ["k", "v", "s"].map(|name| Field::new(name, DataType::Int64, true));
    let columns = Arc::new(Schema::new(columns.to_vec()));
    let segments = (0..SHARDS).map(|shard| {
        let on = WORKERS[shard as usize / 2];
        let columns = vec![ColumnStatistics::default(); 3].into();
        Arc::new(Segment { columns, rows, bytes: rows * 100, ..segment(id, shard, on) })
    });
    let mut made = Table { columns, segments: segments.collect(), ..table(id, name) };
    made.layout.shards = SHARDS;
    made.layout.shard_key = vec!["k".to_owned()];
    made.placement = (0..SHARDS as usize).map(|shard| vec![WorkerId::from(WORKERS[shard / 2])]).collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(made)))))
}

/// How a query is run by four workers.
async fn physical(sql: &str) -> (Arc<dyn ExecutionPlan>, Arc<View>, QueryOptions) {
    let channels = Channels::new(tokio::runtime::Handle::current());
    let shards = Arc::new(ShardStore::new(None, Arc::new(Nowhere), channels.clone()));
    let template = StateTemplate::new(Arc::default(), shards, channels, ImportRoots::new(&[]));
    let schema = MemorySchemaProvider::new();
    for (id, name, rows) in [(1, "t", 1_000_000), (2, "u", 1_000_000), (3, "few", 1_000)] {
        schema.register_table(name.to_owned(), provider(id, name, rows)).unwrap();
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("public", Arc::new(schema)).unwrap();
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog("shoal".to_owned(), Arc::new(catalog));
    let planning = template.planning(&template.options(), Arc::new(catalogs));
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
    (planned.plan, view, query)
}

/// The same as text.
async fn plan(sql: &str) -> String {
    let (plan, view, _) = physical(sql).await;
    explain(&plan, &view, false)
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

/// Takes no rows of a plan that is only made.
struct Nobody;

impl TakesRows for Nobody {
    fn begin(&self) -> bool {
        true
    }

    fn take(self: Arc<Self>, _: LastTasks) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(std::future::pending())
    }
}

/// The plan of a query that reads so many bytes at least, where its rows stay on workers.
async fn stays(sql: &str, bytes_min: u64) -> Option<Arc<dyn ExecutionPlan>> {
    let (plan, _, query) = physical(sql).await;
    staying(&plan, &Stay { taker: Arc::new(Nobody), bytes_min }, &query).unwrap()
}

#[tokio::test]
async fn rows_stay_where_the_coordinator_would_only_gather_them() {
    for sql in [
        "SELECT k, v FROM t",
        "SELECT v + 1, s FROM t WHERE s > 3",
        "SELECT k, sum(v) FROM t GROUP BY k",
        "SELECT v, sum(k) FROM t GROUP BY v",
        "SELECT t.v, u.s FROM t JOIN u ON t.k = u.k",
        "SELECT t.v, u.s FROM t JOIN u ON t.k = u.v",
        "SELECT k FROM t UNION ALL SELECT v FROM u",
        // Whole, on one worker, whatever it does.
        "SELECT v FROM few",
        "SELECT v FROM few ORDER BY k LIMIT 3",
    ] {
        let plan = stays(sql, 1).await.unwrap_or_else(|| panic!("rows do not stay: {sql}"));
        // All of it must still be read.
        let planned = PlannedReads::of(&plan).unwrap();
        let (before, _, _) = physical(sql).await;
        assert_eq!(planned.segments(), PlannedReads::of(&before).unwrap().segments(), "{sql}");
        assert!(planned.segments() > 0, "{sql}");
    }
    let plan = stays("SELECT k, v FROM t", 1).await.unwrap();
    let unread = PlannedReads::of(&plan).unwrap().check(&BTreeMap::new(), |table| table.0.to_string());
    assert!(unread.unwrap_err().message.contains("only 0 were read"));
}

#[tokio::test]
async fn rows_of_which_the_coordinator_makes_others_come_to_it() {
    for sql in [
        "SELECT k, v FROM t ORDER BY k",
        "SELECT k, v FROM t LIMIT 10",
        "SELECT sum(v) FROM t",
        "SELECT k, row_number() OVER (ORDER BY v) FROM t",
        "SELECT 1 AS one",
    ] {
        assert!(stays(sql, 1).await.is_none(), "{sql}");
    }
    for sql in ["SELECT k, v FROM t", "SELECT v FROM few"] {
        assert!(stays(sql, 1 << 40).await.is_none(), "too little is read: {sql}");
    }
}
