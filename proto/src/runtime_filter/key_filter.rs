//! What is known of the keys of a join's built side: the least and the greatest
//! of each column, and a Bloom filter over the rows' hashes.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::kernels::cmp::{gt_eq, lt_eq};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::hash_utils::create_hashes;
use datafusion::common::{Result, ScalarValue, internal_datafusion_err, internal_err};
use datafusion::physical_plan::repartition::REPARTITION_RANDOM_STATE;
use serde::{Deserialize, Serialize};

use super::bloom::Bloom;
use crate::query::RuntimeFilter;

/// Which filter: that of a join in a plan. No two plans have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilterId {
    /// A random number for the plan of an attempt.
    pub plan: u64,
    /// The join's number in it.
    pub join: u32,
}

/// The least and the greatest value of a column of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// No key is less.
    pub min: ScalarValue,
    /// No key is greater.
    pub max: ScalarValue,
}

/// Says of a row whether its key may be among those that were gathered. A row
/// whose key has a null is never among them: such keys are equal to none.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyFilter {
    pub(super) types: Vec<DataType>,
    /// Rows that have a key; [`u64::MAX`] where it is of any.
    pub(super) rows: u64,
    /// Of each column; none where they are not known.
    pub(super) bounds: Vec<Option<Bounds>>,
    /// None where there were too many keys.
    pub(super) bloom: Option<Bloom>,
}

impl KeyFilter {
    /// What is known where keys of these types were not gathered: any row may have one.
    pub fn of_any(types: Vec<DataType>) -> Self {
        let bounds = vec![None; types.len()];
        Self { types, rows: u64::MAX, bounds, bloom: None }
    }

    /// The same where what was gathered cannot be kept.
    #[must_use]
    pub fn forgotten(self) -> Self {
        Self::of_any(self.types)
    }

    /// Whether any row with a key may have one of these, for all that is known: a look at it
    /// is in vain, and so is to add to it.
    pub fn is_of_any(&self) -> bool {
        self.rows > 0 && self.bloom.is_none() && self.bounds.iter().all(Option::is_none)
    }

    /// Whether keys of a type can be told by their hashes and their order: equal
    /// ones have one hash.
    pub fn takes(data_type: &DataType) -> bool {
        data_type.is_integer()
            || matches!(
                data_type,
                DataType::Date32
                    | DataType::Date64
                    | DataType::Timestamp(..)
                    | DataType::Decimal128(..)
                    | DataType::Utf8
                    | DataType::LargeUtf8
                    | DataType::Utf8View
            )
    }

    /// Rows behind it that have a key; as many as can be where that is not known.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Least and greatest of each column, where they are known.
    pub fn bounds(&self) -> &[Option<Bounds>] {
        &self.bounds
    }

