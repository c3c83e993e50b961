//! How many distinct values the columns of a table have, by estimate: one `HyperLogLog` sketch
//! for each column, of all rows that were ever added. Rows never go, but with their table, so the
//! sketches of what each write brings are put together and nothing is ever read again.
//!
//! Estimates are about 3 % off. Nothing may rest on them but what costs more or less.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use datafusion::common::hash_utils::create_hashes;
use datafusion::physical_plan::repartition::REPARTITION_RANDOM_STATE;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use self::registers::Registers;
use crate::KeyHash;

mod registers;

/// How values are hashed, and how registers are written: sketches of different versions cannot be
/// put together. 1: what [`KeyHash::CURRENT`] is made of, mixed once more; 1024 registers.
const VERSION: u32 = 1;
/// Columns behind these have no sketch: a change of the catalog carries all that there are.
pub const COLUMNS_MAX: usize = 256;
/// Values that are hashed at once, so that their hashes stay near.
const HASHED_ROWS: usize = 8192;

/// What is known of the distinct values of one column: its registers, packed, and what they
/// come to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sketch {
    packed: Box<[u8]>,
    distinct: u64,
}

impl From<&Registers> for Sketch {
    fn from(registers: &Registers) -> Self {
        Self { packed: registers.packed().into_boxed_slice(), distinct: registers.distinct() }
    }
}

impl Sketch {
    fn from_packed(packed: Vec<u8>) -> Option<Self> {
        let distinct = Registers::from_packed(&packed)?.distinct();
        Some(Self { packed: packed.into_boxed_slice(), distinct })
    }

    fn union(&self, other: &Self) -> Option<Self> {
        let mut registers = Registers::from_packed(&self.packed)?;
        registers.take_in(&Registers::from_packed(&other.packed)?);
        Some(Self::from(&registers))
    }
}

/// The sketches of the columns of one table, over some of its rows, or all. Takes some 800
/// bytes for each column, less where it has few values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Sketches {
    /// In the order of the columns; none for what is not sketched. Without rows there are none.
    columns: Vec<Option<Sketch>>,
}

impl Sketches {
    /// Those of rows, which have the table's columns in the table's types. None where the engine
    /// hashes otherwise than it did. Takes 2 to 3 ns for each value that is a number, and the
    /// time of hashing it for text.
    pub fn of_rows(rows: &RecordBatch) -> Option<Self> {
        if !KeyHash::CURRENT.is_of_this_engine() {
            return None;
        }
        let mut hashes = Vec::new();
        let columns = rows.columns().iter().enumerate().map(|(index, column)| match index < COLUMNS_MAX {
            true => of_column(column, &mut hashes).as_ref().map(Sketch::from),
            false => None,
        });
        Some(Self { columns: columns.collect() })
    }

    /// Those of two lots of rows together, each none where it is not known; then what they have
    /// together is not known either.
    pub fn of_both(one: Option<Arc<Self>>, other: Option<Arc<Self>>) -> Option<Arc<Self>> {
        let (one, other) = (one?, other?);
        if one.columns.is_empty() {
            return Some(other);
        }
        if other.columns.is_empty() {
            return Some(one);
        }
        if one.columns.len() != other.columns.len() {
            return None;
        }
        let pairs = one.columns.iter().zip(&other.columns);
        let columns = pairs.map(|pair| match pair {
            (Some(one), Some(other)) => one.union(other),
            _ => None,
        });
        Some(Arc::new(Self { columns: columns.collect() }))
    }

    /// Whether they can be those of rows of a table of so many columns.
    pub fn fit(&self, columns: usize) -> bool {
        self.columns.len() == columns
    }

    /// About how many distinct values a column has, NULL not counted; none where that is not known.
    pub fn distinct(&self, column: usize) -> Option<u64> {
        match self.columns.is_empty() {
            true => Some(0),
            false => self.columns.get(column)?.as_ref().map(|sketch| sketch.distinct),
        }
    }
}

/// The registers of one column; none for a type that is not sketched.
fn of_column(column: &ArrayRef, hashes: &mut Vec<u64>) -> Option<Registers> {
    let at_once = match column.data_type() {
        nested if nested.is_nested() => return None,
        // The values of a dictionary are hashed each time that one of its rows is.
        DataType::Dictionary(_, _) => column.len().max(1),
        _ => HASHED_ROWS,
    };
    let mut registers = Registers::default();
    for start in (0..column.len()).step_by(at_once) {
        let some = column.slice(start, at_once.min(column.len() - start));
        hashes.clear();
        hashes.resize(some.len(), 0);
        create_hashes([&some], REPARTITION_RANDOM_STATE.random_state(), hashes.as_mut_slice()).ok()?;
        match some.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
            None => hashes.iter().for_each(|hash| registers.add(*hash)),
            Some(nulls) => {
                let valid = nulls.valid_indices().filter_map(|row| hashes.get(row));
                valid.for_each(|hash| registers.add(*hash));
            }
        }
    }
    Some(registers)
}

/// As sketches are written. Later versions keep this form as far as their number.
#[derive(Clone, Serialize, Deserialize)]
struct Written {
    version: u32,
    /// The registers of each column, packed, in base64.
    columns: Vec<Option<String>>,
}

impl From<Sketches> for Written {
    fn from(sketches: Sketches) -> Self {
        let columns = sketches.columns.into_iter();
        let columns = columns.map(|column| column.map(|sketch| STANDARD_NO_PAD.encode(sketch.packed)));
        Self { version: VERSION, columns: columns.collect() }
    }
}

impl TryFrom<Written> for Sketches {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        if written.version != VERSION {
            return Err(format!("sketches of version {}, not {VERSION}", written.version));
        }
        let read = |text: String| {
            let packed = STANDARD_NO_PAD.decode(text).map_err(|error| error.to_string())?;
            Sketch::from_packed(packed).ok_or_else(|| "a sketch cannot be read".to_owned())
        };
        let columns = written.columns.into_iter().map(|column| column.map(read).transpose());
        Ok(Self { columns: columns.collect::<Result<_, _>>()? })
    }
}

/// Reads sketches where there are some and they are of this version. Others are as good as none:
/// what they belong to is read without them.
///
/// # Errors
/// Those of the reader.
pub fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Sketches>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Read {
        Known(Sketches),
        Other(IgnoredAny),
    }
    Ok(match Option::<Read>::deserialize(deserializer)? {
        Some(Read::Known(sketches)) => Some(Arc::new(sketches)),
        Some(Read::Other(_)) | None => None,
    })
}

#[cfg(test)]
mod tests;
