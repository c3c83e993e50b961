//! What a logical plan needs before it is optimised, so that it means in
//! stages what it means on one machine; and which plans must stay on one.

use std::any::Any;
use std::sync::Arc;

use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::{MemTable, source_as_provider};
use datafusion::logical_expr::expr::{NullTreatment, WindowFunction};
use datafusion::logical_expr::logical_plan::Subquery;
use datafusion::logical_expr::{AggregateUDF, Expr, LogicalPlan, LogicalPlanBuilder, TableScan, col};
use shoal_data::functions::SingleValue;

mod not_in;
mod nulls;

/// The plan of a statement as it must be given to the optimiser.
///
/// # Errors
/// Those of rebuilding a plan.
pub fn as_meant(plan: LogicalPlan) -> Result<LogicalPlan> {
    with_single_values(nulls::with_whole_meaning(plan)?)
}

/// Checks at run time that a subquery used as a value gives one row at most.
/// The plans of stages turn such a subquery into a join, which would take all
/// its rows.
///
/// # Errors
/// Those of rebuilding a plan.
fn with_single_values(plan: LogicalPlan) -> Result<LogicalPlan> {
    let single_value = Arc::new(AggregateUDF::from(SingleValue::default()));
    let rewritten = plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| {
            expr.transform_up(|expr| match expr {
                Expr::ScalarSubquery(subquery) if may_have_rows(&subquery) => {
                    Ok(Transformed::yes(Expr::ScalarSubquery(single_row(subquery, &single_value)?)))
                }
                other => Ok(Transformed::no(other)),
            })
        })
    })?;
    Ok(rewritten.data)
}

/// Whether it can give more than one row. A correlated one is refused by the
/// planner unless it aggregates.
fn may_have_rows(subquery: &Subquery) -> bool {
    subquery.outer_ref_columns.is_empty() && subquery.subquery.max_rows().is_none_or(|rows| rows > 1)
}

fn single_row(subquery: Subquery, single_value: &Arc<AggregateUDF>) -> Result<Subquery> {
    let (qualifier, field) = subquery.subquery.schema().qualified_field(0);
    let value = Expr::Column(datafusion::common::Column::from((qualifier, field)));
    let name = field.name().clone();
    let plan = LogicalPlanBuilder::from(Arc::clone(&subquery.subquery))
        .aggregate(Vec::<Expr>::new(), vec![single_value.call(vec![value]).alias("value")])?
        .project(vec![col("value").alias(name)])?
        .build()?;
    Ok(subquery.with_plan(Arc::new(plan)))
}

/// Whether a plan has something that cannot be sent to workers as it is: a
/// recursion runs its inner plan again and again, and the filter of a window
/// aggregate and IGNORE NULLS are lost when a plan is encoded (both measured, as wrong answers
/// or errors). Such a plan runs on the coordinator, which reads the segments
/// through the workers.
pub(crate) fn must_stay(plan: &LogicalPlan) -> bool {
    let mut stays = false;
    let walked = plan.apply_with_subqueries(|node| {
        stays |= matches!(node, LogicalPlan::RecursiveQuery(_));
        node.apply_expressions(|expr| {
            stays |= expr.exists(|expr| Ok(is_lossy_window(expr)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if stays { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    stays || walked.is_err()
}

fn is_lossy_window(expr: &Expr) -> bool {
    let Expr::WindowFunction(window) = expr else { return false };
    let WindowFunction { params, .. } = window.as_ref();
    params.filter.is_some() || params.null_treatment == Some(NullTreatment::IgnoreNulls)
}

/// Whether a plan reads anything that workers hold or should read.
pub fn reads_data(plan: &LogicalPlan) -> bool {
    scans(plan, |scan| !is_own(scan))
}

/// Whether a plan holds rows of system tables or of the information schema, which
/// were true only when it was made.
pub(crate) fn reads_own_tables(plan: &LogicalPlan) -> bool {
    scans(plan, is_own)
}

/// Whether a plan has such a scan, or cannot be looked through.
fn scans(plan: &LogicalPlan, is_such: impl Fn(&TableScan) -> bool) -> bool {
    let mut has = false;
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            has |= is_such(scan);
        }
        Ok(if has { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    has || walked.is_err()
}

/// Whether a scan is of what the coordinator itself knows: a system table, which is filled
/// when it is looked up, or one of the information schema. Their names may have no schema.
fn is_own(scan: &TableScan) -> bool {
    let Ok(provider) = source_as_provider(&scan.source) else { return false };
    let provider: &dyn Any = provider.as_ref();
    provider.is::<MemTable>() || provider.is::<StreamingTable>()
}
