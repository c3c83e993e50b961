//! Writes against workers that keep segments in memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_data::load::Holders;
use shoal_data::{KeyHash, ReplicaCount, SegmentName, Table, TableLayout};
use shoal_proto::cluster::segments_server::{Segments, SegmentsServer};
use shoal_proto::cluster::{
    DeleteReply, DeleteRequest, FetchRequest, StageReply, StageRequest, stage_request::Part,
};
use shoal_proto::server::{self, Incoming};
use shoal_proto::{Channels, TableId, WorkerId, WriteId};
use tonic::{Request, Response, Status, Streaming};

use super::{SegmentHolders, Staged, WriteContext, WriteProgress, write};

/// A worker's segments, and how it fails.
#[derive(Clone, Default)]
struct Store {
    segments: Arc<Mutex<BTreeMap<String, Bytes>>>,
    is_full: Arc<AtomicBool>,
    /// It takes what comes and never answers.
    is_mute: Arc<AtomicBool>,
    /// What was last asked to stay free.
    keep_free_bytes: Arc<AtomicU64>,
    /// The id of its disk.
    disk: Arc<Mutex<String>>,
}

#[tonic::async_trait]
impl Segments for Store {
    async fn stage(&self, request: Request<Streaming<StageRequest>>) -> Result<Response<StageReply>, Status> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(Status::resource_exhausted("no space left on device"));
        }
        if self.is_mute.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let mut stream = request.into_inner();
        let mut name = String::new();
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            match message.part {
                Some(Part::Header(header)) => {
                    self.keep_free_bytes.store(header.keep_free_bytes, Ordering::Relaxed);
                    name = header.name;
                }
                Some(Part::Data(data)) => bytes.extend_from_slice(&data),
                None => return Err(Status::invalid_argument("empty message")),
            }
        }
        let crc32c = shoal_data::checksum::crc32c(&bytes);
        let reply = StageReply { bytes: bytes.len() as u64, crc32c, disk: self.disk.lock().clone() };
        self.segments.lock().insert(name, bytes.into());
        Ok(Response::new(reply))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<StageReply>, Status> {
        Err(Status::unimplemented("fetch"))
    }
}

#[derive(Default)]
struct FakeCluster {
    addresses: Mutex<BTreeMap<WorkerId, String>>,
    suspected: Mutex<BTreeSet<WorkerId>>,
    protected: Mutex<BTreeMap<String, HashSet<SegmentName>>>,
    discarded: Mutex<Vec<(SegmentName, Vec<WorkerId>)>>,
}

impl Holders for FakeCluster {
    fn address(&self, worker: &WorkerId) -> Option<String> {
        self.addresses.lock().get(worker).cloned()
    }

    fn joined<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            while !self.addresses.lock().contains_key(worker) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    fn lost<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            while self.addresses.lock().contains_key(worker) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    fn suspect(&self, worker: &WorkerId, _why: &str) {
        self.suspected.lock().insert(worker.clone());
    }
}

impl SegmentHolders for FakeCluster {
    fn is_live(&self, worker: &WorkerId) -> bool {
        self.addresses.lock().contains_key(worker)
    }

    fn able(&self) -> Vec<WorkerId> {
        self.addresses.lock().keys().cloned().collect()
    }

    fn protect(&self, write: &WriteId, name: SegmentName, _workers: &[WorkerId]) {
        self.protected.lock().entry(write.to_string()).or_default().insert(name);
    }

    fn unprotect(&self, write: &WriteId) {
        self.protected.lock().remove(write.as_str());
    }

    fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        self.discarded.lock().extend(names);
    }
}

/// Three workers and a cluster that knows them.
struct Fixture {
    cluster: Arc<FakeCluster>,
    stores: Vec<Store>,
    context: WriteContext,
}

impl Fixture {
    async fn new(buffer_bytes: usize) -> Self {
        let cluster = Arc::new(FakeCluster::default());
        let mut stores = Vec::new();
        for worker in workers() {
            let store = Store::default();
            let (listener, address) = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            let service = SegmentsServer::new(store.clone());
            tokio::spawn(server::builder().add_service(service).serve_with_incoming(Incoming::new(listener)));
            cluster.addresses.lock().insert(worker, format!("http://{address}"));
            stores.push(store);
        }
        let channels = Channels::new(tokio::runtime::Handle::current());
        let context = WriteContext::new(cluster.clone(), channels, buffer_bytes);
        Self { cluster, stores, context }
    }

