//! Record batches to frames and back. Both ends count the rows; the reader
//! accepts an end only with the completion mark and the same count.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tonic::Status;

use super::reads::ReadLog;
use crate::query::{Complete, Frame, Message, TableReads, TaskMetrics, ZoneBytes, frame};
use crate::{ErrorCode, Failure};

/// Batches are cut so that a frame stays about this size; one row may be
/// larger.
const FRAME_BYTES: usize = 8 * 1024 * 1024;

/// Opens a stream, polls it to its end and sends its rows as frames, then the
/// completion mark with what `metrics` says. With them goes what the log that
/// comes with the stream holds by then. An error, or a panic anywhere in the
/// operators, becomes a failure frame that names `worker`. Returns early when
/// nobody listens any more.
pub async fn drive_stream(
    open: impl Future<Output = Result<(SendableRecordBatchStream, Arc<ReadLog>)>>,
    worker: &str,
    frames: mpsc::Sender<std::result::Result<Frame, Status>>,
    metrics: impl FnOnce() -> Option<TaskMetrics>,
) {
    let driven = AssertUnwindSafe(async {
        let (stream, reads) = open.await?;
        send_rows(stream, &reads, &frames).await
    });
    let failed =
        |failure: Failure| Frame { part: Some(failure_part(failure.at(worker))), ..Frame::default() };
    let end = match driven.catch_unwind().await {
        Ok(Ok(Some(sent))) => {
            let Sent { rows, reads, crossed } = sent;
            let complete = frame::Part::Complete(Complete { rows, metrics: metrics() });
            Frame { part: Some(complete), reads, crossed }
        }
        Ok(Ok(None)) => return,
        Ok(Err(error)) => failed(Failure::from_datafusion(&error)),
        Err(panic) => failed(panic_failure(panic.as_ref())),
    };
    // A reader that is gone needs no end.
    let _gone = frames.send(Ok(end)).await;
}

/// A stream whose rows were all sent.
struct Sent {
    rows: u64,
    /// What was read for it and not told yet.
    reads: Vec<TableReads>,
    /// What crossed zones for it.
    crossed: Vec<ZoneBytes>,
}

/// Sends all rows; none when the reader went away.
async fn send_rows(
    stream: SendableRecordBatchStream,
    reads: &ReadLog,
    frames: &mpsc::Sender<std::result::Result<Frame, Status>>,
) -> Result<Option<Sent>> {
    let (mut told, mut told_crossed) = (0, 0);
    let rows = Arc::new(AtomicU64::new(0));
    let schema = stream.schema();
    let counted = {
        let rows = Arc::clone(&rows);
        stream.map(move |batch| {
            let batch = compact(batch.map_err(to_flight)?).map_err(to_flight)?;
            rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            Ok(batch)
        })
    };
    let mut encoder = FlightDataEncoderBuilder::new()
        .with_options(IpcWriteOptions::default())
        .with_schema(schema)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_max_flight_data_size(FRAME_BYTES)
        .build(counted);
    // The first message is the columns, which tell a reader nothing: they wait
    // for the first rows or the end, and go with those in one packet.
    let mut columns = None;
    let mut is_first = true;
    loop {
        let data = tokio::select! {
            biased;
            () = frames.closed() => return Ok(None),
            data = encoder.next() => data,
        };
        let Some(data) = data else { break };
        let data = data.map_err(from_flight)?;
        let message = Message { header: data.data_header, body: data.data_body };
        let frame = Frame {
            part: Some(frame::Part::Message(message)),
            reads: reads.news(&mut told),
            crossed: reads.crossed_news(&mut told_crossed),
        };
        if std::mem::take(&mut is_first) {
            columns = Some(frame);
            continue;
        }
        for frame in columns.take().into_iter().chain([frame]) {
            if frames.send(Ok(frame)).await.is_err() {
                return Ok(None);
            }
        }
    }
    if let Some(columns) = columns
        && frames.send(Ok(columns)).await.is_err()
    {
        return Ok(None);
    }
    Ok(Some(Sent {
        rows: rows.load(Ordering::Relaxed),
        reads: reads.news(&mut told),
        crossed: reads.crossed_news(&mut told_crossed),
    }))
}

/// The failure that a caught panic is.
pub fn panic_failure(panic: &(dyn Any + Send)) -> Failure {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    Failure::new(ErrorCode::Internal, format!("an operator panicked: {message}"))
}

fn failure_part(failure: Failure) -> frame::Part {
    frame::Part::Failure(crate::query::Failure {
        code: failure.code as u32,
        message: failure.message,
        worker: failure.worker.unwrap_or_default(),
    })
}

