//! How often rows of groups of groups are dealt, and that they are counted right.

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::query::told::{Told, run};

/// A session with a table `t` of 3,000 rows in three partitions.
fn context(has_rule: bool, distinct: Precision<usize>) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(3).with_option_extension(ShoalConfig::default());
    let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
    let rules = state.physical_optimizers().to_vec();
    let rules = if has_rule { GroupOnce::among(rules) } else { rules };
    let state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules).build();
    let fields = ["a", "b", "x"].map(|name| Field::new(name, DataType::Int64, true));
    let schema: SchemaRef = Arc::new(Schema::new(fields.to_vec()));
    let part = |part: i64| {
        let column = |values: i64| {
            let value = |row: i64| (row % 11 > 0).then_some((row * 7919 + part * 31) % values);
            Arc::new((0..1000).map(value).collect::<Int64Array>()) as _
        };
        vec![RecordBatch::try_new(Arc::clone(&schema), vec![column(7), column(13), column(5)]).unwrap()]
    };
    let rows = MemTable::try_new(Arc::clone(&schema), (0..3).map(part).collect()).unwrap();
    let context = SessionContext::new_with_state(state);
    context.register_table("t", Arc::new(Told { rows, distinct, number_max: None })).unwrap();
    context
}

const MANY: Precision<usize> = Precision::Inexact(GROUPS_MIN);
const BY_TWO: &str = "SELECT b, a, count(DISTINCT x) FROM t GROUP BY b, a ORDER BY b, a";

#[tokio::test]
async fn rows_of_many_groups_are_dealt_once() {
    for sql in [
        BY_TWO,
        "SELECT a, count(DISTINCT x) FROM t GROUP BY a ORDER BY a",
        "SELECT a, count(DISTINCT x), max(x) FROM t GROUP BY a ORDER BY a",
        "SELECT b, count(*) FROM (SELECT a, b, x FROM t GROUP BY a, b, x) GROUP BY b ORDER BY b",
        "SELECT x, b, sum(n) FROM (SELECT a, b, x, count(*) AS n FROM t GROUP BY a, b, x) GROUP BY x, b ORDER BY x, b",
    ] {
        let (before, expected) = run(&context(false, MANY), sql).await;
        let (after, rows) = run(&context(true, MANY), sql).await;
        assert_eq!(before.matches("partitioning=Hash").count(), 2, "{sql}\n{before}");
        assert_eq!(after.matches("partitioning=Hash").count(), 1, "{sql}\n{after}");
        assert_eq!(rows, expected, "{sql}\n{after}");
    }
}

#[tokio::test]
async fn of_three_levels_of_groups_rows_are_dealt_by_the_outermost() {
    let sql = "SELECT a, sum(c) FROM (SELECT a, b, count(DISTINCT x) AS c FROM t GROUP BY a, b) GROUP BY a ORDER BY a";
    let (before, expected) = run(&context(false, MANY), sql).await;
    let (after, rows) = run(&context(true, MANY), sql).await;
    assert_eq!(before.matches("partitioning=Hash").count(), 3, "{before}");
    assert_eq!(after.matches("partitioning=Hash").count(), 1, "{after}");
    assert!(after.contains("partitioning=Hash([a@0], 3)"), "{after}");
    assert_eq!(rows, expected, "{after}");
}

#[tokio::test]
async fn a_session_can_have_them_dealt_twice() {
    let context = context(true, MANY);
    context.sql("SET shoal.group_once = off").await.unwrap().collect().await.unwrap();
    let (plan, _) = run(&context, BY_TWO).await;
    assert_eq!(plan.matches("partitioning=Hash").count(), 2, "{plan}");
}

#[tokio::test]
async fn rows_are_dealt_by_the_outer_groups() {
    let (plan, _) = run(&context(true, MANY), BY_TWO).await;
    assert!(plan.contains("partitioning=Hash([b@0, a@1], 3)"), "{plan}");
    assert!(plan.contains("mode=SinglePartitioned, gby=[b@0 as b, a@1 as a]"), "{plan}");
}

#[tokio::test]
async fn rows_of_few_groups_or_of_nobody_knows_how_many_are_dealt_twice() {
    for distinct in [Precision::Inexact(90), Precision::Absent] {
        let (plan, _) = run(&context(true, distinct), BY_TWO).await;
        assert_eq!(plan.matches("partitioning=Hash").count(), 2, "{distinct:?}\n{plan}");
    }
    // 91 by 91 are enough.
    let (plan, _) = run(&context(true, Precision::Inexact(91)), BY_TWO).await;
    assert_eq!(plan.matches("partitioning=Hash").count(), 1, "{plan}");
}

#[tokio::test]
async fn groups_of_what_is_counted_are_dealt_twice() {
    let sql =
        "SELECT n, count(*) FROM (SELECT a, b, count(*) AS n FROM t GROUP BY a, b) GROUP BY n ORDER BY n";
    let (_, expected) = run(&context(false, MANY), sql).await;
    let (plan, rows) = run(&context(true, MANY), sql).await;
    assert_eq!(plan.matches("partitioning=Hash").count(), 2, "{plan}");
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn groups_of_several_sets_are_left_alone() {
    let sql = "SELECT a, b, count(DISTINCT x) FROM t GROUP BY ROLLUP (a, b) ORDER BY a, b, 3";
    let (before, expected) = run(&context(false, MANY), sql).await;
    let (after, rows) = run(&context(true, MANY), sql).await;
    assert_eq!(after.matches("partitioning=Hash").count(), before.matches("partitioning=Hash").count());
    assert_eq!(rows, expected);
}
