//! The statistics of a segment in few bytes. A catalog has them for every column
//! of every segment in memory, and as plain values they take most of it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ColumnStatistics, StatValue};

/// Bits of a column's first byte: which bounds it has.
const HAS_MIN: u8 = 1;
const HAS_MAX: u8 = 2;

/// One [`ColumnStatistics`] for each column, packed. Column `n` is found by going
/// over those before it, some 10 ns each.
#[derive(Clone, PartialEq, Eq)]
pub struct PackedStatistics {
    /// The number of columns, then each: which bounds it has, nulls, bounds.
    bytes: Box<[u8]>,
}

impl PackedStatistics {
    /// Takes bytes that [`Self::as_bytes`] gave. What cannot be read in them
    /// counts as not known.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Self {
        Self { bytes: bytes.into() }
    }

    /// As they are kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many columns there are.
    pub fn len(&self) -> usize {
        let count = Reader { rest: &self.bytes }.varint().unwrap_or_default();
        usize::try_from(count).unwrap_or_default()
    }

    /// Whether there is no column.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of the column of this number.
    pub fn get(&self, index: usize) -> Option<ColumnStatistics> {
        self.raw().nth(index).map(Raw::unpacked)
    }

    /// Nulls in the column of this number.
    pub fn nulls(&self, index: usize) -> Option<u64> {
        self.raw().nth(index).map(|column| column.nulls)
    }

    /// The least value of the column of this number, where it is known.
    pub fn min(&self, index: usize) -> Option<StatValue> {
        self.raw().nth(index)?.min.map(Bound::unpacked)
    }

    /// The greatest value of the column of this number, where it is known.
    pub fn max(&self, index: usize) -> Option<StatValue> {
        self.raw().nth(index)?.max.map(Bound::unpacked)
    }

    /// What is known of all columns, in their order.
    pub fn iter(&self) -> impl Iterator<Item = ColumnStatistics> {
        self.raw().map(Raw::unpacked)
    }

    fn raw(&self) -> impl Iterator<Item = Raw<'_>> {
        let mut reader = Reader { rest: &self.bytes };
        let count = reader.varint().unwrap_or_default();
        (0..count).map_while(move |_| reader.column())
    }
}

impl Default for PackedStatistics {
    /// Of no column.
    fn default() -> Self {
        Self::from(Vec::<ColumnStatistics>::new())
    }
}

impl From<Vec<ColumnStatistics>> for PackedStatistics {
    fn from(columns: Vec<ColumnStatistics>) -> Self {
        let mut bytes = Vec::with_capacity(1 + 16 * columns.len());
        put_varint(&mut bytes, columns.len() as u64);
        for ColumnStatistics { nulls, min, max } in &columns {
            let has = |bound: &Option<StatValue>, bit: u8| if bound.is_some() { bit } else { 0 };
            bytes.push(has(min, HAS_MIN) | has(max, HAS_MAX));
            put_varint(&mut bytes, *nulls);
            for bound in [min, max].into_iter().flatten() {
                Bound::of(bound).put(&mut bytes);
            }
        }
        Self { bytes: bytes.into() }
    }
}

impl fmt::Debug for PackedStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// As a list of [`ColumnStatistics`], which is what logs have.
impl Serialize for PackedStatistics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for PackedStatistics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<ColumnStatistics>::deserialize(deserializer)?.into())
    }
}

/// A column as it is packed.
struct Raw<'a> {
    nulls: u64,
    min: Option<Bound<'a>>,
    max: Option<Bound<'a>>,
}

impl Raw<'_> {
    fn unpacked(self) -> ColumnStatistics {
        ColumnStatistics {
            nulls: self.nulls,
            min: self.min.map(Bound::unpacked),
            max: self.max.map(Bound::unpacked),
        }
    }
}

