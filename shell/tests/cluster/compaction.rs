//! Many small segments of a shard become few, and nobody who asks notices: not
//! while it happens, and whatever happens to the nodes and the table meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use shoal_benches::disk::files_below;
use shoal_benches::{Client, ClientError, Cluster, ClusterOptions};
use shoal_proto::fault::Step;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::fixture::{Obedient, in_time, options, own, session};
use crate::settled::wait_until_settled;

mod killed;
mod optimized;
mod refused;

/// Rows of one write.
const ROWS: i64 = 200;
/// How long something that must happen may take on a machine that does other
/// things: also after a compaction that failed, and is tried again after a minute.
const HAPPENS_WITHIN: Duration = Duration::from_secs(180);
/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// What a node's log has for each order that it obeys.
const OBEYED: &str = "a fault was ordered";
/// By key, by text with nulls, and in no order at all.
const LAYOUTS: [(&str, &str); 3] = [
    ("many", "shards = 2, replicas = 3, shard_key = 'k', sort_key = 'k'"),
    ("by_text", "shards = 2, replicas = 3, shard_key = 'w', sort_key = 's, k'"),
    ("dealt", "shards = 3, replicas = 3"),
];

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

/// A cluster of three workers that compacts nothing unless it is asked.
fn when_asked(coordinators: usize) -> Obedient {
    let coordinator_args = vec!["--compaction=off".to_owned()];
    Obedient::start(ClusterOptions { coordinators, coordinator_args, ..options(3) })
}

fn create(table: &str, layout: &str) -> String {
    format!(
        "CREATE TABLE {table} (k BIGINT NOT NULL, w BIGINT NOT NULL, s VARCHAR, f DOUBLE, d DECIMAL(12, 2)) \
         WITH ({layout})"
    )
}

/// One write: its keys lie between those of all others.
fn insert(table: &str, write: i64) -> String {
    format!(
        "INSERT INTO {table} SELECT value * 1000 + {write}, {write}, \
         CASE WHEN value % 5 = 0 THEN NULL ELSE 'row ' || (value % 37) END, \
         CASE WHEN value % 7 = 0 THEN CAST('NaN' AS DOUBLE) ELSE CAST(value AS DOUBLE) / 8 END, \
         CASE WHEN value % 11 = 0 THEN NULL ELSE CAST(value AS DECIMAL(12, 2)) END \
         FROM generate_series(1, {ROWS})"
    )
}

async fn make_many(client: &mut Client, writes: std::ops::Range<i64>) {
    if writes.start == 0 {
        client.update(&create(LAYOUTS[0].0, LAYOUTS[0].1)).await.unwrap();
    }
    for write in writes {
        assert_eq!(client.update(&insert("many", write)).await.unwrap(), ROWS);
    }
}

/// Rows, writes, and keys.
async fn look(client: &mut Client) -> Result<(i64, i64, i64), ClientError> {
    let batches = client.query("SELECT count(*), count(DISTINCT w), count(DISTINCT k) FROM many").await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("no row");
    let number = |index: usize| batch.column(index).as_primitive::<Int64Type>().value(0);
    Ok((number(0), number(1), number(2)))
}

/// So many writes are there, each whole and once.
async fn check(client: &mut Client, writes: i64) {
    assert_eq!(in_time(look(client)).await.unwrap(), (writes * ROWS, writes, writes * ROWS));
}

/// Segments of the shard that has most of them.
async fn most_segments(client: &mut Client) -> i64 {
    client.number("SELECT max(segments) FROM system.shards").await.unwrap()
}

