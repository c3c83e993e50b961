//! Single-process DataFusion behind the same encoding of rows, the same
//! server settings and the same two calls for each statement as Shoal's front
//! door: what lookups and scans are compared with.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::server::FlightSqlService;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt, SqlInfo, TicketStatementQuery};
use arrow_flight::{
    FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, Ticket,
};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::{Stream, stream};
use prost::Message;
use shoal_coordinator::flight::{encoded, result_schema};
use shoal_proto::server::{Incoming, bind, builder};
use tonic::{Request, Response, Status, Streaming};

use crate::peers::{register, runtime, say_line, wait_for_end_of_stdin};

struct Door {
    context: SessionContext,
    planned: Mutex<Planned>,
}

#[derive(Default)]
struct Planned {
    frames: HashMap<u64, DataFrame>,
    next: u64,
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
        let schema = result_schema(frame.schema().as_arrow());
        let handle = {
            let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
            planned.next += 1;
            let handle = planned.next;
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

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        _: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let frame = <[u8; 8]>::try_from(ticket.statement_handle.as_ref()).ok().and_then(|handle| {
            let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
            planned.frames.remove(&u64::from_le_bytes(handle))
        });
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
