//! Answers that plain DataFusion gets wrong, or fails to give: here the right
//! ones are written down, as the oracle cannot say.

use shoal_benches::Client;

use crate::fixture::shared;

const SETUP: [&str; 14] = [
    "CREATE SCHEMA ans",
    "CREATE SCHEMA ans_other",
    "CREATE TABLE ans.mx (c INT, d INT, e INT) WITH (shards = 1, replicas = 2)",
    "CREATE TABLE ans.my (c INT, e INT) WITH (shards = 1, replicas = 2)",
    "INSERT INTO ans.mx VALUES (6, 7, 8), (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (5, 5, 5)",
    "INSERT INTO ans.my VALUES (8, 6)",
    "CREATE TABLE ans.ti (k INT, v INT) WITH (shards = 4, shard_key = 'k')",
    "INSERT INTO ans.ti VALUES (1, 10), (2, 20), (3, 7), (4, NULL)",
    "CREATE TABLE ans.tj (k INT, w INT) WITH (shards = 4, shard_key = 'k')",
    "INSERT INTO ans.tj VALUES (1, 10), (2, NULL), (3, 8)",
    "CREATE TABLE ans.nn (id INT, f DOUBLE) WITH (shards = 1)",
    "INSERT INTO ans.nn VALUES (1, 'NaN'), (2, 1.0)",
    "CREATE TABLE ans.tz (k INT, s TEXT) WITH (shards = 4, shard_key = 'k')",
    "INSERT INTO ans.tz VALUES (1, '2024-06-01T12:00:00Z'), (2, '2024-06-01 12:00:00'), (3, NULL), (4, '2024-06-01T12:00:00+05:00')",
];

/// Each query with its rows: values separated by commas, rows by semicolons.
const ANSWERS: [(&str, &str); 24] = [
    // A join that is turned round has one name twice.
    (
        "SELECT x.c, x.d FROM ans.mx x RIGHT JOIN ans.my y ON y.c = x.e WHERE (x.c = y.e OR y.e IS NULL)",
        "6,7",
    ),
    ("SELECT x.c, x.d FROM ans.mx x RIGHT JOIN ans.my y ON y.c = x.e WHERE x.c < 7 OR y.e IS NULL", "6,7"),
    ("SELECT x.c, x.d FROM ans.mx x FULL JOIN ans.my y ON y.c = x.e WHERE x.c = y.e", "6,7"),
    // NOT IN in three values.
    (
        "SELECT a FROM (VALUES (1), (NULL)) t(a) WHERE a NOT IN (SELECT b FROM (VALUES (2), (NULL)) u(b)) OR a = 99",
        "",
    ),
    ("SELECT k FROM ans.ti WHERE v NOT IN (SELECT w FROM ans.tj) OR k = 2", "2"),
    ("SELECT k FROM ans.ti WHERE v NOT IN (SELECT w FROM ans.tj WHERE w > 0) OR k = 1 ORDER BY k", "1;2;3"),
    ("SELECT k FROM ans.ti WHERE v NOT IN (SELECT w FROM ans.tj)", ""),
    ("SELECT k FROM ans.ti WHERE v NOT IN (SELECT w FROM ans.tj WHERE w > 100) ORDER BY k", "1;2;3;4"),
    ("SELECT k FROM ans.ti WHERE NOT (v IN (SELECT w FROM ans.tj WHERE w > 0)) ORDER BY k", "2;3"),
    ("SELECT k FROM ans.ti WHERE (v IN (SELECT w FROM ans.tj)) IS NULL ORDER BY k", "2;3;4"),
    ("SELECT k FROM ans.ti WHERE v NOT IN (SELECT w FROM ans.tj WHERE tj.k = ti.k) ORDER BY k", "3;4"),
    ("SELECT k FROM ans.ti WHERE v IN (SELECT w FROM ans.tj) OR k = 3 ORDER BY k", "1;3"),
    // The column outside is not that inside.
    ("SELECT k FROM ans.ti WHERE v = ANY (SELECT v FROM ans.ti WHERE v = 10) ORDER BY k", "1"),
    ("SELECT k FROM ans.ti WHERE v > ALL (SELECT v FROM ans.ti WHERE v < 10) ORDER BY k", "1;2"),
    // One row for one row.
    (
        "SELECT v FROM (VALUES (1), (1), (2)) a(v) EXCEPT ALL SELECT v FROM (VALUES (1)) b(v) ORDER BY v",
        "1;2",
    ),
    ("SELECT v FROM (VALUES (1), (1), (2)) a(v) INTERSECT ALL SELECT v FROM (VALUES (1), (3)) b(v)", "1"),
    ("SELECT v FROM (VALUES (NULL), (NULL)) a(v) EXCEPT ALL SELECT v FROM (VALUES (NULL)) b(v)", "NULL"),
    ("SELECT v FROM (VALUES (1), (1), (2)) a(v) EXCEPT SELECT v FROM (VALUES (1)) b(v)", "2"),
    // A value that is not a number is the greatest.
    ("SELECT id FROM ans.nn WHERE f > 100", "1"),
    ("SELECT id FROM ans.nn WHERE f = 'NaN'", "1"),
    ("SELECT id FROM ans.nn WHERE f > 0.5 ORDER BY id", "1;2"),
    // What a filter makes constant is no column to sort by.
    (
        "SELECT k, r FROM (SELECT k, row_number() OVER (PARTITION BY k ORDER BY v) r FROM ans.ti WHERE k = 3) ORDER BY r",
        "3,1",
    ),
    (
        "SELECT k, s FROM (SELECT t.k, sum(t.v) OVER (PARTITION BY t.k ORDER BY t.v) s FROM ans.ti t \
         JOIN ans.tj u ON t.k = u.k WHERE u.k = 1) ORDER BY s",
        "1,10",
    ),
    ("SELECT arrow_typeof(CAST('2024-01-01' AS TIMESTAMP WITH TIME ZONE))", "Timestamp(ns, \"+00:00\")"),
];

