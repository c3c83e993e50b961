//! `INSERT ... VALUES` with many rows of parameters as one write: one commit
//! and few large segments instead of one of each per row.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan, Values};

use super::Parameters;
use crate::Error;

/// The plan of an INSERT with the rows of all `runs` in its one row of VALUES.
/// None where the plan is of another shape, or values of one column differ in
/// type: then each run is a statement of its own.
///
/// # Errors
/// Those of `bind`, which puts parameters into a plan.
pub(super) fn with_all_rows(
    plan: &LogicalPlan,
    runs: Vec<Parameters>,
    bind: impl Fn(LogicalPlan, Parameters) -> Result<LogicalPlan, Error>,
) -> Result<Option<LogicalPlan>, Error> {
    let Some(row) = only_row(plan)? else { return Ok(None) };
    let mut all: Option<Values> = None;
    for parameters in runs {
        let LogicalPlan::Values(mut bound) = bind(LogicalPlan::Values(row.clone()), parameters)? else {
            return Ok(None);
        };
        match &mut all {
            None => all = Some(bound),
            Some(all) if all.schema.logically_equivalent_names_and_types(&bound.schema) => {
                all.values.append(&mut bound.values);
            }
            Some(_) => return Ok(None),
        }
    }
    let Some(mut all) = all else { return Ok(None) };
    // The first row tells what is null only of itself.
    let fields = all
        .schema
        .iter()
        .map(|(qualifier, field)| (qualifier.cloned(), Arc::new(field.as_ref().clone().with_nullable(true))));
    let schema = DFSchema::new_with_metadata(fields.collect(), all.schema.metadata().clone())?;
    all.schema = Arc::new(schema);
    let replaced = plan.clone().transform_up(|node| match node {
        LogicalPlan::Values(_) => Ok(Transformed::yes(LogicalPlan::Values(all.clone()))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(Some(replaced.data))
}

/// The row of VALUES that holds every parameter of the plan.
fn only_row(plan: &LogicalPlan) -> Result<Option<Values>, Error> {
    let mut found = Vec::new();
    let mut is_elsewhere = false;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Values(values) => found.push(values.clone()),
            other => {
                other.apply_expressions(|expr| {
                    is_elsewhere |= expr.exists(|part| Ok(matches!(part, Expr::Placeholder(_))))?;
                    Ok(TreeNodeRecursion::Continue)
                })?;
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match <[Values; 1]>::try_from(found) {
        Ok([row]) if row.values.len() == 1 && !is_elsewhere => Ok(Some(row)),
        _ => Ok(None),
    }
}
