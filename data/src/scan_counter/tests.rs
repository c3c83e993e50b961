//! What is counted, and where it comes from.

use std::sync::atomic::AtomicUsize;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::common::DataFusionError;
use datafusion::datasource::physical_plan::parquet::DefaultParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_plan::collect;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::properties::WriterProperties;
use shoal_proto::{ErrorCode, Failure, TableId};

use super::*;
use crate::shard_store::SHARD_STORE_URL;

/// One of table 1.
const SEGMENT: &str = "1/3/01a2166508577035902c6c6b56eb5060.parquet";

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
    let file = PartitionedFile::new(SEGMENT, 100);
    let mut reader = readers.create_reader(0, file, None, &ExecutionPlanMetricsSet::new()).unwrap();
    let error = reader.get_metadata(None).await.unwrap_err();
    let failure = Failure::from_datafusion(&DataFusionError::ParquetError(Box::new(error)));
    assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
}

/// Segments of three rows, of which there is a footer.
#[derive(Debug, Clone)]
struct Footers(Arc<ParquetMetaData>);

fn three_rows() -> RecordBatch {
    let values: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    RecordBatch::try_from_iter([("a", values)]).unwrap()
}

/// A file of them, with Bloom filters.
fn written() -> Bytes {
    let (rows, mut file) = (three_rows(), Vec::new());
    let properties = WriterProperties::builder().set_bloom_filter_enabled(true).build();
    let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    file.into()
}

impl ParquetFileReaderFactory for Footers {
    fn create_reader(
        &self,
        _: usize,
        _: PartitionedFile,
        _: Option<usize>,
        _: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        Ok(Box::new(self.clone()))
    }
}

impl AsyncFileReader for Footers {
    fn get_bytes(&mut self, _: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        std::future::ready(Ok(Bytes::new())).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        std::future::ready(Ok(Arc::clone(&self.0))).boxed()
    }
}

/// Counts how many readers it was asked for.
#[derive(Debug)]
struct Asked {
    inner: DefaultParquetFileReaderFactory,
    count: AtomicUsize,
}

impl ParquetFileReaderFactory for Asked {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.inner.create_reader(partition_index, file, metadata_size_hint, metrics)
    }
}

/// Segments and rows that were read of the table.
fn counted(reads: &ReadLog) -> (u64, u64) {
    let of_table = reads.by_table()[&TableId(1)];
    (of_table.segments, of_table.rows)
}

#[tokio::test]
async fn a_reader_that_reads_the_footer_itself_takes_the_place_of_none() {
    let footer = ParquetMetaDataReader::new().parse_and_finish(&written()).unwrap();
    let reads = Arc::new(ReadLog::new());
    let readers =
        CountedReaders::new(Arc::new(Footers(Arc::new(footer))), Arc::default(), Some(Arc::clone(&reads)));
    let readers = readers.with_second_readers();
    let open = || {
        let file = PartitionedFile::new(SEGMENT, 100);
        readers.create_reader(0, file, None, &ExecutionPlanMetricsSet::new()).unwrap()
    };
    let mut first = open();
    first.get_metadata(None).await.unwrap();
    first.get_metadata(None).await.unwrap();
    let mut of_rows = open();
    of_rows.get_bytes(4..8).await.unwrap();
    assert_eq!(counted(&reads), (1, 3), "with Bloom filters");
    drop((first, of_rows));

    // Without any: the first reads the rows, and the others are of further scans.
    let mut first = open();
    first.get_metadata(None).await.unwrap();
    let mut again = open();
    again.get_metadata(None).await.unwrap();
    let mut once_more = open();
    once_more.get_metadata(None).await.unwrap();
    again.get_metadata(None).await.unwrap();
    assert_eq!(counted(&reads), (1 + 3, 3 + 9));
}

#[tokio::test]
async fn a_scan_counts_each_time_that_it_reads_a_segment_with_bloom_filters_or_without() {
    let (file, store) = (written(), Arc::new(InMemory::new()));
    let bytes = file.len() as u64;
    store.put(&Path::from(SEGMENT), file.into()).await.unwrap();
    let context = Arc::new(TaskContext::default());
    let url = ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap();
    context.runtime_env().register_object_store(url.as_ref(), Arc::clone(&store) as _);
    let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new("a", 0));
    let halved: Arc<dyn PhysicalExpr> =
        Arc::new(BinaryExpr::new(Arc::clone(&column), Operator::Modulo, lit(2_i64)));
    let equals = |left: Arc<dyn PhysicalExpr>, value: i64| -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(left, Operator::Eq, lit(value)))
    };
    for (filter, looks_at_bloom_filters) in [(equals(column, 2), true), (equals(halved, 1), false)] {
        for times in [1, 2] {
            let reads = Arc::new(ReadLog::new());
            let inner = DefaultParquetFileReaderFactory::new(Arc::clone(&store) as _);
            let inner = Arc::new(Asked { inner, count: AtomicUsize::default() });
            let readers =
                CountedReaders::new(Arc::clone(&inner) as _, Arc::default(), Some(Arc::clone(&reads)));
            let source = ParquetSource::new(three_rows().schema())
                .with_predicate(Arc::clone(&filter))
                .with_parquet_file_reader_factory(Arc::new(readers.with_second_readers()));
            let files = vec![PartitionedFile::new(SEGMENT, bytes); times];
            let scan = FileScanConfigBuilder::new(url.clone(), Arc::new(source))
                .with_file_groups(vec![FileGroup::new(files)])
                .build();
            let scan = DataSourceExec::from_data_source(scan);
            let rows = collect(scan, Arc::clone(&context)).await.unwrap();
            assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 3 * times);
            assert_eq!(counted(&reads), (times as u64, 3 * times as u64), "{filter}, {times} times");
            let readers_each = if looks_at_bloom_filters { 2 } else { 1 };
            assert_eq!(inner.count.load(Ordering::Relaxed), readers_each * times, "{filter}");
        }
    }
}