    async fn write(
        &self,
        table: &Table,
        input: SendableRecordBatchStream,
    ) -> Result<super::Staged, crate::Error> {
        write(&self.context, table, &WriteId::from("w"), input, Arc::new(WriteProgress::default())).await
    }

    /// Keys of all rows by shard, as one worker holds them.
    fn keys(&self, worker: usize) -> BTreeMap<u32, Vec<i64>> {
        let mut keys: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
        for (name, bytes) in self.stores[worker].segments.lock().iter() {
            let shard = name.parse::<SegmentName>().unwrap().shard;
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap().build().unwrap();
            for batch in reader.map(Result::unwrap) {
                keys.entry(shard).or_default().extend(batch.column(0).as_primitive::<Int64Type>().values());
            }
        }
        keys
    }

    fn assert_nothing_is_left(&self) {
        assert!(self.cluster.protected.lock().is_empty());
        let discarded: HashSet<String> =
            self.cluster.discarded.lock().iter().map(|(name, _)| name.to_string()).collect();
        for store in &self.stores {
            for name in store.segments.lock().keys() {
                assert!(discarded.contains(name), "{name} is left behind");
            }
        }
    }
}

fn workers() -> Vec<WorkerId> {
    ["w1", "w2", "w3"].map(WorkerId::from).to_vec()
}

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]))
}

fn table(shards: u32, shard_key: &[&str]) -> Table {
    Table {
        id: TableId(1),
        schema_name: "public".into(),
        name: "t".into(),
        columns: columns(),
        layout: TableLayout {
            shards,
            replicas: ReplicaCount::Count(3),
            shard_key: shard_key.iter().map(|name| (*name).to_owned()).collect(),
            sort_key: vec!["k".into()],
            hash: KeyHash::CURRENT,
            bloom_filters: Vec::new(),
        },
        placement: vec![workers(); shards as usize],
        segments: vec![],
        sketches: None,
    }
}

fn batch(keys: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringArray = keys.clone().map(|key| Some(format!("row {key} with some text"))).collect();
    RecordBatch::try_new(columns(), vec![Arc::new(keys.collect::<Int64Array>()), Arc::new(texts)]).unwrap()
}

fn stream(batches: Vec<Result<RecordBatch, DataFusionError>>) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(columns(), futures::stream::iter(batches)))
}

