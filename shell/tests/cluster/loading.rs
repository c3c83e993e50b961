//! COPY of Parquet files that the workers read, encode and stage: the same rows as
//! when the coordinator does it, whatever happens to one of them meanwhile.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, Date32Array, Float64Array, Int32Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use shoal_benches::{Client, ClientError, Cluster};
use shoal_proto::fault::Step;

use crate::fixture::{Obedient, in_time, options, own, wait_until};
use crate::settled::wait_until_settled;

/// Rows of all files together.
pub(crate) const ROWS: i64 = 40_000;
const FILES: i64 = 2;
/// So many that each worker gets some.
const ROW_GROUP_ROWS: usize = 2_500;
/// How long a process may take to come to the step at which it is killed.
const KILLED_WITHIN: Duration = Duration::from_secs(20);

/// The columns of rows with these keys: what repeats, what does not, nulls.
pub(crate) fn columns(keys: std::ops::Range<i64>) -> Vec<(&'static str, ArrayRef)> {
    let days: Date32Array = keys.clone().map(|key| Some((key * 7_919 % 10_000) as i32)).collect();
    let floats: Float64Array = keys.clone().map(|key| (key % 3 > 0).then_some(key as f64 / 8.0)).collect();
    let texts: StringArray = keys.clone().map(|key| Some(format!("some text of row {key}"))).collect();
    let groups: Int32Array = keys.clone().map(|key| (key % 7) as i32).collect();
    vec![
        ("k", array(keys.collect::<Int64Array>())),
        ("g", array(groups)),
        ("s", array(texts)),
        ("day", array(days)),
        ("f", array(floats)),
    ]
}

fn array(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(ROW_GROUP_ROWS)).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Writes the files; what stands after the name of a table in a COPY of them.
pub(crate) fn write_files(dir: &Path) -> String {
    for part in 0..FILES {
        let rows = ROWS / FILES;
        write_parquet(&dir.join(format!("part-{part}.parquet")), columns(part * rows..(part + 1) * rows));
    }
    format!("FROM '{}/part-*.parquet' (FORMAT parquet)", dir.display())
}

pub(crate) async fn make_table(client: &mut Client, table: &str, layout: &str) {
    let columns = "k BIGINT NOT NULL, g INT, s TEXT, day DATE, f DOUBLE";
    client.update(&format!("CREATE TABLE {table} ({columns}) WITH ({layout})")).await.unwrap();
}

/// A session whose loads go to the workers, however small.
pub(crate) async fn spreading(cluster: &Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    client.update("SET shoal.load_task_bytes = 1").await.unwrap();
    client
}

/// A session whose loads stay on the coordinator.
pub(crate) async fn staying(cluster: &Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    client.update("SET shoal.load_task_bytes = '1TiB'").await.unwrap();
    client
}

/// Each row is there, once.
pub(crate) async fn check(client: &mut Client, table: &str) {
    for (what, expected) in [
        ("count(*)", ROWS),
        ("count(DISTINCT k)", ROWS),
        ("sum(k)", (0..ROWS).sum::<i64>()),
        ("count(f)", ROWS - (ROWS + 2) / 3),
        ("count(*) FILTER (WHERE s = 'some text of row ' || k)", ROWS),
    ] {
        let found = client.number(&format!("SELECT {what} FROM {table}")).await.unwrap();
        assert_eq!(found, expected, "{what} of {table}");
    }
}

