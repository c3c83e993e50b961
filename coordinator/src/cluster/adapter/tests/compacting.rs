//! Segments that were compacted, and the queries that still read them.

use super::*;
use crate::cluster::EventKind;
use crate::cluster::compaction::{Compacted, Rests};

/// Eight segments of shard 0 of a table, on `w1`.
async fn with_segments(cluster: &Cluster) -> (TableId, Vec<Segment>) {
    let id = with_table(cluster).await;
    let segments: Vec<_> = (0..8).map(|_| segment(id, 0, "w1")).collect();
    for (number, held) in segments.iter().enumerate() {
        cluster.catalog.apply(commit(&number.to_string(), held)).await.unwrap();
    }
    (id, segments)
}

#[tokio::test]
async fn segments_that_were_compacted_stay_until_their_readers_are_done() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    let (table, old) = with_segments(&cluster).await;
    let reader = cluster.pin();
    let new = Segment { rows: 80, ..segment(table, 0, "w1") };
    let ids = old.iter().map(|segment| segment.id).collect();
    let compact = Command::Compact { table, shard: 0, old: ids, new: vec![new.clone()] };
    assert_eq!(cluster.catalog.apply(compact).await.unwrap(), Outcome::Done);
    // From the first moment on.
    assert_eq!(cluster.locate(&old[0].name()).await.unwrap().replicas.len(), 1);
    collect(&cluster).await;
    assert!(beat(&cluster, "w1", stream).discard.is_empty());
    for segment in old.iter().chain([&new]) {
        assert_eq!(cluster.locate(&segment.name()).await.unwrap().replicas.len(), 1);
    }
    drop(reader);
    collect(&cluster).await;
    let mut gone: Vec<_> = old.iter().map(Segment::name).collect();
    gone.sort_unstable();
    let gone: Vec<_> = gone.iter().map(ToString::to_string).collect();
    assert_eq!(beat(&cluster, "w1", stream).discard, gone);
    assert_eq!(cluster.locate(&old[0].name()).await.unwrap_err().code, ErrorCode::NotFound);
    assert!(cluster.locate(&new.name()).await.is_ok());
}

#[tokio::test]
async fn who_leads_finds_what_is_due_and_tells_what_is_done() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    let (table, segments) = with_segments(&cluster).await;
    let mut rests = Rests::default();
    assert_eq!(cluster.compactions_due(&rests), [], "nobody has room for it");
    let has_room = Beat {
        worker: "w1".to_owned(),
        incarnation: "one".to_owned(),
        disk_free_bytes: 1 << 40,
        ..Beat::default()
    };
    cluster.beat(stream, has_room);
    // What beats say of disks is shown a moment later.
    cluster.expire(Instant::now());
    let due = cluster.compactions_due(&rests);
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].table, due[0].shard, due[0].segments.len()), (table, 0, segments.len()));
    assert!(cluster.check_coordinators().await.is_ok(), "it is alone");
    assert!(rests.failed(&due[0], Instant::now()));
    assert_eq!(cluster.compactions_due(&rests), []);
    let why = Error::Exhausted("no room on worker w1".to_owned());
    cluster.tell_deferred(&due[0], &why);
    let events = cluster.events();
    let told = events.last().unwrap();
    assert_eq!((told.kind, told.kind.name()), (EventKind::Deferred, "deferred"));
    assert_eq!(
        told.message,
        "public.t, shard 0: 8 segments of 0.8 kB stay as they are, and are tried again later: no room on worker w1"
    );

    let done = Compacted { table: "public.t".to_owned(), shard: 0, before: 8, after: 1, bytes: 800 };
    cluster.tell_compacted(&[done]);
    let events = cluster.events();
    let told = events.last().unwrap();
    assert_eq!((told.kind, told.worker.as_ref()), (EventKind::Compacted, None));
    assert_eq!(told.message, "public.t, shard 0: 8 segments of 0.8 kB into 1");
}

#[tokio::test]
async fn generations_that_queries_keep_take_the_room_of_the_next() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    let (table, old) = with_segments(&cluster).await;
    let has_room = |disk_free_bytes: u64| {
        let (worker, incarnation) = ("w1".to_owned(), "one".to_owned());
        cluster.beat(stream, Beat { worker, incarnation, disk_free_bytes, ..Beat::default() });
        // Only then others see it.
        cluster.expire(Instant::now());
    };
    let check = || {
        let state = cluster.catalog.snapshot();
        cluster.check_room(state.table_by_id(table).unwrap(), 0, 100)
    };
    // Four times what is compacted.
    has_room(400);
    check().unwrap();
    let reader = cluster.pin();
    let new = Segment { rows: 80, ..segment(table, 0, "w1") };
    let ids = old.iter().map(|segment| segment.id).collect();
    let compact = Command::Compact { table, shard: 0, old: ids, new: vec![new] };
    assert_eq!(cluster.catalog.apply(compact).await.unwrap(), Outcome::Done);
    collect(&cluster).await;
    let refused = check().unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Exhausted);
    assert!(refused.to_string().contains("1200 bytes must be free there (800 of them"), "{refused}");
    has_room(1_200);
    check().unwrap();
    has_room(400);
    drop(reader);
    collect(&cluster).await;
    check().unwrap();
}
