//! What queries on one worker share: footers of segments are read once for all of them.

use std::path::PathBuf;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Operator;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use shoal_data::block_sums::{BlockSummer, BlockSums};
use shoal_data::shard_store::{LocalSegments, Locate, Located, ReportDamage};
use shoal_data::{EncodedSegment, KeyHash, ReplicaCount, SegmentName, SegmentWriter, Table, TableLayout};
use shoal_proto::exchange::ExchangeCompression;
use shoal_proto::{ErrorCode, Failure, SegmentId, TableId};
use url::Url;

use super::*;

/// Nobody else has segments, and nobody hears of damage.
#[derive(Debug)]
struct Alone;

#[async_trait]
impl Locate for Alone {
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure> {
        Err(Failure::new(ErrorCode::NotFound, format!("{name} is nowhere else")))
    }
}

impl ReportDamage for Alone {
    fn has(&self, _name: &SegmentName) -> bool {
        true
    }

    fn damaged(&self, _name: &SegmentName, _what: &std::io::Error) {}
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]))
}

/// A segment of so many rows, from 0 on.
fn encoded(rows: i64) -> EncodedSegment {
    let layout = TableLayout {
        shards: 1,
        replicas: ReplicaCount::Count(1),
        shard_key: vec![],
        sort_key: vec![],
        hash: KeyHash::CURRENT,
        bloom_filters: Vec::new(),
    };
    let (id, placement, segments) = (TableId(1), vec![], vec![]);
    let (schema_name, name) = ("public".to_owned(), "t".to_owned());
    let table =
        Table { id, schema_name, name, columns: schema(), layout, placement, segments, sketches: None };
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    let batch = RecordBatch::try_new(schema(), vec![numbers]).unwrap();
    SegmentWriter::new(&table).unwrap().encode(0, SegmentId::random(), vec![batch]).unwrap()
}

/// A worker's disk, and what runs queries over it.
struct Fixture {
    sessions: TaskSessions,
    disk: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let disk = tempfile::tempdir().unwrap();
        let local = LocalSegments::new(disk.path().to_owned(), Arc::new(Alone));
        let channels = Channels::new(tokio::runtime::Handle::current());
        let shards = Arc::new(ShardStore::new(Some(Arc::new(local)), Arc::new(Alone), channels.clone()));
        let node = Arc::new(RuntimeEnv::default());
        let store = Arc::clone(&shards) as Arc<dyn ObjectStore>;
        node.register_object_store(&Url::parse(SHARD_STORE_URL).unwrap(), store);
        let sessions = TaskSessions::new(WorkerId::from("w1"), node, shards, channels, 2);
        Self { sessions, disk }
    }

    /// Where a segment and its checksums are.
    fn files(&self, segment: &EncodedSegment) -> [PathBuf; 2] {
        let path = self.disk.path().join(segment.segment.name().to_string());
        [BlockSums::path(&path), path]
    }

    fn put(&self, segment: &EncodedSegment) {
        let [sums, path] = self.files(segment);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut summer = BlockSummer::default();
        summer.update(&segment.bytes);
        std::fs::write(sums, summer.finish(segment.segment.name()).encode()).unwrap();
        std::fs::write(path, &segment.bytes).unwrap();
    }

    fn lose(&self, segment: &EncodedSegment) {
        for file in self.files(segment) {
            std::fs::remove_file(file).unwrap();
        }
    }

    /// What a new query runs in, whose session has these settings.
    fn context(&self, settings: Vec<(String, String)>) -> (Arc<TaskContext>, Arc<QueryScope>) {
        let options = QueryOptions {
            query: QueryId::random(),
            attempt: 1,
            memory_limit_bytes: 1 << 30,
            is_short: false,
            compression: ExchangeCompression::default(),
            settings,
        };
        self.sessions.whole_plan_context(&options, true).unwrap()
    }

    /// A query's own scan of a segment, for rows above a bound, and what it runs in.
    fn query(&self, segment: &EncodedSegment, above: i64) -> (Arc<dyn ExecutionPlan>, Arc<TaskContext>) {
        let (context, scope) = self.context(Vec::new());
        let predicate = BinaryExpr::new(Arc::new(Column::new("a", 0)), Operator::Gt, lit(above));
        let source = ParquetSource::new(schema()).with_predicate(Arc::new(predicate));
        let url = ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap();
        let file = PartitionedFile::new(segment.segment.name().to_string(), segment.segment.bytes);
        let scan = FileScanConfigBuilder::new(url, Arc::new(source)).with_file(file).build();
        let reads = ReadLog::of(&context);
        let plan = with_counted_readers(DataSourceExec::from_data_source(scan), &scope, &reads).unwrap();
        (plan, context)
    }

    async fn rows(&self, segment: &EncodedSegment) -> usize {
        let (plan, context) = self.query(segment, -1);
        let batches = datafusion::physical_plan::collect(plan, context).await.unwrap();
        batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// The footer of a segment as a new query gets it.
    async fn footer(&self, segment: &EncodedSegment) -> Option<Arc<ParquetMetaData>> {
        let (plan, _context) = self.query(segment, -1);
        let scan = plan.downcast_ref::<DataSourceExec>().unwrap().data_source();
        let scan = scan.downcast_ref::<FileScanConfig>().unwrap();
        let source = scan.file_source().downcast_ref::<ParquetSource>().unwrap();
        let readers = source.parquet_file_reader_factory().unwrap();
        let file = scan.file_groups[0].files()[0].clone();
        let mut reader = readers.create_reader(0, file, None, &ExecutionPlanMetricsSet::new()).unwrap();
        reader.get_metadata(Some(&ArrowReaderOptions::new())).await.ok()
    }
}