    /// What it tells of the keys of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        if self.rows == 0 {
            return other;
        }
        if other.rows == 0 {
            return self;
        }
        let bounds = self.bounds.into_iter().zip(other.bounds);
        let bounds = bounds.map(|(one, other)| one.zip(other).and_then(|(one, other)| one.and(other)));
        let bloom = self.bloom.zip(other.bloom).map(|(one, other)| one.union(other));
        Self {
            types: self.types,
            rows: self.rows.saturating_add(other.rows),
            bounds: bounds.collect(),
            bloom: bloom.filter(|bloom| !bloom.is_full()),
        }
    }

    /// The same in fewer bytes, but worth a look still when it is put together with the
    /// others of so many `parts`.
    #[must_use]
    pub fn folded(self, parts: usize) -> Self {
        Self { bloom: self.bloom.map(|bloom| bloom.folded(parts)), ..self }
    }

    /// Whether it tells anything of keys of these types.
    pub fn fits<'a>(&self, types: impl ExactSizeIterator<Item = &'a DataType>) -> bool {
        types.len() == self.types.len() && types.zip(&self.types).all(|(one, other)| one == other)
    }

    /// Which rows may have one of the keys, without nulls. `keys` are the columns
    /// of their keys, of the types for which it [fits](KeyFilter::fits).
    ///
    /// # Errors
    /// Those of comparing and hashing.
    pub fn may_have(&self, keys: &[ArrayRef]) -> Result<BooleanArray> {
        let Some(first) = keys.first() else { return internal_err!("a join without keys") };
        let rows = first.len();
        if self.rows == 0 {
            return Ok(BooleanArray::new(BooleanBuffer::new_unset(rows), None));
        }
        let mut keep = match &self.bloom {
            // What is outside of the bounds is hardly ever in there.
            Some(bloom) => {
                let mut hashes = Vec::new();
                hash_keys(keys, rows, &mut hashes)?;
                BooleanBuffer::collect_bool(rows, |row| bloom.may_have(hashes[row]))
            }
            None => self.between(keys, rows)?,
        };
        if let Some(valid) = rows_with_key(keys) {
            keep = &keep & valid.inner();
        }
        Ok(BooleanArray::new(keep, None))
    }

    /// Which rows have a key between the bounds of each column.
    fn between(&self, keys: &[ArrayRef], rows: usize) -> Result<BooleanBuffer> {
        let mut keep = BooleanBuffer::new_set(rows);
        for (key, bounds) in keys.iter().zip(&self.bounds) {
            let Some(Bounds { min, max }) = bounds else { continue };
            let is_enough = gt_eq(key, &min.to_scalar()?)?;
            let is_little = lt_eq(key, &max.to_scalar()?)?;
            keep = &(&keep & is_enough.values()) & is_little.values();
        }
        Ok(keep)
    }

    /// For the wire, as that of one task of so many.
    ///
    /// # Errors
    /// Those of encoding Arrow.
    pub fn to_wire(&self, id: FilterId, task: u32, tasks: u32) -> Result<RuntimeFilter> {
        let columns = self.types.iter().zip(&self.bounds).map(|(data_type, bounds)| {
            let values = match bounds {
                Some(Bounds { min, max }) => [min.clone(), max.clone()],
                None => [ScalarValue::try_from(data_type)?, ScalarValue::try_from(data_type)?],
            };
            ScalarValue::iter_to_array(values)
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let fields = self.types.iter().enumerate();
        let fields = fields.map(|(index, data_type)| Field::new(index.to_string(), data_type.clone(), true));
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)?;
        let mut bounds = Vec::new();
        let mut writer = StreamWriter::try_new(&mut bounds, batch.schema_ref())?;
        writer.write(&batch)?;
        writer.finish()?;
        drop(writer);
        Ok(RuntimeFilter {
            plan: id.plan,
            join: id.join,
            task,
            tasks,
            rows: self.rows,
            bounds: bounds.into(),
            bloom: self.bloom.as_ref().map(Bloom::to_bytes).unwrap_or_default().into(),
        })
    }

    /// From the wire.
    ///
    /// # Errors
    /// `Internal` where it cannot have been made by [`KeyFilter::to_wire`].
    pub fn from_wire(wire: &RuntimeFilter) -> Result<(FilterId, Self)> {
        let malformed = || internal_datafusion_err!("a run-time filter that is malformed");
        let batch =
            StreamReader::try_new(Cursor::new(&wire.bounds), None)?.next().ok_or_else(malformed)??;
        if batch.num_rows() != 2 {
            return Err(malformed());
        }
        let bounds = batch.columns().iter().map(|column| {
            let (min, max) =
                (ScalarValue::try_from_array(column, 0)?, ScalarValue::try_from_array(column, 1)?);
            Ok((!min.is_null() && !max.is_null()).then_some(Bounds { min, max }))
        });
        let bloom = match wire.bloom.is_empty() {
            true => None,
            false => Some(Bloom::from_bytes(&wire.bloom).ok_or_else(malformed)?),
        };
        let types = batch.schema().fields().iter().map(|field| field.data_type().clone()).collect();
        let filter = Self { types, rows: wire.rows, bounds: bounds.collect::<Result<_>>()?, bloom };
        Ok((FilterId { plan: wire.plan, join: wire.join }, filter))
    }
}

impl Bounds {
    /// Those of both; none where they cannot be compared.
    pub(super) fn and(self, other: Self) -> Option<Self> {
        let min = if self.min.partial_cmp(&other.min)?.is_le() { self.min } else { other.min };
        let max = if self.max.partial_cmp(&other.max)?.is_ge() { self.max } else { other.max };
        Some(Self { min, max })
    }
}

/// Which rows have no null in their key; none where all are so.
pub(super) fn rows_with_key(keys: &[ArrayRef]) -> Option<NullBuffer> {
    keys.iter().fold(None, |nulls, key| NullBuffer::union(nulls.as_ref(), key.logical_nulls().as_ref()))
}

/// The hash of each row's key, the same on every node.
pub(super) fn hash_keys(keys: &[ArrayRef], rows: usize, hashes: &mut Vec<u64>) -> Result<()> {
    hashes.clear();
    hashes.resize(rows, 0);
    create_hashes(keys, REPARTITION_RANDOM_STATE.random_state(), hashes)?;
    Ok(())
}