#[test]
fn files_that_workers_load_give_the_same_rows_in_the_same_shards() {
    let cluster = own(4);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let from = write_files(cluster.import_dir());
        let (mut here, mut spread) = (staying(&cluster).await, spreading(&cluster).await);
        // On three of four: for each shard there is a worker that has nothing of it.
        let layout = "shards = 4, replicas = 3, shard_key = 'k', sort_key = 'day'";
        for table in ["ld_here", "ld_spread"] {
            make_table(&mut here, table, layout).await;
        }
        assert_eq!(here.update(&format!("COPY ld_here {from}")).await.unwrap(), ROWS);
        let loaded = "SELECT CAST(sum(rows_loaded) AS BIGINT) FROM system.workers";
        assert_eq!(here.number(loaded).await.unwrap(), 0, "the coordinator did not do it");
        assert_eq!(spread.update(&format!("COPY ld_spread {from}")).await.unwrap(), ROWS);
        let all = format!(
            "SELECT count(*) FROM (SELECT sum(rows_loaded) AS total, min(rows_loaded) AS least FROM system.workers) \
             WHERE total = {ROWS} AND least > 0"
        );
        wait_until(&mut spread, &all).await;

        check(&mut spread, "ld_spread").await;
        for (one, other) in [("ld_here", "ld_spread"), ("ld_spread", "ld_here")] {
            let more = format!("SELECT count(*) FROM (SELECT * FROM {one} EXCEPT ALL SELECT * FROM {other})");
            assert_eq!(spread.number(&more).await.unwrap(), 0, "{one} has rows that {other} has not");
        }
        let shards = |table: &str| {
            format!("SELECT shard || ': ' || rows || ' rows on ' || replicas_live FROM system.shards \
                     WHERE \"table\" = '{table}' ORDER BY shard")
        };
        let (expected, found) =
            (here.text(&shards("ld_here")).await.unwrap(), spread.text(&shards("ld_spread")).await.unwrap());
        assert_eq!(found, expected);
        assert_eq!(found.matches(" rows on 3").count(), 4, "{found}");

        // Without a key rows are dealt; the columns that are not named are null.
        make_table(&mut spread, "ld_dealt", "shards = 4, replicas = 2").await;
        let narrow = cluster.import_dir().join("narrow.parquet");
        write_parquet(&narrow, columns(0..ROWS).into_iter().take(3).rev().collect());
        let copy = format!("COPY ld_dealt (k, g, s) FROM '{}'", narrow.display());
        assert_eq!(spread.update(&copy).await.unwrap(), ROWS);
        let sum = spread.number("SELECT sum(k) + count(day) + count(f) FROM ld_dealt").await.unwrap();
        assert_eq!(sum, (0..ROWS).sum::<i64>());
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_row_that_cannot_be_is_told_as_the_coordinator_tells_it_and_nothing_is_left() {
    let cluster = own(3);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut bad = columns(0..ROWS);
        let nulls: Int64Array = (0..ROWS).map(|key| (key != ROWS / 2).then_some(key)).collect();
        bad[0].1 = array(nulls);
        write_parquet(&cluster.import_dir().join("bad.parquet"), bad);
        let mut told = Vec::new();
        for mut client in [staying(&cluster).await, spreading(&cluster).await] {
            let table = format!("ld_bad_{}", told.len());
            make_table(&mut client, &table, "shards = 2, replicas = 3, shard_key = 'k'").await;
            let from = format!("FROM '{}/bad.parquet'", cluster.import_dir().display());
            told.push(client.update(&format!("COPY {table} {from}")).await.unwrap_err().message);
            assert_eq!(client.number(&format!("SELECT count(*) FROM {table}")).await.unwrap(), 0);
        }
        assert!(told[0].contains(&format!("row {} of", ROWS / 2 + 1)), "{}", told[0]);
        assert_eq!(told[1], told[0]);
        wait_until_settled(&cluster, 3).await;
    });
}

/// Three workers, each with a replica of everything, that obey orders; and what
/// loads the files.
pub(crate) struct Fixture {
    pub(crate) obedient: Obedient,
    from: String,
}

impl Fixture {
    fn new() -> Self {
        Self::of(write_files)
    }

    /// With files that `write_files` makes in a directory, of which it tells what stands
    /// after the name of a table in a COPY of them.
    pub(crate) fn of(write_files: impl Fn(&Path) -> String) -> Self {
        let obedient = Obedient::start(options(3));
        let from = write_files(obedient.cluster.import_dir());
        Self { obedient, from }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.obedient.cluster
    }

    pub(crate) fn order(&self, node: &str, step: Step, action: &str) {
        let pid = self.cluster().pid(node).unwrap();
        self.obedient.order(&format!("{pid} {} {action}\n", step.name()));
    }

    pub(crate) async fn make_table(&self, table: &str) -> Client {
        let mut client = spreading(self.cluster()).await;
        make_table(&mut client, table, "shards = 2, replicas = 3, shard_key = 'k', sort_key = 'day'").await;
        client
    }

    pub(crate) fn copy(&self, table: &str) -> String {
        format!("COPY {table} {}", self.from)
    }

