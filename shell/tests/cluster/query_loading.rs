//! CREATE TABLE AS and INSERT ... SELECT whose rows become segments on the workers that
//! compute them: the same rows as on plain DataFusion, whatever happens to a worker
//! meanwhile; and those whose rows go through the coordinator as before.

use std::time::{Duration, Instant};

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Cluster, Oracle};
use shoal_proto::fault::Step;

use crate::fixture::{Obedient, in_time, options, own, session, wait_until};
use crate::settled::wait_until_settled;

const ROWS: i64 = 60_000;
/// How long a process may take to come to the step at which it is killed.
const KILLED_WITHIN: Duration = Duration::from_secs(20);

/// Rows of two tables that are sharded alike; both have rows without a partner.
fn sources(layout: &str) -> [String; 4] {
    let table = |table: &str| {
        format!(
            "CREATE TABLE {table} (k BIGINT, g INT, s VARCHAR, f DOUBLE) WITH (shards = {layout}, shard_key = 'k')"
        )
    };
    let rows = |table: &str, step: i64| {
        format!(
            "INSERT INTO {table} SELECT value * {step}, value % 101, 'some text of row ' || (value % 5000), \
             CASE WHEN value % 3 > 0 THEN value / 8.0 END FROM generate_series(1, {ROWS})"
        )
    };
    [table("ql_a"), table("ql_b"), rows("ql_a", 1), rows("ql_b", 2)]
}

/// Statements whose rows stay on the workers, each with the table that it fills.
const STAYING: [(&str, &[&str]); 9] = [
    (
        "ql_scan",
        &["CREATE TABLE ql_scan WITH (shards = 4, shard_key = 'k', sort_key = 'g') AS \
           SELECT k, s, g, f FROM ql_a WHERE g <> 7"],
    ),
    (
        "ql_groups",
        &["CREATE TABLE ql_groups WITH (shards = 3, shard_key = 's') AS \
           SELECT s, g, count(*) AS n, sum(k) AS total, min(f) AS least FROM ql_a GROUP BY s, g"],
    ),
    (
        "ql_joined",
        &["CREATE TABLE ql_joined WITH (shards = 4, replicas = 'all', shard_key = 'k') AS \
           SELECT a.k, a.g, b.s AS other FROM ql_a a JOIN ql_b b ON a.k = b.k"],
    ),
    (
        // By another column than that of the shards.
        "ql_exchanged",
        &["CREATE TABLE ql_exchanged WITH (shards = 2, shard_key = 'k') AS \
           SELECT a.k, b.k AS l, b.s FROM ql_a a JOIN ql_b b ON a.k = b.g WHERE b.f < 1000"],
    ),
    (
        "ql_union",
        &["CREATE TABLE ql_union AS SELECT k, s FROM ql_a WHERE g < 50 UNION ALL SELECT k, s FROM ql_b"],
    ),
    (
        "ql_dealt",
        &[
            "CREATE TABLE ql_dealt (k BIGINT, s VARCHAR) WITH (shards = 4, replicas = 'all')",
            "INSERT INTO ql_dealt SELECT k, s FROM ql_a",
        ],
    ),
    (
        // Casts, columns by name, those that are not named, and keys that are NULL.
        "ql_cast",
        &[
            "CREATE TABLE ql_cast (k SMALLINT, missing VARCHAR, f REAL, s VARCHAR, n BIGINT) \
             WITH (shards = 4, shard_key = 'k')",
            "INSERT INTO ql_cast (s, n, k, f) SELECT g, f AS n, nullif(g, 5), f FROM ql_a",
        ],
    ),
    (
        // Into itself, as it was.
        "ql_twice",
        &[
            "CREATE TABLE ql_twice WITH (shards = 4, shard_key = 'k') AS SELECT k, g FROM ql_a",
            "INSERT INTO ql_twice SELECT k + 1, g FROM ql_twice",
        ],
    ),
    ("ql_nothing", &["CREATE TABLE ql_nothing AS SELECT k, s FROM ql_a WHERE f < -1"]),
];

/// Statements of which the coordinator has more to do than to gather rows, on several workers.
const PASSING: [(&str, &[&str]); 4] = [
    ("ql_first", &["CREATE TABLE ql_first AS SELECT k, s FROM ql_a ORDER BY k DESC LIMIT 100"]),
    ("ql_one", &["CREATE TABLE ql_one AS SELECT count(s) AS n, sum(k) AS total, max(f) AS most FROM ql_a"]),
    (
        "ql_numbered",
        &["CREATE TABLE ql_numbered AS SELECT k, row_number() OVER (ORDER BY k) AS number FROM ql_b"],
    ),
    (
        "ql_values",
        &[
            "CREATE TABLE ql_values (k BIGINT, s VARCHAR)",
            "INSERT INTO ql_values VALUES (1, 'one'), (NULL, NULL)",
        ],
    ),
];

