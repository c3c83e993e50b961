//! Actions: prepared statements, cancellation, session options, and Shoal's
//! own `shoal.progress`, `shoal.certificate`, `shoal.notices` and `shoal.cancel`.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, ProstMessageExt,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use shoal_proto::{ErrorCode, Failure, QueryId};
use tonic::Status;

use super::metadata::{self, CATALOG};
use super::query_ticket::QueryTicket;
use super::rows::{result_schema, schema_bytes};
use super::sessions::Clients;
use super::status::{internal, invalid, not_found, status, unsupported};
use super::tickets::Statement;
use crate::engine::QueryProgress;
use crate::{Prepared, Session};

/// Bytes of one option that a client sets for its session.
const OPTION_BYTES_MAX: usize = 64 * 1024;

/// By which coordinators ask one another how the query of a ticket failed.
pub(super) const FAILURE_ACTION: &str = "shoal.failure";

/// What `ListActions` answers: name and description.
const ACTIONS: [(&str, &str); 13] = [
    ("CreatePreparedStatement", "plans a statement for many runs"),
    ("ClosePreparedStatement", "forgets a prepared statement"),
    ("CancelFlightInfo", "stops the query of a FlightInfo"),
    ("CancelQuery", "the older form of CancelFlightInfo"),
    ("SetSessionOptions", "SET for each option; `schema` is the current schema"),
    ("GetSessionOptions", "the session's `catalog` and `schema`"),
    ("CloseSession", "ends the session and what it prepared"),
    ("shoal.progress", "body: a query id; answers JSON"),
    ("shoal.certificate", "body: the id of a query that has ended; answers JSON"),
    ("shoal.notices", "answers a JSON array of the notices since the last call"),
    ("shoal.cancel", "body: a query id; answers {\"cancelled\": bool}"),
    ("shoal.session", "answers the session's user as JSON"),
    (
        FAILURE_ACTION,
        "for other coordinators; body: the handle in a ticket; answers how its query failed as JSON",
    ),
];

/// Every action there is.
pub(super) fn action_types() -> Vec<ActionType> {
    ACTIONS
        .iter()
        .map(|(name, description)| ActionType { r#type: (*name).into(), description: (*description).into() })
        .collect()
}

/// Does an action for a session; the bodies of its results.
///
/// # Errors
/// Those of the engine, `Invalid` for a body that cannot be read, and
/// `Unsupported` for an action that Shoal does not know.
pub(super) async fn act(
    clients: &Clients,
    session: &Arc<Session>,
    action: Action,
) -> Result<Vec<Bytes>, Status> {
    let body = &action.body;
    let answer = match action.r#type.as_str() {
        "CreatePreparedStatement" => create_statement(clients, session, unpacked(body)?).await?,
        "ClosePreparedStatement" => {
            let request: ActionClosePreparedStatementRequest = unpacked(body)?;
            let handle = text_handle(&request.prepared_statement_handle)?;
            // Closing twice is no mistake worth an error.
            clients.statements.lock().take(handle, Instant::now());
            return Ok(Vec::new());
        }
        "CancelFlightInfo" => {
            let request: CancelFlightInfoRequest = decoded(body)?;
            let info = request.info.ok_or_else(|| invalid("CancelFlightInfo names no FlightInfo"))?;
            if !cancel(clients, &info) {
                return Err(not_found("the query of this FlightInfo has ended, or was never known"));
            }
            CancelFlightInfoResult { status: CancelStatus::Cancelled.into() }.encode_to_vec()
        }
        "CancelQuery" => {
            let request: ActionCancelQueryRequest = unpacked(body)?;
            let cancelled = cancel(clients, &decoded(&request.info)?);
            let result = if cancelled { CancelStatus::Cancelled } else { CancelStatus::NotCancellable };
            ActionCancelQueryResult { result: result.into() }.as_any().encode_to_vec()
        }
        "SetSessionOptions" => set_options(clients, session, decoded(body)?).encode_to_vec(),
        "GetSessionOptions" => options_of(session).encode_to_vec(),
        "CloseSession" => {
            clients.close(session.id());
            CloseSessionResult { status: CLOSED }.encode_to_vec()
        }
        "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => {
            return Err(no_transactions());
        }
        "CreatePreparedSubstraitPlan" => return Err(no_substrait()),
        "shoal.progress" => progress(clients, query_id(body)?)?,
        "shoal.certificate" => certificate(clients, query_id(body)?)?,
        "shoal.notices" => serde_json::to_vec(&session.take_notices()).map_err(internal)?,
        "shoal.cancel" => {
            let cancelled = cancel_query(clients, query_id(body)?);
            serde_json::to_vec(&serde_json::json!({ "cancelled": cancelled })).map_err(internal)?
        }
        "shoal.session" => {
            serde_json::to_vec(&serde_json::json!({ "user": session.user() })).map_err(internal)?
        }
        FAILURE_ACTION => {
            let failure = clients.failures.lock().of(text_handle(body)?);
            serde_json::to_vec(&failure).map_err(internal)?
        }
        unknown => {
            let known = ACTIONS.map(|(name, _)| name).join(", ");
            return Err(unsupported(format!("action `{unknown}` is not known (known: {known})")));
        }
    };
    Ok(vec![answer.into()])
}

