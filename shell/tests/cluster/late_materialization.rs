//! Scans that evaluate their filters before they decode other columns give the rows that they
//! gave, and leave out rows before.

use shoal_benches::Oracle;
use shoal_benches::answer::Numbers;

use crate::fixture::{session, shared};

const SETUP: [&str; 3] = [
    "CREATE SCHEMA late",
    "CREATE TABLE late.t (id BIGINT, k BIGINT, s VARCHAR, v BIGINT, d DATE) \
     WITH (shards = 8, shard_key = 'id', sort_key = 'k')",
    "INSERT INTO late.t SELECT value, value % 1000, \
     CASE WHEN value % 70 = 0 THEN NULL ELSE 'text ' || (value % 300) END, \
     CASE WHEN value % 11 = 0 THEN NULL ELSE value % 97 END, DATE '2020-01-01' + CAST(value % 900 AS INT) \
     FROM generate_series(1, 60000)",
];

/// Each query, and whether its scan leaves out rows before it decodes others.
const QUERIES: [(&str, bool); 12] = [
    ("SELECT id, k, s FROM late.t WHERE v = 5", true),
    ("SELECT sum(id), count(s) FROM late.t WHERE v > 90", true),
    ("SELECT k, count(*), min(s) FROM late.t WHERE v < 3 AND s LIKE '%7' GROUP BY k", true),
    ("SELECT id FROM late.t WHERE s = 'text 12' OR v IS NULL", true),
    ("SELECT id, d FROM late.t WHERE upper(s) = 'TEXT 99' AND k > 500", true),
    ("SELECT id, s FROM late.t WHERE s NOT IN ('text 1', 'text 2') AND v % 10 = 3", true),
    ("SELECT id, v FROM late.t WHERE d BETWEEN DATE '2021-03-01' AND DATE '2021-03-05'", true),
    ("SELECT id, s FROM late.t WHERE CASE WHEN v = 0 THEN 0 ELSE 97 / v END > 40", true),
    // Ruled out by the catalog.
    ("SELECT id FROM late.t WHERE v = 100", false),
    ("SELECT a.id, b.s FROM late.t a JOIN late.t b ON a.id = b.id WHERE a.v = 7 AND b.k < 50", true),
    ("SELECT count(*) FROM late.t WHERE v = 5", false),
    ("SELECT id, s FROM late.t", false),
];

/// Whether a scan has left out rows while it decoded.
fn has_left_out(explained: &str) -> bool {
    let counts = explained.split("pushdown_rows_pruned=").skip(1);
    counts.map(|rest| rest.chars().next()).any(|first| first.is_some_and(|c| c.is_ascii_digit() && c != '0'))
}

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut client = session(cluster).await;
        for sql in SETUP {
            client.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        let mut failures = Vec::new();
        for setting in ["off", "on"] {
            client.update(&format!("SET shoal.late_materialization = {setting}")).await.unwrap();
            for (sql, leaves_out) in QUERIES {
                let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
                let (schema, batches) = client.query_with_schema(sql).await.unwrap();
                if let Err(difference) = expected.check(&schema, &batches) {
                    failures.push(format!("{sql}, {setting}: {difference}"));
                }
                let ran = client.text(&format!("EXPLAIN ANALYZE VERBOSE {sql}")).await.unwrap();
                if has_left_out(&ran) != (leaves_out && setting == "on") {
                    failures.push(format!("{sql}, {setting}: rows are left out, or none\n{ran}"));
                }
            }
        }
        client.update("DROP SCHEMA late CASCADE").await.unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn rows_are_left_out_before_others_are_decoded_and_answers_stay_on_one_worker() {
    check(1);
}

#[test]
fn rows_are_left_out_before_others_are_decoded_and_answers_stay_on_two_workers() {
    check(2);
}

#[test]
fn rows_are_left_out_before_others_are_decoded_and_answers_stay_on_four_workers() {
    check(4);
}
