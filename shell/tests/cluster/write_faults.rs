//! A process is killed at each named step of each kind of write: all of it is
//! there, once, or nothing, and nothing is left behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shoal_benches::{Client, Cluster};
use shoal_proto::fault::{FILE_VARIABLE, Step};

use crate::fixture::{options, own};
use crate::settled::wait_until_settled;

mod write;

use write::{Kind, ROWS, Write};

/// How long a write may be sent again and again.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(90);
/// How long a process may take to come to the step at which it is killed.
const KILLED_WITHIN: Duration = Duration::from_secs(20);

/// A cluster of three workers, each with a replica of everything, and the file
/// that orders its faults.
struct Fixture {
    cluster: Cluster,
    orders: PathBuf,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let orders = dir.path().join("orders");
        let mut options = options(3);
        options.env.push((FILE_VARIABLE.to_owned(), orders.display().to_string()));
        // The orders are for the writes alone, and what is staged is theirs.
        options.coordinator_args.push("--compaction=off".to_owned());
        Self { cluster: Cluster::start(&options).unwrap(), orders, _dir: dir }
    }

    async fn client(&self) -> Client {
        self.cluster.connect().await.unwrap()
    }

    async fn make_table(&self) {
        let sql =
            "CREATE TABLE wf_rows (write BIGINT, n BIGINT) WITH (shards = 2, replicas = 3, shard_key = 'n')";
        self.client().await.update(sql).await.unwrap();
    }

    /// Has the process with this number, or `*`, do something at a step.
    fn order(&self, process: &str, step: Step, action: &str) {
        std::fs::write(&self.orders, format!("{process} {} {action}\n", step.name())).unwrap();
    }

    fn order_nothing(&self) {
        std::fs::write(&self.orders, "").unwrap();
    }

    /// Waits until the node came to the step that kills it.
    async fn wait_until_killed(&self, node: &str, step: Step) {
        let since = Instant::now();
        while !self.cluster.crashed().iter().any(|crashed| crashed == node) {
            assert!(since.elapsed() < KILLED_WITHIN, "{node} never came to {}", step.name());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.order_nothing();
    }
}

/// Kills `victim` at `step` of a write, starts it again, and sends the write
/// until it is acknowledged.
async fn try_step(fixture: &Fixture, write: Write, step: Step, victim: &str) {
    let cluster = &fixture.cluster;
    let (url, import_dir) = (cluster.url(), cluster.import_dir());
    write.prepare(import_dir);
    let stop = Arc::new(AtomicBool::new(false));
    let watched = write.watch(url.clone(), Arc::clone(&stop));
    fixture.order(&cluster.pid(victim).unwrap().to_string(), step, "kill");
    let first = write.send(&url, import_dir).await;
    fixture.wait_until_killed(victim, step).await;
    let what = format!("{:?}, {victim} killed at {}: {first:?}", write.kind, step.name());
    eprintln!("{what}");
    cluster.restart(victim).unwrap();
    cluster.wait_until_joined(3).unwrap();

    // Whoever does not send it again finds all of it or nothing, and can ask.
    let mut client = fixture.client().await;
    let is_in = match step {
        Step::CommitLogged | Step::WriteCommitted | Step::Replying => true,
        step => Step::OF_WORKER.contains(&step),
    };
    assert_eq!(write.count(&mut client).await.unwrap(), if is_in { ROWS } else { 0 }, "{what}");
    assert_eq!(write.asked(&mut client).await, is_in.then_some(ROWS), "{what}");
    if Step::OF_WORKER.contains(&step) {
        assert_eq!(first.as_ref().ok(), Some(&ROWS), "one of three is enough to fail a write: {what}");
    }
    // Whoever does has it once.
    let since = Instant::now();
    loop {
        match write.send(&url, import_dir).await {
            Ok(rows) => break assert_eq!(rows, ROWS, "{what}"),
            Err(error) => assert!(since.elapsed() < ACKNOWLEDGED_WITHIN, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    write.check(&mut client).await;
    stop.store(true, Ordering::Relaxed);
    watched.await.unwrap();
}

fn try_steps(steps: &[Step], victim: impl Fn(usize) -> String) {
    let fixture = Fixture::new();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        fixture.make_table().await;
        let mut number = 0;
        for (index, step) in steps.iter().enumerate() {
            for kind in Kind::ALL {
                number += 1;
                try_step(&fixture, Write { kind, number }, *step, &victim(index)).await;
            }
            wait_until_settled(&fixture.cluster, 3).await;
        }
        let rows = fixture.client().await.number("SELECT count(*) FROM wf_rows").await.unwrap();
        assert_eq!(rows, steps.len() as i64 * 3 * ROWS);
    });
}

#[test]
fn a_worker_killed_at_any_step_of_a_write_leaves_all_of_it_once() {
    try_steps(&Step::OF_WORKER, |index| format!("worker-{}", index % 3 + 1));
}

#[test]
fn a_coordinator_killed_at_any_step_of_a_write_leaves_all_or_nothing_of_it() {
    try_steps(&Step::OF_COORDINATOR, |_| "coordinator".to_owned());
}

#[test]
fn a_worker_killed_at_any_step_of_a_copy_makes_it_when_it_is_back() {
    let fixture = Fixture::new();
    let cluster = &fixture.cluster;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        fixture.make_table().await;
        for (index, step) in Step::OF_WORKER.into_iter().enumerate() {
            let victim = format!("worker-{}", index % 3 + 1);
            eprintln!("a copy, {victim} killed at {}", step.name());
            cluster.kill(&victim).unwrap();
            let write = Write { kind: Kind::Insert, number: index as i64 };
            assert_eq!(write.send(&cluster.url(), cluster.import_dir()).await, Ok(ROWS));
            // Only the copies for the victim are staged now.
            fixture.order("*", step, "kill");
            match cluster.restart(&victim) {
                Ok(()) => fixture.wait_until_killed(&victim, step).await,
                // So soon that nobody has seen it listen.
                Err(early) => {
                    let early = format!("{early:#}");
                    assert!(early.contains("(SIGKILL)") && early.contains(step.name()), "{early}");
                    fixture.order_nothing();
                }
            }
            cluster.restart(&victim).unwrap();
            wait_until_settled(cluster, 3).await;
            write.check(&mut fixture.client().await).await;
        }
    });
}

