//! How the values of each column are written, decided by a sample of them.

use std::collections::HashSet;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType};
use datafusion::common::hash_utils::create_hashes;
use datafusion::physical_plan::repartition::REPARTITION_RANDOM_STATE;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::WriterPropertiesBuilder;
use parquet::schema::types::ColumnPath;

use super::integers::for_integers;
use crate::DataError;

/// A column whose sample has more distinct values than this share of its rows
/// is written without a dictionary.
const DICTIONARY_DISTINCT_MAX: f64 = 0.9;
/// More than so many bits a value fewer must the places in a dictionary take than the differences of integers:
/// those are written and read without looking anything up.
const DICTIONARY_BITS_LESS: u32 = 2;
/// So many columns of one table at most: the encoder reserves 1 MiB for each of them from its
/// first value on, which merges of segments have room for.
pub(super) const PACKED_COLUMNS_MAX: usize = 24;
/// Decimals of more digits are written as bytes, and not as integers.
const INTEGER_DIGITS_MAX: u8 = 18;

/// What one column is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ColumnEncoding {
    /// Whether each value is written once, and then as its number.
    dictionary: bool,
    /// How values are written that are in no dictionary; none for the format's own.
    values: Option<Encoding>,
}

impl ColumnEncoding {
    /// For a column with values like these.
    ///
    /// Integers, and what is stored as such, are written as differences, packed into as many bits as
    /// they take; text with its lengths apart from its bytes. Both are smaller than the plain
    /// values, and faster to write and to read.
    ///
    /// # Errors
    /// What the engine says of a type that it cannot hash.
    pub(super) fn of(sample: &ArrayRef) -> Result<Self, DataError> {
        if let Some(span) = for_integers!(sample, span).filter(|_| may_be_packed(sample.data_type())) {
            let is_smaller = |distinct: usize| bits(distinct as u128) + DICTIONARY_BITS_LESS < bits(span) + 1;
            let dictionary = distinct_that_come_back(sample)?.is_some_and(is_smaller);
            return Ok(Self { dictionary, values: Some(Encoding::DELTA_BINARY_PACKED) });
        }
        let is_text = matches!(
            sample.data_type(),
            DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
        );
        let dictionary = distinct_that_come_back(sample)?.is_some();
        Ok(Self { dictionary, values: is_text.then_some(Encoding::DELTA_LENGTH_BYTE_ARRAY) })
    }

    /// Whether a column that is written so takes [memory](PACKED_COLUMNS_MAX) of its own.
    pub(super) fn is_packed(self) -> bool {
        self.values.is_some()
    }

    /// The same with what is in no dictionary written as the format does.
    pub(super) fn unpacked(self) -> Self {
        Self { values: None, ..self }
    }

    /// Has a column written so.
    pub(super) fn set(
        self,
        properties: WriterPropertiesBuilder,
        path: ColumnPath,
    ) -> WriterPropertiesBuilder {
        let mut properties = properties.set_column_dictionary_enabled(path.clone(), self.dictionary);
        if let Some(values) = self.values {
            properties = properties.set_column_encoding(path.clone(), values);
        }
        // Packed differences have little left to compress.
        if !self.dictionary && self.values == Some(Encoding::DELTA_BINARY_PACKED) {
            properties = properties.set_column_compression(path, Compression::UNCOMPRESSED);
        }
        properties
    }
}

/// Whether values of a type of integers can be written as differences. Those of more digits are not
/// stored as integers. And to pass over 32-bit integers that are all as far apart is an error in the
/// reader where together that is more than 32 bits (parquet 59, `DeltaBitPackDecoder::skip`): dates and times
/// of day are never so far apart, and neither are decimals of nine digits.
fn may_be_packed(data_type: &DataType) -> bool {
    match data_type {
        DataType::Decimal128(digits, _) => *digits <= INTEGER_DIGITS_MAX,
        DataType::Int32 | DataType::UInt32 => false,
        _ => true,
    }
}

/// Bits that it takes to tell so many things apart.
fn bits(count: u128) -> u32 {
    u128::BITS - count.saturating_sub(1).leading_zeros()
}

