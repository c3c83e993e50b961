//! Little tables that are on all workers are read by each task of a join in place of being sent
//! there, and change no answer: also beside tables that are not, and where rows of theirs are given.

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Cluster, Oracle};

use crate::fixture::{Obedient, in_time, is_distributed, options, session, shared, wait_until};

const SETUP: [&str; 10] = [
    "CREATE SCHEMA et",
    "CREATE TABLE et.facts (id BIGINT, k BIGINT, n BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'id')",
    "INSERT INTO et.facts SELECT value, CASE WHEN value % 50 = 0 THEN NULL ELSE value % 300 END, \
     value % 40, value % 7 FROM generate_series(1, 20000)",
    "CREATE TABLE et.others (id BIGINT, k BIGINT) WITH (shards = 8, shard_key = 'k')",
    "INSERT INTO et.others SELECT value, value % 400 FROM generate_series(1, 9000)",
    "CREATE TABLE et.nation (n BIGINT, r BIGINT, name VARCHAR) WITH (replicas = 'all')",
    "INSERT INTO et.nation SELECT value, value % 5, 'nation ' || value FROM generate_series(0, 24)",
    "CREATE TABLE et.region (r BIGINT, title VARCHAR) WITH (replicas = 'all')",
    "INSERT INTO et.region SELECT value, 'region ' || value FROM generate_series(0, 3)",
    "INSERT INTO et.nation VALUES (NULL, 1, 'of none'), (99, NULL, 'without a partner'), (3, 2, 'a second third')",
];

/// Each query, and how many scans each task of a stage reads over several workers.
const QUERIES: [(&str, usize); 20] = [
    ("SELECT f.id, na.name FROM et.facts f JOIN et.nation na ON f.n = na.n", 1),
    (
        "SELECT na.name, count(*), sum(f.v) FROM et.facts f JOIN et.nation na ON f.n = na.n GROUP BY na.name",
        1,
    ),
    ("SELECT count(*), sum(f.id) FROM et.facts f JOIN et.nation na ON f.n = na.n AND f.v > na.r", 1),
    ("SELECT f.id, na.name FROM et.facts f LEFT JOIN et.nation na ON f.n = na.n", 1),
    ("SELECT f.id, na.name FROM et.nation na RIGHT JOIN et.facts f ON f.n = na.n AND na.r < 3", 1),
    ("SELECT id FROM et.facts f WHERE EXISTS (SELECT 1 FROM et.nation na WHERE na.n = f.n)", 1),
    ("SELECT id FROM et.facts f WHERE NOT EXISTS (SELECT 1 FROM et.nation na WHERE na.n = f.n)", 1),
    (
        "SELECT f.id, na.name, r.title FROM et.facts f JOIN et.nation na ON f.n = na.n JOIN et.region r ON na.r = r.r",
        2,
    ),
    (
        "SELECT r.title, count(*), sum(f.v) FROM et.facts f JOIN et.others o ON f.k = o.k \
         JOIN et.nation na ON f.n = na.n JOIN et.region r ON na.r = r.r WHERE r.title <> 'region 2' GROUP BY r.title",
        2,
    ),
    ("SELECT a.id, b.name FROM et.facts a JOIN et.nation b ON a.n = b.n JOIN et.nation c ON b.r = c.n", 2),
    // Nobody has a partner.
    ("SELECT f.id FROM et.facts f JOIN (SELECT n FROM et.nation WHERE name = 'nobody') na ON f.n = na.n", 1),
    // Rows of the little table are given, or it is counted, limited or put together with others.
    ("SELECT na.name, f.id FROM et.nation na LEFT JOIN et.facts f ON f.n = na.n", 0),
    ("SELECT na.name, f.id FROM et.nation na FULL JOIN et.facts f ON f.n = na.n", 0),
    ("SELECT name FROM et.nation na WHERE EXISTS (SELECT 1 FROM et.facts f WHERE f.n = na.n)", 0),
    (
        "SELECT name FROM et.nation na WHERE NOT EXISTS (SELECT 1 FROM et.facts f WHERE f.n = na.n AND f.v = 3)",
        0,
    ),
    ("SELECT n, count(*) FROM (SELECT n FROM et.nation UNION ALL SELECT n FROM et.facts) GROUP BY n", 0),
    (
        "SELECT f.id, na.c FROM et.facts f JOIN (SELECT n, count(*) AS c FROM et.nation GROUP BY n) na ON f.n = na.n",
        0,
    ),
    (
        "SELECT count(*) FROM et.facts f JOIN (SELECT n FROM et.nation WHERE n IS NOT NULL ORDER BY n LIMIT 3) na \
         ON f.n = na.n",
        0,
    ),
    ("SELECT count(*) FROM et.facts f JOIN et.nation na ON f.n < na.n", 0),
    ("SELECT count(*), sum(f.v) FROM et.facts f CROSS JOIN et.region", 0),
];

const BY_EACH: &str = "read by each task";

async fn explained(client: &mut Client, sql: &str) -> (String, usize) {
    let plan = client.text(&format!("EXPLAIN {sql}")).await.unwrap();
    let by_each = plan.lines().filter(|line| line.contains(BY_EACH)).count();
    (plan, by_each)
}