/// A session whose queries are cut into tasks, and whose rows stay on the workers, however few.
async fn spreading(cluster: &Cluster) -> Client {
    let mut client = session(cluster).await;
    client.update("SET shoal.load_task_bytes = 1").await.unwrap();
    client
}

/// Runs the statements, on both; how many rows the last one wrote.
async fn fill(client: &mut Client, oracle: &Oracle, (table, statements): (&str, &[&str])) -> i64 {
    let mut rows = 0;
    for sql in statements {
        rows = client.update(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        oracle.run(sql).await.unwrap();
    }
    let sql = format!("SELECT * FROM {table}");
    let expected = oracle.expect(&sql, Numbers::Exact).await.unwrap();
    let (schema, batches) = client.query_with_schema(&sql).await.unwrap();
    expected.check(&schema, &batches).unwrap_or_else(|difference| panic!("{table}: {difference:#}"));
    rows
}

/// Waits until workers have made segments of so many rows, and not of more.
async fn wait_until_loaded(client: &mut Client, rows: i64) {
    let loaded = "SELECT CAST(coalesce(sum(rows_loaded), 0) AS BIGINT) FROM system.workers";
    wait_until(client, &format!("SELECT count(*) FROM ({loaded}) AS loaded (n) WHERE n >= {rows}")).await;
    assert_eq!(client.number(loaded).await.unwrap(), rows, "rows that workers made segments of");
}

fn check(workers: usize) {
    let cluster = own(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut client = spreading(&cluster).await;
        for sql in sources("8") {
            oracle.run(&sql).await.unwrap();
            client.update(&sql).await.unwrap();
        }
        let mut loaded = 0;
        for (table, statements) in STAYING {
            loaded += fill(&mut client, &oracle, (table, statements)).await;
            if table == "ql_twice" {
                // Its first statement wrote as many as the second one.
                loaded += ROWS;
            }
            wait_until_loaded(&mut client, loaded).await;
        }
        if workers > 1 {
            let first =
                "SELECT count(*) FROM (SELECT min(rows_loaded) AS least FROM system.workers) WHERE least > 0";
            assert_eq!(client.number(first).await.unwrap(), 1, "a worker made no segment");
            for passing in PASSING {
                fill(&mut client, &oracle, passing).await;
            }
        }
        // As little is not worth it by default.
        let mut plain = cluster.connect().await.unwrap();
        let few: (&str, &[&str]) = ("ql_few", &["CREATE TABLE ql_few AS SELECT k, s FROM ql_a WHERE g = 1"]);
        fill(&mut plain, &oracle, few).await;
        // What was loaded before it is told no later.
        let last: (&str, &[&str]) =
            ("ql_last", &["CREATE TABLE ql_last AS SELECT k, s FROM ql_a WHERE g = 1"]);
        loaded += fill(&mut client, &oracle, last).await;
        wait_until_loaded(&mut client, loaded).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn rows_that_stay_are_those_of_datafusion_on_one_worker() {
    check(1);
}

#[test]
fn rows_that_stay_are_those_of_datafusion_on_two_workers() {
    check(2);
}

#[test]
fn rows_that_stay_are_those_of_datafusion_on_four_workers() {
    check(4);
}

/// Three workers, each with a replica of everything, that obey orders, and the sources.
struct Fixture {
    obedient: Obedient,
}

impl Fixture {
    async fn start() -> Self {
        let fixture = Self { obedient: Obedient::start(options(3)) };
        let mut client = spreading(fixture.cluster()).await;
        // So many shards that each of three workers has a task.
        for sql in sources("12, replicas = 3") {
            client.update(&sql).await.unwrap();
        }
        fixture
    }

    fn cluster(&self) -> &Cluster {
        &self.obedient.cluster
    }

    /// Waits until the node is gone, as it was ordered, or was killed.
    async fn wait_until_killed(&self, node: &str) {
        let since = Instant::now();
        while !self.cluster().crashed().iter().any(|crashed| crashed == node) {
            assert!(since.elapsed() < KILLED_WITHIN, "{node} was never killed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.obedient.order("");
    }

    async fn restart(&self, node: &str) {
        self.cluster().restart(node).unwrap();
        self.cluster().wait_until_joined(3).unwrap();
        wait_until_settled(self.cluster(), 3).await;
    }
}

/// The statement that makes `table` of all rows, grouped anew and through `step`.
fn make(table: &str, step: &str) -> String {
    format!(
        "CREATE TABLE {table} WITH (shards = 2, replicas = 3, shard_key = 'k', sort_key = 'g') AS \
         SELECT {step} AS k, max(a.g) AS g, max(a.s) AS s FROM ql_a AS a GROUP BY a.k, a.f"
    )
}

/// Each row is there, once.
async fn check_rows(client: &mut Client, table: &str) {
    for (what, expected) in [
        ("count(*)", ROWS),
        ("count(DISTINCT k)", ROWS),
        ("sum(k)", ROWS * (ROWS + 1) / 2),
        ("count(*) FILTER (WHERE s = 'some text of row ' || (k % 5000))", ROWS),
    ] {
        let found = client.number(&format!("SELECT {what} FROM {table}")).await.unwrap();
        assert_eq!(found, expected, "{what} of {table}");
    }
}

#[test]
fn a_query_that_loses_a_worker_while_it_loads_is_tried_again_and_nothing_is_there_twice() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::start().await;
        let cluster = fixture.cluster();
        let _logs = cluster.show_logs_on_failure();
        let mut client = spreading(cluster).await;

        // While its rows are computed.
        let before = fixture.obedient.obeyed();
        fixture.obedient.hold(&fixture.obedient.workers());
        let mut loader = client.clone();
        let loading = tokio::spawn(async move { loader.update(&make("ql_held", "shoal_step(a.k)")).await });
        fixture.obedient.wait_until_obeyed(&before, 3).await;
        cluster.kill("worker-2").unwrap();
        fixture.obedient.order("");
        assert_eq!(in_time(loading).await.unwrap().unwrap(), ROWS);
        check_rows(&mut client, "ql_held").await;
        fixture.restart("worker-2").await;
        check_rows(&mut client, "ql_held").await;

        // Before any of its segments is staged, while others stage theirs on it, and with some
        // durable that nobody will commit.
        for (index, step) in
            [Step::SegmentEncoded, Step::StageInstalled, Step::SegmentStaged].into_iter().enumerate()
        {
            let table = format!("ql_lost_{index}");
            let pid = cluster.pid("worker-2").unwrap();
            fixture.obedient.order(&format!("{pid} {} kill\n", step.name()));
            let made = in_time(client.update(&make(&table, "a.k"))).await;
            assert_eq!(made.unwrap(), ROWS, "{}", step.name());
            fixture.wait_until_killed("worker-2").await;
            check_rows(&mut client, &table).await;
            fixture.restart("worker-2").await;
            check_rows(&mut client, &table).await;
        }
        let retried =
            "SELECT count(*) FROM system.queries WHERE attempts > 1 AND sql LIKE 'CREATE TABLE ql_held%'";
        assert_eq!(client.number(retried).await.unwrap(), 1, "it was not tried again");
    });
}

#[test]
fn a_load_of_a_query_that_fails_or_is_given_up_leaves_nothing() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::start().await;
        let cluster = fixture.cluster();
        let _logs = cluster.show_logs_on_failure();
        let mut client = spreading(cluster).await;
        let target = "CREATE TABLE ql_target (k BIGINT NOT NULL, s VARCHAR) \
                      WITH (shards = 2, replicas = 3, shard_key = 'k')";
        client.update(target).await.unwrap();

        // Rows that cannot be, also where only one worker has such a one; a value that cannot be
        // cast; and an operator that breaks.
        for (select, expected) in [
            ("nullif(k, 12345), s FROM ql_a", "which is NOT NULL"),
            ("CAST(s AS BIGINT) AS k, s FROM ql_a", "annot cast"),
            ("shoal_panic(k, 12345), s FROM ql_a", "panicked"),
            ("shoal_panic(k, 12345), max(s) FROM ql_a GROUP BY k, f", "panicked"),
        ] {
            let error = in_time(client.update(&format!("INSERT INTO ql_target SELECT {select}"))).await;
            let error = error.unwrap_err();
            assert!(error.message.contains(expected), "{select}: {error}");
        }
        let again =
            "SELECT count(*) FROM system.queries WHERE attempts > 1 AND sql LIKE 'INSERT INTO ql_target%'";
        assert_eq!(client.number(again).await.unwrap(), 0, "no attempt could cure that");

        // Given up by whoever asked for it, with segments on their way.
        let before = fixture.obedient.obeyed();
        fixture.obedient.order(&format!("* {} stall\n", Step::SegmentEncoded.name()));
        let mut loader = client.clone();
        let loading =
            tokio::spawn(async move { loader.update("INSERT INTO ql_target SELECT k, s FROM ql_a").await });
        fixture.obedient.wait_until_obeyed(&before, 3).await;
        let id =
            "SELECT id FROM system.queries WHERE state = 'running' AND sql LIKE 'INSERT INTO ql_target%'";
        let id = client.text(id).await.unwrap();
        client.update(&format!("KILL QUERY '{}'", id.trim())).await.unwrap();
        let error = in_time(loading).await.unwrap().unwrap_err();
        assert!(error.message.contains("cancelled"), "{error}");
        fixture.obedient.order("");
        assert_eq!(client.number("SELECT count(*) FROM ql_target").await.unwrap(), 0);
        wait_until_settled(cluster, 3).await;

        assert_eq!(client.update("INSERT INTO ql_target SELECT k, s FROM ql_a").await.unwrap(), ROWS);
        check_rows(&mut client, "ql_target").await;
        wait_until_settled(cluster, 3).await;
    });
}
