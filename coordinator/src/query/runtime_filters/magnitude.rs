//! Which numbers an expression may give, and whether computing it can be an error.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal};

/// Floats are rounded: what is reckoned here may be too little by less than that.
const ROUNDING: f64 = 1.0 + 1e-9;

/// No value of an expression is further from zero, whatever the values of the columns are
/// that it is computed of. None where computing it may be an error, or nothing is known.
pub(super) fn magnitude(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<f64> {
    let most = if let Some(column) = expr.downcast_ref::<Column>() {
        return largest(schema.fields().get(column.index())?.data_type());
    } else if let Some(literal) = expr.downcast_ref::<Literal>() {
        return literal_magnitude(literal.value());
    } else if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        // A digit may be rounded up.
        magnitude(cast.expr(), schema)? + 1.0
    } else if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        let (left, right) = (magnitude(binary.left(), schema)?, magnitude(binary.right(), schema)?);
        match binary.op() {
            Operator::Plus | Operator::Minus => left + right,
            Operator::Multiply => left * right,
            _ => return None,
        }
    } else {
        return None;
    };
    let most = most * ROUNDING;
    // What fits its type in any case is never refused.
    let fits = match expr.data_type(schema).ok()? {
        DataType::Float64 => most.is_finite(),
        other => most < largest(&other)?,
    };
    fits.then_some(most)
}

/// No value of a type is further from zero. None for what is no number, and for what may be
/// none, such as floats of a table.
fn largest(data_type: &DataType) -> Option<f64> {
    Some(match data_type {
        DataType::Int8 => 2_f64.powi(7),
        DataType::Int16 => 2_f64.powi(15),
        DataType::Int32 => 2_f64.powi(31),
        DataType::Int64 => 2_f64.powi(63),
        DataType::Decimal128(precision, scale) => 10_f64.powi(i32::from(*precision) - i32::from(*scale)),
        _ => return None,
    })
}

fn literal_magnitude(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Float64(Some(value)) => value.is_finite().then_some(value.abs()),
        ScalarValue::Int64(Some(value)) => Some((*value as f64).abs()),
        other => largest(&other.data_type()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::physical_expr::expressions::{binary, cast, col, lit};

    use super::*;

    fn schema() -> Schema {
        Schema::new(vec![
            Field::new("avg", DataType::Decimal128(19, 6), true),
            Field::new("n", DataType::Int64, true),
            Field::new("i", DataType::Int32, true),
            Field::new("x", DataType::Float64, true),
            Field::new("s", DataType::Utf8View, true),
        ])
    }

    fn as_float(name: &str) -> Arc<dyn PhysicalExpr> {
        cast(col(name, &schema()).unwrap(), &schema(), DataType::Float64).unwrap()
    }

    fn of(left: Arc<dyn PhysicalExpr>, op: Operator, right: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
        binary(left, op, right, &schema()).unwrap()
    }

    fn is_sure(expr: &Arc<dyn PhysicalExpr>) -> bool {
        magnitude(expr, &schema()).is_some()
    }

    #[test]
    fn a_part_of_an_average_fits_and_a_multiple_may_not() {
        let times = |factor: f64| {
            let product = of(lit(factor), Operator::Multiply, as_float("avg"));
            cast(product, &schema(), DataType::Decimal128(30, 15)).unwrap()
        };
        assert!(is_sure(&times(0.2)));
        assert!(is_sure(&times(-99.0)));
        assert!(!is_sure(&times(100.0)));
        assert!(!is_sure(&times(f64::INFINITY)));
    }

    #[test]
    fn what_may_be_an_error_is_not_sure() {
        let schema = schema();
        let column = |name| col(name, &schema).unwrap();
        // By nothing, and past what the type holds.
        assert!(!is_sure(&of(column("n"), Operator::Divide, column("i"))));
        assert!(!is_sure(&of(column("n"), Operator::Plus, column("n"))));
        assert!(!is_sure(&cast(column("n"), &schema, DataType::Int32).unwrap()));
        assert!(!is_sure(&cast(column("s"), &schema, DataType::Int64).unwrap()));
        // A float of a table may be no number at all.
        assert!(!is_sure(&cast(column("x"), &schema, DataType::Decimal128(38, 0)).unwrap()));
        assert!(is_sure(&cast(column("i"), &schema, DataType::Int64).unwrap()));
        assert!(is_sure(&of(as_float("n"), Operator::Minus, as_float("i"))));
    }
}
