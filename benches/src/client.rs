//! A small Arrow Flight SQL client on `arrow-flight`'s own: one session per
//! client.

use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::{FlightSqlServiceClient, PreparedStatement};
use arrow_flight::{Action, FlightInfo};
use futures::TryStreamExt;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// The largest message that is taken: a row may be 20 MB and more.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a statement failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({code:?})")]
pub struct ClientError {
    /// gRPC's code; `Unknown` for what did not come from the server.
    pub code: Code,
    /// For a person.
    pub message: String,
}

impl ClientError {
    fn new(error: &dyn std::error::Error) -> Self {
        Self { code: Code::Unknown, message: error.to_string() }
    }
}

impl From<FlightError> for ClientError {
    fn from(error: FlightError) -> Self {
        match error {
            FlightError::Tonic(status) => Self { code: status.code(), message: status.message().to_owned() },
            other => Self::new(&other),
        }
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

impl From<arrow::error::ArrowError> for ClientError {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::new(&error)
    }
}

/// What a statement gives.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Rows, for statements that return some.
    Rows {
        /// Their columns.
        schema: SchemaRef,
        /// The rows, in order.
        batches: Vec<RecordBatch>,
    },
    /// How many rows a statement changed; -1 where the server does not say.
    Changed(i64),
}

/// A session with a coordinator.
#[derive(Clone)]
pub struct Client {
    inner: FlightSqlServiceClient<Channel>,
}

impl Client {
    /// Connects and opens a session.
    ///
    /// # Errors
    /// When nobody listens there, or the handshake is refused.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        let channel = Endpoint::from_shared(url.to_owned())
            .map_err(|error| ClientError::new(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .connect()
            .await
            .map_err(|error| ClientError { code: Code::Unavailable, message: format!("{url}: {error:?}") })?;
        let service = FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut inner = FlightSqlServiceClient::new_from_inner(service);
        inner.handshake("bench", "").await?;
        Ok(Self { inner })
    }

    /// `arrow-flight`'s own client, of the same session.
    pub fn flight(&mut self) -> &mut FlightSqlServiceClient<Channel> {
        &mut self.inner
    }

    /// Runs any statement: through a prepared statement, whose columns tell
    /// whether it returns rows.
    ///
    /// # Errors
    /// What the server says.
    pub async fn run(&mut self, sql: &str) -> Result<Outcome, ClientError> {
        let mut prepared = self.inner.prepare(sql.to_owned(), None).await?;
        let outcome = self.run_prepared(&mut prepared).await;
        let closed = prepared.close().await;
        let outcome = outcome?;
        closed?;
        Ok(outcome)
    }

    async fn run_prepared(
        &mut self,
        prepared: &mut PreparedStatement<Channel>,
    ) -> Result<Outcome, ClientError> {
        if prepared.dataset_schema()?.fields().is_empty() {
            return Ok(Outcome::Changed(prepared.execute_update().await?));
        }
        let flight = prepared.execute().await?;
        let (schema, batches) = self.fetch(flight).await?;
        Ok(Outcome::Rows { schema, batches })
    }

    /// Rows of a query, sent as a plain statement.
    ///
    /// # Errors
    /// What the server says.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<RecordBatch>, ClientError> {
        let flight = self.inner.execute(sql.to_owned(), None).await?;
        Ok(self.fetch(flight).await?.1)
    }

    /// Columns and rows of a query, sent as a plain statement.
    ///
    /// # Errors
    /// What the server says.
    pub async fn query_with_schema(
        &mut self,
        sql: &str,
    ) -> Result<(SchemaRef, Vec<RecordBatch>), ClientError> {
        let flight = self.inner.execute(sql.to_owned(), None).await?;
        self.fetch(flight).await
    }

    /// A query's rows as they come.
    ///
    /// # Errors
    /// What the server says before the first row.
    pub async fn stream(&mut self, sql: &str) -> Result<FlightRecordBatchStream, ClientError> {
        let flight = self.inner.execute(sql.to_owned(), None).await?;
        let ticket = flight
            .endpoint
            .into_iter()
            .next()
            .and_then(|endpoint| endpoint.ticket)
            .ok_or_else(|| ClientError { code: Code::Internal, message: "no ticket".to_owned() })?;
        Ok(self.inner.do_get(ticket).await?)
    }

