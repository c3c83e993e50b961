//! Pieces of files as one stream of rows, read on blocking threads.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{self, TryStreamExt};
use parking_lot::Mutex;
use shoal_proto::Failure;
use tokio::sync::mpsc;

/// Batches that wait for whoever takes the rows.
const WAITING_BATCHES: usize = 4;
/// Rows of a batch.
pub const BATCH_ROWS: usize = 8192;
/// A batch ends early when it has so many bytes.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Takes a batch; false where nobody wants more.
pub type Sink<'a> = &'a mut dyn FnMut(RecordBatch) -> bool;

/// What one thread reads at a time.
pub trait Piece: Send + 'static {
    /// Hands all rows to `sink`, as long as it wants them.
    ///
    /// # Errors
    /// What is wrong with the file, by its name.
    fn read(self, sink: Sink<'_>) -> Result<(), Failure>;
}

/// The rows of all pieces, which have these columns, in no particular order; so
/// many threads read.
pub fn read_pieces<P: Piece>(
    pieces: VecDeque<P>,
    threads: usize,
    columns: SchemaRef,
) -> SendableRecordBatchStream {
    let threads = threads.min(pieces.len()).max(1);
    let pieces = Arc::new(Mutex::new(pieces));
    let (sender, mut receiver) = mpsc::channel(WAITING_BATCHES);
    for _ in 0..threads {
        let (pieces, sender) = (pieces.clone(), sender.clone());
        // Ends by itself when the stream is dropped.
        tokio::task::spawn_blocking(move || {
            while let Some(piece) = next(&pieces) {
                let mut is_wanted = true;
                let outcome = piece.read(&mut |batch| {
                    is_wanted = sender.blocking_send(Ok(batch)).is_ok();
                    is_wanted
                });
                if let Err(failure) = outcome {
                    let _nobody_listens = sender.blocking_send(Err(failure));
                    return;
                }
                if !is_wanted {
                    return;
                }
            }
        });
    }
    drop(sender);
    let rows = stream::poll_fn(move |cx| receiver.poll_recv(cx)).map_err(DataFusionError::from);
    Box::pin(RecordBatchStreamAdapter::new(columns, rows))
}

fn next<P>(pieces: &Mutex<VecDeque<P>>) -> Option<P> {
    pieces.lock().pop_front()
}