/// Rows from frames. `worker` is whom to blame when the frames stop without
/// an end; `reads` takes in what was read, and what crossed zones, for the rows. `on_end` gets what the
/// completion mark carries; its failure is the end of the stream.
pub fn decode_frames(
    frames: impl Stream<Item = std::result::Result<Frame, Status>> + Send + 'static,
    worker: String,
    reads: Arc<ReadLog>,
    on_end: impl FnOnce(Option<TaskMetrics>) -> std::result::Result<(), Failure> + Send + 'static,
) -> BoxStream<'static, Result<RecordBatch>> {
    let end = Arc::new(parking_lot::Mutex::new(None::<Complete>));
    let data = {
        let (worker, end) = (worker.clone(), Arc::clone(&end));
        frames.map(Some).chain(futures::stream::once(async { None })).filter_map(move |mut frame| {
            if let Some(Ok(frame)) = &mut frame {
                reads.take_in(std::mem::take(&mut frame.reads));
                reads.take_in_crossed(std::mem::take(&mut frame.crossed));
            }
            let item = match frame {
                Some(Ok(Frame { part: Some(part), .. })) => match part {
                    frame::Part::Message(message) => Some(Ok(FlightData {
                        data_header: message.header,
                        data_body: message.body,
                        ..Default::default()
                    })),
                    frame::Part::Complete(complete) => {
                        *end.lock() = Some(complete);
                        None
                    }
                    frame::Part::Failure(failure) => Some(Err(Failure {
                        code: ErrorCode::from_number(failure.code),
                        message: failure.message,
                        worker: (!failure.worker.is_empty()).then_some(failure.worker),
                    })),
                },
                Some(Ok(Frame { part: None, .. })) => {
                    Some(Err(Failure::new(ErrorCode::Corrupt, "a frame without content").at(&worker)))
                }
                Some(Err(status)) => Some(Err(transport_failure(&status, &worker))),
                None if end.lock().is_none() => Some(Err(Failure::new(
                    ErrorCode::Unavailable,
                    "the stream of rows stopped without its completion mark",
                )
                .at(&worker))),
                None => None,
            };
            std::future::ready(item.map(|item| item.map_err(|f| FlightError::ExternalError(Box::new(f)))))
        })
    };
    let batches = FlightRecordBatchStream::new_from_flight_data(data).map_err(from_flight);
    let mut rows = 0_u64;
    let mut on_end = Some(on_end);
    batches
        .map(Some)
        .chain(futures::stream::once(async { None }))
        .filter_map(move |item| {
            let item = match item {
                Some(Ok(batch)) => {
                    rows += batch.num_rows() as u64;
                    Some(Ok(batch))
                }
                Some(Err(error)) => Some(Err(error)),
                None => match end.lock().take() {
                    Some(complete) if complete.rows == rows => {
                        let ended = on_end.take().map_or(Ok(()), |on_end| on_end(complete.metrics));
                        ended.err().map(|failure| Err(failure.into()))
                    }
                    Some(complete) => Some(Err(Failure::new(
                        ErrorCode::Corrupt,
                        format!("{rows} rows arrived of a stream of {}", complete.rows),
                    )
                    .at(&worker)
                    .into())),
                    // The missing mark was reported above.
                    None => None,
                },
            };
            std::future::ready(item)
        })
        .boxed()
}

/// What a gRPC status of a call to `worker` means. A status that the worker's
/// own code made says so; any other comes from the connection, and another
/// replica may cure it.
pub(super) fn transport_failure(status: &Status, worker: &str) -> Failure {
    let failure = Failure::from_status(status);
    if failure.worker.is_some() {
        return failure;
    }
    let code = match failure.code {
        code @ (ErrorCode::Invalid
        | ErrorCode::Unsupported
        | ErrorCode::Exhausted
        | ErrorCode::Unauthenticated) => code,
        _ => ErrorCode::Unavailable,
    };
    let mut message = format!("connection lost: {}", failure.message);
    if let Some(cause) = std::error::Error::source(status) {
        message = format!("{message} ({cause})");
    }
    Failure::new(code, message).at(worker)
}

fn to_flight(error: impl Into<DataFusionError>) -> FlightError {
    FlightError::ExternalError(Box::new(error.into()))
}

/// Finds our own error again below what Flight wraps around it.
fn from_flight(error: FlightError) -> DataFusionError {
    match error {
        FlightError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
            Ok(error) => *error,
            Err(inner) => DataFusionError::External(inner),
        },
        FlightError::Arrow(error) => DataFusionError::ArrowError(Box::new(error), None),
        other => DataFusionError::External(Box::new(other)),
    }
}

/// Views that hold much more than they show are copied, so that only what is
/// shown crosses the wire: a filtered batch still holds the whole page's text.
///
/// # Errors
/// None in practice; those of putting a batch together.
pub fn compact(batch: RecordBatch) -> Result<RecordBatch> {
    let is_view = |array: &ArrayRef| matches!(array.data_type(), DataType::Utf8View | DataType::BinaryView);
    if !batch.columns().iter().any(is_view) {
        return Ok(batch);
    }
    let rows = batch.num_rows();
    let schema: SchemaRef = batch.schema();
    let columns = batch
        .columns()
        .iter()
        .map(|array| -> ArrayRef {
            if let Some(text) = array.as_string_view_opt()
                && wasteful(text.data_buffers(), text.total_buffer_bytes_used())
            {
                Arc::new(text.gc())
            } else if let Some(binary) = array.as_binary_view_opt()
                && wasteful(binary.data_buffers(), binary.total_buffer_bytes_used())
            {
                Arc::new(binary.gc())
            } else {
                Arc::clone(array)
            }
        })
        .collect();
    Ok(RecordBatch::try_new_with_options(
        schema,
        columns,
        &RecordBatchOptions::new().with_row_count(Some(rows)),
    )?)
}

fn wasteful(buffers: &[arrow::buffer::Buffer], used_bytes: usize) -> bool {
    let held_bytes: usize = buffers.iter().map(arrow::buffer::Buffer::len).sum();
    held_bytes > used_bytes + used_bytes / 4
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use arrow::array::Int64Array;
    use arrow::datatypes::{Field, Schema};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::stream;

    use super::*;

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
        drive_stream(open, WORKER, frames, || None).await;
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
    async fn columns_wait_for_the_first_rows() {
        let (rows, coming) = mpsc::channel::<Result<RecordBatch>>(1);
        let coming = tokio_stream::wrappers::ReceiverStream::new(coming);
        let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema(), coming));
        let (frames, mut sent) = mpsc::channel(64);
        let open = async move { Ok((stream, Arc::new(ReadLog::new()))) };
        let mut driven = Box::pin(drive_stream(open, WORKER, frames, || None));
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
}
