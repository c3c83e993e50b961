//! Every result says what it rests on, and what was read is compared with what
//! was planned: also when nothing else would notice that a scan went wrong.

use std::collections::BTreeMap;

use arrow_flight::decode::DecodedPayload;
use futures::TryStreamExt;
use serde_json::{Value, json};
use shoal_benches::{Client, Cluster};

use crate::bad_input::with_client;
use crate::fixture::{options, shared};

const ROWS: i64 = 20_000;
const FEW: i64 = 500;
const SHARDS: i64 = 8;

/// A query's rows, and the certificate behind them.
async fn certified(client: &mut Client, sql: &str) -> (usize, Value) {
    let info = client.flight().execute(sql.to_owned(), None).await.unwrap();
    let query: Value = serde_json::from_slice(&info.app_metadata).unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut messages = client.flight().do_get(ticket).await.unwrap().into_inner();
    let (mut rows, mut word) = (0, None);
    while let Some(message) = messages.try_next().await.unwrap_or_else(|error| panic!("{sql}: {error}")) {
        assert!(word.is_none(), "{sql}: nothing comes behind the certificate");
        let metadata = message.app_metadata();
        if !metadata.is_empty() {
            word = Some(serde_json::from_slice::<Value>(&metadata).unwrap());
        }
        if let DecodedPayload::RecordBatch(batch) = message.payload {
            rows += batch.num_rows();
        }
    }
    let word = word.unwrap_or_else(|| panic!("{sql}: no certificate"));
    assert_eq!(word["query_id"], query["query_id"]);
    let id = query["query_id"].as_str().unwrap();
    let again = client.action("shoal.certificate", id.into()).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&again).unwrap(), word["certificate"], "{sql}");
    (rows, word["certificate"].clone())
}

/// What must have been read of a table: so many segments of so many, and rows
/// where they are known.
#[derive(Debug)]
struct Expected {
    planned: i64,
    segments: std::ops::RangeInclusive<i64>,
    rows: std::ops::RangeInclusive<i64>,
}

/// All of a table, as often.
fn all(rows: i64, times: i64) -> Expected {
    let segments = SHARDS * times;
    Expected { planned: segments, segments: segments..=segments, rows: rows * times..=rows * times }
}

/// What a query may leave off when it knows enough.
fn at_most(rows: i64, times: i64) -> Expected {
    Expected { planned: SHARDS * times, segments: 0..=SHARDS * times, rows: 0..=rows * times }
}

/// All segments are turned to, and statistics may rule some of them out.
fn all_but_skipped(rows: i64) -> Expected {
    Expected { rows: 0..=rows, ..all(rows, 1) }
}

async fn make_tables(client: &mut Client, schema: &str) {
    for sql in [
        format!("CREATE SCHEMA {schema}"),
        format!("SET datafusion.catalog.default_schema = '{schema}'"),
        format!("CREATE TABLE t (k BIGINT, v BIGINT) WITH (shards = {SHARDS}, shard_key = 'k')"),
        format!("CREATE TABLE u (k BIGINT, w BIGINT) WITH (shards = {SHARDS}, shard_key = 'k')"),
        format!("INSERT INTO t SELECT value, value % 1000 FROM generate_series(1, {ROWS})"),
        format!("INSERT INTO u SELECT value, value % 10 FROM generate_series(1, {FEW})"),
    ] {
        client.update(&sql).await.unwrap();
    }
}

/// A query, how many rows it gives where that is known, and what it must have
/// read.
type Case = (&'static str, Option<i64>, Vec<(&'static str, Expected)>);

