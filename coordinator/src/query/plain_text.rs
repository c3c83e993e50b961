//! Text as it leaves the cluster: where workers send the rows of a scan as they
//! are, they make plain columns of views. Those are smaller on the way and
//! quicker to check, and clients get them in the end.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use shoal_data::operators::SlicesExec;
use shoal_data::plain_rows::plain_type;

/// The plan with plain columns. It is made after the optimiser, which would run a
/// projection that computes something on several partitions and put those
/// together in any order.
///
/// # Errors
/// None in practice; those of putting a projection on a plan.
pub(super) fn with_plain_text(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    if schema.fields().iter().all(|field| plain_type(field.data_type()) == *field.data_type()) {
        return Ok(plan);
    }
    let columns = schema.fields().iter().enumerate().map(|(index, field)| {
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), index));
        let plain = plain_type(field.data_type());
        let expr = match plain == *field.data_type() {
            true => column,
            false => Arc::new(CastExpr::new(column, plain, None)),
        };
        ProjectionExpr { expr, alias: field.name().clone() }
    });
    Ok(Arc::new(ProjectionExec::try_new(columns, Arc::new(SlicesExec::new(plan)))?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, BinaryViewArray, Int64Array, RecordBatch, StringViewArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::datasource::memory::MemorySourceConfig;
    use datafusion::execution::TaskContext;
    use datafusion::physical_plan::collect;

    use super::*;

    #[tokio::test]
    async fn views_become_plain_and_nothing_else_changes() {
        let fields = vec![
            Field::new("n", DataType::Int64, false),
            Field::new("t", DataType::Utf8View, false),
            Field::new("t", DataType::BinaryView, true),
        ];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![1, 2])),
            Arc::new(StringViewArray::from(vec!["a", "a text of more than twelve bytes"])),
            Arc::new(BinaryViewArray::from(vec![None, Some(b"b".as_slice())])),
        ];
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
        let rows = MemorySourceConfig::try_new_exec(&[vec![batch.clone()]], schema, None).unwrap();
        let plan = with_plain_text(rows).unwrap();
        let expected = Schema::new(vec![
            Field::new("n", DataType::Int64, false),
            Field::new("t", DataType::Utf8, false),
            Field::new("t", DataType::Binary, true),
        ]);
        assert_eq!(*plan.schema(), expected, "the name that is there twice, and what holds no nulls");
        let plain = collect(plan, Arc::new(TaskContext::default())).await.unwrap();
        assert_eq!(plain[0].column(0), batch.column(0));
        assert_eq!(plain[0].column(1).as_string::<i32>().value(1), "a text of more than twelve bytes");
        assert!(plain[0].column(2).is_null(0) && plain[0].column(2).as_binary::<i32>().value(1) == b"b");
    }

    #[test]
    fn a_plan_without_views_stays_as_it_is() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let rows: Arc<dyn ExecutionPlan> = MemorySourceConfig::try_new_exec(&[vec![]], schema, None).unwrap();
        assert!(Arc::ptr_eq(&with_plain_text(Arc::clone(&rows)).unwrap(), &rows));
    }
}
