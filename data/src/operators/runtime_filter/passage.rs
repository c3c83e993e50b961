//! Below which operators a row can be left out instead of above them.

use std::sync::Arc;

use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;

use super::{JoinKeysExec, RuntimeFilterExec};
use crate::operators::{OnceExec, PiecesExec, SlicesExec};

/// Where these columns of an operator's rows are in the rows of its one input,
/// if each row is made of one of those alone and takes these columns from it
/// unchanged. To leave out rows by these columns is then the same above and
/// below. None for operators of which this is not known.
pub fn passage(node: &Arc<dyn ExecutionPlan>, columns: &[usize]) -> Option<Vec<usize>> {
    if node.fetch().is_some() {
        return None;
    }
    if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
        let below = columns.iter().map(|&column| {
            let expr = &projection.expr().get(column)?.expr;
            Some(expr.downcast_ref::<Column>()?.index())
        });
        return below.collect();
    }
    if let Some(filter) = node.downcast_ref::<FilterExec>() {
        return match filter.projection() {
            Some(kept) => columns.iter().map(|&column| kept.get(column).copied()).collect(),
            None => Some(columns.to_vec()),
        };
    }
    let hands_on = node.is::<CooperativeExec>()
        || node.is::<JoinKeysExec>()
        || node.is::<RuntimeFilterExec>()
        || node.is::<OnceExec>()
        || node.is::<PiecesExec>()
        || node.is::<SlicesExec>();
    hands_on.then(|| columns.to_vec())
}
