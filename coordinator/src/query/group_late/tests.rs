//! Where rows are grouped once, and that they are grouped right.

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use datafusion::common::stats::Precision;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::query::group_once::GroupOnce;
use crate::query::told::Told;

const PARTITIONS: usize = 3;

/// A session with a table `t` of so many rows in three partitions, and so many distinct values in each
/// of its columns. Of column `n` three quarters are NULL.
fn context(has_rule: bool, rows: usize, distinct: Precision<usize>) -> SessionContext {
    let config =
        SessionConfig::new().with_target_partitions(PARTITIONS).with_option_extension(ShoalConfig::default());
    let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
    let rules = state.physical_optimizers().to_vec();
    let rules = if has_rule { GroupOnce::among(GroupLate::among(rules)) } else { rules };
    let state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules).build();
    let fields = ["a", "b", "x", "n"].map(|name| Field::new(name, DataType::Int64, true));
    let schema: SchemaRef = Arc::new(Schema::new(fields.to_vec()));
    let part = |part: usize| {
        let numbers = || (part * rows / PARTITIONS..(part + 1) * rows / PARTITIONS).map(|row| row as i64);
        let column = |values: i64| {
            Arc::new(
                numbers().map(|row| (row % 11 > 0).then_some(row * 7919 % values)).collect::<Int64Array>(),
            )
        };
        let seldom = numbers().map(|row| (row % 4 == 0).then_some(row)).collect::<Int64Array>();
        let columns = vec![column(97) as _, column(89) as _, column(5) as _, Arc::new(seldom) as _];
        vec![RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()]
    };
    let rows = MemTable::try_new(Arc::clone(&schema), (0..PARTITIONS).map(part).collect()).unwrap();
    let context = SessionContext::new_with_state(state);
    context.register_table("t", Arc::new(Told { rows, distinct, number_max: None })).unwrap();
    context
}

/// The plan, and the rows.
async fn run(context: &SessionContext, sql: &str) -> (String, String) {
    let frame = context.sql(sql).await.unwrap();
    let plan = frame.clone().create_physical_plan().await.unwrap();
    let rows = frame.collect().await.unwrap();
    (displayable(plan.as_ref()).indent(false).to_string(), pretty_format_batches(&rows).unwrap().to_string())
}

const ROWS: usize = 3000;
/// Two columns of so many have four times as many values together as there are rows.
const MANY: usize = 110;
const BY_TWO: &str = "SELECT b, a, sum(x), count(*) FROM t GROUP BY b, a ORDER BY b, a";

fn is_grouped_twice(plan: &str) -> bool {
    assert_ne!(plan.contains("mode=Partial"), plan.contains("mode=SinglePartitioned"), "{plan}");
    assert_eq!(plan.contains("mode=Partial"), plan.contains("mode=FinalPartitioned"), "{plan}");
    plan.contains("mode=Partial")
}

#[tokio::test]
async fn rows_that_are_nearly_all_groups_are_grouped_once() {
    for sql in [
        BY_TWO,
        "SELECT DISTINCT a, b FROM t ORDER BY a, b",
        "SELECT b, a, max(x) FILTER (WHERE x > 2), avg(n) FROM t WHERE a < 50 GROUP BY b, a ORDER BY b, a",
        "SELECT t.b, u.a, sum(u.x) FROM t JOIN t AS u ON t.n = u.n GROUP BY t.b, u.a ORDER BY t.b, u.a",
        "SELECT b, a, sum(x) AS s FROM t GROUP BY b, a HAVING sum(x) > 30 ORDER BY s DESC, b, a LIMIT 7",
        "SELECT b, a, array_agg(x ORDER BY x) FROM t GROUP BY b, a ORDER BY b, a",
    ] {
        let (before, expected) = run(&context(false, ROWS, Precision::Inexact(MANY)), sql).await;
        let (after, rows) = run(&context(true, ROWS, Precision::Inexact(MANY)), sql).await;
        assert!(is_grouped_twice(&before), "{sql}\n{before}");
        assert!(!is_grouped_twice(&after), "{sql}\n{after}");
        assert_eq!(rows, expected, "{sql}\n{after}");
        assert!(rows.lines().count() > 10, "{sql}\n{rows}");
    }
}