/// Waits until no shard has more segments.
async fn wait_until_few(client: &mut Client, segments: i64) {
    let since = Instant::now();
    loop {
        let most = most_segments(client).await;
        if most <= segments {
            return;
        }
        assert!(since.elapsed() < HAPPENS_WITHIN, "a shard still has {most} segments");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Begins to compact, as a statement of its own.
async fn optimizing(cluster: &Cluster) -> JoinHandle<Result<i64, ClientError>> {
    let mut client = cluster.connect().await.unwrap();
    tokio::spawn(async move { in_time(client.update("OPTIMIZE TABLE many")).await })
}

/// Has a node do something at a step.
fn order(obedient: &Obedient, node: &str, step: Step, action: &str) {
    let pid = obedient.cluster.pid(node).unwrap();
    obedient.order(&format!("{pid} {} {action}\n", step.name()));
}

/// How often a node has come to a step at which it had orders.
fn obeyed(cluster: &Cluster, node: &str) -> usize {
    let log = std::fs::read(cluster.dir().join(format!("{node}.log"))).unwrap();
    String::from_utf8_lossy(&log).matches(OBEYED).count()
}

/// Waits until the coordinator has come to a step at which it has orders.
async fn wait_until_stalled(cluster: &Cluster, before: usize) {
    let since = Instant::now();
    while obeyed(cluster, "coordinator") == before {
        assert!(since.elapsed() < HAPPENS_WITHIN, "it does not come to the step");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Compacts, and waits until all that is staged for a shard could be committed.
async fn stalled(obedient: &Obedient) -> JoinHandle<Result<i64, ClientError>> {
    let cluster = &obedient.cluster;
    let before = obeyed(cluster, "coordinator");
    order(obedient, "coordinator", Step::CompactionStaged, "stall");
    let optimizing = optimizing(cluster).await;
    wait_until_stalled(cluster, before).await;
    optimizing
}

/// Has a client stop the statement that compacts.
async fn kill_optimizing(client: &mut Client) {
    let id = "SELECT id FROM system.queries WHERE state = 'running' AND sql LIKE 'OPTIMIZE%'";
    let id = client.text(id).await.unwrap();
    client.update(&format!("KILL QUERY '{}'", id.trim())).await.unwrap();
}

/// Names of the segments that are on a worker's disk.
fn segments_on(cluster: &Cluster, worker: &str) -> BTreeSet<String> {
    let files = files_below(&cluster.data_dir(worker).unwrap().join("segments"));
    let names = files.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".parquet"));
    names.map(str::to_owned).collect()
}

/// Looks at the table all the time, while somebody writes.
struct Asking {
    sent: Arc<AtomicI64>,
    acknowledged: Arc<AtomicI64>,
    is_over: Arc<AtomicBool>,
    answers: JoinHandle<usize>,
}

impl Asking {
    async fn begin(cluster: &Cluster) -> Self {
        let (sent, acknowledged) = (Arc::<AtomicI64>::default(), Arc::<AtomicI64>::default());
        let is_over = Arc::<AtomicBool>::default();
        let mut client = session(cluster).await;
        let answers = tokio::spawn({
            let (sent, acknowledged) = (Arc::clone(&sent), Arc::clone(&acknowledged));
            let is_over = Arc::clone(&is_over);
            async move {
                let mut answers = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let at_least = acknowledged.load(Ordering::SeqCst);
                    let (rows, writes, keys) = in_time(look(&mut client)).await.unwrap();
                    let at_most = sent.load(Ordering::SeqCst);
                    assert_eq!((rows, keys), (writes * ROWS, writes * ROWS), "after {answers} right answers");
                    assert!((at_least..=at_most).contains(&writes), "{at_least} <= {writes} <= {at_most}");
                    answers += 1;
                }
                answers
            }
        });
        Self { sent, acknowledged, is_over, answers }
    }

    /// Every answer was right, and there were some.
    async fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        let answers = self.answers.await.unwrap();
        assert!(answers > 0, "nothing was asked");
    }
}

