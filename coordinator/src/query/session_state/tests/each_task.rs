//! Little tables that are on all workers: where each task of a join reads them itself, and where one
//! task does and sends them to all.

use super::*;
use crate::query::planned_reads::PlannedReads;

/// What stands beside a scan that each task reads.
const BY_EACH: &str = "read by each task";

/// A table of `k`, `v` and `s` in so many shards of a segment each, all of them on each of these workers.
fn on_workers(id: u64, name: &str, shards: u32, bytes: u64, workers: &[&str]) -> Arc<ShardTable> {
    let mut made = Table { columns: numbers(), ..table(TableId(id), name) };
    made.layout.shards = shards;
    made.layout.shard_key.clear();
    let replicas: Vec<WorkerId> = workers.iter().map(|worker| WorkerId::from(*worker)).collect();
    let columns = vec![ColumnStatistics::default(); made.columns.fields().len()];
    let segments = (0..shards).map(|shard| {
        let columns = columns.clone().into();
        let replicas = replicas.clone();
        Arc::new(Segment { columns, rows: 100, bytes, replicas, ..segment(made.id, shard, workers[0]) })
    });
    let segments = segments.collect();
    let placement = (0..shards).map(|_| replicas.clone()).collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(Table { segments, placement, ..made })))))
}

const KIB: u64 = 1024;

fn over() -> Vec<Arc<ShardTable>> {
    vec![
        of_numbers(1, "t", 1_000_000),
        on_workers(2, "nation", 1, KIB, &WORKERS),
        on_workers(3, "region", 2, KIB, &WORKERS),
        on_workers(4, "on_three", 1, KIB, &WORKERS[..3]),
        on_workers(5, "in_many", 8, KIB, &WORKERS),
        on_workers(6, "large", 1, 4 * KIB * KIB, &WORKERS),
    ]
}

/// The plan of a query, with as many exchanges by hash and to all tasks, and scans that each task reads.
async fn check(settings: &[(&str, &str)], sql: &str, expected: ((usize, usize), usize)) -> String {
    let plan = plan_over(over(), settings, sql).await;
    assert!(plan.contains("4 tasks on"), "{sql}\n{plan}");
    let by_each = plan.lines().filter(|line| line.contains(BY_EACH)).count();
    assert_eq!((exchanges(&plan), by_each), expected, "{sql}\n{plan}");
    plan
}

#[tokio::test]
async fn each_task_of_a_join_reads_a_little_table_that_all_workers_have() {
    let here = ((0, 0), 1);
    for sql in [
        "SELECT t.s, nation.s FROM t JOIN nation ON t.v = nation.k",
        "SELECT t.s, nation.s FROM t JOIN nation ON t.v = nation.k AND t.s > nation.s",
        "SELECT t.s, n.s FROM t JOIN (SELECT k + 1 AS l, s FROM nation WHERE v > 3) n ON t.v = n.l",
        "SELECT t.s, nation.s FROM t LEFT JOIN nation ON t.v = nation.k",
        "SELECT t.s FROM t WHERE EXISTS (SELECT 1 FROM nation WHERE nation.k = t.v)",
        "SELECT t.s FROM t WHERE NOT EXISTS (SELECT 1 FROM nation WHERE nation.k = t.v)",
        "SELECT t.s, region.s FROM t JOIN region ON t.v = region.k",
    ] {
        let plan = check(&[], sql, here).await;
        let stage = stage_of(&plan, BY_EACH);
        assert!(stage.contains("HashJoinExec") && stage.contains("table=t,"), "{plan}");
    }
    let both = "SELECT t.s, nation.s, region.s FROM t LEFT JOIN nation ON t.v = nation.k \
         LEFT JOIN region ON t.s = region.k";
    check(&[], both, ((0, 0), 2)).await;
    // What is made of the rows goes through an exchange as before.
    check(&[], "SELECT n.s, count(*) FROM t JOIN nation n ON t.v = n.k GROUP BY n.s", ((1, 0), 1)).await;
}

#[tokio::test]
async fn each_segment_is_expected_from_each_task_that_reads_it() {
    let sql = "SELECT t.s, region.s FROM t JOIN region ON t.v = region.k";
    let planned = async |value| {
        let set = |options: &mut ConfigOptions| options.set("shoal.read_in_each_task", value).unwrap();
        let (planned, _) = planned_over(over(), sql, set).await;
        let reads = PlannedReads::of(&planned.plan).unwrap();
        reads.tables().map(|(table, segments)| (table.0, segments)).collect::<Vec<_>>()
    };
    assert_eq!(planned("on").await, [(1, 8), (3, 2 * 4)]);
    assert_eq!(planned("off").await, [(1, 8), (3, 2)]);
}

#[tokio::test]
async fn what_is_not_everywhere_or_not_little_is_sent_to_all_tasks() {
    let sent = ((0, 1), 0);
    let join = |table: &str| format!("SELECT t.s, o.s, o.v FROM t JOIN {table} o ON t.v = o.k");
    check(&[], &join("on_three"), sent).await;
    check(&[], &join("in_many"), sent).await;
    let collected = ("datafusion.optimizer.hash_join_single_partition_threshold", "10000000");
    check(&[collected], &join("large"), sent).await;
    check(&[("shoal.read_in_each_task", "off")], &join("nation"), sent).await;
}

#[tokio::test]
async fn what_could_be_another_thing_in_each_task_is_sent_to_all() {
    for side in [
        "SELECT k, s FROM nation LIMIT 3",
        "SELECT k, s FROM nation ORDER BY v LIMIT 3",
        "SELECT k, s FROM nation WHERE random() < 0.5",
        "SELECT k, random() AS s FROM nation",
        "SELECT k, s FROM nation UNION ALL SELECT k, s FROM region",
    ] {
        let sql = format!("SELECT t.s, n.s FROM t JOIN ({side}) n ON t.v = n.k");
        let plan = plan_over(over(), &[], &sql).await;
        assert!(plan.contains("4 tasks on") && !plan.contains(BY_EACH), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn a_table_whose_rows_are_given_is_not_read_by_each_task() {
    for sql in [
        "SELECT t.s, nation.s FROM nation LEFT JOIN t ON t.v = nation.k",
        "SELECT t.s, nation.s FROM nation FULL JOIN t ON t.v = nation.k",
        "SELECT s FROM nation WHERE EXISTS (SELECT 1 FROM t WHERE t.v = nation.k)",
        "SELECT s FROM nation WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.v = nation.k)",
        "SELECT k, count(*) FROM nation GROUP BY k UNION ALL SELECT v, count(*) FROM t GROUP BY v",
        "SELECT k FROM nation UNION ALL SELECT v FROM t",
    ] {
        let plan = plan_over(over(), &[], sql).await;
        assert!(plan.contains("4 tasks on") && !plan.contains(BY_EACH), "{sql}\n{plan}");
    }
}
