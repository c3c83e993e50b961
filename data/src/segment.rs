//! What the catalog knows of a segment: its name, size, checksum and the
//! statistics that let a query skip it.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};
use shoal_proto::{SegmentId, TableId, WorkerId};
use uuid::Uuid;

use crate::{DataError, PackedStatistics};

/// The name by which plans and nodes speak of a segment. It says nothing of
/// where the bytes are: `table/shard/segment.parquet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SegmentName {
    /// The table.
    pub table: TableId,
    /// The shard of that table.
    pub shard: u32,
    /// The segment itself.
    pub segment: SegmentId,
}

impl SegmentName {
    /// A hash of the name, the same on every node: sums of it tell one set of
    /// segments from another.
    pub fn digest(&self) -> u64 {
        // The finaliser of splitmix64: each bit of the input moves all of them.
        let mix = |value: u64| {
            let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            value ^ (value >> 31)
        };
        let (high, low) = self.segment.0.as_u64_pair();
        let parts = [self.table.0, u64::from(self.shard), high, low];
        parts.into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash, part| mix(hash ^ mix(part)))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}.parquet", self.table, self.shard, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || DataError::Name(text.to_owned());
        let mut parts = text.split('/');
        let (Some(table), Some(shard), Some(file), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let segment = file.strip_suffix(".parquet").ok_or_else(wrong)?;
        // One name, one spelling: "+1", "01" or an upper-case id are refused. Plans
        // of many segments are read name by name, so nothing is written out for it.
        if ![table, shard].into_iter().all(is_plain_number) || !is_plain_id(segment) {
            return Err(wrong());
        }
        Ok(Self {
            table: TableId(table.parse().map_err(|_| wrong())?),
            shard: shard.parse().map_err(|_| wrong())?,
            segment: SegmentId(Uuid::parse_str(segment).map_err(|_| wrong())?),
        })
    }
}

/// Whether a number is written as this program writes it.
fn is_plain_number(text: &str) -> bool {
    let has_other = text.bytes().any(|byte| !byte.is_ascii_digit());
    !text.is_empty() && !has_other && (text == "0" || !text.starts_with('0'))
}

/// Whether an id is written as this program writes it.
fn is_plain_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// One immutable Parquet file of one shard, as the catalog records it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Which one.
    pub id: SegmentId,
    /// The table that it belongs to.
    pub table: TableId,
    /// The shard of that table.
    pub shard: u32,
    /// Rows in it.
    pub rows: u64,
    /// Length of the file.
    pub bytes: u64,
    /// CRC-32C of the whole file.
    pub crc32c: u32,
    /// One entry for each column of the table, in their order.
    pub columns: PackedStatistics,
    /// The workers on which it is durable.
    pub replicas: Vec<WorkerId>,
}

impl Segment {
    /// Its name in plans and on the wire.
    pub fn name(&self) -> SegmentName {
        SegmentName { table: self.table, shard: self.shard, segment: self.id }
    }
}

/// What is known of one column in one segment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ColumnStatistics {
    /// Nulls in it.
    pub nulls: u64,
    /// The least value that is not null; none where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<StatValue>,
    /// The greatest value that is not null; none where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<StatValue>,
}

/// A bound in a form that outlives versions of Arrow. Always exact: a value
/// that cannot be kept whole is not kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatValue {
    /// Booleans.
    Bool(bool),
    /// Signed integers, dates, times and timestamps, in the unit of the column.
    Int(i64),
    /// Unsigned integers.
    UInt(u64),
    /// Finite floats, as text: numbers in JSON are read back a little off.
    #[serde(with = "exact_float")]
    Float(f64),
    /// The unscaled value of a decimal, as text.
    Decimal(String),
    /// Text of at most [`TEXT_BYTES_MAX`].
    Text(String),
}

mod exact_float {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        /// By versions that wrote numbers.
        Number(f64),
    }

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Written::Number(number) => Ok(number),
        }
    }
}

/// Longer text is not kept as a bound.
pub const TEXT_BYTES_MAX: usize = 256;

