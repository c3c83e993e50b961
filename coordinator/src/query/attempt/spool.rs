//! Rows of an attempt that wait until they are safe to hand out: in memory up
//! to a limit, then in a file that has no name, so that it is gone with the
//! process however that ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use shoal_proto::exchange::compact;
use shoal_proto::{ErrorCode, Failure};
use tokio::sync::mpsc;

/// Bytes that are written at once.
const WRITE_BYTES: usize = 4 * 1024 * 1024;
/// Batches that wait to be taken while the file is read.
const READ_AHEAD: usize = 2;

/// How much one spool may hold.
#[derive(Clone, Debug)]
pub(super) struct SpoolLimits {
    /// Bytes in memory.
    pub(super) memory_bytes: usize,
    /// Bytes on disk after that.
    pub(super) disk_bytes: u64,
    /// Where the file is made.
    pub(super) dir: PathBuf,
}

/// Whether a spool takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It does.
    Left,
    /// Its limit or the end of the disk is reached: what it holds must go to
    /// the client now.
    Full,
}

/// The rows of one attempt, in order.
pub(super) struct Spool {
    schema: SchemaRef,
    limits: SpoolLimits,
    /// The first rows.
    memory: VecDeque<RecordBatch>,
    reservation: MemoryReservation,
    /// Those after them, on their way to the file.
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    file: Option<StreamWriter<CountedFile>>,
    /// Whole in the file.
    batches_in_file: usize,
    file_bytes: Arc<AtomicU64>,
}

impl Spool {
    pub(super) fn new(schema: SchemaRef, limits: SpoolLimits, pool: &Arc<dyn MemoryPool>) -> Self {
        Self {
            schema,
            limits,
            memory: VecDeque::new(),
            reservation: MemoryConsumer::new("result spool").register(pool),
            waiting: Vec::new(),
            waiting_bytes: 0,
            file: None,
            batches_in_file: 0,
            file_bytes: Arc::default(),
        }
    }

    /// Takes rows. Whatever it says of its room, it has taken them.
    ///
    /// # Errors
    /// `Internal`; a file that cannot be written is [`Room::Full`].
    pub(super) async fn push(&mut self, batch: RecordBatch) -> Result<Room> {
        // Text that is shared with other batches would be counted, and
        // written, once for each of them.
        let batch = compact(batch)?;
        let bytes = batch.get_array_memory_size();
        let is_in_memory = self.file.is_none()
            && self.waiting.is_empty()
            && self.reservation.size() + bytes <= self.limits.memory_bytes
            && self.reservation.try_grow(bytes).is_ok();
        if is_in_memory {
            self.memory.push_back(batch);
            return Ok(Room::Left);
        }
        self.waiting_bytes += bytes;
        self.waiting.push(batch);
        if self.waiting_bytes >= WRITE_BYTES && !self.write_waiting().await? {
            return Ok(Room::Full);
        }
        let is_full = self.file_bytes.load(Ordering::Relaxed) >= self.limits.disk_bytes;
        Ok(if is_full { Room::Full } else { Room::Left })
    }

    /// Whether none of its rows is in a file.
    pub(super) fn is_in_memory(&self) -> bool {
        self.file.is_none()
    }

