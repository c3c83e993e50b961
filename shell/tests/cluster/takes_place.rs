//! What is done so that less is computed or sent takes place, and no answer is another than
//! that of plain DataFusion. Where it stands in plans is with `Planning` of the coordinator.

use shoal_benches::{Client, Cluster, Oracle};
use shoal_coordinator::query::TimeSplit;

use crate::fixture::{check_answer, in_time, is_distributed, session, shared};

/// Runs a test with a session of each kind: one in which little data is cut into tasks, and
/// one in which one worker gets it whole.
fn with_sessions(cluster: &Cluster, test: impl AsyncFnOnce(&mut Client, &mut Client, &Oracle)) {
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (mut cut, mut whole) = (session(cluster).await, cluster.connect().await.unwrap());
        test(&mut cut, &mut whole, &Oracle::new(4)).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

async fn analyzed(client: &mut Client, sql: &str) -> String {
    in_time(client.text(&format!("EXPLAIN ANALYZE VERBOSE {sql}"))).await.unwrap()
}

/// A metric of each operator whose line has this, over all tasks, as it is shown: up to 999 it
/// is exact.
fn metric<'a>(explained: &'a str, operator: &str, name: &str) -> Vec<&'a str> {
    let of = |line: &'a str| {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        rest.split([',', ']']).next()
    };
    let lines = explained.lines().filter(|line| line.contains(operator));
    lines.map(|line| of(line).unwrap_or_else(|| panic!("no {name} in {line}\n{explained}"))).collect()
}

const GROUPS: &str = "SELECT count(*), sum(n), max(n), sum(s) FROM";

