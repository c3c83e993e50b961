//! `NOT IN` over columns in which there is no NULL, as a plain anti join.
//!
//! One that knows of NULLs must have all rows of the subquery, and whether there is
//! a NULL among them, in one task, and with them all rows outside. A column that
//! may hold NULLs by its declaration mostly holds none, which the catalog knows of
//! every segment exactly. A plan names the segments that it was made for and no
//! others, so what was known of them stays true for as long as it is kept.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, ExprSchema, Result};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::expr::InSubquery;
use datafusion::logical_expr::logical_plan::Filter;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Distinct, Expr, Join, JoinType, LogicalPlan, LogicalPlanBuilder};

use crate::query::shard_table::as_shard_table;

/// The filter with each of its conjuncts `x NOT IN (s)` in which neither side can be
/// NULL as an anti join below it. `names` counts names that nothing else has.
///
/// # Errors
/// Those of building a plan.
pub(super) fn as_anti_joins(filter: Filter, names: &mut usize) -> Result<Transformed<LogicalPlan>> {
    let mut input = Arc::clone(&filter.input);
    let mut kept = Vec::new();
    for conjunct in split_conjunction(&filter.predicate) {
        let Some(InSubquery { expr, subquery, .. }) = plain_not_in(conjunct, &filter.input) else {
            kept.push(conjunct.clone());
            continue;
        };
        *names += 1;
        // Under a name of its own: both sides may be of one table.
        let set = LogicalPlanBuilder::from(Arc::clone(&subquery.subquery))
            .alias(format!("__shoal_not_in_{names}"))?
            .build()?;
        let value = Expr::Column(Column::from(set.schema().qualified_field(0)));
        let is_equal = expr.as_ref().clone().eq(value);
        let joined = LogicalPlanBuilder::from(input).join_on(set, JoinType::LeftAnti, [is_equal])?;
        input = Arc::new(joined.build()?);
    }
    if Arc::ptr_eq(&input, &filter.input) {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    }
    Ok(Transformed::yes(match conjunction(kept) {
        Some(kept) => LogicalPlan::Filter(Filter::try_new(kept, input)?),
        None => Arc::unwrap_or_clone(input),
    }))
}

/// The `NOT IN` that a conjunct is, where no NULL can be on either side and one
/// might by its declaration: of others DataFusion itself makes a plain anti join.
fn plain_not_in<'a>(conjunct: &'a Expr, input: &LogicalPlan) -> Option<&'a InSubquery> {
    let in_subquery = match conjunct {
        Expr::InSubquery(in_subquery) if in_subquery.negated => in_subquery,
        Expr::Not(inner) => match inner.as_ref() {
            Expr::InSubquery(in_subquery) if !in_subquery.negated => in_subquery,
            _ => return None,
        },
        _ => return None,
    };
    let InSubquery { expr, subquery, .. } = in_subquery;
    let Expr::Column(column) = expr.as_ref() else { return None };
    let set = subquery.subquery.as_ref();
    let [value]: [Column; 1] = set.schema().columns().try_into().ok()?;
    // Of other types one is cast, and who knows to what.
    let types = (input.schema().data_type(column).ok()?, set.schema().data_type(&value).ok()?);
    let is_plain = subquery.outer_ref_columns.is_empty() && types.0 == types.1 && !types.0.is_nested();
    let may_be_null = input.schema().nullable(column).ok()? || set.schema().nullable(&value).ok()?;
    (is_plain && may_be_null && column_has_no_nulls(column, input) && column_has_no_nulls(&value, set))
        .then_some(in_subquery)
}

fn column_has_no_nulls(column: &Column, plan: &LogicalPlan) -> bool {
    plan.schema().maybe_index_of_column(column).is_some_and(|place| has_no_nulls(place, plan))
}

/// Whether the column at `place` of what a plan gives is never NULL: by its
/// declaration, or because the column of a table that it is holds no NULL. What is
/// not known here may be NULL.
fn has_no_nulls(place: usize, plan: &LogicalPlan) -> bool {
    let schema = plan.schema();
    if !schema.field(place).is_nullable() {
        return true;
    }
    match plan {
        LogicalPlan::TableScan(scan) => {
            let Ok(provider) = source_as_provider(&scan.source) else { return false };
            as_shard_table(&provider).is_some_and(|table| table.has_no_nulls(schema.field(place).name()))
        }
        LogicalPlan::Projection(projection) => match without_names(&projection.expr[place]) {
            Expr::Column(column) => column_has_no_nulls(column, &projection.input),
            _ => false,
        },
        LogicalPlan::Filter(filter) => has_no_nulls(place, &filter.input),
        LogicalPlan::SubqueryAlias(alias) => has_no_nulls(place, &alias.input),
        LogicalPlan::Sort(sort) => has_no_nulls(place, &sort.input),
        LogicalPlan::Limit(limit) => has_no_nulls(place, &limit.input),
        LogicalPlan::Distinct(Distinct::All(input)) => has_no_nulls(place, input),
        LogicalPlan::Join(join) => side_has_no_nulls(place, join),
        _ => false,
    }
}

/// The same of a join: a side that is filled up with NULLs has some.
fn side_has_no_nulls(place: usize, join: &Join) -> bool {
    let of_left = join.left.schema().fields().len();
    match join.join_type {
        JoinType::Inner if place >= of_left => has_no_nulls(place - of_left, &join.right),
        JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti if place < of_left => {
            has_no_nulls(place, &join.left)
        }
        _ => false,
    }
}

fn without_names(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => without_names(&alias.expr),
        other => other,
    }
}

#[cfg(test)]
mod tests;