impl StatValue {
    /// The bound for a value; none for nulls, not-a-number and types whose
    /// order is of no use.
    pub fn from_scalar(value: &ScalarValue) -> Option<Self> {
        use ScalarValue as S;
        Some(match value {
            S::Boolean(Some(v)) => Self::Bool(*v),
            S::Int8(Some(v)) => Self::Int((*v).into()),
            S::Int16(Some(v)) => Self::Int((*v).into()),
            S::Int32(Some(v))
            | S::Date32(Some(v))
            | S::Time32Second(Some(v))
            | S::Time32Millisecond(Some(v)) => Self::Int((*v).into()),
            S::Int64(Some(v))
            | S::Date64(Some(v))
            | S::Time64Microsecond(Some(v))
            | S::Time64Nanosecond(Some(v))
            | S::TimestampSecond(Some(v), _)
            | S::TimestampMillisecond(Some(v), _)
            | S::TimestampMicrosecond(Some(v), _)
            | S::TimestampNanosecond(Some(v), _) => Self::Int(*v),
            S::UInt8(Some(v)) => Self::UInt((*v).into()),
            S::UInt16(Some(v)) => Self::UInt((*v).into()),
            S::UInt32(Some(v)) => Self::UInt((*v).into()),
            S::UInt64(Some(v)) => Self::UInt(*v),
            S::Float32(Some(v)) if v.is_finite() => Self::Float((*v).into()),
            S::Float64(Some(v)) if v.is_finite() => Self::Float(*v),
            S::Decimal128(Some(v), _, _) => Self::Decimal(v.to_string()),
            S::Utf8(Some(v)) | S::LargeUtf8(Some(v)) | S::Utf8View(Some(v)) if v.len() <= TEXT_BYTES_MAX => {
                Self::Text(v.clone())
            }
            _ => return None,
        })
    }

