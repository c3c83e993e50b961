//! What one side of a join has as keys leaves out rows of the other side where
//! they are read, and changes no answer.

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Oracle};

use crate::fixture::{Obedient, in_time, is_distributed, options, session, shared};

const SETUP: [&str; 6] = [
    "CREATE SCHEMA rf",
    "CREATE TABLE rf.facts (id BIGINT, k BIGINT, s VARCHAR, v BIGINT) \
     WITH (shards = 8, shard_key = 'id', sort_key = 'k')",
    "INSERT INTO rf.facts SELECT value, \
     CASE WHEN value % 50 = 0 THEN NULL ELSE value % 5000 END, \
     CASE WHEN value % 70 = 0 THEN NULL ELSE 'key ' || (value % 3000) END, value % 7 \
     FROM generate_series(1, 60000)",
    "CREATE TABLE rf.few (k BIGINT, s VARCHAR, name VARCHAR) WITH (shards = 8, shard_key = 'name')",
    "INSERT INTO rf.few SELECT 2000 + value * 3, 'key ' || (value * 11), 'name ' || value \
     FROM generate_series(1, 40)",
    "INSERT INTO rf.few VALUES (NULL, NULL, 'of none'), (9999, 'key 9999', 'without a partner')",
];

/// Every join goes through an exchange, also where one side is small.
const EXCHANGED: [&str; 5] = [
    "SET shoal.runtime_filters = on",
    "SET shoal.task_bytes = 1",
    "SET shoal.colocate = false",
    "SET datafusion.optimizer.hash_join_single_partition_threshold = 0",
    "SET datafusion.optimizer.hash_join_single_partition_threshold_rows = 0",
];

/// Each query, and whether rows are left out for it.
const QUERIES: [(&str, bool); 22] = [
    ("SELECT f.id, f.v, d.name FROM rf.facts f JOIN rf.few d ON f.k = d.k", true),
    ("SELECT f.id, d.name FROM rf.facts f JOIN rf.few d ON f.s = d.s AND f.v < 6", true),
    ("SELECT f.id, d.name FROM rf.facts f JOIN rf.few d ON f.k = d.k AND f.s = d.s", true),
    ("SELECT f.id, d.name FROM rf.facts f JOIN rf.few d ON f.k = d.k AND f.v + length(d.name) > 9", true),
    ("SELECT id FROM rf.facts WHERE k IN (SELECT k FROM rf.few)", true),
    ("SELECT name FROM rf.few d WHERE EXISTS (SELECT 1 FROM rf.facts f WHERE f.k = d.k AND f.v = 3)", true),
    ("SELECT d.name, sum(f.v), count(*) FROM rf.facts f JOIN rf.few d ON f.k = d.k GROUP BY d.name", true),
    (
        "SELECT d.name, g.n FROM (SELECT k, count(*) AS n FROM rf.facts GROUP BY k) g JOIN rf.few d ON g.k = d.k",
        true,
    ),
    ("SELECT d.name, f.id FROM rf.few d LEFT JOIN rf.facts f ON f.k = d.k", true),
    ("SELECT d.name, f.id FROM rf.few d LEFT JOIN rf.facts f ON f.s = d.s AND f.v < 2", true),
    (
        "SELECT name FROM rf.few d WHERE NOT EXISTS (SELECT 1 FROM rf.facts f WHERE f.k = d.k AND f.v = 3)",
        true,
    ),
    (
        "SELECT name FROM rf.few d WHERE d.name < 'name 2' OR EXISTS (SELECT 1 FROM rf.facts f WHERE f.k = d.k AND f.v = 3)",
        true,
    ),
    ("SELECT f.id, d.name FROM rf.facts f LEFT JOIN rf.few d ON f.k = d.k", false),
    ("SELECT f.id, d.name FROM rf.few d RIGHT JOIN rf.facts f ON f.k = d.k AND d.name < 'name 3'", false),
    ("SELECT f.id, d.name FROM rf.facts f FULL JOIN rf.few d ON f.k = d.k", false),
    ("SELECT id FROM rf.facts f WHERE NOT EXISTS (SELECT 1 FROM rf.few d WHERE f.k = d.k)", false),
    ("SELECT k FROM rf.facts INTERSECT SELECT k FROM rf.few", false),
    ("SELECT f.id, f.s, d.name FROM rf.facts f JOIN rf.few d ON f.k = d.k WHERE f.v > 2", true),
    ("SELECT f.id, d.name FROM rf.facts f JOIN rf.few d ON f.s = d.s WHERE f.s LIKE '%1%' AND f.v < 5", true),
    // Joins over joins.
    (
        "SELECT f.id, d.name, e.k FROM rf.facts f JOIN rf.few d ON f.k = d.k JOIN rf.few e ON d.s = e.s \
         WHERE e.name LIKE 'name 1%'",
        true,
    ),
    (
        "SELECT f.id, e.s FROM rf.facts f JOIN rf.few d ON f.k = d.k JOIN rf.few e ON d.name = e.name \
         WHERE e.name = 'name 7'",
        true,
    ),
    (
        "SELECT f.v, count(*), max(g.id) FROM rf.facts f JOIN rf.facts g ON f.s = g.s AND f.v = 3 AND g.v = 3 \
         JOIN rf.few d ON g.k = d.k WHERE d.name LIKE 'name 3%' GROUP BY f.v",
        true,
    ),
];

