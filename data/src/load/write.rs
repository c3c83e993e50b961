//! One write from its first row to staged segments, in bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use shoal_proto::fault::{self, Step};
use shoal_proto::{Channels, ErrorCode, Failure, SegmentId, WriteId};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinSet};

use super::shard_writer::{ShardRows, ShardWriter};
use super::stage::{self, Conditions, Durable, Written};
use super::{Announce, Holders, RowShape, WriteProgress};
use crate::{SegmentWriter, Sketches, Table};

/// What all writes together may hold at least.
const BUFFER_BYTES_MIN: usize = 16 * 1024 * 1024;
/// What one of many may: more of them than share the buffers go beyond these.
const SHARE_BYTES_MIN: usize = 2 * 1024 * 1024;
/// Segments that are encoded and on their way to workers, beyond those that
/// are being encoded.
const SENDING_MAX: usize = 3;

/// What all writes of one process may take together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WriteLimits {
    buffer_bytes: usize,
    encoders: Arc<Semaphore>,
    encoder_count: usize,
    writes: Arc<AtomicUsize>,
}

impl WriteLimits {
    /// Writes hold at most `buffer_bytes` of rows together (about as much
    /// again is being encoded and sent), and encode on so many threads.
    pub fn new(buffer_bytes: usize, encoder_count: usize) -> Self {
        Self {
            buffer_bytes: buffer_bytes.max(BUFFER_BYTES_MIN),
            encoders: Arc::new(Semaphore::new(encoder_count.max(1))),
            encoder_count: encoder_count.max(1),
            writes: Arc::default(),
        }
    }

    /// What one write may hold now: an equal share for each.
    fn share_bytes(&self) -> usize {
        let writes = self.writes.load(Ordering::Relaxed).max(1);
        (self.buffer_bytes / writes).max(SHARE_BYTES_MIN)
    }
}

/// Where writes go, and what they may take. Cheap to clone.
#[derive(Clone)]
pub struct WriteContext {
    holders: Arc<dyn Holders>,
    channels: Channels,
    limits: WriteLimits,
}

impl WriteContext {
    /// Writes to these workers, within limits that others may share.
    pub fn new(holders: Arc<dyn Holders>, channels: Channels, limits: WriteLimits) -> Self {
        Self { holders, channels, limits }
    }

    /// The workers.
    pub fn holders(&self) -> &dyn Holders {
        self.holders.as_ref()
    }

