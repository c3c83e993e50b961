//! The first rows of an order, or of all: how far down in a plan it is told that no more
//! are wanted, and where that would be wrong.

use super::*;

/// What says that an operator gives no more than so many rows.
const BOUNDS: [&str; 4] = ["fetch=", "limit=", "lim=[", "skip="];

fn check_unbounded(stage: &str, plan: &str) {
    for bound in BOUNDS {
        assert!(!stage.contains(bound), "`{bound}` stands in\n{stage}\nof\n{plan}");
    }
}

/// Each of these stands in a part of a plan.
fn check_has(part: &str, all: &[&str], plan: &str) {
    for one in all {
        assert!(part.contains(one), "`{one}` does not stand in\n{part}\nof\n{plan}");
    }
}

#[tokio::test]
async fn each_task_keeps_the_first_rows_of_an_order_below_the_exchange() {
    let first = plan("SELECT v, s FROM t ORDER BY v, k LIMIT 10").await;
    check_has(stage_of(&first, "table=t,"), &["4 tasks on", "SortExec: TopK(fetch=10)"], &first);
    check_has(stages(&first)[0], &["SortPreservingMergeExec", "fetch=10"], &first);

    // Those that are left out may all be in one task.
    let skipped = plan("SELECT v, s FROM t ORDER BY v, k LIMIT 10 OFFSET 5").await;
    let below = stage_of(&skipped, "table=t,");
    check_has(below, &["4 tasks on", "SortExec: TopK(fetch=15)"], &skipped);
    assert!(!below.contains("fetch=10") && !below.contains("skip="), "{skipped}");
    check_has(stages(&skipped)[0], &["skip=5", "fetch=10"], &skipped);
}

#[tokio::test]
async fn the_first_groups_are_known_only_when_groups_are_whole() {
    for sql in [
        "SELECT v, sum(s) AS n FROM t GROUP BY v ORDER BY n DESC, v LIMIT 10",
        "SELECT v, count(*) AS n FROM t GROUP BY v HAVING count(*) > 3 ORDER BY n, v LIMIT 10",
    ] {
        let plan = plan(sql).await;
        check_has(stage_of(&plan, "mode=FinalPartitioned"), &["tasks on", "TopK(fetch=10)"], &plan);
        check_unbounded(stage_of(&plan, "mode=Partial,"), &plan);
        check_unbounded(scan_of(&plan, "t"), &plan);
    }
    let any = plan("SELECT v, count(*) FROM t GROUP BY v LIMIT 10").await;
    check_has(stage_of(&any, "mode=FinalPartitioned"), &["fetch=10"], &any);
    check_unbounded(stage_of(&any, "mode=Partial,"), &any);
    check_unbounded(scan_of(&any, "t"), &any);
}

#[tokio::test]
async fn a_limit_stands_at_the_scan() {
    let first = plan("SELECT v FROM t LIMIT 10").await;
    check_has(stage_of(&first, "table=t,"), &["4 tasks on"], &first);
    check_has(scan_of(&first, "t"), &["limit=10"], &first);
    check_has(stages(&first)[0], &["fetch=10"], &first);

    let skipped = plan("SELECT v FROM t LIMIT 10 OFFSET 5").await;
    check_has(scan_of(&skipped, "t"), &["limit=15"], &skipped);
    check_has(stages(&skipped)[0], &["skip=5", "fetch=10"], &skipped);
}

#[tokio::test]
async fn a_limit_does_not_stand_below_what_leaves_rows_out() {
    // Statistics rule out some rows of a scan, and not all that the filter refuses.
    let filtered = plan("SELECT v FROM t WHERE s > 3 LIMIT 10").await;
    check_has(stage_of(&filtered, "table=t,"), &["FilterExec: s", "fetch=10"], &filtered);
    check_unbounded(scan_of(&filtered, "t"), &filtered);

    let joined = plan("SELECT t.v, u.s FROM t JOIN u ON t.v = u.v LIMIT 10").await;
    assert_eq!(exchanges(&joined), (2, 0), "{joined}");
    check_has(stage_of(&joined, "HashJoinExec"), &["fetch=10"], &joined);
    for table in ["table=t,", "table=u,"] {
        check_unbounded(stage_of(&joined, table), &joined);
    }
}

#[tokio::test]
async fn first_rows_that_are_joined_are_chosen_once_for_all_tasks() {
    for sql in [
        "SELECT u.s FROM (SELECT v FROM t LIMIT 10) AS l JOIN u ON l.v = u.v",
        "SELECT l.v, u.s FROM (SELECT v FROM t LIMIT 10) AS l CROSS JOIN u",
        "SELECT l.v, u.s FROM (SELECT v FROM t LIMIT 10) AS l JOIN u ON l.v < u.s",
        "SELECT s FROM u WHERE v IN (SELECT v FROM t LIMIT 10)",
    ] {
        let plan = plan(sql).await;
        assert_eq!(exchanges(&plan), (0, 1), "{sql}\n{plan}");
        // Where rows are read: so many of each task are enough.
        check_has(scan_of(&plan, "t"), &["limit=10"], &plan);
        // Where they are chosen, and from where they go to all.
        let chosen = stage_of(&plan, "CoalescePartitionsExec: fetch=10");
        check_has(chosen, &["1 task on", "BroadcastExec", "NetworkCoalesceExec from stage"], &plan);
        // Where they are joined.
        let joined = stage_of(&plan, "table=u,");
        check_has(joined, &["4 tasks on", "NetworkBroadcastExec from stage"], &plan);
        check_unbounded(joined, &plan);
    }
}
