//! One segment while it is encoded, batch after batch.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::EncodedSegment;
use super::statistics::Collector;
use crate::{DataError, Segment, SegmentName, checksum};

/// A segment that takes rows. They must come in the order in which they are to
/// be in it.
pub(super) struct OpenSegment {
    columns: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    statistics: Collector,
    /// Columns of which the file has bounds.
    bounded: Vec<bool>,
    rows: u64,
}

impl OpenSegment {
    pub(super) fn new(
        columns: &SchemaRef,
        properties: WriterProperties,
        bounded: Vec<bool>,
        capacity_bytes: usize,
    ) -> Result<Self, DataError> {
        let file = Vec::with_capacity(capacity_bytes);
        Ok(Self {
            columns: columns.clone(),
            writer: ArrowWriter::try_new(file, columns.clone(), Some(properties))?,
            statistics: Collector::new(columns),
            bounded,
            rows: 0,
        })
    }

    /// Adds rows.
    pub(super) fn write(&mut self, rows: &RecordBatch) -> Result<(), DataError> {
        self.statistics.take(rows)?;
        self.writer.write(rows)?;
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    /// About how long the file is so far.
    pub(super) fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Memory of what is written, and of what is about to be.
    pub(super) fn memory_bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.memory_size()
    }

    /// The whole file; nothing is sketched.
    ///
    /// # Errors
    /// `Layout` where a bounded column has a value that is not a number: it would
    /// not be found.
    pub(super) fn finish(mut self, name: SegmentName) -> Result<EncodedSegment, DataError> {
        if let Some(index) = self.statistics.unbounded(&self.bounded) {
            return Err(DataError::Layout(format!(
                "column `{}` of segment {name} has a value that is not a number, and bounds that leave it out",
                self.columns.field(index).name()
            )));
        }
        self.writer.flush()?;
        let columns = self.statistics.finish(self.writer.flushed_row_groups(), &self.columns)?;
        let bytes = Bytes::from(self.writer.into_inner()?);
        let segment = Segment {
            id: name.segment,
            table: name.table,
            shard: name.shard,
            rows: self.rows,
            bytes: bytes.len() as u64,
            crc32c: checksum::crc32c(&bytes),
            columns: columns.into(),
            replicas: Vec::new(),
        };
        Ok(EncodedSegment { segment, bytes, sketches: None })
    }
}
