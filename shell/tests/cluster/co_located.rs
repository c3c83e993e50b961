//! Rows that stay where they are, all or those of one side of a join, give what plain DataFusion
//! gives: sharded by numbers, by text and by both, on 1, 2 and 4 workers. How many exchanges there are
//! is a claim of its own.

use shoal_benches::Oracle;

use crate::fixture::{check_answer, session, shared};
use crate::in_place::exchanges;

/// Numbers that are in the large table of each pair, and in the other one.
const ROWS: u32 = 6_000;
const OTHER_ROWS: u32 = 5_000;
const FEW_ROWS: u32 = 60;

/// The text of a number: none, empty, short, of 12 bytes (as many as fit in a view) and of
/// 13, and long.
const TEXT: &str = "CASE WHEN n % 31 = 0 THEN NULL WHEN n % 400 = 1 THEN '' \
     WHEN n % 5 = 0 THEN CAST(n AS VARCHAR) WHEN n % 5 = 1 THEN lpad(CAST(n AS VARCHAR), 12, 'x') \
     WHEN n % 5 = 2 THEN lpad(CAST(n AS VARCHAR), 13, 'x') WHEN n % 5 = 3 THEN 'größe ' || CAST(n AS VARCHAR) \
     ELSE 'a text that does not fit in a view: ' || CAST(n AS VARCHAR) END";

/// Each with how many exchanges it has over four workers where no side is collected; none where
/// that is not what it is about.
const QUERIES: [(&str, Option<usize>); 41] = [
    // Text that meets text.
    (
        "SELECT count(*), sum(a.v), sum(b.v), max(a.k), min(b.k) FROM cl_text a JOIN cl_other_text b ON a.k = b.k",
        Some(0),
    ),
    (
        "SELECT a.k, count(*), count(b.k), sum(b.v) FROM cl_text a LEFT JOIN cl_other_text b ON a.k = b.k GROUP BY a.k",
        Some(0),
    ),
    (
        "SELECT count(*), count(a.k), count(b.k), sum(a.v), sum(b.v) FROM cl_text a FULL JOIN cl_other_text b ON a.k = b.k",
        Some(0),
    ),
    ("SELECT v FROM cl_text a WHERE NOT EXISTS (SELECT 1 FROM cl_other_text b WHERE b.k = a.k)", Some(0)),
    (
        "SELECT v FROM cl_text a WHERE EXISTS (SELECT 1 FROM cl_other_text b WHERE b.k = a.k AND b.v > a.v - 100)",
        Some(0),
    ),
    (
        "SELECT v FROM cl_few_text a WHERE NOT EXISTS (SELECT 1 FROM cl_text b WHERE b.k = a.k AND b.v < 300)",
        Some(0),
    ),
    ("SELECT a.v, b.v, a.k FROM cl_few_text a LEFT JOIN cl_text b ON a.k = b.k", Some(0)),
    ("SELECT a.v, b.v FROM cl_few_text a JOIN cl_text b ON a.k = b.k", Some(0)),
    ("SELECT v FROM cl_few_text WHERE k IN (SELECT k FROM cl_text)", None),
    ("SELECT v FROM cl_text WHERE k NOT IN (SELECT k FROM cl_few_text WHERE k IS NOT NULL)", None),
    ("SELECT v FROM cl_text WHERE k NOT IN (SELECT k FROM cl_few_text)", None),
    // Groups, distinct rows and windows by text.
    ("SELECT k, count(*), sum(v) FROM cl_text GROUP BY k", Some(0)),
    ("SELECT v % 3 AS third, k, count(*), min(v) FROM cl_text GROUP BY third, k", Some(0)),
    ("SELECT DISTINCT k FROM cl_text", Some(0)),
    ("SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v) AS place FROM cl_text", Some(0)),
    ("SELECT length(k) AS l, count(*) FROM cl_text GROUP BY l", Some(1)),
    // One row for each key, also of those that look alike.
    ("SELECT count(*), count(k), max(c) FROM (SELECT k, count(*) AS c FROM cl_text GROUP BY k)", Some(0)),
    // Text that comes from elsewhere, also of other types.
    (
        "SELECT count(*), sum(a.v), sum(b.n) FROM cl_text a JOIN cl_numbers b ON a.k = CAST(b.n AS VARCHAR)",
        Some(1),
    ),
    ("SELECT count(*), sum(a.v), sum(b.n) FROM cl_text a JOIN cl_numbers b ON a.k = b.t", Some(1)),
    ("SELECT a.v, b.n FROM cl_few_text a LEFT JOIN cl_numbers b ON a.k = b.t", Some(1)),
    ("SELECT v FROM cl_few_text a WHERE NOT EXISTS (SELECT 1 FROM cl_numbers b WHERE b.t = a.k)", Some(1)),
    (
        "SELECT count(*), sum(a.v), sum(b.v) FROM cl_text a JOIN cl_other_text b ON a.k = arrow_cast(b.k, 'Utf8')",
        None,
    ),
    (
        "SELECT count(*), sum(a.v), sum(b.v) FROM cl_text a JOIN cl_other_text b ON a.k = arrow_cast(b.k, 'LargeUtf8')",
        None,
    ),
    (
        "SELECT count(*), sum(a.v), sum(b.v) FROM cl_text a \
         JOIN cl_other_text b ON a.k = arrow_cast(b.k, 'Dictionary(Int32, Utf8)')",
        None,
    ),
    (
        "SELECT count(*), sum(a.v), sum(b.v) FROM cl_text a JOIN cl_other_text b ON lower(a.k) = lower(b.k)",
        Some(2),
    ),
    ("SELECT count(*), sum(d.n), sum(b.n) FROM cl_digits d JOIN cl_numbers b ON d.k = b.n", None),
    ("SELECT d.n, b.t FROM cl_digits d LEFT JOIN cl_numbers b ON d.k = b.n WHERE d.n < 50", None),
    ("SELECT count(*), sum(a.v), sum(b.v) FROM cl_text a JOIN cl_file b ON a.k = b.k", None),
    ("SELECT b.v, a.v FROM cl_few_text b LEFT JOIN cl_file a ON a.k = b.k", None),
    // Text and a number, in whichever order.
    (
        "SELECT count(*), sum(a.w), sum(b.w) FROM cl_pairs a JOIN cl_other_pairs b ON a.n = b.n AND a.k = b.k",
        Some(0),
    ),
    (
        "SELECT count(*), sum(a.w), sum(b.w) FROM cl_pairs a JOIN cl_other_pairs b ON a.k = b.k AND a.n = b.n",
        Some(0),
    ),
    ("SELECT count(*), sum(a.w) FROM cl_pairs a JOIN cl_numbers b ON a.k = b.t AND a.n = b.n", Some(1)),
    (
        "SELECT w FROM cl_pairs a WHERE NOT EXISTS (SELECT 1 FROM cl_numbers b WHERE a.k = b.t AND a.n = b.n)",
        Some(1),
    ),
    ("SELECT count(*), sum(a.w), sum(b.w) FROM cl_pairs a JOIN cl_other_pairs b ON a.k = b.k", Some(2)),
    // Numbers, of which one side is sharded by what they are joined by.
    ("SELECT n FROM cl_few a WHERE NOT EXISTS (SELECT 1 FROM cl_numbers b WHERE b.half = a.n)", Some(1)),
    (
        "SELECT n FROM cl_few a WHERE EXISTS (SELECT 1 FROM cl_numbers b WHERE b.half = a.n AND b.n % 3 = 0)",
        Some(1),
    ),
    ("SELECT a.n, b.n FROM cl_few a LEFT JOIN cl_numbers b ON b.half = a.n", Some(1)),
    ("SELECT a.half, b.t FROM cl_few a LEFT JOIN cl_numbers b ON b.n = a.half", Some(1)),
    (
        "SELECT count(*), count(a.n), count(b.n), sum(a.n) FROM cl_few a FULL JOIN cl_numbers b ON b.half = a.n",
        Some(1),
    ),
    (
        "SELECT count(*), count(a.n), count(b.n), sum(b.n) FROM cl_few a FULL JOIN cl_numbers b ON b.n = a.half",
        Some(1),
    ),
    (
        "SELECT n, half, count(*) FROM cl_few a WHERE NOT EXISTS (SELECT 1 FROM cl_numbers b WHERE b.half = a.n + 0 AND b.n > 90) \
         GROUP BY n, half",
        None,
    ),
];

