//! Processes that are stopped in order and started again, one after the other,
//! as for a new version, and a worker that joins: clients that use whichever
//! coordinator is there notice nothing.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use shoal_benches::load::{Detours, Doors, MOVES, Roamer};
use shoal_benches::{Client, ClientError, Cluster, ClusterOptions};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::fixture::{in_time, options, wait_until};
use crate::talk::Talk;

const ROWS: i64 = 100_000;
/// How many rows there are, and what their keys come to.
const ANSWER: (i64, i64) = (ROWS, ROWS * (ROWS + 1) / 2);
/// How long a process may take to end: its grace and a little more.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// How long a client may take to get on, and shards to be even.
const HAPPENS_WITHIN: Duration = Duration::from_secs(150);
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(100);
/// Runs for minutes.
const LONG: &str = "SELECT count(*) FROM generate_series(1, 1000000) a \
                    JOIN generate_series(1, 1000000) b ON a.value % 7 < b.value % 5";

async fn make_tables(client: &mut Client) {
    for sql in [
        "CREATE TABLE rolled (k BIGINT NOT NULL, s VARCHAR) WITH (shards = 12, replicas = 3, shard_key = 'k')"
            .to_owned(),
        format!(
            "INSERT INTO rolled SELECT value, md5(CAST(value AS VARCHAR)) FROM generate_series(1, {ROWS})"
        ),
        "CREATE TABLE written (k BIGINT NOT NULL) WITH (shards = 1, replicas = 3, shard_key = 'k')".to_owned(),
    ] {
        client.update(&sql).await.unwrap();
    }
}

/// In a session in which the smallest scan is cut into tasks.
async fn answer(mut client: Client) -> Result<(i64, i64), ClientError> {
    client.update("SET shoal.task_bytes = 1").await?;
    let batches = client.query("SELECT count(*), sum(k) FROM rolled WHERE s <> ''").await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("no row");
    let number = |index: usize| batch.column(index).as_primitive::<Int64Type>().value(0);
    Ok((number(0), number(1)))
}

/// A client, and how often it has got on.
struct Busy {
    what: String,
    times: Arc<AtomicI64>,
    task: JoinHandle<Detours>,
}

/// A client that writes, and one at each coordinator that reads.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<Busy>,
}

impl Load {
    fn begin(doors: &Arc<Doors>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for number in 0..doors.count() {
            let times = Arc::<AtomicI64>::default();
            let roamer = Roamer::new(Arc::clone(doors), number);
            let task = tokio::spawn(read(roamer, Arc::clone(&times), Arc::clone(&is_over)));
            clients.push(Busy { what: format!("reader {number}"), times, task });
        }
        let times = Arc::<AtomicI64>::default();
        let roamer = Roamer::new(Arc::clone(doors), 0);
        let task = tokio::spawn(write(roamer, Arc::clone(&times), Arc::clone(&is_over)));
        clients.push(Busy { what: "the writer".to_owned(), times, task });
        Self { is_over, clients }
    }

