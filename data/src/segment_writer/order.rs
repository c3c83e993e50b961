//! In which order rows go into a segment.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::SortOptions;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Date64Type, Decimal128Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Schema, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::row::{OwnedRow, RowConverter, SortField};

use crate::DataError;

const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: false };

/// The rows of `columns` sorted by those of them that are the key: ascending,
/// nulls last, equal keys in the order in which they came. None without a
/// key: the rows stay as they are.
pub(super) fn sorted(columns: &[ArrayRef], key: &[usize]) -> Result<Option<Vec<u32>>, DataError> {
    Ok(match key {
        [] => None,
        [only] => match integers_sorted(&columns[*only]) {
            Some(rows) => Some(rows),
            None => Some(rows_sorted(std::slice::from_ref(&columns[*only]))?),
        },
        several => {
            let key: Vec<ArrayRef> = several.iter().map(|index| columns[*index].clone()).collect();
            Some(rows_sorted(&key)?)
        }
    })
}

/// The order of a column of integers (also as dates, timestamps, decimals)
/// without nulls; none for others.
fn integers_sorted(key: &ArrayRef) -> Option<Vec<u32>> {
    if key.null_count() > 0 {
        return None;
    }
    Some(match key.data_type() {
        DataType::Int8 => of::<Int8Type>(key),
        DataType::Int16 => of::<Int16Type>(key),
        DataType::Int32 => of::<Int32Type>(key),
        DataType::Int64 => of::<Int64Type>(key),
        DataType::UInt8 => of::<UInt8Type>(key),
        DataType::UInt16 => of::<UInt16Type>(key),
        DataType::UInt32 => of::<UInt32Type>(key),
        DataType::UInt64 => of::<UInt64Type>(key),
        DataType::Date32 => of::<Date32Type>(key),
        DataType::Date64 => of::<Date64Type>(key),
        DataType::Timestamp(TimeUnit::Second, _) => of::<TimestampSecondType>(key),
        DataType::Timestamp(TimeUnit::Millisecond, _) => of::<TimestampMillisecondType>(key),
        DataType::Timestamp(TimeUnit::Microsecond, _) => of::<TimestampMicrosecondType>(key),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => of::<TimestampNanosecondType>(key),
        DataType::Decimal128(_, _) => of::<Decimal128Type>(key),
        _ => return None,
    })
}

fn of<T: ArrowPrimitiveType<Native: Ord>>(key: &ArrayRef) -> Vec<u32> {
    let values = key.as_primitive::<T>().values();
    let mut pairs: Vec<(T::Native, u32)> = values.iter().copied().zip(0..).collect();
    pairs.sort_unstable();
    pairs.into_iter().map(|(_, row)| row).collect()
}

/// The order of any columns, through their comparable row format.
fn rows_sorted(key: &[ArrayRef]) -> Result<Vec<u32>, DataError> {
    let fields = key.iter().map(|column| SortField::new_with_options(column.data_type().clone(), ASCENDING));
    let rows = RowConverter::new(fields.collect())?.convert_columns(key)?;
    let mut pairs: Vec<_> = rows.iter().zip(0_u32..).collect();
    pairs.sort_unstable();
    Ok(pairs.into_iter().map(|(_, row)| row).collect())
}

/// Looks whether rows come in the order of a key, batch after batch.
pub(super) struct InOrder {
    key: Vec<usize>,
    converter: RowConverter,
    /// The key of the row before.
    last: Option<OwnedRow>,
}

impl InOrder {
    /// For the columns with these numbers; none without a key: every order is
    /// right.
    pub(super) fn new(columns: &Schema, key: &[usize]) -> Result<Option<Self>, DataError> {
        if key.is_empty() {
            return Ok(None);
        }
        let field =
            |index: &usize| SortField::new_with_options(columns.field(*index).data_type().clone(), ASCENDING);
        let converter = RowConverter::new(key.iter().map(field).collect())?;
        Ok(Some(Self { key: key.to_vec(), converter, last: None }))
    }

    /// Takes the next rows; whether none of them should have come earlier.
    pub(super) fn check(&mut self, rows: &RecordBatch) -> Result<bool, DataError> {
        let key: Vec<ArrayRef> = self.key.iter().map(|index| rows.column(*index).clone()).collect();
        let rows = self.converter.convert_columns(&key)?;
        let mut last = self.last.as_ref().map(OwnedRow::row);
        for row in rows.iter() {
            if last.is_some_and(|last| last > row) {
                return Ok(false);
            }
            last = Some(row);
        }
        let last = last.map(|row| row.owned());
        self.last = last;
        Ok(true)
    }
}
