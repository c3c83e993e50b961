//! One write from its first row to staged segments, in bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use parking_lot::Mutex;
use shoal_data::{Segment, SegmentName, SegmentWriter, Table};
use shoal_proto::fault::{self, Step};
use shoal_proto::{Channels, SegmentId, WorkerId, WriteId};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::shard_writer::{ShardRows, ShardWriter};
use super::stage::{self, Durable};
use super::{RowShape, SegmentHolders, WriteProgress};
use crate::Error;
use crate::catalog::{Catalog, Command};

/// Rows that all writes of a coordinator hold together, unless configured.
pub const BUFFER_BYTES_DEFAULT: usize = 384 * 1024 * 1024;
/// What one of many writes may hold at least.
const BUFFER_BYTES_MIN: usize = 16 * 1024 * 1024;
/// Segments that are encoded and on their way to workers, beyond those that
/// are being encoded.
const SENDING_MAX: usize = 3;

/// What all writes of one coordinator share. Cheap to clone.
#[derive(Clone)]
pub struct WriteContext {
    holders: Arc<dyn SegmentHolders>,
    channels: Channels,
    buffer_bytes: usize,
    encoders: Arc<Semaphore>,
    encoder_count: usize,
    writes: Arc<AtomicUsize>,
}

impl WriteContext {
    /// Writes hold at most `buffer_bytes` of rows together (about as much
    /// again is being encoded and sent), and encode on as many threads as
    /// there are cores.
    pub fn new(holders: Arc<impl SegmentHolders + 'static>, channels: Channels, buffer_bytes: usize) -> Self {
        let encoder_count = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            holders,
            channels,
            buffer_bytes: buffer_bytes.max(BUFFER_BYTES_MIN),
            encoders: Arc::new(Semaphore::new(encoder_count)),
            encoder_count,
            writes: Arc::default(),
        }
    }

    pub(super) fn holders(&self) -> &dyn SegmentHolders {
        self.holders.as_ref()
    }

    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// What one write may hold now: an equal share for each.
    fn share_bytes(&self) -> usize {
        let writes = self.writes.load(Ordering::Relaxed).max(1);
        (self.buffer_bytes / writes).max(BUFFER_BYTES_MIN)
    }
}

/// Segments that are durable on their workers and that no table names yet.
/// Dropped without [`Staged::committed`], they are discarded.
pub struct Staged {
    /// What to commit, by shard.
    pub segments: Vec<Segment>,
    /// Rows in them.
    pub rows: u64,
    /// Their copies, and on which disk of its worker each is.
    copies: Vec<(SegmentId, WorkerId, String)>,
    names: Arc<StagedNames>,
}

impl Staged {
    pub(super) fn new(durable: Vec<Durable>, names: Arc<StagedNames>) -> Self {
        let copies = durable.iter().flat_map(Durable::copies).collect();
        let segments: Vec<Segment> = durable.into_iter().map(|durable| durable.segment).collect();
        let rows = segments.iter().map(|segment| segment.rows).sum();
        Self { segments, rows, copies, names }
    }

    /// A change that names these segments, made so that a copy counts only where its
    /// worker still has the disk on which it is.
    pub fn on_disks(&self, change: Command) -> Command {
        change.on_disks(self.copies.iter().cloned())
    }

    /// The catalog names the segments now; they are kept.
    pub fn committed(self) {
        self.names.names.lock().clear();
    }

    /// The catalog does not name them, and never will: they are discarded, once
    /// the newest catalog says so, too.
    pub async fn refused(self, catalog: &Catalog) {
        if let Err(error) = catalog.catch_up().await {
            self.left(&error);
            return;
        }
        let state = catalog.snapshot();
        if self.segments.iter().any(|segment| state.segment(&segment.name()).is_some()) {
            self.committed();
        }
    }

    /// Nobody knows whether the catalog names them: whoever looks after the
    /// workers removes them where it does not.
    pub fn left(self, why: &Error) {
        let left = std::mem::take(&mut *self.names.names.lock());
        tracing::warn!(write_id = %self.names.write, segments = left.len(), %why, "staged segments are left");
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("segments", &self.segments).field("rows", &self.rows).finish()
    }
}

/// The names of one write's segments, protected from the first byte on.
pub(super) struct StagedNames {
    holders: Arc<dyn SegmentHolders>,
    write: WriteId,
    /// Under which they are protected: another write with the same id ends
    /// on its own.
    token: WriteId,
    names: Mutex<Vec<(SegmentName, Vec<WorkerId>)>>,
}

impl StagedNames {
    pub(super) fn new(context: &WriteContext, write: WriteId) -> Arc<Self> {
        let holders = context.holders.clone();
        Arc::new(Self { holders, write, token: WriteId::random(), names: Mutex::default() })
    }

    pub(super) fn add(&self, name: SegmentName, workers: &[WorkerId]) {
        self.names.lock().push((name, workers.to_vec()));
        self.holders.protect(&self.token, name, workers);
    }
}

impl Drop for StagedNames {
    fn drop(&mut self) {
        self.holders.unprotect(&self.token);
        let names = std::mem::take(self.names.get_mut());
        if !names.is_empty() {
            tracing::info!(write_id = %self.write, segments = names.len(), "staged segments discarded");
            self.holders.discard(names);
        }
    }
}

