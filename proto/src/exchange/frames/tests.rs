use std::sync::atomic::AtomicBool;

use arrow::array::Int64Array;
use arrow::datatypes::{Field, Schema};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use super::*;
use crate::exchange::{DECODE_TIME, ENCODE_TIME, WIRE_BYTES, WIRE_ROWS};

mod columns;
mod compressed;

const WORKER: &str = "w7";

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)]))
}

fn batch(rows: i64) -> RecordBatch {
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    RecordBatch::try_new(schema(), vec![keys]).unwrap()
}

/// Nine rows in three batches.
fn batches() -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    stream::iter([2, 3, 4]).map(|rows| Ok(batch(rows)))
}

/// What a worker sends of these batches.
async fn sent(batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static) -> Vec<Frame> {
    let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema(), batches));
    sent_of(async move { Ok((rows, Arc::new(ReadLog::new()))) }).await
}

async fn sent_of(
    open: impl Future<Output = Result<(SendableRecordBatchStream, Arc<ReadLog>)>>,
) -> Vec<Frame> {
    let (frames, mut sent) = mpsc::channel(64);
    drive_stream(open, WORKER, Compression::None, Sending::AsTheyCome, frames, || None).await;
    let mut all = Vec::new();
    while let Some(frame) = sent.recv().await {
        all.push(frame.unwrap());
    }
    all
}

/// How many rows a reader gets of these frames, after which the connection
/// may break, and whether it takes them for a whole stream.
async fn read(frames: &[Frame], broken: Option<Status>) -> (std::result::Result<usize, Failure>, bool) {
    let is_whole = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_whole);
    let frames: Vec<_> = frames.iter().cloned().map(Ok).chain(broken.map(Err)).collect();
    let batches = decode_frames(
        stream::iter(frames),
        WORKER.to_owned(),
        Arc::new(ReadLog::new()),
        Arrivals::default(),
        move |_metrics| {
            told.store(true, Ordering::Relaxed);
            Ok(())
        },
    );
    let batches: Result<Vec<RecordBatch>> = batches.try_collect().await;
    let rows = batches.map(|batches| batches.iter().map(RecordBatch::num_rows).sum::<usize>());
    (rows.map_err(|error| Failure::from_datafusion(&error)), is_whole.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_whole_stream_gives_all_rows() {
    let frames = sent(batches()).await;
    assert_eq!(frames.len(), 5, "the schema, three batches and the mark: {frames:?}");
    assert_eq!(read(&frames, None).await, (Ok(9), true));
    let frames = sent(stream::empty()).await;
    assert_eq!(read(&frames, None).await, (Ok(0), true));
}

#[tokio::test]
async fn what_arrives_is_counted_with_the_time_that_its_sender_took() {
    let mut frames = sent(batches()).await;
    let mut bytes = 0;
    for (number, frame) in (1_u64..).zip(&mut frames) {
        if let Some(frame::Part::Message(message)) = &mut frame.part {
            // All but the columns: those are encoded with the stream.
            assert!(number == 1 || message.encode_ns > 0, "message {number} took no time");
            bytes += message.header.len() + message.body.len();
            message.encode_ns = number;
        }
    }
    let metrics = ExecutionPlanMetricsSet::new();
    let frames = stream::iter(frames.into_iter().map(Ok));
    let reads = Arc::new(ReadLog::new());
    let batches =
        decode_frames(frames, WORKER.to_owned(), reads, Arrivals::among(&metrics), |_metrics| Ok(()));
    assert_eq!(batches.count().await, 3);
    let counted = metrics.clone_inner();
    let sum = |name| counted.sum_by_name(name).map(|value| value.as_usize());
    assert_eq!([WIRE_ROWS, WIRE_BYTES, ENCODE_TIME].map(sum), [Some(9), Some(bytes), Some(1 + 2 + 3 + 4)]);
    assert!(sum(DECODE_TIME) > Some(0));
}

/// How many of these batches at hand were computed when the first frame was sent, and where no
/// more frames may wait than one.
async fn computed_before_the_first_is_sent(sending: Sending, batches: usize) -> usize {
    let computed = Arc::new(AtomicU64::new(0));
    let counted = {
        let computed = Arc::clone(&computed);
        stream::iter(0..batches).map(move |_| {
            computed.fetch_add(1, Ordering::Relaxed);
            Ok(batch(1))
        })
    };
    let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema(), counted));
    let (frames, mut sent) = mpsc::channel(1);
    let open = async move { Ok((rows, Arc::new(ReadLog::new()))) };
    let mut driven = Box::pin(drive_stream(open, WORKER, Compression::None, sending, frames, || None));
    assert!(futures::poll!(&mut driven).is_pending(), "nobody takes them");
    let before = computed.load(Ordering::Relaxed);
    let all = async {
        let mut all = Vec::new();
        while let Some(frame) = sent.recv().await {
            all.push(frame.unwrap());
        }
        all
    };
    let ((), all) = tokio::join!(driven, all);
    assert_eq!(read(&all, None).await.0.unwrap(), batches);
    usize::try_from(before).unwrap()
}