/// The answer to everything about transactions.
pub(super) fn no_transactions() -> Status {
    unsupported("Shoal has no transactions: each statement commits by itself (use autocommit)")
}

/// The answer to everything about Substrait.
pub(super) fn no_substrait() -> Status {
    unsupported("Shoal takes SQL and no Substrait plans")
}

/// A handle as text; what is no text is no handle of ours.
///
/// # Errors
/// `NotFound`.
pub(super) fn text_handle(handle: &[u8]) -> Result<&str, Status> {
    std::str::from_utf8(handle)
        .map_err(|_| not_found("the handle is none of this coordinator; prepare the statement again"))
}

async fn create_statement(
    clients: &Clients,
    session: &Arc<Session>,
    request: ActionCreatePreparedStatementRequest,
) -> Result<Vec<u8>, Status> {
    if request.transaction_id.is_some_and(|id| !id.is_empty()) {
        return Err(no_transactions());
    }
    let prepared = clients.engine.prepare(session, &request.query).await.map_err(status)?;
    let result = announced(&prepared)?;
    let statement = Arc::new(Statement { session: Arc::clone(session), prepared, bound: Mutex::default() });
    let handle = clients.statements.lock().put(session.id(), statement, Instant::now()).map_err(status)?;
    let result = ActionCreatePreparedStatementResult { prepared_statement_handle: handle.into(), ..result };
    Ok(result.as_any().encode_to_vec())
}

/// Without columns the schema is left out, not sent as a schema of none:
/// that is how JDBC tells updates apart.
fn announced(prepared: &Prepared) -> Result<ActionCreatePreparedStatementResult, Status> {
    let mut result = ActionCreatePreparedStatementResult::default();
    if prepared.returns_rows() {
        result.dataset_schema = schema_bytes(&result_schema(prepared.columns()))?;
    }
    if !prepared.parameters().fields().is_empty() {
        result.parameter_schema = schema_bytes(prepared.parameters())?;
    }
    Ok(result)
}

/// Stops what a `FlightInfo` stands for, whether or not it was fetched. Its
/// ticket is good nowhere then.
fn cancel(clients: &Clients, info: &FlightInfo) -> bool {
    let mut cancelled = false;
    let mut handles = Vec::new();
    for ticket in info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()) {
        if let Ok(any) = Any::decode(ticket.ticket.clone())
            && let Ok(Some(ticket)) = any.unpack::<TicketStatementQuery>()
            && let Ok(ticket) = QueryTicket::read(&ticket.statement_handle, clients.engine.cluster_id())
        {
            let waiting = clients.pending.lock().take(&ticket.handle, Instant::now());
            cancelled |= waiting.is_some();
            handles.push(ticket.handle);
        }
    }
    if let Ok(details) = serde_json::from_slice::<serde_json::Value>(&info.app_metadata)
        && let Some(query) = details["query_id"].as_str().and_then(|id| QueryId::from_str(id).ok())
    {
        cancelled |= cancel_query(clients, query);
    }
    if cancelled {
        for handle in handles {
            forget(clients, &handle);
        }
    }
    cancelled
}

fn cancel_query(clients: &Clients, query: QueryId) -> bool {
    let waiting = clients.pending.lock().take_where(Instant::now(), |pending| pending.query == query);
    if let Some((handle, _)) = &waiting {
        forget(clients, handle);
    }
    clients.engine.cancel(query) || waiting.is_some()
}

/// Sees to it that the ticket of a query that was stopped does not begin it anew.
fn forget(clients: &Clients, handle: &str) {
    let stopped = Failure::new(ErrorCode::Cancelled, "the query was cancelled; run the statement again");
    clients.failures.lock().keep(handle, stopped);
}

fn progress(clients: &Clients, query: QueryId) -> Result<Vec<u8>, Status> {
    let progress = match clients.engine.progress(query) {
        Some(progress) => progress,
        None if clients.pending.lock().any(|pending| pending.query == query) => not_fetched_yet(),
        None => return Err(not_found(format!("query {query} is not known, or ended long ago"))),
    };
    serde_json::to_vec(&progress).map_err(internal)
}

