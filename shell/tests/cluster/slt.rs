//! Every file of `shell/tests/slt` says on plain DataFusion and on 1, 2 and 4
//! workers what is written in it. `SHOAL_SLT_WRITE=1` writes what plain
//! DataFusion says.

use std::path::PathBuf;

use shoal_benches::slt::{Engine, files, run_file, write_expectations};
use shoal_benches::{Client, Cluster, Oracle};

use crate::fixture::{is_distributed, shared};

/// Fewer than this means that files got lost.
const STATEMENTS_MIN: usize = 300;

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/slt")
}

fn check(engine: impl AsyncFn() -> anyhow::Result<Engine>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut statements, mut failures) = (0, Vec::new());
    for file in files(&dir()).unwrap() {
        let report = runtime.block_on(run_file(&file, &engine)).unwrap();
        statements += report.statements;
        failures.extend(report.failures);
    }
    assert!(
        failures.is_empty(),
        "{} of {statements} statements failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(statements >= STATEMENTS_MIN, "only {statements} statements");
}

fn check_cluster(cluster: &Cluster) {
    let _logs = cluster.show_logs_on_failure();
    check(async || Ok(Engine::Cluster(Box::new(many_tasks(cluster).await?))));
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// The same where joins are merged wherever that is possible.
fn check_merged(cluster: &Cluster) {
    let _logs = cluster.show_logs_on_failure();
    check(async || {
        let mut client = many_tasks(cluster).await?;
        client.update("SET datafusion.optimizer.prefer_hash_join = false").await?;
        Ok(Engine::Cluster(Box::new(client)))
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn files_hold_on_plain_datafusion() {
    if std::env::var_os("SHOAL_SLT_WRITE").is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for file in files(&dir()).unwrap() {
            runtime.block_on(write_expectations(&file)).unwrap();
        }
    }
    check(async || Ok(Engine::Oracle(Oracle::new(4))));
}

#[test]
fn files_hold_on_one_worker() {
    check_cluster(shared(1));
}

#[test]
fn files_hold_on_two_workers() {
    check_cluster(shared(2));
}

#[test]
fn files_hold_on_four_workers() {
    check_cluster(shared(4));
}

#[test]
fn files_hold_with_merged_joins_on_one_worker() {
    check_merged(shared(1));
}

#[test]
fn files_hold_with_merged_joins_on_two_workers() {
    check_merged(shared(2));
}

#[test]
fn files_hold_with_merged_joins_on_four_workers() {
    check_merged(shared(4));
}

/// The same where scans evaluate their filters before they decode other columns.
fn check_late(cluster: &Cluster) {
    let _logs = cluster.show_logs_on_failure();
    check(async || {
        let mut client = many_tasks(cluster).await?;
        client.update("SET shoal.late_materialization = on").await?;
        Ok(Engine::Cluster(Box::new(client)))
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn files_hold_with_late_materialization_on_one_worker() {
    check_late(shared(1));
}

#[test]
fn files_hold_with_late_materialization_on_two_workers() {
    check_late(shared(2));
}

#[test]
fn files_hold_with_late_materialization_on_four_workers() {
    check_late(shared(4));
}

#[test]
fn joins_and_groups_of_small_tables_are_distributed() {
    let cluster = shared(4);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = many_tasks(cluster).await.unwrap();
        for sql in [
            "CREATE TABLE slt_left (k BIGINT NOT NULL, v INT) WITH (shards = 8, shard_key = 'k')",
            "CREATE TABLE slt_right (k BIGINT NOT NULL, w INT) WITH (shards = 8, shard_key = 'k')",
            "INSERT INTO slt_left SELECT value, value % 10 FROM generate_series(1, 20000)",
            "INSERT INTO slt_right SELECT value, value % 7 FROM generate_series(1, 20000)",
        ] {
            client.update(sql).await.unwrap();
        }
        for sql in [
            "SELECT v, count(*) FROM slt_left GROUP BY v",
            "SELECT w, sum(v) FROM slt_left JOIN slt_right ON slt_left.k = slt_right.k GROUP BY w",
            "SELECT count(*) FROM slt_left JOIN slt_right ON v = w",
            "SELECT v, k, row_number() OVER (PARTITION BY v ORDER BY k) FROM slt_left ORDER BY v, k",
        ] {
            let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
            assert!(is_distributed(&plan), "{sql}\n{plan}");
        }
        for table in ["slt_left", "slt_right"] {
            client.update(&format!("DROP TABLE {table}")).await.unwrap();
        }
    });
}

/// A session in which also little data is read by many tasks.
async fn many_tasks(cluster: &Cluster) -> anyhow::Result<Client> {
    let mut client = cluster.connect().await?;
    client.update("SET shoal.task_bytes = 1").await?;
    Ok(client)
}
