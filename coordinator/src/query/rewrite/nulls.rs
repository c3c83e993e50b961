//! Predicates with subqueries, and EXCEPT and INTERSECT ALL, in forms that
//! the optimiser does not lose the meaning of (each was measured as a wrong
//! answer or an internal error of DataFusion 55.2).

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, NullEquality, Result, ScalarValue};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::{Exists, InSubquery, SetComparison};
use datafusion::logical_expr::logical_plan::Subquery;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprFunctionExt, Join, JoinType, LogicalPlan, LogicalPlanBuilder, Operator, lit, when,
};

use super::not_in::as_anti_joins;

/// The plan with
/// - `NOT IN` in three values wherever its NULL counts, and as a plain anti join
///   where there can be none;
/// - the subqueries of `= ANY` and the like under names of their own, as the
///   columns outside would be taken for those inside;
/// - the rows of EXCEPT ALL and INTERSECT ALL numbered, as each takes away or
///   keeps one row only.
///
/// # Errors
/// Those of rebuilding a plan.
pub(super) fn with_whole_meaning(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut names = 0;
    let rewritten = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Filter(filter) => {
            let joined = as_anti_joins(filter, &mut names)?;
            let LogicalPlan::Filter(mut filter) = joined.data else { return Ok(joined) };
            let predicate = filter.predicate.clone();
            let rewritten =
                predicate_of(predicate.clone(), Place { is_conjunct: true, null_is_false: true })?;
            let rewritten = with_named_sets(rewritten, &mut names)?;
            if rewritten == predicate {
                return Ok(Transformed { data: LogicalPlan::Filter(filter), ..joined });
            }
            filter.predicate = rewritten;
            Ok(Transformed::yes(LogicalPlan::Filter(filter)))
        }
        LogicalPlan::Join(join) if is_set_operation_of_all(&join) => numbered(join).map(Transformed::yes),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(rewritten.data)
}

/// Where in a predicate an expression stands.
#[derive(Clone, Copy)]
struct Place {
    /// One of those that must all hold.
    is_conjunct: bool,
    /// Whether NULL here keeps no row, as false does.
    null_is_false: bool,
}

impl Place {
    const ANY: Self = Self { is_conjunct: false, null_is_false: false };
}

fn predicate_of(expr: Expr, place: Place) -> Result<Expr> {
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let is_conjunct = place.is_conjunct && op == Operator::And;
            let place = Place { is_conjunct, ..place };
            let left = predicate_of(*left, place)?;
            let right = predicate_of(*right, place)?;
            Expr::BinaryExpr(BinaryExpr { left: Box::new(left), op, right: Box::new(right) })
        }
        Expr::Not(inner) => match *inner {
            Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
                predicate_of(Expr::InSubquery(InSubquery { expr, subquery, negated: !negated }), place)?
            }
            inner => Expr::Not(Box::new(predicate_of(inner, Place::ANY)?)),
        },
        Expr::InSubquery(in_subquery) => {
            let is_correlated = !in_subquery.subquery.outer_ref_columns.is_empty();
            let is_well_done = if in_subquery.negated {
                // The optimiser makes an anti join that knows of NULLs.
                place.is_conjunct && !is_correlated
            } else {
                place.null_is_false
            };
            if is_well_done { Expr::InSubquery(in_subquery) } else { in_three_values(in_subquery)? }
        }
        other => other.map_children(|child| predicate_of(child, Place::ANY).map(Transformed::yes))?.data,
    })
}

/// `x IN (s)`: NULL where x is NULL and s has rows, true where one is equal,
/// NULL where one is NULL, false otherwise.
fn in_three_values(in_subquery: InSubquery) -> Result<Expr> {
    let InSubquery { expr, subquery, negated } = in_subquery;
    let (qualifier, field) = subquery.subquery.schema().qualified_field(0);
    let value = Expr::Column(Column::from((qualifier, field)));
    let null = || lit(ScalarValue::Boolean(None));
    let exists = |subquery: Subquery| Expr::Exists(Exists { subquery, negated: false });
    let has_null =
        LogicalPlanBuilder::from(Arc::clone(&subquery.subquery)).filter(value.is_null())?.build()?;
    let has_null = subquery.with_plan(Arc::new(has_null));
    let is_in =
        Expr::InSubquery(InSubquery { expr: expr.clone(), subquery: subquery.clone(), negated: false });
    let is_null_of_some = expr.as_ref().clone().is_null().and(exists(subquery));
    let answer = when(is_null_of_some, null())
        .when(is_in, lit(!negated))
        .when(exists(has_null), null())
        .otherwise(lit(negated))?;
    Ok(answer)
}

/// Gives the subquery of each comparison with a set a name that nothing
/// outside has.
fn with_named_sets(expr: Expr, names: &mut usize) -> Result<Expr> {
    let named = expr.transform_up(|expr| match expr {
        Expr::SetComparison(SetComparison { expr, subquery, op, quantifier })
            if subquery.outer_ref_columns.is_empty() =>
        {
            *names += 1;
            let plan = LogicalPlanBuilder::from(Arc::clone(&subquery.subquery))
                .alias(format!("__shoal_set_{names}"))?
                .build()?;
            let subquery = subquery.with_plan(Arc::new(plan));
            Ok(Transformed::yes(Expr::SetComparison(SetComparison { expr, subquery, op, quantifier })))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(named.data)
}

/// Only EXCEPT and INTERSECT compare NULLs as equal before plans are
/// optimised; without ALL they take distinct rows.
fn is_set_operation_of_all(join: &Join) -> bool {
    matches!(join.join_type, JoinType::LeftAnti | JoinType::LeftSemi)
        && join.null_equality == NullEquality::NullEqualsNull
        && !matches!(join.left.as_ref(), LogicalPlan::Distinct(_))
}

const NUMBER: &str = "__shoal_row_number";

/// The n-th of equal rows on one side meets the n-th on the other.
fn numbered(join: Join) -> Result<LogicalPlan> {
    let number = |side: &Arc<LogicalPlan>, name: String| -> Result<LogicalPlan> {
        let columns: Vec<Expr> = side.schema().columns().into_iter().map(Expr::Column).collect();
        let number = row_number().partition_by(columns).build()?.alias(name);
        LogicalPlanBuilder::from(Arc::clone(side)).window(vec![number])?.build()
    };
    let columns: Vec<Expr> = join.left.schema().columns().into_iter().map(Expr::Column).collect();
    let name = |side: &str| format!("{NUMBER}_{side}");
    let left = number(&join.left, name("left"))?;
    let right = number(&join.right, name("right"))?;
    let mut on = join.on;
    on.push((Expr::Column(Column::from_name(name("left"))), Expr::Column(Column::from_name(name("right")))));
    let joined = Join::try_new(
        Arc::new(left),
        Arc::new(right),
        on,
        join.filter,
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?;
    LogicalPlanBuilder::from(LogicalPlan::Join(joined)).project(columns)?.build()
}
