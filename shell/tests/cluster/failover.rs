//! Workers are killed, frozen and brought back while queries run: every
//! answer is whole, each row once.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use futures::StreamExt;
use shoal_benches::{Client, ClientError, Cluster};

use crate::fixture::{Obedient, in_time, is_distributed, options, own, session, wait_until};

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

/// What the rows of a query come to.
async fn sum_of(client: &mut Client, sql: &str) -> Result<Sum, ClientError> {
    let mut stream = client.stream(sql).await?;
    let mut sum = Sum::default();
    while let Some(batch) = stream.next().await {
        sum.add(&batch?);
    }
    Ok(sum)
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
        let mut watching = cluster.connect().await.unwrap();
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
            wait_until_held_up(&mut watching, sql).await;
            fault.strike(&cluster, worker);
            while let Some(batch) = in_time(stream.next()).await {
                sum.add(&batch.unwrap_or_else(|error| panic!("{fault:?} of {worker}: {error}")));
            }
            assert_eq!(sum, expected, "{fault:?} of {worker}");
            fault.heal(&cluster, worker);
        }
        let lost = "SELECT lost FROM system.queries WHERE lost IS NOT NULL AND state = 'finished'";
        let lost = client.text(lost).await.unwrap();
        let mut losses = lost.lines().flat_map(|line| line.split("; "));
        let went_on = losses.any(|loss| loss.contains(" at row ") && !loss.contains(" at row 0:"));
        assert!(went_on, "no stream went on behind rows that it had given:\n{lost}");
    });
}

/// Waits until a query whose client takes nothing gives nothing more. What can
/// wait on the way does by then, so each of its shards has given rows, and none
/// all of them.
async fn wait_until_held_up(client: &mut Client, sql: &str) {
    let rows = format!("SELECT rows FROM system.queries WHERE state = 'running' AND sql = '{sql}'");
    let (mut given, mut looks) = (0, 0);
    while looks < 6 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = client.number(&rows).await.unwrap();
        looks = if now == given { looks + 1 } else { 0 };
        given = now;
    }
}

/// When a fault strikes a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// So many milliseconds after it was sent, wherever it is then.
    After(u64),
    /// When its tasks have the first rows of their scans before them.
    RowsGoIn,
    /// When its tasks have all groups, and have given none of them.
    RowsComeOut,
}

impl Moment {
    /// Many rows out of an exchange, so that they come over some time.
    fn sql(self) -> &'static str {
        match self {
            Self::After(_) => "SELECT max(k), s FROM f GROUP BY s",
            Self::RowsGoIn => "SELECT max(shoal_step(k)), s FROM f GROUP BY s",
            Self::RowsComeOut => "SELECT shoal_step(max(k)), s FROM f GROUP BY s",
        }
    }
}

