//! Rows of the client's own, sent into a table.

use std::collections::HashMap;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow_flight::FlightDescriptor;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{
    CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use futures::channel::oneshot;
use futures::{Stream, StreamExt};
use shoal_proto::WriteId;

use super::statement::{packed, rows_changed};
use super::{Client, ClientError};

/// A table that takes rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestTarget {
    /// None: the session's current schema.
    pub schema: Option<String>,
    /// The table's name.
    pub table: String,
    /// Whether the table is made, of the columns of the rows, and must not be
    /// there; otherwise it must be.
    pub create: bool,
    /// The rows' columns, to be sent also where there are no rows.
    pub columns: Option<SchemaRef>,
}

impl Client {
    /// Writes the rows of `batches` into a table, in one commit; how many it
    /// took. An error among the batches abandons the whole.
    ///
    /// # Errors
    /// The first error of `batches`, or the coordinator's.
    pub async fn ingest<S>(
        &self,
        target: &IngestTarget,
        write_id: &WriteId,
        batches: S,
    ) -> Result<i64, ClientError>
    where
        S: Stream<Item = Result<RecordBatch, ClientError>> + Send + 'static,
    {
        let (absent, exists) = match target.create {
            true => (TableNotExistOption::Create, TableExistsOption::Fail),
            false => (TableNotExistOption::Fail, TableExistsOption::Append),
        };
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: absent.into(),
                if_exists: exists.into(),
            }),
            table: target.table.clone(),
            schema: target.schema.clone(),
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: HashMap::new(),
        };
        // A stream that ends is a stream that is committed, so after an error
        // it must not end: the call is dropped instead, which resets it.
        let (failed, failure) = oneshot::channel();
        let mut failed = Some(failed);
        let batches = batches.map(|batch| batch.map_err(|error| FlightError::ExternalError(Box::new(error))));
        let mut encoder = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_cmd(packed(&command))));
        if let Some(columns) = &target.columns {
            encoder = encoder.with_schema(columns.clone());
        }
        let messages = encoder.build(batches).filter_map(move |message| {
            let message = match message {
                Ok(message) => Some(message),
                Err(error) => {
                    if let Some(failed) = failed.take() {
                        drop(failed.send(unwrapped(error)));
                    }
                    None
                }
            };
            async move {
                match message {
                    Some(message) => Some(message),
                    None => std::future::pending().await,
                }
            }
        });
        let mut request = self.request(messages);
        if let Ok(value) = write_id.as_str().parse() {
            request.metadata_mut().insert("shoal-write-id", value);
        }
        let mut flight = self.flight.clone();
        let sent = async move { rows_changed(flight.do_put(request).await?.into_inner()).await };
        tokio::select! {
            biased;
            Ok(error) = failure => Err(error),
            rows = sent => rows,
        }
    }
}

/// The error that was wrapped to pass through the encoder.
fn unwrapped(error: FlightError) -> ClientError {
    match error {
        FlightError::ExternalError(inner) => match inner.downcast::<ClientError>() {
            Ok(error) => *error,
            Err(inner) => ClientError::Content(inner.to_string()),
        },
        other => other.into(),
    }
}
