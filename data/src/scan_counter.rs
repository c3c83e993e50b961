//! Parquet readers that count what a query reads: for progress lines, and to
//! tell whether each segment of a plan was read once.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use shoal_proto::exchange::ReadLog;

use crate::SegmentName;

/// Bytes at the end of a file, where its footer is found.
const TAIL_BYTES: u64 = 8;

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
/// part of a file, before it looks at the file's statistics. One that looks at
/// Bloom filters reads these with that reader, and asks for a second one for
/// the rows, while it has the first: that one counts for nothing, as long as it
/// does with the footer that the first has read. One that reads the footer itself
/// is for a further scan of the file, and counts.
pub struct CountedReaders {
    inner: Arc<dyn ParquetFileReaderFactory>,
    scanned: Arc<Scanned>,
    reads: Option<Arc<ReadLog>>,
    wants_page_index: bool,
    /// Readers whose place a second one may take; none where the scan asks for none.
    replaceable: Option<Mutex<HashMap<Part, Weak<Opened>>>>,
}

/// A part of a file in one partition of a scan: where it begins, if it is not the whole.
type Part = (usize, Path, Option<i64>);

/// What is known of a reader whose place a second one may take, once.
#[derive(Debug, Default)]
struct Opened {
    has_footer: AtomicBool,
    is_replaced: AtomicBool,
}

impl CountedReaders {
    /// Counts into `scanned` what the readers of `inner` read, and into `reads`
    /// the segments that they are for; without it where they read other files.
    pub fn new(
        inner: Arc<dyn ParquetFileReaderFactory>,
        scanned: Arc<Scanned>,
        reads: Option<Arc<ReadLog>>,
    ) -> Self {
        Self { inner, scanned, reads, wants_page_index: false, replaceable: None }
    }

    /// Reads page indexes with the footers, for scans that may skip pages.
    pub fn with_page_index(mut self) -> Self {
        self.wants_page_index = true;
        self
    }

    /// Expects second readers, for a scan that looks at Bloom filters.
    pub fn with_second_readers(mut self) -> Self {
        self.replaceable = Some(Mutex::default());
        self
    }

    /// A new reader of this part; none where it takes the place of one that has read the
    /// footer and is there still. Any other is one more, and counts.
    fn open(&self, part: Part) -> Option<Arc<Opened>> {
        let Some(replaceable) = &self.replaceable else { return Some(Arc::default()) };
        let mut replaceable = replaceable.lock();
        if let Some(opened) = replaceable.get(&part).and_then(Weak::upgrade)
            && opened.has_footer.load(Ordering::Relaxed)
            && !opened.is_replaced.swap(true, Ordering::Relaxed)
        {
            return None;
        }
        let opened = Arc::new(Opened::default());
        replaceable.insert(part, Arc::downgrade(&opened));
        Some(opened)
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
        let start = file.range.as_ref().map(|range| range.start);
        let opened = self.open((partition_index, file.object_meta.location.clone(), start));
        let mut noting = self.reads.as_ref().and_then(|reads| {
            let segment = counted_segment(&file)?;
            Some(Noting { reads: Arc::clone(reads), segment, is_noted: false })
        });
        if let (Some(_), Some(noting)) = (&opened, &mut noting) {
            noting.note();
        }
        let size = file.object_meta.size;
        let inner = self.inner.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(CountedReader {
            inner,
            scanned: Arc::clone(&self.scanned),
            is_segment: self.reads.is_some(),
            wants_page_index: self.wants_page_index,
            tail: size.saturating_sub(TAIL_BYTES)..size,
            noting,
            is_counted: false,
            opened: opened.unwrap_or_default(),
        }))
    }
}

struct CountedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    scanned: Arc<Scanned>,
    is_segment: bool,
    wants_page_index: bool,
    tail: Range<u64>,
    noting: Option<Noting>,
    is_counted: bool,
    opened: Arc<Opened>,
}

/// Where a segment is noted as read, once.
struct Noting {
    reads: Arc<ReadLog>,
    segment: SegmentName,
    is_noted: bool,
}

impl Noting {
    fn note(&mut self) {
        if !std::mem::replace(&mut self.is_noted, true) {
            self.reads.add_segment(self.segment.table, self.segment.digest());
        }
    }
}

impl CountedReader {
    /// The footer. An error of the store comes as text from there, which does
    /// not tell whether another replica may cure it: asking the store itself does.
    async fn metadata(
        &mut self,
        wanted: &ArrowReaderOptions,
    ) -> parquet::errors::Result<Arc<ParquetMetaData>> {
        match self.inner.get_metadata(Some(wanted)).await {
            Err(ParquetError::General(_)) if self.is_segment => {
                self.inner.get_bytes(self.tail.clone()).await?;
                self.inner.get_metadata(Some(wanted)).await
            }
            other => other,
        }
    }
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
            if self.wants_page_index {
                wanted = wanted.with_page_index_policy(PageIndexPolicy::Optional);
            }
            let metadata = self.metadata(&wanted).await?;
            self.opened.has_footer.store(true, Ordering::Relaxed);
            if !std::mem::replace(&mut self.is_counted, true) {
                let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or_default();
                self.scanned.add_segment(rows);
                if let Some(noting) = &mut self.noting {
                    // Where it seemed to take the place of another one: it does not.
                    noting.note();
                    noting.reads.add_rows(noting.segment.table, rows);
                }
            }
            Ok(metadata)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
