//! Files of segments that are damaged where no query reads them: at the start
//! of a worker, and by the scrub.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use shoal_benches::disk::{files_below, flip};
use shoal_benches::{Client, Cluster};

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
        let sums = |number: usize| files[number].with_added_extension("sums");
        // Rot that new checksums would bless.
        std::fs::remove_file(sums(0)).unwrap();
        assert!(flip(&files[0], whole[0].len() as u64 / 2, 1).unwrap());
        // No checksums, damaged checksums, a segment cut short.
        std::fs::remove_file(sums(1)).unwrap();
        assert!(flip(&sums(2), 30, 1).unwrap());
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
        std::fs::remove_file(files[0].with_added_extension("sums")).unwrap();
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
    let mut options = options(3);
    options.worker_args = ["--scrub-rate", "64MiB"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(&options).unwrap();
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "sc_rows", 3).await;
        let files = segments(&cluster, "worker-2");
        let sums = files[1].with_added_extension("sums");
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

async fn shown(client: &mut Client) -> String {
    let batches = client.query("SELECT * FROM system.scrub").await.unwrap();
    arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string()
}
