//! Parquet readers that count what a query reads, for progress lines.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::file::metadata::ParquetMetaData;

use crate::session::Scanned;

/// Readers of another factory, counted.
pub struct CountedReaders {
    inner: Arc<dyn ParquetFileReaderFactory>,
    scanned: Arc<Scanned>,
}

impl CountedReaders {
    /// Counts into `scanned` what the readers of `inner` read.
    pub fn new(inner: Arc<dyn ParquetFileReaderFactory>, scanned: Arc<Scanned>) -> Self {
        Self { inner, scanned }
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
        let inner = self.inner.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(CountedReader { inner, scanned: Arc::clone(&self.scanned), is_counted: false }))
    }
}

struct CountedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    scanned: Arc<Scanned>,
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
            let metadata = self.inner.get_metadata(options).await?;
            if !std::mem::replace(&mut self.is_counted, true) {
                let rows = metadata.file_metadata().num_rows();
                self.scanned.add_segment(u64::try_from(rows).unwrap_or_default());
            }
            Ok(metadata)
        }
        .boxed()
    }
}
