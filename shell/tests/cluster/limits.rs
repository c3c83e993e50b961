//! Memory, queue and cancelling: a query that asks for too much fails alone,
//! those that must wait say so, what is stopped is freed everywhere, and a
//! worker that has much to do is not taken for dead.

use std::time::{Duration, Instant};

use futures::StreamExt;
use shoal_benches::{Client, Cluster, ClusterOptions};

use crate::fixture::{options, own, shared};

/// How long memory and tasks may stay after a query is gone.
const FREED_WITHIN: Duration = Duration::from_secs(2);
/// How long everything is busy: ten times what a worker may be silent.
const BUSY_FOR: Duration = Duration::from_secs(15);

async fn make_rows(client: &mut Client, table: &str, rows: u64) {
    client
        .update(&format!(
            "CREATE TABLE {table} (k BIGINT, v BIGINT, s VARCHAR) WITH (shards = 8, shard_key = 'k')"
        ))
        .await
        .unwrap();
    client
        .update(&format!(
            "INSERT INTO {table} SELECT value, value % 1000, 'some text that takes room ' || value FROM generate_series(1, {rows})"
        ))
        .await
        .unwrap();
}

/// Waits until no worker runs a task or holds query memory.
async fn expect_freed(client: &mut Client) {
    expect_freed_since(client, Instant::now()).await;
}