#[test]
fn a_result_survives_a_death_at_any_moment() {
    let obedient = Obedient::start(options(4));
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = session(cluster).await;
        make_rows(&mut client).await;
        let expected = Sum { rows: ROWS as usize, keys: (1..=ROWS).sum() };
        for (turn, (moment, fault)) in [
            (Moment::After(50), Fault::Kill),
            (Moment::RowsGoIn, Fault::Kill),
            (Moment::RowsGoIn, Fault::Freeze),
            (Moment::RowsComeOut, Fault::Kill),
            (Moment::RowsComeOut, Fault::Freeze),
            (Moment::After(800), Fault::Kill),
        ]
        .into_iter()
        .enumerate()
        {
            let sql = format!("{} /* turn {turn} */", moment.sql());
            let before = obedient.obeyed();
            obedient.hold(&obedient.workers());
            let asked = tokio::spawn({
                let (mut asking, sql) = (session(cluster).await, sql.clone());
                async move { in_time(sum_of(&mut asking, &sql)).await }
            });
            if let Moment::After(delay_ms) = moment {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            } else {
                obedient.wait_until_obeyed(&before, 4).await;
            }
            let worker = obedient.workers().swap_remove(turn % 4);
            fault.strike(cluster, &worker);
            obedient.order("");
            let what = format!("{fault:?} of {worker}, {moment:?}");
            let sum = asked.await.unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(sum, expected, "{what}");
            fault.heal(cluster, &worker);
            let lost = format!(
                "SELECT count(*) FROM system.queries WHERE state = 'finished' AND sql = '{sql}' \
                 AND attempts > 1 AND lost LIKE '%{worker}: %'"
            );
            // Nobody could do without a worker of which nothing had come.
            let is_sure = !matches!(moment, Moment::After(_));
            assert!(client.number(&lost).await.unwrap() == 1 || !is_sure, "{what}: no attempt was lost");
        }

        // The first row comes when all are there: who took part may go then.
        let sql = "SELECT max(k), s FROM f GROUP BY s /* one by one */";
        let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(is_distributed(&plan) && plan.contains("worker-3"), "{plan}");
        let mut stream = client.stream(sql).await.unwrap();
        let mut sum = Sum::default();
        sum.add(&in_time(stream.next()).await.unwrap().unwrap());
        assert!(sum.rows < ROWS as usize / 4, "{sum:?} in one batch");
        cluster.kill("worker-3").unwrap();
        while let Some(batch) = in_time(stream.next()).await {
            sum.add(&batch.unwrap());
        }
        assert_eq!(sum, expected);
        let at_once = format!(
            "SELECT count(*) FROM system.queries WHERE state = 'finished' AND sql = '{sql}' \
             AND attempts = 1 AND lost IS NULL"
        );
        assert_eq!(client.number(&at_once).await.unwrap(), 1);
    });
}

