//! Rows that are dealt out to groups and find no memory lie on disk until somebody reads them: on 1, 2
//! and 4 workers, and no task ever stands still over them.

use shoal_benches::Oracle;

use crate::fixture::{check_answer, is_distributed, shared, with_memory};

const ROWS: u32 = 200_000;
/// So few that there are many batches, and rows come from several sides at once.
const BATCH_ROWS: usize = 64;
/// How often each query runs. With DataFusion's own `max_spill_file_size_bytes` not even the first one ended on one
/// worker.
const TIMES: i64 = 8;
const QUERIES: [&str; 2] = [
    "SELECT g, count(DISTINCT t) AS n FROM lm_rows GROUP BY g",
    "SELECT count(*), sum(n), max(m) FROM \
     (SELECT g, t, count(*) AS n, max(k) AS m FROM lm_rows GROUP BY g, t) AS grouped",
];

/// Enough for the groups, and too little for the rows that wait for them.
fn memory(workers: usize) -> &'static str {
    if workers < 4 { "6MiB" } else { "4MiB" }
}

fn setup() -> [String; 2] {
    [
        "CREATE TABLE lm_rows (k BIGINT, g BIGINT, t VARCHAR) WITH (shards = 8, shard_key = 'k')".to_owned(),
        format!(
            "INSERT INTO lm_rows SELECT value, value % 13, md5(CAST(value % 3370 AS VARCHAR)) \
             FROM generate_series(1, {ROWS})"
        ),
    ]
}

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut client = with_memory(cluster, memory(workers), BATCH_ROWS).await;
        for sql in setup() {
            oracle.run(&sql).await.unwrap();
            client.update(&sql).await.unwrap();
        }
        for sql in QUERIES {
            for _ in 0..TIMES {
                check_answer(&mut client, &oracle, sql).await;
            }
            // No task was given up for one that stands still.
            let ended = format!(
                "SELECT count(*) FROM system.queries WHERE sql = '{sql}' AND state = 'finished' AND attempts = 1"
            );
            assert_eq!(client.number(&ended).await.unwrap(), TIMES, "{sql}");
            let ran = client.text(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
            let has_dealt = |line: &str| line.contains("RepartitionExec") && line.contains("spilled");
            assert!(ran.lines().any(has_dealt), "there was room for all: {sql}\n{ran}");
            assert_eq!(is_distributed(&ran), workers > 1, "{ran}");
        }
        client.update("DROP TABLE lm_rows").await.unwrap();
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn rows_that_wait_on_disk_hold_nothing_up_on_one_worker() {
    check(1);
}

#[test]
fn rows_that_wait_on_disk_hold_nothing_up_on_two_workers() {
    check(2);
}

#[test]
fn rows_that_wait_on_disk_hold_nothing_up_on_four_workers() {
    check(4);
}
