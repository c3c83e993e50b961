//! How rows become a segment: sorted by the table's sort key, encoded as
//! Parquet, measured and checksummed. Where its bytes go is not known here.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat, take, take_record_batch};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::basic::Compression;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use shoal_proto::{SegmentId, TableId};

use self::encoding::{ColumnEncoding, PACKED_COLUMNS_MAX};
use self::open::OpenSegment;
use self::order::Order;
use crate::{DataError, Segment, SegmentName, Sketches, Table};

mod encoding;
mod integers;
mod open;
mod order;
mod sorted;
mod statistics;

pub(crate) use order::by_first;
pub use sorted::SortedWriter;

/// Rows of one row group.
pub const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows of one data page at most.
pub const PAGE_ROWS: usize = 8 * 1024;
/// The same where rows are sorted by the shard key: what a lookup by key
/// decodes.
const LOOKUP_PAGE_ROWS: usize = 1024;
/// How often a Bloom filter takes a value for one that is there, of as many values as a row
/// group may have: some ten bits for each.
const BLOOM_FILTER_WRONG: f64 = 0.01;
/// Rows that are gathered and handed to the encoder at once.
const GATHER_ROWS: usize = 16 * 1024;
/// Rows looked at to decide how the values of a column are written.
const SAMPLE_ROWS: usize = 4096;

/// A segment that was encoded and is not stored anywhere yet.
#[derive(Clone, Debug)]
pub struct EncodedSegment {
    /// What the catalog will record; it has no replicas yet.
    pub segment: Segment,
    /// The whole file.
    pub bytes: Bytes,
    /// How many distinct values its columns have, where its rows are new to the table.
    pub sketches: Option<Arc<Sketches>>,
}

/// Encodes the segments of one table. Holds no rows; cheap to clone.
#[derive(Clone, Debug)]
pub struct SegmentWriter {
    table: TableId,
    columns: SchemaRef,
    sort_key: Vec<usize>,
    bloom_filters: Vec<String>,
    page_rows: usize,
}

impl SegmentWriter {
    /// A writer for `table`.
    ///
    /// # Errors
    /// `Layout` where the sort key names no column.
    pub fn new(table: &Table) -> Result<Self, DataError> {
        table.layout.check(&table.columns)?;
        let sort_key = table.layout.sort_key.iter().map(|name| table.columns.index_of(name));
        Ok(Self {
            table: table.id,
            columns: table.columns.clone(),
            sort_key: sort_key.collect::<Result<_, _>>()?,
            bloom_filters: table.layout.bloom_filters.clone(),
            page_rows: match table.layout.sort_key.first() {
                Some(first) if table.layout.shard_key.contains(first) => LOOKUP_PAGE_ROWS,
                _ => PAGE_ROWS,
            },
        })
    }

    /// The columns that batches must have, in this order.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// Makes one segment of `batches`, which have the table's columns and at
    /// least one row. Rows are sorted ascending, nulls last; rows of equal key
    /// keep their order. Takes some 30 ns of CPU per row and column, and as
    /// memory the file and one column of the rows once more.
    ///
    /// # Errors
    /// `Layout` for batches without rows, otherwise what the encoder says.
    pub fn encode(
        &self,
        shard: u32,
        id: SegmentId,
        batches: Vec<RecordBatch>,
    ) -> Result<EncodedSegment, DataError> {
        let rows = joined(&self.columns, batches)?;
        if rows.num_rows() == 0 {
            return Err(DataError::Layout("a segment has at least one row".into()));
        }
        let sketches = Sketches::of_rows(&rows).map(Arc::new);
        let order = match order::sorted(rows.columns(), &self.sort_key)? {
            Order::AsTheyAre => None,
            Order::Of(order) => Some(UInt32Array::from(order)),
        };
        let bounded: Vec<bool> =
            rows.columns().iter().map(|column| !statistics::has_not_a_number(column)).collect();
        let mut open = self.open(&rows, bounded, rows.num_rows() * 32)?;
        let rows = match order {
            None => rows,
            Some(order) => gathered(rows, &order)?,
        };
        for start in (0..rows.num_rows()).step_by(GATHER_ROWS) {
            open.write(&rows.slice(start, GATHER_ROWS.min(rows.num_rows() - start)))?;
        }
        let encoded = open.finish(self.name(shard, id))?;
        Ok(EncodedSegment { sketches, ..encoded })
    }