    /// Waits until the node came to the step that kills it.
    pub(crate) async fn wait_until_killed(&self, node: &str) {
        let since = Instant::now();
        while !self.cluster().crashed().iter().any(|crashed| crashed == node) {
            assert!(since.elapsed() < KILLED_WITHIN, "{node} was never killed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.obedient.order("");
    }

    pub(crate) async fn restart(&self, node: &str) {
        self.cluster().restart(node).unwrap();
        self.cluster().wait_until_joined(3).unwrap();
        wait_until_settled(self.cluster(), 3).await;
    }
}

#[test]
fn what_a_lost_worker_was_loading_is_loaded_by_another_one() {
    let fixture = Fixture::new();
    let cluster = fixture.cluster();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        // Before any of its segments is staged, while others stage theirs on it,
        // and with some durable that nobody will commit.
        for (index, step) in
            [Step::SegmentEncoded, Step::StageInstalled, Step::SegmentStaged].into_iter().enumerate()
        {
            let table = format!("ld_lost_{index}");
            let mut client = fixture.make_table(&table).await;
            fixture.order("worker-2", step, "kill");
            let copied = in_time(client.update(&fixture.copy(&table))).await;
            assert_eq!(copied.unwrap(), ROWS, "{}", step.name());
            fixture.wait_until_killed("worker-2").await;
            check(&mut client, &table).await;
            fixture.restart("worker-2").await;
            check(&mut client, &table).await;
        }
        let log = std::fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
        assert!(log.contains("task of a load failed"), "{log}");

        // One that stands still is lost, too, and does nothing more when it is back.
        let mut client = fixture.make_table("ld_frozen").await;
        let before = fixture.obedient.obeyed();
        fixture.order("worker-3", Step::SegmentEncoded, "stall");
        let (mut copier, copy) = (client.clone(), fixture.copy("ld_frozen"));
        let copying = tokio::spawn(async move { copier.update(&copy).await });
        fixture.obedient.wait_until_obeyed(&before, 1).await;
        cluster.pause("worker-3").unwrap();
        assert_eq!(in_time(copying).await.unwrap().unwrap(), ROWS);
        check(&mut client, "ld_frozen").await;
        fixture.obedient.order("");
        cluster.resume("worker-3").unwrap();
        cluster.wait_until_joined(3).unwrap();
        wait_until_settled(cluster, 3).await;
        check(&mut client, "ld_frozen").await;
    });
}

#[test]
fn a_load_that_is_given_up_leaves_nothing_and_can_be_sent_again() {
    let fixture = Fixture::new();
    let cluster = fixture.cluster();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        // By whoever asked for it.
        let mut client = fixture.make_table("ld_again").await;
        let before = fixture.obedient.obeyed();
        fixture.obedient.order(&format!("* {} stall\n", Step::SegmentEncoded.name()));
        let (mut copier, copy) = (client.clone(), fixture.copy("ld_again"));
        let copying = tokio::spawn(async move { copier.update(&copy).await });
        fixture.obedient.wait_until_obeyed(&before, 3).await;
        let id = "SELECT id FROM system.queries WHERE state = 'running' AND sql LIKE 'COPY ld_again%'";
        let id = client.text(id).await.unwrap();
        client.update(&format!("KILL QUERY '{}'", id.trim())).await.unwrap();
        let error = in_time(copying).await.unwrap().unwrap_err();
        assert!(error.message.contains("cancelled"), "{error}");
        fixture.obedient.order("");
        wait_until_settled(cluster, 3).await;
        assert_eq!(client.number("SELECT count(*) FROM ld_again").await.unwrap(), 0);

        // By a coordinator that is lost when all is staged.
        fixture.order("coordinator", Step::WriteStaged, "kill");
        let lost = in_time(send(&fixture, "load-1")).await;
        assert!(lost.is_err(), "{lost:?}");
        fixture.wait_until_killed("coordinator").await;
        fixture.restart("coordinator").await;
        let mut client = spreading(cluster).await;
        assert_eq!(client.number("SELECT count(*) FROM ld_again").await.unwrap(), 0);

        // Sent again it is there, once, however often.
        for _ in 0..2 {
            assert_eq!(in_time(send(&fixture, "load-1")).await.unwrap(), ROWS);
            check(&mut client, "ld_again").await;
        }
        wait_until_settled(cluster, 3).await;
    });
}

/// Loads the files as the write of this id.
async fn send(fixture: &Fixture, write_id: &str) -> Result<i64, ClientError> {
    let mut client = spreading(fixture.cluster()).await;
    client.flight().set_header("shoal-write-id", write_id);
    client.update(&fixture.copy("ld_again")).await
}
