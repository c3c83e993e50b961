//! Clients of Flight SQL and several coordinators: which of what one of them
//! hands out is good at the others, and what those say of the rest.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::{
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any,
    CommandPreparedStatementQuery, ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use prost::Message;
use shoal_benches::{Client, ClientError, Cluster, ClusterOptions};
use tonic::Code;

use crate::fixture::{in_time, options};

const NAMES: [&str; 3] = ["coordinator", "coordinator-2", "coordinator-3"];

fn three() -> Cluster {
    Cluster::start(&ClusterOptions { coordinators: 3, ..options(2) }).unwrap()
}

/// A session with each coordinator, and a table of the numbers 1, 2 and 3.
async fn sessions(cluster: &Cluster) -> [Client; 3] {
    let mut first = cluster.connect_to(NAMES[0]).await.unwrap();
    first.update("CREATE TABLE kept (k BIGINT) WITH (shards = 2, shard_key = 'k')").await.unwrap();
    first.update("INSERT INTO kept VALUES (1), (2), (3)").await.unwrap();
    let second = cluster.connect_to(NAMES[1]).await.unwrap();
    let third = cluster.connect_to(NAMES[2]).await.unwrap();
    [first, second, third]
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

async fn announced(client: &mut Client, sql: &str) -> FlightInfo {
    client.flight().execute(sql.to_owned(), None).await.unwrap()
}

/// The first column of the first row as text, and how many rows there are.
async fn fetched(client: &mut Client, info: &FlightInfo) -> Result<(String, usize), ClientError> {
    let (_, batches) = in_time(client.fetch(info.clone())).await?;
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("no row");
    let column = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
    Ok((column.as_string::<i32>().value(0).to_owned(), rows))
}

fn one(text: &str) -> (String, usize) {
    (text.to_owned(), 1)
}

fn places(info: &FlightInfo) -> Vec<String> {
    info.endpoint[0].location.iter().map(|location| location.uri.clone()).collect()
}

#[test]
fn a_query_is_fetched_at_another_coordinator_when_its_own_is_gone() {
    let cluster = three();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let [mut first, mut second, mut third] = sessions(&cluster).await;
        let sum = "SELECT sum(k) FROM kept";
        assert_eq!(places(&announced(&mut first, sum).await), Vec::<String>::new());
        first.update("SET shoal.locations = true").await.unwrap();
        first.update("SET TIME ZONE = '+02:00'").await.unwrap();
        let info = announced(&mut first, sum).await;
        let told = places(&info);
        let place = |name: &str| format!("grpc+tcp://{}", cluster.address(name).unwrap());
        assert_eq!(told.first(), Some(&place(NAMES[0])), "{told:?}");
        assert!(NAMES.iter().all(|name| told.contains(&place(name))), "{told:?}");
        assert_eq!(told.last().unwrap(), "arrow-flight-reuse-connection://?");
        assert_eq!(told.len(), NAMES.len() + 1, "{told:?}");

        let zone = announced(&mut first, "SELECT arrow_typeof(now()) FROM kept").await;
        let mut below = first.prepare("SELECT count(*) FROM kept WHERE k < $1").await.unwrap();
        let limit: ArrayRef = Arc::new(Int64Array::from(vec![3]));
        below.set_parameters(RecordBatch::try_from_iter([("1", limit)]).unwrap()).unwrap();
        let below = below.execute().await.unwrap();
        let keys = announced(&mut first, "SELECT k FROM kept").await;
        // While it is there, too.
        assert_eq!(fetched(&mut third, &info).await.unwrap(), one("6"));

        cluster.kill(NAMES[0]).unwrap();
        cluster.leader().unwrap();
        for other in [&mut second, &mut third] {
            assert_eq!(fetched(other, &info).await.unwrap(), one("6"));
            assert_eq!(fetched(other, &below).await.unwrap(), one("2"));
            let (zone, rows) = fetched(other, &zone).await.unwrap();
            assert!(zone.contains("+02:00") && rows == 3, "{zone}, {rows} rows");
        }
        // Each time it is of the newest catalog.
        second.update("INSERT INTO kept VALUES (4)").await.unwrap();
        assert_eq!(fetched(&mut second, &info).await.unwrap(), one("10"));

        cluster.restart(NAMES[0]).unwrap();
        cluster.wait_until_voting(3).unwrap();
        cluster.wait_until_joined(2).unwrap();
        let mut again = cluster.connect_to(NAMES[0]).await.unwrap();
        assert_eq!(fetched(&mut again, &info).await.unwrap(), one("10"));
        again.update("DROP TABLE kept").await.unwrap();
        again.update("CREATE TABLE kept (k VARCHAR)").await.unwrap();
        let changed = fetched(&mut again, &keys).await.unwrap_err();
        assert_eq!(changed.code, Code::InvalidArgument, "{changed}");
        assert!(changed.message.contains("prepare the statement again"), "{changed}");
    });
}

