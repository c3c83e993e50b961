//! Which share filters are taken to leave, and what follows for joins.

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::query::told::Told;

/// A session with a table `t` of 2,000 rows of which each column is said to have so many distinct values.
fn context(has_rule: bool, distinct: Precision<usize>) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(1);
    let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
    let rules = state.physical_optimizers().to_vec();
    let rules = if has_rule { FilterShare::among(rules) } else { rules };
    let state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules).build();
    let fields = [("k", DataType::Int64), ("text", DataType::Utf8View), ("other", DataType::Utf8View)];
    let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
    let schema: SchemaRef = Arc::new(Schema::new(fields.to_vec()));
    let text =
        |values: i64| (0..2000).map(|row| Some(format!("v{}", row % values))).collect::<StringViewArray>();
    let numbers: Int64Array = (0..2000).collect();
    let columns = vec![Arc::new(numbers) as _, Arc::new(text(50)) as _, Arc::new(text(7)) as _];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let context = SessionContext::new_with_state(state);
    let rows = MemTable::try_new(schema, vec![vec![batch]]).unwrap();
    context.register_table("t", Arc::new(Told { rows, distinct, number_max: Some(1999) })).unwrap();
    context
}

/// The percentage that the filter in the plan of a condition is taken to leave.
async fn percent(context: &SessionContext, condition: &str) -> u8 {
    let frame = context.sql(&format!("SELECT k FROM t WHERE {condition}")).await.unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    let mut percent = None;
    plan.apply(|node| {
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            percent = Some(filter.default_selectivity());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    percent.unwrap_or_else(|| panic!("no filter: {}", displayable(plan.as_ref()).indent(false)))
}

#[tokio::test]
async fn one_value_of_many_leaves_little() {
    let context = context(true, Precision::Inexact(50));
    for (condition, expected) in [
        ("text = 'v1'", 2),
        ("'v1' = text", 2),
        ("text = 'v1' AND other = 'v2'", 1),
        ("text <> 'v1'", 98),
        ("text IN ('v1', 'v2', 'v3', 'v4', 'v5')", 10),
        ("text NOT IN ('v1', 'v2', 'v3', 'v4', 'v5')", 90),
        ("text = 'v1' OR other = 'v2'", 4),
        // What nothing is known of leaves a fifth.
        ("text LIKE '%1%'", 20),
        ("text NOT LIKE '%1%'", 80),
        ("text = other", 20),
        ("text > 'v1'", 20),
        ("text LIKE '%1%' AND other LIKE '%1%'", 20),
        ("text LIKE '%1%' AND other IS NOT NULL AND text IS NOT NULL", 20),
        ("text = 'v1' OR other IS NULL", 2),
        // A quarter of the numbers are less than 500.
        ("k < 500 AND text IN ('v1', 'v2', 'v3', 'v4')", 2),
        ("k < 500 OR k >= 1750", 34),
        ("text LIKE '%1%' AND other IN ('v1', 'v2', 'v3', 'v4', 'v5')", 2),
    ] {
        assert_eq!(percent(&context, condition).await, expected, "{condition}");
    }
}

#[tokio::test]
async fn values_that_nobody_counted_leave_a_fifth() {
    let context = context(true, Precision::Absent);
    for condition in ["text = 'v1'", "text IN ('v1', 'v2', 'v3', 'v4', 'v5')"] {
        assert_eq!(percent(&context, condition).await, 20, "{condition}");
    }
}

/// All rows of one text, joined with groups of all rows.
const JOINED: &str = "SELECT count(*), sum(n) FROM (SELECT k FROM t WHERE text = 'v1') AS some \
    JOIN (SELECT other, max(k) AS k, count(*) AS n FROM t GROUP BY other) AS groups ON some.k = groups.k";

#[tokio::test]
async fn the_side_of_few_rows_is_hashed() {
    // Of seven groups nobody knows that they are few, of one text in a thousand that it is.
    let many = Precision::Inexact(150);
    let mut answers = Vec::new();
    for (has_rule, hashes_filtered) in [(false, false), (true, true)] {
        let context = context(has_rule, many);
        let frame = context.sql(JOINED).await.unwrap();
        let plan = frame.clone().create_physical_plan().await.unwrap();
        let text = displayable(plan.as_ref()).indent(false).to_string();
        let below = text.split_once("HashJoinExec").unwrap().1;
        let (filtered, grouped) = (below.find("FilterExec").unwrap(), below.find("AggregateExec").unwrap());
        assert_eq!(filtered < grouped, hashes_filtered, "{text}");
        answers.push(pretty_format_batches(&frame.collect().await.unwrap()).unwrap().to_string());
    }
    assert_eq!(answers[0], answers[1]);
}