#[test]
fn many_small_writes_become_few_segments_and_no_query_notices() {
    const WRITES: i64 = 40;
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        client.update(&create(LAYOUTS[0].0, LAYOUTS[0].1)).await.unwrap();
        let asking = Asking::begin(&cluster).await;
        for write in 0..WRITES {
            client.flight().set_header("shoal-write-id", format!("many-{write}"));
            asking.sent.fetch_add(1, Ordering::SeqCst);
            assert_eq!(client.update(&insert("many", write)).await.unwrap(), ROWS);
            asking.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        // Seven small ones, and larger ones, each of which has more rows than
        // those before it.
        wait_until_few(&mut client, 10).await;
        let told =
            "SELECT count(*) FROM system.events WHERE kind = 'compacted' AND message LIKE 'public.many,%'";
        let since = Instant::now();
        while client.number(told).await.unwrap() == 0 {
            assert!(since.elapsed() < HAPPENS_WITHIN, "nothing is told");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        asking.end().await;

        // A compaction is no write, and a write is known after its segments are gone.
        let writes = "SELECT count(*) FROM system.writes";
        assert_eq!(client.number(writes).await.unwrap(), WRITES);
        client.flight().set_header("shoal-write-id", "many-0");
        assert_eq!(client.update(&insert("many", 0)).await.unwrap(), ROWS);
        assert_eq!(client.number(writes).await.unwrap(), WRITES);
        check(&mut client, WRITES).await;
        wait_until_settled(&cluster, 3).await;
        check(&mut client, WRITES).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn what_takes_more_memory_than_there_is_stays_as_it_is_and_is_told_once() {
    const WRITES: i64 = 12;
    // A quarter of it is less than a compaction of anything takes.
    let coordinator_args = vec!["--memory-limit=48MiB".to_owned()];
    let cluster = Cluster::start(&ClusterOptions { coordinator_args, ..options(3) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_many(&mut client, 0..WRITES).await;
        // One for each of its two shards.
        let told = "SELECT count(*) FROM system.events WHERE kind = 'deferred'";
        let since = Instant::now();
        while client.number(told).await.unwrap() < 2 {
            assert!(since.elapsed() < HAPPENS_WITHIN, "nothing is told");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let why = client.text("SELECT message FROM system.events WHERE kind = 'deferred'").await.unwrap();
        for part in ["public.many, shard 0:", "public.many, shard 1:", "bytes of memory", "--memory-limit"] {
            assert!(why.contains(part), "{why}");
        }
        let segments = "SELECT segment FROM system.segments ORDER BY 1";
        let before = client.text(segments).await.unwrap();
        assert_eq!(before.lines().count() as i64, 2 * WRITES);
        client.notices().await.unwrap();
        let error = in_time(client.update("OPTIMIZE TABLE many")).await.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
        for part in ["2 of 2 shards of public.many stay as they are: 0, 1.", "the segments stay as they are"]
        {
            assert!(error.message.contains(part), "{error}");
        }
        let left = "2 of 2 shards of public.many have small segments left";
        assert_eq!(client.notices().await.unwrap(), [left]);
        assert_eq!(client.text(segments).await.unwrap(), before);
        assert_eq!(client.number(told).await.unwrap(), 2);
        check(&mut client, WRITES).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_query_that_began_before_ends_over_the_old_segments() {
    let obedient = when_asked(1);
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_many(&mut client, 0..6).await;
        let sum = client.number("SELECT sum(k) FROM many").await.unwrap();
        let old = segments_on(cluster, "worker-1");
        let before = obedient.obeyed();
        obedient.hold(&obedient.workers());
        let asked = tokio::spawn({
            let mut asking = session(cluster).await;
            let sql = "SELECT sum(s) FROM (SELECT w, sum(shoal_step(k)) AS s FROM many GROUP BY w)";
            async move { in_time(asking.number(sql)).await }
        });
        obedient.wait_until_obeyed(&before, 1).await;
        in_time(client.update("OPTIMIZE TABLE many")).await.unwrap();
        assert_eq!(most_segments(&mut client).await, 1);
        assert!(!asked.is_finished(), "it did not wait");
        assert!(segments_on(cluster, "worker-1").is_superset(&old), "a query still reads what is gone");
        check(&mut client, 6).await;
        obedient.order("");
        assert_eq!(asked.await.unwrap().unwrap(), sum);
        // Now nobody needs them.
        wait_until_settled(cluster, 3).await;
        assert!(segments_on(cluster, "worker-1").is_disjoint(&old));
    });
}

#[test]
fn what_happens_to_a_table_while_it_is_compacted_counts() {
    let obedient = when_asked(1);
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_many(&mut client, 0..4).await;
        // Rows that are written meanwhile stay.
        let optimized = stalled(&obedient).await;
        make_many(&mut client, 4..6).await;
        check(&mut client, 6).await;
        obedient.order("");
        assert_eq!(optimized.await.unwrap().unwrap(), 0);
        check(&mut client, 6).await;

        // Copies that are too many meanwhile are taken out, and then come back.
        make_many(&mut client, 6..8).await;
        let optimized = stalled(&obedient).await;
        client.update("ALTER TABLE many SET (replicas = 1)").await.unwrap();
        let since = Instant::now();
        let placed = "SELECT max(array_length(workers)) FROM system.shards";
        while client.number(placed).await.unwrap() > 1 {
            assert!(since.elapsed() < HAPPENS_WITHIN, "the shards stay where they are");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        obedient.order("");
        optimized.await.unwrap().unwrap();
        check(&mut client, 8).await;
        client.update("ALTER TABLE many SET (replicas = 3)").await.unwrap();
        wait_until_settled(cluster, 3).await;
        check(&mut client, 8).await;

        // A statement that is stopped leaves everything as it was.
        make_many(&mut client, 8..10).await;
        let segments = "SELECT segment FROM system.segments ORDER BY 1";
        let before = client.text(segments).await.unwrap();
        let optimized = stalled(&obedient).await;
        kill_optimizing(&mut client).await;
        let error = optimized.await.unwrap().unwrap_err();
        assert!(error.message.contains("cancelled"), "{error}");
        obedient.order("");
        wait_until_settled(cluster, 3).await;
        assert_eq!(client.text(segments).await.unwrap(), before);
        check(&mut client, 10).await;

        // Of a table that is dropped nothing is left.
        let optimized = stalled(&obedient).await;
        client.update("DROP TABLE many").await.unwrap();
        obedient.order("");
        let error = optimized.await.unwrap().unwrap_err();
        assert!(error.message.contains("dropped while it was compacted"), "{error}");
        wait_until_settled(cluster, 3).await;
        for worker in cluster.worker_names() {
            assert_eq!(segments_on(cluster, &worker), BTreeSet::new(), "{worker}");
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_table_that_is_optimized_at_all_coordinators_at_once_keeps_its_rows() {
    let obedient = when_asked(3);
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_many(&mut client, 0..8).await;
        let mut optimizing = Vec::new();
        for name in cluster.coordinator_names() {
            let mut client = cluster.connect_to(&name).await.unwrap();
            let optimized = async move { in_time(client.update("OPTIMIZE TABLE many")).await };
            optimizing.push(tokio::spawn(optimized));
        }
        for optimized in optimizing {
            optimized.await.unwrap().unwrap();
        }
        check(&mut client, 8).await;
        assert_eq!(most_segments(&mut client).await, 1);
        wait_until_settled(cluster, 3).await;
        check(&mut client, 8).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