#[tokio::test]
async fn groups_of_groups_are_made_once_each() {
    // 110 values of `a` are too few for rows to be dealt by it.
    for (distinct, deals) in [(MANY, 2), (10_000, 1)] {
        let sql = "SELECT a, count(DISTINCT b) FROM t GROUP BY a ORDER BY a";
        let (before, expected) = run(&context(false, ROWS, Precision::Inexact(distinct)), sql).await;
        let (after, rows) = run(&context(true, ROWS, Precision::Inexact(distinct)), sql).await;
        assert_eq!(before.matches("partitioning=Hash").count(), 2, "{before}");
        assert_eq!(after.matches("partitioning=Hash").count(), deals, "{after}");
        let inner = after.lines().rfind(|line| line.contains("AggregateExec")).unwrap();
        assert!(inner.contains("mode=SinglePartitioned, gby=[a@0 as a, b@1 as alias1]"), "{after}");
        assert_eq!(rows, expected, "{after}");
    }
}

#[tokio::test]
async fn rows_of_few_groups_or_of_nobody_knows_how_many_are_grouped_twice() {
    for distinct in [Precision::Inexact(MANY - 1), Precision::Absent] {
        let (plan, _) = run(&context(true, ROWS, distinct), BY_TWO).await;
        assert!(is_grouped_twice(&plan), "{distinct:?}\n{plan}");
    }
    // One column alone has too few, a third one enough of them.
    let (plan, _) =
        run(&context(true, ROWS, Precision::Inexact(MANY)), "SELECT a, sum(x) FROM t GROUP BY a").await;
    assert!(is_grouped_twice(&plan), "{plan}");
    let by_three = "SELECT a, b, x FROM t GROUP BY a, b, x";
    let (plan, _) = run(&context(true, ROWS, Precision::Inexact(24)), by_three).await;
    assert!(!is_grouped_twice(&plan), "{plan}");
    // What is computed has nobody knows how many.
    let computed = "SELECT a + 1, b, sum(x) FROM t GROUP BY a + 1, b";
    let (plan, _) = run(&context(true, ROWS, Precision::Inexact(MANY)), computed).await;
    assert!(is_grouped_twice(&plan), "{plan}");
}

#[tokio::test]
async fn rows_of_which_many_lack_a_value_are_grouped_twice() {
    let sql = "SELECT a, n, sum(x) FROM t GROUP BY a, n";
    let (plan, _) = run(&context(true, ROWS, Precision::Inexact(MANY)), sql).await;
    assert!(is_grouped_twice(&plan), "{plan}");
}

#[tokio::test]
async fn of_a_large_table_it_is_found_out_while_rows_are_grouped() {
    // Also where few of its rows are thought to be left.
    let filtered = "SELECT b, a, sum(x) FROM t WHERE x = 4 GROUP BY b, a";
    for (rows, is_large) in [(ROWS_MAX, false), (ROWS_MAX + 1, true)] {
        let context = context(true, rows, Precision::Inexact(rows));
        for sql in [BY_TWO, filtered] {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            let plan = displayable(plan.as_ref()).indent(false).to_string();
            assert_eq!(is_grouped_twice(&plan), is_large, "{sql}\n{plan}");
        }
    }
}

#[tokio::test]
async fn a_session_can_have_them_grouped_twice() {
    let context = context(true, ROWS, Precision::Inexact(MANY));
    context.sql("SET shoal.group_late = off").await.unwrap().collect().await.unwrap();
    let (plan, _) = run(&context, BY_TWO).await;
    assert!(is_grouped_twice(&plan), "{plan}");
}

#[tokio::test]
async fn groups_of_several_sets_are_left_alone() {
    let sql = "SELECT a, b, count(*) FROM t GROUP BY ROLLUP (a, b) ORDER BY a, b, 3";
    let (_, expected) = run(&context(false, ROWS, Precision::Inexact(MANY)), sql).await;
    let (plan, rows) = run(&context(true, ROWS, Precision::Inexact(MANY)), sql).await;
    assert!(is_grouped_twice(&plan), "{plan}");
    assert_eq!(rows, expected);
}
