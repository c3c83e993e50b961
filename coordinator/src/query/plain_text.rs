//! Text as it leaves the cluster. A worker that sends rows which nothing
//! follows on makes plain columns of views: those are smaller on the way and
//! quicker to check, and clients get them in the end.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};

/// The plan with plain text and plain bytes for views. It comes after all
/// planning: what is done to a projection there may lose the order below it.
///
/// # Errors
/// None in practice; those of putting a projection on a plan.
pub(super) fn with_plain_text(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    if !schema.fields().iter().any(|field| plain(field.data_type()).is_some()) {
        return Ok(plan);
    }
    let columns = schema.fields().iter().enumerate().map(|(index, field)| {
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), index));
        let expr = match plain(field.data_type()) {
            Some(plain) => Arc::new(CastExpr::new(column, plain, None)),
            None => column,
        };
        ProjectionExpr { expr, alias: field.name().clone() }
    });
    Ok(Arc::new(ProjectionExec::try_new(columns, plan)?))
}

fn plain(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Utf8View => Some(DataType::Utf8),
        DataType::BinaryView => Some(DataType::Binary),
        _ => None,
    }
}
