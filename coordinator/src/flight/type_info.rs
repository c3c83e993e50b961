//! The SQL types that a column can have, as `CommandGetXdbcTypeInfo` asks
//! for them.

use std::sync::LazyLock;

use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};
use tonic::Status;

use super::status::internal;

static TYPE_INFO: LazyLock<Result<XdbcTypeInfoData, String>> =
    LazyLock::new(|| builder().build().map_err(|error| error.to_string()));

/// Every type, to be filtered by a command.
///
/// # Errors
/// `Internal`.
pub(super) fn type_info() -> Result<&'static XdbcTypeInfoData, Status> {
    TYPE_INFO.as_ref().map_err(internal)
}

fn builder() -> XdbcTypeInfoDataBuilder {
    use XdbcDataType as Type;
    let mut types = XdbcTypeInfoDataBuilder::new();
    types.append(plain("BOOLEAN", Type::XdbcBit, 1));
    for (name, data_type, digits, unsigned) in [
        ("TINYINT", Type::XdbcTinyint, 3, false),
        ("SMALLINT", Type::XdbcSmallint, 5, false),
        ("INTEGER", Type::XdbcInteger, 10, false),
        ("BIGINT", Type::XdbcBigint, 19, false),
        ("TINYINT UNSIGNED", Type::XdbcTinyint, 3, true),
        ("SMALLINT UNSIGNED", Type::XdbcSmallint, 5, true),
        ("INTEGER UNSIGNED", Type::XdbcInteger, 10, true),
        ("BIGINT UNSIGNED", Type::XdbcBigint, 20, true),
    ] {
        types.append(XdbcTypeInfo {
            unsigned_attribute: Some(unsigned),
            num_prec_radix: Some(10),
            auto_increment: Some(false),
            ..plain(name, data_type, digits)
        });
    }
    for (name, data_type, bits) in [("REAL", Type::XdbcReal, 24), ("DOUBLE", Type::XdbcDouble, 53)] {
        types.append(XdbcTypeInfo {
            unsigned_attribute: Some(false),
            num_prec_radix: Some(2),
            auto_increment: Some(false),
            ..plain(name, data_type, bits)
        });
    }
    types.append(XdbcTypeInfo {
        create_params: Some(vec!["precision".into(), "scale".into()]),
        unsigned_attribute: Some(false),
        num_prec_radix: Some(10),
        minimum_scale: Some(0),
        maximum_scale: Some(76),
        auto_increment: Some(false),
        ..plain("DECIMAL", Type::XdbcDecimal, 76)
    });
    types.append(XdbcTypeInfo {
        case_sensitive: true,
        ..quoted("", plain("VARCHAR", Type::XdbcVarchar, i32::MAX))
    });
    types.append(quoted("X", plain("BYTEA", Type::XdbcVarbinary, i32::MAX)));
    for (name, data_type, prefix, characters, subcode) in [
        // The number of `Year` is also that of `Date`.
        ("DATE", Type::XdbcDate, "DATE ", 10, XdbcDatetimeSubcode::XdbcSubcodeYear),
        ("TIME", Type::XdbcTime, "TIME ", 18, XdbcDatetimeSubcode::XdbcSubcodeTime),
        ("TIMESTAMP", Type::XdbcTimestamp, "TIMESTAMP ", 29, XdbcDatetimeSubcode::XdbcSubcodeTimestamp),
    ] {
        types.append(XdbcTypeInfo {
            sql_data_type: Type::XdbcDatetime,
            datetime_subcode: Some(subcode),
            ..quoted(prefix, plain(name, data_type, characters))
        });
    }
    types
}

fn plain(name: &str, data_type: XdbcDataType, column_size: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.into(),
        local_type_name: Some(name.into()),
        data_type,
        sql_data_type: data_type,
        column_size: Some(column_size),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        ..XdbcTypeInfo::default()
    }
}

fn quoted(prefix: &str, info: XdbcTypeInfo) -> XdbcTypeInfo {
    XdbcTypeInfo { literal_prefix: Some(format!("{prefix}'")), literal_suffix: Some("'".into()), ..info }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_can_be_asked_for_by_its_number() {
        let all = type_info().unwrap().record_batch(None).unwrap();
        assert_eq!(all.num_rows(), 17);
        let bigint = type_info().unwrap().record_batch(XdbcDataType::XdbcBigint as i32).unwrap();
        assert_eq!(bigint.num_rows(), 2);
    }
}
