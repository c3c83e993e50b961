//! Segments of one shard from rows that come in the table's order already, as
//! those of sorted segments that are merged. No more is held than the file that
//! is being encoded.

use std::sync::Arc;

use arrow::array::RecordBatch;
use shoal_proto::SegmentId;

use super::open::OpenSegment;
use super::order::InOrder;
use super::{EncodedSegment, GATHER_ROWS, SegmentWriter, joined};
use crate::{DataError, Segment, Table};

/// Rows are looked at before the first is encoded, as long as they take no more.
const SAMPLE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Encodes the rows of some segments anew.
pub struct SortedWriter {
    writer: SegmentWriter,
    shard: u32,
    /// Columns in which none of those segments has what is not a number.
    bounded: Vec<bool>,
    bytes_max: usize,
    in_order: Option<InOrder>,
    /// The first rows of the next segment.
    waiting: Vec<RecordBatch>,
    waiting_rows: usize,
    waiting_bytes: usize,
    open: Option<OpenSegment>,
}

impl SortedWriter {
    /// A writer for the rows of `merged`, segments of this shard of `table`. It
    /// begins another segment when one has about `bytes_max`.
    ///
    /// # Errors
    /// `Layout` where the sort key names no column.
    pub fn new(
        table: &Table,
        shard: u32,
        merged: &[Arc<Segment>],
        bytes_max: usize,
    ) -> Result<Self, DataError> {
        let writer = SegmentWriter::new(table)?;
        let columns = table.columns.fields().iter().enumerate();
        let bounded = columns.map(|(index, field)| {
            !field.data_type().is_floating() || merged.iter().all(|segment| has_bounds(segment, index))
        });
        let bounded = bounded.collect();
        let in_order = InOrder::new(&table.columns, &writer.sort_key)?;
        Ok(Self {
            writer,
            shard,
            bounded,
            bytes_max,
            in_order,
            waiting: Vec::new(),
            waiting_rows: 0,
            waiting_bytes: 0,
            open: None,
        })
    }

    /// Takes rows, which have the table's columns and come after those before.
    /// The segment that is complete with them, if one is.
    ///
    /// # Errors
    /// `Layout` for rows out of order; what the encoder says.
    pub fn push(&mut self, rows: RecordBatch) -> Result<Option<EncodedSegment>, DataError> {
        if rows.num_rows() == 0 {
            return Ok(None);
        }
        if let Some(in_order) = &mut self.in_order
            && !in_order.check(&rows)?
        {
            return Err(DataError::Layout(format!(
                "rows of table {}, shard {}, are not in the order of their sort key",
                self.writer.table, self.shard
            )));
        }
        match &mut self.open {
            Some(open) => open.write(&rows)?,
            None => {
                self.waiting_rows += rows.num_rows();
                self.waiting_bytes += rows.get_array_memory_size();
                self.waiting.push(rows);
                if self.waiting_rows < GATHER_ROWS && self.waiting_bytes < SAMPLE_BYTES_MAX {
                    return Ok(None);
                }
                self.begin()?;
            }
        }
        if self.open.as_ref().is_some_and(|open| open.bytes() >= self.bytes_max) {
            return self.end();
        }
        Ok(None)
    }

    /// No more rows will come. The last segment, unless there are no rows for it.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn finish(mut self) -> Result<Option<EncodedSegment>, DataError> {
        if !self.waiting.is_empty() {
            self.begin()?;
        }
        self.end()
    }

    fn begin(&mut self) -> Result<(), DataError> {
        let rows = joined(self.writer.columns(), std::mem::take(&mut self.waiting))?;
        (self.waiting_rows, self.waiting_bytes) = (0, 0);
        let mut open = self.writer.open(&rows, self.bounded.clone(), 0)?;
        open.write(&rows)?;
        self.open = Some(open);
        Ok(())
    }

    fn end(&mut self) -> Result<Option<EncodedSegment>, DataError> {
        let Some(open) = self.open.take() else { return Ok(None) };
        open.finish(self.writer.name(self.shard, SegmentId::random())).map(Some)
    }
}

/// Whether the bounds of a column of floats are known, or it is all nulls: then
/// it has no value that is not a number.
fn has_bounds(segment: &Segment, index: usize) -> bool {
    segment
        .columns
        .get(index)
        .is_some_and(|column| column.nulls == segment.rows || (column.min.is_some() && column.max.is_some()))
}
