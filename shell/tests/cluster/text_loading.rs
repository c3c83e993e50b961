//! COPY of CSV and JSON that the workers read, one large file in parts: the same rows as
//! when the coordinator reads it from its start to its end, and as plain DataFusion finds.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::prelude::{CsvReadOptions, SessionContext};
use shoal_benches::{Client, Cluster};
use shoal_proto::fault::Step;

use crate::fixture::{in_time, own, wait_until};
use crate::loading::{Fixture, ROWS, check, columns, make_table, spreading, staying};
use crate::settled::wait_until_settled;

const LAYOUT: &str = "shards = 4, replicas = 3, shard_key = 'k', sort_key = 'day'";
/// How long a coordinator may take to begin a write.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

fn batch(keys: std::ops::Range<i64>) -> RecordBatch {
    let columns = columns(keys).into_iter().map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// All rows in one file with the names of the columns.
fn write_csv(path: &Path, rows: &RecordBatch) {
    arrow::csv::Writer::new(File::create(path).unwrap()).write(rows).unwrap();
}

fn one_csv(dir: &Path) -> String {
    let path = dir.join("all.csv");
    write_csv(&path, &batch(0..ROWS));
    format!("FROM '{}'", path.display())
}

fn one_json(dir: &Path) -> String {
    let path = dir.join("all.jsonl");
    let mut writer = arrow::json::LineDelimitedWriter::new(File::create(&path).unwrap());
    writer.write(&batch(0..ROWS)).unwrap();
    writer.finish().unwrap();
    format!("FROM '{}'", path.display())
}

/// Files of their own, that cannot be cut.
fn packed_csv(dir: &Path) -> String {
    let parts = 8;
    for part in 0..parts {
        let plain = dir.join(format!("part-{part}.csv"));
        write_csv(&plain, &batch(part * ROWS / parts..(part + 1) * ROWS / parts));
        let packed = zstd_of(&plain);
        fs::write(dir.join(format!("part-{part}.csv.zst")), packed).unwrap();
        fs::remove_file(&plain).unwrap();
    }
    format!("FROM '{}/part-*.csv.zst'", dir.display())
}

fn zstd_of(path: &Path) -> Vec<u8> {
    let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(&fs::read(path).unwrap()).unwrap();
    packed.finish().unwrap()
}

/// Rows that workers have made segments of.
async fn loaded(client: &mut Client) -> i64 {
    client.number("SELECT CAST(sum(rows_loaded) AS BIGINT) FROM system.workers").await.unwrap()
}

async fn wait_until_loaded(client: &mut Client, rows: i64) {
    let count = format!(
        "SELECT count(*) FROM (SELECT sum(rows_loaded) AS total FROM system.workers) WHERE total = {rows}"
    );
    wait_until(client, &count).await;
}

async fn assert_same_rows(client: &mut Client, table: &str, other: &str) {
    for (one, other) in [(table, other), (other, table)] {
        let more = format!("SELECT count(*) FROM (SELECT * FROM {one} EXCEPT ALL SELECT * FROM {other})");
        assert_eq!(client.number(&more).await.unwrap(), 0, "{one} has rows that {other} has not");
    }
}

#[test]
fn texts_that_workers_load_give_the_same_rows() {
    for workers in [1, 4] {
        let cluster = own(workers);
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let (mut here, mut spread) = (staying(&cluster).await, spreading(&cluster).await);
            let layout = if workers == 1 { "shards = 4, replicas = 1, shard_key = 'k'" } else { LAYOUT };
            make_table(&mut here, "tx_here", layout).await;
            let dir = cluster.import_dir();
            let csv = one_csv(dir);
            assert_eq!(here.update(&format!("COPY tx_here {csv}")).await.unwrap(), ROWS);
            assert_eq!(loaded(&mut here).await, 0, "the coordinator did not do it");
            let from = [("csv", csv), ("json", one_json(dir)), ("packed", packed_csv(dir))];
            for (index, (name, from)) in from.into_iter().enumerate() {
                let table = format!("tx_{name}");
                make_table(&mut spread, &table, layout).await;
                assert_eq!(spread.update(&format!("COPY {table} {from}")).await.unwrap(), ROWS, "{name}");
                wait_until_loaded(&mut spread, ROWS * (index as i64 + 1)).await;
                check(&mut spread, &table).await;
                assert_same_rows(&mut spread, &table, "tx_here").await;
            }
            let idle = "SELECT count(*) FROM system.workers WHERE rows_loaded = 0";
            assert_eq!(spread.number(idle).await.unwrap(), 0, "each worker had a part");

            let plain = SessionContext::new();
            let path = dir.join("all.csv");
            plain.register_csv("t", path.to_str().unwrap(), CsvReadOptions::new()).await.unwrap();
            let sql = "SELECT count(*), sum(k), count(f), count(DISTINCT s), sum(g), max(day) FROM t";
            let expected = plain.sql(sql).await.unwrap().collect().await.unwrap();
            let found = spread.query(&sql.replace(" t", " tx_csv")).await.unwrap();
            let text = |batches: &[RecordBatch]| {
                arrow::util::pretty::pretty_format_batches(batches).unwrap().to_string()
            };
            // Columns are as wide as their names.
            let rows_of = |text: String| text.lines().nth(3).map(|row| row.replace(' ', ""));
            assert_eq!(rows_of(text(&found)), rows_of(text(&expected)));
        });
        assert_eq!(cluster.crashed(), Vec::<String>::new());
    }
}

