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
use shoal_proto::{ErrorCode, Failure};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Batches that wait for whoever takes the rows.
const WAITING_BATCHES: usize = 4;
/// Rows of a batch.
pub const BATCH_ROWS: usize = 8192;
/// A batch ends early when it has so many bytes.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Threads of one process that read at once. They wait for whoever takes the rows, who
/// needs threads of the same kind to encode and to store them.
const READERS_MAX: usize = 64;
static READERS: Semaphore = Semaphore::const_new(READERS_MAX);

type Sender = mpsc::Sender<Result<RecordBatch, Failure>>;

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
/// many threads read, as far as this process has them.
pub fn read_pieces<P: Piece>(
    pieces: VecDeque<P>,
    threads: usize,
    columns: SchemaRef,
) -> SendableRecordBatchStream {
    let threads = threads.min(pieces.len()).max(1);
    let pieces = Arc::new(Pieces { left: Mutex::new(pieces), are_taken: CancellationToken::new() });
    let (sender, mut receiver) = mpsc::channel(WAITING_BATCHES);
    for _ in 0..threads {
        // Ends by itself when the stream is dropped.
        tokio::spawn(read_some(pieces.clone(), sender.clone()));
    }
    drop(sender);
    let rows = stream::poll_fn(move |cx| receiver.poll_recv(cx)).map_err(DataFusionError::from);
    Box::pin(RecordBatchStreamAdapter::new(columns, rows))
}

/// What the readers of one stream share.
struct Pieces<P> {
    /// Those that nobody reads yet.
    left: Mutex<VecDeque<P>>,
    /// There are none: the end of the stream waits for no other reader.
    are_taken: CancellationToken,
}

impl<P> Pieces<P> {
    fn next(&self) -> Option<P> {
        let next = self.left.lock().pop_front();
        if next.is_none() {
            self.are_taken.cancel();
        }
        next
    }
}

/// Reads on one thread, once there is one.
async fn read_some<P: Piece>(pieces: Arc<Pieces<P>>, sender: Sender) {
    let place = tokio::select! {
        place = READERS.acquire() => place,
        () = pieces.are_taken.cancelled() => return,
        () = sender.closed() => return,
    };
    let to_thread = sender.clone();
    let read = tokio::task::spawn_blocking(move || read_on_thread(&pieces, &to_thread)).await;
    if let Err(error) = read {
        let message = format!("reading files: {error} (this is a defect in Shoal; please report it)");
        let _nobody_listens = sender.send(Err(Failure::new(ErrorCode::Internal, message))).await;
    }
    drop(place);
}

/// Reads until nothing is left, something is wrong or nobody wants more.
fn read_on_thread<P: Piece>(pieces: &Pieces<P>, sender: &Sender) {
    while let Some(piece) = pieces.next() {
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::array::{ArrayRef, Int64Array};
    use futures::StreamExt;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    /// A piece of so many batches, after which it panics or not.
    struct Batches {
        count: usize,
        panics: bool,
    }

    fn batch() -> RecordBatch {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        RecordBatch::try_from_iter([("k", keys)]).unwrap()
    }

    impl Piece for Batches {
        fn read(self, sink: Sink<'_>) -> Result<(), Failure> {
            for _ in 0..self.count {
                if !sink(batch()) {
                    return Ok(());
                }
            }
            assert!(!self.panics, "a piece that cannot be read");
            Ok(())
        }
    }

    fn rows_of(pieces: Vec<Batches>) -> SendableRecordBatchStream {
        read_pieces(VecDeque::from(pieces), 2, batch().schema())
    }

    fn endless() -> Batches {
        Batches { count: usize::MAX, panics: false }
    }

    #[test]
    fn readers_that_wait_leave_threads_for_others() {
        let runtime: Runtime =
            Builder::new_multi_thread().max_blocking_threads(READERS_MAX + 1).enable_all().build().unwrap();
        runtime.block_on(async {
            let streams: Vec<_> = (0..READERS_MAX + 1).map(|_| rows_of(vec![endless(), endless()])).collect();
            // Nobody takes their rows, and something else still runs.
            let other = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(30), other).await.expect("no thread is left").unwrap();
            drop(streams);
            // Those that read end, and those that waited are gone.
            let rows = rows_of(vec![Batches { count: 10, panics: false }]);
            assert_eq!(rows.map(|batch| batch.unwrap().num_rows()).collect::<Vec<_>>().await, [3; 10]);
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_that_panics_is_an_error_and_no_end() {
        let pieces = vec![Batches { count: 2, panics: true }, Batches { count: 2, panics: false }];
        let found: Vec<_> = rows_of(pieces).collect().await;
        let failed: Vec<Failure> =
            found.iter().filter_map(|it| it.as_ref().err()).map(Failure::from_datafusion).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].code, ErrorCode::Internal, "{}", failed[0]);
    }
}
