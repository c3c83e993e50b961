//! Nothing more goes to a disk than fits, however little of it is there yet.

use super::*;

/// Bytes of each segment.
const BYTES: u64 = 1_000;

/// A table of one copy with so many shards on `w1`, each with one segment.
async fn with_shards(cluster: &Cluster, shards: u32) -> Vec<Segment> {
    let Ok(Outcome::Table(id)) = cluster.catalog.apply(Command::ReserveTable).await else {
        panic!("no table id");
    };
    let mut table = table(id, "t");
    table.layout.shards = shards;
    table.placement = vec![vec!["w1".into()]; shards as usize];
    let segments: Vec<Segment> =
        (0..shards).map(|shard| Segment { bytes: BYTES, ..segment(id, shard, "w1") }).collect();
    table.segments = segments.iter().cloned().map(Arc::new).collect();
    cluster.catalog.apply(create(table)).await.unwrap();
    segments
}

/// Joins with these segments, and says how much of its disk of 5,000 bytes is free,
/// of which 100 stay so.
async fn with_room(cluster: &Cluster, worker: &str, held: &[Segment], free_bytes: u64) -> StreamNumber {
    let held = held.iter().map(|it| HeldSegment { name: it.name().to_string(), bytes: it.bytes });
    let joining = JoinRequest { held: held.collect(), ..request(worker, &[]) };
    cluster.join(joining).await.unwrap();
    let stream = cluster.open_stream();
    say_room(cluster, worker, stream, free_bytes, Vec::new());
    stream
}

fn say_room(
    cluster: &Cluster,
    worker: &str,
    stream: StreamNumber,
    disk_free_bytes: u64,
    fetched: Vec<String>,
) {
    let (worker, incarnation) = (worker.to_owned(), "one".to_owned());
    let disk_total_bytes = 5_000;
    let said = Beat { worker, incarnation, disk_free_bytes, disk_total_bytes, fetched, ..Beat::default() };
    cluster.beat(stream, said);
    cluster.expire(Instant::now());
}

fn shards_on(cluster: &Cluster, worker: &str) -> usize {
    let state = cluster.catalog.snapshot();
    let table = state.table("public", "t").unwrap();
    table.placement.iter().filter(|shard| shard.contains(&worker.into())).count()
}

#[tokio::test]
async fn a_rebalance_of_many_rounds_places_no_more_than_fits() {
    let cluster = cluster().await;
    let segments = with_shards(&cluster, 8).await;
    with_room(&cluster, "w1", &segments, 2_100).await;
    let w2 = with_room(&cluster, "w2", &[], 2_100).await;
    let moved = cluster.rebalance().await.unwrap().moved;
    assert_eq!((moved.len(), shards_on(&cluster, "w2")), (2, 2), "more than fits: {moved:?}");
    let Rebalanced { moved, why_not } = cluster.rebalance().await.unwrap();
    assert!(moved.is_empty() && why_not.contains("finds no room"), "{moved:?}: {why_not}");
    // Both are there, and something else is gone: what is free counts as it is said.
    cluster.order_copies(Instant::now());
    let fetch = beat(&cluster, "w2", w2).fetch.into_iter().map(|order| order.name).collect();
    say_room(&cluster, "w2", w2, 1_100, fetch);
    cluster.record_fetched().await;
    let moved = cluster.rebalance().await.unwrap().moved;
    assert_eq!((moved.len(), shards_on(&cluster, "w2")), (1, 3), "{moved:?}");
}

#[tokio::test]
async fn a_disk_that_will_be_full_gets_no_shards_of_new_tables() {
    let cluster = cluster().await;
    let segments = with_shards(&cluster, 2).await;
    let mut layout = table(TableId(9), "new").layout;
    layout.replicas = ReplicaCount::Count(2);
    // What it has lost comes anew.
    let w1 = with_room(&cluster, "w1", &[], 2_000).await;
    with_room(&cluster, "w2", &[], 2_000).await;
    let placed = cluster.place(&layout).unwrap();
    assert_eq!(placed.shards, vec![vec![WorkerId::from("w2")]; 2]);
    let notice = placed.notice.unwrap_or_default();
    assert!(notice.contains("whose disks are not full"), "{notice}");
    // Where one of both is there, there is room beside the other one.
    cluster.core.lock().membership.gained(&"w1".into(), &segments[0].name());
    say_room(&cluster, "w1", w1, 2_000, Vec::new());
    assert_eq!(cluster.place(&layout).unwrap().notice, None);
}
