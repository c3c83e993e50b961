//! Single-process DataFusion behind the same encoding of rows, the same
//! server settings and the same calls for each statement, prepared or not, as
//! Shoal's front door: what lookups and scans are compared with.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, CommandPreparedStatementQuery, CommandStatementQuery,
    DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, Ticket,
};
use datafusion::common::ScalarValue;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use shoal_coordinator::flight::{encoded, result_schema};
use shoal_proto::server::{Incoming, bind, builder};
use tonic::{Request, Response, Status, Streaming};

use crate::peers::{register, runtime, say_line, wait_for_end_of_stdin};

struct Door {
    context: SessionContext,
    planned: Mutex<Planned>,
}

impl Door {
    fn planned(&self) -> MutexGuard<'_, Planned> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a query until it is fetched.
    fn announce(
        &self,
        frame: DataFrame,
        descriptor: FlightDescriptor,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = result_schema(frame.schema().as_arrow());
        let handle = {
            let mut planned = self.planned();
            let handle = planned.number();
            planned.frames.insert(handle, frame);
            handle
        };
        let ticket = TicketStatementQuery { statement_handle: handle.to_le_bytes().to_vec().into() };
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec()));
        let info = FlightInfo::new()
            .try_with_schema(&schema)
            .map_err(internal)?
            .with_endpoint(endpoint)
            .with_descriptor(descriptor);
        Ok(Response::new(info))
    }
}

#[derive(Default)]
struct Planned {
    /// Queries that wait to be fetched.
    frames: HashMap<u64, DataFrame>,
    statements: HashMap<u64, Statement>,
    next: u64,
}

/// A prepared statement, with the values that were bound last.
#[derive(Clone)]
struct Statement {
    frame: DataFrame,
    values: Vec<ScalarValue>,
}

impl Planned {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn statement(&mut self, handle: &[u8]) -> Result<&mut Statement, Status> {
        let statement = number_of(handle).and_then(|number| self.statements.get_mut(&number));
        statement.ok_or_else(|| Status::not_found("the statement is unknown"))
    }
}

fn number_of(handle: &[u8]) -> Option<u64> {
    <[u8; 8]>::try_from(handle).ok().map(u64::from_le_bytes)
}

/// Serves until standard input closes; its first line of output is its URL.
pub(crate) fn serve(threads: usize, tables: &Path) -> Result<()> {
    let runtime = runtime(threads)?;
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(threads));
    let address = runtime.block_on(async {
        register(&context, tables).await?;
        let (listener, address) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let door = FlightServiceServer::new(Door { context, planned: Mutex::default() });
        tokio::spawn(builder().add_service(door).serve_with_incoming(Incoming::new(listener)));
        anyhow::Ok(address)
    })?;
    say_line(&format!("http://{address}"))?;
    wait_for_end_of_stdin();
    Ok(())
}

#[tonic::async_trait]
impl FlightSqlService for Door {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let frame = self.context.sql(&query.query).await.map_err(internal)?;
        self.announce(frame, request.into_inner())
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let frame = self.context.sql(&query.query).await.map_err(internal)?;
        let mut planned = self.planned();
        let handle = planned.number();
        planned.statements.insert(handle, Statement { frame, values: Vec::new() });
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.to_le_bytes().to_vec().into(),
            ..Default::default()
        })
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let messages = request.into_inner().map_err(FlightError::from);
        let rows = FlightRecordBatchStream::new_from_flight_data(messages);
        let rows: Vec<_> = rows.try_collect().await.map_err(internal)?;
        let row = rows.iter().find(|batch| batch.num_rows() > 0);
        let row = row.ok_or_else(|| Status::invalid_argument("no values"))?;
        let values = row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
        let values = values.collect::<datafusion::common::Result<Vec<_>>>().map_err(internal)?;
        self.planned().statement(&query.prepared_statement_handle)?.values = values;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(query.prepared_statement_handle) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let statement = self.planned().statement(&query.prepared_statement_handle)?.clone();
        let frame = statement.frame.with_param_values(statement.values).map_err(internal)?;
        self.announce(frame, request.into_inner())
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        if let Some(number) = number_of(&query.prepared_statement_handle) {
            self.planned().statements.remove(&number);
        }
        Ok(())
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        _: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let frame =
            number_of(&ticket.statement_handle).and_then(|number| self.planned().frames.remove(&number));
        let frame = frame.ok_or_else(|| Status::not_found("the ticket is unknown"))?;
        let schema = result_schema(frame.schema().as_arrow());
        let rows = frame.execute_stream().await.map_err(internal)?;
        Ok(Response::new(encoded(schema, rows)))
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}
