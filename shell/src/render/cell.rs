//! One value as text.

use arrow::array::{Array, ArrayRef};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, DurationFormat, FormatOptions};

/// A value, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// No value.
    Null,
    /// A value.
    Text(String),
}

/// The values of one batch as text.
pub struct Cells<'a> {
    columns: Vec<Column<'a>>,
    row_count: usize,
}

struct Column<'a> {
    formatter: ArrayFormatter<'a>,
    nulls: Option<NullBuffer>,
}

/// Dates and times as SQL writes them; NULL inside lists and structs.
fn options() -> FormatOptions<'static> {
    FormatOptions::new()
        .with_display_error(true)
        .with_null("NULL")
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_datetime_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"))
        .with_duration_format(DurationFormat::Pretty)
}

impl<'a> Cells<'a> {
    /// Prepares a batch.
    ///
    /// # Errors
    /// Where a column's type has no text.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, ArrowError> {
        let column = |array: &'a ArrayRef| {
            Ok(Column {
                formatter: ArrayFormatter::try_new(array, &options())?,
                nulls: array.logical_nulls(),
            })
        };
        let columns = batch.columns().iter().map(column).collect::<Result<_, ArrowError>>()?;
        Ok(Self { columns, row_count: batch.num_rows() })
    }

    /// Rows of the batch.
    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// The values of one row, in order.
    pub fn row(&self, row: usize) -> impl Iterator<Item = Cell> + '_ {
        self.columns.iter().map(move |column| match &column.nulls {
            Some(nulls) if nulls.is_null(row) => Cell::Null,
            _ => Cell::Text(column.formatter.value(row).to_string()),
        })
    }
}

/// Whether each column's values are numbers, which are aligned to the right.
pub(super) fn numeric_columns(schema: &Schema) -> Vec<bool> {
    let is_numeric = |data_type: &DataType| match data_type {
        DataType::Dictionary(_, value) => value.is_numeric(),
        other => other.is_numeric(),
    };
    schema.fields().iter().map(|field| is_numeric(field.data_type())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int64Array,
        ListArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::Int32Type;

    use super::*;

    fn check(array: ArrayRef, expected: &[&str]) {
        let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
        let cells = Cells::new(&batch).unwrap();
        let texts: Vec<String> = (0..cells.row_count())
            .flat_map(|row| cells.row(row))
            .map(|cell| match cell {
                Cell::Null => "<null>".to_owned(),
                Cell::Text(text) => text,
            })
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn values_read_as_sql_writes_them() {
        check(Arc::new(Int64Array::from(vec![Some(-1), None])), &["-1", "<null>"]);
        check(Arc::new(Float64Array::from(vec![1.5, 2.0, f64::NAN])), &["1.5", "2.0", "NaN"]);
        check(Arc::new(BooleanArray::from(vec![true, false])), &["true", "false"]);
        check(Arc::new(Date32Array::from(vec![0])), &["1970-01-01"]);
        let decimals = Decimal128Array::from(vec![12345]).with_precision_and_scale(10, 2).unwrap();
        check(Arc::new(decimals), &["123.45"]);
        check(
            Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000])),
            &["1970-01-01 00:00:00", "1970-01-01 00:00:01.500"],
        );
        let zoned = TimestampMicrosecondArray::from(vec![0]).with_timezone("+01:00");
        check(Arc::new(zoned), &["1970-01-01 01:00:00+01:00"]);
        check(Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"])), &["00ff"]);
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None])]);
        check(Arc::new(list), &["[1, NULL]"]);
        let dictionary: DictionaryArray<Int32Type> = vec![Some("a"), None].into_iter().collect();
        check(Arc::new(dictionary), &["a", "<null>"]);
    }
}