/// Of few rows, which are given: a side that each of DataFusion's joins would collect. Each with
/// how many exchanges it has.
const COLLECTED: [(&str, usize); 9] = [
    ("SELECT a.v, b.v, a.k FROM cl_few_text a LEFT JOIN cl_text b ON a.k = b.k", 0),
    ("SELECT v FROM cl_few_text a WHERE NOT EXISTS (SELECT 1 FROM cl_text b WHERE b.k = a.k)", 0),
    ("SELECT a.v, b.n FROM cl_few_text a LEFT JOIN cl_numbers b ON a.k = b.t", 1),
    ("SELECT v FROM cl_few_text a WHERE NOT EXISTS (SELECT 1 FROM cl_numbers b WHERE b.t = a.k)", 1),
    ("SELECT n FROM cl_few a WHERE NOT EXISTS (SELECT 1 FROM cl_numbers b WHERE b.half = a.n)", 1),
    ("SELECT n FROM cl_few a WHERE EXISTS (SELECT 1 FROM cl_numbers b WHERE b.half = a.n)", 1),
    ("SELECT a.n, b.n FROM cl_few a LEFT JOIN cl_numbers b ON b.half = a.n", 1),
    ("SELECT a.half, b.t FROM cl_few a LEFT JOIN cl_numbers b ON b.n = a.half", 1),
    (
        "SELECT count(*), count(a.n), count(b.n), sum(a.n) FROM cl_few a FULL JOIN cl_numbers b ON b.half = a.n",
        1,
    ),
];

