//! Segments of one shard, written anew as one or few, and staged like those of a
//! write.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryReservation;
use futures::StreamExt;
use shoal_data::load::{self, Conditions, Durable, RowShape, Written};
use shoal_data::plain_rows::in_pieces;
use shoal_data::{EncodedSegment, Segment, SortedWriter, Table};
use shoal_proto::{WorkerId, WriteId};

use super::load::StagedNames;
use super::{Staged, WriteContext};
use crate::Error;
use crate::cluster::compaction::TARGET_BYTES;

/// A segment that is so long is ended. Rows that are merged may compress worse than
/// they did: what was to become one segment should do so.
const SEGMENT_BYTES_MAX: u64 = 2 * TARGET_BYTES;
/// Rows that are made plain and encoded at once, where they are more than one: text
/// that many of them share is there for each of them then.
const PIECE_BYTES: usize = 8 << 20;

/// Makes segments of `rows`, which are all rows of `old`, segments of this shard
/// of `table`, in the table's order, and stages each on the workers of the shard.
/// One segment is held in memory at a time, counted in `memory`, and whoever polls
/// does all of the work. A worker takes it only where as much as the old ones have
/// stays free beside it. Nothing is committed.
///
/// # Errors
/// What the rows say; `Exhausted` where they take more memory than there is;
/// `Unavailable` or `Exhausted` where a segment is durable on no majority of its
/// workers, or not on one that has an old one. Everything that was staged is then
/// discarded, as it is when the future is dropped.
pub async fn compact(
    context: &WriteContext,
    table: &Table,
    shard: u32,
    old: &[Arc<Segment>],
    mut rows: SendableRecordBatchStream,
    memory: &MemoryReservation,
) -> Result<Staged, Error> {
    let what = format!("shard {shard} of `{}`", table.full_name());
    let mut shape = RowShape::complete(&what, &table.columns, &rows.schema())?;
    let bytes_max = usize::try_from(SEGMENT_BYTES_MAX).unwrap_or(usize::MAX);
    let mut writer = SortedWriter::new(table, shard, old, bytes_max)?;
    let mut staging = Staging::new(context, table, shard, old);
    while let Some(batch) = rows.next().await {
        for piece in in_pieces(batch?, PIECE_BYTES) {
            let piece = shape.apply(&piece)?;
            // Once as it is, and once joined to others or on its way into pages.
            let piece_bytes = piece.get_array_memory_size().saturating_mul(2);
            memory.try_resize(writer.memory_bytes().saturating_add(piece_bytes))?;
            if let Some(encoded) = writer.push(piece)? {
                staging.stage(encoded).await?;
            }
        }
    }
    drop(rows);
    if let Some(encoded) = writer.finish()? {
        staging.stage(encoded).await?;
    }
    let Staging { names, durable, .. } = staging;
    // The table knows the values of these rows already.
    Ok(Staged::new(Written { durable, sketches: None }, names))
}

/// The new segments on their way to the workers of the shard.
struct Staging<'a> {
    context: &'a WriteContext,
    table: String,
    workers: Vec<WorkerId>,
    conditions: Conditions,
    /// No write has it.
    id: WriteId,
    names: Arc<StagedNames>,
    durable: Vec<Durable>,
}

impl<'a> Staging<'a> {
    fn new(context: &'a WriteContext, table: &Table, shard: u32, old: &[Arc<Segment>]) -> Self {
        let id = WriteId::new(format!("compaction-{}", WriteId::random()));
        let have_old: BTreeSet<&WorkerId> = old.iter().flat_map(|segment| &segment.replicas).collect();
        Self {
            context,
            table: table.full_name(),
            workers: table.placement.get(shard as usize).cloned().unwrap_or_default(),
            conditions: Conditions {
                keep_free_bytes: old.iter().map(|segment| segment.bytes).sum(),
                needed: have_old.into_iter().cloned().collect(),
            },
            names: StagedNames::new(context, id.clone()),
            id,
            durable: Vec::new(),
        }
    }

    async fn stage(&mut self, encoded: EncodedSegment) -> Result<(), Error> {
        self.names.add(encoded.segment.name(), &self.workers);
        let (here, workers, conditions) = (self.context.here(), &self.workers, &self.conditions);
        let durable = load::stage(here, &self.table, &self.id, encoded, workers, conditions);
        let durable = durable.await?;
        self.durable.push(durable);
        Ok(())
    }
}
