//! The Flight service: reads a request, finds its session, calls the engine,
//! and writes the answer. Nothing is decided here.
//!
//! It implements Flight itself and not arrow-flight's `FlightSqlService`,
//! which has no way to answer `GetSchema`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::{
    Any, Command, CommandPreparedStatementQuery, DoPutPreparedStatementResult, DoPutUpdateResult,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use shoal_proto::fault::{self, Step};
use shoal_proto::{Channels, WriteId};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use super::actions::{self, no_substrait, no_transactions, text_handle};
use super::home::other_maker;
use super::rows::{FlightStream, encoded_batch, result_schema, schema_bytes};
use super::sessions::Clients;
use super::status::{guarded, internal, invalid, not_found, status, unsupported};
use super::tickets::{Bound, Statement};
use super::{ingest, metadata, parameters, queries};
use crate::{Engine, Error, HeadStart, Prepared, Session};

/// The largest message that is taken or sent: a row of 20 MB is one message.
const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A descriptor is sent back up to this size; beyond it would only fill the
/// 4 MiB that many clients take.
const DESCRIPTOR_BYTES_ECHOED_MAX: usize = 64 * 1024;
/// The header by which a client names a write, to send it twice and have it
/// happen once.
const WRITE_ID_HEADER: &str = "shoal-write-id";
/// The header by which a handshake tells which cluster answers, so that a
/// client does not take another one for its own.
const CLUSTER_HEADER: &str = "shoal-cluster";
/// Bytes of a write's name.
const WRITE_ID_BYTES_MAX: usize = 256;

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Arrow Flight SQL for one engine.
pub struct FlightDoor {
    clients: Arc<Clients>,
}

impl FlightDoor {
    /// The service to add to a server; `channels` lead to the other coordinators.
    /// Serve it with [`connections`](super::connections), so that sessions end
    /// with their connections.
    pub fn server(engine: Engine, channels: Channels) -> FlightServiceServer<Self> {
        FlightServiceServer::new(Self { clients: Clients::new(engine, channels) })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn engine(&self) -> &Engine {
        &self.clients.engine
    }

    fn session<T>(&self, request: &Request<T>) -> Result<Arc<Session>, Status> {
        self.clients.session(request.metadata(), request.extensions())
    }

    fn statement(&self, handle: &[u8]) -> Result<Arc<Statement>, Status> {
        let handle = text_handle(handle)?;
        let known = self.clients.statements.lock().get(handle, Instant::now());
        known.ok_or_else(|| {
            not_found(match other_maker(self.engine(), handle) {
                Some(maker) => format!(
                    "the statement was prepared at {maker}, and no other coordinator knows it; prepare the statement \
                     again here"
                ),
                None => {
                    "the prepared statement is unknown, closed or expired; prepare the statement again".to_owned()
                }
            })
        })
    }

    async fn prepared(&self, session: &Arc<Session>, sql: &str) -> Result<Arc<Prepared>, Status> {
        self.engine().prepare(session, sql).await.map_err(status)
    }

    /// Announces a query that will run when it is fetched, or runs a
    /// statement that changes something.
    async fn start(
        &self,
        session: &Arc<Session>,
        prepared: Arc<Prepared>,
        bound: Option<Vec<Vec<ScalarValue>>>,
        begun: Option<HeadStart>,
        write_id: Option<WriteId>,
    ) -> Result<FlightInfo, Status> {
        if !prepared.returns_rows() {
            let rows = self.update(session, &prepared, bound, write_id).await?;
            return queries::announce_done(rows);
        }
        let parameters = parameters::single_row(&prepared, bound)?;
        queries::announce(&self.clients, session, prepared, parameters, begun)
    }

    /// Runs a statement for each row of parameters: an INSERT of values as one
    /// write, anything else row by row.
    async fn update(
        &self,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        bound: Option<Vec<Vec<ScalarValue>>>,
        write_id: Option<WriteId>,
    ) -> Result<i64, Status> {
        if prepared.returns_rows() {
            return Err(invalid("the statement returns rows; run it as a query and not as an update"));
        }
        let runs = parameters::for_each_run(prepared, bound)?;
        let count = runs.len();
        if count > 1 {
            let inserted = self.engine().insert_rows(session, prepared, runs.clone(), write_id.clone());
            if let Some(rows) = inserted.await.map_err(status)? {
                return i64::try_from(rows).map_err(internal);
            }
        }
        let mut rows_changed = 0;
        for (run, values) in runs.into_iter().enumerate() {
            // Each run is a write of its own, also when all are sent again.
            let write_id = write_id.as_ref().map(|id| match count {
                1 => id.clone(),
                _ => WriteId::new(format!("{id}-{run}")),
            });
            rows_changed +=
                self.engine().update(session, prepared, values, write_id).await.map_err(|error| {
                    let failure = shoal_proto::Failure::from(error);
                    status(match count {
                        1 => failure,
                        _ => shoal_proto::Failure {
                            message: format!("row {} of {count} of parameters: {}", run + 1, failure.message),
                            ..failure
                        },
                    })
                })?;
        }
        i64::try_from(rows_changed).map_err(internal)
    }

    /// The columns that a command's result has.
    async fn columns(&self, request: &Request<FlightDescriptor>) -> Result<Bytes, Status> {
        let command = command_of(request.get_ref())?;
        if let Some(schema) = metadata::schema_of(&command)? {
            return schema_bytes(&schema);
        }
        let prepared = match command {
            Command::CommandStatementQuery(command) => {
                without_transaction(command.transaction_id.as_ref())?;
                self.prepared(&self.session(request)?, &command.query).await?
            }
            Command::CommandPreparedStatementQuery(command) => {
                Arc::clone(&self.statement(&command.prepared_statement_handle)?.prepared)
            }
            other => return Err(unsupported(format!("GetSchema of `{}`", other.type_url()))),
        };
        schema_bytes(&result_schema(prepared.columns()))
    }

    async fn flight_info(&self, request: &Request<FlightDescriptor>) -> Result<FlightInfo, Status> {
        let command = command_of(request.get_ref())?;
        if let Some(schema) = metadata::schema_of(&command)? {
            let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(command.into_any().encode_to_vec()));
            return Ok(FlightInfo::new().try_with_schema(&schema).map_err(internal)?.with_endpoint(endpoint));
        }
        let write_id = write_id(request.metadata())?;
        match command {
            Command::CommandStatementQuery(command) => {
                without_transaction(command.transaction_id.as_ref())?;
                let session = self.session(request)?;
                let prepared = self.prepared(&session, &command.query).await?;
                self.start(&session, prepared, None, None, write_id).await
            }
            Command::CommandPreparedStatementQuery(command) => {
                let statement = self.statement(&command.prepared_statement_handle)?;
                let (rows, begun) = {
                    let mut bound = statement.bound.lock();
                    (bound.rows.clone(), bound.head_start.take())
                };
                let prepared = Arc::clone(&statement.prepared);
                self.start(&statement.session, prepared, rows, begun, write_id).await
            }
            Command::CommandStatementSubstraitPlan(_) => Err(no_substrait()),
            other => Err(unsupported(format!("GetFlightInfo of `{}`", other.type_url()))),
        }
    }

