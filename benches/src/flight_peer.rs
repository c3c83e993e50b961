//! Single-process DataFusion behind the same encoding of rows, the same
//! server settings and the same calls for each statement as Shoal's front
//! door: what lookups and scans are compared with.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use arrow::record_batch::RecordBatch;
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
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use shoal_coordinator::flight::{encoded, result_schema};
use shoal_proto::server::{Incoming, bind, builder};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use crate::peers::{register, runtime, say_line, wait_for_end_of_stdin};

struct Door {
    context: SessionContext,
    planned: Mutex<Planned>,
    /// Of the queries that run at once; None: as many as come.
    places: Option<Arc<Semaphore>>,
}

/// What clients hold handles to.
#[derive(Default)]
struct Planned {
    /// Queries that wait to be fetched.
    frames: HashMap<u64, DataFrame>,
    statements: HashMap<u64, Statement>,
    last: u64,
}

/// A prepared statement.
struct Statement {
    frame: DataFrame,
    /// The values that were bound to it last.
    bound: Vec<ScalarValue>,
}

impl Planned {
    fn new_handle(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// Serves until standard input closes; its first line of output is its URL.
pub(crate) fn serve(threads: usize, queries_max: Option<usize>, tables: &Path) -> Result<()> {
    let runtime = runtime(threads)?;
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(threads));
    let address = runtime.block_on(async {
        register(&context, tables).await?;
        listen(context, queries_max).await
    })?;
    say_line(&format!("http://{address}"))?;
    wait_for_end_of_stdin();
    Ok(())
}

/// Begins to serve; where.
async fn listen(context: SessionContext, queries_max: Option<usize>) -> Result<SocketAddr> {
    let (listener, address) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let places = queries_max.map(|queries| Arc::new(Semaphore::new(queries)));
    let door = FlightServiceServer::new(Door { context, planned: Mutex::default(), places });
    tokio::spawn(builder().add_service(door).serve_with_incoming(Incoming::new(listener)));
    Ok(address)
}

impl Door {
    fn planned(&self) -> MutexGuard<'_, Planned> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a query that will run when it is fetched.
    fn announce(
        &self,
        frame: DataFrame,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = result_schema(frame.schema().as_arrow());
        let handle = {
            let mut planned = self.planned();
            let handle = planned.new_handle();
            planned.frames.insert(handle, frame);
            handle
        };
        let ticket = TicketStatementQuery { statement_handle: handle.to_le_bytes().to_vec().into() };
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec()));
        let info = FlightInfo::new()
            .try_with_schema(&schema)
            .map_err(internal)?
            .with_endpoint(endpoint)
            .with_descriptor(request.into_inner());
        Ok(Response::new(info))
    }

    /// A prepared statement with its values in it.
    fn bound(&self, handle: &[u8]) -> Result<DataFrame, Status> {
        let (frame, values) = {
            let planned = self.planned();
            let statement = planned.statements.get(&number_of(handle)?).ok_or_else(unknown)?;
            (statement.frame.clone(), statement.bound.clone())
        };
        if values.is_empty() {
            return Ok(frame);
        }
        frame.with_param_values(values).map_err(internal)
    }

    fn bind(&self, handle: &[u8], values: Vec<ScalarValue>) -> Result<(), Status> {
        let mut planned = self.planned();
        let statement = planned.statements.get_mut(&number_of(handle)?).ok_or_else(unknown)?;
        statement.bound = values;
        Ok(())
    }
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
        self.announce(frame, request)
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let frame = self.bound(&query.prepared_statement_handle)?;
        self.announce(frame, request)
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        _: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let handle = number_of(&ticket.statement_handle)?;
        let frame = self.planned().frames.remove(&handle).ok_or_else(unknown)?;
        let place = match &self.places {
            Some(places) => Some(Arc::clone(places).acquire_owned().await.map_err(internal)?),
            None => None,
        };
        let schema = result_schema(frame.schema().as_arrow());
        let rows = frame.execute_stream().await.map_err(internal)?;
        // The next one runs when these rows were sent, or nobody wants them.
        let rows = rows.inspect(move |_| {
            let _held = &place;
        });
        Ok(Response::new(encoded(schema, rows)))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let frame = self.context.sql(&query.query).await.map_err(internal)?;
        let mut planned = self.planned();
        let handle = planned.new_handle();
        planned.statements.insert(handle, Statement { frame, bound: Vec::new() });
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.to_le_bytes().to_vec().into(),
            ..Default::default()
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        let handle = number_of(&query.prepared_statement_handle)?;
        self.planned().statements.remove(&handle);
        Ok(())
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let sent = request.into_inner().map_err(FlightError::from);
        let batches = FlightRecordBatchStream::new_from_flight_data(sent);
        let batches: Vec<RecordBatch> = batches.try_collect().await.map_err(internal)?;
        let row = batches.iter().find(|batch| batch.num_rows() > 0);
        let row = row.ok_or_else(|| Status::invalid_argument("no row of parameters is bound"))?;
        let values = row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
        let values = values.collect::<Result<Vec<_>, _>>().map_err(internal)?;
        let handle = query.prepared_statement_handle;
        self.bind(&handle, values)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

/// The number of a handle that this door gave out.
fn number_of(handle: &[u8]) -> Result<u64, Status> {
    <[u8; 8]>::try_from(handle).map(u64::from_le_bytes).map_err(|_| unknown())
}

fn unknown() -> Status {
    Status::not_found("the handle is unknown")
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;
    use crate::client::Client;

    #[tokio::test]
    async fn a_prepared_statement_takes_values_one_query_after_the_other() {
        let context = SessionContext::new();
        context.sql("CREATE TABLE t AS VALUES (1), (2)").await.unwrap().collect().await.unwrap();
        let address = listen(context, Some(1)).await.unwrap();
        let mut client = Client::connect(&format!("http://{address}")).await.unwrap();
        let mut prepared = client.prepare("SELECT * FROM t WHERE column1 = $1").await.unwrap();
        for (key, expected) in [(1, 1), (7, 0), (2, 1)] {
            let keys: ArrayRef = Arc::new(Int64Array::from(vec![key]));
            prepared.set_parameters(RecordBatch::try_from_iter([("1", keys)]).unwrap()).unwrap();
            let flight = prepared.execute().await.unwrap();
            let (_, batches) = client.fetch(flight).await.unwrap();
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows, expected, "{key}");
        }
        let mut other = prepared.clone();
        prepared.close().await.unwrap();
        assert!(other.execute().await.is_err(), "it was closed");
    }
}
