//! Record batches to frames and back. Both ends count the rows; the reader
//! accepts an end only with the completion mark and the same count.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use super::arrivals::Arrivals;
use super::busy::{Busy, feeding};
use super::compression::write_options;
use super::reads::ReadLog;
use crate::query::{Complete, Compression, Frame, Message, TableReads, TaskMetrics, ZoneBytes, frame};
use crate::{ErrorCode, Failure};

/// Batches are cut so that a frame stays about this size; one row may be
/// larger.
const FRAME_BYTES: usize = 8 * 1024 * 1024;

/// Frames that wait for each other where they are sent [`Together`](Sending::Together).
const TOGETHER_MAX: usize = 8;
/// Bytes of them.
const TOGETHER_BYTES_MAX: usize = 256 * 1024;

/// When frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Each as soon as it is there, but that the columns wait for the first rows or the end.
    AsTheyCome,
    /// As long as the next one is computed without a wait, a few of them together: each packet
    /// wakes threads on both nodes, which takes longer than a few rows do.
    Together,
}

/// Opens a stream, polls it to its end and sends its rows as frames, then the
/// completion mark with what `metrics` says. With them goes what the log that
/// comes with the stream holds by then. Rows are compressed as `compression` says,
/// while they are encoded. An error, or a panic anywhere in the
/// operators, becomes a failure frame that names `worker`. Returns early when
/// nobody listens any more.
pub async fn drive_stream(
    open: impl Future<Output = Result<(SendableRecordBatchStream, Arc<ReadLog>)>>,
    worker: &str,
    compression: Compression,
    sending: Sending,
    frames: mpsc::Sender<std::result::Result<Frame, Status>>,
    metrics: impl FnOnce() -> Option<TaskMetrics>,
) {
    let mut held = Vec::new();
    let driven = AssertUnwindSafe(async {
        let (stream, reads) = open.await?;
        send_rows(stream, &reads, compression, sending, &frames, &mut held).await
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
    held.push(end);
    // A reader that is gone needs no end.
    let _is_there = send_all(&mut held, &frames).await;
}

/// Sends frames in their order; false when the reader went away.
async fn send_all(held: &mut Vec<Frame>, frames: &mpsc::Sender<std::result::Result<Frame, Status>>) -> bool {
    for frame in held.drain(..) {
        if frames.send(Ok(frame)).await.is_err() {
            return false;
        }
    }
    true
}

/// A stream whose rows were all sent.
struct Sent {
    rows: u64,
    /// What was read for it and not told yet.
    reads: Vec<TableReads>,
    /// What crossed zones for it.
    crossed: Vec<ZoneBytes>,
}

/// Sends all rows but what is `held` for the end; none when the reader went away.
async fn send_rows(
    stream: SendableRecordBatchStream,
    reads: &ReadLog,
    compression: Compression,
    sending: Sending,
    frames: &mpsc::Sender<std::result::Result<Frame, Status>>,
    held: &mut Vec<Frame>,
) -> Result<Option<Sent>> {
    let (mut told, mut told_crossed) = (0, 0);
    let rows = Arc::new(AtomicU64::new(0));
    let schema = stream.schema();
    let encoding = Arc::new(Mutex::new(Busy::default()));
    let counted = {
        let rows = Arc::clone(&rows);
        feeding(stream, Arc::clone(&encoding)).map(move |batch| {
            let batch = compact(batch.map_err(to_flight)?).map_err(to_flight)?;
            rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            Ok(batch)
        })
    };
    let mut encoder = FlightDataEncoderBuilder::new()
        .with_options(write_options(compression)?)
        .with_schema(schema)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_max_flight_data_size(FRAME_BYTES)
        .build(counted);
    // The first message is the columns, which tell a reader nothing: they wait
    // for the first rows or the end, and go with those in one packet.
    let (mut is_after_columns, mut has_rows) = (false, false);
    let mut held_bytes = 0;
    loop {
        let at_hand = match sending {
            Sending::Together
                if held.len() < TOGETHER_MAX && held_bytes < TOGETHER_BYTES_MAX && !frames.is_closed() =>
            {
                encoder.next().now_or_never()
            }
            Sending::Together | Sending::AsTheyCome => None,
        };
        let data = match at_hand {
            Some(data) => data,
            None => {
                if has_rows && !send_all(held, frames).await {
                    return Ok(None);
                }
                held_bytes = 0;
                tokio::select! {
                    biased;
                    () = frames.closed() => return Ok(None),
                    data = encoder.next() => data,
                }
            }
        };
        let Some(data) = data else { break };
        let data = data.map_err(from_flight)?;
        let encode_ns = encoding.lock().take(Instant::now()).as_nanos() as u64;
        held_bytes += data.data_header.len() + data.data_body.len();
        let message = Message { header: data.data_header, body: data.data_body, encode_ns };
        let frame = Frame {
            part: Some(frame::Part::Message(message)),
            reads: reads.news(&mut told),
            crossed: reads.crossed_news(&mut told_crossed),
        };
        has_rows |= is_after_columns;
        is_after_columns = true;
        held.push(frame);
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
/// an end; `reads` takes in what was read, and what crossed zones, for the rows, and `arrivals` counts
/// them. `on_end` gets what the completion mark carries; its failure is the end of the stream.
pub fn decode_frames(
    frames: impl Stream<Item = std::result::Result<Frame, Status>> + Send + 'static,
    worker: String,
    reads: Arc<ReadLog>,
    arrivals: Arrivals,
    on_end: impl FnOnce(Option<TaskMetrics>) -> std::result::Result<(), Failure> + Send + 'static,
) -> BoxStream<'static, Result<RecordBatch>> {
    let end = Arc::new(Mutex::new(None::<Complete>));
    let data = {
        let (worker, end, arrivals) = (worker.clone(), Arc::clone(&end), arrivals.clone());
        frames.map(Some).chain(futures::stream::once(async { None })).filter_map(move |mut frame| {
            if let Some(Ok(frame)) = &mut frame {
                reads.take_in(std::mem::take(&mut frame.reads));
                reads.take_in_crossed(std::mem::take(&mut frame.crossed));
            }
            let item = match frame {
                Some(Ok(Frame { part: Some(part), .. })) => match part {
                    frame::Part::Message(message) => {
                        arrivals.message(message.header.len() + message.body.len(), message.encode_ns);
                        Some(Ok(FlightData {
                            data_header: message.header,
                            data_body: message.body,
                            ..Default::default()
                        }))
                    }
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
    let decoding = Arc::new(Mutex::new(Busy::default()));
    let data = feeding(data.boxed(), Arc::clone(&decoding));
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
                    arrivals.decoded(batch.num_rows(), decoding.lock().take(Instant::now()));
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
mod tests;
