//! Tells scans of the run-time filters above them.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::{
    FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr, lit};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, conjunction, split_conjunction};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::sorts::sort::SortExec;

use super::RuntimeFilterExec;
use super::in_scan::InScan;
use super::passage::passage;
use crate::operators::is_plain_filter;
use crate::shard_store::SHARD_STORE_URL;

/// A plan as a worker runs it: the scan of shards below each run-time filter
/// rules out segments, row groups and pages by the least and the greatest key, as
/// soon as these are known, and decodes the other columns only of rows that have one of
/// the keys. So do scans below the first rows of an order, of rows that may be among
/// those. The operators are the same, each in its place.
///
/// # Errors
/// None in practice; those of rebuilding a plan.
pub fn into_scans(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut ours = filters_of_first_rows(&plan)?;
    let of_first_rows = ours.clone();
    let rewritten = plan.transform_up(|node| {
        if let Some(scan) = node.downcast_ref::<DataSourceExec>() {
            let by_row = of_first(scan, &of_first_rows);
            let scan = by_row.map(|source| Arc::new(DataSourceExec::new(source)) as Arc<dyn ExecutionPlan>);
            return Ok(scan.map_or_else(|| Transformed::no(Arc::clone(&node)), Transformed::yes));
        }
        let Some(filter) = node.downcast_ref::<RuntimeFilterExec>() else {
            return Ok(Transformed::no(node));
        };
        let Some((input, in_scan)) = told(filter.input(), &filter.keys().columns, &mut ours)? else {
            return Ok(Transformed::no(node));
        };
        Ok(Transformed::yes(Arc::new(filter.over_scan(input, in_scan)) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(rewritten.data)
}

/// The filters, by their ids, that tell which rows may still be among the first of an order:
/// a row that one of them leaves out is worse than as many others as are wanted.
fn filters_of_first_rows(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    plan.apply(|node| {
        if let Some(sort) = node.downcast_ref::<SortExec>().filter(|sort| sort.fetch().is_some()) {
            let filters = sort.dynamic_expressions_produced();
            found.extend(filters.iter().filter_map(|filter| filter.expression_id()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// The scan with its filters evaluated for each row, where one of them is of the first
/// rows of an order, and other columns are to be decoded.
fn of_first(scan: &DataSourceExec, of_first_rows: &[u64]) -> Option<Arc<dyn DataSource>> {
    let config = scan.data_source().downcast_ref::<FileScanConfig>()?;
    if !config.object_store_url.as_str().starts_with(SHARD_STORE_URL) || config.limit.is_some() {
        return None;
    }
    let filter = config.file_source().filter()?;
    let is_told = split_conjunction(&filter).into_iter().any(|part| is_ours(part, of_first_rows));
    let has_others = scan.schema().fields().len() > collect_columns(&filter).len();
    if !is_told || !has_others || !has_plain_filters(config, of_first_rows) {
        return None;
    }
    evaluating(scan.data_source(), of_first_rows)
}

/// The same operators down to a scan that knows of a filter over `columns` of
/// their rows. None where no scan of shards is below. `ours` are those that scans were
/// told of before, by their ids, to which this one is added.
fn told(
    node: &Arc<dyn ExecutionPlan>,
    columns: &[usize],
    ours: &mut Vec<u64>,
) -> Result<Option<(Arc<dyn ExecutionPlan>, InScan)>> {
    if let Some(scan) = node.downcast_ref::<DataSourceExec>() {
        return told_scan(scan, columns, ours);
    }
    let Some(below) = passage(node, columns) else { return Ok(None) };
    let children = node.children();
    let [input] = children.as_slice() else { return Ok(None) };
    let Some((input, in_scan)) = told(input, &below, ours)? else { return Ok(None) };
    Ok(Some((replace_children_if_necessary(Arc::clone(node), vec![input])?, in_scan)))
}

fn told_scan(
    scan: &DataSourceExec,
    columns: &[usize],
    ours: &mut Vec<u64>,
) -> Result<Option<(Arc<dyn ExecutionPlan>, InScan)>> {
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
    // What the scan itself is told to do with filters stays as it was planned.
    let Ok(pushed) = config.try_pushdown_filters(vec![Arc::clone(&filter) as _], &ConfigOptions::new())
    else {
        return Ok(None);
    };
    let Some(source) = pushed.updated_node else { return Ok(None) };
    // A scan that decodes nothing else has nothing to spare.
    let may_be_by_row = schema.fields().len() > columns.len() && has_plain_filters(config, ours);
    ours.extend(filter.expression_id());
    let by_row = may_be_by_row.then(|| evaluating(&source, ours)).flatten();
    let in_scan = InScan::new(filter, by_row.is_some());
    Ok(Some((Arc::new(DataSourceExec::new(by_row.unwrap_or(source))), in_scan)))
}

/// Whether all filters that a scan has may be evaluated for each row.
fn has_plain_filters(scan: &FileScanConfig, ours: &[u64]) -> bool {
    let Some(filter) = scan.file_source().filter() else { return true };
    let mut parts = split_conjunction(&filter).into_iter();
    parts.all(|part| is_ours(part, ours) || is_plain_filter(part, scan.file_schema()))
}

fn is_ours(filter: &Arc<dyn PhysicalExpr>, ours: &[u64]) -> bool {
    filter.expression_id().is_some_and(|id| ours.contains(&id))
}

/// The scan with its filters evaluated for each row. None for a scan of something else
/// than Parquet.
fn evaluating(scan: &Arc<dyn DataSource>, ours: &[u64]) -> Option<Arc<dyn DataSource>> {
    let scan = scan.downcast_ref::<FileScanConfig>()?;
    let source = scan.file_source().downcast_ref::<ParquetSource>()?;
    let filter = source.filter()?;
    // Ours are never an error, and leave few rows to the others, which stay as they stand: one
    // may guard the next from an error.
    let (ours, others): (Vec<_>, Vec<_>) =
        split_conjunction(&filter).into_iter().cloned().partition(|part| is_ours(part, ours));
    let source = source.with_predicate(conjunction(ours.into_iter().chain(others)));
    let source = source.with_pushdown_filters(true).with_reorder_filters(false);
    Some(Arc::new(FileScanConfigBuilder::from(scan.clone()).with_source(Arc::new(source)).build()))
}
