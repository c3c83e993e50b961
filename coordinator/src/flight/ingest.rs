//! Bulk ingest: the four ways to name a target, and the client's rows as a
//! stream for the engine.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt};
use shoal_proto::{ErrorCode, Failure, WriteId};
use tonic::Status;

use super::metadata::CATALOG;
use super::status::{invalid, not_found, unsupported};
use crate::{Ingest, IngestMode};

/// What the command asks for.
///
/// # Errors
/// `Invalid` or `Unsupported` for combinations that Shoal has no meaning for.
pub(super) fn requested(
    command: &CommandStatementIngest,
    write_id: Option<WriteId>,
) -> Result<Ingest, Status> {
    if command.temporary {
        return Err(unsupported("Shoal has no temporary tables; ingest into a table and drop it afterwards"));
    }
    if command.table.is_empty() {
        return Err(invalid("the ingest names no table"));
    }
    if let Some(catalog) = &command.catalog
        && !catalog.is_empty()
        && catalog != CATALOG
    {
        return Err(not_found(format!("catalog `{catalog}` does not exist; the one catalog is `{CATALOG}`")));
    }
    Ok(Ingest {
        schema_name: command.schema.clone().filter(|schema| !schema.is_empty()),
        table: command.table.clone(),
        mode: mode(command)?,
        write_id,
    })
}

fn mode(command: &CommandStatementIngest) -> Result<IngestMode, Status> {
    use TableExistsOption as Exists;
    use TableNotExistOption as Absent;
    let options = command.table_definition_options.unwrap_or_default();
    let unknown = |what: &str, value: i32| invalid(format!("{what} = {value} is no option of a bulk ingest"));
    let absent =
        Absent::try_from(options.if_not_exist).map_err(|_| unknown("if_not_exist", options.if_not_exist))?;
    let exists = Exists::try_from(options.if_exists).map_err(|_| unknown("if_exists", options.if_exists))?;
    match (absent, exists) {
        (Absent::Create, Exists::Fail | Exists::Unspecified) => Ok(IngestMode::Create),
        (Absent::Create, Exists::Append) => Ok(IngestMode::CreateAppend),
        (Absent::Create, Exists::Replace) => Ok(IngestMode::Replace),
        (Absent::Fail | Absent::Unspecified, Exists::Append) => Ok(IngestMode::Append),
        (Absent::Fail | Absent::Unspecified, Exists::Replace) => Err(unsupported(
            "Shoal cannot replace a table only where it exists; let the ingest create it where it does not",
        )),
        (Absent::Fail | Absent::Unspecified, Exists::Fail | Exists::Unspecified) => Err(invalid(
            "the ingest may neither create the table nor append to it; choose create, append, replace or create-append",
        )),
    }
}

/// The client's rows, as fast as they are asked for. Its schema has been
/// read when this returns.
///
/// # Errors
/// `Invalid` where no schema comes first.
pub(super) async fn rows(
    messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
) -> Result<SendableRecordBatchStream, Status> {
    let mut decoder = FlightDataDecoder::new(messages.map(|message| message.map_err(FlightError::from)));
    let schema: SchemaRef = loop {
        match decoder.next().await {
            Some(Ok(decoded)) => match decoded.payload {
                DecodedPayload::Schema(schema) => break schema,
                DecodedPayload::None => {}
                DecodedPayload::RecordBatch(_) => {
                    return Err(invalid("the ingest sends rows before their schema"));
                }
            },
            Some(Err(FlightError::Tonic(status))) => return Err(*status),
            Some(Err(error)) => return Err(invalid(format!("the rows to ingest cannot be read: {error}"))),
            None => return Err(invalid("the ingest sends no schema and no rows")),
        }
    };
    let batches = decoder.filter_map(|decoded| {
        std::future::ready(match decoded {
            Ok(decoded) => match decoded.payload {
                DecodedPayload::RecordBatch(batch) => Some(Ok(batch)),
                DecodedPayload::None => None,
                DecodedPayload::Schema(_) => Some(Err(unreadable("a second schema"))),
            },
            Err(FlightError::Tonic(status)) => Some(Err(Failure::from_status(&status).into())),
            Err(error) => Some(Err(unreadable(error))),
        })
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), batches)))
}

fn unreadable(what: impl std::fmt::Display) -> DataFusionError {
    Failure::new(ErrorCode::Invalid, format!("the rows to ingest cannot be read: {what}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_flight::sql::TableDefinitionOptions;

    fn check(if_not_exist: TableNotExistOption, if_exists: TableExistsOption, expected: Option<IngestMode>) {
        let command = CommandStatementIngest {
            table: "t".into(),
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: if_not_exist.into(),
                if_exists: if_exists.into(),
            }),
            ..CommandStatementIngest::default()
        };
        let mode = requested(&command, None).map(|ingest| ingest.mode);
        assert_eq!(mode.as_ref().ok(), expected.as_ref(), "{if_not_exist:?} {if_exists:?}");
    }

    #[test]
    fn each_mode_has_its_pair_of_options() {
        use TableExistsOption as Exists;
        use TableNotExistOption as Absent;
        check(Absent::Create, Exists::Fail, Some(IngestMode::Create));
        check(Absent::Fail, Exists::Append, Some(IngestMode::Append));
        check(Absent::Create, Exists::Append, Some(IngestMode::CreateAppend));
        check(Absent::Create, Exists::Replace, Some(IngestMode::Replace));
        check(Absent::Fail, Exists::Fail, None);
        check(Absent::Fail, Exists::Replace, None);
        check(Absent::Unspecified, Exists::Unspecified, None);
    }

    #[test]
    fn temporary_tables_and_other_catalogs_are_refused() {
        let temporary = CommandStatementIngest { temporary: true, table: "t".into(), ..Default::default() };
        assert_eq!(requested(&temporary, None).unwrap_err().code(), tonic::Code::Unimplemented);
        let elsewhere =
            CommandStatementIngest { catalog: Some("x".into()), table: "t".into(), ..Default::default() };
        assert_eq!(requested(&elsewhere, None).unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn rows_without_a_schema_are_refused() {
        let error = rows(futures::stream::empty()).await.err().unwrap();
        assert_eq!(error.message(), "the ingest sends no schema and no rows");
    }
}
