//! Files of segments that are damaged where no query reads them: at the start
//! of a worker, and by the scrub; and what a worker sends of them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shoal_benches::disk::{files_below, flip};
use shoal_benches::{Client, Cluster};
use shoal_data::file_stream;
use shoal_proto::{Channels, ErrorCode, Failure};

use crate::fixture::{options, own};
use crate::settled::wait_until_settled;

const ROWS: i64 = 100_000;
/// How long the scrub may take to come by, on a machine that does other things.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

async fn make_rows(client: &mut Client, table: &str, replicas: u32) {
    client
        .update(&format!(
            "CREATE TABLE {table} (k BIGINT, s VARCHAR) WITH (shards = 4, replicas = {replicas}, shard_key = 'k')"
        ))
        .await
        .unwrap();
    client
        .update(&format!("INSERT INTO {table} SELECT value, 'row ' || value FROM generate_series(1, {ROWS})"))
        .await
        .unwrap();
}

fn segments(cluster: &Cluster, worker: &str) -> Vec<PathBuf> {
    let files = files_below(&cluster.data_dir(worker).unwrap().join("segments"));
    files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect()
}

fn sums(segment: &Path) -> PathBuf {
    segment.with_added_extension("sums")
}

/// What a worker sends of the segment in this file when it is asked as a peer
/// would ask.
async fn sent(
    cluster: &Cluster,
    worker: &str,
    segment: &Path,
    range: Range<u64>,
) -> Result<Vec<u8>, Failure> {
    let dir = cluster.data_dir(worker).unwrap().join("segments");
    let name = segment.strip_prefix(dir).unwrap().to_str().unwrap();
    let address = format!("http://{}", cluster.address(worker).unwrap());
    let channels = Channels::new(tokio::runtime::Handle::current());
    let bytes = file_stream::receive_all(&channels, &address, name, range, file_stream::STALL_MAX).await?;
    Ok(bytes.to_vec())
}

/// A cluster whose workers look for rot at this rate.
fn scrubbed(workers: usize, rate: &str) -> Cluster {
    let mut options = options(workers);
    options.worker_args = ["--scrub-rate", rate].map(str::to_owned).to_vec();
    Cluster::start(&options).unwrap()
}

#[test]
fn segments_that_cannot_be_verified_at_the_start_are_copied_anew() {
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "st_rows", 3).await;
        let files = segments(&cluster, "worker-1");
        let whole: Vec<_> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        cluster.kill("worker-1").unwrap();
        // Rot that new checksums would bless.
        std::fs::remove_file(sums(&files[0])).unwrap();
        assert!(flip(&files[0], whole[0].len() as u64 / 2, 1).unwrap());
        // No checksums, damaged checksums, a segment cut short.
        std::fs::remove_file(sums(&files[1])).unwrap();
        assert!(flip(&sums(&files[2]), 30, 1).unwrap());
        std::fs::write(&files[3], &whole[3][..whole[3].len() - 1]).unwrap();
        cluster.restart("worker-1").unwrap();
        wait_until_settled(&cluster, 3).await;
        for (path, bytes) in files.iter().zip(&whole) {
            assert!(std::fs::read(path).unwrap() == *bytes, "{} is not as it was", path.display());
        }
        let sum = client.number("SELECT sum(k) FROM st_rows").await.unwrap();
        assert_eq!(sum, ROWS * (ROWS + 1) / 2);
    });
}

#[test]
fn the_only_copy_is_not_destroyed() {
    let cluster = own(1);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "st_only", 1).await;
        let files = segments(&cluster, "worker-1");
        let whole = std::fs::read(&files[0]).unwrap();
        cluster.kill("worker-1").unwrap();
        std::fs::remove_file(sums(&files[0])).unwrap();
        cluster.restart("worker-1").unwrap();
        cluster.wait_until_joined(1).unwrap();
        let error = client.query("SELECT sum(k) FROM st_only").await.unwrap_err();
        eprintln!("{error}");
        let aside = files_below(&cluster.data_dir("worker-1").unwrap().join("damaged"));
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert!(std::fs::read(&aside[0]).unwrap() == whole);
        // Nobody needs it any more, and the worker hears of it when it is back.
        cluster.kill("worker-1").unwrap();
        client.update("DROP TABLE st_only").await.unwrap();
        cluster.restart("worker-1").unwrap();
        cluster.wait_until_joined(1).unwrap();
        wait_until_settled(&cluster, 1).await;
    });
}

