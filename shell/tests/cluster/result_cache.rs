//! Results that are kept: the same query over the same rows is answered without
//! being run, and whatever changes the answer is seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, TimestampNanosecondArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt;
use serde_json::Value;
use shoal_benches::{Client, Cluster, ClusterOptions};
use tonic::Code;

use crate::bad_input::with_client;
use crate::fixture::{in_time, options, shared, wait_until};

/// How long a coordinator without a majority may take to say so, on a machine that
/// does other things.
const FAILS_WITHIN: Duration = Duration::from_secs(40);
/// How often something is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A table of the numbers from 1 on.
async fn make_rows(client: &mut Client, table: &str, rows: u64) {
    let create = format!("CREATE TABLE {table} (k BIGINT) WITH (shards = 4, shard_key = 'k')");
    client.update(&create).await.unwrap();
    let insert = format!("INSERT INTO {table} SELECT value FROM generate_series(1, {rows})");
    client.update(&insert).await.unwrap();
}

async fn switch(client: &mut Client, to: &str) {
    client.update(&format!("SET shoal.result_cache = {to}")).await.unwrap();
}

/// What a query gives, and whether that was a kept result.
async fn asked(client: &mut Client, sql: &str) -> (String, bool) {
    let batches = client.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let rows = pretty_format_batches(&batches).unwrap().to_string();
    (rows, was_kept(client, sql).await)
}

/// Whether the newest query of this text was answered with a kept result.
async fn was_kept(client: &mut Client, sql: &str) -> bool {
    let newest = format!(
        "SELECT CAST(from_cache AS BIGINT) FROM system.queries WHERE sql = '{}' \
         ORDER BY submitted_at DESC LIMIT 1",
        sql.replace('\'', "''")
    );
    client.number(&newest).await.unwrap() == 1
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

/// A cluster of one worker, with more arguments for its coordinator.
fn with_args(args: &[&str]) -> Cluster {
    let coordinator_args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Cluster::start(&ClusterOptions { coordinator_args, ..options(1) }).unwrap()
}

#[test]
fn the_same_query_over_the_same_rows_is_not_run_again() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        make_rows(client, "kept_twice", 1000).await;
        let sql = "SELECT k % 3 AS r, count(*), sum(k) FROM kept_twice GROUP BY 1 ORDER BY 1";
        // Nobody asked for it yet.
        let (rows, _) = asked(client, sql).await;
        assert_eq!(asked(client, sql).await, (rows.clone(), false));
        switch(client, "on").await;
        assert_eq!(asked(client, sql).await, (rows.clone(), false));
        assert_eq!(asked(client, sql).await, (rows.clone(), true));
        assert_eq!(asked(client, &format!("{sql};")).await, (rows.clone(), true));
        client.run(sql).await.unwrap();
        assert!(was_kept(client, sql).await, "as a prepared statement");

        let mut other = cluster.connect().await.unwrap();
        assert_eq!(asked(&mut other, sql).await, (rows.clone(), false));
        switch(&mut other, "on").await;
        assert_eq!(asked(&mut other, sql).await, (rows.clone(), true));
        switch(&mut other, "off").await;
        assert_eq!(asked(&mut other, sql).await, (rows.clone(), false));

        // It says that it was not run, and what it rests on.
        let told = format!(
            "SELECT count(*) FROM system.queries WHERE sql = '{sql}' AND from_cache AND state = 'finished' \
             AND rows = 3 AND attempts = 0 AND segments = 0 AND snapshot > 0 AND array_length(workers) > 0"
        );
        assert_eq!(client.number(&told).await.unwrap(), 3);
        let info = client.flight().execute(sql.to_owned(), None).await.unwrap();
        let details: Value = serde_json::from_slice(&info.app_metadata).unwrap();
        let id = details["query_id"].as_str().unwrap().to_owned();
        client.fetch(info).await.unwrap();
        let certificate = client.action("shoal.certificate", id.into_bytes()).await.unwrap();
        let certificate: Value = serde_json::from_slice(&certificate).unwrap();
        assert_eq!(certificate["from_cache"], true, "{certificate}");
        assert_eq!(certificate["tables"][0]["rows"], 1000, "{certificate}");

        let explained = client.text(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
        assert!(
            explained.contains("attempts: 1") && explained.contains("result cache: not used"),
            "{explained}"
        );
        client.update("DROP TABLE kept_twice").await.unwrap();
    });
}

