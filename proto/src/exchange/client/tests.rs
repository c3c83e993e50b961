//! Tests of what the end of a query waits for, and of how rows are asked for.

use futures::stream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::*;
use crate::QueryId;
use crate::query::{Accepted, ToCoordinator};

type Told = BoxStream<'static, Result<WorkerToCoordinatorMsg>>;

fn accepted() -> ToCoordinator {
    ToCoordinator { message: Some(to_coordinator::Message::Accepted(Accepted {})) }
}

fn metrics() -> ToCoordinator {
    ToCoordinator { message: Some(to_coordinator::Message::Metrics(TaskMetrics::default())) }
}

/// What is told of a task that was accepted; what its worker says next; and what is dropped when the
/// query is over.
async fn task() -> (Told, mpsc::Sender<Reply>, oneshot::Sender<()>) {
    let (worker, replies) = mpsc::channel(8);
    let (over, is_over) = oneshot::channel();
    let mut told = until_over(ReceiverStream::new(replies), is_over, "w7".to_owned(), None).boxed();
    worker.send(Ok(accepted())).await.unwrap();
    assert!(matches!(told.next().await, Some(Ok(WorkerToCoordinatorMsg::LoadInfo(_)))));
    assert!(futures::poll!(told.next()).is_pending());
    (told, worker, over)
}

// Time stands still in these tests but where all wait for it.
#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_more_does_not_hold_up_the_answer() {
    let (mut told, _silent, over) = task().await;
    let in_an_hour = tokio::time::timeout(Duration::from_secs(3600), told.next()).await;
    assert!(in_an_hour.is_err(), "the query is not over");
    drop(over);
    let end = tokio::time::timeout(METRICS_WAIT * 2, told.next()).await;
    assert!(matches!(end, Ok(None)), "{:?}", end.map(|item| item.is_some()));
}

#[tokio::test(start_paused = true)]
async fn metrics_that_come_in_time_are_told() {
    let (mut told, worker, over) = task().await;
    drop(over);
    assert!(futures::poll!(told.next()).is_pending());
    tokio::time::advance(METRICS_WAIT / 2).await;
    worker.send(Ok(metrics())).await.unwrap();
    assert!(matches!(told.next().await, Some(Ok(WorkerToCoordinatorMsg::TaskMetrics(_)))));
    // What comes late is not waited for, also after others came.
    let end = tokio::time::timeout(METRICS_WAIT, told.next()).await;
    assert!(matches!(end, Ok(None)), "{:?}", end.map(|item| item.is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_after_the_answer_does_not_turn_it_into_an_error() {
    let (mut told, worker, over) = task().await;
    worker.send(Err(Status::unavailable("gone"))).await.unwrap();
    let during = told.next().await;
    assert!(matches!(during, Some(Err(_))), "{:?}", during.map(|item| item.is_ok()));
    drop(over);

    let (mut told, worker, over) = task().await;
    drop(over);
    worker.send(Err(Status::unavailable("gone"))).await.unwrap();
    assert!(told.next().await.is_none());
}

#[tokio::test]
async fn a_worker_that_ends_is_waited_for_no_longer() {
    let told = until_over(stream::empty(), oneshot::channel().1, "w7".to_owned(), None);
    assert_eq!(told.count().await, 0);
}

#[tokio::test]
async fn what_comes_from_another_zone_is_asked_for_compressed() {
    let channels = Channels::new(tokio::runtime::Handle::current()).in_zone("north");
    let asked = |zone: &str, compression| {
        let options = QueryOptions {
            query: QueryId::random(),
            attempt: 1,
            memory_limit_bytes: 1,
            is_short: false,
            compression,
            settings: Vec::new(),
        };
        let from = Source { zone: zone.to_owned(), channels: channels.clone() };
        from.compression(&options.to_headers().unwrap())
    };
    let auto = ExchangeCompression::default();
    assert_eq!(asked("south", auto), Compression::Lz4);
    assert_eq!([asked("north", auto), asked("", auto)], [Compression::None; 2]);
    assert_eq!(asked("north", ExchangeCompression::Zstd), Compression::Zstd);
    assert_eq!(asked("south", ExchangeCompression::None), Compression::None);
    // Who runs the plan refuses it.
    let from = Source { zone: "south".to_owned(), channels: channels.clone() };
    assert_eq!(from.compression(&HeaderMap::new()), Compression::None);
}
