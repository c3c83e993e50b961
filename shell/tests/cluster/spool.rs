//! Results that wait until all of it is there: in memory, then in a file that
//! has no name, or, where there is not room enough, not at all. What is left of
//! them when processes end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow_flight::decode::FlightRecordBatchStream;
use futures::StreamExt;
use shoal_benches::disk::files_below;
use shoal_benches::process::{peak_bytes, reset_peak, resident_bytes};
use shoal_benches::{Client, ClientError, Cluster};

use crate::fixture::own;

const MIB: u64 = 1 << 20;
/// As many rows as this, of some 100 bytes each, are far more than there is on
/// the way to a client that takes none.
const ROWS: i64 = 1_000_000;
/// What of them is in the file at least.
const WAITING_MIN: u64 = 32 * MIB;
/// Comes out of an exchange, so nothing of it can be resumed.
const SQL: &str = "SELECT max(k), s FROM spooled GROUP BY s";
/// So many rows are some 190 MB in memory.
const PEAK_ROWS: i64 = 2_000_000;
/// What the coordinator may need for a result that waits on disk: what is on
/// the way from workers and to the disk.
const GROWTH_MAX: u64 = 96 * MIB;
/// What it needs at least for one that waits in memory.
const GROWTH_IN_MEMORY_MIN: u64 = 128 * MIB;
/// How long a whole test may take on a slow machine.
const ENDS_WITHIN: Duration = Duration::from_secs(240);
/// How long a file may stay open when nobody needs it.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// A session whose rows may wait in so much memory, and then on so much disk.
async fn session(cluster: &Cluster, memory: &str, disk: &str) -> Client {
    let mut client = cluster.connect().await.unwrap();
    for (setting, value) in [("task_bytes", "1"), ("spool_memory", memory), ("spool_disk", disk)] {
        client.update(&format!("SET shoal.{setting} = '{value}'")).await.unwrap();
    }
    client
}

async fn make_rows(cluster: &Cluster, rows: i64) {
    let mut client = cluster.connect().await.unwrap();
    for sql in [
        "CREATE TABLE spooled (k BIGINT, s VARCHAR) WITH (shards = 8, replicas = 2, shard_key = 'k')",
        &format!(
            "INSERT INTO spooled SELECT value, \
             'a text that is long enough for many of them to take up some room: ' || value \
             FROM generate_series(1, {rows})"
        ),
    ] {
        client.update(sql).await.unwrap();
    }
}

