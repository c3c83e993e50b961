//! About how many distinct values columns have: counted while rows are loaded, wherever that is
//! done, kept over a restart, shown, and used by plans.

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Cluster, Oracle};

use crate::fixture::{own, session, wait_until};
use crate::loading::{ROWS, make_table, spreading, staying, write_files};

/// How many distinct values each column of the files has.
const OF_FILES: [(&str, i64); 5] =
    [("k", ROWS), ("g", 7), ("s", ROWS), ("day", 10_000), ("f", ROWS - (ROWS + 2) / 3)];

/// What the catalog says of the columns of a table: their names, and about how many values.
async fn counts(client: &mut Client, table: &str) -> String {
    let columns = "\"column\" || ' ' || coalesce(CAST(distinct_count AS VARCHAR), 'unknown')";
    client
        .text(&format!(
            "SELECT {columns} FROM system.columns WHERE \"table\" = '{table}' ORDER BY \"column\""
        ))
        .await
        .unwrap()
}

async fn check_close(client: &mut Client, table: &str, expected: &[(&str, i64)]) {
    for (column, expected) in expected {
        let count = format!(
            "SELECT distinct_count FROM system.columns WHERE \"table\" = '{table}' AND \"column\" = '{column}'"
        );
        let found = client.number(&count).await.unwrap();
        // Some three standard errors.
        let is_close = (found - expected).abs() <= (expected / 10).max(1);
        assert!(is_close, "{found} in place of {expected} in {column} of {table}");
    }
}

/// Loads the same rows on the workers and on the coordinator.
async fn load(cluster: &Cluster, client: &mut Client) {
    let from = write_files(cluster.import_dir());
    let (mut here, mut spread) = (staying(cluster).await, spreading(cluster).await);
    for table in ["dc_here", "dc_spread"] {
        make_table(client, table, "shards = 4, replicas = 2, shard_key = 'k'").await;
        check_close(client, table, &OF_FILES.map(|(column, _)| (column, 0))).await;
    }
    assert_eq!(here.update(&format!("COPY dc_here {from}")).await.unwrap(), ROWS);
    let loaded = "SELECT CAST(sum(rows_loaded) AS BIGINT) FROM system.workers";
    assert_eq!(here.number(loaded).await.unwrap(), 0, "the coordinator did not do it");
    assert_eq!(spread.update(&format!("COPY dc_spread {from}")).await.unwrap(), ROWS);
    wait_until(client, &format!("SELECT count(*) FROM ({loaded}) AS loaded (total) WHERE total = {ROWS}"))
        .await;
}

#[test]
fn values_are_counted_wherever_rows_are_loaded_and_the_counts_survive_a_restart() {
    let cluster = own(3);
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tables = ["dc_here", "dc_spread", "dc_inserted", "dc_made", "dc_computed"];
    let before = runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        load(&cluster, &mut client).await;
        check_close(&mut client, "dc_spread", &OF_FILES).await;
        // Whoever loads them, the rows have the same sketches.
        let spread = counts(&mut client, "dc_spread").await;
        assert_eq!(counts(&mut client, "dc_here").await, spread);

        // Writes of few rows, and the same values again.
        client.update("CREATE TABLE dc_inserted (k BIGINT, s VARCHAR) WITH (shards = 4)").await.unwrap();
        for sql in [
            "INSERT INTO dc_inserted VALUES (1, 'one'), (2, NULL), (2, 'one')",
            "INSERT INTO dc_inserted VALUES (2, 'two'), (NULL, 'three'), (3, 'three')",
            "INSERT INTO dc_inserted SELECT value % 50, 'text ' || (value % 200) FROM generate_series(1, 5000)",
        ] {
            client.update(sql).await.unwrap();
        }
        check_close(&mut client, "dc_inserted", &[("k", 50), ("s", 203)]).await;
        let shown = "SELECT count(*) FROM system.columns WHERE \"table\" = 'dc_inserted' AND \"column\" = 'k' \
                     AND nulls = 1 AND \"min\" = '0' AND \"max\" = '49'";
        assert_eq!(client.number(shown).await.unwrap(), 1);

        // Rows of queries, on the workers and through the coordinator.
        let mut many = session(&cluster).await;
        many.update("SET shoal.load_task_bytes = 1").await.unwrap();
        many.update("CREATE TABLE dc_made WITH (shards = 3) AS SELECT k, g, s FROM dc_spread WHERE g < 3").await.unwrap();
        let rows = many.number("SELECT count(*) FROM dc_made").await.unwrap();
        check_close(&mut client, "dc_made", &[("k", rows), ("g", 3), ("s", rows)]).await;
        many.update("CREATE TABLE dc_computed AS SELECT g, max(k) AS most FROM dc_spread GROUP BY g ORDER BY g LIMIT 5")
            .await
            .unwrap();
        check_close(&mut client, "dc_computed", &[("g", 5), ("most", 5)]).await;

        // The same rows in fewer segments.
        client.update("OPTIMIZE TABLE dc_inserted").await.unwrap();
        let mut before = Vec::new();
        for table in tables {
            before.push(counts(&mut client, table).await);
        }
        before
    });
    for name in cluster.coordinator_names() {
        cluster.kill(&name).unwrap();
        cluster.restart(&name).unwrap();
    }
    cluster.wait_until_joined(3).unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for (table, before) in tables.into_iter().zip(before) {
            assert_eq!(counts(&mut client, table).await, before, "{table}");
        }
        // What comes after it is counted with what was there.
        client
            .update("INSERT INTO dc_computed SELECT value, 7 FROM generate_series(1000, 1019)")
            .await
            .unwrap();
        check_close(&mut client, "dc_computed", &[("g", 25), ("most", 6)]).await;
    });
}