fn rows(count: i64, batch_rows: i64) -> SendableRecordBatchStream {
    let starts = (0..count).step_by(batch_rows as usize);
    stream(starts.map(|start| Ok(batch(start..count.min(start + batch_rows)))).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_on_every_replica_of_its_shard_once() {
    let fixture = Fixture::new(0).await;
    let table = table(4, &["k"]);
    // Four times what may be buffered, so that shards are flushed on the way.
    let count = 1_200_000;
    let progress = Arc::new(WriteProgress::default());
    let staged = write(&fixture.context, &table, &WriteId::from("w"), rows(count, 8192), progress.clone())
        .await
        .unwrap();
    assert_eq!(staged.rows, count as u64);
    assert_eq!((progress.rows_read(), progress.rows_staged()), (count as u64, count as u64));
    assert!(staged.segments.len() > 4, "{} segments", staged.segments.len());
    assert!(staged.segments.iter().all(|segment| segment.replicas == workers()));
    for worker in 0..3 {
        let by_shard = fixture.keys(worker);
        let mut all: Vec<i64> = by_shard.values().flatten().copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..count), "worker {worker}");
        for (shard, keys) in by_shard {
            let array: arrow::array::ArrayRef = Arc::new(Int64Array::from(keys));
            let mut shards = Vec::new();
            KeyHash::CURRENT.shards_of(&[array], 4, &mut shards).unwrap();
            assert!(shards.into_iter().all(|found| found == shard));
        }
    }
    staged.committed();
    assert!(fixture.cluster.protected.lock().is_empty());
    assert!(fixture.cluster.discarded.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_segments_of_a_write_and_all_its_parts_are_sketched_together() {
    let fixture = Fixture::new(0).await;
    let table = table(4, &["k"]);
    let check_close = |staged: &Staged, expected: u64| {
        let sketches = staged.sketches().unwrap();
        for column in 0..2 {
            let found = sketches.distinct(column).unwrap();
            assert!(found.abs_diff(expected) <= expected / 10, "{found} in place of {expected}");
        }
    };
    // Several segments for each shard.
    let staged = fixture.write(&table, rows(1_200_000, 8192)).await.unwrap();
    check_close(&staged, 1_200_000);
    let (one, same) = (rows(3_000, 100), rows(3_000, 100));
    let other = stream(vec![Ok(batch(2_000..5_000))]);
    let one = fixture.write(&table, one).await.unwrap();
    let alone = one.sketches();
    let both = one.with(fixture.write(&table, same).await.unwrap());
    assert_eq!(both.sketches(), alone, "the same values");
    check_close(&both.with(fixture.write(&table, other).await.unwrap()), 5_000);
    let nothing = fixture.write(&table, stream(vec![])).await.unwrap();
    assert_eq!((nothing.rows, nothing.sketches()), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_dealt_evenly() {
    let fixture = Fixture::new(0).await;
    let staged = fixture.write(&table(3, &[]), rows(300_000, 1000)).await.unwrap();
    let mut of_shard = [0; 3];
    for segment in &staged.segments {
        of_shard[segment.shard as usize] += segment.rows;
    }
    assert!(of_shard.iter().max().unwrap() - of_shard.iter().min().unwrap() <= 8192, "{of_shard:?}");
    assert_eq!(of_shard.iter().sum::<u64>(), 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_catalog_names_is_not_discarded_whatever_the_answer_was() {
    use crate::catalog::{Catalog, Command, WriteRecord};
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let fixture = Fixture::new(0).await;
    let table = table(2, &["k"]);
    catalog.apply(Command::ReserveTable).await.unwrap();
    let create = Command::CreateTable { table: table.clone(), if_not_exists: false, write: None };
    catalog.apply(create).await.unwrap();
    let (named, unnamed) = (rows(100, 10), rows(50, 10));
    let named = fixture.write(&table, named).await.unwrap();
    let unnamed = fixture.write(&table, unnamed).await.unwrap();
    let write = WriteRecord { id: "w".into(), rows: named.rows };
    let segments = named.segments.clone();
    catalog
        .apply(Command::CommitWrite { write, table: table.id, segments, replace: false, sketches: None })
        .await
        .unwrap();
    named.refused(&catalog).await;
    assert!(fixture.cluster.discarded.lock().is_empty());
    let count = unnamed.segments.len();
    unnamed.refused(&catalog).await;
    assert_eq!(fixture.cluster.discarded.lock().len(), count);
    assert!(fixture.cluster.protected.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_committed_is_left_and_not_protected_any_more() {
    let fixture = Fixture::new(0).await;
    let staged = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap();
    staged.left(&crate::Error::Unavailable("nobody knows".to_owned()));
    assert!(fixture.cluster.protected.lock().is_empty());
    assert!(fixture.cluster.discarded.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn staged_segments_are_protected_until_dropped_then_discarded() {
    let fixture = Fixture::new(0).await;
    let staged = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap();
    let protected: usize = fixture.cluster.protected.lock().values().map(HashSet::len).sum();
    assert_eq!(protected, staged.segments.len());
    drop(staged);
    assert_eq!(fixture.cluster.discarded.lock().len(), 2);
    fixture.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_fails_leaves_nothing() {
    let fixture = Fixture::new(0).await;
    let mut batches: Vec<_> = (0..100).map(|index| Ok(batch(index * 8192..(index + 1) * 8192))).collect();
    batches.push(Err(DataFusionError::Execution("broken line 7".into())));
    let error = fixture.write(&table(2, &["k"]), stream(batches)).await.unwrap_err();
    assert!(error.to_string().contains("broken line 7"), "{error}");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !fixture.cluster.protected.lock().is_empty() && std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    fixture.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rows_make_no_segments() {
    let fixture = Fixture::new(0).await;
    let staged = fixture.write(&table(2, &["k"]), stream(vec![Ok(batch(0..0))])).await.unwrap();
    assert_eq!((staged.segments.len(), staged.rows), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_write_leaves_nothing() {
    let fixture = Fixture::new(0).await;
    let endless = futures::stream::iter((0..).map(|index: i64| Ok(batch(index * 8192..(index + 1) * 8192))))
        .then(|batch| async move {
            tokio::task::yield_now().await;
            batch
        });
    let input: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(columns(), endless));
    let progress = Arc::new(WriteProgress::default());
    let table = table(2, &["k"]);
    let write_id = WriteId::from("w");
    {
        let writing = write(&fixture.context, &table, &write_id, input, progress.clone());
        tokio::pin!(writing);
        while progress.segments_staged() == 0 {
            tokio::select! {
                _ = &mut writing => unreachable!("the input does not end"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !fixture.cluster.protected.lock().is_empty() && std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    fixture.assert_nothing_is_left();
}

mod compactions;
mod disks;
mod failing_workers;
mod rows_of_queries;
