//! Tells scans of the run-time filters above them.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr, lit};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;

use super::RuntimeFilterExec;
use super::filter::InScan;
use super::passage::passage;
use crate::shard_store::SHARD_STORE_URL;

/// A plan as a worker runs it: the scan of shards below each run-time filter
/// rules out segments, row groups and pages by the least and the greatest key, as
/// soon as these are known. The operators are the same, each in its place.
///
/// # Errors
/// None in practice; those of rebuilding a plan.
pub fn into_scans(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let rewritten = plan.transform_up(|node| {
        let Some(filter) = node.downcast_ref::<RuntimeFilterExec>() else {
            return Ok(Transformed::no(node));
        };
        let Some((input, in_scan)) = told(filter.input(), &filter.keys().columns)? else {
            return Ok(Transformed::no(node));
        };
        Ok(Transformed::yes(Arc::new(filter.over_scan(input, in_scan)) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(rewritten.data)
}

/// The same operators down to a scan that knows of a filter over `columns` of
/// their rows. None where no scan of shards is below.
fn told(
    node: &Arc<dyn ExecutionPlan>,
    columns: &[usize],
) -> Result<Option<(Arc<dyn ExecutionPlan>, InScan)>> {
    if let Some(scan) = node.downcast_ref::<DataSourceExec>() {
        return told_scan(scan, columns);
    }
    let Some(below) = passage(node, columns) else { return Ok(None) };
    let children = node.children();
    let [input] = children.as_slice() else { return Ok(None) };
    let Some((input, in_scan)) = told(input, &below)? else { return Ok(None) };
    Ok(Some((replace_children_if_necessary(Arc::clone(node), vec![input])?, in_scan)))
}

fn told_scan(scan: &DataSourceExec, columns: &[usize]) -> Result<Option<(Arc<dyn ExecutionPlan>, InScan)>> {
    let Some(config) = scan.data_source().downcast_ref::<FileScanConfig>() else { return Ok(None) };
    if !config.object_store_url.as_str().starts_with(SHARD_STORE_URL) || config.limit.is_some() {
        return Ok(None);
    }
    // What the scan computes is computed once.
    let computes = |projection: &ProjectionExprs| {
        columns
            .iter()
            .any(|&column| projection.as_ref().get(column).is_none_or(|made| !made.expr.is::<Column>()))
    };
    if config.file_source().projection().is_some_and(computes) {
        return Ok(None);
    }
    let schema = scan.schema();
    let keys = columns.iter().map(|&column| {
        let field = schema.fields().get(column)?;
        Some(Arc::new(Column::new(field.name(), column)) as Arc<dyn PhysicalExpr>)
    });
    let Some(keys) = keys.collect::<Option<Vec<_>>>() else { return Ok(None) };
    let filter = Arc::new(DynamicFilterPhysicalExpr::new(keys, lit(true)));
    let in_scan = InScan::new(Arc::clone(&filter));
    // What the scan itself is told to do with filters stays as it was planned.
    let Ok(pushed) = config.try_pushdown_filters(vec![filter], &ConfigOptions::new()) else {
        return Ok(None);
    };
    let Some(source) = pushed.updated_node else { return Ok(None) };
    Ok(Some((Arc::new(DataSourceExec::new(source)), in_scan)))
}
