//! kill -9 of every process at random moments of a load: after a restart
//! every acknowledged row is there, once, and no half of a write. What is dead
//! is known to be at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_benches::{Client, Cluster};

use crate::fixture::own;

/// Rows of one write.
const ROWS: i64 = 2_000;
/// Kills of one run.
const KILLS: usize = 8;
/// Writes that are tried at most.
const WRITES_MAX: i64 = 5_000;
/// How often a write is sent again before the test gives up.
const RESENDS_MAX: usize = 200;
/// Less than a worker may be silent: only its broken connection tells so soon.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// From `SHOAL_TEST_SEED`, or a new one; printed, to run again.
fn seed() -> u64 {
    let seed =
        std::env::var("SHOAL_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        });
    eprintln!("SHOAL_TEST_SEED={seed}");
    seed
}

#[test]
fn acknowledged_rows_survive_kills_of_every_process() {
    let mut random = StdRng::seed_from_u64(seed());
    let cluster = own(3);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        client
            .update("CREATE TABLE loaded (write BIGINT NOT NULL, n BIGINT NOT NULL) WITH (shards = 6, replicas = 3, shard_key = 'n')")
            .await
            .unwrap();
    });
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, url) = (Arc::clone(&stop), cluster.url());
        move || tokio::runtime::Runtime::new().unwrap().block_on(load(&url, &stop))
    });
    let mut names = cluster.node_names();
    for round in 0..KILLS {
        std::thread::sleep(Duration::from_millis(random.random_range(50..700)));
        // Every process is killed alone in turn, the last time all at once.
        let killed =
            if round + 1 == KILLS { names.clone() } else { vec![names[round % names.len()].clone()] };
        eprintln!("round {round}: kill {}", killed.join(", "));
        for name in &killed {
            cluster.kill(name).unwrap();
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
        for name in &killed {
            cluster.restart(name).unwrap();
        }
        cluster.wait_until_joined(3).unwrap();
        names.rotate_left(1);
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap();
    cluster.wait_until_joined(3).unwrap();
    runtime.block_on(check(&cluster, &acknowledged));
}

/// Writes until it is stopped; each write is sent again, under its id, until
/// it is acknowledged.
async fn load(url: &str, stop: &AtomicBool) -> BTreeSet<i64> {
    let mut acknowledged = BTreeSet::new();
    let mut resends = 0;
    for write in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut sent = 0;
        while let Err(error) = write_once(url, write).await {
            sent += 1;
            resends += 1;
            assert!(sent < RESENDS_MAX, "write {write} fails again and again: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        acknowledged.insert(write);
    }
    eprintln!("{} writes acknowledged, {resends} sent again", acknowledged.len());
    acknowledged
}

async fn write_once(url: &str, write: i64) -> Result<(), String> {
    let attempt = async {
        let mut client = Client::connect(url).await?;
        client.flight().set_header("shoal-write-id", format!("load-{write}"));
        let first = write * ROWS;
        let last = first + ROWS - 1;
        client
            .update(&format!(
                "INSERT INTO loaded SELECT {write}, value FROM generate_series({first}, {last})"
            ))
            .await
    };
    match tokio::time::timeout(Duration::from_secs(30), attempt).await {
        Err(_) => Err("no answer within 30 s".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(ROWS)) => Ok(()),
        Ok(Ok(rows)) => panic!("write {write}: {rows} rows acknowledged instead of {ROWS}"),
    }
}

async fn check(cluster: &Cluster, acknowledged: &BTreeSet<i64>) {
    assert!(!acknowledged.is_empty(), "nothing was acknowledged");
    let mut client = cluster.connect().await.unwrap();
    let halves = client
        .number(&format!(
            "SELECT count(*) FROM (SELECT write FROM loaded GROUP BY write \
             HAVING count(*) <> {ROWS} OR count(DISTINCT n) <> {ROWS} OR min(n) <> write * {ROWS})"
        ))
        .await
        .unwrap();
    assert_eq!(halves, 0, "writes that are there in part or twice");
    let writes = client.number("SELECT count(DISTINCT write) FROM loaded").await.unwrap();
    let expected = i64::try_from(acknowledged.len()).unwrap();
    assert_eq!(writes, expected, "every write was acknowledged in the end");
    let rows = client.number("SELECT count(*) FROM loaded").await.unwrap();
    assert_eq!(rows, expected * ROWS);
}

#[test]
fn a_cluster_that_is_stopped_and_started_has_its_tables_views_and_rows() {
    let cluster = own(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for sql in [
            "CREATE SCHEMA kept",
            "CREATE TABLE kept.t (k INT NOT NULL, s VARCHAR) WITH (shards = 4, shard_key = 'k', sort_key = 'k')",
            "INSERT INTO kept.t VALUES (1, 'one'), (2, 'two'), (3, NULL)",
            "CREATE VIEW kept.v AS SELECT count(*) AS n FROM kept.t",
        ] {
            client.update(sql).await.unwrap();
        }
    });
    for name in cluster.node_names() {
        let status = cluster.terminate(&name, Duration::from_secs(15)).unwrap();
        assert!(status.success(), "{name} ended with {status}");
    }
    for name in cluster.node_names() {
        cluster.restart(&name).unwrap();
    }
    cluster.wait_until_joined(2).unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        assert_eq!(client.number("SELECT n FROM kept.v").await.unwrap(), 3);
        assert_eq!(client.number("SELECT sum(k) FROM kept.t WHERE s IS NOT NULL").await.unwrap(), 3);
        let workers = client.number("SELECT count(*) FROM system.workers").await.unwrap();
        assert_eq!(workers, 2, "workers keep their names");
        client.update("INSERT INTO kept.t VALUES (4, 'four')").await.unwrap();
        assert_eq!(client.number("SELECT n FROM kept.v").await.unwrap(), 4);
    });
}

#[test]
fn a_killed_worker_is_known_at_once() {
    let cluster = own(2);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        let of_worker = "FROM system.workers WHERE worker = 'worker-2'";
        for times in 1..=2 {
            assert_eq!(client.text(&format!("SELECT state {of_worker}")).await.unwrap().trim(), "live");
            let since = Instant::now();
            cluster.kill("worker-2").unwrap();
            while client.text(&format!("SELECT state {of_worker}")).await.unwrap().trim() != "lost" {
                assert!(since.elapsed() < 10 * KNOWN_WITHIN, "never known");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let known_after = since.elapsed();
            assert!(known_after < KNOWN_WITHIN, "known after {known_after:?}");
            assert_eq!(client.number(&format!("SELECT times_lost {of_worker}")).await.unwrap(), times);
            cluster.restart("worker-2").unwrap();
            cluster.wait_until_joined(2).unwrap();
        }
        let log = std::fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
        assert_eq!(log.matches("worker is lost: its connection broke").count(), 2, "{log}");
    });
}

#[test]
fn a_write_that_is_sent_twice_is_written_once() {
    let cluster = crate::fixture::shared(2);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        client.update("CREATE TABLE twice (k INT NOT NULL)").await.unwrap();
        client.flight().set_header("shoal-write-id", "only-once");
        for _ in 0..3 {
            let rows = client.update("INSERT INTO twice VALUES (1), (2)").await.unwrap();
            assert_eq!(rows, 2);
        }
        assert_eq!(client.number("SELECT count(*) FROM twice").await.unwrap(), 2);
        let mut other = cluster.connect().await.unwrap();
        other.update("DROP TABLE twice").await.unwrap();
    });
}
