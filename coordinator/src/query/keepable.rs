//! Which plans give the same rows whenever they run, and of those, which can only
//! change their rows when a table of shards does. No other result is kept.
//!
//! Each kind of step and of expression is named here, so that a new one is looked at before
//! it is kept. Of functions it is taken for true what they say of themselves.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

use super::shard_table::as_shard_table;

/// What in a plan may mean something else at another moment, such as `now()` or
/// `random()`; none in most. To be asked before a plan is optimised, as that puts
/// values in the place of calls.
pub(crate) fn fleeting_part(plan: &LogicalPlan) -> Option<String> {
    let mut found: Option<String> = None;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                found = found.take().or_else(|| fleeting(part));
                Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })?;
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match walked {
        Ok(_) => found,
        Err(error) => Some(error.to_string()),
    }
}

fn fleeting(part: &Expr) -> Option<String> {
    let (name, volatility) = match part {
        Expr::ScalarFunction(call) => (call.func.name(), call.func.signature().volatility),
        Expr::AggregateFunction(call) => (call.func.name(), call.func.signature().volatility),
        Expr::WindowFunction(call) => (call.fun.name(), call.fun.signature().volatility),
        Expr::HigherOrderFunction(call) => (call.func.name(), call.func.signature().volatility),
        Expr::ScalarVariable(_, names) => return Some(names.join(".")),
        #[expect(deprecated, reason = "there may be one as long as there is the kind")]
        Expr::Alias(_)
        | Expr::Column(_)
        | Expr::Literal(..)
        | Expr::BinaryExpr(_)
        | Expr::Like(_)
        | Expr::SimilarTo(_)
        | Expr::Not(_)
        | Expr::IsNotNull(_)
        | Expr::IsNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Negative(_)
        | Expr::Between(_)
        | Expr::Case(_)
        | Expr::Cast(_)
        | Expr::TryCast(_)
        | Expr::InList(_)
        | Expr::Exists(_)
        | Expr::InSubquery(_)
        | Expr::SetComparison(_)
        | Expr::ScalarSubquery(_)
        | Expr::Wildcard { .. }
        | Expr::GroupingSet(_)
        | Expr::Placeholder(_)
        | Expr::OuterReferenceColumn(..)
        | Expr::Unnest(_)
        | Expr::Lambda(_)
        | Expr::LambdaVariable(_) => return None,
    };
    (volatility != Volatility::Immutable).then(|| format!("{name}()"))
}

/// Why the result of a plan must not be kept; none where it may be.
pub(crate) fn never_kept(plan: &LogicalPlan) -> Option<String> {
    if let Some(part) = fleeting_part(plan) {
        return Some(format!("{part} is not the same at each moment"));
    }
    let (mut reads_tables, mut elsewhere) = (false, None);
    let walked = plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(scan) => match source_as_provider(&scan.source) {
                Ok(provider) if as_shard_table(&provider).is_some() => reads_tables = true,
                Ok(_) | Err(_) => {
                    elsewhere = Some(format!("what `{}` has is not in the catalog", scan.table_name))
                }
            },
            LogicalPlan::Extension(extension) => {
                elsewhere = Some(format!("nobody knows what {} reads", extension.node.name()));
            }
            LogicalPlan::Statement(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Dml(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Copy(_)
            | LogicalPlan::DescribeTable(_) => elsewhere = Some("it is no query".to_owned()),
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::EmptyRelation(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::RecursiveQuery(_) => {}
        }
        Ok(if elsewhere.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    if let Err(error) = walked {
        return Some(error.to_string());
    }
    elsewhere.or_else(|| (!reads_tables).then(|| "it reads no table".to_owned()))
}

#[cfg(test)]
mod tests;
