//! What the catalog learns of each column while its segment is written.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, Schema};
use datafusion::common::ScalarValue;
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::RowGroupMetaData;

use crate::{ColumnStatistics, DataError, StatValue};

/// Gathers what Parquet's own statistics do not say: nulls of nested columns
/// and whether a float column has values that are not numbers.
#[derive(Debug)]
pub(super) struct Collector {
    columns: Vec<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    nulls: u64,
    not_a_number: bool,
}

impl Collector {
    pub(super) fn new(schema: &Schema) -> Self {
        Self { columns: vec![Seen::default(); schema.fields().len()] }
    }

    pub(super) fn take(&mut self, batch: &RecordBatch) -> Result<(), DataError> {
        for (seen, column) in self.columns.iter_mut().zip(batch.columns()) {
            seen.nulls += column.logical_null_count() as u64;
            seen.not_a_number = seen.not_a_number || has_not_a_number(column);
        }
        Ok(())
    }

    /// The first of the `bounded` columns that has a value that is not a number.
    pub(super) fn unbounded(&self, bounded: &[bool]) -> Option<usize> {
        self.columns.iter().zip(bounded).position(|(seen, bounded)| seen.not_a_number && *bounded)
    }

    /// One entry for each column, from the bounds in the file's row groups.
    pub(super) fn finish(
        self,
        row_groups: &[RowGroupMetaData],
        schema: &Schema,
    ) -> Result<Vec<ColumnStatistics>, DataError> {
        let parquet = ArrowSchemaConverter::new().convert(schema)?;
        let mut columns = Vec::with_capacity(self.columns.len());
        for (seen, field) in self.columns.iter().zip(schema.fields()) {
            let mut column = ColumnStatistics { nulls: seen.nulls, min: None, max: None };
            if !field.data_type().is_nested() && !seen.not_a_number {
                let converter = StatisticsConverter::try_new(field.name(), schema, &parquet)?;
                let nulls = converter.row_group_null_counts(row_groups)?;
                let all_null: Vec<bool> = row_groups
                    .iter()
                    .zip(nulls.iter())
                    .map(|(row_group, nulls)| nulls == Some(row_group.num_rows() as u64))
                    .collect();
                let mins = converter.row_group_mins(row_groups)?;
                let exact = converter.row_group_is_min_value_exact(row_groups)?;
                column.min = extreme(&mins, &exact, &all_null, Ordering::Less)?;
                let maxes = converter.row_group_maxes(row_groups)?;
                let exact = converter.row_group_is_max_value_exact(row_groups)?;
                column.max = extreme(&maxes, &exact, &all_null, Ordering::Greater)?;
            }
            columns.push(column);
        }
        Ok(columns)
    }
}

/// The bound over all row groups; none unless each of them that has values
/// knows its own exactly.
fn extreme(
    bounds: &ArrayRef,
    exact: &BooleanArray,
    all_null: &[bool],
    wanted: Ordering,
) -> Result<Option<StatValue>, DataError> {
    let mut extreme: Option<ScalarValue> = None;
    for (row_group, all_null) in all_null.iter().enumerate() {
        if *all_null {
            continue;
        }
        if bounds.is_null(row_group) || exact.is_null(row_group) || !exact.value(row_group) {
            return Ok(None);
        }
        let bound = ScalarValue::try_from_array(bounds, row_group)?;
        let is_further = match &extreme {
            None => true,
            Some(extreme) => match bound.partial_cmp(extreme) {
                None => return Ok(None),
                Some(ordering) => ordering == wanted,
            },
        };
        if is_further {
            extreme = Some(bound);
        }
    }
    Ok(extreme.as_ref().and_then(StatValue::from_scalar))
}

pub(super) fn has_not_a_number(column: &ArrayRef) -> bool {
    match column.data_type() {
        DataType::Float16 => {
            column.as_primitive::<Float16Type>().iter().flatten().any(|value| value.is_nan())
        }
        DataType::Float32 => column.as_primitive::<Float32Type>().iter().flatten().any(f32::is_nan),
        DataType::Float64 => column.as_primitive::<Float64Type>().iter().flatten().any(f64::is_nan),
        _ => false,
    }
}
