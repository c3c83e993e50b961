//! Shards that go to other workers: because theirs is gone for good, is
//! drained, or holds more than others, or because a table asks for more copies
//! or fewer. No query notices, and no disk keeps what nobody needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use shoal_benches::disk::files_below;
use shoal_benches::load::bytes_on_each;
use shoal_benches::small_disk::SmallDisk;
use shoal_benches::{Client, ClientError, Cluster, ClusterOptions};
use tokio::task::JoinHandle;

use crate::fixture::{in_time, options, own, session, wait_until};

mod drains;

const ROWS: i64 = 40_000;
/// How many rows there are, and what their keys come to.
const ANSWER: (i64, i64) = (ROWS, ROWS * (ROWS + 1) / 2);
/// How long moves may take on a machine that does other things: also a copy
/// that failed and is ordered again, after a minute.
const MOVED_WITHIN: Duration = Duration::from_secs(150);
/// How often it is looked whether they are done.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// So long nothing may change. Shards are looked after once in a second.
const STAYS: Duration = Duration::from_secs(3);
/// How long a worker may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// A cluster that gives up workers that are away for so long.
fn giving_up_after(workers: usize, dead_after: &str) -> Cluster {
    let coordinator_args = ["--dead-after", dead_after].map(str::to_owned).to_vec();
    Cluster::start(&ClusterOptions { coordinator_args, ..options(workers) }).unwrap()
}

async fn make_rows(client: &mut Client, options: &str) {
    for sql in [
        format!("CREATE TABLE moved (k BIGINT NOT NULL, s VARCHAR) WITH (shard_key = 'k', {options})"),
        format!(
            "INSERT INTO moved SELECT value, md5(CAST(value AS VARCHAR)) FROM generate_series(1, {ROWS})"
        ),
    ] {
        client.update(&sql).await.unwrap();
    }
}

async fn answer(client: &mut Client) -> Result<(i64, i64), ClientError> {
    let batches = client.query("SELECT count(*), sum(k) FROM moved WHERE s <> ''").await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("no row");
    let number = |index: usize| batch.column(index).as_primitive::<Int64Type>().value(0);
    Ok((number(0), number(1)))
}

async fn check_answer(client: &mut Client) {
    assert_eq!(in_time(answer(client)).await.unwrap(), ANSWER);
}

/// Asks for the answer again and again, meanwhile.
struct Asking {
    is_over: Arc<AtomicBool>,
    answers: JoinHandle<usize>,
}

impl Asking {
    async fn begin(cluster: &Cluster) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut client = session(cluster).await;
        let answers = tokio::spawn({
            let is_over = Arc::clone(&is_over);
            async move {
                let mut answers = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let given = in_time(answer(&mut client)).await;
                    assert_eq!(given.unwrap(), ANSWER, "after {answers} right answers");
                    answers += 1;
                }
                answers
            }
        });
        Self { is_over, answers }
    }

    /// Every answer was right, and there were some.
    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let answers = self.answers.await.unwrap();
        eprintln!("{answers} right answers meanwhile");
        assert!(answers > 0, "nothing was asked");
    }
}

/// How many rows of a system table are so.
fn count(table: &str, what: &str) -> String {
    format!("SELECT count(*) FROM system.{table} WHERE {what}")
}