/// Segments that are read of a table by a query, of whose text there is no other.
async fn segments_read(client: &mut Client, table: &str, sql: &str) -> i64 {
    client.query(sql).await.unwrap();
    let of_query = format!("FROM system.queries WHERE sql = '{sql}' AND tables IS NOT NULL");
    wait_until(client, &format!("SELECT count(*) {of_query}")).await;
    let read = format!(
        "SELECT r['segments'] FROM (SELECT unnest(tables) AS r {of_query}) WHERE r['table'] = '{table}'"
    );
    client.number(&read).await.unwrap()
}

fn stages(plan: &str) -> usize {
    plan.lines().filter(|line| line.starts_with("┌─ Stage ")).count()
}

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut with = session(cluster).await;
        // Joined as written: which sides are little is in the order.
        with.update("SET shoal.join_order = off").await.unwrap();
        for sql in SETUP {
            with.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        let mut without = session(cluster).await;
        without.update("SET shoal.join_order = off").await.unwrap();
        without.update("SET shoal.read_in_each_task = off").await.unwrap();
        let mut failures = Vec::new();
        for (sql, expected_by_each) in QUERIES {
            let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
            for (which, client) in [("with", &mut with), ("without", &mut without)] {
                let (schema, batches) = client.query_with_schema(sql).await.unwrap();
                if let Err(difference) = expected.check(&schema, &batches) {
                    failures.push(format!("{sql}, {which}: {difference}"));
                }
            }
            let (plan, by_each) = explained(&mut with, sql).await;
            let (plan_without, none) = explained(&mut without, sql).await;
            assert_eq!(none, 0, "{plan_without}");
            if workers == 1 {
                assert_eq!(by_each, 0, "{plan}");
                continue;
            }
            assert!(is_distributed(&plan), "{sql}\n{plan}");
            if by_each != expected_by_each {
                failures.push(format!("{sql}: {by_each} scans are read by each task\n{plan}"));
            }
            if expected_by_each > 0 && stages(&plan) >= stages(&plan_without) {
                failures.push(format!("{sql}: no stage is spared\n{plan}\n{plan_without}"));
            }
        }
        let (sql, _) = QUERIES[0];
        // Two writes made two segments of it. Each task reads both, and the certificate says so.
        let segments = with
            .number("SELECT segments FROM system.tables WHERE \"schema\" = 'et' AND \"table\" = 'nation'")
            .await
            .unwrap();
        let by_each = segments_read(&mut with, "et.nation", &format!("{sql} /* by each */")).await;
        let by_one = segments_read(&mut without, "et.nation", &format!("{sql} /* by one */")).await;
        assert_eq!((by_each, by_one), (segments * workers as i64, segments));
        with.update("DROP SCHEMA et CASCADE").await.unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn little_tables_are_read_by_each_task_and_answers_stay_on_one_worker() {
    check(1);
}

#[test]
fn little_tables_are_read_by_each_task_and_answers_stay_on_two_workers() {
    check(2);
}

#[test]
fn little_tables_are_read_by_each_task_and_answers_stay_on_four_workers() {
    check(4);
}

/// Kills a worker that has come to rows of this query. Its answer comes all the same, from the others.
async fn kill_in_the_middle(obedient: &Obedient, sql: &str, expected: i64) {
    let cluster: &Cluster = &obedient.cluster;
    let mut client = session(cluster).await;
    // Also on a worker that has just come back.
    in_time(async { while explained(&mut client, sql).await.1 != 2 {} }).await;
    let before = obedient.obeyed();
    obedient.hold(&obedient.workers());
    let asked = tokio::spawn({
        let (mut asking, sql) = (session(cluster).await, sql.to_owned());
        async move { in_time(asking.number(&sql)).await }
    });
    let worker = obedient.wait_until_obeyed(&before, 1).await.remove(0);
    cluster.kill(&worker).unwrap();
    obedient.order("");
    let answer = asked.await.unwrap().unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(answer, expected, "{sql}, {worker}");
    let lost = format!(
        "SELECT count(*) FROM system.queries WHERE state = 'finished' AND attempts > 1 AND sql = '{sql}'"
    );
    assert_eq!(client.number(&lost).await.unwrap(), 1, "no attempt was lost: {sql}");
    cluster.restart(&worker).unwrap();
    cluster.wait_until_joined(4).unwrap();
}

#[test]
fn a_worker_that_dies_with_its_copy_of_a_little_table_leaves_the_answer_right() {
    let obedient = Obedient::start(options(4));
    let _logs = obedient.cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&obedient.cluster).await;
        for sql in SETUP {
            client.update(&sql.replace("shards = 8,", "shards = 8, replicas = 3,")).await.unwrap();
        }
        let joined = "et.facts f JOIN et.nation n ON f.n = n.n JOIN et.region r ON n.r = r.r";
        let expected = client.number(&format!("SELECT sum(f.id) FROM {joined}")).await.unwrap();
        // Where rows of the large side go in, and where those of the join go out.
        for sql in [
            format!("SELECT sum(f.id) FROM {joined} WHERE shoal_step(f.v) >= 0"),
            format!("SELECT sum(shoal_step(f.id + n.r)) - sum(n.r) FROM {joined}"),
        ] {
            kill_in_the_middle(&obedient, &sql, expected).await;
        }
    });
}