#[tokio::test]
async fn what_a_session_sets_comes_after_our_own_defaults() {
    let fixture = Fixture::new();
    let range_of = |settings: &[(&str, &str)]| {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (context, _scope) = fixture.context(settings.collect());
        context.session_config().options().execution.perfect_hash_join_small_build_threshold
    };
    assert_eq!(range_of(&[]), 1 << 18);
    assert_eq!(range_of(&[("datafusion.execution.perfect_hash_join_small_build_threshold", "7")]), 7);
    let (context, _scope) = fixture.context(Vec::new());
    let options = context.session_config().options();
    assert_eq!(options.execution.max_spill_file_size_bytes.get(), 1);
}

#[tokio::test]
async fn a_footer_is_read_once_for_all_queries() {
    let fixture = Fixture::new();
    let (read, unread) = (encoded(5_000), encoded(70));
    for segment in [&read, &unread] {
        fixture.put(segment);
    }
    assert_eq!(fixture.rows(&read).await, 5_000);
    assert_eq!(fixture.rows(&read).await, 5_000);
    // From here on no byte of them can be read.
    for segment in [&read, &unread] {
        fixture.lose(segment);
    }
    let footer = fixture.footer(&read).await.expect("the second query reads the footer again");
    assert_eq!(footer.file_metadata().num_rows(), 5_000);
    assert!(footer.offset_index().is_some(), "the page index is not kept with it");
    assert!(fixture.footer(&unread).await.is_none(), "the footer of a segment that was never read");
}

#[tokio::test]
async fn each_segment_has_the_footer_of_its_own() {
    let fixture = Fixture::new();
    let segments = [5_000, 70, 5_001].map(encoded);
    for segment in &segments {
        fixture.put(segment);
    }
    // In turns, so that what is kept of one could be taken for that of another.
    for _ in 0..2 {
        for segment in &segments {
            let rows = segment.segment.rows;
            assert_eq!(fixture.rows(segment).await as u64, rows);
            let footer = fixture.footer(segment).await.unwrap();
            assert_eq!(footer.file_metadata().num_rows() as u64, rows);
        }
    }
}