/// Waits until a system table has so many rows of which that is true.
async fn wait_for(client: &mut Client, table: &str, what: &str, wanted: i64) {
    let since = Instant::now();
    loop {
        let found = client.number(&count(table, what)).await.unwrap();
        if found == wanted {
            return;
        }
        if since.elapsed() > MOVED_WITHIN {
            let shown = shown(client).await;
            panic!("system.{table} has {found} rows, and not {wanted}, with {what}\n{shown}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Waits until each shard has so many copies, where they should be, all of them
/// complete and none too many.
async fn wait_for_copies(client: &mut Client, copies: i64) {
    wait_for(client, "shards", &format!("replicas_live <> {copies}"), 0).await;
    wait_for(client, "segments", &format!("array_length(replicas) <> {copies}"), 0).await;
}

/// Waits until the disks of these workers hold what the catalog says, and
/// nothing else.
async fn wait_until_held(cluster: &Cluster, client: &mut Client, workers: &[&str]) {
    let since = Instant::now();
    for worker in workers {
        loop {
            let named = format!("SELECT segment FROM system.segments WHERE array_has(replicas, '{worker}')");
            let named = client.text(&named).await.unwrap();
            let named: BTreeSet<String> = named.lines().map(str::to_owned).collect();
            let held = segments_on(cluster, worker);
            if held == named {
                break;
            }
            assert!(
                since.elapsed() < MOVED_WITHIN,
                "{worker} holds {held:?}, and the catalog says {named:?}"
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

fn segments_on(cluster: &Cluster, worker: &str) -> BTreeSet<String> {
    let files = files_below(&cluster.data_dir(worker).unwrap().join("segments"));
    let names = files.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".parquet"));
    names.map(str::to_owned).collect()
}

/// Where each shard should be.
async fn placement(client: &mut Client) -> String {
    let sql = "SELECT CAST(shard AS VARCHAR) || ': ' || array_to_string(workers, ', ') FROM system.shards \
               ORDER BY shard";
    client.text(sql).await.unwrap()
}

async fn shown(client: &mut Client) -> String {
    let mut text = String::new();
    for table in ["workers", "shards", "segments", "moves", "events"] {
        let batches = client.query(&format!("SELECT * FROM system.{table}")).await.unwrap();
        let table = arrow::util::pretty::pretty_format_batches(&batches).unwrap();
        text.push_str(&table.to_string());
        text.push('\n');
    }
    text
}

#[test]
fn shards_of_a_worker_that_is_gone_for_good_get_others() {
    let cluster = giving_up_after(4, "2s");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 3").await;
        let dropped =
            "CREATE TABLE dropped WITH (shards = 4, replicas = 3, shard_key = 'k') AS SELECT * FROM moved";
        client.update(dropped).await.unwrap();
        assert!(!segments_on(&cluster, "worker-1").is_empty());
        let asking = Asking::begin(&cluster).await;

        cluster.kill("worker-1").unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-1' AND state = 'dead'", 1).await;
        wait_for(&mut client, "shards", "array_has(workers, 'worker-1')", 0).await;
        wait_for_copies(&mut client, 3).await;
        wait_until_held(&cluster, &mut client, &["worker-2", "worker-3", "worker-4"]).await;
        client.update("DROP TABLE dropped").await.unwrap();

        // Nobody is left to take its place, and two copies are enough.
        cluster.kill("worker-2").unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-2' AND state = 'dead'", 1).await;
        check_answer(&mut client).await;

        // The first is back, and takes the place of the second.
        cluster.restart("worker-1").unwrap();
        cluster.wait_until_joined(3).unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-1' AND state = 'live'", 1).await;
        wait_for(&mut client, "shards", "array_has(workers, 'worker-2')", 0).await;
        wait_for_copies(&mut client, 3).await;
        wait_until_held(&cluster, &mut client, &["worker-1", "worker-3", "worker-4"]).await;
        wait_for(&mut client, "moves", "TRUE", 0).await;
        asking.end().await;
        check_answer(&mut client).await;

        for what in [
            "kind = 'lost' AND worker = 'worker-1'",
            "kind = 'dead' AND worker = 'worker-1'",
            "kind = 'dead' AND worker = 'worker-2'",
            "kind = 'moved' AND message LIKE '%from worker-1 to %'",
            "kind = 'moved' AND message LIKE '%from worker-2 to worker-1%'",
        ] {
            let events = client.number(&count("events", what)).await.unwrap();
            assert!(events > 0, "no event with {what}\n{}", shown(&mut client).await);
        }
    });
}

#[test]
fn a_worker_that_is_back_in_time_keeps_its_shards() {
    let cluster = giving_up_after(4, "60s");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 2").await;
        let before = placement(&mut client).await;
        let asking = Asking::begin(&cluster).await;
        cluster.kill("worker-2").unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-2' AND state = 'lost'", 1).await;
        tokio::time::sleep(STAYS).await;
        assert_eq!(placement(&mut client).await, before);
        cluster.restart("worker-2").unwrap();
        cluster.wait_until_joined(4).unwrap();
        wait_for_copies(&mut client, 2).await;
        tokio::time::sleep(STAYS).await;
        assert_eq!(placement(&mut client).await, before);
        asking.end().await;
        let moved = client.number(&count("events", "kind IN ('dead', 'moved')")).await.unwrap();
        assert_eq!(moved, 0, "{}", shown(&mut client).await);
    });
}

#[test]
fn a_worker_that_joins_gets_shards_until_all_hold_as_much() {
    let cluster = own(4);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 12, replicas = 2").await;
        let shard = client.number("SELECT max(bytes) FROM system.shards").await.unwrap();
        let asking = Asking::begin(&cluster).await;
        let worker = cluster.add_worker().unwrap();
        assert_eq!(worker, "worker-5");
        cluster.wait_until_joined(5).unwrap();
        let since = Instant::now();
        loop {
            let bytes = bytes_on_each(&mut client, &cluster.worker_names()).await.unwrap();
            let gap = bytes.iter().max().unwrap() - bytes.iter().min().unwrap();
            // A shard that is as large as the gap would only turn it round.
            if 2 * gap <= 3 * shard {
                break;
            }
            if since.elapsed() > MOVED_WITHIN {
                panic!("{bytes:?}, of shards of {shard}\n{}", shown(&mut client).await);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        wait_for(&mut client, "moves", "TRUE", 0).await;
        wait_for_copies(&mut client, 2).await;
        let workers = ["worker-1", "worker-2", "worker-3", "worker-4", "worker-5"];
        wait_until_held(&cluster, &mut client, &workers).await;
        asking.end().await;
        check_answer(&mut client).await;
        // A fifth of 24 copies.
        let copies = client.number(&count("shards", "array_has(workers, 'worker-5')")).await.unwrap();
        assert!((4..=5).contains(&copies), "{copies} copies\n{}", shown(&mut client).await);
    });
}

#[test]
fn nothing_goes_to_a_full_disk_until_there_is_room() {
    if let Some(why) = SmallDisk::refusal() {
        eprintln!("no disk was filled up, because none can be mounted here: {why}");
        return;
    }
    let cluster = Cluster::start(&ClusterOptions { disk_bytes: Some(128 << 20), ..options(3) }).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        let room = "worker = 'worker-1' AND disk_total_bytes = 134217728 AND disk_free_bytes";
        wait_for(&mut client, "workers", &format!("{room} > 100000000"), 1).await;
        cluster.disk("worker-1").unwrap().fill().unwrap();
        wait_for(&mut client, "workers", &format!("{room} < 1000000"), 1).await;

        make_rows(&mut client, "shards = 6, replicas = 2").await;
        let there = count("shards", "array_has(workers, 'worker-1')");
        let asking = Asking::begin(&cluster).await;
        let since = Instant::now();
        while since.elapsed() < STAYS {
            assert_eq!(client.number(&there).await.unwrap(), 0, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        wait_for_copies(&mut client, 2).await;
        client.notices().await.unwrap();
        client.update("CREATE TABLE three (k BIGINT) WITH (shards = 4, replicas = 3)").await.unwrap();
        let notices = client.notices().await.unwrap().join("; ");
        assert!(notices.contains("there are 2 workers live whose disks are not full"), "{notices}");
        assert_eq!(client.number(&there).await.unwrap(), 0, "{}", shown(&mut client).await);
        client.update("INSERT INTO three VALUES (1), (2), (3)").await.unwrap();

        cluster.disk("worker-1").unwrap().empty().unwrap();
        // A part of the one, and a copy of each shard of the other.
        let moved = "\"table\" = 'moved' AND array_has(workers, 'worker-1')";
        let since = Instant::now();
        while client.number(&count("shards", moved)).await.unwrap() == 0 {
            assert!(since.elapsed() < MOVED_WITHIN, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        wait_for(&mut client, "shards", "\"table\" = 'three' AND replicas_live = 3", 4).await;
        wait_for(&mut client, "moves", "TRUE", 0).await;
        check_answer(&mut client).await;
        asking.end().await;
    });
}

#[test]
fn a_rebalance_waits_for_nobody_whichever_coordinator_is_asked() {
    let cluster = Cluster::start(&ClusterOptions { coordinators: 3, ..options(3) }).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let leader = cluster.leader().unwrap();
        let mut followers = cluster.coordinator_names().into_iter().filter(|name| *name != leader);
        let mut client = cluster.connect_to(&followers.next_back().unwrap()).await.unwrap();
        make_rows(&mut client, "shards = 12, replicas = 2").await;
        let rows = client.query("REBALANCE").await.unwrap();
        assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 0);
        let notices = client.notices().await.unwrap().join("; ");
        assert!(notices.contains("nothing to move: "), "{notices}");

        cluster.kill("worker-3").unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-3' AND state = 'lost'", 1).await;
        cluster.add_worker().unwrap();
        cluster.wait_until_joined(3).unwrap();
        let there = count("shards", "array_has(workers, 'worker-4')");
        let since = Instant::now();
        while since.elapsed() < STAYS {
            assert_eq!(client.number(&there).await.unwrap(), 0, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let to = client.text("REBALANCE").await.unwrap();
        let to: Vec<&str> = to.lines().collect();
        assert!(to.len() >= 4 && to.iter().all(|worker| *worker == "worker-4"), "{to:?}");
        assert_eq!(client.number(&there).await.unwrap(), i64::try_from(to.len()).unwrap());
        wait_for(&mut client, "moves", "worker = 'worker-4'", 0).await;
        check_answer(&mut client).await;

        cluster.restart("worker-3").unwrap();
        cluster.wait_until_joined(4).unwrap();
        wait_for_copies(&mut client, 2).await;
        check_answer(&mut client).await;
        let error = client.update("REBALANCE").await.unwrap_err().message;
        assert!(error.contains("run it as a query"), "{error}");
    });
}

#[test]
fn what_only_moves_is_slow_and_what_is_in_danger_is_not() {
    // A byte a second: no copy comes to its end at that.
    let coordinator_args = ["--move-rate", "1"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(&ClusterOptions { coordinator_args, ..options(3) }).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 6, replicas = 2").await;
        let asking = Asking::begin(&cluster).await;
        client.update("ALTER WORKER 'worker-1' DRAIN").await.unwrap();
        let moves = "kind = 'drain' AND state = 'copying' AND segments_done = 0 AND bytes_left > 0";
        wait_for(&mut client, "moves", moves, 4).await;
        let since = Instant::now();
        while since.elapsed() < STAYS {
            let moving = client.number(&count("moves", moves)).await.unwrap();
            assert_eq!(moving, 4, "{}", shown(&mut client).await);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        // The copies that were to leave are lost before there are others.
        cluster.kill("worker-1").unwrap();
        wait_for(&mut client, "moves", "TRUE", 0).await;
        wait_for_copies(&mut client, 2).await;
        asking.end().await;
        check_answer(&mut client).await;
    });
}

#[test]
fn a_table_that_is_everywhere_can_be_written_after_a_worker_was_replaced() {
    let cluster = own(2);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for sql in [
            "CREATE TABLE everywhere (k BIGINT) WITH (replicas = 'all')",
            "INSERT INTO everywhere VALUES (1), (2)",
        ] {
            client.update(sql).await.unwrap();
        }
        cluster.add_worker().unwrap();
        cluster.wait_until_joined(3).unwrap();
        wait_for(&mut client, "segments", "array_has(replicas, 'worker-3')", 1).await;
        client.update("ALTER WORKER 'worker-1' DRAIN").await.unwrap();
        wait_for(&mut client, "workers", "worker = 'worker-1' AND drain = 'drained'", 1).await;
        // Two of its three copies are on workers that stay.
        wait_for(&mut client, "shards", "array_has(workers, 'worker-3')", 1).await;
        let status = cluster.terminate("worker-1", ENDS_WITHIN).unwrap();
        assert!(status.success(), "{status}");
        client.update("INSERT INTO everywhere VALUES (3)").await.unwrap();
        assert_eq!(client.number("SELECT sum(k) FROM everywhere").await.unwrap(), 6);
    });
}

#[test]
fn a_table_gets_as_many_copies_as_it_is_told() {
    let cluster = own(4);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 4, replicas = 3").await;
        for (sql, part) in [
            ("ALTER TABLE moved SET (replicas = 0)", "from 1 to 64, or 'all'"),
            ("ALTER TABLE moved SET (shards = 4)", "only replicas can be changed"),
            ("ALTER TABLE moved SET (replicas = 2, shards = 4)", "only replicas can be changed"),
            ("ALTER TABLE moved SET (copies = 2)", "`copies` is not a table option"),
            ("ALTER TABLE moved ADD COLUMN more INT", "ALTER TABLE t SET (replicas = 2)"),
            ("ALTER TABLE nowhere SET (replicas = 2)", "'public.nowhere' not found"),
        ] {
            let error = client.update(sql).await.unwrap_err().message;
            assert!(error.contains(part), "{sql}: {error}");
        }
        client.update("ALTER TABLE IF EXISTS nowhere SET (replicas = 2)").await.unwrap();

        let asking = Asking::begin(&cluster).await;
        let workers = ["worker-1", "worker-2", "worker-3", "worker-4"];
        for (replicas, copies) in [("1", 1), ("3", 3), ("'all'", 4), ("2", 2)] {
            client.update(&format!("ALTER TABLE moved SET (replicas = {replicas})")).await.unwrap();
            wait_for_copies(&mut client, copies).await;
            // Files of copies that are too many are gone, too.
            wait_until_held(&cluster, &mut client, &workers).await;
            check_answer(&mut client).await;
        }
        let said = client.text("SELECT replicas FROM system.tables").await.unwrap();
        assert_eq!(said.trim(), "2");
        asking.end().await;
    });
}
