//! Segments of one shard, written anew as one or few, and staged like those of a
//! write.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use shoal_data::load::{self, RowShape};
use shoal_data::{EncodedSegment, Segment, SortedWriter, Table};
use shoal_proto::{WorkerId, WriteId};

use super::load::StagedNames;
use super::{Staged, WriteContext};
use crate::Error;
use crate::cluster::compaction::TARGET_BYTES;

/// A segment that is so long is ended. Rows that are merged may compress worse than
/// they did: what was to become one segment should do so.
const SEGMENT_BYTES_MAX: u64 = 2 * TARGET_BYTES;

/// Makes segments of `rows`, which are all rows of `old`, segments of this shard
/// of `table`, in the table's order, and stages each on the workers of the shard.
/// One segment is held in memory at a time, and whoever polls does all of the
/// work. Nothing is committed.
///
/// # Errors
/// What the rows say; `Unavailable` or `Exhausted` where a segment is durable on
/// no majority of its workers. Everything that was staged is then discarded, as it
/// is when the future is dropped.
pub async fn compact(
    context: &WriteContext,
    table: &Table,
    shard: u32,
    old: &[Arc<Segment>],
    mut rows: SendableRecordBatchStream,
) -> Result<Staged, Error> {
    let what = format!("shard {shard} of `{}`", table.full_name());
    let mut shape = RowShape::complete(&what, &table.columns, &rows.schema())?;
    let bytes_max = usize::try_from(SEGMENT_BYTES_MAX).unwrap_or(usize::MAX);
    let mut writer = SortedWriter::new(table, shard, old, bytes_max)?;
    let mut staging = Staging::new(context, table, shard);
    while let Some(batch) = rows.next().await {
        if let Some(encoded) = writer.push(shape.apply(&batch?)?)? {
            staging.stage(encoded).await?;
        }
    }
    drop(rows);
    if let Some(encoded) = writer.finish()? {
        staging.stage(encoded).await?;
    }
    let Staging { names, segments, .. } = staging;
    Ok(Staged::new(segments, names))
}

/// The new segments on their way to the workers of the shard.
struct Staging<'a> {
    context: &'a WriteContext,
    table: String,
    workers: Vec<WorkerId>,
    /// No write has it.
    id: WriteId,
    names: Arc<StagedNames>,
    segments: Vec<Segment>,
}

impl<'a> Staging<'a> {
    fn new(context: &'a WriteContext, table: &Table, shard: u32) -> Self {
        let id = WriteId::new(format!("compaction-{}", WriteId::random()));
        Self {
            context,
            table: table.full_name(),
            workers: table.placement.get(shard as usize).cloned().unwrap_or_default(),
            names: StagedNames::new(context, id.clone()),
            id,
            segments: Vec::new(),
        }
    }

    async fn stage(&mut self, encoded: EncodedSegment) -> Result<(), Error> {
        self.names.add(encoded.segment.name(), &self.workers);
        let staged = load::stage(self.context.here(), &self.table, &self.id, encoded, &self.workers).await?;
        self.segments.push(staged);
        Ok(())
    }
}