#[test]
fn an_acknowledged_write_survives_the_end_of_any_worker_and_its_disk() {
    let fixture = Fixture::new();
    let cluster = &fixture.cluster;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        fixture.make_table().await;
        for number in 1..=3 {
            let write = Write { kind: Kind::Insert, number };
            assert_eq!(write.send(&cluster.url(), cluster.import_dir()).await, Ok(ROWS));
            let lost = format!("worker-{number}");
            cluster.kill(&lost).unwrap();
            std::fs::remove_dir_all(cluster.data_dir(&lost).unwrap()).unwrap();
            let mut client = fixture.client().await;
            for before in 1..=number {
                Write { kind: Kind::Insert, number: before }.check(&mut client).await;
            }
            // A new disk is filled from the others.
            cluster.restart(&lost).unwrap();
            wait_until_settled(cluster, 3).await;
        }
    });
}

#[test]
fn what_a_worker_loses_before_the_commit_is_copied_to_it() {
    let fixture = Fixture::new();
    let cluster = &fixture.cluster;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        fixture.make_table().await;
        let pid = cluster.pid("coordinator").unwrap().to_string();
        fixture.order(&pid, Step::WriteStaged, "hold");
        let write = Write { kind: Kind::Insert, number: 1 };
        let sent = tokio::spawn({
            let (url, import_dir) = (cluster.url(), cluster.import_dir().to_owned());
            async move { write.send(&url, &import_dir).await }
        });
        // All three have said that it is durable.
        let since = Instant::now();
        while !log_of(cluster, "coordinator").contains("a fault was ordered") {
            assert!(since.elapsed() < KILLED_WITHIN, "nothing is staged");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster.kill("worker-1").unwrap();
        std::fs::remove_dir_all(cluster.data_dir("worker-1").unwrap()).unwrap();
        cluster.restart("worker-1").unwrap();
        let mut client = fixture.client().await;
        let joins = "SELECT count(*) FROM system.events WHERE kind = 'joined' AND worker = 'worker-1'";
        while client.number(joins).await.unwrap() < 2 {
            assert!(since.elapsed() < KILLED_WITHIN, "worker-1 does not join");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(write.count(&mut client).await.unwrap(), 0, "it is committed already");
        fixture.order_nothing();
        assert_eq!(sent.await.unwrap(), Ok(ROWS));
        wait_until_settled(cluster, 3).await;
        write.check(&mut client).await;
    });
}

fn log_of(cluster: &Cluster, node: &str) -> String {
    std::fs::read_to_string(cluster.dir().join(format!("{node}.log"))).unwrap()
}

#[test]
fn without_a_majority_a_write_fails_says_so_and_leaves_nothing() {
    let fixture = Fixture::new();
    let cluster = &fixture.cluster;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        fixture.make_table().await;
        for worker in ["worker-1", "worker-3"] {
            cluster.kill(worker).unwrap();
        }
        // A new table would have its place on those that are there.
        for (number, kind) in (1..).zip([Kind::Insert, Kind::Copy, Kind::Ingest]) {
            let write = Write { kind, number };
            write.prepare(cluster.import_dir());
            let refused = write.send(&cluster.url(), cluster.import_dir()).await.unwrap_err();
            eprintln!("{refused}");
            for part in
                ["shard ", "`public.wf_rows`", "1 of its 3 workers, 2 are needed", "worker-1: ", "worker-3: "]
            {
                assert!(refused.contains(part), "{refused}");
            }
            let mut client = fixture.client().await;
            assert_eq!(write.count(&mut client).await.unwrap(), 0);
            assert_eq!(write.asked(&mut client).await, None);
        }
        for worker in ["worker-1", "worker-3"] {
            cluster.restart(worker).unwrap();
        }
        wait_until_settled(cluster, 3).await;
        let write = Write { kind: Kind::Insert, number: 1 };
        assert_eq!(write.send(&cluster.url(), cluster.import_dir()).await, Ok(ROWS));
        write.check(&mut fixture.client().await).await;
    });
}