async fn exchanging(cluster: &shoal_benches::Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    for setting in EXCHANGED {
        client.update(setting).await.unwrap();
    }
    client
}

/// Asks until it is told that rows were left out: a filter may come too late.
async fn wait_until_pruned(client: &mut Client, sql: &str) -> String {
    let asked = async {
        loop {
            let text = client.text(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
            if text.contains("pruned=") {
                return text;
            }
        }
    };
    in_time(asked).await
}

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut client = exchanging(cluster).await;
        for sql in SETUP {
            client.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        let mut without = exchanging(cluster).await;
        without.update("SET shoal.runtime_filters = off").await.unwrap();
        let mut late = exchanging(cluster).await;
        late.update("SET shoal.late_materialization = on").await.unwrap();
        let mut failures = Vec::new();
        for (sql, has_filter) in QUERIES {
            let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
            // Not only once: filters come at other moments.
            for _ in 0..3 {
                let (schema, batches) = client.query_with_schema(sql).await.unwrap();
                if let Err(difference) = expected.check(&schema, &batches) {
                    failures.push(format!("{sql}: {difference}"));
                }
            }
            let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
            if workers > 1 {
                assert!(is_distributed(&plan), "{sql}\n{plan}");
                if plan.contains("RuntimeFilterExec") != has_filter {
                    failures.push(format!("{sql}: a filter, or none\n{plan}"));
                } else if has_filter {
                    wait_until_pruned(&mut client, sql).await;
                }
            }
            let (schema, batches) = without.query_with_schema(sql).await.unwrap();
            if let Err(difference) = expected.check(&schema, &batches) {
                failures.push(format!("{sql}, without filters: {difference}"));
            }
            for _ in 0..3 {
                let (schema, batches) = late.query_with_schema(sql).await.unwrap();
                if let Err(difference) = expected.check(&schema, &batches) {
                    failures.push(format!("{sql}, with late materialization: {difference}"));
                }
            }
            let plan = without.text(&format!("EXPLAIN {sql}")).await.unwrap();
            assert!(!plan.contains("RuntimeFilterExec") && !plan.contains("JoinKeysExec"), "{plan}");
        }
        client.update("DROP SCHEMA rf CASCADE").await.unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn rows_without_a_partner_are_left_out_and_answers_stay_on_one_worker() {
    check(1);
}

#[test]
fn rows_without_a_partner_are_left_out_and_answers_stay_on_two_workers() {
    check(2);
}

#[test]
fn rows_without_a_partner_are_left_out_and_answers_stay_on_four_workers() {
    check(4);
}

/// Whether a scan has ruled out something of which it has statistics.
fn has_ruled_out(explained: &str) -> bool {
    let counts =
        ["files_ranges_pruned_statistics=", "row_groups_pruned_statistics=", "page_index_rows_pruned="];
    counts.iter().flat_map(|name| explained.split(name).skip(1)).any(|rest| {
        let (total, rest) = rest.split_once(" total → ").unwrap_or_default();
        rest.split_once(" matched").is_some_and(|(matched, _)| matched != total)
    })
}

#[test]
fn a_small_side_that_goes_to_all_rules_out_pages_of_the_other_side() {
    let cluster = shared(4);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(cluster).await;
        for sql in [
            "CREATE SCHEMA rfb",
            "CREATE TABLE rfb.facts (id BIGINT, k BIGINT) WITH (shards = 4, shard_key = 'id', sort_key = 'k')",
            "INSERT INTO rfb.facts SELECT value AS id, value AS k FROM generate_series(1, 120000)",
            "CREATE TABLE rfb.few (k BIGINT, name VARCHAR) WITH (shards = 4, shard_key = 'name')",
            "INSERT INTO rfb.few SELECT value + 30000, 'name ' || value FROM generate_series(1, 20)",
        ] {
            client.update(sql).await.unwrap();
        }
        let sql = "SELECT sum(f.id), count(*) FROM rfb.facts f JOIN rfb.few d ON f.k = d.k";
        let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
        assert!(is_distributed(&plan) && plan.contains("NetworkBroadcastExec"), "{plan}");
        let ran = client.text(&format!("EXPLAIN ANALYZE VERBOSE {sql}")).await.unwrap();
        assert!(has_ruled_out(&ran), "{ran}");
        assert_eq!(client.number(sql).await.unwrap(), 20 * 30_000 + 210);
        // Of all rows nothing is ruled out.
        let ran = client.text("EXPLAIN ANALYZE VERBOSE SELECT sum(id), max(k) FROM rfb.facts GROUP BY k % 10");
        let ran = ran.await.unwrap();
        assert!(!has_ruled_out(&ran), "{ran}");
        client.update("DROP SCHEMA rfb CASCADE").await.unwrap();
    });
}

