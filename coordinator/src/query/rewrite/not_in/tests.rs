//! Tests of which `NOT IN` becomes a plain anti join.

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use shoal_data::{ColumnStatistics, Segment, Table};
use shoal_proto::TableId;

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};
use crate::query::{ShardTable, as_meant};

/// A table of `a` and `b`, which may be NULL by their declaration, and `c`, which may
/// not; in each segment so many are NULL.
fn register(context: &SessionContext, id: u64, name: &str, nulls: &[[u64; 2]]) {
    let id = TableId(id);
    let field = |name: &str, is_nullable: bool| Field::new(name, DataType::Int64, is_nullable);
    let columns = Arc::new(Schema::new(vec![field("a", true), field("b", true), field("c", false)]));
    let segments = nulls.iter().zip(0_u32..).map(|(nulls, number)| {
        let of_column = |nulls| ColumnStatistics { nulls, ..ColumnStatistics::default() };
        let columns = [nulls[0], nulls[1], 0].map(of_column).to_vec();
        Arc::new(Segment { columns: columns.into(), ..segment(id, number % 2, "w1") })
    });
    let made = Table { columns, segments: segments.collect(), ..table(id, name) };
    let provider = ShardTable::new(Arc::new(TableFacts::new(Arc::new(made))));
    context.register_table(name, Arc::new(provider)).unwrap();
}

fn context() -> SessionContext {
    let context = SessionContext::new();
    // NULLs are in `b` of both, and in one segment of two.
    register(&context, 1, "t", &[[0, 0], [0, 3]]);
    register(&context, 2, "u", &[[0, 1], [0, 0]]);
    register(&context, 3, "nothing", &[]);
    // Of the second segment nothing is known.
    let unknown = table(TableId(4), "unknown");
    let mut known = vec![segment(unknown.id, 0, "w1"), segment(unknown.id, 1, "w1")];
    known[1].columns = Vec::new().into();
    let unknown = Table { segments: known.into_iter().map(Arc::new).collect(), ..unknown };
    let provider = ShardTable::new(Arc::new(TableFacts::new(Arc::new(unknown))));
    context.register_table("unknown", Arc::new(provider)).unwrap();
    context
}

/// The optimised plan of a query, as a statement gets it.
async fn plan(context: &SessionContext, sql: &str) -> String {
    let state = context.state();
    let plan = as_meant(state.create_logical_plan(sql).await.unwrap()).unwrap();
    state.optimize(&plan).unwrap().display_indent().to_string()
}

#[tokio::test]
async fn columns_without_nulls_need_no_join_that_knows_of_them() {
    let context = context();
    for sql in [
        "SELECT a FROM t WHERE a NOT IN (SELECT a FROM u)",
        "SELECT a FROM t WHERE NOT a IN (SELECT a FROM u)",
        "SELECT a FROM t WHERE b > 3 AND a NOT IN (SELECT a FROM t) AND c < 9",
        "SELECT a FROM t WHERE a NOT IN (SELECT c FROM u WHERE b = 1)",
        "SELECT c FROM t WHERE c NOT IN (SELECT a FROM u)",
        "SELECT a FROM t WHERE a NOT IN (SELECT a FROM nothing)",
        "SELECT x FROM (SELECT a AS x FROM t WHERE b > 1) s WHERE x NOT IN (SELECT y FROM (SELECT DISTINCT a AS y FROM u) r)",
        "SELECT t.a FROM t JOIN u ON t.c = u.c WHERE u.a NOT IN (SELECT a FROM t)",
        "SELECT t.a FROM t LEFT JOIN u ON t.c = u.c WHERE t.a NOT IN (SELECT a FROM u)",
        "SELECT a FROM t WHERE a NOT IN (SELECT a FROM u) AND a NOT IN (SELECT c FROM u)",
    ] {
        let plan = plan(&context, sql).await;
        assert!(plan.contains("LeftAnti Join:") && !plan.contains("null_aware"), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn a_null_that_may_be_there_counts() {
    let context = context();
    for sql in [
        "SELECT a FROM t WHERE a NOT IN (SELECT b FROM u)",
        "SELECT a FROM t WHERE b NOT IN (SELECT a FROM u)",
        "SELECT a FROM t WHERE b NOT IN (SELECT a FROM nothing)",
        // Filled up, or worked out.
        "SELECT t.a FROM t LEFT JOIN u ON t.c = u.c WHERE u.a NOT IN (SELECT a FROM t)",
        "SELECT t.a FROM t FULL JOIN u ON t.c = u.c WHERE t.a NOT IN (SELECT a FROM u)",
        "SELECT a FROM t WHERE a NOT IN (SELECT nullif(a, 1) FROM u)",
        "SELECT a FROM t WHERE a NOT IN (SELECT max(a) FROM u)",
        "SELECT a FROM t WHERE a NOT IN (SELECT a FROM u UNION ALL SELECT b FROM u)",
        // Not known.
        "SELECT a FROM t WHERE a NOT IN (SELECT a FROM unknown)",
        "SELECT a FROM unknown WHERE a NOT IN (SELECT a FROM t)",
    ] {
        let plan = plan(&context, sql).await;
        assert!(plan.contains("null_aware"), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn what_is_no_conjunct_stays_as_it_is() {
    let context = context();
    for sql in [
        "SELECT a FROM t WHERE a NOT IN (SELECT a FROM u) OR c = 1",
        "SELECT a FROM t WHERE (a NOT IN (SELECT a FROM u)) IS NULL",
        "SELECT a FROM t WHERE a NOT IN (SELECT u.a FROM u WHERE u.c = t.c)",
    ] {
        let plan = plan(&context, sql).await;
        assert!(!plan.contains("__shoal_not_in"), "{sql}\n{plan}");
    }
}