    /// Waits until every client has got on since this was called.
    async fn goes_on(&self) {
        for client in &self.clients {
            let before = client.times.load(Ordering::SeqCst);
            let since = Instant::now();
            while client.times.load(Ordering::SeqCst) < before + 2 {
                assert!(!client.task.is_finished(), "{} failed", client.what);
                assert!(since.elapsed() < HAPPENS_WITHIN, "{} does not get on", client.what);
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// Ends all clients; how many rows were written.
    async fn end(self) -> i64 {
        self.is_over.store(true, Ordering::SeqCst);
        let mut written = 0;
        for client in self.clients {
            let detours = client.task.await.unwrap();
            written = client.times.load(Ordering::SeqCst);
            eprintln!("{}: {written} times, {detours:?}", client.what);
        }
        written
    }
}

async fn read(mut roamer: Roamer, answers: Arc<AtomicI64>, is_over: Arc<AtomicBool>) -> Detours {
    while !is_over.load(Ordering::SeqCst) {
        assert_eq!(in_time(roamer.ask(answer)).await.unwrap(), ANSWER);
        answers.fetch_add(1, Ordering::SeqCst);
    }
    roamer.detours()
}

/// Each row under an id: what is sent again is written once.
async fn write(mut roamer: Roamer, rows: Arc<AtomicI64>, is_over: Arc<AtomicBool>) -> Detours {
    while !is_over.load(Ordering::SeqCst) {
        let key = rows.load(Ordering::SeqCst);
        let sending = roamer.ask(move |mut client: Client| async move {
            client.flight().set_header("shoal-write-id", format!("rolling-{key}"));
            client.update(&format!("INSERT INTO written VALUES ({key})")).await
        });
        assert_eq!(in_time(sending).await.unwrap(), 1);
        rows.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
    roamer.detours()
}

/// Stops a process in order, starts it again, and waits until all is as before.
fn restart(cluster: &Cluster, name: &str, workers: usize) {
    let status = cluster.terminate(name, ENDS_WITHIN).unwrap();
    assert!(status.success(), "{name} ended with {status}");
    cluster.restart(name).unwrap();
    cluster.wait_until_voting(3).unwrap();
    cluster.wait_until_joined(workers).unwrap();
    cluster.wait_until_caught_up("rolled").unwrap();
    cluster.wait_until_complete().unwrap();
}

#[test]
fn a_rolling_restart_is_not_noticed_and_a_new_worker_gets_its_share() {
    let cluster = Cluster::start(&ClusterOptions { coordinators: 3, ..options(4) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        make_tables(&mut cluster.connect().await.unwrap()).await;
        let doors = Arc::new(Doors::of(&cluster).unwrap());
        let load = Load::begin(&doors);
        load.goes_on().await;
        for worker in cluster.worker_names() {
            restart(&cluster, &worker, 4);
            load.goes_on().await;
        }
        let leader = cluster.leader().unwrap();
        let mut coordinators = cluster.coordinator_names();
        // The leader last.
        coordinators.sort_by_key(|name| *name == leader);
        for coordinator in &coordinators {
            doors.close(coordinator).unwrap();
            restart(&cluster, coordinator, 4);
            doors.open(coordinator).unwrap();
            load.goes_on().await;
        }
        let log = std::fs::read_to_string(cluster.dir().join(format!("{leader}.log"))).unwrap();
        assert!(log.contains("another coordinator leads now"), "{leader} stopped without a word");

        assert_eq!(cluster.add_worker().unwrap(), "worker-5");
        cluster.wait_until_joined(5).unwrap();
        let mut client = cluster.connect().await.unwrap();
        wait_until_even(&mut client, 5).await;
        load.goes_on().await;
        let written = load.end().await;
        for coordinator in cluster.coordinator_names() {
            let mut client = cluster.connect_to(&coordinator).await.unwrap();
            for count in ["count(*)", "count(DISTINCT k)"] {
                let found = client.number(&format!("SELECT {count} FROM written")).await.unwrap();
                assert_eq!(found, written, "{count} at {coordinator}");
            }
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// Waits until nothing moves, and these workers hold as many bytes as shards that
/// are not cut allow.
async fn wait_until_even(client: &mut Client, workers: usize) {
    let since = Instant::now();
    loop {
        let moves = client.number(MOVES).await.unwrap();
        let shard = client.number("SELECT max(bytes) FROM system.shards").await.unwrap();
        let mut bytes = Vec::new();
        for number in 1..=workers {
            let sum = format!(
                "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM system.segments \
                 WHERE array_has(replicas, 'worker-{number}')"
            );
            bytes.push(client.number(&sum).await.unwrap());
        }
        let gap = bytes.iter().max().unwrap() - bytes.iter().min().unwrap();
        // A shard that is as large as the gap would only turn it round.
        if moves == 0 && 2 * gap <= 3 * shard {
            return;
        }
        assert!(since.elapsed() < HAPPENS_WITHIN, "{bytes:?}, of shards of {shard}, and {moves} moves");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[test]
fn a_coordinator_that_stops_ends_what_runs_and_clients_go_on_elsewhere() {
    // Long enough for all that happens here.
    let coordinator_args = ["--grace", "60s"].map(str::to_owned).to_vec();
    let options = ClusterOptions { coordinators: 3, coordinator_args, ..options(2) };
    let cluster = Arc::new(Cluster::start(&options).unwrap());
    let _logs = cluster.show_logs_on_failure();
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let leader = cluster.leader().unwrap();
        let follower = cluster.coordinator_names().into_iter().find(|name| *name != leader).unwrap();
        let place = |name: &str| cluster.address(name).unwrap().to_string();
        let (here, there) = (place(&follower), place(&leader));
        let mut client = cluster.connect_to(&follower).await.unwrap();
        client.update("CREATE TABLE kept (k BIGINT) WITH (shards = 2, replicas = 2)").await.unwrap();
        client.update("INSERT INTO kept VALUES (1), (2)").await.unwrap();
        let sum = "SELECT 'sum ' || sum(k) AS said FROM kept;";
        let mut talk = Talk::begin(
            Command::new(env!("CARGO_BIN_EXE_shoal"))
                .args(["sql", &format!("shoal://{here},{there}"), "--format", "csv"])
                .stderr(std::fs::File::create(&said).unwrap()),
        );
        talk.ask(&format!("SET shoal.task_bytes = '7MiB';\n{sum}"), "sum 3");
        let mut busy = cluster.connect_to(&follower).await.unwrap();
        let long = tokio::spawn(async move { busy.query(LONG).await });
        // One that is not let in yet would be refused.
        let running = "FROM system.queries WHERE state = 'running' AND attempts > 0 \
                       AND sql LIKE '%generate_series(1, 1000000) a%' AND sql NOT LIKE '%system.queries%'";
        wait_until(&mut client, &format!("SELECT count(*) {running}")).await;

        // It waits for that query.
        let stopping = tokio::task::spawn_blocking({
            let (cluster, follower) = (Arc::clone(&cluster), follower.clone());
            move || cluster.terminate(&follower, Duration::from_secs(90))
        });
        let since = Instant::now();
        let refused = loop {
            match in_time(client.update("SET shoal.task_bytes = '8MiB'")).await {
                Err(error) => break error,
                Ok(_) => assert!(since.elapsed() < HAPPENS_WITHIN, "nothing is refused"),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        for error in [refused, in_time(client.query("SELECT count(*) FROM kept")).await.unwrap_err()] {
            assert_eq!(error.code, Code::Unavailable, "{error}");
            assert!(error.message.contains("is stopping"), "{error}");
        }
        // A shell that is connected there goes on elsewhere, whatever it does.
        talk.ask(&format!("INSERT INTO kept VALUES (4);\n{sum}"), "sum 7");
        talk.ask("SHOW shoal.task_bytes;", "shoal.task_bytes,7MiB");
        talk.end();
        // Nobody who comes now is let in.
        let late = Client::connect(&format!("http://{here}")).await.map(drop).unwrap_err();
        assert_eq!(late.code, Code::Unavailable, "{late}");

        let id = client.text(&format!("SELECT id {running}")).await.unwrap();
        client.update(&format!("KILL QUERY '{}'", id.trim())).await.unwrap();
        let killed = in_time(long).await.unwrap().unwrap_err();
        assert!(killed.message.contains("cancelled"), "{killed}");
        let status = stopping.await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    });
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains(" is stopping; now connected to shoal://"), "{said}");
    assert!(!said.contains("ERROR"), "{said}");
}
