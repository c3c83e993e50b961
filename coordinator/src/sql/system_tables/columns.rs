//! Columns of a system table, and the batch that they make.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt64Array};

use crate::Error;

/// Each with its name.
pub(super) type Columns = Vec<(&'static str, ArrayRef)>;

pub(super) fn filled(table: &str, columns: Columns) -> Result<RecordBatch, Error> {
    let columns = columns.into_iter().map(|(name, array)| {
        let may_be_null = (table, name) != ("coordinators", "coordinator");
        (name, array, may_be_null)
    });
    RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| Error::Internal(format!("system.{table}: {error}")))
}

pub(super) fn text<T: AsRef<str>>(values: impl Iterator<Item = T>) -> ArrayRef {
    Arc::new(values.map(Some).collect::<StringArray>())
}

pub(super) fn unsigned(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(values.map(Some).collect::<UInt64Array>())
}

pub(super) fn signed(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.map(|value| i64::try_from(value).unwrap_or(i64::MAX))))
}

pub(super) fn lists(values: impl Iterator<Item = Vec<String>>) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for value in values {
        for item in value {
            builder.values().append_value(item);
        }
        builder.append(true);
    }
    Arc::new(builder.finish())
}
