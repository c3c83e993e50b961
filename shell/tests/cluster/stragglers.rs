//! One worker is much slower than the others, and not dead: what it reads is
//! read a second time elsewhere, not more often than may be, and the answer is
//! whole, each row once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shoal_benches::{Client, Cluster};

use crate::fixture::own;

const ROWS: i64 = 1_000_000;
const SHARDS: usize = 8;
/// Queries of one kind until the slow worker is overtaken in one of them.
const TURNS_MAX: usize = 20;
/// Second runs that may have been saved up, and what each first run adds, as
/// `cluster::outliers` has them.
const SECOND_RUNS_MAX: f64 = 16.0;
const SECOND_RUNS_PER_RUN: f64 = 0.1;
/// Queries while most workers are slow: many more second runs than may be.
const TURNS_AMONG_SLOW: usize = 20;

/// How slow workers run: stopped for so long, then running for so long. They
/// are silent for less than what makes them lost.
#[derive(Clone, Copy)]
struct Pace {
    stopped: Duration,
    running: Duration,
}

const VERY_SLOW: Pace = Pace { stopped: Duration::from_millis(900), running: Duration::from_millis(60) };
const SLOW: Pace = Pace { stopped: Duration::from_millis(250), running: Duration::from_millis(60) };

/// Stops workers most of the time, until it is dropped.
struct Slowed {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Slowed {
    fn new(cluster: &Arc<Cluster>, workers: Vec<String>, pace: Pace) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (cluster, over) = (Arc::clone(cluster), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                workers.iter().for_each(|worker| cluster.pause(worker).unwrap());
                std::thread::sleep(pace.stopped);
                workers.iter().for_each(|worker| cluster.resume(worker).unwrap());
                std::thread::sleep(pace.running);
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

/// A query of each kind that is read shard by shard.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Scan,
    Aggregate,
    First,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Scan, Self::Aggregate, Self::First];

    fn sql(self) -> &'static str {
        match self {
            Self::Scan => "SELECT k FROM slow WHERE s LIKE '%text%'",
            Self::Aggregate => "SELECT sum(k * (v - v + 1)) FROM slow WHERE s LIKE '%text%'",
            Self::First => "SELECT k FROM slow WHERE s LIKE '%text%' ORDER BY v DESC, k DESC LIMIT 3",
        }
    }

    /// Asks once; the answer is right.
    async fn ask(self, client: &mut Client) {
        let asked = async {
            match self {
                Self::Scan => {
                    let batches = client.query(self.sql()).await.unwrap();
                    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
                    assert_eq!(rows as i64, ROWS);
                }
                Self::Aggregate => {
                    assert_eq!(client.number(self.sql()).await.unwrap(), ROWS * (ROWS + 1) / 2);
                }
                Self::First => assert_eq!(client.number(self.sql()).await.unwrap(), ROWS - 1),
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(60), asked).await;
        answered.unwrap_or_else(|_| panic!("{self:?}: no answer"));
    }

    /// The workers that its shards would be read on now.
    async fn readers(self, client: &mut Client) -> Vec<String> {
        let plan = client.text(&format!("EXPLAIN {}", self.sql())).await.unwrap();
        assert!(plan.contains("streamed from"), "{plan}");
        workers().into_iter().filter(|worker| plan.contains(worker.as_str())).collect()
    }

    /// How many queries of this kind ended well in which the worker was
    /// overtaken.
    async fn overtaken(self, client: &mut Client, worker: &str) -> i64 {
        let sql = format!(
            "SELECT count(*) FROM system.queries WHERE lost LIKE '%{worker} was overtaken%' \
             AND state = 'finished' AND sql = '{}'",
            self.sql().replace('\'', "''")
        );
        client.number(&sql).await.unwrap()
    }
}

fn workers() -> Vec<String> {
    (1..=4).map(|number| format!("worker-{number}")).collect()
}

async fn make_rows(client: &mut Client) {
    for sql in [
        format!(
            "CREATE TABLE slow (k BIGINT, v BIGINT, s VARCHAR) \
             WITH (shards = {SHARDS}, replicas = 3, shard_key = 'k')"
        ),
        format!(
            "INSERT INTO slow SELECT value, value % 1000, 'some text that takes room ' || value \
             FROM generate_series(1, {ROWS})"
        ),
        "SET shoal.task_bytes = '64KiB'".to_owned(),
    ] {
        client.update(&sql).await.unwrap();
    }
}

/// Of all that was read since the start of the cluster, by so many queries,
/// only a small share was read a second time.
fn check_second_runs(cluster: &Cluster, asked: usize) {
    let log = std::fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
    let again = log.matches("shard begins a second time").count();
    // A run that fails and begins elsewhere is a first one there, too.
    let first = SHARDS * asked + log.matches("stream of a shard failed").count();
    let may = SECOND_RUNS_MAX + SECOND_RUNS_PER_RUN * first as f64;
    assert!(again as f64 <= may, "{again} second runs of {first}: more than {may}");
}

#[test]
fn a_slow_worker_is_overtaken_and_gets_no_work_for_a_while() {
    let cluster = Arc::new(own(4));
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        let mut asked = 0;
        for kind in Kind::ALL {
            // Those that were slow before get no work yet.
            let readers = kind.readers(&mut client).await;
            let slow = readers[0].clone();
            let slowed = Slowed::new(&cluster, vec![slow.clone()], VERY_SLOW);
            let mut turns = 0;
            while kind.overtaken(&mut client, &slow).await == 0
                || kind.readers(&mut client).await.contains(&slow)
            {
                turns += 1;
                assert!(turns <= TURNS_MAX, "{kind:?}: {slow} was never overtaken and left out");
                asked += 1;
                kind.ask(&mut client).await;
            }
            drop(slowed);
        }
        check_second_runs(&cluster, asked);

        // Where most are slow, some slow one always has work.
        let fast = Kind::Aggregate.readers(&mut client).await[0].clone();
        let mut slow = workers();
        slow.retain(|worker| *worker != fast);
        let slowed = Slowed::new(&cluster, slow, SLOW);
        for _ in 0..TURNS_AMONG_SLOW {
            asked += 1;
            Kind::Aggregate.ask(&mut client).await;
            check_second_runs(&cluster, asked);
        }
        drop(slowed);
        // Whatever was read twice, the answers stay right.
        for kind in Kind::ALL {
            kind.ask(&mut client).await;
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
