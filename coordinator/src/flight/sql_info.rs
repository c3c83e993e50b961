//! What Shoal can and cannot do, as `CommandGetSqlInfo` asks for it.

use std::sync::LazyLock;

use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity, SqlSupportedGroupBy,
    SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions, SupportedSqlGrammar,
};
use tonic::Status;

use super::status::internal;

static SQL_INFO: LazyLock<Result<SqlInfoData, String>> =
    LazyLock::new(|| builder().build().map_err(|error| error.to_string()));

/// Every piece of information, to be filtered by a command.
///
/// # Errors
/// `Internal`.
pub(super) fn sql_info() -> Result<&'static SqlInfoData, Status> {
    SQL_INFO.as_ref().map_err(internal)
}

/// The bit that stands for one value of an enumeration.
fn bit(value: impl Into<i32>) -> i32 {
    1 << value.into()
}

fn builder() -> SqlInfoDataBuilder {
    let mut infos = SqlInfoDataBuilder::new();
    infos.append(SqlInfo::FlightSqlServerName, "Shoal");
    infos.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    // The version of the columnar format, not of a library.
    infos.append(SqlInfo::FlightSqlServerArrowVersion, "1.5");
    infos.append(SqlInfo::FlightSqlServerReadOnly, false);
    infos.append(SqlInfo::FlightSqlServerSql, true);
    infos.append(SqlInfo::FlightSqlServerSubstrait, false);
    infos.append(SqlInfo::FlightSqlServerTransaction, i32::from(SqlSupportedTransaction::None));
    infos.append(SqlInfo::FlightSqlServerCancel, true);
    infos.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    infos.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    infos.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    infos.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);

    infos.append(SqlInfo::SqlDdlCatalog, false);
    infos.append(SqlInfo::SqlDdlSchema, true);
    infos.append(SqlInfo::SqlDdlTable, true);
    infos.append(
        SqlInfo::SqlIdentifierCase,
        i64::from(i32::from(SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase)),
    );
    infos.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    infos.append(
        SqlInfo::SqlQuotedIdentifierCase,
        i64::from(i32::from(SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive)),
    );
    infos.append(SqlInfo::SqlAllTablesAreSelectable, true);
    infos.append(SqlInfo::SqlNullOrdering, i64::from(i32::from(SqlNullOrdering::SqlNullsSortedHigh)));
    infos.append(SqlInfo::SqlKeywords, &["COPY", "EXTERNAL", "KILL", "QUERY", "STORED"][..]);
    infos.append(
        SqlInfo::SqlNumericFunctions,
        &["abs", "ceil", "exp", "floor", "ln", "log10", "power", "random", "round", "sign", "sqrt", "trunc"]
            [..],
    );
    infos.append(
        SqlInfo::SqlStringFunctions,
        &[
            "concat",
            "left",
            "length",
            "lower",
            "ltrim",
            "replace",
            "right",
            "rtrim",
            "substring",
            "trim",
            "upper",
        ][..],
    );
    infos.append(SqlInfo::SqlSystemFunctions, &["version"][..]);
    infos.append(
        SqlInfo::SqlDatetimeFunctions,
        &["current_date", "current_time", "date_bin", "date_part", "date_trunc", "now", "to_timestamp"][..],
    );
    infos.append(SqlInfo::SqlSearchStringEscape, "\\");
    infos.append(SqlInfo::SqlExtraNameCharacters, "");
    infos.append(SqlInfo::SqlSupportsColumnAliasing, true);
    infos.append(SqlInfo::SqlNullPlusNullIsNull, true);
    infos.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    infos.append(SqlInfo::SqlSupportsDifferentTableCorrelationNames, false);
    infos.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    infos.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    infos.append(SqlInfo::SqlSupportedGroupBy, bit(SqlSupportedGroupBy::SqlGroupByUnrelated));
    infos.append(SqlInfo::SqlSupportsLikeEscapeClause, true);
    infos.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    infos.append(
        SqlInfo::SqlSupportedGrammar,
        bit(SupportedSqlGrammar::SqlMinimumGrammar) | bit(SupportedSqlGrammar::SqlCoreGrammar),
    );
    infos.append(SqlInfo::SqlSupportsIntegrityEnhancementFacility, false);
    infos.append(SqlInfo::SqlOuterJoinsSupportLevel, bit(SqlOuterJoinsSupportLevel::SqlFullOuterJoins));
    infos.append(SqlInfo::SqlSchemaTerm, "schema");
    infos.append(SqlInfo::SqlCatalogTerm, "catalog");
    infos.append(SqlInfo::SqlCatalogAtStart, true);
    infos.append(SqlInfo::SqlSelectForUpdateSupported, false);
    infos.append(SqlInfo::SqlStoredProceduresSupported, false);
    infos.append(
        SqlInfo::SqlSupportedSubqueries,
        bit(SqlSupportedSubqueries::SqlSubqueriesInComparisons)
            | bit(SqlSupportedSubqueries::SqlSubqueriesInExists)
            | bit(SqlSupportedSubqueries::SqlSubqueriesInIns),
    );
    infos.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    infos.append(
        SqlInfo::SqlSupportedUnions,
        bit(SqlSupportedUnions::SqlUnion) | bit(SqlSupportedUnions::SqlUnionAll),
    );
    infos.append(SqlInfo::SqlDefaultTransactionIsolation, 0_i64);
    infos.append(SqlInfo::SqlTransactionsSupported, false);
    infos.append(SqlInfo::SqlBatchUpdatesSupported, true);
    infos.append(SqlInfo::SqlSavepointsSupported, false);
    infos.append(SqlInfo::SqlNamedParametersSupported, false);
    infos.append(SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false);
    infos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_can_be_asked_for_alone() {
        let all = sql_info().unwrap().record_batch([]).unwrap();
        assert!(all.num_rows() > 40);
        let one = sql_info().unwrap().record_batch([SqlInfo::FlightSqlServerTransaction as u32]).unwrap();
        assert_eq!(one.num_rows(), 1);
    }
}