fn cases() -> Vec<Case> {
    let t = |times| ("t", all(ROWS, times));
    let u = |times| ("u", all(FEW, times));
    let one = Expected { planned: 1, segments: 1..=1, rows: 1..=ROWS };
    vec![
        ("SELECT k, v FROM t", Some(ROWS), vec![t(1)]),
        ("SELECT k FROM t WHERE v = 7", Some(20), vec![t(1)]),
        ("SELECT v FROM t WHERE k = 17", Some(1), vec![("t", one)]),
        ("SELECT sum(v) FROM t", Some(1), vec![t(1)]),
        ("SELECT v, sum(k) FROM t GROUP BY v", Some(1000), vec![t(1)]),
        ("SELECT DISTINCT v FROM t", Some(1000), vec![t(1)]),
        ("SELECT k FROM t ORDER BY v, k", Some(ROWS), vec![t(1)]),
        ("SELECT k FROM t ORDER BY v DESC, k LIMIT 5", Some(5), vec![("t", all_but_skipped(ROWS))]),
        ("SELECT v, sum(k) FROM t GROUP BY v ORDER BY 2 LIMIT 5", Some(5), vec![t(1)]),
        ("SELECT k, row_number() OVER (PARTITION BY v ORDER BY k) FROM t", Some(ROWS), vec![t(1)]),
        // What cannot be sent to workers, the coordinator reads through them.
        ("SELECT k, sum(v) FILTER (WHERE v > 5) OVER (PARTITION BY v) FROM t", Some(ROWS), vec![t(1)]),
        // Joins.
        ("SELECT t.k, w FROM t JOIN u USING (k)", Some(FEW), vec![t(1), u(1)]),
        ("SELECT t.k, w FROM t JOIN u ON t.v = u.k", Some(ROWS / 1000 * FEW), vec![t(1), u(1)]),
        ("SELECT t.k, w FROM t LEFT JOIN u USING (k)", Some(ROWS), vec![t(1), u(1)]),
        ("SELECT t.k, w FROM t FULL JOIN u ON t.k = u.k", Some(ROWS), vec![t(1), u(1)]),
        ("SELECT count(*) FROM t a JOIN t b ON a.k = b.v", Some(1), vec![t(2)]),
        ("SELECT count(*) FROM u a, u b WHERE a.k < b.w", Some(1), vec![u(2)]),
        (
            "SELECT t.k FROM t JOIN (SELECT k FROM u WHERE k % 10000 = 9999) u ON t.v = u.k",
            Some(0),
            vec![("t", at_most(ROWS, 1)), ("u", at_most(FEW, 1))],
        ),
        // Subqueries.
        ("SELECT k FROM t WHERE k IN (SELECT k FROM u)", Some(FEW), vec![t(1), u(1)]),
        ("SELECT k FROM t WHERE k NOT IN (SELECT k FROM u)", Some(ROWS - FEW), vec![t(1), u(1)]),
        ("SELECT k FROM u WHERE EXISTS (SELECT 1 FROM t WHERE t.v = u.k)", Some(FEW), vec![t(1), u(1)]),
        ("SELECT k FROM t WHERE v > (SELECT avg(k) FROM u)", None, vec![t(1), u(1)]),
        (
            "WITH c AS (SELECT v, sum(k) AS s FROM t GROUP BY v) SELECT a.v FROM c a JOIN c b USING (v)",
            Some(1000),
            vec![t(2)],
        ),
        // Unions.
        ("SELECT k FROM t UNION ALL SELECT k FROM u", Some(ROWS + FEW), vec![t(1), u(1)]),
        ("SELECT k FROM t UNION SELECT k FROM u", Some(ROWS), vec![t(1), u(1)]),
        ("SELECT k FROM u UNION ALL SELECT k FROM u UNION ALL SELECT 1", Some(2 * FEW + 1), vec![u(2)]),
        ("SELECT k FROM t EXCEPT SELECT k FROM u", Some(ROWS - FEW), vec![t(1), u(1)]),
        // Limits.
        ("SELECT k FROM t LIMIT 3", Some(3), vec![("t", at_most(ROWS, 1))]),
        ("SELECT DISTINCT v FROM t LIMIT 3", Some(3), vec![("t", at_most(ROWS, 1))]),
        (
            "SELECT k FROM t UNION ALL SELECT k FROM u LIMIT 3",
            Some(3),
            vec![("t", at_most(ROWS, 1)), ("u", at_most(FEW, 1))],
        ),
        // As often as its rows make it.
        (
            "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT u.k + 1 FROM r JOIN u ON u.k = r.n WHERE r.n % 100 < 4) \
             SELECT n FROM r",
            Some(4),
            vec![("u", Expected { planned: SHARDS, segments: 1..=8 * SHARDS, rows: 0..=8 * FEW })],
        ),
        // Nothing of a table.
        ("SELECT 1", Some(1), vec![]),
        ("SELECT k FROM t WHERE k = 1 AND false", Some(0), vec![]),
        ("SELECT worker FROM system.workers WHERE state = 'live' LIMIT 1", Some(1), vec![]),
    ]
}