#[test]
fn whatever_changes_the_rows_is_seen() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        make_rows(client, "kept_changed", 1000).await;
        client.update("CREATE VIEW kept_view AS SELECT k FROM kept_changed WHERE k > 1").await.unwrap();
        let file = cluster.import_dir().join("kept.csv");
        std::fs::write(&file, "k\n7\n8\n").unwrap();
        let copy = format!("COPY kept_changed FROM '{}' (FORMAT csv, HEADER true)", file.display());
        let mut plain = cluster.connect().await.unwrap();
        switch(client, "on").await;
        for (change, statements) in [
            ("nothing yet", vec![]),
            ("INSERT", vec!["INSERT INTO kept_changed VALUES (5), (6)"]),
            ("COPY", vec![copy.as_str()]),
            ("another view", vec!["CREATE OR REPLACE VIEW kept_view AS SELECT k + 1 AS k FROM kept_changed"]),
            (
                "another table of that name",
                vec![
                    "DROP TABLE kept_changed",
                    "CREATE TABLE kept_changed (k BIGINT)",
                    "INSERT INTO kept_changed VALUES (3)",
                ],
            ),
            ("an empty one", vec!["DROP TABLE kept_changed", "CREATE TABLE kept_changed (k BIGINT)"]),
            (
                "an empty one once more",
                vec!["DROP TABLE kept_changed", "CREATE TABLE kept_changed (k BIGINT)"],
            ),
        ] {
            for statement in statements {
                client.update(statement).await.unwrap();
            }
            for sql in ["SELECT count(*), sum(k) FROM kept_changed", "SELECT count(*), sum(k) FROM kept_view"]
            {
                let (rows, is_kept) = asked(client, sql).await;
                assert_eq!(rows, asked(&mut plain, sql).await.0, "{change}: {sql}");
                let is_same = change == "another view" && sql.ends_with("kept_changed");
                assert_eq!(is_kept, is_same, "{change}: {sql}");
                assert_eq!(asked(client, sql).await, (rows, true), "{change}: {sql}");
            }
        }
        // Another table changes nothing.
        make_rows(client, "kept_other", 10).await;
        assert!(asked(client, "SELECT count(*), sum(k) FROM kept_view").await.1);
        client.update("DROP TABLE kept_changed").await.unwrap();
        let gone = client.query("SELECT count(*), sum(k) FROM kept_changed").await.unwrap_err();
        assert!(gone.message.contains("kept_changed"), "{gone}");
        client.update("DROP VIEW kept_view").await.unwrap();
        client.update("DROP TABLE kept_other").await.unwrap();
    });
}

#[test]
fn settings_and_parameters_are_part_of_the_question() {
    with_client(shared(2), async |client| {
        make_rows(client, "kept_asked", 100).await;
        switch(client, "on").await;
        let sql =
            "SELECT CAST(TIMESTAMPTZ '2024-06-01 12:00:00Z' AS VARCHAR) AS moment, count(*) FROM kept_asked";
        let (here, _) = asked(client, sql).await;
        assert_eq!(asked(client, sql).await, (here.clone(), true));
        client.update("SET TIME ZONE = '+02:00'").await.unwrap();
        let (there, is_kept) = asked(client, sql).await;
        assert!(!is_kept && there.contains("14:00:00"), "{there}");
        assert_eq!(asked(client, sql).await, (there, true));
        client.update("SET TIME ZONE = '+00:00'").await.unwrap();
        assert_eq!(asked(client, sql).await.0, here);

        let sql = "SELECT count(*) FROM kept_asked WHERE k < $1";
        let mut below = client.prepare(sql).await.unwrap();
        for (limit, expected, is_kept) in [(10, 9, false), (20, 19, false), (10, 9, true), (20, 19, true)] {
            let limits: ArrayRef = Arc::new(Int64Array::from(vec![limit]));
            below.set_parameters(RecordBatch::try_from_iter([("1", limits)]).unwrap()).unwrap();
            let info = below.execute().await.unwrap();
            let (_, batches) = client.fetch(info).await.unwrap();
            let batch = batches.iter().find(|batch| batch.num_rows() > 0).unwrap();
            assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(0), expected);
            assert_eq!(was_kept(client, sql).await, is_kept, "below {limit}");
        }
        below.close().await.unwrap();

        // One moment, told in two time zones.
        let sql = "SELECT arrow_typeof($1) AS moment, count(*) FROM kept_asked";
        let mut typed = client.prepare(sql).await.unwrap();
        for (zone, is_kept) in [("+00:00", false), ("+02:00", false), ("+00:00", true), ("+02:00", true)] {
            let moments: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![7]).with_timezone(zone));
            typed.set_parameters(RecordBatch::try_from_iter([("1", moments)]).unwrap()).unwrap();
            let info = typed.execute().await.unwrap();
            let (_, batches) = client.fetch(info).await.unwrap();
            let rows = pretty_format_batches(&batches).unwrap().to_string();
            assert!(rows.contains(zone), "{rows}");
            assert_eq!(was_kept(client, sql).await, is_kept, "in {zone}");
        }
        typed.close().await.unwrap();
        client.update("DROP TABLE kept_asked").await.unwrap();
    });
}

