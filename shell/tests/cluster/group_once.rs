//! Rows of groups of groups are dealt once where there are many groups, and rows that are nearly all in groups of
//! their own are grouped once, over 1, 2 and 4 workers, and give what plain DataFusion gives.

use shoal_benches::Oracle;
use shoal_benches::answer::Numbers;

use crate::fixture::{is_distributed, session, shared};

const SETUP: [&str; 2] = [
    "CREATE TABLE go_rows (id BIGINT, a BIGINT, b VARCHAR, x BIGINT) WITH (shards = 8, shard_key = 'id')",
    "INSERT INTO go_rows SELECT value AS id, CASE WHEN value % 50 = 0 THEN NULL ELSE value % 5000 END AS a, \
     CASE WHEN value % 70 = 0 THEN NULL ELSE 'name ' || (value % 97) END AS b, \
     CASE WHEN value % 90 = 0 THEN NULL ELSE value % 13 END AS x FROM generate_series(1, 60000)",
];

/// With how often rows are dealt for each, and whether they are grouped before they are.
const QUERIES: [(&str, usize, bool); 7] = [
    ("SELECT a, b, count(DISTINCT x) FROM go_rows GROUP BY a, b", 1, false),
    (
        "SELECT b, a, count(DISTINCT x) AS n FROM go_rows WHERE id > 7 GROUP BY b, a HAVING count(DISTINCT x) > 1",
        1,
        false,
    ),
    ("SELECT id, count(DISTINCT x), sum(DISTINCT x) FROM go_rows GROUP BY id", 0, false),
    ("SELECT a, b, count(*) FROM (SELECT DISTINCT a, b, x FROM go_rows) GROUP BY a, b", 1, false),
    ("SELECT x, a, b, count(*), sum(id) FROM go_rows GROUP BY x, a, b", 1, false),
    // Too few: some partitions would have most of them.
    ("SELECT b, count(DISTINCT x) FROM go_rows GROUP BY b", 2, true),
    // Nobody knows how many.
    ("SELECT a + x, count(DISTINCT b) FROM go_rows GROUP BY a + x", 2, true),
];

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (mut cut, mut whole) = (session(cluster).await, cluster.connect().await.unwrap());
        let oracle = Oracle::new(4);
        for sql in SETUP {
            cut.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        for client in [&mut cut, &mut whole] {
            for (sql, ..) in QUERIES {
                let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
                let (schema, batches) = client.query_with_schema(sql).await.unwrap();
                expected.check(&schema, &batches).unwrap_or_else(|difference| panic!("{sql}: {difference}"));
            }
        }
        for (sql, dealt, is_grouped_before) in QUERIES {
            let plan = cut.text(&format!("EXPLAIN {sql}")).await.unwrap();
            assert_eq!(plan.matches("partitioning=Hash").count() - in_scan(&plan), dealt, "{sql}\n{plan}");
            assert_eq!(plan.contains("mode=Partial"), is_grouped_before, "{sql}\n{plan}");
            assert_eq!(is_distributed(&plan), workers > 1, "{plan}");
        }
        cut.update("SET shoal.group_late = off").await.unwrap();
        let plan = cut.text(&format!("EXPLAIN {}", QUERIES[0].0)).await.unwrap();
        assert!(plan.contains("mode=Partial"), "{plan}");
        cut.update("DROP TABLE go_rows").await.unwrap();
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// How many scans say by what their rows are hashed.
fn in_scan(plan: &str) -> usize {
    plan.matches("output_partitioning=Hash").count()
}

#[test]
fn groups_of_groups_are_the_same_on_one_worker() {
    check(1);
}

#[test]
fn groups_of_groups_are_the_same_on_two_workers() {
    check(2);
}

#[test]
fn groups_of_groups_are_the_same_on_four_workers() {
    check(4);
}
