//! Rows of a query that a worker is asked to load: what becomes of what it says.

use prost::Message;
use shoal_data::load::to_wire;
use shoal_data::{PackedStatistics, Segment};
use shoal_proto::cluster::load_news::News;
use shoal_proto::cluster::load_order::Order;
use shoal_proto::cluster::load_rows::Source;
use shoal_proto::cluster::loads_server::{Loads, LoadsServer};
use shoal_proto::cluster::{LoadDone, LoadNews, LoadOrder, LoadRefused};
use shoal_proto::exchange::{ExchangeCompression, QueryOptions, ReadLog, Reads};
use shoal_proto::query::{Frame, TableReads};
use shoal_proto::{ErrorCode, Failure, QueryId, SegmentId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::query::{LastTasks, Refusal, TakesRows};
use crate::write::RowsLoad;

/// What a worker does when it is asked for rows.
#[derive(Clone, Debug)]
enum Answer {
    /// Knows no such order.
    IsOlder,
    /// Has made a segment of the first so many rows, and counted the second.
    Makes(u64, u64),
    /// Made a segment that it had not told of.
    MakesUnannounced,
    Refuses(ErrorCode),
    Fails(Failure),
}

#[derive(Clone)]
struct Loader {
    answer: Arc<Mutex<Answer>>,
}

impl Loader {
    /// A durable segment of `w2` and `w3`.
    fn segment(rows: u64) -> shoal_data::load::Durable {
        let segment = Segment {
            id: SegmentId::random(),
            table: TableId(1),
            shard: 1,
            rows,
            bytes: 10,
            crc32c: 0,
            columns: PackedStatistics::default(),
            replicas: workers()[1..].to_vec(),
        };
        shoal_data::load::Durable { segment, disks: vec!["d2".to_owned(), "d3".to_owned()] }
    }

    /// As told with the answer.
    fn done(made: &shoal_data::load::Durable, rows: u64) -> LoadDone {
        let reads = vec![TableReads { log: 1, table: 9, segments: 2, rows: 70, digest: 5 }];
        let read = Frame { part: None, reads, crossed: Vec::new() };
        LoadDone {
            segments: vec![to_wire(made).unwrap()],
            rows,
            read: read.encode_to_vec().into(),
            ..LoadDone::default()
        }
    }
}

#[tonic::async_trait]
impl Loads for Loader {
    type LoadStream = ReceiverStream<Result<LoadNews, Status>>;

    async fn load(
        &self,
        request: Request<Streaming<LoadOrder>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let answer = self.answer.lock().clone();
        let (metadata, _, mut orders) = request.into_parts();
        let first = orders.message().await?.and_then(|order| order.order);
        let Some(Order::Rows(rows)) = first else { return Err(Status::internal("not asked for rows")) };
        assert_eq!(rows.columns, ["k", "text"]);
        assert_eq!(rows.source, Some(Source::Plan(Bytes::from_static(b"a plan"))));
        assert!(QueryOptions::from_headers(&metadata.into_headers()).is_ok());
        if matches!(answer, Answer::IsOlder) {
            return Err(Failure::new(ErrorCode::Invalid, "begins with its task").at("w1").to_status());
        }
        let (news, told) = mpsc::channel(4);
        tokio::spawn(async move {
            let last = match answer {
                Answer::Makes(made, rows) => {
                    let made = Self::segment(made);
                    let name = made.segment.name().to_string();
                    let staging = LoadNews { news: Some(News::Staging(name.clone())) };
                    news.send(Ok(staging)).await.unwrap();
                    loop {
                        let order = orders.message().await.unwrap().unwrap().order;
                        match order {
                            Some(Order::GoOn(known)) if known == name => break,
                            Some(Order::Workers(_)) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                    Ok(News::Done(Self::done(&made, rows)))
                }
                Answer::MakesUnannounced => Ok(News::Done(Self::done(&Self::segment(10), 10))),
                Answer::Refuses(code) => {
                    Ok(News::Refused(LoadRefused { code: code as u32, message: "as it is".to_owned() }))
                }
                Answer::Fails(failure) => Err(failure.to_status()),
                Answer::IsOlder => unreachable!("it did not begin"),
            };
            let last = last.map(|news| LoadNews { news: Some(news) });
            let _gone = news.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(told)))
    }
}

/// What comes of an answer of `w1`: the error or how many rows, what is known to be read,
/// whether the next attempt asks workers again, and whether rows were refused.
async fn asked(answer: Answer) -> (Result<u64, Failure>, BTreeMap<TableId, Reads>, bool, Option<Refusal>) {
    let fixture = Fixture::new(0).await;
    let (listener, address) = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let service = LoadsServer::new(Loader { answer: Arc::new(Mutex::new(answer)) });
    tokio::spawn(server::builder().add_service(service).serve_with_incoming(Incoming::new(listener)));
    fixture.cluster.addresses.lock().insert("w1".into(), format!("http://{address}"));

    let table = Arc::new(table(2, &["k"]));
    let load = Arc::new(RowsLoad::new(&fixture.context, &table, &WriteId::from("w")).unwrap());
    assert!(load.begin(1));
    let reads = Arc::new(ReadLog::new());
    let query = QueryOptions {
        query: QueryId::random(),
        attempt: 1,
        memory_limit_bytes: 1 << 20,
        is_short: false,
        compression: ExchangeCompression::default(),
        settings: Vec::new(),
    };
    let last = LastTasks {
        query,
        columns: vec!["k".to_owned(), "text".to_owned()],
        tasks: vec![("w1".into(), Source::Plan(Bytes::from_static(b"a plan")))],
        reads: Arc::clone(&reads),
    };
    let taken = Arc::clone(&load).take(last).await;
    let rows = taken.map(|()| {
        let staged = load.staged().expect("all rows were taken");
        let rows = staged.rows;
        assert_eq!(fixture.cluster.protected.lock().values().map(HashSet::len).sum::<usize>(), 1);
        staged.committed();
        rows
    });
    assert!(load.staged().is_none());
    let refusal = load.refusal();
    let goes_on = load.begin(2);
    assert!(load.refusal().is_none());
    if rows.is_err() {
        fixture.assert_nothing_is_left();
    }
    (rows, reads.by_table(), goes_on, refusal)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_made_of_rows_counts_with_what_was_read_for_them() {
    let (rows, read, goes_on, refusal) = asked(Answer::Makes(10, 10)).await;
    assert_eq!(refusal, None);
    assert_eq!(rows, Ok(10));
    assert_eq!(read, BTreeMap::from([(TableId(9), Reads { segments: 2, rows: 70, digest: 5 })]));
    assert!(goes_on);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_other_rows_than_the_query_gave_are_not_taken() {
    for answer in [Answer::Makes(9, 10), Answer::Makes(10, 9), Answer::MakesUnannounced] {
        let (rows, read, _, refusal) = asked(answer.clone()).await;
        assert_eq!(refusal, None, "{answer:?}");
        let failure = rows.unwrap_err();
        assert_eq!((failure.code, failure.worker.as_deref()), (ErrorCode::Corrupt, Some("w1")), "{answer:?}");
        assert!(read.is_empty(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_fails_with_is_told_as_it_is_and_may_be_tried_again_there() {
    for code in [ErrorCode::Unavailable, ErrorCode::Internal, ErrorCode::Invalid] {
        let failure = Failure::new(code, "an operator failed").at("w3");
        let (rows, _, goes_on, refusal) = asked(Answer::Fails(failure.clone())).await;
        assert_eq!((rows, goes_on, refusal), (Err(failure), true, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_blame_nobody_and_those_that_a_worker_cannot_write_come_to_the_coordinator() {
    let refused = |failure: Failure, may_come_here| Some(Refusal { failure, may_come_here });
    for code in [ErrorCode::Invalid, ErrorCode::Exhausted] {
        let (rows, _, goes_on, refusal) = asked(Answer::Refuses(code)).await;
        let failure = Failure::new(code, "as it is");
        assert_eq!((rows, goes_on, refusal), (Err(failure.clone()), true, refused(failure, false)));
    }
    for answer in
        [Answer::Refuses(ErrorCode::Unavailable), Answer::Refuses(ErrorCode::Timeout), Answer::IsOlder]
    {
        let (rows, _, goes_on, refusal) = asked(answer.clone()).await;
        let failure = rows.unwrap_err();
        assert_eq!((refusal, goes_on), (refused(failure, true), false), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_attempt_that_was_given_up_has_staged_does_not_count() {
    let fixture = Fixture::new(0).await;
    let load =
        Arc::new(RowsLoad::new(&fixture.context, &Arc::new(table(2, &["k"])), &WriteId::from("w")).unwrap());
    // Of no tasks all rows are taken at once.
    let last = |attempt| LastTasks {
        query: QueryOptions {
            query: QueryId::random(),
            attempt,
            memory_limit_bytes: 1 << 20,
            is_short: false,
            compression: ExchangeCompression::default(),
            settings: Vec::new(),
        },
        columns: Vec::new(),
        tasks: Vec::new(),
        reads: Arc::new(ReadLog::new()),
    };
    assert!(load.begin(2));
    Arc::clone(&load).take(last(1)).await.unwrap();
    assert!(load.staged().is_none());
    Arc::clone(&load).take(last(2)).await.unwrap();
    assert!(load.staged().is_some());
}