    /// Rows that a statement changed, sent as a plain update.
    ///
    /// # Errors
    /// What the server says.
    pub async fn update(&mut self, sql: &str) -> Result<i64, ClientError> {
        Ok(self.inner.execute_update(sql.to_owned(), None).await?)
    }

    /// A prepared statement.
    ///
    /// # Errors
    /// What the server says.
    pub async fn prepare(&mut self, sql: &str) -> Result<PreparedStatement<Channel>, ClientError> {
        Ok(self.inner.prepare(sql.to_owned(), None).await?)
    }

    /// The rows that a flight stands for.
    ///
    /// # Errors
    /// What the server says.
    pub async fn fetch(&mut self, flight: FlightInfo) -> Result<(SchemaRef, Vec<RecordBatch>), ClientError> {
        let mut schema: Option<SchemaRef> = None;
        let mut batches = Vec::new();
        for endpoint in flight.endpoint {
            let ticket = endpoint
                .ticket
                .ok_or_else(|| ClientError { code: Code::Internal, message: "no ticket".to_owned() })?;
            let mut stream = self.inner.do_get(ticket).await?;
            while let Some(batch) = stream.try_next().await? {
                batches.push(batch);
            }
            schema = schema.or_else(|| stream.schema().cloned());
        }
        let schema = schema.ok_or_else(|| ClientError {
            code: Code::Internal,
            message: "a result without a schema".to_owned(),
        })?;
        Ok((schema, batches))
    }

    /// The one number that a query gives.
    ///
    /// # Errors
    /// What the server says, and when it is not one integer.
    pub async fn number(&mut self, sql: &str) -> Result<i64, ClientError> {
        let batches = self.query(sql).await?;
        let batch = batches
            .iter()
            .find(|batch| batch.num_rows() > 0)
            .ok_or_else(|| ClientError { code: Code::Unknown, message: format!("no row from {sql}") })?;
        let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Int64)?;
        let numbers = column.as_primitive::<Int64Type>();
        if numbers.is_null(0) {
            return Err(ClientError { code: Code::Unknown, message: format!("NULL from {sql}") });
        }
        Ok(numbers.value(0))
    }

    /// Text of a result with one column of text per row (EXPLAIN: the last
    /// column), one line for each row.
    ///
    /// # Errors
    /// What the server says.
    pub async fn text(&mut self, sql: &str) -> Result<String, ClientError> {
        let mut text = String::new();
        for batch in self.query(sql).await? {
            let last = batch.column(batch.num_columns() - 1);
            let column = arrow::compute::cast(last, &arrow::datatypes::DataType::Utf8)?;
            for line in column.as_string::<i32>().iter().flatten() {
                text.push_str(line);
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// How many workers are live now.
    ///
    /// # Errors
    /// What the server says.
    pub async fn live_workers(&mut self) -> Result<usize, ClientError> {
        let count = self.number("SELECT count(*) FROM system.workers WHERE state = 'live'").await?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Notices of the statements before, oldest first; taken once.
    ///
    /// # Errors
    /// What the server says.
    pub async fn notices(&mut self) -> Result<Vec<String>, ClientError> {
        let body = self.action("shoal.notices", Vec::new()).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::new(&error))
    }

    /// The first result of an action of Shoal's own; empty when there is none.
    ///
    /// # Errors
    /// What the server says.
    pub async fn action(&mut self, kind: &str, body: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        let mut request = tonic::Request::new(Action { r#type: kind.to_owned(), body: body.into() });
        if let Some(token) = self.inner.token()
            && let Ok(value) = format!("Bearer {token}").parse()
        {
            request.metadata_mut().insert("authorization", value);
        }
        let mut results = self.inner.inner_mut().do_action(request).await?.into_inner();
        Ok(results.message().await?.map(|result| result.body.to_vec()).unwrap_or_default())
    }
}