#[test]
fn groups_are_made_where_rows_are_read_only_if_that_makes_fewer_of_them() {
    with_sessions(shared(2), async |client, _, oracle| {
        // Each of four partitions has more rows than DataFusion looks at before it decides,
        // which are 100,000. Some groups have rows in two of them.
        for sql in [
            "CREATE TABLE tp_groups (k BIGINT, u BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'k')",
            "INSERT INTO tp_groups SELECT value AS k, value % 450000 AS u, value % 10 AS v \
             FROM generate_series(1, 480000)",
        ] {
            client.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        for (of, skips) in [("u", true), ("v", false)] {
            let grouped = format!("(SELECT {of}, count(*) AS n, sum(k) AS s FROM tp_groups GROUP BY {of})");
            let sql = format!("{GROUPS} {grouped} AS g");
            check_answer(client, oracle, &sql).await;
            let ran = analyzed(client, &sql).await;
            assert!(is_distributed(&ran) && ran.contains("NetworkShuffleExec from stage"), "{ran}");
            let partial = format!("mode=Partial, gby=[{of}@");
            let skipped = metric(&ran, &partial, "skipped_aggregation_rows");
            assert_eq!(skipped.len(), 1, "{ran}");
            assert_eq!(skipped[0] != "0", skips, "{sql}: {skipped:?} rows were not grouped\n{ran}");
        }
        client.update("DROP TABLE tp_groups").await.unwrap();
    });
}

const FEW_JOIN: &str = "SELECT count(*), sum(few.v), sum(many.v) FROM tp_many AS many JOIN tp_few AS few ON";
const FEW_ALONE: &str =
    "SELECT count(*), sum(v) FROM tp_few AS few WHERE NOT EXISTS (SELECT 1 FROM tp_many AS many WHERE";

#[test]
fn partners_are_looked_up_in_an_array_where_keys_are_not_far_apart() {
    with_sessions(shared(2), async |cut, whole, oracle| {
        for sql in [
            "CREATE TABLE tp_few (k BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'v')",
            "INSERT INTO tp_few SELECT value * 120 - 5000 AS k, value AS v FROM generate_series(0, 2000)",
            "INSERT INTO tp_few VALUES (115000, 3000), (115000, 3001), (NULL, 3002)",
            "CREATE TABLE tp_many (k BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'v')",
            "INSERT INTO tp_many SELECT value * 90 - 9000 AS k, value AS v FROM generate_series(0, 9000)",
            "INSERT INTO tp_many VALUES (115000, 10000), (NULL, 10001)",
        ] {
            cut.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        let near = "few.k = many.k";
        let far = "few.k * 1000003 = many.k * 1000003";
        for (client, is_cut) in [(&mut *cut, true), (&mut *whole, false)] {
            for (sql, is_array) in [
                (format!("{FEW_JOIN} {near}"), true),
                (format!("{FEW_ALONE} {near})"), true),
                (format!("{FEW_JOIN} {far}"), false),
                (format!("{FEW_ALONE} {far})"), false),
            ] {
                let ran = analyzed(client, &sql).await;
                let arrays = metric(&ran, "HashJoinExec", "array_map_created_count");
                assert_eq!(arrays != ["0"], is_array, "{sql}, by default: {arrays:?}\n{ran}");
                for (range, is_wide) in [("262144", true), ("1024", false)] {
                    let setting = "datafusion.execution.perfect_hash_join_small_build_threshold";
                    client.update(&format!("SET {setting} = {range}")).await.unwrap();
                    check_answer(client, oracle, &sql).await;
                    let ran = analyzed(client, &sql).await;
                    assert_eq!(is_distributed(&ran), is_cut, "{ran}");
                    let arrays = metric(&ran, "HashJoinExec", "array_map_created_count");
                    assert_eq!(arrays.len(), 1, "{ran}");
                    assert_eq!(arrays[0] != "0", is_array && is_wide, "{sql}, {range}: {arrays:?}\n{ran}");
                    client.update(&format!("RESET {setting}")).await.unwrap();
                }
            }
        }
        for table in ["tp_few", "tp_many"] {
            cut.update(&format!("DROP TABLE {table}")).await.unwrap();
        }
    });
}

/// Both sides are dealt out anew.
const SHUFFLED: [&str; 3] = [
    "SET shoal.colocate = false",
    "SET datafusion.optimizer.hash_join_single_partition_threshold = 0",
    "SET datafusion.optimizer.hash_join_single_partition_threshold_rows = 0",
];
const SENT_ROWS: usize = 900;
const SENT: &str = "SELECT count(*), sum(a.k + b.k) FROM tp_sent a JOIN tp_sent b ON a.v = b.v";

async fn setup_sent(client: &mut Client, oracle: &Oracle) {
    for setting in SHUFFLED {
        client.update(setting).await.unwrap();
    }
    for sql in [
        "CREATE TABLE tp_sent (k BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'k')".to_owned(),
        format!("INSERT INTO tp_sent SELECT value AS k, value * 7 AS v FROM generate_series(1, {SENT_ROWS})"),
    ] {
        client.update(&sql).await.unwrap();
        oracle.run(&sql).await.unwrap();
    }
}

#[test]
fn rows_for_a_task_of_the_same_process_are_not_sent() {
    with_sessions(shared(2), async |client, _, oracle| {
        setup_sent(client, oracle).await;
        check_answer(client, oracle, SENT).await;
        let ran = analyzed(client, SENT).await;
        let exchange = "NetworkShuffleExec from stage";
        let all = SENT_ROWS.to_string();
        assert_eq!(metric(&ran, exchange, "output_rows"), [all.as_str(); 2], "{ran}");
        for sent in metric(&ran, exchange, "wire_rows") {
            let sent: usize = sent.parse().unwrap_or_else(|_| panic!("{sent} rows\n{ran}"));
            // About half of them go to the other worker, and the others stay.
            assert!((1..SENT_ROWS).contains(&sent), "{sent} of {SENT_ROWS} rows were sent\n{ran}");
        }
        let moved = ran.parse::<TimeSplit>().unwrap().work.exchange.expect(&ran);
        assert_eq!(moved.rows, 2 * SENT_ROWS as u64, "{ran}");
        assert!(moved.bytes > 0, "{ran}");
        client.update("DROP TABLE tp_sent").await.unwrap();
    });
}

#[test]
fn one_worker_sends_nothing_but_the_answer() {
    with_sessions(shared(1), async |client, _, oracle| {
        setup_sent(client, oracle).await;
        check_answer(client, oracle, SENT).await;
        let ran = analyzed(client, SENT).await;
        assert!(ran.contains("┌─ Whole plan ── on worker-"), "{ran}");
        // Both sides are dealt out, within the process.
        let dealt = metric(&ran, "RepartitionExec: partitioning=Hash([v@", "output_rows");
        let all = SENT_ROWS.to_string();
        assert_eq!(dealt, [all.as_str(); 2], "{ran}");
        let work = ran.parse::<TimeSplit>().unwrap().work;
        assert_eq!(work.exchange, None, "{ran}");
        assert_eq!(work.collected.expect(&ran).rows, 1, "{ran}");
        client.update("DROP TABLE tp_sent").await.unwrap();
    });
}

/// Each has one right answer, whichever rows come first.
const LIMITED: [&str; 12] = [
    "SELECT k, v FROM tp_first ORDER BY v, k LIMIT 10",
    "SELECT k, v FROM tp_first ORDER BY v DESC NULLS LAST, k DESC LIMIT 7 OFFSET 1995",
    // More rows than these are first, and which of them are left out does not show.
    "SELECT v FROM tp_first ORDER BY v NULLS FIRST LIMIT 2500 OFFSET 1000",
    "SELECT v, count(*) AS n, sum(k) AS s FROM tp_first GROUP BY v ORDER BY s DESC, v LIMIT 3",
    "SELECT count(*), min(n), max(n) FROM (SELECT k % 8 AS g, count(*) AS n FROM tp_first GROUP BY k % 8 LIMIT 3) AS l",
    "SELECT count(*), min(v), max(v) FROM (SELECT v FROM tp_first WHERE v = 3 LIMIT 10) AS l",
    "SELECT count(*) FROM (SELECT k FROM tp_first LIMIT 10 OFFSET 19995) AS l",
    // Of a join: each of ten rows has one partner, or all others.
    "SELECT count(*), count(DISTINCT l.k) FROM (SELECT k FROM tp_first LIMIT 10) AS l JOIN tp_first AS r ON l.k = r.k",
    "SELECT count(*), count(DISTINCT l.k) FROM (SELECT k FROM tp_first LIMIT 10) AS l CROSS JOIN tp_first AS r",
    "SELECT count(*), count(DISTINCT l.k) FROM (SELECT k FROM tp_first LIMIT 10) AS l JOIN tp_first AS r ON l.k < r.k + 20001",
    "SELECT count(*) FROM tp_first WHERE k IN (SELECT k FROM tp_first LIMIT 10)",
    "SELECT count(*), count(l.k) FROM (SELECT k FROM tp_first LIMIT 10) AS l RIGHT JOIN tp_first AS r ON l.k = r.k",
];

fn check_limited(workers: usize) {
    with_sessions(shared(workers), async |cut, whole, oracle| {
        for sql in [
            "CREATE TABLE tp_first (k BIGINT, v BIGINT) WITH (shards = 8, shard_key = 'k')",
            "INSERT INTO tp_first SELECT value AS k, CASE WHEN value % 50 = 0 THEN NULL ELSE value % 10 END AS v \
             FROM generate_series(1, 20000)",
        ] {
            cut.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        for sql in LIMITED {
            // Other rows may come first another time.
            for _ in 0..3 {
                check_answer(cut, oracle, sql).await;
            }
            check_answer(whole, oracle, sql).await;
        }
        // What the two sessions do is not the same.
        let explain = format!("EXPLAIN {}", LIMITED[7]);
        let plan = whole.text(&explain).await.unwrap();
        assert!(plan.contains("┌─ Whole plan ── on worker-"), "{plan}");
        let plan = cut.text(&explain).await.unwrap();
        assert_eq!(is_distributed(&plan), workers > 1, "{plan}");
        cut.update("DROP TABLE tp_first").await.unwrap();
    });
}

#[test]
fn first_rows_are_the_right_ones_on_one_worker() {
    check_limited(1);
}

#[test]
fn first_rows_are_the_right_ones_on_two_workers() {
    check_limited(2);
}

#[test]
fn first_rows_are_the_right_ones_on_four_workers() {
    check_limited(4);
}
