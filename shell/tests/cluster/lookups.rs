//! Lookups through prepared statements: whatever is kept of their plans, they
//! give what the same statement gives when it is written out.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_flight::FlightInfo;
use arrow_flight::sql::client::PreparedStatement;
use shoal_benches::{Client, ClientError};
use tonic::transport::Channel;

use crate::bad_input::with_client;
use crate::fixture::{in_time, own, shared};

const ROWS: i64 = 20_000;
const TABLE: &str =
    "(k BIGINT, n INT, s VARCHAR) WITH (shards = 8, replicas = 2, shard_key = 'k', sort_key = 'k')";
/// Each is prepared as it is, and written out with the value for `$1`.
const STATEMENTS: [&str; 10] = [
    "SELECT k, n, s FROM lk_rows WHERE k = $1",
    "SELECT upper(s) AS u, round(n / 7.0, 2) AS r FROM lk_rows WHERE k = $1 AND char_length(s) > 6",
    "SELECT s FROM lk_rows AS r WHERE $1 = r.k AND n < 50",
    "SELECT s, n * 2 AS d FROM (SELECT * FROM lk_rows WHERE n >= 0) WHERE k = $1",
    "SELECT count(*) AS c, min(s) AS m FROM lk_rows WHERE k = $1",
    "SELECT k, s FROM lk_rows WHERE k BETWEEN $1 AND 120",
    "SELECT k FROM lk_rows WHERE k > $1 ORDER BY k LIMIT 3",
    "SELECT k FROM lk_rows WHERE k = $1 OR k = 5",
    "SELECT k FROM lk_rows WHERE k = $1 - 1",
    // Two lists that only values can tell apart.
    "SELECT k FROM lk_rows WHERE k IN ($1, 2, 3, 4, 5) AND k IN ($2, 2, 7, 8, 9)",
];
/// Values for parameters; none is NULL.
const VALUES: [Option<i64>; 8] =
    [Some(1), Some(77), Some(ROWS), Some(117), Some(0), Some(-5), Some(i64::MAX), None];

/// Rows as lines, in order.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<_> = columns.iter().map(|column| column.value(row).to_string()).collect();
            lines.push(cells.join(","));
        }
    }
    lines.sort();
    lines
}

async fn run(
    client: &mut Client,
    prepared: &mut PreparedStatement<Channel>,
    value: Option<i64>,
) -> Result<Vec<String>, ClientError> {
    let parameters = prepared.parameter_schema()?.fields().len();
    let columns = (0..parameters).map(|number| {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![value]));
        (format!("${}", number + 1), column)
    });
    prepared.set_parameters(RecordBatch::try_from_iter(columns)?)?;
    let info = prepared.execute().await?;
    Ok(lines(&client.fetch(info).await?.1))
}

async fn written_out(client: &mut Client, sql: &str, value: Option<i64>) -> Vec<String> {
    let value = value.map_or("CAST(NULL AS BIGINT)".to_owned(), |value| value.to_string());
    lines(&client.query(&sql.replace("$1", &value).replace("$2", &value)).await.unwrap())
}

#[test]
fn whatever_the_value_a_prepared_lookup_gives_what_is_written_out() {
    with_client(shared(4), async |client| {
        client.update(&format!("CREATE TABLE lk_rows {TABLE}")).await.unwrap();
        let fill = format!(
            "INSERT INTO lk_rows SELECT value, value % 100, 'text ' || value FROM generate_series(1, {ROWS})"
        );
        client.update(&fill).await.unwrap();
        for sql in STATEMENTS {
            let mut prepared = client.prepare(sql).await.unwrap();
            for value in VALUES.into_iter().chain(VALUES) {
                let given = run(client, &mut prepared, value).await;
                let given = given.unwrap_or_else(|error| panic!("{sql} with {value:?}: {error}"));
                assert_eq!(given, written_out(client, sql, value).await, "{sql} with {value:?}");
            }
            prepared.close().await.unwrap();
        }
        client.update("DROP TABLE lk_rows").await.unwrap();
    });
}

