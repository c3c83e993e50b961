//! The oracle: plain DataFusion in one process over the same rows. Whatever
//! Shoal answers must equal what this answers.

use std::path::Path;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::{Column, DataFusionError};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use shoal_data::sample::TpchTable;

use crate::answer::{Answer, FLOAT_TOLERANCE, Numbers};
use crate::tpch_data::TpchData;

/// A single-process DataFusion.
#[derive(Clone)]
pub struct Oracle {
    context: SessionContext,
}

/// What the oracle says about one query.
pub struct Expectation {
    /// The right rows.
    pub answer: Answer,
    /// Columns that the query sorts by; None when its order does not count.
    pub order: Option<Vec<usize>>,
}

impl Oracle {
    /// DataFusion as it comes, with `partitions` partitions and an
    /// information schema.
    pub fn new(partitions: usize) -> Self {
        let config = SessionConfig::new()
            .with_target_partitions(partitions)
            .with_information_schema(true)
            .set_str("datafusion.execution.time_zone", "+00:00");
        Self { context: SessionContext::new_with_config(config) }
    }

    /// The same with all tables of TPC-H.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn of_tables(partitions: usize, data: &TpchData) -> Result<Self, DataFusionError> {
        let oracle = Self::new(partitions);
        for table in TpchTable::ALL {
            oracle.register_parquet(table.name(), &data.table_dir(table)).await?;
        }
        Ok(oracle)
    }

    /// Registers a directory of Parquet files, or one file, as a table.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn register_parquet(&self, table: &str, path: &Path) -> Result<(), DataFusionError> {
        let path = path.to_str().ok_or_else(|| DataFusionError::Plan(format!("{path:?} is not UTF-8")))?;
        self.context.register_parquet(table, path, ParquetReadOptions::default()).await
    }

    /// Its session, for what has no method here.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Runs any statement that DataFusion takes, with the parts of Shoal's own
    /// dialect taken out ([`without_layout`]).
    ///
    /// # Errors
    /// What DataFusion says.
    pub async fn run(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), DataFusionError> {
        let frame = self.context.sql(&without_layout(sql)).await?;
        let schema = frame.schema().inner().clone();
        let batches = frame.collect().await?;
        // Planning may settle what the logical plan leaves open.
        let schema = batches.first().map_or(schema, RecordBatch::schema);
        Ok((schema, batches))
    }

    /// The output columns that a query sorts by; None when its order does not
    /// count.
    ///
    /// # Errors
    /// What DataFusion's planner says.
    pub async fn order(&self, sql: &str) -> Result<Option<Vec<usize>>, DataFusionError> {
        Ok(sort_columns(self.context.sql(sql).await?.logical_plan()))
    }

    /// The right answer of a query and how to compare with it.
    ///
    /// # Errors
    /// What DataFusion says.
    pub async fn expect(&self, sql: &str, numbers: Numbers) -> Result<Expectation, DataFusionError> {
        let order = self.order(sql).await?;
        let (schema, batches) = self.run(sql).await?;
        Ok(Expectation { answer: Answer::new(&schema, &batches, numbers)?, order })
    }
}

impl Expectation {
    /// Compares what somebody answered, types and last digits of integers and
    /// decimals included.
    ///
    /// # Errors
    /// The first difference, and when a value cannot be written as text.
    pub fn check(&self, schema: &SchemaRef, batches: &[RecordBatch]) -> anyhow::Result<()> {
        let answer = Answer::new(schema, batches, Numbers::Exact)?;
        Ok(self.answer.compare(&answer, self.order.as_deref(), FLOAT_TOLERANCE)?)
    }
}

/// The output columns that a query's own ORDER BY sorts by, as far as they are
/// output columns; None without an ORDER BY.
fn sort_columns(plan: &LogicalPlan) -> Option<Vec<usize>> {
    let output = plan.schema();
    let mut node = plan;
    loop {
        match node {
            LogicalPlan::Sort(sort) => {
                let position = |column: &Column| output.maybe_index_of_column(column);
                let columns = sort.expr.iter().map_while(|key| match &key.expr {
                    Expr::Column(column) => position(column),
                    _ => None,
                });
                return Some(columns.collect());
            }
            LogicalPlan::Limit(limit) => node = &limit.input,
            LogicalPlan::Projection(projection) => node = &projection.input,
            _ => return None,
        }
    }
}

/// A CREATE TABLE without its `WITH (...)`, which only Shoal understands;
/// other statements as they are.
pub fn without_layout(sql: &str) -> String {
    let lower = sql.to_ascii_lowercase();
    if !lower.trim_start().starts_with("create table")
        && !lower.trim_start().starts_with("create or replace table")
    {
        return sql.to_owned();
    }
    // Not the WITH of a common table expression: that has a name before its
    // parenthesis.
    let mut from = 0;
    while let Some(found) = lower[from..].find("with") {
        let start = from + found;
        let rest = lower[start + 4..].trim_start();
        let starts_word = start == 0 || !is_word(lower.as_bytes()[start - 1]);
        if starts_word
            && rest.starts_with('(')
            && let Some(length) = closing_parenthesis(&lower[start..])
        {
            return format!("{}{}", &sql[..start], &sql[start + length..]);
        }
        from = start + 4;
    }
    sql.to_owned()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Bytes up to and with the parenthesis that closes the first one.
fn closing_parenthesis(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut quoted = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            b'(' if !quoted => depth += 1,
            b')' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return Some(index + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_layout_of_a_table_is_taken_out() {
        let check = |sql: &str, expected: &str| assert_eq!(without_layout(sql), expected);
        check("CREATE TABLE t (a INT) WITH (shards = 4, shard_key = 'a)')", "CREATE TABLE t (a INT) ");
        check("CREATE TABLE t WITH (shards = 2) AS SELECT 1", "CREATE TABLE t  AS SELECT 1");
        check(
            "CREATE TABLE t AS WITH c AS (SELECT 1) SELECT * FROM c",
            "CREATE TABLE t AS WITH c AS (SELECT 1) SELECT * FROM c",
        );
        check("SELECT 'with (x)'", "SELECT 'with (x)'");
    }

    #[tokio::test]
    async fn the_order_of_a_query_is_found_through_limits_and_projections() {
        let oracle = Oracle::new(2);
        oracle.run("CREATE TABLE t (a INT, b INT)").await.unwrap();
        for (sql, expected) in [
            ("SELECT a, b FROM t", None),
            ("SELECT a, b FROM t ORDER BY b, a LIMIT 3", Some(vec![1, 0])),
            ("SELECT a FROM t ORDER BY b", Some(vec![])),
            ("SELECT a, count(*) FROM t GROUP BY a ORDER BY a", Some(vec![0])),
            ("SELECT * FROM (SELECT a FROM t ORDER BY a) GROUP BY a", None),
        ] {
            let frame = oracle.context().sql(sql).await.unwrap();
            assert_eq!(sort_columns(frame.logical_plan()), expected, "{sql}");
        }
    }
}
