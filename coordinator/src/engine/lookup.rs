//! What a plan is before its parameters have values: whether they can be put into
//! it when it is optimised already, and whether it is a lookup by shard key.
//!
//! What is not known here is optimised anew, or planned among the other queries:
//! that takes longer and is right.

use std::collections::HashSet;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Between, BinaryExpr, Distinct, Expr, LogicalPlan, Operator};

use crate::query::tables_of;

/// Expressions of a lookup, with all that is in them.
const EXPRESSIONS_MAX: usize = 200;
/// Bytes of the values in them.
const LITERAL_BYTES_MAX: usize = 64 << 10;
/// Columns of each of its steps.
const COLUMNS_MAX: usize = 100;
/// Shards of its table.
const SHARDS_MAX: u32 = 256;
/// Segments of each shard, on average.
const SEGMENTS_MAX: usize = 16;

/// Whether values can be put into the optimised form of `plan` and the result means
/// what `plan` means with them. The optimiser takes expressions that are not the
/// same for different ones: of `k IN ($1, $2) AND k IN ($3, $4)` it makes that there
/// are no rows. So each parameter must be compared with a column in a condition that
/// all rows meet, before and after, and none may be gone.
pub(super) fn takes_values_late(plan: &LogicalPlan, optimised: &LogicalPlan) -> bool {
    let of_both = (compared_parameters(plan), compared_parameters(optimised));
    matches!(of_both, (Ok(Some(before)), Ok(Some(after))) if before == after)
}

/// The parameters of a plan over one table; none where there is one that is not
/// just compared with a column, or where the plan is of another shape.
fn compared_parameters(plan: &LogicalPlan) -> Result<Option<HashSet<String>>> {
    let mut parameters = HashSet::new();
    let mut scans = 0;
    let mut are_compared = true;
    plan.apply(|node| {
        let may_compare = match node {
            LogicalPlan::Filter(_) => true,
            LogicalPlan::TableScan(_) => {
                scans += 1;
                true
            }
            LogicalPlan::Projection(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Distinct(Distinct::All(_))
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_) => false,
            _ => {
                are_compared = false;
                return Ok(TreeNodeRecursion::Stop);
            }
        };
        node.apply_expressions(|expr| {
            for part in split_conjunction(expr) {
                are_compared &= !has_subquery(part)?;
                match compared_with_column(part) {
                    Some(compared) if may_compare => parameters.extend(compared),
                    _ => are_compared &= !has_parameter(part)?,
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok((are_compared && scans == 1).then_some(parameters))
}

/// The parameters of a condition that compares a column with them and nothing
/// else; none where it is another condition, or one of them has no type.
fn compared_with_column(condition: &Expr) -> Option<Vec<String>> {
    let parameter = |expr: &Expr| match expr {
        Expr::Placeholder(Placeholder { id, field: Some(_) }) => Some(id.clone()),
        _ => None,
    };
    let is_column = |expr: &Expr| matches!(expr, Expr::Column(_));
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) => {
            if is_column(left) {
                Some(vec![parameter(right)?])
            } else if is_column(right) {
                Some(vec![parameter(left)?])
            } else {
                None
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_column(expr) => {
            Some(vec![parameter(low)?, parameter(high)?])
        }
        _ => None,
    }
}

fn is_comparison(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
    )
}

fn has_parameter(expr: &Expr) -> Result<bool> {
    expr.exists(|part| Ok(matches!(part, Expr::Placeholder(_))))
}

fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|part| {
        Ok(matches!(
            part,
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
        ))
    })
}

/// Whether an optimised plan gives rows of one table, of one shard, as each column of
/// the shard key must equal a value or a parameter; and whether little is to be done
/// to plan it further, whatever the values are.
pub(super) fn is_lookup(optimised: &LogicalPlan) -> bool {
    let mut is_small = true;
    let mut scans = 0;
    let mut expressions = 0;
    let mut literal_bytes = 0;
    let mut filters: Vec<Expr> = Vec::new();
    let walked = optimised.apply(|node| {
        is_small &= node.schema().fields().len() <= COLUMNS_MAX;
        is_small &= match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => true,
            LogicalPlan::TableScan(scan) => {
                scans += 1;
                filters.extend(scan.filters.iter().cloned());
                scan.fetch.is_none()
            }
            _ => false,
        };
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                expressions += 1;
                is_small &= is_plain(part);
                if let Expr::Literal(value, _) = part {
                    literal_bytes += value.size();
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if is_small { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    is_small &= expressions <= EXPRESSIONS_MAX && literal_bytes <= LITERAL_BYTES_MAX;
    if walked.is_err() || !is_small || scans != 1 {
        return false;
    }
    let Ok(tables) = tables_of(optimised) else { return false };
    // One of no shards, such as a system table, is none of them.
    let [table] = tables.as_slice() else { return false };
    let layout = &table.layout;
    let named: HashSet<&str> =
        filters.iter().flat_map(split_conjunction).filter_map(column_of_value).collect();
    let names_shard = !layout.shard_key.is_empty()
        && layout.hash.is_of_this_engine()
        && layout.shard_key.iter().all(|key| named.contains(key.as_str()));
    names_shard
        && layout.shards <= SHARDS_MAX
        && table.segments.len() <= SEGMENTS_MAX.saturating_mul(layout.shards as usize)
}

/// Whether a plan as it is written is no larger than a lookup may be. What is optimised
/// can be a lookup all the same: of `a = 1 AND 2 IN (2, 2, 2)` only the first part is left.
pub(super) fn is_little(plan: &LogicalPlan) -> bool {
    let mut parts = 0;
    let walked = plan.apply_with_subqueries(|node| {
        parts += 1;
        node.apply_expressions(|expr| {
            expr.apply(|_part| {
                parts += 1;
                Ok(if parts > EXPRESSIONS_MAX {
                    TreeNodeRecursion::Stop
                } else {
                    TreeNodeRecursion::Continue
                })
            })
        })?;
        Ok(if parts > EXPRESSIONS_MAX { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.is_ok() && parts <= EXPRESSIONS_MAX
}

/// Whether an expression is none of a function or a subquery: it takes little time,
/// and can be sent to workers.
fn is_plain(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Column(_)
            | Expr::Literal(..)
            | Expr::Placeholder(_)
            | Expr::Alias(_)
            | Expr::BinaryExpr(_)
            | Expr::Between(_)
            | Expr::InList(_)
            | Expr::Like(_)
            | Expr::Cast(_)
            | Expr::Not(_)
            | Expr::Negative(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
    )
}

/// The column that a condition has equal to a value or a parameter.
fn column_of_value(condition: &Expr) -> Option<&str> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { return None };
    match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(..) | Expr::Placeholder(_))
        | (Expr::Literal(..) | Expr::Placeholder(_), Expr::Column(column)) => Some(column.name.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
