//! Scans that decode the columns of their filter first, and of the others only the rows
//! that are left. What is above them stays as it is, the filter too: whatever a scan does
//! not leave out is left out there, and plans are the same with and without.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::{
    FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal,
    NegativeExpr, NotExpr, TryCastExpr,
};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

use super::scan_tasks::shard_scan;
use crate::sql::ShoalConfig;

/// Has scans of shards evaluate their filters while they decode, where the session wants it.
/// Behind all rules that push filters down: to those a scan that did so would be one that
/// needs no filter above it any more.
#[derive(Debug, Default)]
pub(crate) struct LateMaterialization;

impl LateMaterialization {
    pub(super) const NAME: &str = "late_materialization";
}

impl PhysicalOptimizerRule for LateMaterialization {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !ShoalConfig::of(config).late_materialization {
            return Ok(plan);
        }
        let late = plan.transform_up(|node| match shard_scan(&node).and_then(late) {
            Some(scan) => Ok(Transformed::yes(DataSourceExec::from_data_source(scan))),
            None => Ok(Transformed::no(node)),
        })?;
        Ok(late.data)
    }

    fn name(&self) -> &str {
        Self::NAME
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The scan with its filter evaluated first. None where that saves nothing, or where it is
/// not known to be right.
fn late(scan: &FileScanConfig) -> Option<FileScanConfig> {
    let source = scan.file_source().downcast_ref::<ParquetSource>()?;
    let predicate = source.filter()?;
    if scan.limit.is_some() || !is_plain(&predicate, scan.file_schema()) || !has_others(source, &predicate) {
        return None;
    }
    // In the order in which they stand: one may guard the next from an error.
    let source = source.clone().with_pushdown_filters(true).with_reorder_filters(false);
    Some(FileScanConfigBuilder::from(scan.clone()).with_source(Arc::new(source)).build())
}

/// Whether a scan gives columns that its filter does not need.
fn has_others(source: &ParquetSource, predicate: &Arc<dyn PhysicalExpr>) -> bool {
    let filtered = collect_columns(predicate);
    let Some(given) = source.projection() else { return true };
    let given = given.as_ref().iter().flat_map(|given| collect_columns(&given.expr));
    given.into_iter().any(|column| !filtered.contains(&column))
}

/// Whether a filter means the same for each row wherever, and however often, it is evaluated.
/// What is not known to is not plain. Filters that joins and first rows of an order push down
/// while they run are not: one of a join of partitions tells by DataFusion's hash which
/// partition a row is of, and shards are not always dealt to tasks in that way. Such filters
/// rule out whole row groups only, which asks for no hash.
fn is_plain(filter: &Arc<dyn PhysicalExpr>, columns: &Schema) -> bool {
    let is_known = |node: &Arc<dyn PhysicalExpr>| match node.downcast_ref::<Column>() {
        // Filters over nested columns are not evaluated there, and those behind them, which
        // they may guard from an error, would be.
        Some(column) => {
            let field = columns.fields().get(column.index());
            field.is_some_and(|field| field.name() == column.name() && !field.data_type().is_nested())
        }
        None => {
            node.is::<Literal>()
                || node.is::<BinaryExpr>()
                || node.is::<InListExpr>()
                || node.is::<LikeExpr>()
                || node.is::<IsNullExpr>()
                || node.is::<IsNotNullExpr>()
                || node.is::<NotExpr>()
                || node.is::<NegativeExpr>()
                || node.is::<CaseExpr>()
                || node.is::<CastExpr>()
                || node.is::<TryCastExpr>()
                || node.is::<ScalarFunctionExpr>()
        }
    };
    !is_volatile(filter) && !filter.exists(|node| Ok(!is_known(node))).unwrap_or(true)
}

#[cfg(test)]
mod tests;