    async fn get(&self, request: &Request<Ticket>) -> Result<FlightStream, Status> {
        let junk = |what| invalid(format!("the ticket is none of this coordinator: {what}"));
        let any = Any::decode(request.get_ref().ticket.clone()).map_err(|error| junk(error.to_string()))?;
        match Command::try_from(any).map_err(|error| junk(error.to_string()))? {
            Command::TicketStatementQuery(ticket) => {
                queries::fetch(&self.clients, &ticket.statement_handle).await
            }
            command => {
                let kind = command.type_url().to_owned();
                let session = self.session(request)?;
                match metadata::rows_of(self.engine(), &session, command).await? {
                    Some(batch) => Ok(encoded_batch(batch)),
                    None => Err(junk(format!("`{kind}`; use a ticket from GetFlightInfo"))),
                }
            }
        }
    }

    async fn put(&self, request: Request<Streaming<FlightData>>) -> Result<PutResult, Status> {
        let session = self.session(&request)?;
        let write_id = write_id(request.metadata())?;
        let mut messages = request.into_inner().peekable();
        let descriptor = match Pin::new(&mut messages).peek().await {
            Some(Ok(first)) => first.flight_descriptor.clone(),
            Some(Err(status)) => return Err(status.clone()),
            None => None,
        };
        let descriptor = descriptor.ok_or_else(|| {
            invalid("DoPut says nothing of what to do (some clients send nothing at all for an ingest of no batches: send one of no rows)")
        })?;
        match command_of(&descriptor)? {
            Command::CommandStatementUpdate(command) => {
                without_transaction(command.transaction_id.as_ref())?;
                let prepared = self.prepared(&session, &command.query).await?;
                Ok(rows_changed(self.update(&session, &prepared, None, write_id).await?))
            }
            Command::CommandPreparedStatementUpdate(command) => {
                let statement = self.statement(&command.prepared_statement_handle)?;
                let sent = parameters::read(&statement.prepared, messages).await?;
                let bound = sent.or_else(|| statement.bound.lock().rows.clone());
                Ok(rows_changed(self.update(&statement.session, &statement.prepared, bound, write_id).await?))
            }
            Command::CommandPreparedStatementQuery(command) => self.bind(command, messages).await,
            Command::CommandStatementIngest(command) => {
                without_transaction(command.transaction_id.as_ref())?;
                let ingest = ingest::requested(&command, write_id)?;
                let rows = ingest::rows(messages).await?;
                let written = self.engine().ingest(&session, ingest, rows).await.map_err(status)?;
                Ok(rows_changed(i64::try_from(written).map_err(internal)?))
            }
            Command::CommandStatementSubstraitPlan(_) => Err(no_substrait()),
            other => Err(unsupported(format!("DoPut of `{}`", other.type_url()))),
        }
    }

