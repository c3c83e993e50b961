//! In which order rows go into a segment.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::SortOptions;
use arrow::datatypes::{ArrowPrimitiveType, Schema};
use arrow::row::{OwnedRow, RowConverter, SortField};

use super::integers::for_integers;
use crate::DataError;

const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: false };

/// Keys are counted and not compared where the largest is above the smallest by at most so
/// many times their number.
const COUNTED_SPAN: u64 = 2;

/// Where each row goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// All are where they belong.
    AsTheyAre,
    /// These rows, one after the other.
    Of(Vec<u32>),
}

/// The rows of `columns` sorted by those of them that are the key: ascending,
/// nulls last, equal keys in the order in which they came. Without a key they
/// stay as they are.
pub(super) fn sorted(columns: &[ArrayRef], key: &[usize]) -> Result<Order, DataError> {
    match key {
        [] => Ok(Order::AsTheyAre),
        [only] => match integers_sorted(&columns[*only]) {
            Some(order) => Ok(order),
            None => rows_sorted(std::slice::from_ref(&columns[*only])),
        },
        several => {
            let key: Vec<ArrayRef> = several.iter().map(|index| columns[*index].clone()).collect();
            rows_sorted(&key)
        }
    }
}

/// The order of rows by the first column of the key alone, where that is quickly told; none for
/// others, and where all are where they belong. Rows that are in it before they are sorted are
/// near one another when they are gathered: each of them is in the caches with those beside it.
pub(crate) fn by_first(columns: &[ArrayRef], key: &[usize]) -> Option<Vec<u32>> {
    match integers_sorted(&columns[*key.first()?])? {
        Order::AsTheyAre => None,
        Order::Of(rows) => Some(rows),
    }
}

/// The order of a column of integers without nulls; none for others.
fn integers_sorted(key: &ArrayRef) -> Option<Order> {
    if key.null_count() > 0 {
        return None;
    }
    for_integers!(key, of)
}

fn of<T: ArrowPrimitiveType<Native: Ord + Into<i128>>>(key: &ArrayRef) -> Order {
    let values: &[T::Native] = key.as_primitive::<T>().values();
    if values.is_sorted() {
        return Order::AsTheyAre;
    }
    if let Some(rows) = counted(values) {
        return Order::Of(rows);
    }
    let mut pairs: Vec<(T::Native, u32)> = values.iter().copied().zip(0..).collect();
    pairs.sort_unstable();
    Order::Of(pairs.into_iter().map(|(_, row)| row).collect())
}

/// The order of values that are close to one another, without comparing them; none for
/// others.
fn counted<V: Copy + Ord + Into<i128>>(values: &[V]) -> Option<Vec<u32>> {
    let smallest: i128 = (*values.iter().min()?).into();
    let largest: i128 = (*values.iter().max()?).into();
    // Of decimals it may be more than fits.
    let span = u64::try_from(largest.checked_sub(smallest)?).ok()?;
    if span > COUNTED_SPAN * values.len() as u64 {
        return None;
    }
    let place = |value: &V| {
        let value: i128 = (*value).into();
        (value - smallest) as usize
    };
    // Where the next row with each value goes, once those of smaller values are counted.
    let mut next = vec![0_u32; span as usize + 1];
    values.iter().for_each(|value| next[place(value)] += 1);
    let mut before = 0;
    for count in &mut next {
        before += std::mem::replace(count, before);
    }
    let mut rows = vec![0; values.len()];
    for (row, value) in (0..).zip(values) {
        let next = &mut next[place(value)];
        rows[*next as usize] = row;
        *next += 1;
    }
    Some(rows)
}

