//! Inner joins are made in another order than written where that costs less, over 1, 2 and 4
//! workers, and give what plain DataFusion gives. Which order is taken is with
//! `query::join_order` of the coordinator.

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Oracle};

use crate::fixture::{is_distributed, session, shared};

const SETUP: [&str; 7] = [
    "CREATE TABLE jo_facts (id BIGINT, fm BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'id')",
    "INSERT INTO jo_facts SELECT value AS id, CASE WHEN value % 50 = 0 THEN NULL ELSE value % 2000 END AS fm, \
     value % 7 AS v FROM generate_series(1, 60000)",
    "CREATE TABLE jo_mids (mk BIGINT, mf BIGINT, mv BIGINT) WITH (shards = 8, shard_key = 'mk')",
    "INSERT INTO jo_mids SELECT value AS mk, CASE WHEN value % 30 = 0 THEN NULL ELSE value % 40 END AS mf, \
     value % 5 AS mv FROM generate_series(0, 1999)",
    // Of each key there are several rows, and of one there is none.
    "INSERT INTO jo_mids SELECT value AS mk, value % 40 AS mf, value % 3 AS mv FROM generate_series(100, 400)",
    "CREATE TABLE jo_few (fk BIGINT, fv BIGINT, name VARCHAR) WITH (shards = 8, shard_key = 'fk')",
    "INSERT INTO jo_few SELECT value % 39 AS fk, value % 10 AS fv, 'name ' || value AS name FROM generate_series(1, 45)",
];

/// In each of them few rows of the last table are asked for.
const QUERIES: [&str; 5] = [
    "SELECT f.id, m.mv, d.name FROM jo_facts f JOIN jo_mids m ON f.fm = m.mk JOIN jo_few d ON m.mf = d.fk \
     WHERE d.fv = 3",
    "SELECT d.name, count(*), sum(f.v) FROM jo_facts f, jo_mids m, jo_few d \
     WHERE f.fm = m.mk AND m.mf = d.fk AND d.fv = 3 GROUP BY d.name",
    "SELECT f.id, d.name FROM jo_facts f JOIN jo_mids m ON f.fm = m.mk JOIN jo_few d ON m.mf = d.fk \
     AND d.fv + 0 <= 4 AND f.v <= d.fv WHERE d.fv = 3",
    "SELECT * FROM jo_facts f JOIN jo_mids m ON f.fm = m.mk JOIN jo_few d ON m.mf = d.fk WHERE d.fv IN (3, 4)",
    // Two keys of one value.
    "SELECT f.id, o.mv, d.name FROM jo_facts f JOIN jo_mids m ON f.fm = m.mk JOIN jo_mids o ON o.mk = f.fm \
     JOIN jo_few d ON m.mf = d.fk AND o.mf = d.fk WHERE d.fv = 3",
];

/// The subqueries ask about the facts alone, and leave few of them.
const ASKED: [&str; 3] = [
    "SELECT f.id, m.mv FROM jo_facts f JOIN jo_mids m ON f.fm = m.mk \
     WHERE f.id IN (SELECT id FROM jo_facts GROUP BY id HAVING sum(v) > 5)",
    "SELECT m.mv, d.name, count(*) FROM jo_facts f, jo_mids m, jo_few d WHERE f.fm = m.mk AND m.mf = d.fk \
     AND f.id IN (SELECT id FROM jo_facts GROUP BY id HAVING sum(v) > 5) GROUP BY m.mv, d.name",
    "SELECT f.id, m.mv FROM jo_mids m JOIN jo_facts f ON f.fm = m.mk \
     WHERE EXISTS (SELECT 1 FROM jo_facts o WHERE o.id = f.id AND o.v = 3)",
];

/// The line of the topmost join of a query.
async fn top_join(client: &mut Client, sql: &str) -> (String, String) {
    let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
    let join = plan.lines().find(|line| line.contains("HashJoinExec"));
    (join.unwrap_or_else(|| panic!("no join: {plan}")).to_owned(), plan)
}

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
        for is_on in [true, false] {
            let setting = format!("SET shoal.join_order = {is_on}");
            cut.update(&setting).await.unwrap();
            whole.update(&setting).await.unwrap();
            for client in [&mut cut, &mut whole] {
                for sql in QUERIES.into_iter().chain(ASKED) {
                    let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
                    let (schema, batches) = client
                        .query_with_schema(sql)
                        .await
                        .unwrap_or_else(|error| panic!("{setting}: {sql}: {error}"));
                    expected
                        .check(&schema, &batches)
                        .unwrap_or_else(|difference| panic!("{setting}: {sql}: {difference}"));
                }
                // What is joined last are the facts, or as written the few.
                let (join, plan) = top_join(client, QUERIES[0]).await;
                assert_eq!(join.contains("fm@"), is_on, "{setting}\n{plan}");
                assert_eq!(join.contains("fk@"), !is_on, "{setting}\n{plan}");
                let (join, plan) = top_join(client, ASKED[0]).await;
                assert_eq!(join.contains("Semi"), !is_on, "{setting}\n{plan}");
                assert!(plan.contains("Semi"), "{setting}\n{plan}");
            }
            for sql in [QUERIES[0], ASKED[0]] {
                let (_, plan) = top_join(&mut cut, sql).await;
                assert_eq!(is_distributed(&plan), workers > 1, "{plan}");
            }
        }
        for table in ["jo_facts", "jo_mids", "jo_few"] {
            cut.update(&format!("DROP TABLE {table}")).await.unwrap();
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn joins_in_another_order_give_the_same_on_one_worker() {
    check(1);
}

#[test]
fn joins_in_another_order_give_the_same_on_two_workers() {
    check(2);
}

#[test]
fn joins_in_another_order_give_the_same_on_four_workers() {
    check(4);
}