#[tokio::test]
async fn what_is_at_hand_is_sent_together_where_that_is_wanted() {
    assert_eq!(computed_before_the_first_is_sent(Sending::AsTheyCome, 3).await, 1);
    assert_eq!(computed_before_the_first_is_sent(Sending::Together, 3).await, 3);
    // With the columns.
    assert_eq!(computed_before_the_first_is_sent(Sending::Together, 100).await, TOGETHER_MAX - 1);
}

#[tokio::test]
async fn columns_wait_for_the_first_rows_and_these_for_no_others() {
    for sending in [Sending::AsTheyCome, Sending::Together] {
        columns_and_first_rows(sending).await;
    }
}

async fn columns_and_first_rows(sending: Sending) {
    let (rows, coming) = mpsc::channel::<Result<RecordBatch>>(1);
    let coming = tokio_stream::wrappers::ReceiverStream::new(coming);
    let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema(), coming));
    let (frames, mut sent) = mpsc::channel(64);
    let open = async move { Ok((stream, Arc::new(ReadLog::new()))) };
    let mut driven = Box::pin(drive_stream(open, WORKER, Compression::None, sending, frames, || None));
    assert!(futures::poll!(&mut driven).is_pending());
    assert!(sent.try_recv().is_err(), "something was sent before there were rows");
    rows.send(Ok(batch(2))).await.unwrap();
    assert!(futures::poll!(&mut driven).is_pending());
    assert!(sent.try_recv().is_ok() && sent.try_recv().is_ok(), "the columns and the rows");
    drop(rows);
    driven.await;
    assert!(matches!(sent.recv().await, Some(Ok(Frame { part: Some(frame::Part::Complete(_)), .. }))));
}

#[tokio::test]
async fn a_stream_that_just_ends_is_an_error_wherever_it_ends() {
    let frames = sent(batches()).await;
    for kept in 0..frames.len() {
        for broken in [None, Some(Status::unknown("connection reset by peer"))] {
            let what = format!("{kept} frames, then {broken:?}");
            let (rows, is_whole) = read(&frames[..kept], broken).await;
            let failure = rows.expect_err(&what);
            assert_eq!(failure.code, ErrorCode::Unavailable, "{what}: {failure}");
            assert_eq!(failure.worker.as_deref(), Some(WORKER), "{what}: {failure}");
            assert!(!is_whole, "{what}");
        }
    }
}

#[tokio::test]
async fn a_stream_with_another_count_of_rows_than_its_mark_is_corrupt() {
    let frames = sent(batches()).await;
    for (number, rows) in [(1, 2), (2, 3), (3, 4)] {
        let (mut fewer, mut more) = (frames.clone(), frames.clone());
        let message = fewer.remove(number);
        more.insert(number, message);
        for (frames, arrived) in [(fewer, 9 - rows), (more, 9 + rows)] {
            let message = format!("{arrived} rows arrived of a stream of 9");
            let failure = Failure::new(ErrorCode::Corrupt, message).at(WORKER);
            assert_eq!(read(&frames, None).await, (Err(failure), false));
        }
    }
}

#[tokio::test]
async fn a_panic_of_an_operator_is_a_typed_error() {
    async fn no_stream() -> Result<(SendableRecordBatchStream, Arc<ReadLog>)> {
        panic!("it does not open")
    }
    let panicked = |message: &str| {
        Failure::new(ErrorCode::Internal, format!("an operator panicked: {message}")).at(WORKER)
    };
    let frames = sent(stream::iter([2, 3]).map(|rows| {
        assert!(rows < 3, "{rows} rows are too many");
        Ok(batch(rows))
    }))
    .await;
    assert_eq!(frames.len(), 3, "the schema, the batch before and the failure: {frames:?}");
    assert_eq!(read(&frames, None).await, (Err(panicked("3 rows are too many")), false));
    let frames = sent_of(no_stream()).await;
    assert_eq!(read(&frames, None).await, (Err(panicked("it does not open")), false));
}

#[tokio::test]
async fn an_error_of_an_operator_keeps_its_code() {
    let failure = Failure::new(ErrorCode::Exhausted, "no memory is left");
    let failed = Err(DataFusionError::from(failure.clone()));
    let frames = sent(batches().chain(stream::iter([failed]))).await;
    assert_eq!(read(&frames, None).await, (Err(failure.at(WORKER)), false));
}