/// The order of any columns, through their comparable row format.
fn rows_sorted(key: &[ArrayRef]) -> Result<Order, DataError> {
    let fields = key.iter().map(|column| SortField::new_with_options(column.data_type().clone(), ASCENDING));
    let rows = RowConverter::new(fields.collect())?.convert_columns(key)?;
    let mut pairs: Vec<_> = rows.iter().zip(0_u32..).collect();
    if pairs.is_sorted() {
        return Ok(Order::AsTheyAre);
    }
    pairs.sort_unstable();
    Ok(Order::Of(pairs.into_iter().map(|(_, row)| row).collect()))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, Decimal128Array, Int64Array, StringArray, UInt8Array, UInt64Array};
    use proptest::prelude::*;

    use super::*;

    /// What a stable sort of the values makes.
    fn expected<V: Ord>(values: &[V]) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..values.len() as u32).collect();
        rows.sort_by_key(|row| &values[*row as usize]);
        rows
    }

    fn rows_of(column: ArrayRef) -> Vec<u32> {
        let rows = column.len() as u32;
        match sorted(&[column], &[0]).unwrap() {
            Order::AsTheyAre => (0..rows).collect(),
            Order::Of(rows) => rows,
        }
    }

    #[test]
    fn close_values_are_counted_and_others_compared() {
        assert_eq!(counted(&[3_i64, 1, 2, 1]), Some(vec![1, 3, 2, 0]));
        assert_eq!(counted(&[i64::MAX, i64::MAX - 1]), Some(vec![1, 0]));
        assert_eq!(counted(&[-7_i32, -7, -9]), Some(vec![2, 0, 1]));
        // 4 values may be 8 apart.
        assert_eq!(counted(&[8_i64, 0, 1, 2]), Some(vec![1, 2, 3, 0]));
        assert_eq!(counted(&[9_i64, 0, 1, 2]), None);
        assert_eq!(counted(&[i64::MAX, i64::MIN]), None);
        assert_eq!(counted(&[u64::MAX, 0]), None);
        assert_eq!(counted(&[i128::MAX, i128::MIN]), None);
        assert_eq!(counted::<i64>(&[]), None);
    }

    #[test]
    fn rows_that_are_in_order_stay_as_they_are() {
        let in_order: [(ArrayRef, ArrayRef); 3] = [
            (Arc::new(Int64Array::from(vec![1, 1, 7])), Arc::new(Int64Array::from(vec![1, 7, 1]))),
            (
                Arc::new(Int64Array::from(vec![Some(1), Some(2), None])),
                Arc::new(Int64Array::from(vec![None, Some(1), Some(2)])),
            ),
            (
                Arc::new(StringArray::from(vec!["a", "a", "b"])),
                Arc::new(StringArray::from(vec!["b", "c", "a"])),
            ),
        ];
        for (in_order, others) in in_order {
            let columns = [in_order, others];
            for key in [&[][..], &[0], &[0, 1]] {
                assert_eq!(sorted(&columns, key).unwrap(), Order::AsTheyAre, "{key:?}");
            }
            for key in [&[1][..], &[1, 0]] {
                assert_ne!(sorted(&columns, key).unwrap(), Order::AsTheyAre, "{key:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_keys_keep_their_order_however_far_apart_others_are(
            few in prop::collection::vec(any::<u8>(), 1..600),
            close in prop::collection::vec(-300_i32..300, 1..600),
            far in prop::collection::vec(any::<u64>(), 1..200),
            factors in prop::collection::vec(any::<i64>(), 1..200),
        ) {
            prop_assert_eq!(rows_of(Arc::new(UInt8Array::from(few.clone()))), expected(&few));
            prop_assert_eq!(rows_of(Arc::new(Date32Array::from(close.clone()))), expected(&close));
            prop_assert_eq!(rows_of(Arc::new(UInt64Array::from(far.clone()))), expected(&far));
            let farther: Vec<i128> = factors.into_iter().map(|factor| i128::from(factor) << 60).collect();
            prop_assert_eq!(rows_of(Arc::new(Decimal128Array::from(farther.clone()))), expected(&farther));
            let texts: Vec<String> = close.iter().map(i32::to_string).collect();
            prop_assert_eq!(rows_of(Arc::new(StringArray::from(texts.clone()))), expected(&texts));
        }
    }
}