/// The same, in a session of time zone +02:00.
const ZONED_ANSWERS: [(&str, &str); 8] = [
    ("SELECT to_timestamp(s) FROM ans.tz WHERE k = 1", "2024-06-01T14:00:00+02:00"),
    (
        "SELECT k, to_timestamp(s) FROM ans.tz WHERE k > 1 ORDER BY k",
        "2,2024-06-01T12:00:00+02:00;3,NULL;4,2024-06-01T09:00:00+02:00",
    ),
    (
        "SELECT k, CAST(date_part('hour', to_timestamp(s)) AS BIGINT), arrow_typeof(to_timestamp(s)) \
         FROM ans.tz WHERE k IN (1, 4) ORDER BY k",
        "1,14,Timestamp(ns, \"+02:00\");4,9,Timestamp(ns, \"+02:00\")",
    ),
    ("SELECT max(to_timestamp_seconds(s)) FROM ans.tz", "2024-06-01T14:00:00+02:00"),
    (
        "SELECT to_timestamp_millis(s) t, count(*) FROM ans.tz GROUP BY t ORDER BY t NULLS LAST LIMIT 1",
        "2024-06-01T09:00:00+02:00,1",
    ),
    (
        "SELECT a.k, b.k FROM ans.tz a JOIN ans.tz b ON to_timestamp_micros(a.s) = to_timestamp_micros(b.s) \
         WHERE a.k > 1 ORDER BY a.k",
        "2,2;4,4",
    ),
    (
        "SELECT to_timestamp(k) a, to_timestamp(CAST(k AS DOUBLE)) b, to_timestamp_seconds(k) c, to_timestamp(0) d \
         FROM ans.tz WHERE k = 2",
        "1970-01-01T02:00:02+02:00,1970-01-01T02:00:02+02:00,1970-01-01T02:00:02+02:00,1970-01-01T02:00:00+02:00",
    ),
    (
        "SELECT to_timestamp_nanos(s, '%Y-%m-%d %H:%M:%S') FROM ans.tz WHERE k = 2",
        "2024-06-01T12:00:00+02:00",
    ),
];

async fn rows(client: &mut Client, sql: &str) -> Result<String, String> {
    let batches = client.query(sql).await.map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    let options = arrow::util::display::FormatOptions::new().with_null("NULL");
    for batch in &batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| arrow::util::display::ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<_> = columns.iter().map(|column| column.value(row).to_string()).collect();
            rows.push(cells.join(","));
        }
    }
    Ok(rows.join(";"))
}

