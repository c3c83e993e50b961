//! Queries that end every worker which runs them. There are always workers
//! left, as they are started again at once: it is the attempts that are
//! counted, and not the workers that run out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use shoal_benches::{Client, Cluster};

use crate::fixture::{Obedient, is_distributed, options};

const ROWS: i64 = 100_000;
const SHARDS: usize = 8;
const WORKERS: usize = 4;
/// As `query::retry` has it.
const ATTEMPTS_MAX: usize = 6;
/// How long the query may go on, on a slow machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(90);

/// Starts workers again that have ended, until it is dropped.
struct Revival {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Revival {
    fn of(obedient: &Arc<Obedient>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (obedient, over) = (Arc::clone(obedient), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let cluster = &obedient.cluster;
            while !over.load(Ordering::Relaxed) {
                for worker in obedient.workers() {
                    if cluster.pid(&worker).is_err() || cluster.crashed().contains(&worker) {
                        // It may end again before it is seen to listen: then
                        // it is started once more.
                        let _ended_again = cluster.restart(&worker);
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Revival {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn obedient() -> Arc<Obedient> {
    Arc::new(Obedient::start(options(WORKERS)))
}

async fn make_rows(cluster: &Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    for sql in [
        format!(
            "CREATE TABLE poisoned (k BIGINT, v BIGINT) \
             WITH (shards = {SHARDS}, replicas = 3, shard_key = 'k')"
        ),
        format!("INSERT INTO poisoned SELECT value, value % 10 FROM generate_series(1, {ROWS})"),
        "SET shoal.task_bytes = 1".to_owned(),
    ] {
        client.update(&sql).await.unwrap();
    }
    client
}

/// Runs a query each of whose tasks ends its worker, while workers that ended
/// come back; what the client is told.
async fn poisoned(obedient: &Arc<Obedient>, client: &mut Client, sql: &str) -> String {
    obedient.order("* task.batch kill\n");
    let revival = Revival::of(obedient);
    let asked = tokio::time::timeout(STOPPED_WITHIN, client.query(sql)).await;
    obedient.order("");
    let outcome = asked.unwrap_or_else(|_| panic!("it goes on and on, after {STOPPED_WITHIN:?}: {sql}"));
    let message = outcome.unwrap_err().message;
    obedient.cluster.wait_until_joined(WORKERS).unwrap();
    drop(revival);
    message
}

/// What the cluster remembers of the query that failed: its attempts, and what
/// was lost.
async fn remembered(client: &mut Client, sql: &str) -> (usize, String) {
    let of_query = format!("FROM system.queries WHERE state = 'failed' AND sql = '{sql}'");
    let attempts = client.number(&format!("SELECT attempts {of_query}")).await.unwrap();
    let lost = client.text(&format!("SELECT lost {of_query}")).await.unwrap();
    (usize::try_from(attempts).unwrap(), lost)
}

fn check_message(message: &str) {
    assert!(message.contains(&format!("after {ATTEMPTS_MAX} attempts: attempt 1 lost worker-")), "{message}");
    assert!(message.contains("it may be the query that ends them"), "{message}");
}

#[test]
fn a_query_that_ends_all_workers_is_stopped_though_they_come_back() {
    let obedient = obedient();
    let _logs = obedient.cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = make_rows(&obedient.cluster).await;
        let sql = "SELECT v, sum(shoal_step(k)) AS s FROM poisoned GROUP BY v";
        let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(is_distributed(&plan) && !plan.contains("streamed from"), "{plan}");
        let message = poisoned(&obedient, &mut client, sql).await;
        check_message(&message);
        let (attempts, lost) = remembered(&mut client, sql).await;
        assert!((2..=ATTEMPTS_MAX).contains(&attempts), "{attempts} attempts: {lost}");
        // What it did harms nobody afterwards.
        assert_eq!(client.number("SELECT count(*) FROM poisoned WHERE v >= 0").await.unwrap(), ROWS);
    });
}

#[test]
fn a_scan_that_ends_all_workers_is_stopped_though_they_come_back() {
    let obedient = obedient();
    let _logs = obedient.cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = make_rows(&obedient.cluster).await;
        let sql = "SELECT sum(shoal_step(k)) FROM poisoned";
        let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(plan.contains("streamed from"), "{plan}");
        let message = poisoned(&obedient, &mut client, sql).await;
        check_message(&message);
        // Each shard is tried by itself. To try the query anew after that would
        // end many workers more.
        let (attempts, lost) = remembered(&mut client, sql).await;
        for shard in 0..SHARDS {
            let tries = lost.matches(&format!("shard {shard} at row")).count();
            assert!(tries <= ATTEMPTS_MAX, "{tries} tries at shard {shard}, {attempts} attempts: {lost}");
        }
        assert!(attempts <= ATTEMPTS_MAX, "{attempts} attempts: {lost}");
        assert_eq!(client.number("SELECT count(*) FROM poisoned WHERE v >= 0").await.unwrap(), ROWS);
    });
}
