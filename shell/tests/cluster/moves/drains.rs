//! Workers that are emptied before they are stopped.

use rustix::process::{Pid, Signal, kill_process};

use super::*;

#[test]
fn a_drained_worker_is_not_missed() {
    let cluster = own(4);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 2").await;
        let error = client.update("ALTER WORKER 'worker-9' DRAIN").await.unwrap_err().message;
        for part in ["`worker-9`", "worker-1, worker-2, worker-3, worker-4"] {
            assert!(error.contains(part), "{error}");
        }
        let asking = Asking::begin(&cluster).await;

        drain(&cluster, &mut client, "worker-2").await;
        let elsewhere = "CREATE TABLE elsewhere (k BIGINT) WITH (shards = 4, replicas = 2)";
        client.update(elsewhere).await.unwrap();
        let there = count("shards", "array_has(workers, 'worker-2')");
        assert_eq!(client.number(&there).await.unwrap(), 0, "{}", shown(&mut client).await);
        client.update("DROP TABLE elsewhere").await.unwrap();

        // Shards come back to it, as it has less than the others.
        client.update("ALTER WORKER 'worker-2' CANCEL DRAIN").await.unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-2' AND drain IS NULL", 1).await;
        let since = Instant::now();
        while client.number(&there).await.unwrap() == 0 {
            assert!(since.elapsed() < MOVED_WITHIN, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        wait_for_copies(&mut client, 2).await;

        drain(&cluster, &mut client, "worker-2").await;
        let status = cluster.terminate("worker-2", ENDS_WITHIN).unwrap();
        assert!(status.success(), "{status}");
        wait_for(&mut client, "workers", "worker = 'worker-2' AND state = 'lost' AND drain = 'drained'", 1)
            .await;
        wait_for_copies(&mut client, 2).await;
        check_answer(&mut client).await;
        asking.end().await;
    });
}

/// Drains a worker, and waits until nothing is left on it.
async fn drain(cluster: &Cluster, client: &mut Client, worker: &str) {
    client.update(&format!("ALTER WORKER '{worker}' DRAIN")).await.unwrap();
    wait_for(client, "workers", &format!("worker = '{worker}' AND drain = 'drained'"), 1).await;
    let there = client.number(&count("shards", &format!("array_has(workers, '{worker}')"))).await.unwrap();
    assert_eq!(there, 0, "{}", shown(client).await);
    wait_for_copies(client, 2).await;
    wait_until_held(cluster, client, &[worker]).await;
    assert!(segments_on(cluster, worker).is_empty());
}

#[test]
fn a_drain_waits_for_a_worker_that_can_take_the_shards() {
    let cluster = own(2);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 4, replicas = 2").await;
        let asking = Asking::begin(&cluster).await;
        client.update("ALTER WORKER 'worker-1' DRAIN").await.unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-1' AND drain = 'draining'", 1).await;
        let drained = count("workers", "drain = 'drained'");
        let since = Instant::now();
        while since.elapsed() < STAYS {
            assert_eq!(client.number(&drained).await.unwrap(), 0, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        wait_for_copies(&mut client, 2).await;
        wait_until_held(&cluster, &mut client, &["worker-1", "worker-2"]).await;

        cluster.add_worker().unwrap();
        cluster.wait_until_joined(3).unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-1' AND drain = 'drained'", 1).await;
        wait_for_copies(&mut client, 2).await;
        let status = cluster.terminate("worker-1", ENDS_WITHIN).unwrap();
        assert!(status.success(), "{status}");
        check_answer(&mut client).await;
        asking.end().await;
    });
}

/// A cluster whose workers drain themselves before they stop.
fn draining_at_the_end(workers: usize) -> Cluster {
    let worker_args = vec!["--drain".to_owned()];
    Cluster::start(&ClusterOptions { worker_args, ..options(workers) }).unwrap()
}

fn log_of(cluster: &Cluster, worker: &str) -> String {
    std::fs::read_to_string(cluster.dir().join(format!("{worker}.log"))).unwrap()
}

