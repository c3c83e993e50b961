//! Workers that beat and do not compute, and plans that end worker after
//! worker: the first are done without, the second are stopped.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use serde_json::Value;
use shoal_benches::Client;

use crate::fixture::{Obedient, in_time, is_distributed, options, session, wait_until};

const ROWS: i64 = 100_000;
const SUM: i64 = ROWS * (ROWS + 1) / 2;

async fn make_rows(client: &mut Client, table: &str, shards: u32) {
    for sql in [
        format!(
            "CREATE TABLE {table} (k BIGINT, v BIGINT) \
             WITH (shards = {shards}, replicas = 3, shard_key = 'k')"
        ),
        format!("INSERT INTO {table} SELECT value, value % 10 FROM generate_series(1, {ROWS})"),
    ] {
        client.update(&sql).await.unwrap();
    }
}

/// A sum that takes an exchange, and is [`SUM`].
fn exchanged(table: &str) -> String {
    format!("SELECT sum(s) FROM (SELECT v, sum(shoal_step(k)) AS s FROM {table} GROUP BY v)")
}

/// The numbers that a query gives, and its certificate.
async fn certified(client: &mut Client, sql: &str) -> (Vec<i64>, Value) {
    let info = client.flight().execute(sql.to_owned(), None).await.unwrap();
    let query: Value = serde_json::from_slice(&info.app_metadata).unwrap();
    let (_, batches) = client.fetch(info).await.unwrap();
    let numbers =
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
    let numbers: Vec<i64> = numbers.collect();
    let id = query["query_id"].as_str().unwrap();
    let certificate = client.action("shoal.certificate", id.into()).await.unwrap();
    (numbers, serde_json::from_slice(&certificate).unwrap())
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn a_worker_whose_tasks_do_not_move_is_done_without() {
    let obedient = Obedient::start(options(4));
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = session(cluster).await;
        for table in ["still", "dropped"] {
            make_rows(&mut client, table, 8).await;
        }
        let stalled = exchanged("dropped");
        let plan = client.text(&format!("EXPLAIN {stalled}")).await.unwrap();
        assert!(is_distributed(&plan), "{plan}");
        let before = obedient.obeyed();
        obedient.stall(&["worker-3".to_owned()]);
        let asked = tokio::spawn({
            let (mut asking, sql) = (session(cluster).await, stalled.clone());
            async move { in_time(certified(&mut asking, &sql)).await }
        });
        obedient.wait_until_obeyed(&before, 1).await;
        // It stands still. What becomes of its table meanwhile is not its
        // business: the next attempt reads what the first one read.
        let mut other = cluster.connect().await.unwrap();
        assert_eq!(other.update("INSERT INTO dropped VALUES (1000000, 1)").await.unwrap(), 1);
        other.update("DROP TABLE dropped").await.unwrap();
        other.query("SELECT k FROM dropped").await.unwrap_err();
        let attempts =
            format!("SELECT attempts FROM system.queries WHERE state = 'running' AND sql = '{stalled}'");
        assert_eq!(client.number(&attempts).await.unwrap(), 1, "the next attempt was faster than this test");

        let (numbers, certificate) = asked.await.unwrap();
        assert_eq!(numbers, [SUM]);
        assert_eq!(certificate["attempts"], 2, "{certificate}");
        let lost = texts(&certificate["lost"]);
        let has_not_moved = "attempt 1: worker-3: its task has not moved";
        assert!(lost.len() == 1 && lost[0].starts_with(has_not_moved), "{certificate}");
        let workers = texts(&certificate["workers"]);
        assert!(!workers.is_empty() && !workers.contains(&"worker-3"), "{certificate}");
        let told = format!(
            "SELECT count(*) FROM system.queries WHERE state = 'finished' AND sql = '{stalled}' \
             AND attempts = 2 AND lost LIKE '{has_not_moved}%'"
        );
        assert_eq!(client.number(&told).await.unwrap(), 1);

        // It beats all the while.
        cluster.wait_until_joined(4).unwrap();
        // It gets no work for a while, so nobody waits for it again.
        let shards = "SELECT sum(shoal_step(k)) FROM still";
        assert_eq!(in_time(client.number(shards)).await.unwrap(), SUM);
        obedient.order("");
        assert_eq!(in_time(client.number(&exchanged("still"))).await.unwrap(), SUM);
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn what_stands_still_on_one_worker_is_run_on_another_and_says_so() {
    let obedient = Obedient::start(options(4));
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        // Of one shard, no other is there that could tell that it is behind.
        make_rows(&mut client, "one_shard", 1).await;
        let whole = "SELECT v, sum(shoal_step(k)) FROM one_shard GROUP BY v";
        let plan = client.text(&format!("EXPLAIN {whole}")).await.unwrap();
        assert!(plan.contains("Whole plan ── on worker-"), "{plan}");
        let mut streaming = session(cluster).await;
        let streamed = "SELECT sum(shoal_step(k)) FROM one_shard";
        let plan = streaming.text(&format!("EXPLAIN {streamed}")).await.unwrap();
        assert!(plan.contains("streamed from worker-"), "{plan}");

        // First all stand still, which shows who runs which query.
        obedient.stall(&obedient.workers());
        let before = obedient.obeyed();
        let mut explaining = cluster.connect().await.unwrap();
        let explained =
            tokio::spawn(async move { in_time(explaining.text(&format!("EXPLAIN ANALYZE {whole}"))).await });
        let of_whole = obedient.wait_until_obeyed(&before, 1).await.remove(0);
        // From now on the next query runs where nothing else does.
        let is_busy =
            format!("SELECT count(*) FROM system.workers WHERE worker = '{of_whole}' AND tasks_running > 0");
        wait_until(&mut client, &is_busy).await;
        let before = obedient.obeyed();
        let summed = tokio::spawn(async move { in_time(streaming.number(streamed)).await });
        let of_streamed = obedient.wait_until_obeyed(&before, 1).await.remove(0);
        assert_ne!(of_whole, of_streamed);
        // Then only those two.
        obedient.stall(&[of_whole.clone(), of_streamed.clone()]);

        let text = explained.await.unwrap().unwrap();
        assert!(text.lines().any(|line| line == "attempts: 2"), "{text}");
        let has_not_moved = format!("lost: attempt 1: {of_whole}: its task has not moved");
        let lost: Vec<&str> = text.lines().filter(|line| line.starts_with("lost: ")).collect();
        assert!(lost.len() == 1 && lost[0].starts_with(&has_not_moved), "{text}");
        assert!(text.contains("on worker-") && !text.contains(&format!("on {of_whole}")), "{text}");

        assert_eq!(summed.await.unwrap().unwrap(), SUM);
        let told = format!(
            "SELECT lost FROM system.queries WHERE state = 'finished' AND sql = '{streamed}' AND attempts = 1"
        );
        let lost = client.text(&told).await.unwrap();
        let has_not_moved = format!("shard 0 at row 0: worker {of_streamed}: its task has not moved");
        assert!(lost.starts_with(&has_not_moved) && !lost.contains("; "), "{lost}");
        obedient.order("");
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_query_that_comes_where_nothing_is_computed_is_run_elsewhere() {
    let obedient = Obedient::start(options(4));
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = session(cluster).await;
        make_rows(&mut client, "one_shard", 1).await;
        make_rows(&mut client, "still", 8).await;
        let before = obedient.obeyed();
        obedient.stall(&obedient.workers());
        let first = tokio::spawn({
            let mut asking = session(cluster).await;
            async move { in_time(asking.number("SELECT sum(shoal_step(k)) FROM one_shard")).await }
        });
        let stands = obedient.wait_until_obeyed(&before, 1).await.remove(0);
        obedient.stall(std::slice::from_ref(&stands));
        // Its tasks are on all workers, and on one of them not one begins.
        let second = exchanged("still");
        assert_eq!(in_time(client.number(&second)).await.unwrap(), SUM);
        let told = format!(
            "SELECT count(*) FROM system.queries WHERE sql = '{second}' AND attempts = 2 \
             AND lost LIKE 'attempt 1: {stands}: its task has not moved%'"
        );
        assert_eq!(client.number(&told).await.unwrap(), 1);
        assert_eq!(first.await.unwrap().unwrap(), SUM);
        obedient.order("");
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
