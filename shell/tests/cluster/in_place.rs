//! Rows that need not move do not: groups by the shard key and more, and anti joins
//! that may forget about NULLs. What they give is in `slt/groups_in_place.slt` and
//! `slt/not_in.slt`.

use arrow_flight::sql::client::PreparedStatement;
use shoal_benches::Client;
use tonic::transport::Channel;

use crate::bad_input::with_client;
use crate::fixture::{is_distributed, session, shared};

/// Exchanges in the plan of a query: by hash, and of all rows to all tasks.
pub(crate) async fn exchanges(client: &mut Client, sql: &str) -> usize {
    let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
    assert!(is_distributed(&plan), "{sql}\n{plan}");
    let is_exchange =
        |line: &&str| line.contains("NetworkShuffleExec from") || line.contains("NetworkBroadcastExec from");
    plan.lines().filter(is_exchange).count()
}

async fn rows(client: &mut Client, prepared: &mut PreparedStatement<Channel>) -> usize {
    let info = prepared.execute().await.unwrap();
    client.fetch(info).await.unwrap().1.iter().map(|batch| batch.num_rows()).sum()
}

#[test]
fn groups_by_the_shard_key_and_more_stay_where_they_are() {
    let cluster = shared(4);
    with_client(cluster, async |client| {
        client
            .update("CREATE TABLE ip_rows (k INT, v INT, w INT) WITH (shards = 8, shard_key = 'k')")
            .await
            .unwrap();
        client
            .update("INSERT INTO ip_rows SELECT value, value % 10, value % 7 FROM generate_series(1, 20000)")
            .await
            .unwrap();
        let mut many = session(cluster).await;
        for (sql, expected) in [
            ("SELECT k, v, sum(w) FROM ip_rows GROUP BY k, v", 0),
            ("SELECT v, k, count(DISTINCT w) FROM ip_rows GROUP BY v, k", 0),
            ("SELECT DISTINCT v, k FROM ip_rows", 0),
            ("SELECT k, row_number() OVER (PARTITION BY k, v ORDER BY w) FROM ip_rows", 0),
            ("SELECT v, w, sum(k) FROM ip_rows GROUP BY v, w", 1),
            ("SELECT k, v, sum(w) FROM ip_rows GROUP BY ROLLUP (k, v)", 1),
        ] {
            assert_eq!(exchanges(&mut many, sql).await, expected, "{sql}");
        }
        client.update("DROP TABLE ip_rows").await.unwrap();
    });
}

#[test]
fn a_kept_plan_of_not_in_does_not_outlive_the_first_null() {
    let cluster = shared(4);
    with_client(cluster, async |client| {
        for sql in [
            "CREATE TABLE ip_out (k INT, v INT) WITH (shards = 8, shard_key = 'k')",
            "CREATE TABLE ip_set (k INT, v INT) WITH (shards = 8, shard_key = 'k')",
            "INSERT INTO ip_out SELECT value AS k, value AS v FROM generate_series(1, 20000)",
            "INSERT INTO ip_set SELECT value AS k, value AS v FROM generate_series(1, 15000)",
        ] {
            client.update(sql).await.unwrap();
        }
        let sql = "SELECT v FROM ip_out WHERE k NOT IN (SELECT k FROM ip_set)";
        let mut many = session(cluster).await;
        let plan = many.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(is_distributed(&plan) && !plan.contains("null_aware"), "{plan}");
        let mut prepared = many.prepare(sql).await.unwrap();
        for _ in 0..2 {
            assert_eq!(rows(&mut many, &mut prepared).await, 5_000);
        }
        client.update("INSERT INTO ip_set VALUES (NULL, 1)").await.unwrap();
        for _ in 0..2 {
            assert_eq!(rows(&mut many, &mut prepared).await, 0);
        }
        let plan = many.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(plan.contains("null_aware"), "{plan}");
        for sql in [
            "DROP TABLE ip_set",
            "CREATE TABLE ip_set (k INT, v INT) WITH (shards = 8, shard_key = 'k')",
            "INSERT INTO ip_set VALUES (7, 7)",
        ] {
            client.update(sql).await.unwrap();
        }
        assert_eq!(rows(&mut many, &mut prepared).await, 19_999);
        client.update("INSERT INTO ip_out VALUES (NULL, 1)").await.unwrap();
        assert_eq!(rows(&mut many, &mut prepared).await, 19_999);
        prepared.close().await.unwrap();
        for table in ["ip_out", "ip_set"] {
            client.update(&format!("DROP TABLE {table}")).await.unwrap();
        }
    });
}
