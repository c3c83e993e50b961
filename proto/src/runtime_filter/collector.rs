//! Gathers the keys of some rows of a join's built side.

use std::fmt;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;

use super::bloom::Bloom;
use super::key_filter::{Bounds, KeyFilter, hash_keys, rows_with_key};

/// Bytes that a collector may hold.
pub const COLLECTOR_BYTES: usize = Bloom::BYTES_MAX + 64 * 1024;

/// Longer texts are not sent as bounds.
const BOUND_BYTES_MAX: usize = 256;

/// Gathers keys, batch by batch.
pub struct KeyCollector {
    types: Vec<DataType>,
    rows: u64,
    bounds: Vec<(MinAccumulator, MaxAccumulator)>,
    bloom: Option<Bloom>,
    hashes: Vec<u64>,
}

impl fmt::Debug for KeyCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCollector").field("types", &self.types).field("rows", &self.rows).finish()
    }
}

impl KeyCollector {
    /// For keys of these types, each of which [`KeyFilter::takes`].
    ///
    /// # Errors
    /// For a type that has no order.
    pub fn new(types: Vec<DataType>) -> Result<Self> {
        let bounds = types
            .iter()
            .map(|data_type| Ok((MinAccumulator::try_new(data_type)?, MaxAccumulator::try_new(data_type)?)));
        let bounds = bounds.collect::<Result<_>>()?;
        Ok(Self { types, rows: 0, bounds, bloom: Some(Bloom::new()), hashes: Vec::new() })
    }

    /// Takes in the keys of some rows.
    ///
    /// # Errors
    /// Those of comparing and hashing; what is gathered is then of no use.
    pub fn add(&mut self, keys: &[ArrayRef]) -> Result<()> {
        let rows = keys.first().map_or(0, |key| key.len());
        let valid = rows_with_key(keys);
        self.rows += (rows - valid.as_ref().map_or(0, |valid| valid.null_count())) as u64;
        for (key, (min, max)) in keys.iter().zip(&mut self.bounds) {
            let key = std::slice::from_ref(key);
            min.update_batch(key)?;
            max.update_batch(key)?;
        }
        let Some(bloom) = &mut self.bloom else { return Ok(()) };
        hash_keys(keys, rows, &mut self.hashes)?;
        for (row, hash) in self.hashes.iter().enumerate() {
            if valid.as_ref().is_none_or(|valid| valid.is_valid(row)) {
                bloom.insert(*hash);
            }
        }
        if bloom.is_full() {
            self.bloom = None;
        }
        Ok(())
    }

    /// What was gathered.
    ///
    /// # Errors
    /// None in practice.
    pub fn finish(mut self) -> Result<KeyFilter> {
        let bounds = self.bounds.iter_mut().map(|(min, max)| {
            let (min, max) = (min.evaluate()?, max.evaluate()?);
            let is_known = [&min, &max].into_iter().all(is_short);
            Ok(is_known.then_some(Bounds { min, max }))
        });
        let bounds = bounds.collect::<Result<_>>()?;
        Ok(KeyFilter { types: self.types, rows: self.rows, bounds, bloom: self.bloom })
    }
}

/// Whether a value is there, and not too long to be sent.
fn is_short(value: &ScalarValue) -> bool {
    let text = value.try_as_str().flatten();
    !value.is_null() && text.is_none_or(|text| text.len() <= BOUND_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, Date32Array, Int64Array, StringViewArray};

    use super::*;
    use crate::runtime_filter::FilterId;

    fn gathered(batches: &[Vec<ArrayRef>]) -> KeyFilter {
        let types = batches[0].iter().map(|key| key.data_type().clone()).collect();
        let mut collector = KeyCollector::new(types).unwrap();
        batches.iter().for_each(|keys| collector.add(keys).unwrap());
        collector.finish().unwrap().folded(1)
    }

    fn kept(filter: &KeyFilter, keys: &[ArrayRef]) -> Vec<bool> {
        filter.may_have(keys).unwrap().iter().map(|keep| keep.unwrap()).collect()
    }

    fn numbers(values: &[Option<i64>]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    #[test]
    fn a_key_with_a_null_is_among_none() {
        let filter = gathered(&[vec![numbers(&[Some(3), None]), numbers(&[Some(4), Some(7)])]]);
        assert_eq!(filter.rows(), 1);
        let keys = [numbers(&[Some(3), None, Some(3), None]), numbers(&[Some(4), Some(7), None, None])];
        assert_eq!(kept(&filter, &keys), [true, false, false, false]);
        let nothing = gathered(&[vec![numbers(&[None])]]);
        assert_eq!(kept(&nothing, &[numbers(&[None, Some(0)])]), [false, false]);
    }

    #[test]
    fn what_is_outside_of_the_bounds_is_not_among_them() {
        let mut filter = gathered(&[vec![Arc::new(Date32Array::from(vec![10, 20]))]]);
        filter.bloom = None;
        let keys: ArrayRef = Arc::new(Date32Array::from(vec![9, 10, 15, 20, 21]));
        assert_eq!(kept(&filter, &[keys]), [false, true, true, true, false]);
    }

    #[test]
    fn long_texts_are_no_bounds() {
        let long = "x".repeat(BOUND_BYTES_MAX + 1);
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec!["a", long.as_str()]));
        let filter = gathered(&[vec![Arc::clone(&texts)]]);
        assert_eq!(filter.bounds(), [None]);
        assert_eq!(kept(&filter, &[texts]), [true, true]);
    }

    #[test]
    fn it_comes_over_the_wire_as_it_was() {
        let id = FilterId { plan: 7, join: 2 };
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![Some("b"), None]));
        let filter = gathered(&[vec![numbers(&[Some(1), Some(2)]), texts]]);
        let mut wire = filter.to_wire(id, 1, 4).unwrap();
        assert_eq!(KeyFilter::from_wire(&wire).unwrap(), (id, filter));
        wire.bloom.truncate(9);
        assert!(KeyFilter::from_wire(&wire).is_err());
        wire.bounds.truncate(9);
        assert!(KeyFilter::from_wire(&wire).is_err());
    }

    #[test]
    fn it_fits_keys_of_its_types_alone() {
        let filter = gathered(&[vec![numbers(&[Some(1)])]]);
        assert!(filter.fits([DataType::Int64].iter()));
        assert!(!filter.fits([DataType::Int32].iter()));
        assert!(!filter.fits([DataType::Int64, DataType::Int64].iter()));
    }

    #[test]
    fn too_many_keys_leave_their_bounds() {
        let many = numbers(&(0..1_200_000).map(Some).collect::<Vec<_>>());
        let filter = gathered(&[vec![many]]);
        assert_eq!(filter.bloom, None);
        assert_eq!(kept(&filter, &[numbers(&[Some(-1), Some(5), Some(1_200_000)])]), [false, true, false]);
        let both = filter.union(gathered(&[vec![numbers(&[Some(-9)])]]));
        assert_eq!(kept(&both, &[numbers(&[Some(-10), Some(-9), Some(1_200_000)])]), [false, true, false]);
    }
}
