//! Queries between `GetFlightInfo` and `DoGet`: announced with a ticket, run
//! when that is brought, and begun before where they are short. A ticket that comes a second time, or from another
//! coordinator, is planned again from what it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{Action, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use futures::future::join_all;
use prost::Message;
use shoal_proto::{Failure, QueryId};
use tonic::Status;

use super::actions::FAILURE_ACTION;
use super::home::other_maker;
use super::locations::locations;
use super::query_ticket::{Asked, QueryTicket};
use super::rows::{FlightStream, encoded, encoded_batch, result_schema, with_last_word};
use super::sessions::Clients;
use super::status::{internal, invalid, not_found, status};
use super::tickets::Pending;
use crate::catalog::Coordinator;
use crate::sql::ShoalConfig;
use crate::{HeadStart, Prepared, Session};

/// The ticket of a statement that ran already and has no rows: any coordinator
/// takes it, and none runs anything for it.
const DONE: &[u8] = b"done";
/// How long another coordinator may take to say how a query failed there.
const ASK_MAX: Duration = Duration::from_secs(1);

const CHANGED: &str = "the columns of the result are not those that were announced: a table or view has changed \
                       since; prepare the statement again";

/// Announces a query that will run when it is fetched; a short one begins now, or has
/// `begun` with these parameters.
///
/// # Errors
/// `Exhausted` where too many wait.
pub(super) fn announce(
    clients: &Clients,
    session: &Arc<Session>,
    prepared: Arc<Prepared>,
    parameters: Vec<ScalarValue>,
    begun: Option<HeadStart>,
) -> Result<FlightInfo, Status> {
    let engine = &clients.engine;
    let schema = result_schema(prepared.columns());
    let asked = Asked::of(session, &prepared, &parameters, &schema);
    let head_start =
        begun.filter(HeadStart::is_there).or_else(|| engine.head_start(session, &prepared, &parameters));
    let query = head_start.as_ref().map_or_else(QueryId::random, HeadStart::query);
    let pending = Pending { session: Arc::clone(session), prepared, parameters, query, head_start };
    let handle = clients.pending.lock().put(session.id(), pending, Instant::now()).map_err(status)?;
    let ticket = QueryTicket::new(engine.cluster_id(), handle, asked);
    // No coordinator but this one can make anything of a short ticket.
    let is_told = ticket.asked.is_some() && ShoalConfig::of(&session.settings().options).locations;
    let places = if is_told { locations(&engine.coordinators()) } else { Vec::new() };
    let details = serde_json::json!({ "query_id": query.to_string() });
    info(&schema, ticket.encode_to_vec().into(), places, &details)
}

/// Announces the result of a statement that has run.
///
/// # Errors
/// `Internal`.
pub(super) fn announce_done(rows_changed: i64) -> Result<FlightInfo, Status> {
    let details = serde_json::json!({ "rows_changed": rows_changed });
    // Clients show this as the row count of their cursor.
    let info = info(&Schema::empty(), Bytes::from_static(DONE), Vec::new(), &details)?;
    Ok(info.with_total_records(rows_changed))
}

fn info(
    schema: &Schema,
    handle: Bytes,
    places: Vec<String>,
    details: &serde_json::Value,
) -> Result<FlightInfo, Status> {
    let ticket = TicketStatementQuery { statement_handle: handle }.as_any().encode_to_vec();
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
    Ok(FlightInfo::new()
        .try_with_schema(schema)
        .map_err(internal)?
        .with_endpoint(places.into_iter().fold(endpoint, |endpoint, place| endpoint.with_location(place)))
        .with_app_metadata(details.to_string()))
}

