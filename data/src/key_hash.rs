//! Which shard a row belongs to.
//!
//! The hash is part of the data: its name is recorded per table, its values
//! are pinned by golden tests, and it is checked again when a process starts.
//! A table whose hash is not the engine's is read as not partitioned.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Int64Array, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::hash_utils::create_hashes;
use datafusion::physical_plan::repartition::REPARTITION_RANDOM_STATE;
use serde::{Deserialize, Serialize};

use crate::DataError;

/// A way to compute the shard of a row from the columns of its shard key.
///
/// The hash sees values in one type for each type of a table's columns
/// ([`KeyHash::hashed_type`]): the same number as `Int32` and as `Int64` may fall into
/// different shards. Callers cast to the column's type first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyHash {
    /// What DataFusion 55 computes when it repartitions columns as they are stored by
    /// hash. Text is stored otherwise than scans give it, and has another hash as a
    /// view: no exchange brings rows to where the shards of a text key are.
    #[serde(rename = "datafusion-55")]
    DataFusion55,
    /// The same of columns as scans give them, text and binary ones as views, so that
    /// an exchange can bring rows to where a table's shards are, whatever the key.
    #[serde(rename = "datafusion-55-views")]
    DataFusion55Views,
}

impl KeyHash {
    /// The hash that new tables get.
    pub const CURRENT: Self = Self::DataFusion55Views;

    /// Whether this engine computes the hash as it was when the table was
    /// written. Where it does not, the table must not be taken as
    /// partitioned, and nothing may be added to it.
    pub fn is_of_this_engine(self) -> bool {
        static MATCHES: LazyLock<bool> = LazyLock::new(|| {
            let keys: [ArrayRef; 2] = [
                Arc::new(Int64Array::from(vec![1, -1])),
                Arc::new(StringViewArray::from(vec!["shoal", "longer than twelve bytes"])),
            ];
            hashes_to(&keys, &FINGERPRINT)
        });
        static VIEWS_MATCH: LazyLock<bool> = LazyLock::new(|| {
            let texts = StringViewArray::from(vec!["a", "größe", "longer than twelve bytes"]);
            hashes_to(&[Arc::new(texts)], &VIEWS_FINGERPRINT)
        });
        match self {
            Self::DataFusion55 => *MATCHES,
            Self::DataFusion55Views => *MATCHES && *VIEWS_MATCH,
        }
    }

    /// The type in which the values of a column of type `stored` are hashed. An exchange
    /// of values of this type, and of no other, deals them as the shards are dealt.
    pub fn hashed_type(self, stored: &DataType) -> DataType {
        match (self, stored) {
            (Self::DataFusion55Views, DataType::Utf8 | DataType::LargeUtf8) => DataType::Utf8View,
            (Self::DataFusion55Views, DataType::Binary | DataType::LargeBinary) => DataType::BinaryView,
            (Self::DataFusion55 | Self::DataFusion55Views, _) => stored.clone(),
        }
    }

    /// The shard of each row, in 0 to `shards - 1`; `out` is overwritten.
    /// `keys` are the columns of the shard key in its order, in the types of the table's
    /// columns or in those in which these are hashed.
    ///
    /// # Errors
    /// `Layout` where there is no key or no shard, or where the engine's hash
    /// has changed; `DataFusion` for types that cannot be hashed.
    pub fn shards_of(self, keys: &[ArrayRef], shards: u32, out: &mut Vec<u32>) -> Result<(), DataError> {
        let Some(first) = keys.first() else {
            return Err(DataError::Layout("a row without shard key has no shard of its own".into()));
        };
        if shards == 0 {
            return Err(DataError::Layout("shards = 0: a table has at least one shard".into()));
        }
        if !self.is_of_this_engine() {
            return Err(DataError::Layout(format!(
                "the table was written with key hash {self:?}, which this version of Shoal no longer computes: \
                 copy it into a new table with CREATE TABLE ... AS SELECT"
            )));
        }
        let mut hashes = vec![0_u64; first.len()];
        let hashed = keys.iter().map(|key| {
            let hashed_type = self.hashed_type(key.data_type());
            match *key.data_type() == hashed_type {
                true => Ok(Arc::clone(key)),
                false => cast(key, &hashed_type),
            }
        });
        let hashed = hashed.collect::<Result<Vec<ArrayRef>, _>>()?;
        create_hashes(&hashed, REPARTITION_RANDOM_STATE.random_state(), &mut hashes)?;
        out.clear();
        if shards.is_power_of_two() {
            let mask = u64::from(shards) - 1;
            out.extend(hashes.iter().map(|hash| (hash & mask) as u32));
        } else {
            let shards = u64::from(shards);
            out.extend(hashes.iter().map(|hash| (hash % shards) as u32));
        }
        Ok(())
    }

    /// The shard of the rows whose key has these values, for pruning; `types`
    /// are those of the key's columns. None where a value cannot be in its
    /// column exactly (or is null, which `=` never finds): then nothing can
    /// be said.
    ///
    /// # Errors
    /// Those of [`KeyHash::shards_of`].
    pub fn shard_of_scalars(
        self,
        values: &[ScalarValue],
        types: &[DataType],
        shards: u32,
    ) -> Result<Option<u32>, DataError> {
        if values.len() != types.len() || values.is_empty() {
            return Ok(None);
        }
        let mut keys = Vec::with_capacity(values.len());
        for (value, data_type) in values.iter().zip(types) {
            let Some(value) = exactly(value, data_type) else { return Ok(None) };
            keys.push(value.to_array()?);
        }
        let mut shard = Vec::with_capacity(1);
        self.shards_of(&keys, shards, &mut shard)?;
        Ok(shard.first().copied())
    }
}

/// `value` in another type, if nothing is lost on the way there and back.
fn exactly(value: &ScalarValue, data_type: &DataType) -> Option<ScalarValue> {
    // Several integers can equal one float.
    if value.is_null() || value.data_type().is_floating() {
        return None;
    }
    if value.data_type() == *data_type {
        return Some(value.clone());
    }
    let there = value.cast_to(data_type).ok().filter(|there| !there.is_null())?;
    let back = there.cast_to(&value.data_type()).ok()?;
    (back == *value).then_some(there)
}

/// Whether the engine gives the rows of these keys these hashes.
fn hashes_to(keys: &[ArrayRef], expected: &[u64]) -> bool {
    let mut hashes = vec![0; expected.len()];
    create_hashes(keys, REPARTITION_RANDOM_STATE.random_state(), &mut hashes).is_ok() && hashes == expected
}

/// Hashes of (1, 'shoal') and (-1, 'longer than twelve bytes').
const FINGERPRINT: [u64; 2] = [0x428f_ba3e_9eac_b92f, 0xe246_0c65_0285_d4cb];

/// Hashes of 'a', 'größe' and 'longer than twelve bytes' as views.
const VIEWS_FINGERPRINT: [u64; 3] =
    [17_820_346_963_609_243_796, 2_471_474_549_648_181_381, 7_224_874_377_089_922_097];

#[cfg(test)]
mod tests;
