//! One write from its first row to staged segments, and what becomes of them.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_data::load::{self, Announce, Durable, Holders, WriteLimits, Written};
use shoal_data::{Segment, SegmentName, Sketches, Table};
use shoal_proto::{Channels, Failure, SegmentId, WorkerId, WriteId};

use super::{SegmentHolders, WriteProgress};
use crate::Error;
use crate::catalog::{Catalog, Command};

/// What all writes of one coordinator share. Cheap to clone.
#[derive(Clone)]
pub struct WriteContext {
    holders: Arc<dyn SegmentHolders>,
    here: load::WriteContext,
}

impl WriteContext {
    /// Writes hold at most `buffer_bytes` of rows together (about as much
    /// again is being encoded and sent), and encode on as many threads as
    /// there are cores.
    pub fn new(holders: Arc<impl SegmentHolders + 'static>, channels: Channels, buffer_bytes: usize) -> Self {
        let encoder_count = std::thread::available_parallelism().map_or(1, usize::from);
        let limits = WriteLimits::new(buffer_bytes, encoder_count);
        let as_holders: Arc<dyn Holders> = holders.clone();
        Self { holders, here: load::WriteContext::new(as_holders, channels, limits) }
    }

    pub(super) fn holders(&self) -> &dyn SegmentHolders {
        self.holders.as_ref()
    }

    /// What writes on this coordinator itself.
    pub(super) fn here(&self) -> &load::WriteContext {
        &self.here
    }
}

/// Segments that are durable on their workers and that no table names yet.
/// Dropped without [`Staged::committed`], they are discarded.
pub struct Staged {
    /// What to commit, by shard.
    pub segments: Vec<Segment>,
    /// Rows in them.
    pub rows: u64,
    /// How many distinct values their columns have; none where that is not known of all of them.
    sketches: Option<Arc<Sketches>>,
    /// Their copies, and on which disk of its worker each is.
    copies: Vec<(SegmentId, WorkerId, String)>,
    names: Arc<StagedNames>,
}

impl Staged {
    /// Nothing yet.
    pub(super) fn nothing(names: Arc<StagedNames>) -> Self {
        Self::new(Written { durable: Vec::new(), sketches: Some(Arc::default()) }, names)
    }

    pub(super) fn new(written: Written, names: Arc<StagedNames>) -> Self {
        let Written { durable, sketches } = written;
        let copies = durable.iter().flat_map(Durable::copies).collect();
        let segments: Vec<Segment> = durable.into_iter().map(|durable| durable.segment).collect();
        let rows = segments.iter().map(|segment| segment.rows).sum();
        Self { segments, rows, sketches, copies, names }
    }

    /// These and others, which are one write.
    pub(super) fn with(mut self, others: Self) -> Self {
        self.rows += others.rows;
        self.sketches = Sketches::of_both(self.sketches, others.sketches);
        self.segments.extend(others.segments);
        self.segments.sort_by_key(|segment| (segment.shard, segment.id));
        self.copies.extend(others.copies);
        self.names.take_over(&others.names);
        self
    }

    /// How many distinct values the columns of all these rows have; none where that is not known,
    /// and where there are no rows.
    pub fn sketches(&self) -> Option<Arc<Sketches>> {
        self.sketches.clone().filter(|_| !self.segments.is_empty())
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

    /// Whether this segment was added.
    pub(super) fn has(&self, name: &SegmentName) -> bool {
        self.names.lock().iter().any(|(added, _)| added == name)
    }

    /// What the others name is protected, and later discarded, by this.
    fn take_over(&self, others: &Self) {
        let names = std::mem::take(&mut *others.names.lock());
        for (name, workers) in names {
            self.add(name, &workers);
        }
    }
}

impl Announce for StagedNames {
    fn announce<'a>(
        &'a self,
        name: SegmentName,
        workers: &'a [WorkerId],
    ) -> BoxFuture<'a, Result<(), Failure>> {
        self.add(name, workers);
        Box::pin(std::future::ready(Ok(())))
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
    input: SendableRecordBatchStream,
    progress: Arc<WriteProgress>,
) -> Result<Staged, Error> {
    write_part(context, table, write_id, 0, input, progress).await
}

/// As [`write()`], for one of several parts of a write: where rows belong to no
/// shard, each fills others first.
pub(super) async fn write_part(
    context: &WriteContext,
    table: &Table,
    write_id: &WriteId,
    first_shard: u32,
    input: SendableRecordBatchStream,
    progress: Arc<WriteProgress>,
) -> Result<Staged, Error> {
    let names = StagedNames::new(context, write_id.clone());
    let announce: Arc<dyn Announce> = names.clone();
    let written = load::write(&context.here, table, write_id, first_shard, input, announce, progress).await?;
    Ok(Staged::new(written, names))
}