    /// Bytes in the file.
    #[cfg(test)]
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    /// Whether it could; if not, the rows are still here.
    async fn write_waiting(&mut self) -> Result<bool> {
        let batches = std::mem::take(&mut self.waiting);
        let file = self.file.take();
        let (dir, schema) = (self.limits.dir.clone(), Arc::clone(&self.schema));
        let written = Arc::clone(&self.file_bytes);
        let writing = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => match new_file(&dir, &schema, written) {
                    Ok(file) => file,
                    Err(error) => return (batches, None, Err(error)),
                },
            };
            let outcome = batches
                .iter()
                .try_for_each(|batch| file.write(batch))
                .map_err(DataFusionError::from)
                .and_then(|()| Ok(file.get_mut().flush()?));
            (batches, Some(file), outcome)
        });
        let (batches, file, outcome) =
            writing.await.map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
        self.file = file;
        match outcome {
            Ok(()) => {
                self.waiting_bytes = 0;
                self.batches_in_file += batches.len();
                Ok(true)
            }
            Err(error) => {
                // What was whole before stays good; of the rest nothing is read.
                tracing::warn!(dir = %self.limits.dir.display(), %error, "the spool cannot be written");
                self.waiting = batches;
                Ok(false)
            }
        }
    }

    /// All rows, in the order in which they came. Memory and file are freed
    /// as they are taken, and when the stream is dropped.
    pub(super) fn into_rows(self) -> SendableRecordBatchStream {
        let Self { schema, memory, reservation, waiting, file, batches_in_file, .. } = self;
        let reservation = reservation;
        let from_memory = futures::stream::iter(memory).map(move |batch| {
            reservation.shrink(batch.get_array_memory_size().min(reservation.size()));
            Ok(batch)
        });
        let from_file = match file {
            Some(file) if batches_in_file > 0 => read_back(file, batches_in_file).boxed(),
            Some(_) | None => futures::stream::empty().boxed(),
        };
        let rows = from_memory.chain(from_file).chain(futures::stream::iter(waiting.into_iter().map(Ok)));
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

/// A writer that counts, as the limit is about bytes in the file.
struct CountedFile {
    file: BufWriter<File>,
    written: Arc<AtomicU64>,
}

impl Write for CountedFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn new_file(dir: &Path, schema: &SchemaRef, written: Arc<AtomicU64>) -> Result<StreamWriter<CountedFile>> {
    let file = BufWriter::new(tempfile::tempfile_in(dir)?);
    Ok(StreamWriter::try_new(CountedFile { file, written }, schema)?)
}

/// The first batches of a file, read on a thread that may block. It ends when the
/// stream is dropped.
fn read_back(
    file: StreamWriter<CountedFile>,
    batches: usize,
) -> impl futures::Stream<Item = Result<RecordBatch>> + Send + 'static {
    let (sender, receiver) = mpsc::channel::<Result<Option<RecordBatch>>>(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let read = || -> Result<()> {
            // The end is not written: the disk may be full.
            let mut file = file.get_ref().file.get_ref().try_clone()?;
            file.rewind()?;
            let mut reader = StreamReader::try_new(BufReader::new(file), None)?;
            for _ in 0..batches {
                let batch = reader.next().ok_or_else(|| {
                    Failure::new(ErrorCode::Internal, "the spool's file is shorter than it was written")
                })?;
                if sender.blocking_send(Ok(Some(batch?))).is_err() {
                    return Ok(());
                }
            }
            let _gone = sender.blocking_send(Ok(None));
            Ok(())
        };
        if let Err(error) = read() {
            let _gone = sender.blocking_send(Err(error));
        }
    });
    // The end is told: a thread that just stops is an error, not a short answer.
    futures::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(Some(batch))) => Some((Ok(batch), Some(receiver))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                let failure = Failure::new(ErrorCode::Internal, "the spool's reader stopped before its end");
                Some((Err(failure.into()), None))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray};
    use datafusion::execution::memory_pool::{GreedyMemoryPool, UnboundedMemoryPool};
    use futures::TryStreamExt;

    use super::*;

    fn batch(first: i64) -> RecordBatch {
        let keys: Vec<i64> = (first..first + 1000).collect();
        let texts: StringViewArray = keys.iter().map(|key| Some(format!("the text of row {key}"))).collect();
        RecordBatch::try_from_iter([
            ("k", Arc::new(Int64Array::from(keys)) as _),
            ("text", Arc::new(texts) as _),
        ])
        .unwrap()
    }

    fn limits(dir: &Path, memory_bytes: usize, disk_bytes: u64) -> SpoolLimits {
        SpoolLimits { memory_bytes, disk_bytes, dir: dir.to_owned() }
    }

    async fn all(spool: Spool) -> Vec<RecordBatch> {
        spool.into_rows().try_collect().await.unwrap()
    }

    fn batches(count: i64) -> Vec<RecordBatch> {
        (0..count).map(|index| batch(index * 1000)).collect()
    }

    #[tokio::test]
    async fn rows_come_back_in_order_from_memory_and_file() {
        let dir = tempfile::tempdir().unwrap();
        for (memory_bytes, is_on_disk) in [(1 << 30, false), (500_000, true), (0, true)] {
            let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
            let expected = batches(300);
            let mut spool =
                Spool::new(expected[0].schema(), limits(dir.path(), memory_bytes, 1 << 40), &pool);
            for batch in &expected {
                assert_eq!(spool.push(batch.clone()).await.unwrap(), Room::Left);
                assert!(pool.reserved() <= memory_bytes);
            }
            assert_eq!(spool.file_bytes() > 0, is_on_disk);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has a name");
            assert_eq!(all(spool).await, expected);
            assert_eq!(pool.reserved(), 0);
        }
    }

    #[tokio::test]
    async fn a_pool_that_is_used_up_sends_rows_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(200_000));
        let expected = batches(200);
        let mut spool = Spool::new(expected[0].schema(), limits(dir.path(), 1 << 30, 1 << 40), &pool);
        for batch in &expected {
            spool.push(batch.clone()).await.unwrap();
        }
        assert!(spool.file_bytes() > 0);
        assert_eq!(all(spool).await, expected);
    }

    #[tokio::test]
    async fn the_disk_limit_is_told_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let expected = batches(1000);
        let mut spool = Spool::new(expected[0].schema(), limits(dir.path(), 0, 5_000_000), &pool);
        let mut taken = 0;
        for batch in &expected {
            taken += 1;
            if spool.push(batch.clone()).await.unwrap() == Room::Full {
                break;
            }
        }
        assert!(taken < expected.len(), "never full");
        assert_eq!(all(spool).await, expected[..taken]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_told_and_nothing_is_lost() {
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let expected = batches(300);
        let mut spool =
            Spool::new(expected[0].schema(), limits(Path::new("/nowhere/at/all"), 0, 1 << 40), &pool);
        let mut taken = 0;
        for batch in &expected {
            taken += 1;
            if spool.push(batch.clone()).await.unwrap() == Room::Full {
                break;
            }
        }
        assert!(taken < expected.len(), "never full");
        assert_eq!(all(spool).await, expected[..taken]);
    }
}
