//! Brings rows from anywhere to a table's columns: order, types, nulls.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use shoal_proto::{ErrorCode, Failure};

/// How the columns of an input become those of a table.
#[derive(Debug)]
pub struct RowShape {
    source: String,
    columns: SchemaRef,
    /// For each column of the table, where it is in the input.
    sources: Vec<Option<usize>>,
    rows_before: u64,
}

impl RowShape {
    /// Matches columns by name. A column that the input lacks is null.
    /// `source` is what messages call the input.
    ///
    /// # Errors
    /// `Invalid` naming the column that is missing, unknown, given twice or
    /// of a type that cannot become the table's.
    pub fn new(source: &str, columns: &SchemaRef, input: &Schema) -> Result<Self, Failure> {
        for (index, field) in input.fields().iter().enumerate() {
            if columns.column_with_name(field.name()).is_none() {
                return Err(invalid(format!(
                    "{source} has a column `{}`, which the table does not have (columns of the table: {})",
                    field.name(),
                    names(columns)
                )));
            }
            if input.fields().iter().take(index).any(|earlier| earlier.name() == field.name()) {
                return Err(invalid(format!("{source} has column `{}` twice", field.name())));
            }
        }
        let mut sources = Vec::with_capacity(columns.fields().len());
        for field in columns.fields() {
            let Some((index, given)) = input.column_with_name(field.name()) else {
                if field.is_nullable() {
                    sources.push(None);
                    continue;
                }
                return Err(invalid(format!(
                    "{source} lacks column `{}`, which is NOT NULL in the table (it has: {})",
                    field.name(),
                    names(input)
                )));
            };
            if !is_loadable(given.data_type(), field.data_type()) {
                return Err(invalid(format!(
                    "column `{}` of {source} is of type {}, which cannot become {} as in the table",
                    field.name(),
                    given.data_type(),
                    field.data_type()
                )));
            }
            sources.push(Some(index));
        }
        Ok(Self { source: source.to_owned(), columns: columns.clone(), sources, rows_before: 0 })
    }

    /// As [`RowShape::new`], but the input must have every column.
    ///
    /// # Errors
    /// As there, and `Invalid` for any column that is missing.
    pub fn complete(source: &str, columns: &SchemaRef, input: &Schema) -> Result<Self, Failure> {
        let shape = Self::new(source, columns, input)?;
        match columns.fields().iter().zip(&shape.sources).find(|(_, index)| index.is_none()) {
            None => Ok(shape),
            Some((field, _)) => Err(invalid(format!(
                "{source} lacks column `{}` of the table (it has: {})",
                field.name(),
                names(input)
            ))),
        }
    }

    /// The same shape for an input of which `rows` rows came before.
    pub fn after(mut self, rows: u64) -> Self {
        self.rows_before = rows;
        self
    }

    /// The same rows with exactly the table's columns.
    ///
    /// # Errors
    /// `Invalid` naming column and row for a value that does not fit its type
    /// or a null in a column that takes none.
    pub fn apply(&mut self, batch: &RecordBatch) -> Result<RecordBatch, Failure> {
        let rows = batch.num_rows();
        let mut arrays = Vec::with_capacity(self.sources.len());
        for (field, index) in self.columns.fields().iter().zip(&self.sources) {
            let array = match index {
                None => new_null_array(field.data_type(), rows),
                Some(index) => self.cast(batch.column(*index), field)?,
            };
            if !field.is_nullable()
                && let Some(nulls) = array.logical_nulls()
                && let Some(row) = nulls.iter().position(|valid| !valid)
            {
                return Err(invalid(format!(
                    "row {} of {} has a null in column `{}`, which is NOT NULL",
                    self.rows_before + row as u64 + 1,
                    self.source,
                    field.name()
                )));
            }
            arrays.push(array);
        }
        self.rows_before += rows as u64;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.columns.clone(), arrays, &options)
            .map_err(|error| invalid(format!("{}: {error}", self.source)))
    }

    fn cast(&self, given: &ArrayRef, field: &Field) -> Result<ArrayRef, Failure> {
        if given.data_type() == field.data_type() {
            return Ok(Arc::clone(given));
        }
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(given, field.data_type(), &strict).map_err(|error| {
            // Which row it is costs a second look, at one batch.
            let row = (0..given.len())
                .find(|row| cast_with_options(&given.slice(*row, 1), field.data_type(), &strict).is_err());
            invalid(format!(
                "row {} of {}, column `{}`: {error}",
                self.rows_before + row.unwrap_or(0) as u64 + 1,
                self.source,
                field.name()
            ))
        })
    }
}

