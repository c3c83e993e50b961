//! Which queries can be read shard by shard, and when their rows are given.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;

use crate::query::scan_tasks::{scan_bytes, shard_scan};

/// Rows of a shard that are kept until all are there, at most: of a query that
/// asks for the first so many.
const KEPT_ROWS_MAX: usize = 10_000;
/// Bytes of them over all shards, by the size of the rows on disk.
const KEPT_BYTES_MAX: u64 = 16 << 20;
/// Aggregates whose state is small, however many rows they have seen.
const SMALL_AGGREGATES: [&str; 18] = [
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "stddev",
    "stddev_pop",
    "var",
    "var_pop",
    "covar_samp",
    "covar_pop",
    "corr",
    "approx_distinct",
];

/// Whether a query is a scan of one table, row by row: the same rows in the
/// same order whenever a shard is read.
///
/// # Errors
/// None in practice; those of walking a plan.
fn is_row_by_row(plan: &LogicalPlan) -> Result<bool> {
    let mut is_eligible = true;
    plan.apply(|node| {
        let is_known = match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
            LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
            _ => false,
        };
        is_eligible &= is_known;
        node.apply_expressions(|expr| {
            is_eligible &= !has_subquery(expr)? && !expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_eligible { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_eligible)
}

/// The shape of a query that can be read shard by shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Giving {
    /// Rows as they are read: they come in one order, can be given at once, and
    /// go on elsewhere at the row where they stopped.
    AsTheyCome,
    /// Few rows that are made of many (an aggregate, the first of an order):
    /// given when a run over the shard has ended, and made anew elsewhere.
    WhenWhole,
}

/// How a query can be read shard by shard, if it can.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(crate) fn giving(plan: &LogicalPlan) -> Result<Option<Giving>> {
    Ok(match is_row_by_row(plan)? {
        true => Some(Giving::AsTheyCome),
        false => is_few_of_many(plan)?.then_some(Giving::WhenWhole),
    })
}

/// Whether a query makes few rows of one table, with no groups.
fn is_few_of_many(plan: &LogicalPlan) -> Result<bool> {
    let mut is_eligible = true;
    let mut are_few = false;
    plan.apply(|node| {
        is_eligible &= match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_) => true,
            LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
            LogicalPlan::Aggregate(aggregate) => {
                are_few = true;
                aggregate.group_expr.is_empty()
            }
            LogicalPlan::Sort(sort) => {
                let is_short = sort.fetch.is_some_and(|rows| rows <= KEPT_ROWS_MAX);
                are_few |= is_short;
                is_short || are_few
            }
            _ => false,
        };
        node.apply_expressions(|expr| {
            is_eligible &= !has_subquery(expr)?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_eligible { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_eligible && are_few)
}

fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|part| {
        Ok(matches!(
            part,
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
        ))
    })
}

/// Whether the plan below the place where partitions meet makes few rows of
/// one shard, and all that it does can be done shard by shard.
pub(super) fn makes_few_of_a_shard(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let mut are_few = false;
    let mut rows_kept = 1;
    let mut node = plan;
    loop {
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            let is_small = aggregate
                .aggr_expr()
                .iter()
                .all(|each| SMALL_AGGREGATES.contains(&each.fun().name()) && !each.is_distinct());
            if *aggregate.mode() != AggregateMode::Partial || !aggregate.group_expr().is_empty() || !is_small
            {
                return false;
            }
            are_few = true;
        } else if let Some(sort) = node.downcast_ref::<SortExec>() {
            if !sort.preserve_partitioning() || sort.fetch().is_none_or(|rows| rows > KEPT_ROWS_MAX) {
                return false;
            }
            are_few = true;
            rows_kept = sort.fetch().unwrap_or_default() as u64;
        } else if let Some(scan) = shard_scan(node) {
            // Of files in an order of their own a sort may have been left out.
            return are_few
                && scan.output_ordering.is_empty()
                && kept_bytes(scan, rows_kept) <= KEPT_BYTES_MAX;
        } else if !(node.is::<FilterExec>() || node.is::<ProjectionExec>() || node.is::<CooperativeExec>()) {
            return false;
        }
        match node.children().as_slice() {
            [only] => node = only,
            _ => return false,
        }
    }
}

/// Bytes of so many rows of each segment, as they are on disk.
fn kept_bytes(scan: &FileScanConfig, rows: u64) -> u64 {
    let files: Vec<&PartitionedFile> = scan.file_groups.iter().flat_map(FileGroup::files).collect();
    let known = |file: &PartitionedFile| file.statistics.as_ref()?.num_rows.get_value().copied();
    let of_files: Option<usize> = files.iter().map(|file| known(file)).sum();
    let of_scan = || scan.statistics().num_rows.get_value().copied();
    let all_rows = of_files.or_else(of_scan).unwrap_or_default();
    let row_bytes = scan_bytes(scan) / (all_rows as u64).max(1);
    row_bytes.max(1) * rows * files.len() as u64
}