/// How many values there are between the least and the greatest, both of them counted.
fn span<T: ArrowPrimitiveType<Native: Into<i128>>>(column: &ArrayRef) -> u128 {
    let (mut least, mut greatest) = (i128::MAX, i128::MIN);
    for value in column.as_primitive::<T>().iter().flatten() {
        let value: i128 = value.into();
        (least, greatest) = (least.min(value), greatest.max(value));
    }
    if least > greatest { 0 } else { greatest.abs_diff(least).saturating_add(1) }
}

/// The distinct values of a sample, if they come back often enough for a dictionary.
fn distinct_that_come_back(sample: &ArrayRef) -> Result<Option<usize>, DataError> {
    if matches!(sample.data_type(), DataType::Boolean) || sample.is_empty() {
        return Ok(None);
    }
    let mut hashes = vec![0; sample.len()];
    create_hashes([sample], REPARTITION_RANDOM_STATE.random_state(), &mut hashes)?;
    let rows = hashes.len();
    let distinct = hashes.into_iter().collect::<HashSet<u64>>().len();
    Ok((distinct as f64 <= rows as f64 * DICTIONARY_DISTINCT_MAX).then_some(distinct))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, StringViewArray,
        UInt32Array,
    };

    use super::*;

    const ROWS: i64 = 4096;

    fn of(column: impl Array + 'static) -> ColumnEncoding {
        ColumnEncoding::of(&(Arc::new(column) as ArrayRef)).unwrap()
    }

    fn integers(value: impl Fn(i64) -> i64) -> Int64Array {
        (0..ROWS).map(value).collect()
    }

    #[test]
    fn integers_are_written_as_differences_unless_a_dictionary_is_clearly_smaller() {
        let differences = ColumnEncoding { dictionary: false, values: Some(Encoding::DELTA_BINARY_PACKED) };
        let dictionary = ColumnEncoding { dictionary: true, ..differences };
        assert_eq!(of(integers(|row| row)), differences);
        assert_eq!(of(integers(|row| row % 7)), differences);
        // Fifty values, a hundred apart.
        assert_eq!(of(integers(|row| row % 50 * 100)), dictionary);
        assert_eq!(of(integers(|row| if row % 2 == 0 { i64::MIN } else { i64::MAX })), dictionary);
        assert_eq!(of(integers(|row| row * (1 << 50))), differences);
        assert_eq!(of(Date32Array::from_iter((0..ROWS).map(|row| Some((row % 2500) as i32)))), differences);
        assert_eq!(of(Int64Array::from_iter((0..ROWS).map(|_| None))), differences);
    }

    #[test]
    fn only_decimals_that_are_stored_as_integers_are_written_as_differences() {
        let decimals = |digits| {
            let values = Decimal128Array::from_iter_values((0..ROWS).map(i128::from));
            of(values.with_precision_and_scale(digits, 2).unwrap()).values
        };
        assert_eq!(decimals(18), Some(Encoding::DELTA_BINARY_PACKED));
        assert_eq!(decimals(19), None);
    }

    #[test]
    fn integers_of_32_bits_are_not_written_as_differences() {
        let plain = ColumnEncoding { dictionary: false, values: None };
        assert_eq!(of(Int32Array::from_iter_values(0..ROWS as i32)), plain);
        assert_eq!(of(UInt32Array::from_iter_values(0..ROWS as u32)), plain);
        assert_eq!(
            of(Int32Array::from_iter_values((0..ROWS as i32).map(|row| row % 7))),
            ColumnEncoding { dictionary: true, ..plain }
        );
    }

    #[test]
    fn text_has_a_dictionary_where_values_come_back() {
        let text = |count: i64| {
            let values = (0..ROWS).map(|row| Some(format!("text {}", row % count)));
            of(values.collect::<StringViewArray>())
        };
        let lengths = Some(Encoding::DELTA_LENGTH_BYTE_ARRAY);
        assert_eq!(text(2), ColumnEncoding { dictionary: true, values: lengths });
        assert_eq!(text(ROWS), ColumnEncoding { dictionary: false, values: lengths });
    }

    #[test]
    fn other_types_are_written_as_the_format_does() {
        let plain = ColumnEncoding { dictionary: false, values: None };
        assert_eq!(of(Float64Array::from_iter_values((0..ROWS).map(|row| row as f64))), plain);
        assert_eq!(of(BooleanArray::from_iter((0..ROWS).map(|row| Some(row % 2 == 0)))), plain);
    }
}
