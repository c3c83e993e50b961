//! Parquet readers that count what a query reads: for progress lines, and to
//! tell whether each segment of a plan was read once.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use shoal_proto::TableId;
use shoal_proto::exchange::ReadLog;

use crate::SegmentName;

/// Counts what a query read from files.
#[derive(Debug, Default)]
pub struct Scanned {
    rows: AtomicU64,
    bytes: AtomicU64,
    segments: AtomicU64,
}

impl Scanned {
    /// Rows in the segments opened, bytes read, segments opened.
    pub fn totals(&self) -> (u64, u64, u64) {
        (
            self.rows.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
            self.segments.load(Ordering::Relaxed),
        )
    }

    fn add_segment(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.segments.fetch_add(1, Ordering::Relaxed);
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The segment that a file of a scan stands for in counts of what was read.
/// None where the file is the second part or later of a segment that was cut,
/// or no segment: each counts once.
pub fn counted_segment(file: &PartitionedFile) -> Option<SegmentName> {
    if file.range.as_ref().is_some_and(|range| range.start > 0) {
        return None;
    }
    file.object_meta.location.as_ref().parse().ok()
}

/// Readers of another factory, counted. A scan asks for one reader for each
/// part of a file, before it looks at the file's statistics, as long as it
/// uses no Bloom filters: those take a second reader.
pub struct CountedReaders {
    inner: Arc<dyn ParquetFileReaderFactory>,
    scanned: Arc<Scanned>,
    reads: Option<Arc<ReadLog>>,
}

impl CountedReaders {
    /// Counts into `scanned` what the readers of `inner` read, and into `reads`
    /// the segments that they are for; without it where they read other files.
    pub fn new(
        inner: Arc<dyn ParquetFileReaderFactory>,
        scanned: Arc<Scanned>,
        reads: Option<Arc<ReadLog>>,
    ) -> Self {
        Self { inner, scanned, reads }
    }
}

impl fmt::Debug for CountedReaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountedReaders")
    }
}

impl ParquetFileReaderFactory for CountedReaders {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let noted = self.reads.as_ref().and_then(|reads| {
            let name = counted_segment(&file)?;
            reads.add_segment(name.table, name.digest());
            Some((Arc::clone(reads), name.table))
        });
        let inner = self.inner.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(CountedReader { inner, scanned: Arc::clone(&self.scanned), noted, is_counted: false }))
    }
}

struct CountedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    scanned: Arc<Scanned>,
    /// Where its segment was noted, and under which table.
    noted: Option<(Arc<ReadLog>, TableId)>,
    is_counted: bool,
}

impl AsyncFileReader for CountedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.scanned.add_bytes(range.end - range.start);
        self.inner.get_bytes(range)
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        self.scanned.add_bytes(ranges.iter().map(|range| range.end - range.start).sum());
        self.inner.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            // The page index comes with the footer, and is kept with it: read for
            // each query, it costs a small one more than its rows.
            let mut wanted = options.cloned().unwrap_or_default();
            if self.noted.is_some() {
                wanted = wanted.with_page_index_policy(PageIndexPolicy::Optional);
            }
            let metadata = self.inner.get_metadata(Some(&wanted)).await?;
            if !std::mem::replace(&mut self.is_counted, true) {
                let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or_default();
                self.scanned.add_segment(rows);
                if let Some((reads, table)) = &self.noted {
                    reads.add_rows(*table, rows);
                }
            }
            Ok(metadata)
        }
        .boxed()
    }
}