/// Whether values of one type may be loaded into a column of another: where
/// the meaning stays, and each value is checked. Text is not parsed.
fn is_loadable(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    if from == to {
        return true;
    }
    if let T::Dictionary(_, values) = from {
        return is_loadable(values, to);
    }
    let is_same_kind = match (from, to) {
        (T::Null, _) => true,
        (from, to) if from.is_integer() => to.is_integer() || to.is_floating() || to.is_decimal(),
        (from, to) if from.is_floating() => to.is_floating(),
        (from, to) if from.is_decimal() => to.is_decimal(),
        (T::Utf8 | T::LargeUtf8 | T::Utf8View, to) => {
            matches!(to, T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Dictionary(_, _))
        }
        (T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_), to) => {
            matches!(to, T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_))
        }
        (T::Date32 | T::Date64, to) => matches!(to, T::Date32 | T::Date64 | T::Timestamp(_, _)),
        // A time of day is not dropped, a zone is not made up.
        (T::Timestamp(_, from), T::Timestamp(_, to)) => from.is_some() == to.is_some(),
        (T::Time32(_) | T::Time64(_), to) => matches!(to, T::Time32(_) | T::Time64(_)),
        (T::Duration(_), to) => matches!(to, T::Duration(_)),
        (T::Interval(_), to) => matches!(to, T::Interval(_)),
        (from, to) => from.is_nested() && to.is_nested(),
    };
    is_same_kind && can_cast_types(from, to)
}

fn invalid(message: String) -> Failure {
    Failure::new(ErrorCode::Invalid, message)
}

fn names(schema: &Schema) -> String {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use arrow::array::record_batch;
    // `record_batch!` looks for it by this name.
    use super::*;
    use arrow::datatypes as arrow_schema;

    fn table() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("k", DataType::Int32, false),
            Field::new("text", DataType::Utf8View, true),
        ]))
    }

    fn refusal(batch: &RecordBatch) -> String {
        RowShape::new("t", &table(), &batch.schema())
            .and_then(|mut shape| shape.apply(batch))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn columns_are_matched_by_name_and_cast() {
        let batch = record_batch!(("text", Utf8, ["a", "b"]), ("k", Int64, [1, 2])).unwrap();
        let rows = RowShape::new("t", &table(), &batch.schema()).unwrap().apply(&batch).unwrap();
        assert_eq!(rows.schema(), table());
        assert_eq!(
            rows.columns(),
            record_batch!(("k", Int32, [1, 2]), ("text", Utf8View, ["a", "b"])).unwrap().columns()
        );
    }

    #[test]
    fn a_missing_column_is_null_if_it_may() {
        let batch = record_batch!(("k", Int32, [1])).unwrap();
        let rows = RowShape::new("t", &table(), &batch.schema()).unwrap().apply(&batch).unwrap();
        assert_eq!(rows.column(1).null_count(), 1);
        let message = refusal(&record_batch!(("text", Utf8, ["a"])).unwrap());
        assert!(message.contains("lacks column `k`"), "{message}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let message = refusal(&record_batch!(("k", Int32, [1]), ("z", Int32, [1])).unwrap());
        assert!(message.contains("column `z`") && message.contains("k, text"), "{message}");
        let message = refusal(&record_batch!(("k", Utf8, ["1"])).unwrap());
        assert!(
            message.contains("`k`") && message.contains("Utf8") && message.contains("Int32"),
            "{message}"
        );
        let message = refusal(&record_batch!(("k", Int64, [1, 1 << 40])).unwrap());
        assert!(message.contains("`k`") && message.contains("1099511627776"), "{message}");
        let message = refusal(&record_batch!(("k", Int32, [Some(1), None])).unwrap());
        assert!(message.contains("row 2") && message.contains("`k`"), "{message}");
    }

    #[test]
    fn kinds_are_not_mixed() {
        let loadable = [
            (DataType::Int64, DataType::Decimal128(15, 2)),
            (DataType::Float32, DataType::Float64),
            (DataType::Null, DataType::Date32),
            (DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)), DataType::Utf8View),
        ];
        for (from, to) in loadable {
            assert!(is_loadable(&from, &to), "{from} to {to}");
        }
        let refused = [
            (DataType::Utf8, DataType::Int64),
            (DataType::Int64, DataType::Utf8),
            (DataType::Float64, DataType::Int64),
            (DataType::Boolean, DataType::Int64),
            (DataType::Int64, DataType::Date32),
        ];
        for (from, to) in refused {
            assert!(!is_loadable(&from, &to), "{from} to {to}");
        }
    }
}
