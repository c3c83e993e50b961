//! One worker is much slower than the others, and not dead: what it reads is
//! read a second time elsewhere, and the answer is whole, each row once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shoal_benches::{Client, Cluster};

use crate::fixture::own;

const ROWS: i64 = 1_000_000;
/// How a slow worker runs. It is silent for less than what makes it lost.
const STOPPED: Duration = Duration::from_millis(900);
const RUNNING: Duration = Duration::from_millis(60);

/// Stops a worker most of the time, until it is dropped.
struct Slowed {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Slowed {
    fn new(cluster: &Arc<Cluster>, worker: &'static str) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (cluster, over) = (Arc::clone(cluster), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                cluster.pause(worker).unwrap();
                std::thread::sleep(STOPPED);
                cluster.resume(worker).unwrap();
                std::thread::sleep(RUNNING);
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

async fn make_rows(client: &mut Client) {
    for sql in [
        "CREATE TABLE slow (k BIGINT, v BIGINT, s VARCHAR) WITH (shards = 8, replicas = 3, shard_key = 'k')"
            .to_owned(),
        format!(
            "INSERT INTO slow SELECT value, value % 1000, 'some text that takes room ' || value \
             FROM generate_series(1, {ROWS})"
        ),
        "SET shoal.task_bytes = '64KiB'".to_owned(),
    ] {
        client.update(&sql).await.unwrap();
    }
}

#[test]
fn a_slow_worker_is_overtaken_and_gets_no_work_for_a_while() {
    let cluster = Arc::new(own(4));
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        let sum = "SELECT sum(k * (v - v + 1)) FROM slow WHERE s LIKE '%text%'";
        let scan = "SELECT k FROM slow WHERE s LIKE '%text%'";
        let first = "SELECT k FROM slow WHERE s LIKE '%text%' ORDER BY v DESC, k DESC LIMIT 3";
        for sql in [sum, scan, first] {
            let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
            assert!(plan.contains("streamed from"), "{plan}");
        }
        let slowed = Slowed::new(&cluster, "worker-2");
        let overtaken =
            "SELECT count(*) FROM system.queries WHERE lost LIKE '%worker-2 was overtaken%' AND state = 'finished'";
        let mut turns = 0;
        while client.number(overtaken).await.unwrap() == 0 {
            turns += 1;
            assert!(turns <= 20, "the slow worker was never overtaken");
            match turns % 3 {
                0 => assert_eq!(client.number(sum).await.unwrap(), ROWS * (ROWS + 1) / 2),
                1 => {
                    let batches = client.query(scan).await.unwrap();
                    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
                    assert_eq!(rows as i64, ROWS);
                }
                _ => assert_eq!(client.number(first).await.unwrap(), ROWS - 1),
            }
        }
        let plan = client.text(&format!("EXPLAIN {sum}")).await.unwrap();
        assert!(plan.contains("streamed from") && !plan.contains("worker-2"), "{plan}");
        // Whatever ended it, the answers stay right, and nothing was lost.
        assert_eq!(client.number(sum).await.unwrap(), ROWS * (ROWS + 1) / 2);
        drop(slowed);
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
