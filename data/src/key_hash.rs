//! Which shard a row belongs to.
//!
//! The hash is part of the data: its name is recorded per table, its values
//! are pinned by golden tests, and it is checked again when a process starts.
//! A table whose hash is not the engine's is read as not partitioned.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Int64Array, StringViewArray};
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::hash_utils::create_hashes;
use datafusion::physical_plan::repartition::REPARTITION_RANDOM_STATE;
use serde::{Deserialize, Serialize};

use crate::DataError;

/// A way to compute the shard of a row from the columns of its shard key.
///
/// The hash sees values in the types of the table's columns: the same number
/// as `Int32` and as `Int64`, or the same text as `Utf8` and as `Utf8View`,
/// may fall into different shards. Callers cast to the column's type first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyHash {
    /// What DataFusion 55 computes when it repartitions by hash, so that an
    /// exchange can bring rows to where a table's shards are. Nulls of a
    /// single key column fall into shard 0.
    #[default]
    #[serde(rename = "datafusion-55")]
    DataFusion55,
}

impl KeyHash {
    /// The hash that new tables get.
    pub const CURRENT: Self = Self::DataFusion55;

    /// Whether this engine computes the hash as it was when the table was
    /// written. Where it does not, the table must not be taken as
    /// partitioned, and nothing may be added to it.
    pub fn is_of_this_engine(self) -> bool {
        static MATCHES: LazyLock<bool> = LazyLock::new(|| {
            let keys: [ArrayRef; 2] = [
                Arc::new(Int64Array::from(vec![1, -1])),
                Arc::new(StringViewArray::from(vec!["shoal", "longer than twelve bytes"])),
            ];
            let mut hashes = vec![0; 2];
            create_hashes(&keys, REPARTITION_RANDOM_STATE.random_state(), &mut hashes).is_ok()
                && hashes == FINGERPRINT
        });
        match self {
            Self::DataFusion55 => *MATCHES,
        }
    }

    /// The shard of each row, in 0 to `shards - 1`; `out` is overwritten.
    /// `keys` are the columns of the shard key in its order.
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
        create_hashes(keys, REPARTITION_RANDOM_STATE.random_state(), &mut hashes)?;
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

/// Hashes of (1, 'shoal') and (-1, 'longer than twelve bytes').
const FINGERPRINT: [u64; 2] = [0x428f_ba3e_9eac_b92f, 0xe246_0c65_0285_d4cb];

#[cfg(test)]
mod tests;
