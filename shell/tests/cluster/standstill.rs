//! Workers that beat and do not compute, and plans that end worker after
//! worker: the first are done without, the second are stopped.

use std::path::PathBuf;

use shoal_benches::{Client, Cluster};

use crate::fixture::{is_distributed, options};

const ROWS: i64 = 100_000;

/// A cluster whose processes obey the orders in a file.
fn obedient() -> (Cluster, PathBuf) {
    let orders = std::env::temp_dir().join(format!("shoal-orders-{}", rand::random::<u64>()));
    let mut options = options(4);
    options.env.push(("SHOAL_FAULT_POINTS".into(), orders.display().to_string()));
    options.env.push(("SHOAL_FAULT_FUNCTIONS".into(), "1".into()));
    (Cluster::start(&options).unwrap(), orders)
}

async fn make_rows(client: &mut Client) {
    for sql in [
        "CREATE TABLE still (k BIGINT, v BIGINT) WITH (shards = 8, replicas = 3, shard_key = 'k')".to_owned(),
        format!("INSERT INTO still SELECT value, value % 10 FROM generate_series(1, {ROWS})"),
        "SET shoal.task_bytes = 1".to_owned(),
    ] {
        client.update(&sql).await.unwrap();
    }
}

#[test]
fn a_worker_whose_tasks_do_not_move_is_done_without() {
    let (cluster, orders) = obedient();
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        let exchanged = "SELECT sum(s) FROM (SELECT v, sum(shoal_step(k)) AS s FROM still GROUP BY v)";
        let plan = client.text(&format!("EXPLAIN {exchanged}")).await.unwrap();
        assert!(is_distributed(&plan), "{plan}");
        let stalled = cluster.pid("worker-3").unwrap();
        std::fs::write(&orders, format!("{stalled} task.batch stall")).unwrap();
        assert_eq!(client.number(exchanged).await.unwrap(), ROWS * (ROWS + 1) / 2);
        let told =
            "SELECT count(*) FROM system.queries WHERE state = 'finished' AND lost LIKE '%worker-3%has not moved%'";
        assert_eq!(client.number(told).await.unwrap(), 1);
        // It beats all the while.
        cluster.wait_until_joined(4).unwrap();
        // It gets no work for a while, so nobody waits for it again.
        let shards = "SELECT sum(shoal_step(k)) FROM still";
        assert_eq!(client.number(shards).await.unwrap(), ROWS * (ROWS + 1) / 2);
        std::fs::write(&orders, "").unwrap();
        assert_eq!(client.number(exchanged).await.unwrap(), ROWS * (ROWS + 1) / 2);
    });
    let _gone = std::fs::remove_file(orders);
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_plan_that_ends_worker_after_worker_is_stopped_and_says_so() {
    let (cluster, orders) = obedient();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        make_rows(&mut client).await;
        for poison in [
            "SELECT v, sum(shoal_step(k)) AS s FROM still GROUP BY v",
            "SELECT sum(shoal_step(k)) FROM still",
        ] {
            std::fs::write(&orders, "* task.batch kill").unwrap();
            let message = client.query(poison).await.unwrap_err().to_string();
            assert!(message.contains("lost worker-") || message.contains("tried worker-"), "{message}");
            std::fs::write(&orders, "").unwrap();
            for number in 1..=4 {
                cluster.restart(&format!("worker-{number}")).unwrap();
            }
            cluster.wait_until_joined(4).unwrap();
            // What it did harms nobody afterwards.
            assert_eq!(client.number("SELECT count(*) FROM still WHERE v >= 0").await.unwrap(), ROWS);
        }
    });
    let _gone = std::fs::remove_file(orders);
}
