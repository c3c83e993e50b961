//! Where rows are grouped once, and that they are grouped right.

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::query::group_once::GroupOnce;
use crate::query::told::{Told, run};

const PARTITIONS: usize = 3;
const ROWS: usize = 3000;
/// A sixteenth of the rows.
const MANY: usize = 187;

/// A session with a table `t` of so many rows in three partitions, which is said to have so many distinct values in
/// each of its columns. It has fewer: groups have rows in all partitions. Of column `n` three quarters are NULL.
fn context(has_rule: bool, rows: usize, distinct: usize) -> SessionContext {
    context_that_knows(has_rule, rows, Precision::Inexact(distinct))
}

fn context_that_knows(has_rule: bool, rows: usize, distinct: Precision<usize>) -> SessionContext {
    let config =
        SessionConfig::new().with_target_partitions(PARTITIONS).with_option_extension(ShoalConfig::default());
    let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
    let rules = state.physical_optimizers().to_vec();
    let rules = if has_rule { GroupOnce::among(GroupLate::among(rules)) } else { rules };
    let state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules).build();
    let mut fields = ["a", "b", "x", "n"].map(|name| Field::new(name, DataType::Int64, true)).to_vec();
    fields.push(Field::new("t", DataType::Utf8, true));
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let part = |part: usize| {
        let numbers = || (part * rows / PARTITIONS..(part + 1) * rows / PARTITIONS).map(|row| row as i64);
        let column = |values: i64, lacking: i64| {
            let value = |row: i64| (row % lacking > 0).then_some(row * 7919 % values);
            Arc::new(numbers().map(value).collect::<Int64Array>())
        };
        let seldom = numbers().map(|row| (row % 4 == 0).then_some(row)).collect::<Int64Array>();
        let texts = numbers().map(|row| Some(format!("text {}", row % 3))).collect::<StringArray>();
        let columns = vec![
            column(7, 101) as _,
            column(13, 103) as _,
            column(5, 107) as _,
            Arc::new(seldom) as _,
            Arc::new(texts) as _,
        ];
        vec![RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()]
    };
    let rows = MemTable::try_new(Arc::clone(&schema), (0..PARTITIONS).map(part).collect()).unwrap();
    let context = SessionContext::new_with_state(state);
    context.register_table("t", Arc::new(Told { rows, distinct, number_max: None })).unwrap();
    context
}

fn is_grouped_twice(plan: &str) -> bool {
    assert_ne!(plan.contains("mode=Partial"), plan.contains("mode=SinglePartitioned"), "{plan}");
    assert_eq!(plan.contains("mode=Partial"), plan.contains("mode=FinalPartitioned"), "{plan}");
    plan.contains("mode=Partial")
}

const BY_TWO: &str = "SELECT b, a, sum(x), count(*) FROM t GROUP BY b, a ORDER BY b, a";

#[tokio::test]
async fn rows_that_are_nearly_all_groups_are_grouped_once() {
    for sql in [
        BY_TWO,
        "SELECT DISTINCT a, b FROM t ORDER BY a, b",
        "SELECT b, a, max(x) FILTER (WHERE x > 2), avg(n) FROM t WHERE a <> 50 GROUP BY b, a ORDER BY b, a",
        "SELECT b, a, sum(x) AS s FROM t GROUP BY b, a HAVING sum(x) > 30 ORDER BY s DESC, b, a LIMIT 7",
        "SELECT t, b, sum(x) FROM t GROUP BY t, b ORDER BY t, b",
    ] {
        let (before, expected) = run(&context(false, ROWS, MANY), sql).await;
        let (after, rows) = run(&context(true, ROWS, MANY), sql).await;
        assert!(is_grouped_twice(&before), "{sql}\n{before}");
        assert!(!is_grouped_twice(&after), "{sql}\n{after}");
        assert_eq!(rows, expected, "{sql}\n{after}");
        assert!(rows.lines().count() > 10, "{sql}\n{rows}");
    }
}

