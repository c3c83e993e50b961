//! Scans that decode the columns of their filter first, and of the others only the rows
//! that are left. What is above them stays as it is, the filter too: whatever a scan does
//! not leave out is left out there, and plans are the same with and without.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::{
    FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

use shoal_data::operators::is_plain_filter;

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
    if scan.limit.is_some()
        || !is_plain_filter(&predicate, scan.file_schema())
        || !has_others(source, &predicate)
    {
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

#[cfg(test)]
mod tests;
