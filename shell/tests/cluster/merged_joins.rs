//! Joins and groups for which there is not enough memory: they spill, on 1, 2 and 4 workers,
//! and give what plain DataFusion gives with all the memory that it wants.

use shoal_benches::{Cluster, Oracle};

use crate::fixture::{check_answer, session, shared, with_memory};

/// Rows of some 100 bytes each: on each of four workers the hashed side of a join is expected to be
/// larger than half of what [`memory`] says.
const LEFT_ROWS: u32 = 800_000;
const RIGHT_ROWS: u32 = 700_000;
const BATCH_ROWS: usize = 512;
/// What is enough to find out that a hash join needs more than was expected.
const MEMORY_TO_FIND_OUT: &str = "32MiB";
/// The same where text is exchanged: a batch of it comes in buffers of 2 MiB, and each sort holds
/// one at least.
const MEMORY_FOR_TEXT: &str = "96MiB";
/// A join for which text is exchanged and sorted.
const OF_TEXT: &str =
    "SELECT count(*), sum(a.v * b.v), min(a.k), max(b.k) FROM mj_left a JOIN mj_right b ON a.s = b.s";

/// Each with whether it is a join.
const QUERIES: [(&str, bool); 6] = [
    ("SELECT count(*), sum(a.v + b.v), min(a.s), max(b.s) FROM mj_left a JOIN mj_right b ON a.k = b.k", true),
    (
        "SELECT count(*), count(a.k), count(b.k), max(a.s), max(b.s) FROM mj_left a FULL JOIN mj_right b ON a.k = b.k",
        true,
    ),
    (
        "SELECT count(*), max(a.s), max(b.s) FROM mj_left a JOIN mj_right b ON a.k = b.k AND a.s < b.s || a.v",
        true,
    ),
    (
        "SELECT count(*), max(s) FROM mj_left a WHERE EXISTS (SELECT 1 FROM mj_right b WHERE b.k = a.k AND b.s <= a.s)",
        true,
    ),
    (
        "SELECT count(*), max(s) FROM mj_left a WHERE NOT EXISTS (SELECT 1 FROM mj_right b WHERE b.k = a.k AND b.s <> a.s)",
        true,
    ),
    (
        "SELECT count(*), sum(n), max(s) FROM (SELECT s, count(*) AS n FROM mj_left GROUP BY s) AS grouped",
        false,
    ),
];

/// Nobody knows how many rows such a condition keeps: a fifth is expected, and it keeps all.
const MISJUDGED: &str =
    "SELECT count(*), max(a.s), max(b.s) FROM mj_left a JOIN mj_right b ON a.k = b.k WHERE length(b.s) > 1";

/// What a query may hold on each worker.
fn memory(workers: usize) -> &'static str {
    if workers < 4 { "48MiB" } else { "24MiB" }
}

fn setup() -> [String; 4] {
    let rows = |table: &str, rows: u32, step: u32| {
        format!(
            "INSERT INTO {table} SELECT value * {step}, value % 1000, \
             'text that takes up some room, so that much of it is too much: ' || (value * {step}) \
             FROM generate_series(1, {rows})"
        )
    };
    let table = |table: &str| {
        format!("CREATE TABLE {table} (k BIGINT, v BIGINT, s VARCHAR) WITH (shards = 8, shard_key = 'k')")
    };
    [table("mj_left"), table("mj_right"), rows("mj_left", LEFT_ROWS, 1), rows("mj_right", RIGHT_ROWS, 2)]
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
        for (sql, is_join) in QUERIES {
            check_answer(&mut client, &oracle, sql).await;
            let ran = client.text(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
            assert_eq!(ran.contains("SortMergeJoinExec"), is_join, "{sql}\n{ran}");
            assert!(!ran.contains("HashJoinExec"), "{sql}\n{ran}");
            assert!(ran.contains("spilled"), "nothing was too much: {sql}\n{ran}");
        }
        if workers == 1 {
            let mut client = with_memory(cluster, MEMORY_FOR_TEXT, BATCH_ROWS).await;
            check_answer(&mut client, &oracle, OF_TEXT).await;
            let ran = client.text(&format!("EXPLAIN ANALYZE {OF_TEXT}")).await.unwrap();
            assert!(ran.contains("SortMergeJoinExec") && ran.contains("spilled"), "{ran}");
        }
        // There is room enough for all of it otherwise, and then it is hashed.
        let mut rich = session(cluster).await;
        let explained = rich.text(&format!("EXPLAIN {}", QUERIES[0].0)).await.unwrap();
        assert!(!explained.contains("SortMergeJoinExec"), "{explained}");
        if workers < 4 {
            check_misjudged(cluster, &oracle).await;
        }
        for table in ["mj_left", "mj_right"] {
            client.update(&format!("DROP TABLE {table}")).await.unwrap();
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// A hash join that is larger than was expected is tried again as a merge.
async fn check_misjudged(cluster: &Cluster, oracle: &Oracle) {
    let mut client = with_memory(cluster, MEMORY_TO_FIND_OUT, BATCH_ROWS).await;
    let explained = client.text(&format!("EXPLAIN {MISJUDGED}")).await.unwrap();
    assert!(explained.contains("HashJoinExec"), "it is expected to be too large: {explained}");
    check_answer(&mut client, oracle, MISJUDGED).await;
    let again = format!("SELECT count(*) FROM system.queries WHERE attempts = 2 AND sql = '{MISJUDGED}'");
    assert_eq!(client.number(&again).await.unwrap(), 1, "the hash join fitted");
}

#[test]
fn what_does_not_fit_spills_on_one_worker() {
    check(1);
}

#[test]
fn what_does_not_fit_spills_on_two_workers() {
    check(2);
}

#[test]
fn what_does_not_fit_spills_on_four_workers() {
    check(4);
}