#[test]
fn what_does_not_follow_from_tables_is_never_kept() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        make_rows(client, "kept_never", 50_000).await;
        let file = cluster.import_dir().join("kept_never.csv");
        std::fs::write(&file, "k\n1\n").unwrap();
        for sql in [
            "CREATE VIEW kept_now AS SELECT k FROM kept_never WHERE now() > TIMESTAMP '2024-01-01'"
                .to_owned(),
            format!("CREATE EXTERNAL TABLE kept_file (k BIGINT) STORED AS CSV LOCATION '{}'", file.display()),
            "SET shoal.result_cache = on".to_owned(),
        ] {
            client.update(&sql).await.unwrap();
        }
        for sql in [
            "SELECT count(*), max(random()) < 2 FROM kept_never",
            "SELECT count(*) FROM kept_never WHERE now() > TIMESTAMP '2024-01-01'",
            "SELECT count(*) FROM kept_now",
            "SELECT count(*) FROM kept_never JOIN kept_file USING (k)",
            "SELECT count(*) > 0 FROM system.tables",
            "SELECT count(*) > 0 FROM information_schema.tables",
            "SELECT count(*) FROM generate_series(1, 7)",
            "SELECT 40 + 2",
        ] {
            let (rows, _) = asked(client, sql).await;
            assert_eq!(asked(client, sql).await, (rows, false), "{sql}");
        }
        let why = client.text("EXPLAIN ANALYZE SELECT count(*) FROM kept_now").await.unwrap();
        assert!(why.contains("result cache: this result is never kept: now()"), "{why}");

        // Nor what fails, before its first row and after some.
        client.update("SET shoal.failover = false").await.unwrap();
        for sql in ["SELECT sum(10 / (k - 3)) FROM kept_never", "SELECT 10 / (k - 49999) FROM kept_never"] {
            for _ in 0..2 {
                client.query(sql).await.unwrap_err();
                assert!(!was_kept(client, sql).await, "{sql}");
            }
        }
        client.update("DROP VIEW kept_now").await.unwrap();
        client.update("DROP TABLE kept_file").await.unwrap();
        client.update("DROP TABLE kept_never").await.unwrap();
    });
}

#[test]
fn the_memory_of_kept_results_is_bounded_and_told() {
    let cluster = with_args(&["--result-cache", "1MiB"]);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "kept_many", 20_000).await;
        switch(&mut client, "on").await;
        // 160 kB are more than a sixteenth of it.
        for _ in 0..2 {
            assert!(!asked(&mut client, "SELECT k FROM kept_many").await.1);
        }
        let nothing =
            "SELECT count(*) FROM system.caches WHERE entries = 0 AND bytes = 0 AND bytes_max = 1048576";
        assert_eq!(client.number(nothing).await.unwrap(), 1);
        let some = |number: u64| format!("SELECT k FROM kept_many WHERE k <= 5000 AND k <> {number}");
        for number in 1..=40 {
            assert!(!asked(&mut client, &some(number)).await.1, "{number}");
        }
        assert!(asked(&mut client, &some(40)).await.1, "the newest");
        assert!(!asked(&mut client, &some(1)).await.1, "the oldest");
        let bounded = "SELECT count(*) FROM system.caches WHERE cache = 'results' AND bytes <= bytes_max \
                       AND entries BETWEEN 5 AND 30 AND hits = 1 AND misses = 43 AND stored = 41 \
                       AND evicted = stored - entries AND outdated = 0";
        let usage = client.query("SELECT * FROM system.caches").await.unwrap();
        assert_eq!(client.number(bounded).await.unwrap(), 1, "{}", pretty_format_batches(&usage).unwrap());
        // Nobody asks for them any more, and they go.
        client.update("DROP TABLE kept_many").await.unwrap();
        wait_until(&mut client, nothing).await;
        assert!(client.number("SELECT outdated FROM system.caches").await.unwrap() >= 5);
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_client_that_takes_no_rows_takes_no_memory_for_results() {
    let cluster = with_args(&["--result-cache", "1GiB"]);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "kept_slow", 40_000).await;
        let mut slow = cluster.connect().await.unwrap();
        switch(&mut slow, "on").await;
        slow.update("SET datafusion.execution.batch_size = 1000").await.unwrap();
        // 40 MB: more than its connection takes before it reads.
        let sql = "SELECT lpad(CAST(k AS VARCHAR), 1000) AS padded FROM kept_slow";
        let mut rows = slow.stream(sql).await.unwrap();
        let mut count = rows.try_next().await.unwrap().unwrap().num_rows();
        let given_up = format!(
            "SELECT count(*) FROM system.caches c JOIN system.queries q ON q.sql = '{sql}' \
             WHERE q.state = 'running' AND c.misses = 1 AND c.stored = 0 AND c.bytes = 0"
        );
        wait_until(&mut client, &given_up).await;
        // It gets all its rows nevertheless.
        while let Some(batch) = in_time(rows.try_next()).await.unwrap() {
            count += batch.num_rows();
        }
        assert_eq!(count, 40_000);
        assert_eq!(client.number("SELECT stored FROM system.caches").await.unwrap(), 0);
    });
}

