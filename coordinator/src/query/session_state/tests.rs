//! Tests of plans: which exchanges they have over four workers.

use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider,
};
use datafusion_distributed::{DistributedConfig, DistributedLeafExec};
use shoal_data::shard_store::{Locate, Located};
use shoal_data::{ColumnStatistics, KeyHash, Segment};
use shoal_proto::{ErrorCode, Failure, QueryId, WorkerId};

use super::*;
use crate::catalog::state::tests::{segment, table};
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::{ShardTable, as_meant, explain};

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

fn provider(id: u64, of: &Made) -> Arc<ShardTable> {
    let id = TableId(id);
    let columns = [("k", of.key.clone()), ("v", DataType::Int64), ("s", DataType::Int64)];
    let columns = columns.map(|(name, data_type)| Field::new(name, data_type, true));
    let columns = Arc::new(Schema::new(columns.to_vec()));
    let on = |shard: u32| WORKERS[shard as usize * WORKERS.len() / of.shards as usize];
    let segments = (0..of.shards).map(|shard| {
        let columns = vec![ColumnStatistics::default(); 3].into();
        Arc::new(Segment { columns, rows: of.rows, bytes: of.rows * 100, ..segment(id, shard, on(shard)) })
    });
    let mut made = Table { columns, segments: segments.collect(), ..table(id, of.name) };
    made.layout.shards = of.shards;
    made.layout.shard_key = of.shard_key.iter().map(|key| (*key).to_owned()).collect();
    made.layout.hash = of.hash;
    made.placement = (0..of.shards).map(|shard| vec![WorkerId::from(on(shard))]).collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(made)))))
}