fn certificate(clients: &Clients, query: QueryId) -> Result<Vec<u8>, Status> {
    let certificate = clients.engine.certificate(query).ok_or_else(|| {
        not_found(format!(
            "query {query} has no certificate: it gave no complete result yet, or is not known any more"
        ))
    })?;
    serde_json::to_vec(certificate.as_ref()).map_err(internal)
}

fn not_fetched_yet() -> QueryProgress {
    QueryProgress {
        state: "queued".into(),
        queue_position: None,
        segments_done: 0,
        segments_total: 0,
        rows: 0,
        bytes: 0,
        workers_busy: 0,
        elapsed_ms: 0,
    }
}

fn query_id(body: &[u8]) -> Result<QueryId, Status> {
    let text = String::from_utf8_lossy(body);
    QueryId::from_str(text.trim()).map_err(|_| {
        let start: String = text.chars().take(60).collect();
        invalid(format!("`{start}` is no query id; they look like 0190c2a4-6f0e-7c50-9d2e-6a4f3f1f2b11"))
    })
}

/// Sets what can be set; the codes of those that cannot.
fn set_options(
    clients: &Clients,
    session: &Session,
    request: SetSessionOptionsRequest,
) -> SetSessionOptionsResult {
    let mut errors = HashMap::new();
    for (name, value) in request.session_options {
        if let Err(code) = set_option(clients, session, &name, value.value) {
            errors.insert(name, OptionError { code });
        }
    }
    SetSessionOptionsResult { errors }
}

fn set_option(
    clients: &Clients,
    session: &Session,
    name: &str,
    value: Option<OptionValue>,
) -> Result<(), i32> {
    let value = match value {
        Some(OptionValue::Text(text)) if text.len() <= OPTION_BYTES_MAX => Some(text),
        Some(OptionValue::Bool(value)) => Some(value.to_string()),
        Some(OptionValue::Integer(value)) => Some(value.to_string()),
        Some(OptionValue::Float(value)) => Some(value.to_string()),
        Some(OptionValue::Text(_) | OptionValue::List(_)) => return Err(INVALID_VALUE),
        None => None,
    };
    let setting = match (name, value.as_deref()) {
        ("catalog", None | Some(CATALOG)) => return Ok(()),
        ("catalog", Some(_)) => return Err(INVALID_VALUE),
        ("schema", Some(schema)) if !metadata::has_schema(&clients.engine, schema) => {
            return Err(INVALID_VALUE);
        }
        ("schema", _) => "datafusion.catalog.default_schema",
        (other, _) => other,
    };
    session.set(setting, value.as_deref()).map_err(|error| {
        tracing::debug!(option = name, %error, "session option refused");
        INVALID_VALUE
    })
}

fn options_of(session: &Session) -> GetSessionOptionsResult {
    let schema = session.settings().options.catalog.default_schema.clone();
    let text = |value: &str| SessionOption { value: Some(OptionValue::Text(value.to_owned())) };
    GetSessionOptionsResult {
        session_options: HashMap::from([
            ("catalog".to_owned(), text(CATALOG)),
            ("schema".to_owned(), text(&schema)),
        ]),
    }
}

fn decoded<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    M::decode(body).map_err(|error| invalid(format!("the action's body cannot be read: {error}")))
}

fn unpacked<M: ProstMessageExt>(body: &Bytes) -> Result<M, Status> {
    let any: Any = decoded(body)?;
    any.unpack().map_err(|error| invalid(format!("the action's body cannot be read: {error}")))?.ok_or_else(
        || invalid(format!("the action's body is a `{}`, and not a `{}`", any.type_url, M::type_url())),
    )
}

// Messages of Flight.proto that arrow-flight has no types for.

const CLOSED: i32 = 1;
const INVALID_VALUE: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct CloseSessionResult {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    session_options: HashMap<String, SessionOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionOption {
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    value: Option<OptionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OptionValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Integer(i64),
    #[prost(double, tag = "4")]
    Float(f64),
    #[prost(message, tag = "5")]
    List(OptionList),
}

#[derive(Clone, PartialEq, prost::Message)]
struct OptionList {
    #[prost(string, repeated, tag = "1")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    errors: HashMap<String, OptionError>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    session_options: HashMap<String, SessionOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OptionError {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_id_is_read_or_refused() {
        let id = QueryId::random();
        assert_eq!(query_id(id.to_string().as_bytes()).unwrap(), id);
        assert!(query_id(b"\xff\xfe").unwrap_err().message().contains("is no query id"));
    }
}
