//! Segments that are written anew as one.

use arrow::array::{ArrayRef, StringViewBuilder};
use datafusion::execution::memory_pool::{
    GreedyMemoryPool, MemoryConsumer, MemoryPool, MemoryReservation, UnboundedMemoryPool,
};
use shoal_data::{PackedStatistics, Segment};
use shoal_proto::{ErrorCode, SegmentId};

use super::*;
use crate::write::compact;

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
