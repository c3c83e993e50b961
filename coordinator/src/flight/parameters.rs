//! Parameters: bound batches as rows of values, in the types that the
//! statement expects wherever that loses nothing.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Schema};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use datafusion::common::ScalarValue;
use futures::{Stream, StreamExt};
use tonic::Status;

use super::status::{internal, invalid, status};
use crate::{Error, Prepared};

/// Bytes of parameters that one statement may have bound.
const BOUND_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads the rows of parameters from a `DoPut` stream. `None` where the
/// client sent no columns at all.
///
/// # Errors
/// `Invalid` where the columns are not those of the statement, `Exhausted`
/// where there are too many bytes.
pub(super) async fn read(
    prepared: &Prepared,
    messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
) -> Result<Option<Vec<Vec<ScalarValue>>>, Status> {
    // Some clients send nothing but the command where there is nothing to bind.
    let messages = messages
        .filter(|message| std::future::ready(!matches!(message, Ok(data) if data.data_header.is_empty())))
        .map(|message| message.map_err(FlightError::from));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
    let mut rows = Vec::new();
    let mut bytes = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(unreadable)?;
        bytes += batch.get_array_memory_size();
        if bytes > BOUND_BYTES_MAX {
            return Err(status(Error::Exhausted(format!(
                "more than {BOUND_BYTES_MAX} bytes of parameters; load rows with bulk ingest, or bind fewer at a time"
            ))));
        }
        if batch.num_columns() > 0 {
            rows.extend(rows_of(prepared.parameters(), &batch)?);
        }
    }
    let columns = batches.schema().map_or(0, |schema| schema.fields().len());
    Ok((columns > 0).then_some(rows))
}

/// The one row of parameters that a query takes.
///
/// # Errors
/// `Invalid` where there are none and it has parameters, or several.
pub(super) fn single_row(
    prepared: &Prepared,
    bound: Option<Vec<Vec<ScalarValue>>>,
) -> Result<Vec<ScalarValue>, Status> {
    let mut rows = for_each_run(prepared, bound)?;
    if rows.len() > 1 {
        return Err(invalid(format!(
            "{} rows of parameters are bound; a query takes one row. Run it once for each row",
            rows.len()
        )));
    }
    rows.pop().ok_or_else(|| invalid("a batch of no rows is bound; a query takes one row of parameters"))
}

/// The rows of parameters to run a statement with, once for each.
///
/// # Errors
/// `Invalid` where nothing is bound to a statement that has parameters.
pub(super) fn for_each_run(
    prepared: &Prepared,
    bound: Option<Vec<Vec<ScalarValue>>>,
) -> Result<Vec<Vec<ScalarValue>>, Status> {
    match bound {
        Some(rows) => Ok(rows),
        None if prepared.parameters().fields().is_empty() => Ok(vec![Vec::new()]),
        None => Err(invalid(format!(
            "the statement has {}; bind values to them first",
            counted(prepared.parameters().fields().len())
        ))),
    }
}

fn rows_of(expected: &Schema, batch: &RecordBatch) -> Result<Vec<Vec<ScalarValue>>, Status> {
    if batch.num_columns() != expected.fields().len() {
        return Err(invalid(format!(
            "the statement has {} and {} are bound",
            counted(expected.fields().len()),
            batch.num_columns()
        )));
    }
    let columns: Vec<ArrayRef> = expected
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| exactly(column, field.data_type()))
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            columns
                .iter()
                .map(|column| {
                    ScalarValue::try_from_array(column, row).map_err(|error| status(Error::from(error)))
                })
                .collect()
        })
        .collect()
}

/// `column` as `wanted`, or as it is where that would change a value: the
/// statement then compares 2.5 with integers, instead of 2.
fn exactly(column: &ArrayRef, wanted: &DataType) -> ArrayRef {
    if column.data_type() == wanted || *wanted == DataType::Null {
        return Arc::clone(column);
    }
    let strictly = CastOptions { safe: false, ..CastOptions::default() };
    let there_and_back = cast_with_options(column, wanted, &strictly).and_then(|there| {
        let back = cast_with_options(&there, column.data_type(), &strictly)?;
        let same = column.len() == column.null_count() || not_distinct(&back, column)?.false_count() == 0;
        Ok((there, same))
    });
    match there_and_back {
        Ok((there, true)) => there,
        Ok((_, false)) | Err(_) => Arc::clone(column),
    }
}

fn unreadable(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        FlightError::ExternalError(error) => internal(error),
        error => invalid(format!("the bound parameters cannot be read: {error}")),
    }
}

fn counted(count: usize) -> String {
    match count {
        0 => "no parameters".to_owned(),
        1 => "1 parameter ($1)".to_owned(),
        count => format!("{count} parameters ($1 to ${count})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, StringArray, StringViewArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, TimeUnit};

    fn check(column: ArrayRef, wanted: DataType, expected: DataType) {
        assert_eq!(*exactly(&column, &wanted).data_type(), expected, "{column:?} as {wanted}");
    }

    #[test]
    fn a_value_takes_the_expected_type_only_where_it_stays_the_same() {
        let integers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(300)]));
        check(Arc::clone(&integers), DataType::Int32, DataType::Int32);
        check(Arc::clone(&integers), DataType::Int8, DataType::Int64);
        check(Arc::clone(&integers), DataType::Decimal128(15, 2), DataType::Decimal128(15, 2));
        check(Arc::clone(&integers), DataType::Null, DataType::Int64);
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![2.5]));
        check(Arc::clone(&floats), DataType::Int64, DataType::Float64);
        check(Arc::clone(&floats), DataType::Decimal128(15, 2), DataType::Decimal128(15, 2));
        check(Arc::new(Float64Array::from(vec![0.055])), DataType::Decimal128(15, 2), DataType::Float64);
        check(Arc::new(StringArray::from(vec!["1994-01-01"])), DataType::Date32, DataType::Date32);
        check(Arc::new(StringArray::from(vec!["x"])), DataType::Utf8View, DataType::Utf8View);
        check(Arc::new(StringViewArray::from(vec!["no number"])), DataType::Int64, DataType::Utf8View);
        let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, None);
        check(Arc::new(TimestampMicrosecondArray::from(vec![5])), nanoseconds.clone(), nanoseconds);
        check(Arc::new(Int64Array::from(vec![None::<i64>])), DataType::Utf8, DataType::Utf8);
    }

    #[test]
    fn the_number_of_columns_must_be_right() {
        let batch =
            RecordBatch::try_from_iter([("0", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef)]).unwrap();
        let two = Schema::new(vec![
            Field::new("$1", DataType::Int64, true),
            Field::new("$2", DataType::Null, true),
        ]);
        let error = rows_of(&two, &batch).unwrap_err();
        assert_eq!(error.message(), "the statement has 2 parameters ($1 to $2) and 1 are bound");
        let one = Schema::new(vec![Field::new("$1", DataType::Int32, true)]);
        let rows = rows_of(&one, &batch).unwrap();
        assert_eq!(rows, vec![vec![ScalarValue::Int32(Some(1))], vec![ScalarValue::Int32(Some(2))]]);
    }
}
