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
use shoal_proto::TableId;
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
/// the rows, while it has the first: that one counts for nothing.
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
        let reads = self.reads.as_ref().filter(|_| opened.is_some());
        let noted = reads.and_then(|reads| {
            let name = counted_segment(&file)?;
            reads.add_segment(name.table, name.digest());
            Some((Arc::clone(reads), name.table))
        });
        let size = file.object_meta.size;
        let inner = self.inner.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(CountedReader {
            inner,
            scanned: Arc::clone(&self.scanned),
            is_segment: self.reads.is_some(),
            wants_page_index: self.wants_page_index,
            tail: size.saturating_sub(TAIL_BYTES)..size,
            noted,
            is_counted: opened.is_none(),
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
    /// Where its segment was noted, and under which table.
    noted: Option<(Arc<ReadLog>, TableId)>,
    is_counted: bool,
    opened: Arc<Opened>,
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
                if let Some((reads, table)) = &self.noted {
                    reads.add_rows(*table, rows);
                }
            }
            Ok(metadata)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::common::DataFusionError;
    use shoal_proto::{ErrorCode, Failure};

    use super::*;

    /// A segment whose replicas are all away, read through the library's readers.
    #[derive(Debug)]
    struct Away;

    impl ParquetFileReaderFactory for Away {
        fn create_reader(
            &self,
            _: usize,
            _: PartitionedFile,
            _: Option<usize>,
            _: &ExecutionPlanMetricsSet,
        ) -> Result<Box<dyn AsyncFileReader + Send>> {
            Ok(Box::new(Self))
        }
    }

    impl AsyncFileReader for Away {
        fn get_bytes(&mut self, _: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
            let failure = Failure::new(ErrorCode::Unavailable, "no live worker holds it");
            std::future::ready(Err(ParquetError::External(Box::new(failure)))).boxed()
        }

        fn get_metadata<'a>(
            &'a mut self,
            _: Option<&'a ArrowReaderOptions>,
        ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
            let told = ParquetError::General("Failed to fetch metadata: no live worker holds it".into());
            std::future::ready(Err(told)).boxed()
        }
    }

    #[test]
    fn a_reader_for_rows_takes_the_place_of_one_for_bloom_filters_once() {
        let reads = Arc::new(ReadLog::new());
        let readers = CountedReaders::new(Arc::new(Away), Arc::default(), Some(Arc::clone(&reads)));
        let readers = readers.with_second_readers();
        let part = || (0, Path::from("1/3/x.parquet"), None);
        let first = readers.open(part()).unwrap();
        // It has not read the footer: another one reads the same once more.
        let again = readers.open(part()).unwrap();
        again.has_footer.store(true, Ordering::Relaxed);
        assert!(readers.open((1, Path::from("1/3/x.parquet"), None)).is_some(), "of another partition");
        assert!(readers.open((0, Path::from("1/3/x.parquet"), Some(7))).is_some(), "of another part");
        assert!(readers.open(part()).is_none());
        assert!(readers.open(part()).is_some(), "whose place was taken");
        drop((first, again));
        let gone = readers.open(part()).unwrap();
        gone.has_footer.store(true, Ordering::Relaxed);
        drop(gone);
        assert!(readers.open(part()).is_some(), "who is gone");
        let without = CountedReaders::new(Arc::new(Away), Arc::default(), Some(reads));
        let opened = without.open(part()).unwrap();
        opened.has_footer.store(true, Ordering::Relaxed);
        assert!(without.open(part()).is_some(), "where none is expected");
    }

    #[tokio::test]
    async fn a_footer_that_cannot_be_read_now_may_be_read_elsewhere() {
        let readers = CountedReaders::new(Arc::new(Away), Arc::default(), Some(Arc::new(ReadLog::new())));
        let file = PartitionedFile::new("1/3/01a2166508577035902c6c6b56eb5060.parquet", 100);
        let mut reader = readers.create_reader(0, file, None, &ExecutionPlanMetricsSet::new()).unwrap();
        let error = reader.get_metadata(None).await.unwrap_err();
        let failure = Failure::from_datafusion(&DataFusionError::ParquetError(Box::new(error)));
        assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
    }
}