#[test]
fn a_frozen_worker_is_given_up_and_disturbs_nothing_when_it_thaws() {
    const FEW: i64 = 100_000;
    let obedient = Obedient::start(options(4));
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = session(cluster).await;
        for (table, shards) in [("thaw", 8), ("thaw_one", 1)] {
            let layout = format!("WITH (shards = {shards}, replicas = 3, shard_key = 'k')");
            client.update(&format!("CREATE TABLE {table} (k BIGINT, v BIGINT) {layout}")).await.unwrap();
            let rows = format!("SELECT value, value % 10 FROM generate_series(1, {FEW})");
            client.update(&format!("INSERT INTO {table} {rows}")).await.unwrap();
        }
        let exchanged = "SELECT sum(s) FROM (SELECT v, sum(shoal_step(k)) AS s FROM thaw GROUP BY v)";
        let streamed = "SELECT sum(shoal_step(k)) FROM thaw_one";
        for (sql, workers, attempts, loss) in [
            (exchanged, 4, 2, "attempt 1: FROZEN: is not heard of any more"),
            (streamed, 1, 1, "shard 0 at row 0: worker FROZEN: is not heard of any more"),
        ] {
            let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
            assert_eq!(plan.contains("streamed from"), sql == streamed, "{plan}");
            assert!(is_distributed(&plan) || sql == streamed, "{plan}");
            let before = obedient.obeyed();
            obedient.hold(&obedient.workers());
            let asked = tokio::spawn({
                let mut asking = session(cluster).await;
                async move { in_time(asking.number(sql)).await }
            });
            let frozen = obedient.wait_until_obeyed(&before, workers).await.remove(0);
            let before = obedient.obeyed();
            cluster.pause(&frozen).unwrap();
            let tried_again = format!(
                "SELECT count(*) FROM system.queries WHERE state = 'running' AND sql = '{sql}' \
                 AND attempts = {attempts} AND lost IS NOT NULL"
            );
            wait_until(&mut client, &tried_again).await;
            // The second try is under way, and cannot end yet.
            obedient.wait_until_obeyed(&before, 1).await;
            cluster.resume(&frozen).unwrap();
            cluster.wait_until_joined(4).unwrap();
            assert_eq!(client.number(&tried_again).await.unwrap(), 1, "{sql}");
            obedient.order("");
            assert_eq!(asked.await.unwrap().unwrap(), FEW * (FEW + 1) / 2, "{sql}");
            let lost = format!("SELECT lost FROM system.queries WHERE state = 'finished' AND sql = '{sql}'");
            let lost = client.text(&lost).await.unwrap();
            assert_eq!(lost.trim_end(), loss.replace("FROZEN", &frozen), "{sql}");
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
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

/// What EXPLAIN AVAILABILITY says of one table.
#[derive(Debug)]
struct Availability {
    live_copies: u64,
    may_be_lost: u64,
    needed: String,
}

/// What it says of the tables of a query, by name.
async fn availability(client: &mut Client, query: &str) -> BTreeMap<String, Availability> {
    let mut said = BTreeMap::new();
    for batch in client.query(&format!("EXPLAIN AVAILABILITY {query}")).await.unwrap() {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let text = |name: &str, row: usize| column(name).as_string::<i32>().value(row).to_owned();
        let number = |name: &str, row: usize| column(name).as_primitive::<UInt64Type>().value(row);
        for row in 0..batch.num_rows() {
            let of_table = Availability {
                live_copies: number("live_copies", row),
                may_be_lost: number("workers_may_be_lost", row),
                needed: text("workers_needed", row),
            };
            said.insert(text("table", row), of_table);
        }
    }
    said
}

#[test]
fn availability_says_who_is_needed() {
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
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
        let (three, one) = ("public.av_three", "public.av_one");
        let alone = ("SELECT sum(k) FROM av_three", 500_500);
        let joined = ("SELECT sum(k) FROM av_three JOIN av_one USING (k)", 55);
        let said = availability(&mut client, joined.0).await;
        let holder = said[one].needed.clone();
        assert!(holder.starts_with("worker-") && !holder.contains(','), "{said:?}");
        assert_eq!(said[three].needed, "", "{said:?}");
        let others = ["worker-1", "worker-2", "worker-3"].into_iter().filter(|worker| *worker != holder);
        let others: Vec<&str> = others.collect();
        // Two of three may go; with one gone, one. The second has the only copy
        // of the other table.
        for (lost, may_be_lost, needed) in
            [(None, 2, ""), (Some(others[0]), 1, ""), (Some(holder.as_str()), 0, others[1])]
        {
            if let Some(worker) = lost {
                cluster.kill(worker).unwrap();
            }
            // Also before anybody knows.
            assert_eq!(in_time(client.number(alone.0)).await.unwrap(), alone.1, "without {lost:?}");
            let since = std::time::Instant::now();
            let said = loop {
                let said = availability(&mut client, joined.0).await;
                if said[three].may_be_lost == may_be_lost {
                    break said;
                }
                assert!(since.elapsed() < Duration::from_secs(10), "without {lost:?}: {said:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            assert_eq!(said[three].needed, needed, "{said:?}");
            let of_table = availability(&mut client, "av_three").await;
            assert_eq!(of_table[three].may_be_lost, may_be_lost, "{of_table:?}");
            assert_eq!(said[one].live_copies, u64::from(lost != Some(holder.as_str())), "{said:?}");
            // What is said is so.
            assert_eq!(in_time(client.number(alone.0)).await.unwrap(), alone.1, "{said:?}");
            match in_time(client.number(joined.0)).await {
                Ok(sum) => assert_eq!((sum, said[one].live_copies), (joined.1, 1), "{said:?}"),
                Err(error) => {
                    assert_eq!(said[one].live_copies, 0, "{said:?}: {error}");
                    let is_named = error.message.contains("av_one") || error.message.contains("shard 0");
                    assert!(is_named, "what cannot be read is not named: {error}");
                }
            }
        }
    });
}