#[test]
fn a_write_does_not_wait_for_a_frozen_worker() {
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        client
            .update("CREATE TABLE wf_rows (write BIGINT, n BIGINT) WITH (shards = 2, replicas = 3, shard_key = 'n')")
            .await
            .unwrap();
        cluster.pause("worker-2").unwrap();
        let write = Write { kind: Kind::Insert, number: 1 };
        let since = Instant::now();
        assert_eq!(write.send(&cluster.url(), cluster.import_dir()).await, Ok(ROWS));
        eprintln!("acknowledged after {:?}", since.elapsed());
        write.check(&mut client).await;
        assert_eq!(state_of(&cluster, "worker-2"), "T", "worker-2 is not frozen any more");
        let log = std::fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
        assert!(log.contains("the others are enough: not waited for"), "{log}");
        let held = "SELECT count(*) FROM system.segments WHERE array_has(replicas, 'worker-2')";
        assert_eq!(client.number(held).await.unwrap(), 0);
        cluster.resume("worker-2").unwrap();
        wait_until_settled(&cluster, 3).await;
        assert_eq!(client.number(held).await.unwrap(), 2);
        write.check(&mut client).await;
    });
}

/// `T`: stopped.
fn state_of(cluster: &Cluster, node: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", cluster.pid(node).unwrap())).unwrap();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or_default().to_owned()
}

#[test]
fn a_segment_that_comes_late_is_adopted_or_discarded() {
    let fixture = Fixture::new();
    let cluster = &fixture.cluster;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        fixture.make_table().await;
        let (url, import_dir) = (cluster.url(), cluster.import_dir().to_owned());
        // A worker stalls while it stages, and freezes: the write is done
        // without it. It thaws, joins anew, and then its segments are there.
        let pid = cluster.pid("worker-1").unwrap().to_string();
        fixture.order(&pid, Step::StageSynced, "stall");
        let write = Write { kind: Kind::Insert, number: 1 };
        let sent = tokio::spawn({
            let (url, import_dir) = (url.clone(), import_dir.clone());
            async move { write.send(&url, &import_dir).await }
        });
        wait_until_staged(cluster, "worker-1").await;
        cluster.pause("worker-1").unwrap();
        assert_eq!(sent.await.unwrap(), Ok(ROWS));
        cluster.resume("worker-1").unwrap();
        cluster.wait_until_joined(3).unwrap();
        assert!(staged(cluster, "worker-1") > 0, "nothing is late");
        fixture.order_nothing();
        wait_until_settled(cluster, 3).await;
        write.check(&mut fixture.client().await).await;

        // The coordinator dies meanwhile: the next one knows nothing of what
        // comes late, and the worker must not keep it.
        fixture.order(&pid, Step::StageSynced, "stall");
        let lost = Write { kind: Kind::Insert, number: 2 };
        let sent = tokio::spawn({
            let (url, import_dir) = (url.clone(), import_dir.clone());
            async move { lost.send(&url, &import_dir).await }
        });
        wait_until_staged(cluster, "worker-1").await;
        cluster.kill("coordinator").unwrap();
        assert!(sent.await.unwrap().is_err());
        cluster.restart("coordinator").unwrap();
        cluster.wait_until_joined(3).unwrap();
        assert!(staged(cluster, "worker-1") > 0, "nothing is late");
        fixture.order_nothing();
        wait_until_nothing_is_staged(cluster, "worker-1").await;
        wait_until_settled(cluster, 3).await;
        assert_eq!(lost.count(&mut fixture.client().await).await.unwrap(), 0);
    });
}

fn staged(cluster: &Cluster, worker: &str) -> usize {
    shoal_benches::disk::files_below(&cluster.data_dir(worker).unwrap().join("staging")).len()
}

/// Waits until a segment with its checksums is written, under temporary names.
async fn wait_until_staged(cluster: &Cluster, worker: &str) {
    let since = Instant::now();
    while staged(cluster, worker) < 2 {
        assert!(since.elapsed() < KILLED_WITHIN, "{worker} stages nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_until_nothing_is_staged(cluster: &Cluster, worker: &str) {
    let since = Instant::now();
    while staged(cluster, worker) > 0 {
        assert!(since.elapsed() < KILLED_WITHIN, "{worker} still stages");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