#[test]
fn a_prepared_lookup_sees_what_changed_since() {
    with_client(shared(4), async |client| {
        client.update(&format!("CREATE TABLE lk_changes {TABLE}")).await.unwrap();
        client.update("INSERT INTO lk_changes VALUES (1, 1, 'first'), (2, 2, 'other')").await.unwrap();
        client.update("CREATE VIEW lk_seen AS SELECT k, s FROM lk_changes WHERE n = 1").await.unwrap();
        let mut lookup = client.prepare("SELECT s FROM lk_changes WHERE k = $1").await.unwrap();
        let mut through_view = client.prepare("SELECT s FROM lk_seen WHERE k = $1").await.unwrap();
        for _ in 0..2 {
            assert_eq!(run(client, &mut lookup, Some(1)).await.unwrap(), ["first"]);
            assert_eq!(run(client, &mut through_view, Some(1)).await.unwrap(), ["first"]);
        }
        client.update("INSERT INTO lk_changes VALUES (1, 7, 'second')").await.unwrap();
        assert_eq!(run(client, &mut lookup, Some(1)).await.unwrap(), ["first", "second"]);
        let replaced = "CREATE OR REPLACE VIEW lk_seen AS SELECT k, s FROM lk_changes WHERE n = 7";
        client.update(replaced).await.unwrap();
        assert_eq!(run(client, &mut through_view, Some(1)).await.unwrap(), ["second"]);

        // A table of the same name whose key is a text.
        client.update("DROP VIEW lk_seen").await.unwrap();
        client.update("DROP TABLE lk_changes").await.unwrap();
        assert!(run(client, &mut lookup, Some(1)).await.is_err(), "the table is gone");
        client.update("CREATE TABLE lk_changes (k VARCHAR, s VARCHAR) WITH (shard_key = 'k')").await.unwrap();
        client.update("INSERT INTO lk_changes VALUES ('1', 'a text'), ('x', 'no number')").await.unwrap();
        let expected = client.query("SELECT s FROM lk_changes WHERE k = 1").await;
        match (run(client, &mut lookup, Some(1)).await, expected) {
            (Ok(given), Ok(expected)) => assert_eq!(given, lines(&expected)),
            (given, expected) => assert_eq!(given.is_err(), expected.is_err(), "{given:?} {expected:?}"),
        }
        client.update("DROP TABLE lk_changes").await.unwrap();
    });
}

/// Announces a query as its client does that runs a text.
async fn announced(client: &mut Client, sql: &str) -> FlightInfo {
    client.flight().execute(sql.to_owned(), None).await.unwrap()
}

fn query_id(info: &FlightInfo) -> String {
    let told: serde_json::Value = serde_json::from_slice(&info.app_metadata).unwrap();
    told["query_id"].as_str().unwrap().to_owned()
}

#[test]
fn what_began_when_it_was_announced_sees_what_was_written_until_its_rows_are_asked_for() {
    for workers in [1, 2, 4] {
        with_client(shared(workers), async |client| {
            let table = format!("lk_early_{workers}");
            client
                .update(&format!("CREATE TABLE {table} {}", TABLE.replace("replicas = 2", "replicas = 1")))
                .await
                .unwrap();
            client
                .update(&format!("INSERT INTO {table} VALUES (1, 1, 'first'), (2, 2, 'other')"))
                .await
                .unwrap();
            let texts = [
                format!("SELECT s FROM {table} WHERE k = 1"),
                format!("SELECT s FROM {table} WHERE n < 100 AND s <> 'other' ORDER BY s"),
                format!("SELECT max(s) AS s FROM {table} WHERE k = 1"),
            ];
            let sql = format!("SELECT s FROM {table} WHERE k = $1");
            let mut lookup = client.prepare(&sql).await.unwrap();
            // Their plans are kept, and so they begin at once.
            for _again in 0..3 {
                assert_eq!(run(client, &mut lookup, Some(1)).await.unwrap(), ["first"]);
                for text in &texts {
                    assert_eq!(lines(&client.query(text).await.unwrap()), ["first"], "{text}");
                }
            }
            let value: ArrayRef = Arc::new(Int64Array::from(vec![1]));
            lookup.set_parameters(RecordBatch::try_from_iter([("$1", value)]).unwrap()).unwrap();
            let mut waiting = vec![lookup.execute().await.unwrap()];
            for text in &texts {
                waiting.push(announced(client, text).await);
            }
            // By now they have run.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let ids: Vec<String> = waiting.iter().map(|info| format!("'{}'", query_id(info))).collect();
            let known = format!("SELECT count(*) FROM system.queries WHERE id IN ({})", ids.join(", "));
            assert_eq!(client.number(&known).await.unwrap(), 0, "nobody asked for them yet");
            client.update(&format!("INSERT INTO {table} VALUES (1, 7, 'second')")).await.unwrap();
            for (number, info) in waiting.into_iter().enumerate() {
                let seen = lines(&client.fetch(info).await.unwrap().1);
                let expected = if number == texts.len() { vec!["second"] } else { vec!["first", "second"] };
                assert_eq!(seen, expected, "number {number}");
            }
            let finished = format!("{known} AND state = 'finished'");
            let ended = (client.number(&known).await.unwrap(), client.number(&finished).await.unwrap());
            assert_eq!(ended, (4, 4), "each once");
            for text in &texts[..2] {
                assert_eq!(lines(&client.query(text).await.unwrap()), ["first", "second"], "{text}");
            }
            // Nor is there an answer of a table that is gone.
            let gone = [announced(client, &texts[0]).await, announced(client, &texts[2]).await];
            client.update(&format!("DROP TABLE {table}")).await.unwrap();
            for info in gone {
                assert!(client.fetch(info).await.is_err());
            }
        });
    }
}