const JOINED: [&str; 6] = [
    "CREATE TABLE dc_facts (id BIGINT, fm VARCHAR, v BIGINT) WITH (shards = 8, shard_key = 'id')",
    "INSERT INTO dc_facts SELECT value AS id, CASE WHEN value % 50 = 0 THEN NULL ELSE 'key ' || (value % 2000) END AS fm, \
     value % 7 AS v FROM generate_series(1, 60000)",
    "CREATE TABLE dc_mids (mk VARCHAR, mf VARCHAR, mv BIGINT) WITH (shards = 8, shard_key = 'mk')",
    "INSERT INTO dc_mids SELECT 'key ' || value AS mk, CASE WHEN value % 30 = 0 THEN NULL ELSE 'few ' || (value % 40) END AS mf, \
     value % 5 AS mv FROM generate_series(0, 1999)",
    "CREATE TABLE dc_few (fk VARCHAR, fv BIGINT, name VARCHAR) WITH (shards = 8, shard_key = 'fk')",
    "INSERT INTO dc_few SELECT 'few ' || (value % 39) AS fk, value % 10 AS fv, 'name ' || value AS name \
     FROM generate_series(1, 45)",
];

/// Of keys that are text nothing but counts says how many there are: without them the joins stay as
/// they are written.
#[test]
fn joins_by_text_are_made_in_a_better_order_as_scans_offer_counts() {
    let cluster = own(2);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (mut cut, mut whole) = (session(&cluster).await, cluster.connect().await.unwrap());
        let oracle = Oracle::new(2);
        for sql in JOINED {
            cut.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        let sql = "SELECT f.id, m.mv, d.name FROM dc_facts f JOIN dc_mids m ON f.fm = m.mk \
                   JOIN dc_few d ON m.mf = d.fk WHERE d.fv = 3";
        let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
        for is_on in [true, false] {
            for client in [&mut cut, &mut whole] {
                client.update(&format!("SET shoal.join_order = {is_on}")).await.unwrap();
                let (schema, batches) = client.query_with_schema(sql).await.unwrap();
                expected
                    .check(&schema, &batches)
                    .unwrap_or_else(|difference| panic!("{is_on}: {difference}"));
                let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
                let join = plan.lines().find(|line| line.contains("HashJoinExec")).unwrap_or_default();
                assert_eq!((join.contains("fm@"), join.contains("fk@")), (is_on, !is_on), "{plan}");
            }
        }
        // No estimate is an answer.
        for (sql, expected) in [
            ("SELECT count(DISTINCT fm) FROM dc_facts", 1_960),
            ("SELECT count(*) FROM (SELECT DISTINCT mk FROM dc_mids)", 2_000),
        ] {
            assert_eq!(cut.number(sql).await.unwrap(), expected, "{sql}");
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