    /// A segment without rows yet, for rows like these. Of columns that are
    /// `bounded` bounds are kept: nothing in them may be not a number.
    fn open(
        &self,
        sample: &RecordBatch,
        bounded: Vec<bool>,
        capacity_bytes: usize,
    ) -> Result<OpenSegment, DataError> {
        let properties = self.properties(sample, &bounded)?;
        OpenSegment::new(&self.columns, properties, bounded, capacity_bytes)
    }

    /// The name that a segment of this table will have.
    pub fn name(&self, shard: u32, id: SegmentId) -> SegmentName {
        SegmentName { table: self.table, shard, segment: id }
    }

    fn properties(&self, rows: &RecordBatch, bounded: &[bool]) -> Result<WriterProperties, DataError> {
        let mut properties = segment_properties().set_data_page_row_count_limit(self.page_rows);
        if !self.sort_key.is_empty()
            && self.columns.fields().iter().all(|field| !field.data_type().is_nested())
        {
            let sorted = self.sort_key.iter().map(|index| SortingColumn {
                column_idx: *index as i32,
                descending: false,
                nulls_first: false,
            });
            properties = properties.set_sorting_columns(Some(sorted.collect()));
        }
        for (field, bounded) in self.columns.fields().iter().zip(bounded) {
            // Bounds leave such values out, and readers would skip their rows.
            if !bounded {
                let path = ColumnPath::new(vec![field.name().clone()]);
                properties = properties.set_column_statistics_enabled(path, EnabledStatistics::None);
            }
        }
        for name in &self.bloom_filters {
            let path = ColumnPath::new(vec![name.clone()]);
            properties = properties
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_fpp(path.clone(), BLOOM_FILTER_WRONG)
                .set_column_bloom_filter_max_ndv(path, ROW_GROUP_ROWS as u64);
        }
        let step = rows.num_rows().div_ceil(SAMPLE_ROWS);
        let sample = UInt32Array::from_iter_values((0..rows.num_rows() as u32).step_by(step));
        let sample = take_record_batch(rows, &sample)?;
        let mut packed = 0;
        for (field, column) in self.columns.fields().iter().zip(sample.columns()) {
            if field.data_type().is_nested() {
                continue;
            }
            let mut encoding = ColumnEncoding::of(column)?;
            packed += usize::from(encoding.is_packed());
            if encoding.is_packed() && packed > PACKED_COLUMNS_MAX {
                encoding = encoding.unpacked();
            }
            properties = encoding.set(properties, ColumnPath::new(vec![field.name().clone()]));
        }
        Ok(properties.build())
    }
}

/// The rows in this order, column by column: a whole column is in the caches only while
/// it alone is gathered. Frees each column once it is.
fn gathered(rows: RecordBatch, order: &UInt32Array) -> Result<RecordBatch, DataError> {
    let options = RecordBatchOptions::new().with_row_count(Some(order.len()));
    let (schema, columns, _) = rows.into_parts();
    let columns = columns.into_iter().map(|column| take(&column, order, None));
    let columns = columns.collect::<Result<_, _>>()?;
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

/// All rows in one batch: gathering from one array per column is much faster
/// than from hundreds. Frees each column's pieces once they are joined.
fn joined(schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<RecordBatch, DataError> {
    if let [only] = batches.as_slice() {
        return Ok(only.clone());
    }
    let mut pieces: Vec<Vec<ArrayRef>> = vec![Vec::with_capacity(batches.len()); schema.fields().len()];
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    for batch in batches {
        let (_, columns, _) = batch.into_parts();
        pieces.iter_mut().zip(columns).for_each(|(pieces, column)| pieces.push(column));
    }
    let mut columns = Vec::with_capacity(pieces.len());
    for pieces in pieces {
        let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
        columns.push(concat(&pieces)?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// What every segment is written with, before its columns are looked at.
pub fn segment_properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(concat!("shoal ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::LZ4_RAW)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_bloom_filter_enabled(false)
}

#[cfg(test)]
mod tests;
