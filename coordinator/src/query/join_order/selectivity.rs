//! Which share of rows a filter lets pass, by estimate.

use std::collections::BTreeMap;

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::{Between, InList};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::estimate::{Known, number_of};

/// What may be left by a filter of which nothing is known, such as `LIKE`, or one value of an
/// unknown number: at most, which DataFusion takes for any filter, and at least.
pub(super) const UNKNOWN: [f64; 2] = [0.2, 0.01];
/// Of a table of so few rows each value may well be there once.
const FEW_ROWS: f64 = 1_000.0;

/// The share of rows for which all these are true, of a table of so many rows; `unknown` where that
/// cannot be told of one.
pub(super) fn share_of<'a>(
    filters: &[&Expr],
    known: &impl Fn(&Column) -> Option<&'a Known>,
    rows: f64,
    unknown: f64,
) -> f64 {
    let mut share = 1.0;
    // Bounds of one column are one range: after the one and before the other.
    let mut ranges: BTreeMap<&Column, (f64, f64)> = BTreeMap::new();
    for filter in filters {
        match bound_of(filter) {
            Some((column, at_least, at_most)) => {
                let range = ranges.entry(column).or_insert((f64::NEG_INFINITY, f64::INFINITY));
                *range = (range.0.max(at_least), range.1.min(at_most));
            }
            None => share *= of_filter(filter, known, rows, unknown),
        }
    }
    for (column, (at_least, at_most)) in ranges {
        share *= match known(column).and_then(|known| Some((known, known.range?))) {
            Some((known, (min, max))) => {
                let inside = (at_most.min(max) - at_least.max(min)).max(0.0);
                let all = (max - min).max(f64::MIN_POSITIVE);
                let least = 1.0 / known.distinct.or(known.distinct_max).unwrap_or(rows).max(1.0);
                (inside / all).clamp(least.min(1.0), 1.0) * (1.0 - known.nulls)
            }
            None => unknown,
        };
    }
    share.clamp(0.0, 1.0)
}

/// The range that a comparison with a number asks for.
fn bound_of(filter: &Expr) -> Option<(&Column, f64, f64)> {
    let free = (f64::NEG_INFINITY, f64::INFINITY);
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, value) = match (left.as_ref(), right.as_ref()) {
                (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
                (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
                _ => return None,
            };
            let value = number_of(value)?;
            match op {
                Operator::Lt | Operator::LtEq => Some((column, free.0, value)),
                Operator::Gt | Operator::GtEq => Some((column, value, free.1)),
                _ => None,
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            match (expr.as_ref(), low.as_ref(), high.as_ref()) {
                (Expr::Column(column), Expr::Literal(low, _), Expr::Literal(high, _)) => {
                    Some((column, number_of(low)?, number_of(high)?))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn of_filter<'a>(
    filter: &Expr,
    known: &impl Fn(&Column) -> Option<&'a Known>,
    rows: f64,
    unknown: f64,
) -> f64 {
    let equal = |expr: &Expr| -> f64 {
        let Expr::Column(column) = expr else { return unknown };
        let few = (rows <= FEW_ROWS).then_some(rows);
        let distinct = known(column).and_then(|known| known.distinct).or(few);
        distinct.map_or(unknown, |distinct| 1.0 / distinct.max(1.0))
    };
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::And => share_of(&split_conjunction(filter), known, rows, unknown),
            Operator::Or => {
                let (one, other) =
                    (share_of(&[left], known, rows, unknown), share_of(&[right], known, rows, unknown));
                one + other - one * other
            }
            Operator::Eq | Operator::NotEq => {
                let share = match (left.as_ref(), right.as_ref()) {
                    (column, Expr::Literal(..) | Expr::Placeholder(_))
                    | (Expr::Literal(..) | Expr::Placeholder(_), column) => equal(column),
                    _ => unknown,
                };
                if *op == Operator::Eq { share } else { 1.0 - share }
            }
            _ => unknown,
        },
        Expr::InList(InList { expr, list, negated }) => {
            let share = (equal(expr) * list.len() as f64).min(1.0);
            if *negated { 1.0 - share } else { share }
        }
        Expr::Like(like) if like.negated => 1.0 - unknown,
        Expr::Not(of) => 1.0 - share_of(&[of], known, rows, unknown),
        Expr::IsNull(of) | Expr::IsNotNull(of) => {
            let nulls = match of.as_ref() {
                Expr::Column(column) => known(column).map_or(0.0, |known| known.nulls),
                _ => 0.0,
            };
            if matches!(filter, Expr::IsNull(_)) { nulls } else { 1.0 - nulls }
        }
        Expr::Literal(ScalarValue::Boolean(Some(is_true)), _) => f64::from(u8::from(*is_true)),
        _ => unknown,
    }
}