    /// The value in the type of its column; none where they do not fit, which
    /// readers take as "not known".
    pub fn to_scalar(&self, data_type: &DataType) -> Option<ScalarValue> {
        use ScalarValue as S;
        Some(match (self, data_type) {
            (Self::Bool(v), DataType::Boolean) => S::Boolean(Some(*v)),
            (Self::Int(v), DataType::Int8) => S::Int8(Some(i8::try_from(*v).ok()?)),
            (Self::Int(v), DataType::Int16) => S::Int16(Some(i16::try_from(*v).ok()?)),
            (Self::Int(v), DataType::Int32) => S::Int32(Some(i32::try_from(*v).ok()?)),
            (Self::Int(v), DataType::Int64) => S::Int64(Some(*v)),
            (Self::Int(v), DataType::Date32) => S::Date32(Some(i32::try_from(*v).ok()?)),
            (Self::Int(v), DataType::Date64) => S::Date64(Some(*v)),
            (Self::Int(v), DataType::Time32(TimeUnit::Second)) => {
                S::Time32Second(Some(i32::try_from(*v).ok()?))
            }
            (Self::Int(v), DataType::Time32(TimeUnit::Millisecond)) => {
                S::Time32Millisecond(Some(i32::try_from(*v).ok()?))
            }
            (Self::Int(v), DataType::Time64(TimeUnit::Microsecond)) => S::Time64Microsecond(Some(*v)),
            (Self::Int(v), DataType::Time64(TimeUnit::Nanosecond)) => S::Time64Nanosecond(Some(*v)),
            (Self::Int(v), DataType::Timestamp(unit, zone)) => match unit {
                TimeUnit::Second => S::TimestampSecond(Some(*v), zone.clone()),
                TimeUnit::Millisecond => S::TimestampMillisecond(Some(*v), zone.clone()),
                TimeUnit::Microsecond => S::TimestampMicrosecond(Some(*v), zone.clone()),
                TimeUnit::Nanosecond => S::TimestampNanosecond(Some(*v), zone.clone()),
            },
            (Self::UInt(v), DataType::UInt8) => S::UInt8(Some(u8::try_from(*v).ok()?)),
            (Self::UInt(v), DataType::UInt16) => S::UInt16(Some(u16::try_from(*v).ok()?)),
            (Self::UInt(v), DataType::UInt32) => S::UInt32(Some(u32::try_from(*v).ok()?)),
            (Self::UInt(v), DataType::UInt64) => S::UInt64(Some(*v)),
            (Self::Float(v), DataType::Float32) => S::Float32(Some(*v as f32)),
            (Self::Float(v), DataType::Float64) => S::Float64(Some(*v)),
            (Self::Decimal(v), DataType::Decimal128(precision, scale)) => {
                S::Decimal128(Some(v.parse().ok()?), *precision, *scale)
            }
            (Self::Text(v), DataType::Utf8) => S::Utf8(Some(v.clone())),
            (Self::Text(v), DataType::LargeUtf8) => S::LargeUtf8(Some(v.clone())),
            (Self::Text(v), DataType::Utf8View) => S::Utf8View(Some(v.clone())),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        let name = SegmentName { table: TableId(7), shard: 3, segment: SegmentId::random() };
        assert_eq!(name.to_string().parse::<SegmentName>().ok(), Some(name));
        for wrong in [
            "".to_owned(),
            "7/3".to_owned(),
            format!("../{name}"),
            format!("07/3/{}.parquet", name.segment),
            format!("+7/3/{}.parquet", name.segment),
            format!("7/3/{}.parquet/..", name.segment),
            format!("7/3/{}.csv", name.segment),
            format!("7//{}.parquet", name.segment),
            format!("7/3x/{}.parquet", name.segment),
            format!("7/99999999999/{}.parquet", name.segment),
            format!("7/3/{}.parquet", name.segment.0.hyphenated()),
            format!("7/00/{}.parquet", name.segment),
            format!("7/3/{}.parquet", name.segment.to_string().to_uppercase()),
        ] {
            assert!(wrong.parse::<SegmentName>().is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn digests_tell_names_apart() {
        let name = SegmentName { table: TableId(7), shard: 3, segment: SegmentId::random() };
        let others = [
            SegmentName { table: TableId(3), shard: 7, ..name },
            SegmentName { shard: 2, ..name },
            SegmentName { segment: SegmentId::random(), ..name },
        ];
        assert!(others.iter().all(|other| other.digest() != name.digest()));
        let fixed = SegmentName { segment: SegmentId(Uuid::from_u128(1)), ..name };
        assert_eq!(fixed.digest(), 0x95f5_07a5_eaaf_5c3a, "nodes of different builds must agree");
    }

    #[test]
    fn bounds_survive_or_are_dropped() {
        for value in [
            ScalarValue::Int32(Some(-5)),
            ScalarValue::Date32(Some(9000)),
            ScalarValue::Decimal128(Some(-123_456_789_012_345_678_901_i128), 38, 2),
            ScalarValue::Utf8View(Some("größe".into())),
            ScalarValue::TimestampMicrosecond(Some(1), Some("UTC".into())),
            ScalarValue::UInt64(Some(u64::MAX)),
        ] {
            let kept = StatValue::from_scalar(&value).and_then(|kept| kept.to_scalar(&value.data_type()));
            assert_eq!(kept.as_ref(), Some(&value));
        }
        assert_eq!(StatValue::from_scalar(&ScalarValue::Float64(Some(f64::NAN))), None);
        assert_eq!(StatValue::from_scalar(&ScalarValue::Utf8(Some("x".repeat(257)))), None);
    }

    #[test]
    fn floats_are_read_back_bit_for_bit() {
        let mut bits = 1_u64;
        let made = std::iter::from_fn(|| {
            // Knuth's generator.
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(f64::from_bits(bits))
        });
        let floats = made.filter(|float| float.is_finite()).take(10_000);
        for float in floats.chain([0.0, -0.0, 0.1, f64::MIN_POSITIVE, f64::MAX, f64::MIN, 5e-324]) {
            let json = serde_json::to_string(&StatValue::Float(float)).unwrap();
            let StatValue::Float(read) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
            assert_eq!(read.to_bits(), float.to_bits(), "{json}");
        }
        // As it was written before.
        assert_eq!(serde_json::from_str::<StatValue>("{\"float\":0.5}").unwrap(), StatValue::Float(0.5));
    }
}