async fn check(client: &mut Client, workers: usize, schema: &str) {
    make_tables(client, schema).await;
    let names = client.text("SELECT worker FROM system.workers ORDER BY worker").await.unwrap();
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names.len(), workers, "{names:?}");
    // The tables were made after what was there first.
    let mut snapshot_before = 1;
    let mut failures = Vec::new();
    // Once small enough for one worker, and once in tasks.
    for task_bytes in ["'64MiB'", "1"] {
        client.update(&format!("SET shoal.task_bytes = {task_bytes}")).await.unwrap();
        for (sql, expected_rows, expected) in cases() {
            let (rows, certificate) = certified(client, sql).await;
            // Nothing of these is sent: the coordinator reads for itself.
            let stays = sql.contains("RECURSIVE") || sql.contains("FILTER (");
            let needs_workers = !expected.is_empty() && !stays;
            let snapshot = certificate["snapshot"].as_u64().unwrap();
            let expected: BTreeMap<String, Expected> = expected
                .into_iter()
                .map(|(table, expected)| (format!("{schema}.{table}"), expected))
                .collect();
            let tables = certificate["tables"].as_array().unwrap();
            let mut is_right = expected_rows.is_none_or(|expected| expected == rows as i64)
                && tables.len() == expected.len()
                && certificate["attempts"] == 1
                && certificate["lost"].as_array().unwrap().is_empty()
                && snapshot >= snapshot_before;
            snapshot_before = snapshot;
            for read in tables {
                let number = |field: &str| read[field].as_i64().unwrap();
                is_right &= expected.get(read["table"].as_str().unwrap()).is_some_and(|expected| {
                    number("segments_planned") == expected.planned
                        && expected.segments.contains(&number("segments"))
                        && expected.rows.contains(&number("rows"))
                });
            }
            let used: Vec<&str> = used_workers(&certificate);
            is_right &= used.iter().all(|worker| names.contains(worker));
            is_right &= !used.is_empty() || !needs_workers;
            if !is_right {
                failures.push(format!(
                    "task_bytes {task_bytes}: {sql}: {rows} rows, {certificate}\n  expected {expected:?}"
                ));
            }
        }
    }
    client.update("SET shoal.task_bytes = 1").await.unwrap();
    let (_, certificate) = certified(client, "SELECT v, sum(k) FROM t GROUP BY v").await;
    if used_workers(&certificate) != names {
        failures.push(format!("not all of {names:?}: {certificate}"));
    }
    client.update(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

/// The workers that a certificate names.
fn used_workers(certificate: &Value) -> Vec<&str> {
    certificate["workers"].as_array().unwrap().iter().map(|worker| worker.as_str().unwrap()).collect()
}

#[test]
fn certificates_say_what_was_read_on_one_worker() {
    with_client(shared(1), async |client| check(client, 1, "cert1").await);
}

#[test]
fn certificates_say_what_was_read_on_two_workers() {
    with_client(shared(2), async |client| check(client, 2, "cert2").await);
}

#[test]
fn certificates_say_what_was_read_on_four_workers() {
    with_client(shared(4), async |client| check(client, 4, "cert4").await);
}

#[test]
fn a_certificate_is_of_the_snapshot_that_was_read() {
    with_client(shared(2), async |client| {
        make_tables(client, "cert_new").await;
        let mut snapshot_before = 0;
        // Each write has rows of one key, so it adds one segment to one shard.
        for writes in 0..=2 {
            if writes > 0 {
                client.update("INSERT INTO t VALUES (1, 0), (1, 1), (1, 2)").await.unwrap();
            }
            let mut snapshot = 0;
            for task_bytes in ["'64MiB'", "1"] {
                client.update(&format!("SET shoal.task_bytes = {task_bytes}")).await.unwrap();
                let (rows, certificate) = certified(client, "SELECT k, v FROM t").await;
                assert_eq!(rows as i64, ROWS + 3 * writes, "{certificate}");
                let read = json!([{
                    "table": "cert_new.t",
                    "segments_planned": SHARDS + writes,
                    "segments": SHARDS + writes,
                    "rows": ROWS + 3 * writes,
                }]);
                assert_eq!(certificate["tables"], read, "{certificate}");
                snapshot = certificate["snapshot"].as_u64().unwrap();
                assert!(
                    snapshot > snapshot_before,
                    "{writes} writes, before {snapshot_before}: {certificate}"
                );
            }
            snapshot_before = snapshot;
        }
        // Of a query for one key, those of its shard.
        let of_shard = "SELECT \"rows\" FROM system.shards \
             WHERE \"schema\" = 'cert_new' AND \"table\" = 't' AND segments = 3";
        let rows_of_shard = client.number(of_shard).await.unwrap();
        let (rows, certificate) = certified(client, "SELECT v FROM t WHERE k = 1").await;
        assert_eq!(rows, 7, "{certificate}");
        let read = json!([{
            "table": "cert_new.t", "segments_planned": 3, "segments": 3, "rows": rows_of_shard,
        }]);
        assert_eq!(certificate["tables"], read, "{certificate}");
        client.update("DROP SCHEMA cert_new CASCADE").await.unwrap();
    });
}

#[test]
fn certificates_can_be_queried_and_leave_files_out() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        make_tables(client, "cert_sql").await;
        let file = cluster.import_dir().join("cert_sql.parquet");
        client.update(&format!("COPY t TO '{}' (FORMAT parquet)", file.display())).await.unwrap();
        client
            .update(&format!("CREATE EXTERNAL TABLE e STORED AS PARQUET LOCATION '{}'", file.display()))
            .await
            .unwrap();
        let (rows, certificate) =
            certified(client, "SELECT e.k FROM e JOIN u USING (k) /* of files */").await;
        assert_eq!(rows as i64, FEW);
        let tables = certificate["tables"].as_array().unwrap();
        assert_eq!(tables.len(), 1, "{certificate}");
        assert_eq!((&tables[0]["table"], &tables[0]["rows"]), (&"cert_sql.u".into(), &FEW.into()));
        let read = "FROM (SELECT unnest(tables) AS r, workers, snapshot FROM system.queries \
             WHERE sql LIKE '%/* of files */' AND sql NOT LIKE '%system%') \
             WHERE r['table'] = 'cert_sql.u' AND array_length(workers) >= 1 AND snapshot > 0";
        assert_eq!(client.number(&format!("SELECT r['rows'] {read}")).await.unwrap(), FEW);
        assert_eq!(client.number(&format!("SELECT r['segments'] {read}")).await.unwrap(), SHARDS);
        // Not what did not end well.
        client.query("SELECT sum(1 / (k - 7)) FROM t /* of none */").await.unwrap_err();
        let none = "SELECT count(*) FROM system.queries WHERE sql LIKE '%/* of none */' AND sql NOT LIKE '%system%' \
             AND tables IS NULL AND workers IS NULL AND snapshot IS NULL";
        assert_eq!(client.number(none).await.unwrap(), 1);
        client.update("DROP SCHEMA cert_sql CASCADE").await.unwrap();
    });
}