#[test]
fn a_worker_that_drains_itself_before_it_stops_is_not_missed() {
    let cluster = draining_at_the_end(4);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 3").await;
        let other =
            "CREATE TABLE other WITH (shards = 4, replicas = 3, shard_key = 'k') AS SELECT * FROM moved";
        client.update(other).await.unwrap();
        assert!(!segments_on(&cluster, "worker-2").is_empty());
        let asking = Asking::begin(&cluster).await;

        let status = cluster.terminate("worker-2", MOVED_WITHIN).unwrap();
        assert!(status.success(), "{status}");
        // It did not stop before all was as it should be without it.
        for (table, what) in [
            ("shards", "array_has(workers, 'worker-2')"),
            ("shards", "replicas_live <> 3"),
            ("segments", "array_has(replicas, 'worker-2')"),
            ("segments", "array_length(replicas) <> 3"),
        ] {
            let found = client.number(&count(table, what)).await.unwrap();
            assert_eq!(found, 0, "system.{table} with {what}\n{}", shown(&mut client).await);
        }
        assert!(segments_on(&cluster, "worker-2").is_empty());
        for kind in ["draining", "drained", "left"] {
            let told = count("events", &format!("kind = '{kind}' AND worker = 'worker-2'"));
            wait_until(&mut client, &told).await;
        }
        let log = log_of(&cluster, "worker-2");
        for part in ["draining: ", "nothing is left on this worker", "worker is stopped"] {
            assert!(log.contains(part), "not in the log: {part}\n{log}");
        }

        // It takes part again when it is started again.
        cluster.restart("worker-2").unwrap();
        cluster.wait_until_joined(4).unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-2' AND state = 'live' AND drain IS NULL", 1).await;
        let there = count("shards", "array_has(workers, 'worker-2')");
        let since = Instant::now();
        while client.number(&there).await.unwrap() == 0 {
            assert!(since.elapsed() < MOVED_WITHIN, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        wait_for_copies(&mut client, 3).await;
        asking.end().await;
        check_answer(&mut client).await;
    });
}

#[test]
fn nothing_that_is_written_meanwhile_is_only_on_a_worker_that_drains_itself() {
    let worker_args = vec!["--drain".to_owned()];
    let cluster = Cluster::start(&ClusterOptions { worker_args, coordinators: 3, ..options(3) }).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        // The only copy of a row may be on the worker that is to stop.
        let sql = "CREATE TABLE written (k BIGINT NOT NULL) WITH (shards = 6, replicas = 1, shard_key = 'k')";
        client.update(sql).await.unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for (number, coordinator) in (0..).zip(cluster.coordinator_names()) {
            let mut client = cluster.connect_to(&coordinator).await.unwrap();
            let is_over = Arc::clone(&is_over);
            writers.push(tokio::spawn(async move {
                let (mut acknowledged, mut next) = (0, 1_000_000 * number);
                while !is_over.load(Ordering::Relaxed) {
                    let rows = format!("SELECT value FROM generate_series({next}, {})", next + 99);
                    next += 100;
                    // It may be refused where its place is only just left.
                    let written = client.update(&format!("INSERT INTO written {rows}")).await;
                    acknowledged += written.unwrap_or_default();
                }
                acknowledged
            }));
        }
        wait_until(&mut client, "SELECT count(*) FROM written").await;
        let status = cluster.terminate("worker-2", MOVED_WITHIN).unwrap();
        assert!(status.success(), "{status}");
        std::fs::remove_dir_all(cluster.data_dir("worker-2").unwrap()).unwrap();
        is_over.store(true, Ordering::Relaxed);
        let mut acknowledged = 0;
        for writer in writers {
            acknowledged += writer.await.unwrap();
        }
        assert!(acknowledged > 0);
        let found = in_time(client.number("SELECT count(*) FROM written")).await.unwrap();
        assert!(found >= acknowledged, "{found} of {acknowledged} rows\n{}", shown(&mut client).await);
    });
}

#[test]
fn a_worker_whose_shards_nobody_can_take_stops_at_a_second_signal() {
    let cluster = draining_at_the_end(2);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 4, replicas = 2").await;
        let asking = Asking::begin(&cluster).await;

        let process = i32::try_from(cluster.pid("worker-1").unwrap()).unwrap();
        kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-1' AND drain = 'draining'", 1).await;
        let missing = "public.moved is to have 2 copies of each shard, and only 1 other worker can hold one";
        let since = Instant::now();
        while !log_of(&cluster, "worker-1").contains(missing) {
            assert!(since.elapsed() < MOVED_WITHIN, "{}", log_of(&cluster, "worker-1"));
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        tokio::time::sleep(STAYS).await;
        assert!(cluster.crashed().is_empty(), "it does not wait");
        wait_for(&mut client, "workers", "worker = 'worker-1' AND state = 'live'", 1).await;
        wait_for_copies(&mut client, 2).await;

        let status = cluster.terminate("worker-1", ENDS_WITHIN).unwrap();
        assert!(status.success(), "{status}");
        assert!(!segments_on(&cluster, "worker-1").is_empty());
        check_answer(&mut client).await;
        asking.end().await;
    });
}
