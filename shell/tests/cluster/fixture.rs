//! Clusters that tests share, one for each number of workers, which end with
//! this process; and those that a test has for itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Cluster, ClusterOptions, Oracle, Program};
use shoal_proto::fault::FILE_VARIABLE;

/// How long something that must happen may take on a machine that does other
/// things.
const HAPPENS_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a query may take, with all that is done to it. Without an end a
/// defect would hold a test up and not fail it.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// What a node's log has for each order that it obeys.
const OBEYED: &str = "a fault was ordered";

static ONE: OnceLock<Cluster> = OnceLock::new();
static TWO: OnceLock<Cluster> = OnceLock::new();
static FOUR: OnceLock<Cluster> = OnceLock::new();

/// The binary under test.
pub(crate) fn program() -> Program {
    Program::shoal(env!("CARGO_BIN_EXE_shoal"))
}

/// Options of a cluster that a test has for itself.
pub(crate) fn options(workers: usize) -> ClusterOptions {
    ClusterOptions::new(program(), workers)
}

/// A cluster that a test has for itself.
pub(crate) fn own(workers: usize) -> Cluster {
    Cluster::start(&options(workers)).unwrap()
}

/// The cluster of 1, 2 or 4 workers that tests share. Whoever uses it leaves
/// its nodes running, and drops the tables that it makes.
pub(crate) fn shared(workers: usize) -> &'static Cluster {
    let cell = match workers {
        1 => &ONE,
        2 => &TWO,
        4 => &FOUR,
        other => panic!("no shared cluster has {other} workers"),
    };
    cell.get_or_init(|| own(workers))
}

/// Whether a plan has a stage of two tasks or more.
pub(crate) fn is_distributed(explained: &str) -> bool {
    explained
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.strip_prefix("┌─ Stage ")?.split_once(" ── ")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
        })
        .any(|tasks| tasks >= 2)
}

/// A cluster that a test has for itself. Its processes obey orders at the steps
/// of `shoal_proto::fault`, and know the function `shoal_step`, which is one.
pub(crate) struct Obedient {
    pub(crate) cluster: Cluster,
    orders: PathBuf,
    _dir: tempfile::TempDir,
}

impl Obedient {
    pub(crate) fn start(mut options: ClusterOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let orders = dir.path().join("orders");
        options.env.push((FILE_VARIABLE.to_owned(), orders.display().to_string()));
        options.env.push(("SHOAL_FAULT_FUNCTIONS".to_owned(), "1".to_owned()));
        Self { cluster: Cluster::start(&options).unwrap(), orders, _dir: dir }
    }

    /// Names of all workers, in order.
    pub(crate) fn workers(&self) -> Vec<String> {
        self.cluster.worker_names()
    }

    /// Gives orders in place of those before; none lets all go on.
    pub(crate) fn order(&self, orders: &str) {
        // In one go: who stands still looks all the time, and must not see half
        // of it.
        let next = self.orders.with_extension("next");
        std::fs::write(&next, orders).unwrap();
        std::fs::rename(next, &self.orders).unwrap();
    }

    /// Blocks the threads of these workers where rows go through `shoal_step`,
    /// and with them whatever else waits for those threads; the other workers
    /// go on.
    pub(crate) fn stall(&self, workers: &[String]) {
        self.order_at_batches(workers, "stall");
    }

    /// Has the tasks of these workers wait where rows go through `shoal_step`.
    /// Everything else goes on, so all workers that have such rows come there.
    pub(crate) fn hold(&self, workers: &[String]) {
        self.order_at_batches(workers, "hold");
    }

    fn order_at_batches(&self, workers: &[String], action: &str) {
        let order = |worker: &String| format!("{} task.batch {action}\n", self.cluster.pid(worker).unwrap());
        self.order(&workers.iter().map(order).collect::<String>());
    }

    /// How often each worker has come to a step at which it had orders.
    pub(crate) fn obeyed(&self) -> BTreeMap<String, usize> {
        let count = |worker: String| {
            let log = std::fs::read(self.cluster.dir().join(format!("{worker}.log"))).unwrap();
            let times = String::from_utf8_lossy(&log).matches(OBEYED).count();
            (worker, times)
        };
        self.workers().into_iter().map(count).collect()
    }

    /// Waits until so many workers have come to such a step since `before`; who
    /// they are, in order.
    pub(crate) async fn wait_until_obeyed(
        &self,
        before: &BTreeMap<String, usize>,
        workers: usize,
    ) -> Vec<String> {
        let since = Instant::now();
        loop {
            let obeyed = self.obeyed().into_iter().filter(|(worker, times)| *times > before[worker]);
            let obeyed: Vec<String> = obeyed.map(|(worker, _)| worker).collect();
            if obeyed.len() >= workers {
                return obeyed;
            }
            assert!(since.elapsed() < HAPPENS_WITHIN, "only {obeyed:?} came so far, and not {workers}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// A session in which the smallest scan is cut into tasks.
pub(crate) async fn session(cluster: &Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    client.update("SET shoal.task_bytes = 1").await.unwrap();
    client
}

/// The same with so much memory for each query on each worker, and batches of so few
/// rows that they are small beside that.
pub(crate) async fn with_memory(cluster: &Cluster, memory: &str, batch_rows: usize) -> Client {
    let mut client = session(cluster).await;
    for sql in [
        format!("SET shoal.query_memory = '{memory}'"),
        format!("SET datafusion.execution.batch_size = {batch_rows}"),
    ] {
        client.update(&sql).await.unwrap();
    }
    client
}

/// Asks both; the answer is what plain DataFusion gives, and comes in time.
pub(crate) async fn check_answer(client: &mut Client, oracle: &Oracle, sql: &str) {
    let expected = oracle.expect(sql, Numbers::Exact).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let answered = in_time(client.query_with_schema(sql)).await;
    let (schema, batches) = answered.unwrap_or_else(|error| panic!("{sql}: {error}"));
    expected.check(&schema, &batches).unwrap_or_else(|difference| panic!("{sql}: {difference}"));
}

/// Waits until this query counts something.
pub(crate) async fn wait_until(client: &mut Client, count: &str) {
    let since = Instant::now();
    while client.number(count).await.unwrap() == 0 {
        assert!(since.elapsed() < HAPPENS_WITHIN, "still nothing: {count}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What a query comes to, if it ends at all.
pub(crate) async fn in_time<T>(query: impl Future<Output = T>) -> T {
    tokio::time::timeout(ENDS_WITHIN, query).await.expect("the query does not end")
}
