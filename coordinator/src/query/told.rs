//! Tables for tests that say of their columns what is wanted of them, and what comes of queries.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, ScalarValue, Statistics, internal_err};
use datafusion::datasource::{MemTable, TableType};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, displayable};
use datafusion::prelude::SessionContext;

/// The plan, and the rows.
pub(super) async fn run(context: &SessionContext, sql: &str) -> (String, String) {
    let frame = context.sql(sql).await.unwrap();
    let plan = frame.clone().create_physical_plan().await.unwrap();
    let rows = frame.collect().await.unwrap();
    (displayable(plan.as_ref()).indent(false).to_string(), pretty_format_batches(&rows).unwrap().to_string())
}

/// Rows whose columns are said to have so many distinct values each.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) rows: MemTable,
    pub(super) distinct: Precision<usize>,
    /// Numbers are said to be from 0 to this.
    pub(super) number_max: Option<i64>,
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
        let rows = self.rows.scan(session, projection, filters, limit).await?;
        Ok(Arc::new(ToldExec { rows, distinct: self.distinct, number_max: self.number_max }))
    }
}

#[derive(Debug)]
struct ToldExec {
    rows: Arc<dyn ExecutionPlan>,
    distinct: Precision<usize>,
    number_max: Option<i64>,
}

impl DisplayAs for ToldExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ToldExec")
    }
}

impl ExecutionPlan for ToldExec {
    fn name(&self) -> &str {
        "ToldExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.rows.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("a leaf") }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.rows.execute(partition, context)
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let mut statistics = self.rows.statistics_from_inputs(inputs, args)?.as_ref().clone();
        for (field, column) in self.schema().fields().iter().zip(&mut statistics.column_statistics) {
            column.distinct_count = self.distinct;
            if let Some(max) = self.number_max.filter(|_| *field.data_type() == DataType::Int64) {
                column.min_value = Precision::Inexact(ScalarValue::from(0_i64));
                column.max_value = Precision::Inexact(ScalarValue::from(max));
            }
        }
        Ok(Arc::new(statistics))
    }
}