/// A bound as it is packed: a byte that tells its kind, and the value.
enum Bound<'a> {
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    /// An unscaled value that is written like a number.
    Decimal(i128),
    /// Any other text of a decimal.
    DecimalText(&'a str),
    Text(&'a str),
}

impl<'a> Bound<'a> {
    fn of(value: &'a StatValue) -> Self {
        match value {
            StatValue::Bool(value) => Self::Bool(*value),
            StatValue::Int(value) => Self::Int(*value),
            StatValue::UInt(value) => Self::UInt(*value),
            StatValue::Float(value) => Self::Float(*value),
            StatValue::Decimal(text) => match text.parse::<i128>() {
                Ok(value) if value.to_string() == *text => Self::Decimal(value),
                _ => Self::DecimalText(text),
            },
            StatValue::Text(text) => Self::Text(text),
        }
    }

    fn unpacked(self) -> StatValue {
        match self {
            Self::Bool(value) => StatValue::Bool(value),
            Self::Int(value) => StatValue::Int(value),
            Self::UInt(value) => StatValue::UInt(value),
            Self::Float(value) => StatValue::Float(value),
            Self::Decimal(value) => StatValue::Decimal(value.to_string()),
            Self::DecimalText(text) => StatValue::Decimal(text.to_owned()),
            Self::Text(text) => StatValue::Text(text.to_owned()),
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Bool(value) => bytes.extend([0, u8::from(*value)]),
            Self::Int(value) => {
                bytes.push(1);
                put_varint(bytes, zigzag(i128::from(*value)));
            }
            Self::UInt(value) => {
                bytes.push(2);
                put_varint(bytes, *value);
            }
            Self::Float(value) => {
                bytes.push(3);
                bytes.extend(value.to_le_bytes());
            }
            Self::Decimal(value) => {
                bytes.push(4);
                put_varint(bytes, zigzag(*value));
            }
            Self::DecimalText(text) => put_text(bytes, 5, text),
            Self::Text(text) => put_text(bytes, 6, text),
        }
    }
}

/// Appends a number, the fewer bytes the smaller it is.
pub fn put_varint(bytes: &mut Vec<u8>, value: impl Into<u128>) {
    let mut value = value.into();
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_text(bytes: &mut Vec<u8>, kind: u8, text: &str) {
    bytes.push(kind);
    put_varint(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
}

/// Small numbers of both signs as small numbers.
fn zigzag(value: i128) -> u128 {
    (value.cast_unsigned() << 1) ^ (value >> 127).cast_unsigned()
}

fn unzigzag(value: u128) -> i128 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Bytes that are read from the front. Nothing is read where they end too early.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// What is left.
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// So many bytes, as an array.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A number that [`put_varint`] wrote, of 64 bits at most.
    pub fn varint(&mut self) -> Option<u64> {
        // Most are small.
        if let Some((first, rest)) = self.rest.split_first()
            && *first < 0x80
        {
            self.rest = rest;
            return Some(u64::from(*first));
        }
        u64::try_from(self.wide()?).ok()
    }

    fn wide(&mut self) -> Option<u128> {
        let mut value = 0_u128;
        for shift in (0..128).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u128::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.varint()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn column(&mut self) -> Option<Raw<'a>> {
        let [has] = self.array()?;
        let nulls = self.varint()?;
        let min = if has & HAS_MIN == 0 { None } else { Some(self.bound()?) };
        let max = if has & HAS_MAX == 0 { None } else { Some(self.bound()?) };
        Some(Raw { nulls, min, max })
    }

    fn bound(&mut self) -> Option<Bound<'a>> {
        let [kind] = self.array()?;
        Some(match kind {
            0 => Bound::Bool(self.array::<1>()? != [0]),
            1 => Bound::Int(i64::try_from(unzigzag(self.wide()?)).ok()?),
            2 => Bound::UInt(self.varint()?),
            3 => Bound::Float(f64::from_le_bytes(self.array()?)),
            4 => Bound::Decimal(unzigzag(self.wide()?)),
            5 => Bound::DecimalText(self.text()?),
            6 => Bound::Text(self.text()?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = StatValue> {
        prop_oneof![
            any::<bool>().prop_map(StatValue::Bool),
            any::<i64>().prop_map(StatValue::Int),
            any::<u64>().prop_map(StatValue::UInt),
            (-1e300..1e300).prop_map(StatValue::Float),
            any::<i128>().prop_map(|value| StatValue::Decimal(value.to_string())),
            "[-+0-9]{0,45}".prop_map(StatValue::Decimal),
            ".{0,60}".prop_map(StatValue::Text),
        ]
    }

    fn any_column() -> impl Strategy<Value = ColumnStatistics> {
        let bound = || prop::option::of(any_value());
        (any::<u64>(), bound(), bound()).prop_map(|(nulls, min, max)| ColumnStatistics { nulls, min, max })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_was_there(columns in prop::collection::vec(any_column(), 0..20)) {
            let packed = PackedStatistics::from(columns.clone());
            prop_assert_eq!(packed.len(), columns.len());
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), columns.clone());
            for (index, column) in columns.iter().enumerate() {
                prop_assert_eq!(packed.get(index), Some(column.clone()));
                prop_assert_eq!(packed.nulls(index), Some(column.nulls));
                prop_assert_eq!(&packed.min(index), &column.min);
                prop_assert_eq!(&packed.max(index), &column.max);
            }
            prop_assert_eq!(packed.get(columns.len()), None);
            let json = serde_json::to_string(&packed).unwrap();
            let plain = serde_json::to_string(&columns).unwrap();
            prop_assert_eq!(&json, &plain);
            let read: PackedStatistics = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&read, &packed);
            let read = PackedStatistics::from_bytes(packed.as_bytes());
            prop_assert_eq!(&read, &packed);
        }

        #[test]
        fn bytes_that_are_cut_or_strange_are_not_known_and_nothing_else(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            columns in prop::collection::vec(any_column(), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let strange = PackedStatistics::from_bytes(bytes);
            prop_assert!(strange.iter().count() <= strange.len());
            let packed = PackedStatistics::from(columns.clone());
            let whole = packed.as_bytes();
            let cut = PackedStatistics::from_bytes(&whole[..cut.index(whole.len())]);
            for (index, column) in cut.iter().enumerate() {
                prop_assert_eq!(&column, &columns[index]);
            }
        }
    }

    #[test]
    fn columns_of_a_usual_table_are_small() {
        let column = |min: i64, max: i64| ColumnStatistics {
            nulls: 0,
            min: Some(StatValue::Int(min)),
            max: Some(StatValue::Int(max)),
        };
        let packed = PackedStatistics::from(vec![column(9_000, 9_100); 16]);
        // And how many there are.
        assert!(packed.as_bytes().len() <= 16 * 10 + 1, "{} bytes", packed.as_bytes().len());
    }
}