/// Runs the query of a ticket.
///
/// # Errors
/// Before the first row; later ones come through the stream.
pub(super) async fn fetch(clients: &Clients, ticket: &Bytes) -> Result<FlightStream, Status> {
    if ticket[..] == *DONE {
        return Ok(encoded_batch(RecordBatch::new_empty(Arc::new(Schema::empty()))));
    }
    let ticket = QueryTicket::read(ticket, clients.engine.cluster_id())?;
    let waiting = clients.pending.lock().take(&ticket.handle, Instant::now());
    let rows = async {
        let pending = match waiting {
            Some(pending) => pending,
            None => again(clients, &ticket).await?,
        };
        run(clients, pending).await
    };
    match rows.await {
        Ok(rows) => {
            let (failures, handle) = (Arc::clone(&clients.failures), ticket.handle);
            Ok(Box::pin(rows.inspect(move |message| {
                if let Err(error) = message {
                    failures.lock().keep(&handle, Failure::from_status(error));
                }
            })))
        }
        Err(error) => {
            clients.failures.lock().keep(&ticket.handle, Failure::from_status(&error));
            Err(error)
        }
    }
}

async fn run(clients: &Clients, pending: Pending) -> Result<FlightStream, Status> {
    let Pending { session, prepared, parameters, query, head_start } = pending;
    let output = clients.engine.query_announced(&session, &prepared, parameters, query, head_start);
    let output = output.await.map_err(status)?;
    let announced = result_schema(prepared.columns());
    let types = |schema: &Schema| -> Vec<_> {
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    if types(&announced) != types(&result_schema(&output.schema)) {
        return Err(invalid(CHANGED));
    }
    let rows = encoded(Arc::clone(&announced), output.stream);
    let engine = clients.engine.clone();
    Ok(with_last_word(rows, announced, move || {
        let certificate = engine.certificate(query)?;
        let certificate = serde_json::json!({ "query_id": query.to_string(), "certificate": certificate });
        Some(certificate.to_string().into())
    }))
}

/// Plans a query from its ticket. It gets an id of its own: at its coordinator
/// it may still run.
async fn again(clients: &Clients, ticket: &QueryTicket) -> Result<Pending, Status> {
    let failed_here = clients.failures.lock().of(&ticket.handle);
    if let Some(failure) = failed_here {
        return Err(status(failure));
    }
    let Some(asked) = &ticket.asked else { return Err(unknown(clients, &ticket.handle)) };
    if let Some(failure) = failed_elsewhere(clients, &ticket.handle).await {
        return Err(status(failure));
    }
    let engine = &clients.engine;
    let session = engine.passing_session(&asked.user()?, &asked.settings()?).map_err(status)?;
    let prepared = engine.prepare(&session, asked.sql()).await.map_err(status)?;
    if !prepared.is_query() {
        return Err(invalid(
            "a ticket is for a query, and this statement changes something; run it as a statement",
        ));
    }
    if !asked.is_announced(&result_schema(prepared.columns())) {
        return Err(invalid(CHANGED));
    }
    let parameters = asked.parameters()?;
    Ok(Pending { session, prepared, parameters, query: QueryId::random(), head_start: None })
}

fn unknown(clients: &Clients, handle: &str) -> Status {
    not_found(match other_maker(&clients.engine, handle) {
        Some(maker) => format!(
            "the ticket is good at {maker} only: its statement, parameters or settings cannot be told in a \
             ticket; run the statement again here"
        ),
        None => "the ticket is unknown, expired or was used before; run the statement again".to_owned(),
    })
}

/// How the query of a ticket failed at another coordinator, as far as they say.
async fn failed_elsewhere(clients: &Clients, handle: &str) -> Option<Failure> {
    let others: Vec<Coordinator> =
        clients.engine.coordinators().into_iter().filter(|it| !it.is_self).collect();
    let asked: Vec<_> = others.iter().map(|other| ask(clients, &other.address, handle)).collect();
    join_all(asked).await.into_iter().flatten().next()
}

async fn ask(clients: &Clients, address: &str, handle: &str) -> Option<Failure> {
    let mut other = FlightServiceClient::new(clients.channels.get(address).ok()?);
    let action = Action { r#type: FAILURE_ACTION.to_owned(), body: handle.to_owned().into() };
    let asked = async {
        let mut answer = other.do_action(action).await.ok()?.into_inner();
        answer.message().await.ok()?
    };
    let told = tokio::time::timeout(ASK_MAX, asked).await.ok()??;
    serde_json::from_slice::<Option<Failure>>(&told.body).ok()?
}
