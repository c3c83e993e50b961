//! A panic in an operator, wherever it stands, is an error that says so: with
//! the library's own transport it was a short answer and no error.

use shoal_benches::{Client, Cluster};

use crate::fixture::{is_distributed, options};

const ROWS: i64 = 200_000;

#[test]
fn a_panic_anywhere_is_an_error_and_harms_nobody_else() {
    let mut options = options(4);
    options.env.push(("SHOAL_FAULT_FUNCTIONS".into(), "1".into()));
    let cluster = Cluster::start(&options).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(check(&cluster));
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

async fn check(cluster: &Cluster) {
    let mut client = cluster.connect().await.unwrap();
    client.update("CREATE TABLE t (k BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'k')").await.unwrap();
    let loaded = client
        .update(&format!("INSERT INTO t SELECT value, value % 1000 FROM generate_series(1, {ROWS})"))
        .await
        .unwrap();
    assert_eq!(loaded, ROWS);
    client.update("SET shoal.task_bytes = 1").await.unwrap();

    let never = "shoal_panic(k, 0)";
    let plan = client.text(&format!("EXPLAIN SELECT sum({never}) FROM t")).await.unwrap();
    assert!(is_distributed(&plan), "{plan}");
    assert_eq!(client.number(&format!("SELECT sum({never}) FROM t")).await.unwrap(), ROWS * (ROWS + 1) / 2);

    // The row on which it panics is in one shard of eight, far from its start.
    for (stage, sql) in [
        ("leaf, rows out", "SELECT shoal_panic(k, 123456) FROM t"),
        ("leaf, aggregate above", "SELECT sum(shoal_panic(k, 123456)) FROM t"),
        ("leaf, filter", "SELECT count(*) FROM t WHERE shoal_panic(k, 123456) > 5"),
        ("below an exchange", "SELECT v, sum(shoal_panic(k, 123456)) FROM t GROUP BY v"),
        (
            "above an exchange",
            "SELECT shoal_panic(s, 19900200) FROM (SELECT v, sum(k) AS s FROM t GROUP BY v) WHERE v = 1 OR s > 0",
        ),
        (
            "above an exchange, on its key",
            "SELECT shoal_panic(v, 77), count(*) FROM (SELECT v, count(*) FROM t GROUP BY v) GROUP BY 1",
        ),
        ("final stage", "SELECT shoal_panic(c, 200000) FROM (SELECT count(*) AS c FROM t)"),
        (
            "join, probe side",
            "SELECT count(*) FROM t a JOIN t b ON a.k = b.v WHERE shoal_panic(a.k, 500) > 0",
        ),
        ("sort", "SELECT k FROM t ORDER BY shoal_panic(k, 123456) DESC LIMIT 10"),
        ("whole plan on one worker", "SELECT shoal_panic(v, 456) FROM t WHERE k = 123456"),
    ] {
        expect_panic(&mut client, stage, sql).await;
    }
    assert_eq!(client.number("SELECT count(*) FROM t").await.unwrap(), ROWS);
    assert_eq!(client.live_workers().await.unwrap(), 4);
}

async fn expect_panic(client: &mut Client, stage: &str, sql: &str) {
    match client.query(sql).await {
        Ok(batches) => {
            let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
            panic!("{stage}: {rows} rows and no error for {sql}");
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("panicked"), "{stage}: {message}");
        }
    }
}
