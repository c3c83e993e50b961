//! One client: a connection, a session, and a prepared statement for lookups.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::client::PreparedStatement;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::transport::Channel;

use super::questions::{Form, LOOKUP};
use crate::client::{Client, ClientError};

/// How many clients connect at a time: a thousand at once are refused by the
/// system before the server sees them.
const CONNECTING_MAX: usize = 32;

/// One client.
pub(super) struct Session {
    client: Client,
    lookup: PreparedStatement<Channel>,
}

impl Session {
    /// Connects, and prepares what will be asked most.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub(super) async fn open(url: &str) -> Result<Self, ClientError> {
        let mut client = Client::connect(url).await?;
        let lookup = client.prepare(LOOKUP).await?;
        Ok(Self { client, lookup })
    }

    /// Asks a question, and takes all of its answer.
    ///
    /// # Errors
    /// What the server says.
    pub(super) async fn ask(&mut self, form: &Form) -> Result<(SchemaRef, Vec<RecordBatch>), ClientError> {
        match form {
            Form::Lookup(key) => {
                let keys: ArrayRef = Arc::new(Int64Array::from(vec![*key]));
                self.lookup.set_parameters(RecordBatch::try_from_iter([("1", keys)])?)?;
                let flight = self.lookup.execute().await?;
                self.client.fetch(flight).await
            }
            Form::Statement(sql) => self.client.query_with_schema(sql).await,
        }
    }

    /// Has the server forget it. What cannot be told any more, expires there.
    pub(super) async fn close(self) {
        let _closed = self.lookup.close().await;
    }
}

/// Makes so many connections, a few at a time.
///
/// # Errors
/// When one cannot be made.
pub(super) async fn many<T, F>(count: usize, connect: impl Fn() -> F) -> Result<Vec<T>, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    stream::iter((0..count).map(|_| connect())).buffer_unordered(CONNECTING_MAX).try_collect().await
}
