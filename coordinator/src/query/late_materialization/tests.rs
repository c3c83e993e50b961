use arrow::datatypes::{DataType, Field, Schema};
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr, lit};
use datafusion::physical_plan::displayable;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::{SessionConfig, SessionContext};
use shoal_data::Table;
use shoal_proto::TableId;

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};
use crate::query::ShardTable;

/// The plan of a query over a table `t` of numbers `a` and `c`, a text `b` and a struct `s`.
async fn planned(sql: &str) -> Arc<dyn ExecutionPlan> {
    let config = SessionConfig::new().with_option_extension(ShoalConfig::default());
    let context = SessionContext::new_with_config(config);
    let id = TableId(1);
    let nested = vec![Field::new("x", DataType::Int64, true)];
    let columns = Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("b", DataType::Utf8, true),
        Field::new("c", DataType::Int64, true),
        Field::new("s", DataType::Struct(nested.into()), true),
    ]));
    let mut made = Table { columns, ..table(id, "t") };
    made.segments = (0..4).map(|number| Arc::new(segment(id, number % 2, "w1"))).collect();
    let provider = ShardTable::new(Arc::new(TableFacts::new(Arc::new(made))));
    context.register_table("t", Arc::new(provider)).unwrap();
    let state = SessionStateBuilder::new_from_existing(context.state()).build();
    let logical = state.create_logical_plan(sql).await.unwrap();
    let logical = state.optimize(&logical).unwrap();
    DefaultPhysicalPlanner::default().create_physical_plan(&logical, &state).await.unwrap()
}

fn made_late(plan: &Arc<dyn ExecutionPlan>, setting: bool) -> Arc<dyn ExecutionPlan> {
    let mut options = ConfigOptions::new();
    options.extensions.insert(ShoalConfig { late_materialization: setting, ..ShoalConfig::default() });
    LateMaterialization.optimize(Arc::clone(plan), &options).unwrap()
}

/// How many scans a plan has, and how many of these evaluate their filters while they decode.
fn scans(plan: &Arc<dyn ExecutionPlan>) -> (usize, usize) {
    let (mut all, mut late) = (0, 0);
    plan.exists(|node| {
        if let Some(scan) = shard_scan(node) {
            let source = scan.file_source().downcast_ref::<ParquetSource>().unwrap();
            all += 1;
            late += usize::from(source.table_parquet_options().global.pushdown_filters);
        }
        Ok(false)
    })
    .unwrap();
    (all, late)
}

async fn check(sql: &str, expected: (usize, usize)) {
    let plan = planned(sql).await;
    let before = displayable(plan.as_ref()).indent(true).to_string();
    let late = made_late(&plan, true);
    assert_eq!(scans(&late), expected, "{sql}\n{before}");
    // No operator comes or goes.
    assert_eq!(displayable(late.as_ref()).indent(true).to_string(), before, "{sql}");
    assert_eq!(scans(&made_late(&plan, false)), (expected.0, 0), "{sql}");
}

#[tokio::test]
async fn filters_of_plain_columns_are_evaluated_while_others_are_not_decoded_yet() {
    for sql in [
        "SELECT b, c FROM t WHERE a > 5",
        "SELECT * FROM t WHERE a > 5 AND b LIKE '%x%'",
        "SELECT sum(c) FROM t WHERE upper(b) = 'X' OR a IS NULL",
        "SELECT c FROM t WHERE a IN (1, 2, 3, 4, 5) AND CASE WHEN a > 3 THEN a ELSE 7 END < 9",
        "SELECT s FROM t WHERE CAST(b AS BIGINT) = 3",
    ] {
        check(sql, (1, 1)).await;
    }
    // Each scan for itself.
    check("SELECT b FROM t WHERE a > 5 UNION ALL SELECT b FROM t", (2, 1)).await;
}

#[tokio::test]
async fn a_scan_of_the_columns_of_its_filter_alone_stays_as_it_is() {
    for sql in ["SELECT a FROM t WHERE a > 5", "SELECT count(*) FROM t WHERE a > 5 AND b <> 'x'"] {
        check(sql, (1, 0)).await;
    }
}

/// The filters that scans evaluate while they decode.
fn evaluated(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut filters = Vec::new();
    plan.exists(|node| {
        let source = shard_scan(node).and_then(|scan| scan.file_source().downcast_ref::<ParquetSource>());
        if let Some(source) = source.filter(|source| source.table_parquet_options().global.pushdown_filters) {
            filters.extend(source.filter().map(|filter| filter.to_string()));
        }
        Ok(false)
    })
    .unwrap();
    filters
}

#[tokio::test]
async fn filters_that_may_mean_something_else_there_stay_above() {
    for sql in [
        // Evaluated twice, half of the half would be left.
        "SELECT b FROM t WHERE a > 5 AND random() < 0.5",
        "SELECT b FROM t WHERE s['x'] > 5",
        // There is none.
        "SELECT b FROM t",
        "SELECT b FROM t LIMIT 3",
    ] {
        let evaluated = evaluated(&made_late(&planned(sql).await, true));
        assert!(
            evaluated.iter().all(|filter| !filter.contains("random") && !filter.contains("get_field")),
            "{sql}\n{evaluated:?}"
        );
    }
}

#[test]
fn what_is_not_known_is_not_plain() {
    let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
    let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new("a", 0));
    assert!(is_plain_filter(&column, &schema));
    let elsewhere: Arc<dyn PhysicalExpr> = Arc::new(Column::new("a", 1));
    assert!(!is_plain_filter(&elsewhere, &schema));
    let told: Arc<dyn PhysicalExpr> = Arc::new(DynamicFilterPhysicalExpr::new(vec![column], lit(true)));
    assert!(!is_plain_filter(&told, &schema));
}

#[tokio::test]
async fn what_is_told_while_a_query_runs_is_not_evaluated_by_row() {
    let plan = planned("SELECT b, a FROM t WHERE c > 5 ORDER BY a LIMIT 3").await;
    let text = displayable(plan.as_ref()).indent(true).to_string();
    assert!(text.contains("DynamicFilter"), "{text}");
    assert_eq!(scans(&made_late(&plan, true)), (1, 0), "{text}");
}