/// Asks all of it, and says what came back otherwise.
async fn wrong(client: &mut Client, answers: &[(&str, &str)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (sql, expected) in answers {
        let answer = rows(client, sql).await;
        if answer.as_deref() != Ok(*expected) {
            wrong.push(format!("{sql}\n  expected {expected:?}\n  answered {answer:?}"));
        }
    }
    wrong
}

fn check_answers(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for sql in SETUP {
            client.update(sql).await.unwrap();
        }
        for settings in [
            vec![],
            vec!["SET shoal.task_bytes = 1"],
            vec!["SET shoal.task_bytes = 1", "SET shoal.colocate = false"],
        ] {
            let mut client = cluster.connect().await.unwrap();
            for setting in &settings {
                client.update(setting).await.unwrap();
            }
            let mut wrongs = wrong(&mut client, &ANSWERS).await;
            client.update("SET TIME ZONE = '+02:00'").await.unwrap();
            wrongs.extend(wrong(&mut client, &ZONED_ANSWERS).await);
            assert!(wrongs.is_empty(), "{settings:?}\n{}", wrongs.join("\n"));
        }
        for schema in ["ans", "ans_other"] {
            client.update(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
        }
    });
}

#[test]
fn what_datafusion_gets_wrong_is_right_on_one_worker() {
    check_answers(1);
}

#[test]
fn what_datafusion_gets_wrong_is_right_on_two_workers() {
    check_answers(2);
}

#[test]
fn what_datafusion_gets_wrong_is_right_on_four_workers() {
    check_answers(4);
}

#[test]
fn views_mean_what_they_meant_when_they_were_made() {
    let cluster = shared(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for sql in [
            "CREATE SCHEMA vw",
            "CREATE TABLE public.vw_source (a INT)",
            "INSERT INTO public.vw_source VALUES (111)",
            "CREATE TABLE vw.vw_source (a INT)",
            "INSERT INTO vw.vw_source VALUES (222)",
            "CREATE VIEW vw_view AS SELECT a FROM vw_source",
            "SET datafusion.catalog.default_schema = 'vw'",
        ] {
            client.update(sql).await.unwrap();
        }
        assert_eq!(client.number("SELECT a FROM vw_source").await.unwrap(), 222);
        assert_eq!(client.number("SELECT a FROM public.vw_view").await.unwrap(), 111);
        let itself = "CREATE OR REPLACE VIEW public.vw_view AS SELECT a FROM public.vw_view";
        let message = client.update(itself).await.unwrap_err().to_string();
        assert!(message.contains("would read itself"), "{message}");
        client.update("CREATE VIEW public.vw_second AS SELECT * FROM public.vw_view").await.unwrap();
        let cycle = "CREATE OR REPLACE VIEW public.vw_view AS SELECT a FROM public.vw_second";
        let message = client.update(cycle).await.unwrap_err().to_string();
        assert!(message.contains("would read itself"), "{message}");
        let message = client.update("DROP TABLE public.vw_view").await.unwrap_err().to_string();
        assert!(message.contains("DROP VIEW"), "{message}");
        for sql in [
            "DROP VIEW public.vw_second",
            "DROP VIEW public.vw_view",
            "DROP TABLE public.vw_source",
            "DROP SCHEMA vw CASCADE",
        ] {
            client.update(sql).await.unwrap();
        }
    });
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let cluster = shared(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        client.update("CREATE TABLE refusals (a INT)").await.unwrap();
        for (sql, named) in [
            ("INSERT OR REPLACE INTO refusals VALUES (1)", "INSERT with"),
            ("CREATE TABLE r2 (a INT, CHECK (a > 0))", "CHECK"),
            ("CREATE TABLE r2 (a INT, UNIQUE (a))", "UNIQUE"),
            ("CREATE TABLE r2 (a INT, x INTERVAL)", "INTERVAL"),
            ("SET shoal.task_byte = 1", "shoal.task_bytes"),
        ] {
            let message = client.update(sql).await.unwrap_err().to_string();
            assert!(message.contains(named), "{sql}: {message}");
        }
        client.update("SET shoal.task_bytes = '2 MiB'").await.unwrap();
        let shown = client.query("SHOW shoal.task_bytes").await.unwrap();
        assert!(format!("{shown:?}").contains("2MiB"), "{shown:?}");
        client.update("RESET shoal.task_bytes").await.unwrap();
        let shown = client.query("SHOW shoal.task_bytes").await.unwrap();
        assert!(format!("{shown:?}").contains("20MiB"), "{shown:?}");
        for _ in 0..2 {
            client.update("SET shoal.write_id = 'refusals-1'").await.unwrap();
            client.update("INSERT INTO refusals VALUES (1)").await.unwrap();
        }
        assert_eq!(client.number("SELECT count(*) FROM refusals").await.unwrap(), 1);
        client.update("DROP TABLE refusals").await.unwrap();
    });
}