#[test]
fn a_coordinator_without_a_result_cache_says_so() {
    let cluster = with_args(&["--result-cache", "0"]);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "kept_nowhere", 10).await;
        // Those of the table.
        client.notices().await.unwrap();
        switch(&mut client, "off").await;
        assert_eq!(client.notices().await.unwrap(), Vec::<String>::new());
        switch(&mut client, "on").await;
        let notices = client.notices().await.unwrap().join("\n");
        assert!(notices.contains("--result-cache 0"), "{notices}");
        for _ in 0..2 {
            assert!(!asked(&mut client, "SELECT sum(k) FROM kept_nowhere").await.1);
        }
    });
}

#[test]
fn a_kept_result_waits_for_no_turn() {
    let cluster = with_args(&["--max-queries", "1", "--queue-limit", "1"]);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client, "kept_busy", 50_000).await;
        switch(&mut client, "on").await;
        // As long as the one that has the place: they would wait for the same one.
        let sql = "SELECT count(*), sum(a.k) FROM kept_busy a JOIN kept_busy b ON a.k = b.k";
        let (rows, _) = asked(&mut client, sql).await;
        let endless = "SELECT count(*) FROM kept_busy a, kept_busy b, kept_busy c WHERE a.k + b.k + c.k > 0";
        let mut busy = cluster.connect().await.unwrap();
        let running = tokio::spawn(async move { busy.query(endless).await.map(|_| ()) });
        let runs =
            format!("SELECT count(*) FROM system.queries WHERE state = 'running' AND sql = '{endless}'");
        wait_until(&mut client, &runs).await;
        wait_until(&mut client, "SELECT count(*) FROM system.workers WHERE tasks_running > 0").await;
        assert_eq!(in_time(asked(&mut client, sql)).await, (rows, true));
        assert_eq!(client.number(&runs).await.unwrap(), 1, "it has the only place for long ones");
        running.abort();
    });
}

#[test]
fn what_another_coordinator_wrote_is_seen_and_nothing_old_is_told_without_a_majority() {
    // A compaction makes new segments, and what was kept is forgotten.
    let coordinator_args = vec!["--compaction=off".to_owned()];
    let cluster =
        Cluster::start(&ClusterOptions { coordinators: 3, coordinator_args, ..options(2) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut writer = cluster.connect_to("coordinator").await.unwrap();
        make_rows(&mut writer, "kept_far", 10).await;
        let mut reader = cluster.connect_to("coordinator-2").await.unwrap();
        switch(&mut reader, "on").await;
        let sql = "SELECT count(*), sum(k) FROM kept_far";
        for turn in 0..20 {
            writer.update(&format!("INSERT INTO kept_far VALUES ({turn})")).await.unwrap();
            let (rows, is_kept) = asked(&mut reader, sql).await;
            let (expected, _) = asked(&mut writer, sql).await;
            assert_eq!((&rows, is_kept), (&expected, false), "turn {turn}");
            assert_eq!(asked(&mut reader, sql).await, (rows, true), "turn {turn}");
        }
        for name in ["coordinator", "coordinator-3"] {
            cluster.kill(name).unwrap();
        }
        // For a moment nobody can know more than a leader that is left.
        let since = Instant::now();
        let error = loop {
            match in_time(reader.query(sql)).await {
                Ok(_) => assert!(since.elapsed() < FAILS_WITHIN, "it still answers alone"),
                Err(error) => break error,
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        assert_eq!(error.code, Code::Unavailable, "{error}");
        in_time(reader.query(sql)).await.unwrap_err();
    });
}
