//! Writes against workers that keep segments in memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, StringViewBuilder};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{
    GreedyMemoryPool, MemoryConsumer, MemoryPool, MemoryReservation, UnboundedMemoryPool,
};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_data::load::Holders;
use shoal_data::{KeyHash, PackedStatistics, ReplicaCount, Segment, SegmentName, Table, TableLayout};
use shoal_proto::cluster::segments_server::{Segments, SegmentsServer};
use shoal_proto::cluster::{
    DeleteReply, DeleteRequest, FetchRequest, StageReply, StageRequest, stage_request::Part,
};
use shoal_proto::server::{self, Incoming};
use shoal_proto::{Channels, ErrorCode, SegmentId, TableId, WorkerId, WriteId};
use tonic::{Request, Response, Status, Streaming};

use super::{SegmentHolders, WriteContext, WriteProgress, compact, write};

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
        },
        placement: vec![workers(); shards as usize],
        segments: vec![],
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
    catalog.apply(Command::CommitWrite { write, table: table.id, segments, replace: false }).await.unwrap();
    named.refused(&catalog).await;
    assert!(fixture.cluster.discarded.lock().is_empty());
    let count = unnamed.segments.len();
    unnamed.refused(&catalog).await;
    assert_eq!(fixture.cluster.discarded.lock().len(), count);
    assert!(fixture.cluster.protected.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_says_on_which_disks_its_segments_are() {
    use crate::catalog::{Command, OnDisk, WriteRecord};
    let fixture = Fixture::new(0).await;
    for (store, disk) in fixture.stores.iter().zip(["first", "second", ""]) {
        *store.disk.lock() = disk.to_owned();
    }
    let staged = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap();
    let write = WriteRecord { id: "w".into(), rows: staged.rows };
    let segments = staged.segments.clone();
    let commit = Command::CommitWrite { write, table: TableId(1), segments, replace: false };
    let Command::OnDisks { disks, change } = staged.on_disks(commit) else {
        panic!("it says nothing of disks");
    };
    let on = |worker: &str, disk: &str| OnDisk {
        worker: worker.into(),
        disk: disk.to_owned(),
        segments: Vec::new(),
    };
    // The third worker says nothing of its disk.
    assert_eq!(disks, [on("w1", "first"), on("w2", "second")]);
    assert_eq!(change.segments(), staged.segments.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_write_say_together_on_which_disks_they_are() {
    use crate::catalog::{Command, WriteRecord};
    let fixture = Fixture::new(0).await;
    let (table, worker) = (table(2, &["k"]), WorkerId::from("w1"));
    let disks = ["first", "second"];
    let mut parts = Vec::new();
    for disk in disks {
        *fixture.stores[0].disk.lock() = disk.to_owned();
        parts.push(fixture.write(&table, rows(100, 10)).await.unwrap());
    }
    let of_first: Vec<SegmentId> = parts[0].segments.iter().map(|segment| segment.id).collect();
    let staged = parts.into_iter().reduce(super::Staged::with).unwrap();
    assert_eq!(staged.rows, 200);
    let write = WriteRecord { id: "w".into(), rows: staged.rows };
    let segments = staged.segments.clone();
    let commit = Command::CommitWrite { write, table: TableId(1), segments, replace: false };
    let Command::OnDisks { disks: told, .. } = staged.on_disks(commit) else {
        panic!("it says nothing of disks");
    };
    assert_eq!(told.iter().map(|it| it.disk.as_str()).collect::<Vec<_>>(), disks);
    for segment in &staged.segments {
        let is_on: Vec<bool> = told.iter().map(|it| it.is_of(segment.id, &worker)).collect();
        let is_of_first = of_first.contains(&segment.id);
        assert_eq!(is_on, [is_of_first, !is_of_first]);
    }
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
async fn a_worker_that_is_gone_is_done_without() {
    let fixture = Fixture::new(0).await;
    fixture.cluster.addresses.lock().remove(&WorkerId::from("w2"));
    let staged = fixture.write(&table(1, &["k"]), rows(10, 10)).await.unwrap();
    let replicas: Vec<&str> = staged.segments[0].replicas.iter().map(WorkerId::as_str).collect();
    assert_eq!(replicas, ["w1", "w3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_is_waited_for_while_it_is_live_and_then_done_without() {
    let fixture = Fixture::new(0).await;
    fixture.stores[1].is_mute.store(true, Ordering::Relaxed);
    let table = table(1, &["k"]);
    let writing = fixture.write(&table, rows(10, 10));
    tokio::pin!(writing);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut writing).await;
    assert!(early.is_err(), "a live worker is not waited for");
    fixture.cluster.addresses.lock().remove(&WorkerId::from("w2"));
    let staged = tokio::time::timeout(Duration::from_secs(20), writing).await;
    let staged = staged.expect("the write waits for the silent").unwrap();
    let replicas: Vec<&str> = staged.segments[0].replicas.iter().map(WorkerId::as_str).collect();
    assert_eq!(replicas, ["w1", "w3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_silent_worker_is_waited_for() {
    let fixture = Fixture::new(0).await;
    for store in &fixture.stores[1..] {
        store.is_mute.store(true, Ordering::Relaxed);
    }
    let table = table(1, &["k"]);
    let writing = fixture.write(&table, rows(10, 10));
    tokio::pin!(writing);
    let first = tokio::time::timeout(Duration::from_millis(100), &mut writing).await;
    assert!(first.is_err());
    fixture.cluster.addresses.lock().remove(&WorkerId::from("w2"));
    let still = tokio::time::timeout(Duration::from_millis(300), &mut writing).await;
    assert!(still.is_err(), "one of three was taken for enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_answer_is_suspected() {
    let fixture = Fixture::new(0).await;
    // Bound and closed again: nobody listens there.
    let (listener, address) = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    drop(listener);
    fixture.cluster.addresses.lock().insert(WorkerId::from("w1"), format!("http://{address}"));
    let staged = fixture.write(&table(1, &["k"]), rows(10, 10)).await.unwrap();
    assert_eq!(staged.segments[0].replicas.len(), 2);
    assert!(fixture.cluster.suspected.lock().contains(&WorkerId::from("w1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_written_and_the_reasons_are_told() {
    let fixture = Fixture::new(0).await;
    for worker in ["w1", "w2"] {
        fixture.cluster.addresses.lock().remove(&WorkerId::from(worker));
    }
    let error = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains("w1: is not live; w2: is not live"), "{error}");
    assert!(error.to_string().contains("1 of its 3 workers"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_about_to_join_are_waited_for() {
    let fixture = Fixture::new(0).await;
    let known = std::mem::take(&mut *fixture.cluster.addresses.lock());
    let table = table(2, &["k"]);
    let writing = fixture.write(&table, rows(100, 10));
    let joining = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.cluster.addresses.lock().extend(known);
    };
    let (staged, ()) = tokio::join!(writing, joining);
    assert!(staged.unwrap().segments.iter().all(|segment| segment.replicas.len() >= 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_are_told_as_such() {
    let fixture = Fixture::new(0).await;
    for store in &fixture.stores[1..] {
        store.is_full.store(true, Ordering::Relaxed);
    }
    let error = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exhausted);
    assert!(error.to_string().contains("no space left"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_disk_of_three_is_done_without() {
    let fixture = Fixture::new(0).await;
    fixture.stores[1].is_full.store(true, Ordering::Relaxed);
    let staged = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap();
    assert_eq!((staged.segments.len(), staged.rows), (2, 100));
    for segment in &staged.segments {
        let replicas: Vec<&str> = segment.replicas.iter().map(WorkerId::as_str).collect();
        assert_eq!(replicas, ["w1", "w3"]);
    }
    for worker in [0, 2] {
        let mut keys: Vec<i64> = fixture.keys(worker).into_values().flatten().collect();
        keys.sort_unstable();
        assert!(keys.into_iter().eq(0..100), "worker {worker}");
    }
    assert!(fixture.keys(1).is_empty());
    // It answers, and what it holds can be read.
    assert!(fixture.cluster.suspected.lock().is_empty());
    staged.committed();
    assert!(fixture.cluster.discarded.lock().is_empty());
}

/// Memory of a compaction, as much as it likes.
fn unlimited() -> MemoryReservation {
    let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    MemoryConsumer::new("the new segment").register(&pool)
}

/// A segment that is to be compacted, with copies on these workers.
fn old_segment(bytes: u64, replicas: &[&str]) -> Arc<Segment> {
    Arc::new(Segment {
        id: SegmentId::random(),
        table: TableId(1),
        shard: 0,
        rows: 10,
        bytes,
        crc32c: 0,
        columns: PackedStatistics::default(),
        replicas: replicas.iter().map(|worker| WorkerId::from(*worker)).collect(),
    })
}

#[tokio::test]
async fn rows_that_are_compacted_stay_in_their_shard_and_come_to_all_of_its_workers() {
    let fixture = Fixture::new(0).await;
    // Without a key a write would deal them.
    let table = table(3, &[]);
    let memory = unlimited();
    let staged = compact(&fixture.context, &table, 2, &[], rows(10_000, 100), &memory).await.unwrap();
    assert_eq!((staged.segments.len(), staged.rows), (1, 10_000));
    assert_eq!(staged.segments[0].replicas, workers());
    let expected: BTreeMap<u32, Vec<i64>> = BTreeMap::from([(2, (0..10_000).collect())]);
    for worker in 0..3 {
        assert_eq!(fixture.keys(worker), expected, "worker {worker}");
    }
    assert_eq!(fixture.cluster.protected.lock().values().map(HashSet::len).sum::<usize>(), 1);
    staged.committed();
    assert!(fixture.cluster.protected.lock().is_empty());
    assert!(fixture.cluster.discarded.lock().is_empty());
}

#[tokio::test]
async fn a_compaction_that_fails_or_is_given_up_leaves_nothing() {
    let fixture = Fixture::new(0).await;
    let table = table(1, &["k"]);
    let memory = unlimited();
    drop(compact(&fixture.context, &table, 0, &[], rows(100, 10), &memory).await.unwrap());
    assert_eq!(fixture.cluster.discarded.lock().len(), 1);
    fixture.assert_nothing_is_left();
    let gone = || Err(DataFusionError::Execution("the segment is gone".to_owned()));
    for (input, why) in [
        (vec![Ok(batch(0..10)), gone()], "the segment is gone"),
        (vec![Ok(batch(10..20)), Ok(batch(0..10))], "not in the order of their sort key"),
    ] {
        let error = compact(&fixture.context, &table, 0, &[], stream(input), &memory).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        fixture.assert_nothing_is_left();
    }
    for store in &fixture.stores[1..] {
        store.is_full.store(true, Ordering::Relaxed);
    }
    let error = compact(&fixture.context, &table, 0, &[], rows(100, 10), &memory).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exhausted);
    fixture.assert_nothing_is_left();
}

#[tokio::test]
async fn a_compaction_asks_for_room_and_for_every_worker_that_has_an_old_segment() {
    let fixture = Fixture::new(0).await;
    let (table, memory) = (table(1, &["k"]), unlimited());
    let old = [old_segment(700, &["w1"]), old_segment(300, &["w1", "w2"])];
    let compacted = || compact(&fixture.context, &table, 0, &old, rows(100, 10), &memory);
    let staged = compacted().await.unwrap();
    assert_eq!(staged.segments[0].replicas, workers());
    for store in &fixture.stores {
        assert_eq!(store.keep_free_bytes.load(Ordering::Relaxed), 1_000);
    }
    staged.committed();
    // Nobody needs it on the third one; without the second one there would be a copy fewer.
    fixture.stores[2].is_full.store(true, Ordering::Relaxed);
    compacted().await.unwrap().committed();
    fixture.stores[2].is_full.store(false, Ordering::Relaxed);
    fixture.stores[1].is_full.store(true, Ordering::Relaxed);
    let error = compacted().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exhausted);
    for part in ["2 of its 3 workers, and w2, which has", "w2: no space left"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // A write does with most of them, and leaves no room.
    fixture.write(&table, rows(10, 10)).await.unwrap().committed();
    assert_eq!(fixture.stores[0].keep_free_bytes.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_compaction_over_its_memory_leaves_nothing() {
    let fixture = Fixture::new(0).await;
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100_000));
    let memory = MemoryConsumer::new("the new segment").register(&pool);
    let table = table(1, &["k"]);
    let error = compact(&fixture.context, &table, 0, &[], rows(100_000, 100), &memory).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exhausted);
    assert!(error.to_string().contains("the new segment"), "{error}");
    fixture.assert_nothing_is_left();
    drop(memory);
    assert_eq!(pool.reserved(), 0);
}

#[tokio::test]
async fn text_that_rows_share_is_cut_before_each_row_has_its_own() {
    const ROWS: i64 = 64;
    let fixture = Fixture::new(0).await;
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(48 << 20));
    let memory = MemoryConsumer::new("the new segment").register(&pool);
    // One mebibyte, and as much for each of them as plain text.
    let mut texts = StringViewBuilder::new();
    let block = texts.append_block(vec![b'x'; 1 << 20].into());
    for _ in 0..ROWS {
        texts.try_append_view(block, 0, 1 << 20).unwrap();
    }
    let keys: ArrayRef = Arc::new((0..ROWS).collect::<Int64Array>());
    let texts: ArrayRef = Arc::new(texts.finish());
    let shared =
        RecordBatch::try_from_iter_with_nullable([("k", keys, false), ("text", texts, true)]).unwrap();
    let input = futures::stream::iter([Ok(shared.clone())]);
    let input: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(shared.schema(), input));
    let staged = compact(&fixture.context, &table(1, &["k"]), 0, &[], input, &memory).await.unwrap();
    assert_eq!((staged.segments.len(), staged.rows), (1, ROWS as u64));
    assert!(staged.segments[0].bytes < 32 << 20, "{} bytes", staged.segments[0].bytes);
    staged.committed();
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