/// How a query is run by four workers in a session with these settings.
async fn planned(sql: &str, set: impl FnOnce(&mut ConfigOptions)) -> (PhysicalPlan, Arc<View>) {
    let channels = Channels::new(tokio::runtime::Handle::current());
    let shards = Arc::new(ShardStore::new(None, Arc::new(Nowhere), channels.clone()));
    let template = StateTemplate::new(Arc::default(), shards, channels, ImportRoots::new(&[]));
    let schema = MemorySchemaProvider::new();
    for (id, of) in (1..).zip(tables()) {
        schema.register_table(of.name.to_owned(), provider(id, &of)).unwrap();
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
    (planned, view)
}

/// The same as text, with the settings of a new session.
async fn plan(sql: &str) -> String {
    let (planned, view) = planned(sql, |_| {}).await;
    explain(&planned.plan, &view, false)
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
}

#[tokio::test]
async fn only_the_side_that_is_not_sharded_by_the_key_of_its_join_moves() {
    for given in ["few", "t"] {
        let (stays, moves) = (format!("{given}.k"), if given == "t" { "u" } else { "t" });
        for sql in [
            format!(
                "SELECT v FROM {given} WHERE NOT EXISTS (SELECT 1 FROM {moves} WHERE {moves}.v = {stays})"
            ),
            format!("SELECT v FROM {given} WHERE EXISTS (SELECT 1 FROM {moves} WHERE {moves}.v = {stays})"),
            format!("SELECT {given}.v, {moves}.s FROM {given} LEFT JOIN {moves} ON {moves}.v = {stays}"),
            format!("SELECT {given}.v, {moves}.s FROM {given} FULL JOIN {moves} ON {moves}.v = {stays}"),
        ] {
            check(&sql, (1, 0)).await;
        }
    }
    // The small side comes to the large one, and its rows are given there.
    for sql in [
        "SELECT s FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.k = few.v)",
        "SELECT s FROM few WHERE EXISTS (SELECT 1 FROM t WHERE t.k = few.v)",
        "SELECT few.s, t.s FROM few LEFT JOIN t ON t.k = few.v",
        "SELECT few.s, t.s FROM few FULL JOIN t ON t.k = few.v",
    ] {
        check(sql, (1, 0)).await;
    }
    // Neither is sharded by what they are joined by.
    check("SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.s = few.v)", (2, 0)).await;
    check("SELECT few.v, t.s FROM few FULL JOIN t ON t.v = few.s", (2, 0)).await;
    check("SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.v = few.k + 1)", (2, 0)).await;
}

#[tokio::test]
async fn inner_joins_move_what_is_not_there() {
    check("SELECT t.s, u.s FROM t JOIN u ON t.k = u.k", (0, 0)).await;
    check("SELECT t.s, u.s FROM t JOIN u ON t.k = u.v", (1, 0)).await;
    check("SELECT t.s, u.s FROM t JOIN u ON t.v = u.k", (1, 0)).await;
    check("SELECT t.s, u.s FROM t JOIN u ON t.v = u.v", (2, 0)).await;
    // Few rows are sent to all tasks, where the large side reads less for them.
    check("SELECT few.s, t.s FROM few JOIN t ON few.k = t.v", (0, 1)).await;
    check("SELECT few.s, t.s FROM few JOIN t ON few.v = t.k", (0, 1)).await;
}

#[tokio::test]
async fn anti_joins_keep_their_partitioning() {
    for sql in [
        "SELECT k, s, count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.v = t.k) GROUP BY k, s",
        "SELECT k, s, count(*) FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.v = few.k) GROUP BY k, s",
    ] {
        check(sql, (1, 0)).await;
    }
    check(
        "SELECT k, s, count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k) GROUP BY k, s",
        (0, 0),
    )
    .await;
}

#[tokio::test]
async fn keys_of_several_columns_meet_in_whichever_order_they_are_written() {
    for on in ["p.k = q.k AND p.v = q.v", "p.v = q.v AND p.k = q.k", "q.v = p.v AND q.k = p.k"] {
        check(&format!("SELECT p.s, q.s FROM pairs p JOIN other_pairs q ON {on}"), (0, 0)).await;
        check(&format!("SELECT p.s, q.s FROM few_pairs p LEFT JOIN pairs q ON {on}"), (0, 0)).await;
    }
    for on in ["p.k = t.s AND p.v = t.v", "p.v = t.v AND p.k = t.s"] {
        check(&format!("SELECT p.s, t.k FROM pairs p JOIN t ON {on}"), (1, 0)).await;
        check(&format!("SELECT p.s, t.k FROM few_pairs p LEFT JOIN t ON {on}"), (1, 0)).await;
    }
    // A part of the key, or its columns in each other's place, say nothing of a shard.
    check("SELECT p.s, q.s FROM pairs p JOIN other_pairs q ON p.k = q.k", (2, 0)).await;
    check("SELECT p.s, q.s FROM pairs p JOIN other_pairs q ON p.k = q.v AND p.v = q.k", (1, 0)).await;
}

#[tokio::test]
async fn shards_that_tasks_cannot_be_dealt_to_are_not_waited_for() {
    // Three tasks read `twelve`, and 8 shards are no multiple of 3 tasks of 2 partitions.
    let sql = "SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM twelve WHERE twelve.v = few.k)";
    let plan = plan(sql).await;
    assert!(plan.contains("3 tasks on"), "{plan}");
    assert_eq!(exchanges(&plan), (2, 0), "{plan}");
    // What else is in the query stays where it is.
    let sql = format!("{sql} AND v IN (SELECT t.v FROM t JOIN u ON t.k = u.k)");
    let plan = self::plan(&sql).await;
    assert!(plan.contains("4 tasks on"), "{plan}");
    assert!(exchanges(&plan).0 <= 4, "{plan}");
}

#[tokio::test]
async fn rows_of_one_text_meet_where_they_are() {
    for sql in [
        "SELECT k, v, sum(s) FROM names GROUP BY k, v",
        "SELECT DISTINCT k FROM names",
        "SELECT a.v, b.v FROM names a JOIN other_names b ON a.k = b.k",
        "SELECT v FROM names a WHERE NOT EXISTS (SELECT 1 FROM other_names b WHERE b.k = a.k)",
        "SELECT a.v, b.v FROM few_names a LEFT JOIN names b ON a.k = b.k",
        "SELECT v FROM few_names WHERE k NOT IN (SELECT k FROM names)",
    ] {
        check(sql, (0, 0)).await;
    }
    // A number as text comes to the shards of text.
    check("SELECT a.v, t.s FROM names a JOIN t ON a.k = CAST(t.v AS VARCHAR)", (1, 0)).await;
    check("SELECT a.v, t.s FROM few_names a LEFT JOIN t ON a.k = CAST(t.v AS VARCHAR)", (1, 0)).await;
    check("SELECT a.v, b.v FROM names a JOIN other_names b ON a.k = upper(b.k)", (1, 0)).await;
}

#[tokio::test]
async fn text_that_was_sharded_as_it_is_stored_moves() {
    check("SELECT k, v, sum(s) FROM old_names GROUP BY k, v", (1, 0)).await;
    check("SELECT a.v, b.v FROM names a JOIN old_names b ON a.k = b.k", (1, 0)).await;
    check("SELECT a.v, b.v FROM old_names a JOIN old_names b ON a.k = b.k", (2, 0)).await;
    check("SELECT a.v, b.v FROM few_names a LEFT JOIN old_names b ON a.k = b.k", (1, 0)).await;
    // Numbers are where they were.
    check("SELECT t.v, o.v FROM t JOIN old_t o ON t.k = o.k", (0, 0)).await;
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