#[test]
fn rot_that_no_query_meets_is_found_by_the_scrub() {
    let cluster = scrubbed(3, "64MiB");
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "sc_rows", 3).await;
        let files = segments(&cluster, "worker-2");
        let sums = sums(&files[1]);
        let whole = [&files[0], &files[1], &sums].map(|path| std::fs::read(path).unwrap());
        assert!(flip(&files[0], whole[0].len() as u64 / 3, 0x10).unwrap());
        assert!(flip(&sums, whole[2].len() as u64 - 1, 0x10).unwrap());
        let since = Instant::now();
        loop {
            let found = "SELECT damaged FROM system.scrub WHERE worker = 'worker-2'";
            let is_found = client.number(found).await.unwrap_or(0) == 2;
            let now = [&files[0], &files[1], &sums].map(|path| std::fs::read(path).unwrap_or_default());
            if is_found && now == whole {
                break;
            }
            assert!(since.elapsed() < FOUND_WITHIN, "{}", shown(&mut client).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        eprintln!("found and repaired after {:?}", since.elapsed());
        wait_until_settled(&cluster, 3).await;
        // Others found nothing, and a round ends.
        let others = "SELECT sum(damaged) FROM system.scrub WHERE worker <> 'worker-2'";
        assert_eq!(client.number(others).await.unwrap(), 0);
        let ended = "SELECT count(*) FROM system.scrub WHERE round >= 1 AND segments_done <= segments_total \
                     AND bytes_per_second = 67108864 AND since_round_ms IS NOT NULL";
        while client.number(ended).await.unwrap() < 3 {
            assert!(since.elapsed() < 2 * FOUND_WITHIN, "{}", shown(&mut client).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn the_scrub_reads_no_faster_than_it_may() {
    const BYTES_PER_SECOND: u64 = 1 << 20;
    let cluster = scrubbed(1, "1MiB");
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        // Text that does not get shorter.
        for sql in [
            "CREATE TABLE sc_much (k BIGINT, s VARCHAR) WITH (shards = 4, replicas = 1, shard_key = 'k')",
            "INSERT INTO sc_much SELECT value, md5(CAST(value AS VARCHAR)) FROM generate_series(1, 400000)",
        ] {
            client.update(sql).await.unwrap();
        }
        let files = segments(&cluster, "worker-1");
        let bytes: u64 = files.iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(bytes > 8 * BYTES_PER_SECOND, "only {bytes} bytes to read");
        // A new process begins its first round at once, and the old one was
        // through with its own, of nothing, before there was a table.
        let since = Instant::now();
        cluster.restart("worker-1").unwrap();
        cluster.wait_until_joined(1).unwrap();
        let asked = "SELECT bytes_done FROM system.scrub WHERE round = 1";
        loop {
            let done = u64::try_from(client.number(asked).await.unwrap_or(0)).unwrap();
            let elapsed = since.elapsed();
            let allowed = elapsed.as_secs_f64() * BYTES_PER_SECOND as f64 + 2.0 * BYTES_PER_SECOND as f64;
            assert!(done as f64 <= allowed, "{done} of {bytes} bytes after {elapsed:?}");
            if done > 0 && elapsed >= Duration::from_secs(3) {
                break;
            }
            assert!(elapsed < FOUND_WITHIN, "{}", shown(&mut client).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_worker_sends_no_bytes_that_are_not_those_that_were_written() {
    // Nothing but the calls of this test may find the damage.
    let cluster = scrubbed(1, "0");
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "st_sent", 1).await;
        let off = "SELECT count(*) FROM system.scrub WHERE round = 0 AND bytes_per_second = 0";
        assert_eq!(client.number(off).await.unwrap(), 1, "{}", shown(&mut client).await);
        let path = &segments(&cluster, "worker-1")[0];
        let whole = std::fs::read(path).unwrap();
        let (bytes, middle) = (whole.len() as u64, whole.len() as u64 / 2);
        assert!(sent(&cluster, "worker-1", path, 0..bytes).await.unwrap() == whole);
        assert!(flip(path, middle, 1).unwrap());
        let failure = sent(&cluster, "worker-1", path, middle..middle + 1).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Corrupt, "{failure}");
        // It is set aside by now, and nothing of it is sent any more.
        let failure = sent(&cluster, "worker-1", path, 0..1).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::NotFound, "{failure}");
    });
}

#[test]
fn segments_in_one_anothers_places_are_noticed_and_repaired() {
    // Without a scrub it is the reads that notice.
    let cluster = scrubbed(2, "0");
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        // The same keys, and values of which there are two: segments of the same
        // shard have the same length.
        for (table, value) in [("sw_one", 1), ("sw_two", 2)] {
            let columns = "(k BIGINT, v BIGINT) WITH (shards = 8, replicas = 2, shard_key = 'k')";
            client.update(&format!("CREATE TABLE {table} {columns}")).await.unwrap();
            let rows = format!("SELECT value, value % 2 * 2 + {value} FROM generate_series(1, 8000)");
            client.update(&format!("INSERT INTO {table} {rows}")).await.unwrap();
        }
        let files = segments(&cluster, "worker-1");
        assert_eq!(files.len(), 16, "{files:?}");
        let whole: Vec<_> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        for shard in 0..8 {
            let (one, other) = (shard, shard + 8);
            assert_eq!(whole[one].len(), whole[other].len());
            assert!(whole[one] != whole[other]);
            swap(&files[one], &files[other]);
            swap(&sums(&files[one]), &sums(&files[other]));
        }
        // Each worker reads some shards, so that those are read too.
        client.update("SET shoal.task_bytes = 1").await.unwrap();
        let since = Instant::now();
        let noticed = "SELECT damaged FROM system.scrub WHERE worker = 'worker-1'";
        while client.number(noticed).await.unwrap_or(0) == 0 {
            check_sums(&mut client).await;
            assert!(since.elapsed() < FOUND_WITHIN, "{}", shown(&mut client).await);
        }
        // Each is refused, unless it is repaired by now.
        for (path, bytes) in files.iter().zip(&whole) {
            match sent(&cluster, "worker-1", path, 0..bytes.len() as u64).await {
                Ok(sent) => assert!(sent == *bytes, "another segment was sent for {}", path.display()),
                Err(failure) => {
                    let is_refused = matches!(failure.code, ErrorCode::Corrupt | ErrorCode::NotFound);
                    assert!(is_refused, "{}: {failure}", path.display());
                }
            }
        }
        wait_until_settled(&cluster, 2).await;
        for (path, bytes) in files.iter().zip(&whole) {
            assert!(std::fs::read(path).unwrap() == *bytes, "{} is not as it was", path.display());
        }
        check_sums(&mut client).await;
    });
}

/// Puts two files in each other's places.
fn swap(one: &Path, other: &Path) {
    let aside = one.with_added_extension("aside");
    std::fs::rename(one, &aside).unwrap();
    std::fs::rename(other, one).unwrap();
    std::fs::rename(&aside, other).unwrap();
}

/// Each of the tables whose segments are swapped has its own values.
async fn check_sums(client: &mut Client) {
    for (table, sum) in [("sw_one", 16_000), ("sw_two", 24_000)] {
        assert_eq!(client.number(&format!("SELECT sum(v) FROM {table}")).await.unwrap(), sum, "{table}");
    }
}

async fn shown(client: &mut Client) -> String {
    let batches = client.query("SELECT * FROM system.scrub").await.unwrap();
    arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string()
}
