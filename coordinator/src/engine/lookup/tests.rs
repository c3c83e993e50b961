//! Which plans take values late, and which are lookups.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use shoal_data::Table;
use shoal_proto::TableId;

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};
use crate::query::ShardTable;

/// Tables of four shards, by one column, by two and by none; and one of more
/// segments than lookups are in.
fn session() -> SessionContext {
    let context = SessionContext::new();
    let tables: [(&str, &[&str], usize); 4] =
        [("t", &["a"], 8), ("two", &["a", "b"], 8), ("none", &[], 8), ("many", &["a"], 4 * SEGMENTS_MAX + 1)];
    for (number, (name, key, segments)) in (1..).zip(tables) {
        let id = TableId(number);
        let columns = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Utf8, true),
            Field::new("c", DataType::Int64, true),
        ]));
        let mut made = Table { columns, ..table(id, name) };
        made.layout.shards = 4;
        made.layout.shard_key = key.iter().map(|&column| column.to_owned()).collect();
        made.segments = (0..segments).map(|_| Arc::new(segment(id, 0, "w1"))).collect();
        let provider = ShardTable::new(Arc::new(TableFacts::new(Arc::new(made))));
        context.register_table(name, Arc::new(provider)).unwrap();
    }
    context
}

/// The plan of a statement, as it is written and optimised.
async fn planned(sql: &str) -> (LogicalPlan, LogicalPlan) {
    let state = session().state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    let optimised = state.optimize(&plan).unwrap();
    (plan, optimised)
}

#[tokio::test]
async fn values_are_taken_late_where_they_are_compared_with_columns() {
    for sql in [
        "SELECT * FROM t WHERE a = $1",
        "SELECT b FROM t WHERE a = $1 AND c > $2 AND b = $3",
        "SELECT c FROM t AS x WHERE $1 = x.a AND c BETWEEN $2 AND $3",
        "SELECT a FROM t WHERE a = $1 AND c = $1",
        "SELECT count(*) FROM t WHERE a = $1",
        "SELECT a FROM t WHERE a = $1 ORDER BY c LIMIT 3",
    ] {
        let (plan, optimised) = planned(sql).await;
        assert!(takes_values_late(&plan, &optimised), "{sql}\n{}", optimised.display_indent());
    }
    for sql in [
        // The optimiser takes these for lists that have nothing in common.
        "SELECT * FROM t WHERE a IN ($1, $2, $3, $4) AND a IN ($5, $6, $7, $8)",
        "SELECT * FROM t WHERE a IN ($1, $2)",
        "SELECT * FROM t WHERE a = $1 OR a = $2",
        "SELECT * FROM t WHERE NOT (a = $1)",
        "SELECT * FROM t WHERE a = $1 + 1",
        "SELECT a + $1 FROM t",
        "SELECT * FROM (SELECT a + c AS d FROM t) WHERE d = $1",
        "SELECT * FROM t x JOIN two y ON x.a = y.a WHERE x.a = $1",
        "SELECT * FROM t WHERE a = $1 AND c = (SELECT max(c) FROM two)",
    ] {
        let (plan, optimised) = planned(sql).await;
        assert!(!takes_values_late(&plan, &optimised), "{sql}\n{}", optimised.display_indent());
    }
}

#[tokio::test]
async fn a_parameter_that_the_optimiser_removed_is_not_given_a_value_late() {
    let (plan, _) = planned("SELECT * FROM t WHERE a = $1 AND c = $2").await;
    let (_, without) = planned("SELECT * FROM t WHERE a = $1").await;
    assert!(!takes_values_late(&plan, &without));
}

#[tokio::test]
async fn a_lookup_names_the_whole_shard_key() {
    for sql in [
        "SELECT * FROM t WHERE a = $1",
        "SELECT b FROM t WHERE 5 = a AND c > 7",
        "SELECT * FROM two WHERE a = $1 AND b = $2",
    ] {
        let (_, optimised) = planned(sql).await;
        assert!(is_lookup(&optimised), "{sql}\n{}", optimised.display_indent());
    }
    for sql in [
        "SELECT * FROM t",
        "SELECT * FROM t WHERE a > $1",
        "SELECT * FROM t WHERE c = $1",
        "SELECT * FROM t WHERE a = 1 OR a = 2",
        "SELECT count(*) FROM t WHERE a = $1",
        "SELECT * FROM t WHERE a = $1 LIMIT 1",
        "SELECT * FROM two WHERE a = $1",
        "SELECT * FROM none WHERE a = $1",
        "SELECT * FROM many WHERE a = $1",
        "SELECT x.a FROM t x JOIN t y ON x.a = y.a WHERE x.a = $1",
        "SELECT upper(b) FROM t WHERE a = $1",
    ] {
        let (_, optimised) = planned(sql).await;
        assert!(!is_lookup(&optimised), "{sql}\n{}", optimised.display_indent());
    }
}

#[tokio::test]
async fn what_takes_long_to_plan_is_no_lookup() {
    let conditions: String = (0..EXPRESSIONS_MAX).map(|value| format!(" AND c <> {value}")).collect();
    let (_, optimised) = planned(&format!("SELECT * FROM t WHERE a = $1{conditions}")).await;
    assert!(!is_lookup(&optimised));
    let (_, optimised) =
        planned(&format!("SELECT * FROM t WHERE a = $1 AND b <> repeat('x', {LITERAL_BYTES_MAX})")).await;
    assert!(!is_lookup(&optimised), "a large value");
}

#[tokio::test]
async fn a_large_plan_is_not_little_however_little_is_left_of_it() {
    let same = "2, ".repeat(EXPRESSIONS_MAX);
    let (plan, optimised) = planned(&format!("SELECT * FROM t WHERE a = $1 AND 2 IN ({same}2)")).await;
    assert!(is_lookup(&optimised), "{}", optimised.display_indent());
    assert!(!is_little(&plan));
    let (plan, _) = planned("SELECT * FROM t WHERE a = $1 AND 2 IN (2, 2, 2)").await;
    assert!(is_little(&plan));
}