    async fn bind(
        &self,
        command: CommandPreparedStatementQuery,
        messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    ) -> Result<PutResult, Status> {
        let handle = command.prepared_statement_handle;
        let statement = self.statement(&handle)?;
        let rows = parameters::read(&statement.prepared, messages).await?;
        // Who binds values to a query runs it next.
        let single = parameters::single_row(&statement.prepared, rows.clone()).ok();
        let head_start =
            single.and_then(|row| self.engine().head_start(&statement.session, &statement.prepared, &row));
        *statement.bound.lock() = Bound { rows, head_start };
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
        Ok(PutResult { app_metadata: result.encode_to_vec().into() })
    }

    async fn greet(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Answer<HandshakeResponse>>, Status> {
        let (headers, _, mut messages) = request.into_parts();
        let first = messages.message().await?.unwrap_or_default();
        let session = self.clients.log_in(&headers, &first.payload)?;
        let token = session.id().to_owned();
        let header: MetadataValue<_> = format!("Bearer {token}").parse().map_err(internal)?;
        let answer = HandshakeResponse { protocol_version: 0, payload: token.into() };
        let mut response = Response::new(Box::pin(stream::iter([Ok(answer)])) as Answer<_>);
        response.metadata_mut().insert("authorization", header);
        let cluster: MetadataValue<_> = self.engine().catalog().cluster.parse().map_err(internal)?;
        response.metadata_mut().insert(CLUSTER_HEADER, cluster);
        Ok(response)
    }
}

#[tonic::async_trait]
impl FlightService for FlightDoor {
    type HandshakeStream = Answer<HandshakeResponse>;
    type ListFlightsStream = Answer<FlightInfo>;
    type DoGetStream = FlightStream;
    type DoPutStream = Answer<PutResult>;
    type DoActionStream = Answer<arrow_flight::Result>;
    type ListActionsStream = Answer<ActionType>;
    type DoExchangeStream = FlightStream;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        guarded(self.greet(request)).await
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let mut info = guarded(self.flight_info(&request)).await?;
        let descriptor = request.into_inner();
        if descriptor.cmd.len() <= DESCRIPTOR_BYTES_ECHOED_MAX {
            info.flight_descriptor = Some(descriptor);
        }
        Ok(Response::new(info))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let schema = guarded(self.columns(&request)).await?;
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        guarded(self.get(&request)).await.map(Response::new)
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let result = guarded(self.put(request)).await?;
        let sent = stream::poll_fn(|_| {
            fault::point(Step::Replying);
            Poll::Ready(None)
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(result)]).chain(sent))))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let session = self.session(&request)?;
        let bodies = guarded(actions::act(&self.clients, &session, request.into_inner())).await?;
        let results = bodies.into_iter().map(|body| Ok(arrow_flight::Result { body }));
        Ok(Response::new(Box::pin(stream::iter(results))))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(Box::pin(stream::iter(actions::action_types().into_iter().map(Ok)))))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(unsupported("ListFlights: ask for tables with Flight SQL's GetTables instead"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(unsupported("PollFlightInfo: use GetFlightInfo, which answers at once for a query"))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(unsupported("DoExchange: use DoPut to send rows and DoGet to fetch them"))
    }
}

fn rows_changed(record_count: i64) -> PutResult {
    PutResult { app_metadata: DoPutUpdateResult { record_count }.encode_to_vec().into() }
}

fn command_of(descriptor: &FlightDescriptor) -> Result<Command, Status> {
    let junk = |what| invalid(format!("the descriptor is no command of Flight SQL: {what}"));
    let any = Any::decode(descriptor.cmd.clone()).map_err(|error| junk(error.to_string()))?;
    Command::try_from(any).map_err(|error| junk(error.to_string()))
}

fn without_transaction(id: Option<&Bytes>) -> Result<(), Status> {
    if id.is_some_and(|id| !id.is_empty()) { Err(no_transactions()) } else { Ok(()) }
}

fn write_id(headers: &MetadataMap) -> Result<Option<WriteId>, Status> {
    let Some(value) = headers.get(WRITE_ID_HEADER) else { return Ok(None) };
    match value.to_str() {
        Ok(id) if !id.is_empty() && id.len() <= WRITE_ID_BYTES_MAX => Ok(Some(WriteId::new(id))),
        _ => Err(status(Error::Invalid(format!(
            "the header {WRITE_ID_HEADER} must have 1 to {WRITE_ID_BYTES_MAX} ASCII characters"
        )))),
    }
}