#[tokio::test]
async fn groups_of_groups_are_made_once_each() {
    // Of the lesser number of values `a` has too few for rows to be dealt by it.
    for (distinct, deals) in [(MANY, 2), (10_000, 1)] {
        let sql = "SELECT a, count(DISTINCT b) FROM t GROUP BY a ORDER BY a";
        let (before, expected) = run(&context(false, ROWS, distinct), sql).await;
        let (after, rows) = run(&context(true, ROWS, distinct), sql).await;
        assert_eq!(before.matches("partitioning=Hash").count(), 2, "{before}");
        assert_eq!(after.matches("partitioning=Hash").count(), deals, "{after}");
        let inner = after.lines().rfind(|line| line.contains("AggregateExec")).unwrap();
        assert!(inner.contains("mode=SinglePartitioned, gby=[a@0 as a, b@1 as alias1]"), "{after}");
        assert_eq!(rows, expected, "{after}");
    }
}

#[tokio::test]
async fn rows_of_a_join_are_grouped_once_where_they_are_as_few() {
    let sql = "SELECT t.b, u.a, sum(u.x) FROM t JOIN t AS u ON t.n = u.n GROUP BY t.b, u.a ORDER BY t.b, u.a";
    let (_, expected) = run(&context(false, ROWS, ROWS), sql).await;
    for (distinct, is_twice) in [(ROWS, false), (MANY, true)] {
        let (plan, rows) = run(&context(true, ROWS, distinct), sql).await;
        assert_eq!(is_grouped_twice(&plan), is_twice, "{plan}");
        assert_eq!(rows, expected);
    }
}

#[tokio::test]
async fn rows_of_few_groups_or_of_nobody_knows_how_many_are_grouped_twice() {
    for distinct in [Precision::Inexact(MANY - 1), Precision::Absent] {
        let (plan, _) = run(&context_that_knows(true, ROWS, distinct), BY_TWO).await;
        assert!(is_grouped_twice(&plan), "{distinct:?}\n{plan}");
    }
    for sql in [
        // One column alone has too few.
        "SELECT a, sum(x) FROM t GROUP BY a",
        // Nobody knows how many values there are of what is computed.
        "SELECT a + 1, b, sum(x) FROM t GROUP BY a + 1, b",
        // Of many rows there is no value.
        "SELECT a, n, sum(x) FROM t GROUP BY a, n",
    ] {
        let (plan, _) = run(&context(true, ROWS, MANY), sql).await;
        assert!(is_grouped_twice(&plan), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn rows_that_come_in_an_order_or_have_long_values_are_grouped_twice() {
    for sql in [
        "SELECT b, a, array_agg(x ORDER BY x) FROM t GROUP BY b, a ORDER BY b, a",
        "SELECT b, a, max(t) FROM t GROUP BY b, a ORDER BY b, a",
    ] {
        let (_, expected) = run(&context(false, ROWS, MANY), sql).await;
        let (plan, rows) = run(&context(true, ROWS, MANY), sql).await;
        assert!(is_grouped_twice(&plan), "{sql}\n{plan}");
        assert_eq!(rows, expected);
    }
}

#[tokio::test]
async fn of_a_large_table_it_is_found_out_while_rows_are_grouped() {
    // Also where a part of its rows is thought to be left.
    let filtered = "SELECT b, a, sum(x) FROM t WHERE x % 5 = 4 GROUP BY b, a";
    for (rows, is_large) in [(ROWS_MAX, false), (ROWS_MAX + 1, true)] {
        let context = context(true, rows, rows);
        for sql in [BY_TWO, filtered] {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            let plan = displayable(plan.as_ref()).indent(false).to_string();
            assert_eq!(is_grouped_twice(&plan), is_large, "{sql}\n{plan}");
        }
    }
}

#[tokio::test]
async fn a_session_can_have_them_grouped_twice() {
    let context = context(true, ROWS, MANY);
    context.sql("SET shoal.group_late = off").await.unwrap().collect().await.unwrap();
    let (plan, _) = run(&context, BY_TWO).await;
    assert!(is_grouped_twice(&plan), "{plan}");
}

#[tokio::test]
async fn groups_of_several_sets_are_left_alone() {
    let sql = "SELECT a, b, count(*) FROM t GROUP BY ROLLUP (a, b) ORDER BY a, b, 3";
    let (_, expected) = run(&context(false, ROWS, MANY), sql).await;
    let (plan, rows) = run(&context(true, ROWS, MANY), sql).await;
    assert!(is_grouped_twice(&plan), "{plan}");
    assert_eq!(rows, expected);
}