/// A file of which most values have a line end, behind which whole records seem to come.
fn write_over_lines(path: &Path) {
    let mut rows = batch(0..ROWS).columns().to_vec();
    let texts: StringArray = (0..ROWS).map(|key| Some(format!("some\n{key},1,\"x\",,\ntext"))).collect();
    rows[2] = Arc::new(texts) as ArrayRef;
    write_csv(path, &RecordBatch::try_new(batch(0..1).schema(), rows).unwrap());
}

#[test]
fn values_that_go_over_lines_are_loaded_as_the_coordinator_loads_them() {
    let cluster = own(3);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let path = cluster.import_dir().join("over_lines.csv");
        write_over_lines(&path);
        let (mut here, mut spread) = (staying(&cluster).await, spreading(&cluster).await);
        for (client, table) in [(&mut here, "tx_lines_here"), (&mut spread, "tx_lines_spread")] {
            make_table(client, table, LAYOUT).await;
            let copied = client.update(&format!("COPY {table} FROM '{}'", path.display())).await;
            assert_eq!(copied.unwrap(), ROWS);
        }
        assert_same_rows(&mut spread, "tx_lines_spread", "tx_lines_here").await;
        let right = "SELECT count(*) FROM tx_lines_spread WHERE s LIKE 'some%' || k || ',1,\"x\",,%text'";
        assert_eq!(spread.number(right).await.unwrap(), ROWS);
        let log = fs::read_to_string(cluster.dir().join("coordinator.log")).unwrap();
        assert!(log.contains("it is loaded as a whole"), "it was not tried in parts: {log}");
        // Nothing of the first try is left, nor counted.
        let rows =
            "SELECT CAST(sum(rows) AS BIGINT) FROM system.queries WHERE sql LIKE 'COPY tx_lines_spread%'";
        assert_eq!(spread.number(rows).await.unwrap(), ROWS);
        wait_until_settled(&cluster, 3).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

async fn told(client: &mut Client, table: &str, path: &Path) -> String {
    make_table(client, table, LAYOUT).await;
    let error = client.update(&format!("COPY {table} FROM '{}'", path.display())).await.unwrap_err();
    assert_eq!(client.number(&format!("SELECT count(*) FROM {table}")).await.unwrap(), 0);
    error.message
}

#[test]
fn a_line_that_cannot_be_read_is_told_as_the_coordinator_tells_it_and_nothing_is_left() {
    let cluster = own(3);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let dir = cluster.import_dir();
        one_csv(dir);
        one_json(dir);
        let line = ROWS as usize / 2;
        let broken = |name: &str, is_null: bool| -> PathBuf {
            let text = fs::read_to_string(dir.join(name)).unwrap();
            let mut lines: Vec<&str> = text.lines().collect();
            lines[line] = match (name, is_null) {
                ("all.csv", false) => "seven,1,a,,",
                ("all.csv", true) => ",1,a,,",
                _ => "{\"k\": \"seven\"}",
            };
            let path = dir.join(format!("broken_{is_null}_{name}"));
            fs::write(&path, lines.join("\n")).unwrap();
            path
        };
        let files = [broken("all.csv", false), broken("all.csv", true), broken("all.jsonl", false)];
        for (index, (path, hint)) in files
            .iter()
            .zip([format!("line {}", line + 1), format!("row {line}"), format!("line {}", line + 1)])
            .enumerate()
        {
            let (mut here, mut spread) = (staying(&cluster).await, spreading(&cluster).await);
            let expected = told(&mut here, &format!("tx_bad_here_{index}"), path).await;
            assert!(expected.contains(&hint), "{hint} is not in {expected}");
            assert_eq!(told(&mut spread, &format!("tx_bad_spread_{index}"), path).await, expected);
        }
        wait_until_settled(&cluster, 3).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_part_of_a_text_whose_worker_is_lost_is_loaded_by_another_one() {
    let fixture = Fixture::of(one_csv);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for (index, step) in [Step::SegmentEncoded, Step::SegmentStaged].into_iter().enumerate() {
            let table = format!("tx_lost_{index}");
            let mut client = fixture.make_table(&table).await;
            fixture.order("worker-2", step, "kill");
            let copied = in_time(client.update(&fixture.copy(&table))).await;
            assert_eq!(copied.unwrap(), ROWS, "{}", step.name());
            fixture.wait_until_killed("worker-2").await;
            check(&mut client, &table).await;
            fixture.restart("worker-2").await;
            check(&mut client, &table).await;
        }
    });
}

#[test]
fn a_text_that_is_changed_once_it_was_found_is_not_loaded() {
    let fixture = Fixture::of(one_csv);
    let cluster: &Cluster = fixture.cluster();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = fixture.make_table("tx_changed").await;
        fixture.order("coordinator", Step::WriteBegun, "stall");
        let (mut copier, copy) = (client.clone(), fixture.copy("tx_changed"));
        let copying = tokio::spawn(async move { copier.update(&copy).await });
        let since = Instant::now();
        let log = cluster.dir().join("coordinator.log");
        while !fs::read_to_string(&log).unwrap().contains("a fault was ordered") {
            assert!(since.elapsed() < BEGINS_WITHIN, "the load never began");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let path = cluster.import_dir().join("all.csv");
        write_csv(&path, &batch(1..ROWS));
        fixture.obedient.order("");
        let error = in_time(copying).await.unwrap().unwrap_err();
        assert!(error.message.contains("all.csv` was changed"), "{error}");
        assert_eq!(client.number("SELECT count(*) FROM tx_changed").await.unwrap(), 0);
        wait_until_settled(cluster, 3).await;
    });
}