#[test]
fn a_query_that_failed_or_was_stopped_does_not_begin_anew_elsewhere() {
    let cluster = three();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let [mut first, mut second, mut third] = sessions(&cluster).await;
        let failing = announced(&mut first, "SELECT 10 / (k - k) FROM kept").await;
        let error = fetched(&mut first, &failing).await.unwrap_err();
        assert!(error.message.to_lowercase().contains("zero"), "{error}");
        let stopped = announced(&mut first, "SELECT count(*) + 5 FROM kept").await;
        let details: serde_json::Value = serde_json::from_slice(&stopped.app_metadata).unwrap();
        let query = details["query_id"].as_str().unwrap();
        first.action("shoal.cancel", query.as_bytes().to_vec()).await.unwrap();
        for client in [&mut second, &mut third, &mut first] {
            let again = fetched(client, &failing).await.unwrap_err();
            assert_eq!((again.code, &again.message), (error.code, &error.message));
            let again = fetched(client, &stopped).await.unwrap_err();
            assert_eq!(again.code, Code::Cancelled, "{again}");
            assert!(again.message.contains("run the statement again"), "{again}");
        }
        let begun =
            "SELECT count(*) FROM system.queries WHERE sql LIKE '%FROM kept' AND sql NOT LIKE '%system%'";
        for client in [&mut second, &mut third] {
            assert_eq!(client.number(begun).await.unwrap(), 0);
        }
    });
}

#[test]
fn what_one_coordinator_alone_knows_is_said_to_be_there() {
    let cluster = three();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let [mut first, mut second, _third] = sessions(&cluster).await;
        let home = cluster.url_of(NAMES[0]).unwrap();

        let request =
            ActionCreatePreparedStatementRequest { query: "SELECT 1".to_owned(), transaction_id: None };
        let body = request.as_any().encode_to_vec();
        let answer = first.action("CreatePreparedStatement", body).await.unwrap();
        let prepared: ActionCreatePreparedStatementResult =
            Any::decode(answer.as_slice()).unwrap().unpack().unwrap().unwrap();
        let command =
            CommandPreparedStatementQuery { prepared_statement_handle: prepared.prepared_statement_handle };
        let descriptor = || FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let refused = second.flight().inner_mut().get_flight_info(descriptor()).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        for part in ["prepare the statement again", "coordinator 1", home.as_str()] {
            assert!(refused.message().contains(part), "no {part} in {refused}");
        }
        first.flight().inner_mut().get_flight_info(descriptor()).await.unwrap();

        let long = announced(&mut first, &format!("SELECT length('{}') AS n", "x".repeat(100_000))).await;
        assert_eq!(places(&long), Vec::<String>::new());
        let refused = fetched(&mut second, &long).await.unwrap_err();
        assert_eq!(refused.code, Code::NotFound, "{refused}");
        for part in ["run the statement again", "coordinator 1", home.as_str()] {
            assert!(refused.message.contains(part), "no {part} in {refused}");
        }
        assert_eq!(fetched(&mut first, &long).await.unwrap(), one("100000"));

        let token = first.flight().token().cloned().unwrap();
        second.flight().set_token(token);
        let refused = second.query("SELECT 1").await.unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated, "{refused}");
        for part in ["connect again", "SET", "coordinator 1", home.as_str()] {
            assert!(refused.message.contains(part), "no {part} in {refused}");
        }
    });
}

/// What is in a ticket of a query, as far as a stranger would change it.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    handle: String,
    #[prost(message, optional, tag = "3")]
    asked: Option<Asked>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(string, tag = "1")]
    sql: String,
    #[prost(string, tag = "2")]
    user: String,
}

fn told(info: &FlightInfo) -> Told {
    let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
    let ticket: TicketStatementQuery = Any::decode(ticket).unwrap().unpack().unwrap().unwrap();
    Told::decode(ticket.statement_handle).unwrap()
}

fn with_ticket(told: &Told) -> FlightInfo {
    let ticket = TicketStatementQuery { statement_handle: told.encode_to_vec().into() };
    let ticket = Ticket::new(ticket.as_any().encode_to_vec());
    FlightInfo::new().with_endpoint(FlightEndpoint::new().with_ticket(ticket))
}

#[test]
fn no_ticket_writes_twice_or_at_all() {
    let cluster = three();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut clients = sessions(&cluster).await;
        let count = "SELECT count(*) FROM kept";
        let written = announced(&mut clients[0], "INSERT INTO kept VALUES (4)").await;
        for client in &mut clients {
            for _ in 0..2 {
                let (schema, batches) = client.fetch(written.clone()).await.unwrap();
                assert!(schema.fields().is_empty() && batches.iter().all(|batch| batch.num_rows() == 0));
            }
            assert_eq!(client.number(count).await.unwrap(), 4);
        }

        let sum = announced(&mut clients[0], "SELECT sum(k) FROM kept").await;
        let honest = told(&sum);
        let mut number = 0;
        for sql in [
            "INSERT INTO kept VALUES (5)",
            "DROP TABLE kept",
            "COPY kept TO '/tmp/kept.csv'",
            "SELECT 1; DROP TABLE kept",
            // Not what was announced.
            "SELECT k FROM kept",
        ] {
            for client in &mut clients {
                // Under one handle the first failure would only be told again.
                number += 1;
                let asked = Asked { sql: sql.to_owned(), ..honest.asked.clone().unwrap() };
                let forged = Told { handle: format!("1-{number}"), asked: Some(asked), ..honest.clone() };
                let refused = client.fetch(with_ticket(&forged)).await.expect_err(sql);
                assert_eq!(refused.code, Code::InvalidArgument, "{sql}: {refused}");
            }
        }
        let elsewhere = with_ticket(&Told { cluster: "another".to_owned(), ..honest });
        let refused = clients[1].fetch(elsewhere).await.unwrap_err();
        assert_eq!(refused.code, Code::NotFound, "{refused}");
        assert!(refused.message.contains("another cluster"), "{refused}");

        assert_eq!(fetched(&mut clients[1], &sum).await.unwrap(), one("10"));
        assert_eq!(clients[2].number(count).await.unwrap(), 4);
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
