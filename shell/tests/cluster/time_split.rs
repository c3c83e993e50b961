//! Where EXPLAIN ANALYZE says that the time of a query went: rows that go between
//! tasks are counted, and only those; whichever way a query runs, its parts are told.

use std::time::Duration;

use shoal_benches::tpch_data::{TpchData, data_root};
use shoal_benches::{Client, Cluster};
use shoal_coordinator::query::TimeSplit;
use shoal_data::sample::TpchTable;

use crate::fixture::{in_time, is_distributed, options};

const SCALE: f64 = 0.02;
const SHARDS: u32 = 8;
/// Both sides are dealt out anew: neither is where the other is, or little enough to be
/// sent to all.
const SHUFFLED: [&str; 4] = [
    "SET shoal.task_bytes = 1",
    "SET shoal.colocate = false",
    "SET datafusion.optimizer.hash_join_single_partition_threshold = 0",
    "SET datafusion.optimizer.hash_join_single_partition_threshold_rows = 0",
];
const JOIN: &str = "SELECT count(*), sum(l_quantity) FROM lineitem JOIN orders ON l_orderkey = o_orderkey";

/// Where the time of a query went, and all that was said of it. Each table is there once.
async fn split(client: &mut Client, sql: &str) -> (TimeSplit, String) {
    let text = in_time(client.text(&format!("EXPLAIN ANALYZE {sql}"))).await.unwrap();
    let split: TimeSplit = text.parse().unwrap_or_else(|why| panic!("{why}\n{text}"));
    let elapsed = split.elapsed;
    let parts = elapsed.plan + elapsed.dispatch + elapsed.wait + elapsed.result;
    // Each is cut to a microsecond.
    let cut = elapsed.total.abs_diff(parts);
    assert!(cut <= Duration::from_micros(4), "{cut:?} belong to no part, or to two: {text}");
    assert!(elapsed.plan > Duration::ZERO, "it was not planned: {text}");
    assert_eq!(text.matches("where the time went").count(), 1, "{text}");
    (split, text)
}

/// Loads `lineitem` and `orders`; how many rows each has.
async fn load(client: &mut Client, data: &TpchData) -> [u64; 2] {
    let mut rows = [0; 2];
    for (table, rows) in [TpchTable::Lineitem, TpchTable::Orders].into_iter().zip(&mut rows) {
        client.update(&table.create_statement(SHARDS, None)).await.unwrap();
        *rows = client.update(&data.copy_statement(table)).await.unwrap().try_into().unwrap();
    }
    rows
}

async fn check_join(cluster: &Cluster, [lineitem, orders]: [u64; 2]) {
    let mut client = cluster.connect().await.unwrap();
    for set in SHUFFLED {
        client.update(set).await.unwrap();
    }
    let (split, text) = split(&mut client, JOIN).await;
    assert!(is_distributed(&text) && text.contains("NetworkShuffleExec from stage"), "{text}");
    let exchange = split.work.exchange.expect(&text);
    // What the tasks then send to the coordinator is not in it.
    assert_eq!(exchange.rows, lineitem + orders, "{text}");
    assert!(exchange.bytes > 0, "no rows went from process to process: {text}");
    assert!(exchange.encode > Duration::ZERO && exchange.decode > Duration::ZERO, "{text}");
    let collected = split.work.collected.expect(&text);
    assert!(collected.rows > 0 && collected.rows < orders && collected.bytes > 0, "{text}");
    assert_eq!(split.work.scan.rows, lineitem + orders, "{text}");
    assert!(split.work.scan.bytes > 0, "{text}");
    assert!(split.work.scan.time > Duration::ZERO && split.work.compute > Duration::ZERO, "{text}");
    assert!(split.elapsed.dispatch > Duration::ZERO, "nobody saw a task begin: {text}");
    let answer = client.number("SELECT count(*) FROM lineitem JOIN orders ON l_orderkey = o_orderkey").await;
    assert_eq!(answer.unwrap().unsigned_abs(), lineitem);
}

async fn check_without_exchange(cluster: &Cluster, lineitem: u64) {
    let mut client = cluster.connect().await.unwrap();
    // One call to one worker.
    let (split_of_whole, text) = split(&mut client, "SELECT * FROM orders WHERE o_orderkey = 7").await;
    assert!(text.contains("┌─ Whole plan ── on worker-"), "{text}");
    assert_eq!(split_of_whole.work.exchange, None, "{text}");
    assert_eq!(split_of_whole.work.collected.expect(&text).rows, 1, "{text}");
    assert!(split_of_whole.work.scan.time > Duration::ZERO, "{text}");
    assert!(split_of_whole.elapsed.dispatch > Duration::ZERO, "{text}");

    // A stream for each shard: of few rows, that the coordinator adds up, and of all.
    client.update("SET shoal.task_bytes = 1").await.unwrap();
    for (sql, rows_min) in [
        ("SELECT sum(l_quantity) FROM lineitem", 1),
        ("SELECT l_orderkey, l_comment FROM lineitem", lineitem),
    ] {
        let (split, text) = split(&mut client, sql).await;
        assert!(text.contains("one per shard"), "{sql}: {text}");
        assert_eq!(split.work.exchange, None, "{sql}: {text}");
        let collected = split.work.collected.expect(&text);
        assert!(collected.rows >= rows_min && collected.bytes > 0, "{sql}: {text}");
        assert!(collected.encode > Duration::ZERO && collected.decode > Duration::ZERO, "{sql}: {text}");
        assert_eq!(split.work.scan.rows, lineitem, "{sql}: {text}");
        assert!(split.work.scan.time > Duration::ZERO, "{sql}: {text}");
        assert!(split.elapsed.dispatch > Duration::ZERO, "{sql}: {text}");
    }

    // No worker at all.
    let (split, text) = split(&mut client, "SELECT count(*) FROM system.workers").await;
    assert_eq!((split.work.exchange, split.work.collected), (None, None), "{text}");
    assert_eq!(split.elapsed.dispatch, Duration::ZERO, "{text}");
}

fn check(workers: usize) {
    let data = TpchData::ensure(&data_root(), SCALE).unwrap();
    let mut options = options(workers);
    options.import_roots = vec![data.dir().to_owned()];
    let cluster = Cluster::start(&options).unwrap();
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        let rows = load(&mut client, &data).await;
        check_join(&cluster, rows).await;
        check_without_exchange(&cluster, rows[0]).await;
    });
}

#[test]
fn only_rows_that_go_between_tasks_are_exchanged_on_two_workers() {
    check(2);
}

#[test]
fn only_rows_that_go_between_tasks_are_exchanged_on_four_workers() {
    check(4);
}