/// All rows of a result, and the sum of their keys.
async fn sum(mut stream: FlightRecordBatchStream) -> Result<(i64, i64), ClientError> {
    let (mut rows, mut keys) = (0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows() as i64;
        keys += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    Ok((rows, keys))
}

/// What [`sum`] gives of a whole result of so many rows.
fn whole(rows: i64) -> (i64, i64) {
    (rows, rows * (rows + 1) / 2)
}

fn spool(cluster: &Cluster) -> PathBuf {
    cluster.data_dir("coordinator").unwrap().join("spool").canonicalize().unwrap()
}

/// Files in the spool that have a name.
fn named(cluster: &Cluster) -> Vec<PathBuf> {
    files_below(&spool(cluster))
}

/// Bytes of the largest file that the coordinator has open in the spool and
/// that has no name; 0 where it has none.
fn nameless_bytes(cluster: &Cluster) -> u64 {
    let spool = spool(cluster);
    let open = format!("/proc/{}/fd", cluster.pid("coordinator").unwrap());
    let links = std::fs::read_dir(open).unwrap().flatten().map(|entry| entry.path());
    let nameless = links.filter(|link| {
        std::fs::read_link(link).is_ok_and(|target| {
            target.starts_with(&spool) && target.to_string_lossy().ends_with(" (deleted)")
        })
    });
    // What was closed meanwhile is left out.
    nameless.filter_map(|link| std::fs::metadata(link).ok()).map(|file| file.len()).max().unwrap_or(0)
}

/// Waits until the coordinator has closed what has no name.
async fn expect_closed(cluster: &Cluster) {
    let since = Instant::now();
    while nameless_bytes(cluster) > 0 {
        assert!(since.elapsed() < CLOSED_WITHIN, "{} bytes are still there", nameless_bytes(cluster));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many results were handed out before all of them was there.
fn handed_out(cluster: &Cluster) -> usize {
    let log = std::fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
    log.matches("spool is full: rows are handed out").count()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(ENDS_WITHIN, test).await.unwrap() });
}

#[test]
fn rows_wait_in_a_file_without_a_name_and_leave_nothing_there() {
    let cluster = own(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_rows(&cluster, ROWS).await;
        let none = Vec::<PathBuf>::new();

        // Memory is enough for all.
        let mut client = session(&cluster, "1GiB", "1GiB").await;
        let stream = client.stream(SQL).await.unwrap();
        assert_eq!(nameless_bytes(&cluster), 0, "memory was enough");
        assert_eq!(sum(stream).await.unwrap(), whole(ROWS));

        // It is not: the rest waits on disk, and while it waits no worker is needed.
        for memory in ["0", "1MiB"] {
            let mut client = session(&cluster, memory, "1GiB").await;
            let stream = client.stream(SQL).await.unwrap();
            let bytes = nameless_bytes(&cluster);
            assert!(bytes > WAITING_MIN, "only {bytes} bytes wait on disk, with {memory} of memory");
            assert_eq!(named(&cluster), none);
            for worker in ["worker-1", "worker-2"] {
                cluster.kill(worker).unwrap();
            }
            assert_eq!(sum(stream).await.unwrap(), whole(ROWS), "with {memory} of memory");
            expect_closed(&cluster).await;
            assert_eq!(named(&cluster), none);
            for worker in ["worker-1", "worker-2"] {
                cluster.restart(worker).unwrap();
            }
            cluster.wait_until_joined(2).unwrap();
        }
        // A client that goes away leaves nothing either.
        let mut client = session(&cluster, "0", "1GiB").await;
        let stream = client.stream(SQL).await.unwrap();
        assert!(nameless_bytes(&cluster) > WAITING_MIN);
        drop((stream, client));
        expect_closed(&cluster).await;
        assert_eq!(handed_out(&cluster), 0, "there was room for all");

        // Neither is enough: rows are handed out as they come, and a worker that
        // is lost then is an error and no short answer.
        let mut client = session(&cluster, "0", "1MiB").await;
        assert_eq!(sum(client.stream(SQL).await.unwrap()).await.unwrap(), whole(ROWS));
        assert_eq!(handed_out(&cluster), 1);
        let stream = client.stream(SQL).await.unwrap();
        assert_eq!(handed_out(&cluster), 2);
        cluster.kill("worker-1").unwrap();
        let message = sum(stream).await.unwrap_err().message;
        assert!(message.contains("worker-1"), "{message}");
        cluster.restart("worker-1").unwrap();
        cluster.wait_until_joined(2).unwrap();

        // The coordinator ends in the middle, as with a power cut.
        let mut client = session(&cluster, "0", "1GiB").await;
        let stream = client.stream(SQL).await.unwrap();
        assert!(nameless_bytes(&cluster) > WAITING_MIN);
        cluster.kill("coordinator").unwrap();
        drop((stream, client));
        assert_eq!(named(&cluster), none, "before the restart");
        // What has a name there, of whomever, goes with the restart.
        std::fs::write(spool(&cluster).join("left behind"), "rows of before").unwrap();
        cluster.restart("coordinator").unwrap();
        assert_eq!(named(&cluster), none, "after the restart");
        cluster.wait_until_joined(2).unwrap();
        let mut client = session(&cluster, "0", "1GiB").await;
        assert_eq!(sum(client.stream(SQL).await.unwrap()).await.unwrap(), whole(ROWS));
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// By how much the coordinator grows at most while it answers [`SQL`].
async fn growth(cluster: &Cluster, spool_memory: &str) -> u64 {
    // A new process: what the one before has freed and kept would hide what is
    // needed.
    cluster.restart("coordinator").unwrap();
    cluster.wait_until_joined(2).unwrap();
    let mut client = session(cluster, spool_memory, "2GiB").await;
    assert_eq!(client.number("SELECT count(*) FROM spooled").await.unwrap(), PEAK_ROWS);
    let coordinator = cluster.pid("coordinator").unwrap();
    let before = resident_bytes(coordinator);
    reset_peak(coordinator).unwrap();
    let stream = client.stream(SQL).await.unwrap();
    assert_eq!(sum(stream).await.unwrap(), whole(PEAK_ROWS));
    peak_bytes(coordinator).saturating_sub(before)
}

#[test]
fn rows_that_wait_on_disk_take_no_more_memory_than_they_may() {
    let cluster = own(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_rows(&cluster, PEAK_ROWS).await;
        let on_disk = growth(&cluster, "1MiB").await;
        let in_memory = growth(&cluster, "1GiB").await;
        eprintln!("grown by {} MiB, and in memory by {} MiB", on_disk / MIB, in_memory / MIB);
        assert!(on_disk < GROWTH_MAX, "the coordinator grew by {} MiB", on_disk / MIB);
        // That much can be seen.
        assert!(in_memory > GROWTH_IN_MEMORY_MIN, "the coordinator grew by only {} MiB", in_memory / MIB);
        assert_eq!(handed_out(&cluster), 0, "there was room for all");
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
