//! Workers are killed, frozen and brought back while queries run: every
//! answer is whole, each row once.

use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use shoal_benches::{Client, Cluster};

use crate::fixture::own;

const ROWS: i64 = 1_500_000;

async fn make_rows(client: &mut Client) {
    client
        .update(
            "CREATE TABLE f (k BIGINT, v BIGINT, s VARCHAR) WITH (shards = 8, replicas = 3, shard_key = 'k')",
        )
        .await
        .unwrap();
    client
        .update(&format!(
            "INSERT INTO f SELECT value, value % 1000, 'some text that takes room ' || value \
             FROM generate_series(1, {ROWS})"
        ))
        .await
        .unwrap();
}

/// Rows and the sum of their first column.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    rows: usize,
    keys: i64,
}

impl Sum {
    fn add(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows();
        self.keys += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
}

/// What a worker suffers.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Freeze,
}

impl Fault {
    fn strike(self, cluster: &Cluster, worker: &str) {
        match self {
            Self::Kill => cluster.kill(worker).unwrap(),
            Self::Freeze => cluster.pause(worker).unwrap(),
        }
    }

    fn heal(self, cluster: &Cluster, worker: &str) {
        match self {
            Self::Kill => cluster.restart(worker).unwrap(),
            Self::Freeze => cluster.resume(worker).unwrap(),
        }
        cluster.wait_until_joined(4).unwrap();
    }
}

#[test]
fn a_scan_goes_on_where_it_stopped() {
    let cluster = own(4);
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        client.update("SET shoal.task_bytes = '1MiB'").await.unwrap();
        let sql = "SELECT k, v, s FROM f WHERE v <> 7";
        let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(plan.contains("streamed from"), "{plan}");
        let expected = Sum {
            rows: ROWS as usize - ROWS as usize / 1000,
            keys: (1..=ROWS).filter(|key| key % 1000 != 7).sum(),
        };
        for (worker, fault) in
            [("worker-1", Fault::Kill), ("worker-2", Fault::Freeze), ("worker-3", Fault::Kill)]
        {
            let mut stream = client.stream(sql).await.unwrap();
            let mut sum = Sum::default();
            sum.add(&stream.next().await.unwrap().unwrap());
            fault.strike(&cluster, worker);
            while let Some(batch) = stream.next().await {
                sum.add(&batch.unwrap_or_else(|error| panic!("{fault:?} of {worker}: {error}")));
            }
            assert_eq!(sum, expected, "{fault:?} of {worker}");
            fault.heal(&cluster, worker);
        }
        let lost =
            "SELECT count(*) FROM system.queries WHERE lost LIKE '%shard%at row%' AND state = 'finished'";
        assert!(client.number(lost).await.unwrap() >= 1, "no stream was ever moved");
    });
}

#[test]
fn a_result_survives_a_death_at_any_moment() {
    let cluster = own(4);
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        client.update("SET shoal.task_bytes = 1").await.unwrap();
        // Many rows out of an exchange, so that they come over some time.
        let sql = "SELECT max(k), s FROM f GROUP BY s";
        let expected = Sum { rows: ROWS as usize, keys: (1..=ROWS).sum() };
        let mut were_lost = 0;
        for (turn, delay_ms) in [50, 150, 300, 500, 800, 1200].into_iter().enumerate() {
            let worker = format!("worker-{}", turn % 4 + 1);
            let fault = if turn % 3 == 2 { Fault::Freeze } else { Fault::Kill };
            let mut asking = cluster.connect().await.unwrap();
            asking.update("SET shoal.task_bytes = 1").await.unwrap();
            let asked = tokio::spawn(async move {
                let mut sum = Sum::default();
                let mut stream = asking.stream(sql).await?;
                while let Some(batch) = stream.next().await {
                    sum.add(&batch.map_err(shoal_benches::ClientError::from)?);
                }
                Ok::<_, shoal_benches::ClientError>(sum)
            });
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            fault.strike(&cluster, &worker);
            let sum = asked.await.unwrap();
            let sum =
                sum.unwrap_or_else(|error| panic!("{fault:?} of {worker} after {delay_ms} ms: {error}"));
            assert_eq!(sum, expected, "{fault:?} of {worker} after {delay_ms} ms");
            fault.heal(&cluster, &worker);
            were_lost = client
                .number("SELECT count(*) FROM system.queries WHERE lost IS NOT NULL AND state = 'finished'")
                .await
                .unwrap();
        }
        assert!(were_lost >= 1, "no attempt was ever lost");
    });
}

