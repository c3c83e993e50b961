//! Tests over tables that only say what they have, and over such as have rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::datasource::MemTable;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;

mod answers;
mod orders;
mod tpch;

/// A table that says that it has other rows than it has.
#[derive(Debug)]
struct Told {
    rows: MemTable,
    statistics: Option<Statistics>,
}

#[async_trait]
impl TableProvider for Told {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.rows.scan(session, projection, filters, limit).await
    }

    fn statistics(&self) -> Option<Statistics> {
        self.statistics.clone()
    }
}

/// A table of numbers, with these rows. It says that it has `told` rows, and of its columns
/// that they have as many values as stands there.
fn told(columns: &[(&str, usize)], rows: &[Vec<Option<i64>>], told: Option<usize>) -> Arc<Told> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, _)| Field::new(*name, DataType::Int64, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = (0..columns.len()).map(|at| {
        let values: Int64Array = rows.iter().map(|row| row[at]).collect();
        Arc::new(values) as ArrayRef
    });
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays.collect()).unwrap();
    let statistics = told.map(|rows| Statistics {
        num_rows: Precision::Exact(rows),
        total_byte_size: Precision::Absent,
        column_statistics: columns
            .iter()
            .map(|(_, values)| ColumnStatistics {
                min_value: Precision::Exact(ScalarValue::Int64(Some(0))),
                max_value: Precision::Exact(ScalarValue::Int64(Some(*values as i64 - 1))),
                ..ColumnStatistics::new_unknown()
            })
            .collect(),
    });
    Arc::new(Told { rows: MemTable::try_new(schema, vec![vec![batch]]).unwrap(), statistics })
}

/// A session with the rule, or without it.
fn state(is_on: bool) -> SessionState {
    let shoal = ShoalConfig { join_order: is_on, ..ShoalConfig::default() };
    let config = SessionConfig::new().with_target_partitions(2).with_option_extension(shoal);
    let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
    let rules = JoinOrder::among(state.optimizers());
    SessionStateBuilder::new_from_existing(state).with_optimizer_rules(rules).build()
}

fn context<T: TableProvider + 'static>(tables: &HashMap<String, Arc<T>>, is_on: bool) -> SessionContext {
    let context = SessionContext::new_with_state(state(is_on));
    for (name, table) in tables {
        context.register_table(name.as_str(), Arc::clone(table) as Arc<dyn TableProvider>).unwrap();
    }
    context
}

async fn optimised(context: &SessionContext, sql: &str) -> LogicalPlan {
    context.sql(sql).await.unwrap().into_optimized_plan().unwrap()
}

/// The joins of a plan by the names of what they join; the hashed side comes first.
fn order(plan: &LogicalPlan) -> String {
    match plan {
        LogicalPlan::Join(join) => format!("({} {})", order(&join.left), order(&join.right)),
        LogicalPlan::TableScan(scan) => scan.table_name.table().to_owned(),
        LogicalPlan::SubqueryAlias(node) => match order(&node.input) {
            joined if joined.contains('(') => joined,
            _ => node.alias.table().to_owned(),
        },
        other => other.inputs().into_iter().map(order).collect::<Vec<_>>().join(" "),
    }
}

/// What is joined in the smallest part of an order that has all of these: nothing but names.
fn together(order: &str, names: &[&str]) -> Vec<String> {
    let mut open = Vec::new();
    let mut parts = vec![order];
    for (at, character) in order.char_indices() {
        match character {
            '(' => open.push(at),
            ')' => parts.push(&order[open.pop().unwrap()..=at]),
            _ => {}
        }
    }
    let names_of = |part: &str| -> Vec<String> {
        let mut names: Vec<String> = part.split(['(', ')', ' ']).map(str::to_owned).collect();
        names.retain(|name| !name.is_empty());
        names.sort();
        names
    };
    let having = parts
        .into_iter()
        .map(names_of)
        .filter(|part| names.iter().all(|name| part.iter().any(|other| other == name)));
    having.min_by_key(Vec::len).unwrap_or_else(|| panic!("{names:?} are not in {order}"))
}

/// All rows of an answer as text, in order, below the names of its columns.
async fn rows(context: &SessionContext, sql: &str) -> Vec<String> {
    let frame = context.sql(sql).await.unwrap();
    let names: Vec<String> = frame.schema().columns().into_iter().map(|column| column.flat_name()).collect();
    let mut rows = Vec::new();
    for batch in frame.collect().await.unwrap() {
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
            rows.push(values.collect::<Vec<_>>().join("|"));
        }
    }
    rows.sort();
    rows.insert(0, names.join("|"));
    rows
}