#[test]
fn a_worker_that_dies_with_a_filter_leaves_the_answer_right() {
    let obedient = Obedient::start(options(4));
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = exchanging(cluster).await;
        for sql in SETUP {
            let sql = sql.replace("shards = 8,", "shards = 8, replicas = 3,");
            client.update(&sql).await.unwrap();
        }
        let joined = "rf.facts f JOIN rf.few d ON f.k = d.k";
        let expected = client.number(&format!("SELECT sum(f.id) FROM {joined}")).await.unwrap();
        // Where rows of the join go out; where rows of each of its sides go in.
        for (turn, sql) in [
            format!("SELECT sum(shoal_step(f.id + length(d.name))) - sum(length(d.name)) FROM {joined}"),
            format!("SELECT sum(f.id) FROM {joined} WHERE shoal_step(d.k) > 0"),
            format!("SELECT sum(f.id) FROM {joined} WHERE shoal_step(f.v) >= 0"),
        ]
        .into_iter()
        .enumerate()
        {
            let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
            assert!(plan.contains("RuntimeFilterExec"), "{plan}");
            let before = obedient.obeyed();
            obedient.hold(&obedient.workers());
            let asked = tokio::spawn({
                let (mut asking, sql) = (exchanging(cluster).await, sql.clone());
                async move { in_time(asking.number(&sql)).await }
            });
            let worker = obedient.wait_until_obeyed(&before, 1).await.remove(0);
            cluster.kill(&worker).unwrap();
            obedient.order("");
            let answer = asked.await.unwrap().unwrap_or_else(|error| panic!("turn {turn}: {error}"));
            assert_eq!(answer, expected, "turn {turn}, {worker}");
            let lost = format!(
                "SELECT count(*) FROM system.queries WHERE state = 'finished' AND attempts > 1 AND sql = '{sql}'"
            );
            assert_eq!(client.number(&lost).await.unwrap(), 1, "turn {turn}: no attempt was lost");
            cluster.restart(&worker).unwrap();
            cluster.wait_until_joined(4).unwrap();
        }
    });
}