#[test]
fn rows_that_wait_go_to_disk_and_leave_nothing_there() {
    let cluster = own(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        for (memory, disk) in [("0", "1GiB"), ("1MiB", "1GiB"), ("0", "1MiB")] {
            client.update("SET shoal.task_bytes = 1").await.unwrap();
            client.update(&format!("SET shoal.spool_memory = '{memory}'")).await.unwrap();
            client.update(&format!("SET shoal.spool_disk = '{disk}'")).await.unwrap();
            let mut sum = Sum::default();
            let mut stream = client.stream("SELECT max(k), s FROM f GROUP BY s").await.unwrap();
            while let Some(batch) = stream.next().await {
                sum.add(&batch.unwrap());
            }
            assert_eq!(sum, Sum { rows: ROWS as usize, keys: (1..=ROWS).sum() });
        }
        let spill = cluster.data_dir("coordinator").unwrap().join("spill");
        let left = walk(&spill);
        assert_eq!(left, Vec::<std::path::PathBuf>::new());
    });
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() { files.extend(walk(&entry.path())) } else { files.push(entry.path()) }
    }
    files
}

#[test]
fn rot_on_a_disk_is_noticed_and_mended() {
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        let segments = cluster.data_dir("worker-1").unwrap().join("segments");
        let files: Vec<_> = walk(&segments)
            .into_iter()
            .filter(|path| path.extension().is_some_and(|end| end == "parquet"))
            .collect();
        assert_eq!(files.len(), 8, "{files:?}");
        let whole: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        for (number, (path, bytes)) in files.iter().zip(&whole).enumerate() {
            match number {
                // Cut short, gone, another one in its place, without checksums.
                0 => std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                1 => std::fs::remove_file(path).unwrap(),
                2 => std::fs::write(path, &whole[3]).unwrap(),
                4 => std::fs::remove_file(path.with_added_extension("sums")).unwrap(),
                // A byte in every 4 KiB; one of the footer.
                5 => {
                    let mut rotten = bytes.clone();
                    rotten.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
                    std::fs::write(path, rotten).unwrap();
                }
                _ => {
                    let mut rotten = bytes.clone();
                    let last = rotten.len() - 20;
                    rotten[last] ^= 0x80;
                    std::fs::write(path, rotten).unwrap();
                }
            }
        }
        // Each worker reads all, so that the rotten copies are read too.
        client.update("SET shoal.task_bytes = 1").await.unwrap();
        let expected = Sum { rows: ROWS as usize, keys: (1..=ROWS).sum() };
        for _ in 0..4 {
            let mut sum = Sum::default();
            client.query("SELECT k, v, s FROM f").await.unwrap().iter().for_each(|batch| sum.add(batch));
            assert_eq!(sum, expected);
        }
        // All copies are good again: those that were read at once, the others
        // when the scrub comes by.
        let since = std::time::Instant::now();
        loop {
            let mended = files.iter().zip(&whole).all(|(path, bytes)| {
                std::fs::read(path).is_ok_and(|now| now == *bytes)
                    && path.with_added_extension("sums").exists()
            });
            if mended {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "not mended after a minute");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

#[test]
fn availability_says_who_is_needed() {
    let cluster = own(3);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for sql in [
            "CREATE TABLE av_three (k INT) WITH (shards = 4, replicas = 3, shard_key = 'k')",
            "CREATE TABLE av_one (k INT) WITH (shards = 1, replicas = 1)",
            "INSERT INTO av_three SELECT value FROM generate_series(1, 1000)",
            "INSERT INTO av_one SELECT value FROM generate_series(1, 10)",
        ] {
            client.update(sql).await.unwrap();
        }
        let sql = "EXPLAIN AVAILABILITY SELECT count(*) FROM av_three JOIN av_one USING (k)";
        let (_, batches) = client.query_with_schema(sql).await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(!line("av_three").contains("worker-"), "{text}");
        assert!(line("av_one").contains("worker-"), "{text}");
        // Two of three may go; with one gone, one.
        for (lost, may_be_lost) in [(None, "2"), (Some("worker-1"), "1"), (Some("worker-2"), "0")] {
            if let Some(worker) = lost {
                cluster.kill(worker).unwrap();
            }
            let since = std::time::Instant::now();
            loop {
                let batches = client.query("EXPLAIN AVAILABILITY av_three").await.unwrap();
                let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
                let cells: Vec<_> = text.lines().nth(3).unwrap().split('|').map(str::trim).collect();
                if cells[4] == may_be_lost {
                    assert_eq!(cells[5], if may_be_lost == "0" { "worker-3" } else { "" }, "{text}");
                    break;
                }
                assert!(since.elapsed() < Duration::from_secs(10), "{text}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
}
