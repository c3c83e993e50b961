//! Which columns hold integers, whatever they stand for.

/// Calls a function that is generic over the type of a column of integers (also of dates,
/// times of day, timestamps and decimals) with the column; none for others.
macro_rules! for_integers {
    ($column:expr, $function:ident) => {{
        use arrow::datatypes::*;
        let column = $column;
        match column.data_type() {
            DataType::Int8 => Some($function::<Int8Type>(column)),
            DataType::Int16 => Some($function::<Int16Type>(column)),
            DataType::Int32 => Some($function::<Int32Type>(column)),
            DataType::Int64 => Some($function::<Int64Type>(column)),
            DataType::UInt8 => Some($function::<UInt8Type>(column)),
            DataType::UInt16 => Some($function::<UInt16Type>(column)),
            DataType::UInt32 => Some($function::<UInt32Type>(column)),
            DataType::UInt64 => Some($function::<UInt64Type>(column)),
            DataType::Date32 => Some($function::<Date32Type>(column)),
            DataType::Date64 => Some($function::<Date64Type>(column)),
            DataType::Time32(TimeUnit::Second) => Some($function::<Time32SecondType>(column)),
            DataType::Time32(_) => Some($function::<Time32MillisecondType>(column)),
            DataType::Time64(TimeUnit::Microsecond) => Some($function::<Time64MicrosecondType>(column)),
            DataType::Time64(_) => Some($function::<Time64NanosecondType>(column)),
            DataType::Timestamp(TimeUnit::Second, _) => Some($function::<TimestampSecondType>(column)),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                Some($function::<TimestampMillisecondType>(column))
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Some($function::<TimestampMicrosecondType>(column))
            }
            DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                Some($function::<TimestampNanosecondType>(column))
            }
            DataType::Decimal128(_, _) => Some($function::<Decimal128Type>(column)),
            _ => None,
        }
    }};
}

pub(super) use for_integers;