/// Rows that are worth more than one task, by all of their columns.
const WIDE_ROWS: i64 = 480_000;
const WIDE: &str =
    "SELECT count(*) AS c FROM (SELECT n, sum(k) AS k, sum(m) AS m FROM lk_wide GROUP BY n) WHERE k + m >= 0";

#[test]
fn what_began_in_several_tasks_is_run_again_while_these_still_run() {
    with_client(shared(4), async |client| {
        client.update("CREATE TABLE lk_wide (k BIGINT, n BIGINT, m BIGINT) WITH (shards = 8, replicas = 2, shard_key = 'k')").await.unwrap();
        let fill = format!(
            "INSERT INTO lk_wide SELECT value, value AS n, -value AS m FROM generate_series(1, {WIDE_ROWS})"
        );
        client.update(&fill).await.unwrap();
        let plan = client.text(&format!("EXPLAIN {WIDE}")).await.unwrap();
        assert!(plan.contains(" tasks on"), "{plan}");
        let mut writer = shared(4).connect().await.unwrap();
        let mut written = WIDE_ROWS;
        for _again in 0..20 {
            // The second time its plan is kept.
            client.query(WIDE).await.unwrap();
            let info = announced(client, WIDE).await;
            let next = written + 1;
            writer.update(&format!("INSERT INTO lk_wide VALUES ({next}, {next}, 0)")).await.unwrap();
            written = next;
            let counted = lines(&client.fetch(info).await.unwrap().1);
            assert_eq!(counted, [written.to_string()]);
        }
        client.update("DROP TABLE lk_wide").await.unwrap();
    });
}

#[test]
fn a_lookup_is_known_like_other_queries() {
    with_client(shared(2), async |client| {
        client.update(&format!("CREATE TABLE lk_known {TABLE}")).await.unwrap();
        client.update("INSERT INTO lk_known VALUES (1, 1, 'a'), (2, 2, 'b')").await.unwrap();
        let sql = "SELECT s FROM lk_known WHERE k = $1";
        let mut lookup = client.prepare(sql).await.unwrap();
        assert_eq!(run(client, &mut lookup, Some(2)).await.unwrap(), ["b"]);
        let known = format!(
            "SELECT state || ' ' || CAST(rows AS VARCHAR) || ' ' || CAST(attempts AS VARCHAR) \
             FROM system.queries WHERE sql = '{sql}'"
        );
        assert_eq!(client.text(&known).await.unwrap(), "finished 1 1\n");
        client.update("DROP TABLE lk_known").await.unwrap();
    });
}

#[test]
fn prepared_lookups_go_on_while_workers_die() {
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        let table = TABLE.replace("replicas = 2", "replicas = 3");
        client.update(&format!("CREATE TABLE lk_lost {table}")).await.unwrap();
        let fill =
            "INSERT INTO lk_lost SELECT value, value % 100, 'text ' || value FROM generate_series(1, 1000)";
        client.update(fill).await.unwrap();
        let mut lookup = client.prepare("SELECT s FROM lk_lost WHERE k = $1").await.unwrap();
        for (worker, keys) in [("worker-1", 1..300), ("worker-2", 300..600)] {
            cluster.kill(worker).unwrap();
            for key in keys {
                let given = in_time(run(&mut client, &mut lookup, Some(key))).await.unwrap();
                assert_eq!(given, [format!("text {key}")], "after {worker} was killed");
            }
        }
    });
}