/// What sessions set, each of which plans in another way: no side is collected; small ones are;
/// joins are merged; all is exchanged.
const SETTINGS: [&[&str]; 4] = [
    &[
        "SET datafusion.optimizer.hash_join_single_partition_threshold = 0",
        "SET datafusion.optimizer.hash_join_single_partition_threshold_rows = 0",
    ],
    &[],
    &["SET datafusion.optimizer.prefer_hash_join = false"],
    &["SET shoal.colocate = false"],
];

const TABLES: [&str; 9] = [
    "cl_text",
    "cl_other_text",
    "cl_few_text",
    "cl_numbers",
    "cl_few",
    "cl_digits",
    "cl_pairs",
    "cl_other_pairs",
    "cl_file",
];

/// What makes the tables, for both engines alike.
fn setup() -> Vec<String> {
    let by = |columns: &str, key: &str| format!("({columns}) WITH (shards = 8, shard_key = '{key}')");
    let rows = |select: &str, step: u32, rows: u32| {
        format!("SELECT {select} FROM (SELECT value * {step} AS n FROM generate_series(1, {rows}))")
    };
    let texts = |table: &str, step: u32, count: u32| {
        let select = rows(&format!("{TEXT}, n"), step, count);
        [
            format!("CREATE TABLE {table} {}", by("k VARCHAR, v BIGINT", "k")),
            format!("INSERT INTO {table} {select}"),
        ]
    };
    let numbers = |table: &str, step: u32, count: u32| {
        let select = rows(&format!("n, CASE WHEN n % 17 = 0 THEN NULL ELSE n / 2 END, {TEXT}"), step, count);
        let columns = by("n BIGINT, half BIGINT, t VARCHAR", "n");
        [format!("CREATE TABLE {table} {columns}"), format!("INSERT INTO {table} {select}")]
    };
    let pairs = |table: &str, step: u32, count: u32| {
        let select = rows(&format!("n, {TEXT}, n % 11"), step, count);
        let columns = by("n BIGINT, k VARCHAR, w BIGINT", "n, k");
        [format!("CREATE TABLE {table} {columns}"), format!("INSERT INTO {table} {select}")]
    };
    let digits = [
        format!("CREATE TABLE cl_digits {}", by("k VARCHAR, n BIGINT", "k")),
        format!("INSERT INTO cl_digits {}", rows("CAST(n AS VARCHAR) AS k, n", 3, 500)),
    ];
    [
        texts("cl_text", 1, ROWS),
        texts("cl_other_text", 2, OTHER_ROWS),
        texts("cl_few_text", 90, FEW_ROWS),
        numbers("cl_numbers", 1, ROWS),
        numbers("cl_few", 70, FEW_ROWS),
        pairs("cl_pairs", 1, ROWS),
        pairs("cl_other_pairs", 2, OTHER_ROWS),
        digits,
    ]
    .concat()
}

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut client = session(cluster).await;
        for sql in setup() {
            oracle.run(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            client.update(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        // Text that lies in a file, as it was written there.
        let file = cluster.import_dir().join("cl_file.parquet");
        oracle.run("CREATE TABLE cl_file AS SELECT * FROM cl_other_text").await.unwrap();
        for sql in [
            format!("COPY cl_other_text TO '{}' (FORMAT parquet)", file.display()),
            format!("CREATE EXTERNAL TABLE cl_file STORED AS PARQUET LOCATION '{}'", file.display()),
        ] {
            client.update(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        for (number, settings) in SETTINGS.into_iter().enumerate() {
            let mut client = session(cluster).await;
            for setting in settings {
                client.update(setting).await.unwrap();
            }
            // The claim about its exchanges is one about the session of this number.
            let queries = QUERIES.into_iter().map(|(sql, expected)| (sql, 0, expected));
            let collected = COLLECTED.into_iter().map(|(sql, expected)| (sql, 1, Some(expected)));
            for (sql, is_of, expected) in queries.chain(collected) {
                check_answer(&mut client, &oracle, sql).await;
                if workers == 4
                    && is_of == number
                    && let Some(expected) = expected
                {
                    assert_eq!(exchanges(&mut client, sql).await, expected, "{sql}");
                }
            }
        }
        // Each text is found in the shard that it was dealt to.
        for text in
            ["", "5", "xxxxxxxxxxx6", "xxxxxxxxxxxx7", "größe 8", "a text that does not fit in a view: 9"]
        {
            let sql = format!("SELECT count(*), min(v) FROM cl_text WHERE k = '{text}'");
            assert_ne!(client.number(&sql).await.unwrap(), 0, "{sql}");
            check_answer(&mut client, &oracle, &sql).await;
        }
        for table in TABLES {
            client.update(&format!("DROP TABLE {table}")).await.unwrap();
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn rows_that_stay_give_what_datafusion_gives_on_one_worker() {
    check(1);
}

#[test]
fn rows_that_stay_give_what_datafusion_gives_on_two_workers() {
    check(2);
}

#[test]
fn rows_that_stay_give_what_datafusion_gives_on_four_workers() {
    check(4);
}