/// Counts a write for as long as it runs.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn start(writes: &Arc<AtomicUsize>) -> Self {
        writes.fetch_add(1, Ordering::Relaxed);
        Self(writes.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes segments of all rows of `input` and stages each on the workers of
/// its shard. Columns are matched by name. Nothing is committed: that, under
/// the same `write_id`, is up to the caller.
///
/// # Errors
/// What the input says, `Invalid` for rows that the table does not take, and
/// `Unavailable` or `Exhausted` where a segment is durable on no majority of
/// its workers. Everything that was staged is then discarded, as it is when
/// the future is dropped.
pub async fn write(
    context: &WriteContext,
    table: &Table,
    write_id: &WriteId,
    mut input: SendableRecordBatchStream,
    progress: Arc<WriteProgress>,
) -> Result<Staged, Error> {
    let _running = Running::start(&context.writes);
    let names = StagedNames::new(context, write_id.clone());
    let mut shape = RowShape::new(
        &format!("the input for table `{}`", table.full_name()),
        &table.columns,
        &input.schema(),
    )?;
    let mut waiting = ShardWriter::new(table)?;
    let mut flushes = Flushes {
        context: context.clone(),
        table: Arc::new(table.clone()),
        writer: SegmentWriter::new(table)?,
        names: names.clone(),
        progress: progress.clone(),
        encoding_bytes: Arc::default(),
        tasks: JoinSet::new(),
        durable: Vec::new(),
    };
    while let Some(batch) = input.next().await {
        let batch = batch?;
        progress.read(batch.num_rows() as u64);
        waiting.push(shape.apply(&batch)?)?;
        drop(batch);
        flushes.make_room(&mut waiting).await?;
    }
    drop(input);
    waiting.finish()?;
    while let Some(rows) = waiting.take_largest() {
        flushes.start(rows).await?;
    }
    flushes.finish().await?;
    let mut durable = flushes.durable;
    durable.sort_by_key(|it| (it.segment.shard, it.segment.id));
    Ok(Staged::new(durable, names))
}

/// The segments of one write that are being encoded or sent.
struct Flushes {
    context: WriteContext,
    table: Arc<Table>,
    writer: SegmentWriter,
    names: Arc<StagedNames>,
    progress: Arc<WriteProgress>,
    /// Rows that left the shard buffers and are not encoded yet.
    encoding_bytes: Arc<AtomicUsize>,
    tasks: JoinSet<Result<Durable, Error>>,
    durable: Vec<Durable>,
}

impl Flushes {
    /// Flushes while too much waits, and waits where that is not enough.
    async fn make_room(&mut self, waiting: &mut ShardWriter) -> Result<(), Error> {
        while let Some(done) = self.tasks.try_join_next() {
            self.take(done)?;
        }
        loop {
            let share_bytes = self.context.share_bytes();
            let encoding_bytes = self.encoding_bytes.load(Ordering::Relaxed);
            let held_bytes = waiting.buffered_bytes() + encoding_bytes;
            // Flush early enough that encoders work while rows still come.
            if held_bytes < share_bytes / 4 * 3 && !waiting.has_full_segment() {
                return Ok(());
            }
            if self.tasks.len() < self.context.encoder_count
                && let Some(rows) = waiting.take_largest()
            {
                self.start(rows).await?;
                continue;
            }
            if held_bytes < share_bytes && !waiting.has_full_segment() {
                return Ok(());
            }
            match self.tasks.join_next().await {
                Some(done) => self.take(done)?,
                None => return Ok(()),
            }
        }
    }

    /// Starts to encode and send the rows of one shard.
    async fn start(&mut self, rows: ShardRows) -> Result<(), Error> {
        while self.tasks.len() >= self.context.encoder_count + SENDING_MAX {
            match self.tasks.join_next().await {
                Some(done) => self.take(done)?,
                None => break,
            }
        }
        let id = SegmentId::random();
        let name = self.writer.name(rows.shard, id);
        let workers = self.table.placement.get(rows.shard as usize).cloned().unwrap_or_default();
        self.names.add(name, &workers);
        let held = Held::new(&self.encoding_bytes, rows.bytes);
        let context = self.context.clone();
        let writer = self.writer.clone();
        let names = self.names.clone();
        let table = self.table.full_name();
        let progress = self.progress.clone();
        self.tasks.spawn(async move {
            let encoder = context.encoders.clone().acquire_owned().await;
            let encoded = tokio::task::spawn_blocking(move || {
                let encoded = writer.encode(rows.shard, id, rows.batches);
                drop((held, encoder));
                encoded
            });
            let encoded =
                encoded.await.map_err(|error| Error::Internal(format!("encoding a segment: {error}")))??;
            fault::point(Step::SegmentEncoded);
            let conditions = stage::Conditions::default();
            let durable = stage::stage(&context, &table, &names.write, encoded, &workers, &conditions);
            let durable = durable.await?;
            fault::point(Step::SegmentStaged);
            progress.staged(durable.segment.rows, durable.segment.bytes);
            Ok(durable)
        });
        Ok(())
    }

    /// Waits for all that is under way.
    async fn finish(&mut self) -> Result<(), Error> {
        while let Some(done) = self.tasks.join_next().await {
            self.take(done)?;
        }
        Ok(())
    }

    fn take(&mut self, done: Result<Result<Durable, Error>, JoinError>) -> Result<(), Error> {
        let durable = done.map_err(|error| Error::Internal(format!("writing a segment: {error}")))??;
        self.durable.push(durable);
        Ok(())
    }
}

/// Bytes counted for as long as this lives.
struct Held {
    counter: Arc<AtomicUsize>,
    bytes: usize,
}

impl Held {
    fn new(counter: &Arc<AtomicUsize>, bytes: usize) -> Self {
        counter.fetch_add(bytes, Ordering::Relaxed);
        Self { counter: counter.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
