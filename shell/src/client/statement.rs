//! One statement: prepared, then run for its rows or for its effect.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, CommandPreparedStatementQuery, CommandPreparedStatementUpdate,
    DoPutUpdateResult, ProstMessageExt,
};
use arrow_flight::{FlightData, FlightDescriptor, FlightInfo, IpcMessage, PutResult, Ticket};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use serde::Deserialize;
use shoal_proto::WriteId;
use tonic::Streaming;

use super::{Client, ClientError};

/// The header that names a write, so that sending it twice writes once.
const WRITE_ID_HEADER: &str = "shoal-write-id";

/// A prepared statement. It is closed on the coordinator when dropped.
#[derive(Debug)]
pub struct Statement {
    client: Client,
    handle: Bytes,
    columns: SchemaRef,
}

impl Client {
    /// Has the coordinator parse and plan a statement.
    ///
    /// # Errors
    /// `Statement` where it is wrong; `Lost` and `SessionEnded` as they are.
    pub async fn prepare(&self, sql: &str) -> Result<Statement, ClientError> {
        let command = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: None };
        let body = self
            .action("CreatePreparedStatement", packed(&command))
            .await?
            .ok_or_else(|| ClientError::protocol("a prepared statement without a handle"))?;
        let answer = Any::decode(&*body).map_err(|error| ClientError::protocol(&error.to_string()))?;
        let result: ActionCreatePreparedStatementResult = answer
            .unpack()?
            .ok_or_else(|| ClientError::protocol("another answer to CreatePreparedStatement"))?;
        let columns = match result.dataset_schema.len() {
            0 => Schema::empty(),
            _ => Schema::try_from(IpcMessage(result.dataset_schema))?,
        };
        Ok(Statement {
            client: self.clone(),
            handle: result.prepared_statement_handle,
            columns: Arc::new(columns),
        })
    }
}

impl Statement {
    /// Whether it is run with [`Statement::query`]; otherwise with
    /// [`Statement::update`].
    pub fn returns_rows(&self) -> bool {
        !self.columns.fields().is_empty()
    }

    /// Columns of the result; empty for statements that change something.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// Starts it. Dropping the rows cancels it.
    ///
    /// # Errors
    /// Those that come before the first row.
    pub async fn query(&self) -> Result<Rows, ClientError> {
        let command = CommandPreparedStatementQuery { prepared_statement_handle: self.handle.clone() };
        let request = self.client.request(FlightDescriptor::new_cmd(packed(&command)));
        let flight_info = self.client.flight.clone().get_flight_info(request).await?.into_inner();
        Ok(Rows::new(&self.client, self.columns.clone(), flight_info))
    }

    /// Runs it for its effect; how many rows it changed. Negative where the
    /// coordinator does not know.
    ///
    /// # Errors
    /// Then nothing was changed, except after `Lost`, where that is unknown.
    pub async fn update(&self, write_id: Option<&WriteId>) -> Result<i64, ClientError> {
        let command = CommandPreparedStatementUpdate { prepared_statement_handle: self.handle.clone() };
        let message = FlightData {
            flight_descriptor: Some(FlightDescriptor::new_cmd(packed(&command))),
            ..FlightData::default()
        };
        let mut request = self.client.request(futures::stream::iter([message]));
        if let Some(value) = write_id.and_then(|id| id.as_str().parse().ok()) {
            request.metadata_mut().insert(WRITE_ID_HEADER, value);
        }
        let answers = self.client.flight.clone().do_put(request).await?.into_inner();
        rows_changed(answers).await
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        let command = ActionClosePreparedStatementRequest { prepared_statement_handle: self.handle.clone() };
        let client = self.client.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // What remains open ends with its session anyway.
            drop(runtime.spawn(async move {
                let body = packed(&command);
                drop(client.action("ClosePreparedStatement", body).await);
            }));
        }
    }
}

/// Reads a count of rows from the answer to an update or an ingest.
pub(super) async fn rows_changed(mut answers: Streaming<PutResult>) -> Result<i64, ClientError> {
    let answer =
        answers.message().await?.ok_or_else(|| ClientError::protocol("an update without a row count"))?;
    let result = DoPutUpdateResult::decode(&*answer.app_metadata)
        .map_err(|error| ClientError::protocol(&error.to_string()))?;
    Ok(result.record_count)
}

pub(super) fn packed<M: ProstMessageExt>(command: &M) -> Bytes {
    command.as_any().encode_to_vec().into()
}

#[derive(Deserialize)]
struct QueryMetadata {
    query_id: String,
}

/// The rows of a query that runs.
pub struct Rows {
    client: Client,
    query_id: Option<String>,
    schema: SchemaRef,
    tickets: VecDeque<Ticket>,
    stream: Option<FlightRecordBatchStream>,
    bytes: Arc<AtomicU64>,
}

impl Rows {
    fn new(client: &Client, schema: SchemaRef, flight_info: FlightInfo) -> Self {
        let metadata: Option<QueryMetadata> = serde_json::from_slice(&flight_info.app_metadata).ok();
        Self {
            client: client.clone(),
            query_id: metadata.map(|metadata| metadata.query_id),
            schema,
            tickets: flight_info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket).collect(),
            stream: None,
            bytes: Arc::default(),
        }
    }

    /// The query's id, where the coordinator gave one.
    pub fn query_id(&self) -> Option<&str> {
        self.query_id.as_deref()
    }

    /// Columns of each batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Bytes received so far, as they were on the wire.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The next batch; none after the last.
    ///
    /// # Errors
    /// Ends the rows.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, ClientError> {
        loop {
            if let Some(stream) = &mut self.stream {
                match stream.next().await {
                    Some(batch) => {
                        let batch = batch?;
                        // The last one has none, and only metadata.
                        if batch.num_rows() > 0 {
                            return Ok(Some(batch));
                        }
                        continue;
                    }
                    None => self.stream = None,
                }
            }
            let Some(ticket) = self.tickets.pop_front() else {
                return Ok(None);
            };
            let request = self.client.request(ticket);
            let messages = self.client.flight.clone().do_get(request).await?.into_inner();
            let bytes = Arc::clone(&self.bytes);
            let counted = messages.map_err(FlightError::from).inspect_ok(move |message: &FlightData| {
                let length = message.data_header.len() + message.data_body.len();
                bytes.fetch_add(length as u64, Ordering::Relaxed);
            });
            self.stream = Some(FlightRecordBatchStream::new_from_flight_data(counted));
        }
    }
}