    /// How they are reached.
    pub fn channels(&self) -> &Channels {
        &self.channels
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
/// its shard, once it is announced. Columns are matched by name. Rows that belong to no
/// shard go to those with fewest rows, from `first_shard` on. The segments
/// are returned by shard, with the workers and disks on which they are durable, and with
/// sketches of all rows; nothing is committed.
///
/// # Errors
/// What the input says, `Invalid` for rows that the table does not take, and
/// `Unavailable` or `Exhausted` where a segment is durable on no majority of
/// its workers. What was staged stays where it is, then and when the future is
/// dropped: that is for whoever was told of it.
pub async fn write(
    context: &WriteContext,
    table: &Table,
    write_id: &WriteId,
    first_shard: u32,
    mut input: SendableRecordBatchStream,
    announce: Arc<dyn Announce>,
    progress: Arc<WriteProgress>,
) -> Result<Written, Failure> {
    let _running = Running::start(&context.limits.writes);
    let mut shape = RowShape::new(
        &format!("the input for table `{}`", table.full_name()),
        &table.columns,
        &input.schema(),
    )?;
    let mut waiting = ShardWriter::new(table, first_shard)?;
    let mut flushes = Flushes {
        context: context.clone(),
        table: Arc::new(table.clone()),
        write_id: write_id.clone(),
        writer: SegmentWriter::new(table)?,
        announce,
        progress: progress.clone(),
        encoding: Arc::default(),
        tasks: JoinSet::new(),
        written: Written { durable: Vec::new(), sketches: Some(Arc::default()) },
    };
    while let Some(batch) = input.next().await {
        let batch = batch.map_err(|error| Failure::from_datafusion(&error))?;
        progress.read(batch.num_rows() as u64);
        waiting.push(shape.apply(&batch)?)?;
        drop(batch);
        flushes.make_room(&mut waiting).await?;
        // Rows may always be there: others on this thread have their turns.
        tokio::task::yield_now().await;
    }
    drop(input);
    waiting.finish()?;
    while let Some(rows) = waiting.take_largest() {
        flushes.start(rows).await?;
    }
    flushes.finish().await?;
    let mut written = flushes.written;
    written.durable.sort_by_key(|it| (it.segment.shard, it.segment.id));
    Ok(written)
}

/// The segments of one write that are being encoded or sent.
struct Flushes {
    context: WriteContext,
    table: Arc<Table>,
    write_id: WriteId,
    writer: SegmentWriter,
    announce: Arc<dyn Announce>,
    progress: Arc<WriteProgress>,
    encoding: Arc<Encoding>,
    tasks: JoinSet<Result<Flushed, Failure>>,
    written: Written,
}

/// A segment that is durable, and what is known of the distinct values in it.
type Flushed = (Durable, Option<Arc<Sketches>>);

impl Flushes {
    /// Flushes while too much waits, and waits where that is not enough.
    async fn make_room(&mut self, waiting: &mut ShardWriter) -> Result<(), Failure> {
        while let Some(done) = self.tasks.try_join_next() {
            self.take(done)?;
        }
        loop {
            let share_bytes = self.context.limits.share_bytes();
            let held_bytes = waiting.buffered_bytes() + self.encoding.bytes.load(Ordering::Relaxed);
            // Flush early enough that encoders work while rows still come.
            if held_bytes < share_bytes / 4 * 3 && !waiting.has_full_segment() {
                return Ok(());
            }
            if self.can_encode()
                && let Some(rows) = waiting.take_largest()
            {
                self.start(rows).await?;
                continue;
            }
            if held_bytes < share_bytes && !waiting.has_full_segment() {
                return Ok(());
            }
            let encoding = self.encoding.clone();
            tokio::select! {
                done = self.tasks.join_next() => match done {
                    Some(done) => self.take(done)?,
                    None => return Ok(()),
                },
                () = encoding.freed.notified() => {}
            }
        }
    }

    /// Whether one more segment would be encoded at once, whatever is being sent.
    fn can_encode(&self) -> bool {
        self.encoding.segments.load(Ordering::Relaxed) < self.context.limits.encoder_count
            && self.tasks.len() < self.tasks_max()
    }

    fn tasks_max(&self) -> usize {
        self.context.limits.encoder_count + SENDING_MAX
    }

    /// Starts to encode and send the rows of one shard.
    async fn start(&mut self, rows: ShardRows) -> Result<(), Failure> {
        while self.tasks.len() >= self.tasks_max() {
            match self.tasks.join_next().await {
                Some(done) => self.take(done)?,
                None => break,
            }
        }
        let id = SegmentId::random();
        let name = self.writer.name(rows.shard, id);
        let workers = self.table.placement.get(rows.shard as usize).cloned().unwrap_or_default();
        let held = Held::new(&self.encoding, rows.bytes);
        let context = self.context.clone();
        let writer = self.writer.clone();
        let announce = self.announce.clone();
        let table = self.table.full_name();
        let write_id = self.write_id.clone();
        let progress = self.progress.clone();
        self.tasks.spawn(async move {
            let encoder = context.limits.encoders.clone().acquire_owned().await;
            let encoded = tokio::task::spawn_blocking(move || {
                let encoded = writer.encode(rows.shard, id, rows.batches);
                drop((held, encoder));
                encoded
            });
            let mut encoded = encoded.await.map_err(|error| broken("encoding", &error))??;
            let sketches = encoded.sketches.take();
            fault::point(Step::SegmentEncoded);
            // At the last moment: who is asked may have given the write up.
            announce.announce(name, &workers).await?;
            let conditions = Conditions::default();
            let durable = stage::stage(&context, &table, &write_id, encoded, &workers, &conditions);
            let durable = durable.await?;
            fault::point(Step::SegmentStaged);
            progress.staged(durable.segment.rows, durable.segment.bytes);
            Ok((durable, sketches))
        });
        Ok(())
    }

    /// Waits for all that is under way.
    async fn finish(&mut self) -> Result<(), Failure> {
        while let Some(done) = self.tasks.join_next().await {
            self.take(done)?;
        }
        Ok(())
    }

    fn take(&mut self, done: Result<Result<Flushed, Failure>, JoinError>) -> Result<(), Failure> {
        let (durable, sketches) = done.map_err(|error| broken("writing", &error))??;
        self.written.durable.push(durable);
        self.written.sketches = Sketches::of_both(self.written.sketches.take(), sketches);
        Ok(())
    }
}

/// A task that panicked.
fn broken(doing: &str, error: &JoinError) -> Failure {
    let message = format!("{doing} a segment: {error} (this is a defect in Shoal; please report it)");
    Failure::new(ErrorCode::Internal, message)
}

/// What left the shard buffers and is not encoded yet.
#[derive(Debug, Default)]
struct Encoding {
    segments: AtomicUsize,
    bytes: AtomicUsize,
    /// One segment less.
    freed: Notify,
}

/// The rows of one segment, counted for as long as this lives.
struct Held {
    encoding: Arc<Encoding>,
    bytes: usize,
}

impl Held {
    fn new(encoding: &Arc<Encoding>, bytes: usize) -> Self {
        encoding.segments.fetch_add(1, Ordering::Relaxed);
        encoding.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { encoding: encoding.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.encoding.segments.fetch_sub(1, Ordering::Relaxed);
        self.encoding.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.encoding.freed.notify_one();
    }
}