#[test]
fn a_scan_that_goes_wrong_is_an_error_and_no_answer() {
    let mut options = options(2);
    options.env.push(("SHOAL_FAULT_FUNCTIONS".into(), "1".into()));
    let cluster = Cluster::start(&options).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(break_scans(&cluster));
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// Statements over `t`, whose scans go wrong. Where `t` is the side of a join
/// that is looked at only if the other has rows, a segment less is not noticed.
const BROKEN: [&str; 12] = [
    "SELECT k, v FROM t",
    "SELECT k FROM t WHERE v > 5",
    "SELECT sum(k) FROM t",
    "SELECT v, sum(k) FROM t GROUP BY v",
    "SELECT v, sum(k) FROM t GROUP BY v ORDER BY 2 LIMIT 3",
    "SELECT k FROM t ORDER BY v, k",
    "SELECT k FROM t ORDER BY v DESC, k LIMIT 3",
    "SELECT k, row_number() OVER (PARTITION BY v ORDER BY k) FROM t",
    "SELECT k FROM t UNION ALL SELECT k FROM whole",
    "SELECT count(*) FROM whole a JOIN t b ON a.v = b.k",
    "CREATE TABLE made AS SELECT * FROM t",
    "INSERT INTO kept SELECT k, v FROM t",
];

async fn break_scans(cluster: &Cluster) {
    let mut client = cluster.connect().await.unwrap();
    let series = format!("SELECT value, value % 1000, 0 FROM generate_series(1, {ROWS})");
    for sql in [
        "CREATE TABLE whole (k BIGINT, v BIGINT, n INT) WITH (shards = 8, shard_key = 'k')",
        "CREATE TABLE kept (k BIGINT, v BIGINT) WITH (shards = 2)",
        &format!("INSERT INTO whole SELECT value, value % 1000, 0 FROM generate_series(1, {})", 5 * ROWS),
    ] {
        client.update(sql).await.unwrap();
    }
    let mut failures = Vec::new();
    for (fault, words) in [("skip", "were read"), ("twice", "were read"), ("swap", "not the same")] {
        let table = format!("t (k BIGINT, v BIGINT, shoal_fault_{fault} INT)");
        client.update(&format!("CREATE TABLE {table} WITH (shards = 8, shard_key = 'k')")).await.unwrap();
        // Two segments of each shard, so that one can stand in for the other.
        for _ in 0..2 {
            client.update(&format!("INSERT INTO t {series}")).await.unwrap();
        }
        for task_bytes in ["'64MiB'", "1"] {
            client.update(&format!("SET shoal.task_bytes = {task_bytes}")).await.unwrap();
            for sql in BROKEN {
                match client.run(sql).await {
                    Ok(_) => failures.push(format!("{fault}, task_bytes {task_bytes}: no error: {sql}")),
                    Err(error) => {
                        let message = error.message;
                        if !message.contains("segments of `") || !message.contains(words) {
                            failures.push(format!("{fault}, task_bytes {task_bytes}: {sql}: {message}"));
                        }
                    }
                }
            }
            // The same queries are well over a table that is.
            for sql in BROKEN.iter().filter(|sql| sql.starts_with("SELECT")) {
                let sql = sql.replace("FROM t", "FROM whole").replace("JOIN t", "JOIN whole");
                if let Err(error) = client.query(&sql).await {
                    failures.push(format!("{sql}: {error}"));
                }
            }
        }
        client.update("DROP TABLE t").await.unwrap();
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(client.number("SELECT count(*) FROM kept").await.unwrap(), 0, "nothing of them was written");
    client.query("SELECT * FROM made").await.unwrap_err();
}
