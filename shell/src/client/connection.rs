//! One connection and one session: the handshake, the token, and the small
//! calls beside statements.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, HandshakeRequest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use parking_lot::RwLock;
use shoal_proto::channel::{self, MESSAGE_BYTES_MAX};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::error::root_cause;
use super::{Address, Addresses, ClientError, Progress};

/// How long the handshake and the small calls may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The header by which a handshake tells which cluster answers.
const CLUSTER_HEADER: &str = "shoal-cluster";

/// A session with a coordinator. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    user: String,
    /// The coordinators that may be connected to in place of this one.
    pub(super) known: Arc<RwLock<Addresses>>,
    /// Id of its cluster; none where the coordinator, an older one, does not say.
    pub(super) cluster: Option<String>,
    pub(super) flight: FlightServiceClient<Channel>,
    authorization: Option<AsciiMetadataValue>,
}

impl Client {
    /// Connects to this one coordinator; see [`Client::connect`].
    pub(super) async fn open(address: &Address, user: &str) -> Result<Self, ClientError> {
        let endpoint =
            channel::endpoint(&address.url()).map_err(|failure| ClientError::Usage(failure.message))?;
        let channel = endpoint.connect().await.map_err(|error| ClientError::Unreachable {
            address: address.to_string(),
            cause: root_cause(&error),
        })?;
        let flight = FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let user = address.user().unwrap_or(user).to_owned();
        let known = Arc::new(RwLock::new(address.clone().into()));
        let mut client =
            Self { address: address.clone(), user, known, cluster: None, flight, authorization: None };
        client.open_session().await?;
        Ok(client)
    }

    /// Where it is connected to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whose session it is.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Refuses to go on in another cluster than this: what it has is nothing of
    /// ours, and what it lacks is not lost.
    pub(super) fn in_cluster(mut self, expected: Option<&str>) -> Result<Self, ClientError> {
        if let (Some(cluster), Some(expected)) = (self.cluster.as_deref(), expected)
            && cluster != expected
        {
            return Err(ClientError::Unreachable {
                address: self.address.to_string(),
                cause: format!("it belongs to another cluster ({cluster})"),
            });
        }
        self.cluster = self.cluster.take().or_else(|| expected.map(str::to_owned));
        Ok(self)
    }

    async fn open_session(&mut self) -> Result<(), ClientError> {
        let credentials = BASE64_STANDARD.encode(format!("{}:{}", self.user, self.address.password()));
        let basic = format!("Basic {credentials}")
            .parse()
            .map_err(|_| ClientError::Usage("the user's name cannot be sent".to_owned()))?;
        let hello = HandshakeRequest { protocol_version: 0, payload: Bytes::new() };
        let mut request = Request::new(futures::stream::iter([hello]));
        request.metadata_mut().insert("authorization", basic);
        request.set_timeout(CALL_TIMEOUT);
        let answer = self.flight.handshake(request).await?;
        let token = answer
            .metadata()
            .get("authorization")
            .filter(|value| value.to_str().is_ok_and(|text| text.starts_with("Bearer ")))
            .cloned()
            .ok_or_else(|| ClientError::protocol("the handshake gave no bearer token"))?;
        self.authorization = Some(token);
        let cluster = answer.metadata().get(CLUSTER_HEADER).and_then(|id| id.to_str().ok());
        self.cluster = cluster.map(str::to_owned);
        Ok(())
    }

    /// A request of this session.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.authorization {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// The first result of an action; none where it has no result.
    pub(super) async fn action(&self, name: &str, body: Bytes) -> Result<Option<Bytes>, ClientError> {
        let action = Action { r#type: name.to_owned(), body };
        let mut results = self.flight.clone().do_action(self.request(action)).await?.into_inner();
        Ok(results.message().await?.map(|result| result.body))
    }

    /// As [`Client::action`], for calls that are quick or worthless.
    async fn quick_action(&self, name: &str, body: String) -> Result<Option<Bytes>, ClientError> {
        tokio::time::timeout(CALL_TIMEOUT, self.action(name, body.into()))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer to {name}")).into()))
    }

    /// Where a query is; none where the coordinator does not know it.
    ///
    /// # Errors
    /// When the call fails; the query is not affected.
    pub async fn progress(&self, query_id: &str) -> Result<Option<Progress>, ClientError> {
        let Some(body) = self.quick_action("shoal.progress", query_id.to_owned()).await? else {
            return Ok(None);
        };
        Ok(serde_json::from_slice(&body).ok())
    }

    /// What the coordinator wants said about the statements so far.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn notices(&self) -> Result<Vec<String>, ClientError> {
        let body = self.quick_action("shoal.notices", String::new()).await?;
        Ok(body.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default())
    }

    /// Stops a query everywhere.
    ///
    /// # Errors
    /// When the call fails; dropping the query's stream stops it too.
    pub async fn cancel(&self, query_id: &str) -> Result<(), ClientError> {
        self.quick_action("shoal.cancel", query_id.to_owned()).await.map(drop)
    }

    /// Runs a query whose result is small and returns all of it.
    ///
    /// # Errors
    /// As the statement's.
    pub async fn collect(&self, sql: &str) -> Result<Vec<RecordBatch>, ClientError> {
        let mut rows = self.prepare(sql).await?.query().await?;
        let mut batches = Vec::new();
        while let Some(batch) = rows.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }

    /// Runs a statement that changes something; how many rows it changed.
    ///
    /// # Errors
    /// As the statement's.
    pub async fn update(&self, sql: &str) -> Result<i64, ClientError> {
        self.prepare(sql).await?.update(None).await
    }
}