/// The same, where what ended the query was at `since`.
async fn expect_freed_since(client: &mut Client, since: Instant) {
    loop {
        let busy = client
            .number("SELECT CAST(sum(tasks_running) + sum(memory_used_bytes) AS BIGINT) FROM system.workers")
            .await
            .unwrap();
        if busy == 0 {
            return;
        }
        // Beats tell it four times a second.
        assert!(
            since.elapsed() < FREED_WITHIN + Duration::from_millis(600),
            "{busy} tasks and bytes are still held"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_query_over_its_memory_fails_alone() {
    let cluster = shared(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "lim_memory", 300_000).await;
        let mut small = cluster.connect().await.unwrap();
        small.update("SET shoal.query_memory = '1MiB'").await.unwrap();
        // So little is not enough for a hash table, nor to sort both sides.
        let sql = "SELECT count(*) FROM lim_memory a JOIN lim_memory b ON a.s = b.s";
        let message = small.query(sql).await.unwrap_err().to_string();
        assert!(message.contains("memory") && message.contains("shoal.query_memory"), "{message}");
        assert_eq!(client.number(sql).await.unwrap(), 300_000);
        // A sort can.
        small.update("SET shoal.query_memory = '64MiB'").await.unwrap();
        let sorted = "SELECT count(*) FROM (SELECT s, row_number() OVER (ORDER BY s) AS n FROM lim_memory) WHERE n > 0";
        assert_eq!(small.number(sorted).await.unwrap(), 300_000);
        expect_freed(&mut client).await;
        client.update("DROP TABLE lim_memory").await.unwrap();
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// Runs for minutes, unless it is stopped.
const ENDLESS: &str = "SELECT count(*) FROM lim_cancel a, lim_cancel b, lim_cancel c WHERE a.v = b.v AND b.v = c.v AND a.k + b.k + c.k > 0";
/// Joins of each row with each: without an equality, and with nothing at all.
const UNEQUAL: &str = "SELECT count(*) FROM lim_cancel a, lim_cancel b WHERE a.s < b.s";
const CROSS: &str = "SELECT count(*), max(a.k * b.v) FROM lim_cancel a, lim_cancel b";
/// Joins that look at all pairs and keep none: without an equality, and with
/// one that says little.
const NOTHING: &str = "SELECT count(*) FROM lim_cancel a, lim_cancel b WHERE a.k + b.k < 0";
const REFUSED: &str =
    "SELECT count(*) FROM lim_cancel a, lim_cancel b WHERE a.v % 2 = b.v % 2 AND a.k + b.k < 0";
/// As long as [`ENDLESS`], and gives rows from the start: one of a hundred that
/// it looks at.
const TRICKLE: &str = "SELECT a.k FROM lim_cancel a, lim_cancel b, lim_cancel c WHERE a.v = b.v AND b.v = c.v AND (a.k / 1000 + b.k / 1000 * 3 + c.k / 1000 * 7) % 100 = 0";

#[test]
fn a_stopped_query_is_freed_everywhere() {
    let cluster = own(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(stop_each_way(&cluster));
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

async fn stop_each_way(cluster: &Cluster) {
    let mut client = cluster.connect().await.unwrap();
    make_rows(&mut client, "lim_cancel", 100_000).await;
    let running = "SELECT id FROM system.queries WHERE state = 'running' AND sql LIKE '%lim_cancel a, lim_cancel b%' AND sql NOT LIKE '%system%'";
    for (way, endless) in [
        ("kill", ENDLESS),
        ("close", ENDLESS),
        ("kill", UNEQUAL),
        ("close", UNEQUAL),
        ("kill", CROSS),
        ("kill", NOTHING),
        ("close", NOTHING),
        ("kill", REFUSED),
    ] {
        let mut victim = cluster.connect().await.unwrap();
        victim.update("SET shoal.task_bytes = 1").await.unwrap();
        let query = tokio::spawn(async move { victim.query(endless).await.map(|_| ()) });
        let since = Instant::now();
        let id = loop {
            let id = client.text(running).await.unwrap_or_default();
            let busy =
                client.number("SELECT CAST(sum(tasks_running) AS BIGINT) FROM system.workers").await.unwrap();
            if !id.trim().is_empty() && busy > 0 {
                break id.trim().to_owned();
            }
            assert!(since.elapsed() < Duration::from_secs(20), "{way}: the query never ran");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        // Some of it is computed, not only begun.
        tokio::time::sleep(Duration::from_millis(700)).await;
        if way == "kill" {
            client.update(&format!("KILL QUERY '{id}'")).await.unwrap();
            let message = query.await.unwrap().unwrap_err().to_string();
            assert!(message.contains("cancelled"), "{message}");
        } else {
            query.abort();
            assert!(query.await.unwrap_err().is_cancelled());
        }
        expect_freed(&mut client).await;
        let state =
            client.text(&format!("SELECT state FROM system.queries WHERE id = '{id}'")).await.unwrap();
        assert!(state.contains("cancelled"), "{way} of {endless}: {state}");
    }
}

/// Waits until a number is as large as that.
async fn wait_for(client: &mut Client, what: &str, wanted: i64) {
    let since = Instant::now();
    while client.number(what).await.unwrap() < wanted {
        assert!(since.elapsed() < Duration::from_secs(30), "not {wanted}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A session whose queries run on all workers, with exchanges between them.
async fn spread(cluster: &Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    for sql in ["SET shoal.task_bytes = 1", "SET shoal.colocate = false"] {
        client.update(sql).await.unwrap();
    }
    client
}

const WORKERS_BUSY: &str = "SELECT count(*) FROM system.workers WHERE tasks_running > 0";

#[test]
fn the_death_of_a_worker_frees_its_query_on_the_others() {
    let cluster = own(4);
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "lim_cancel", 200_000).await;
        for (turn, worker) in (1..).zip(["worker-1", "worker-2"]) {
            fail_by_death(&cluster, &mut client, worker).await;
            let alone = format!(
                "SELECT count(*) FROM system.queries WHERE state = 'failed' AND attempts = 1 AND sql = '{TRICKLE}'"
            );
            assert_eq!(client.number(&alone).await.unwrap(), turn, "nobody stopped it, and it began once");
        }
        retry_after_death(&cluster, &mut client, "worker-3").await;
    });
}

/// A query that has given rows and cannot be tried again loses a worker: that
/// alone ends it, and the others are free soon after.
async fn fail_by_death(cluster: &Cluster, client: &mut Client, worker: &str) {
    let mut victim = spread(cluster).await;
    victim.update("SET shoal.failover = false").await.unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(30), async {
        let mut stream = victim.stream(TRICKLE).await.unwrap();
        let _first = stream.next().await.unwrap().unwrap();
        stream
    });
    let mut stream = asked.await.unwrap();
    let reading = tokio::spawn(async move {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.to_string(),
                None => return "all rows".to_owned(),
            }
        }
    });
    wait_for(client, WORKERS_BUSY, 4).await;
    let others = format!(
        "SELECT CAST(coalesce(sum(memory_used_bytes), 0) AS BIGINT) FROM system.workers WHERE worker <> '{worker}'"
    );
    wait_for(client, &others, 1).await;
    let since = Instant::now();
    cluster.kill(worker).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), reading).await;
    let message = ended.unwrap_or_else(|_| panic!("the query goes on without {worker}")).unwrap();
    assert!(message.contains(worker), "{message}");
    expect_freed_since(client, since).await;
    cluster.restart(worker).unwrap();
    cluster.wait_until_joined(4).unwrap();
}

/// A query that loses a worker before its first row is tried again: when that
/// attempt is stopped, nothing of the first is left either.
async fn retry_after_death(cluster: &Cluster, client: &mut Client, worker: &str) {
    let mut victim = spread(cluster).await;
    let query = tokio::spawn(async move { victim.query(ENDLESS).await.map(|_| ()) });
    wait_for(client, WORKERS_BUSY, 4).await;
    cluster.kill(worker).unwrap();
    // Its next attempt runs on the others, where the first one ran too.
    let again = "FROM system.queries WHERE state = 'running' AND attempts > 1 AND lost IS NOT NULL";
    wait_for(client, &format!("SELECT count(*) {again}"), 1).await;
    let id = client.text(&format!("SELECT id {again}")).await.unwrap();
    client.update(&format!("KILL QUERY '{}'", id.trim())).await.unwrap();
    assert!(query.await.unwrap().is_err());
    expect_freed(client).await;
}

#[test]
fn workers_that_have_more_to_do_than_they_can_are_not_taken_for_lost() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let cluster = Cluster::start(&ClusterOptions { threads, ..options(2) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "lim_cancel", 100_000).await;
        let cpu_before = cluster.cpu_seconds();
        let mut busy = Vec::new();
        for sql in [ENDLESS, UNEQUAL, CROSS, NOTHING] {
            let mut asking = cluster.connect().await.unwrap();
            asking.update("SET shoal.task_bytes = 1").await.unwrap();
            busy.push(tokio::spawn(async move { while asking.query(sql).await.is_ok() {} }));
        }
        let since = Instant::now();
        while since.elapsed() < BUSY_FOR {
            let live = client.live_workers().await.unwrap();
            assert_eq!(live, 2, "after {:?}", since.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let cpu = cluster.cpu_seconds() - cpu_before;
        assert!(cpu > BUSY_FOR.as_secs_f64() / 3.0, "nothing was busy: {cpu} s of CPU time");
        assert!(!busy.iter().any(tokio::task::JoinHandle::is_finished), "a query failed");
        busy.iter().for_each(tokio::task::JoinHandle::abort);
        assert_eq!(client.number("SELECT sum(times_lost) FROM system.workers").await.unwrap(), 0);
        let again = "SELECT count(*) FROM system.queries WHERE attempts > 1";
        assert_eq!(client.number(again).await.unwrap(), 0);
        let log = std::fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
        for alarm in ["worker is suspected", "worker is lost"] {
            let told: Vec<&str> = log.lines().filter(|line| line.contains(alarm)).collect();
            assert!(told.is_empty(), "{}", told.join("\n"));
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn queries_wait_in_order_and_say_so() {
    let mut options = options(1);
    options.coordinator_args = ["--max-queries", "1", "--queue-limit", "1"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(&options).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "lim_cancel", 50_000).await;
        let spawn = |mut client: Client| tokio::spawn(async move { client.query(ENDLESS).await.map(|_| ()) });
        let first = spawn(cluster.connect().await.unwrap());
        let progress = cluster.connect().await.unwrap();
        wait_for_states(&cluster, "running").await;
        let second = spawn(progress);
        wait_for_states(&cluster, "queued").await;
        // The third finds the queue full; what is short waits for none of them.
        let joined = "SELECT count(*) FROM lim_cancel x JOIN lim_cancel y ON x.k = y.k";
        let message = client.query(joined).await.unwrap_err().to_string();
        assert!(message.contains("--queue-limit"), "{message}");
        assert_eq!(client.number("SELECT sum(k / k) FROM lim_cancel").await.unwrap(), 50_000);
        first.abort();
        second.abort();
        let since = Instant::now();
        while client.query(joined).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(10), "the places were not given back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// Waits until a query is in this state. System tables need no place in the
/// queue.
async fn wait_for_states(cluster: &Cluster, state: &str) {
    let since = Instant::now();
    let mut client = cluster.connect().await.unwrap();
    let sql = format!(
        "SELECT count(*) FROM system.queries WHERE state = '{state}' AND sql LIKE '%lim_cancel a%' AND sql NOT LIKE '%system%'"
    );
    while client.number(&sql).await.unwrap() == 0 {
        assert!(since.elapsed() < Duration::from_secs(20), "no query is {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
