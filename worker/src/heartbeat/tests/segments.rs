//! What coordinators order about segments, and what they are told of them.

use bytes::Bytes;
use shoal_data::SegmentName;
use shoal_data::shard_store::ReportDamage;
use shoal_proto::cluster::FetchRequest;
use shoal_proto::{SegmentId, TableId};

use super::*;

/// Some beats, and less than a coordinator may be silent.
const SILENT: Duration = Duration::from_millis(500);

/// A segment that is here already, as a coordinator orders it.
fn held(dir: &Arc<SegmentDir>) -> FetchRequest {
    let bytes = Bytes::from_static(b"0123");
    let name = SegmentName { table: TableId(3), shard: 0, segment: SegmentId::random() };
    let crc32c = crc32c::crc32c(&bytes);
    let mut staging = dir.stage(name, 4, crc32c).unwrap();
    staging.write(&bytes).unwrap();
    staging.finish().unwrap();
    FetchRequest { name: name.to_string(), bytes: 4, crc32c, ..FetchRequest::default() }
}

#[tokio::test]
async fn what_one_coordinator_orders_is_told_to_all() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let seeds = [coordinators[0].start().await, coordinators[1].start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let request = held(&parts.dir);
    let _heartbeat = Heartbeat::start(parts).unwrap();
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
    }
    let name = request.name.clone();
    coordinators[0].orders.lock().push_back(Orders { fetch: vec![request], ..Orders::default() });
    let told = |it: &Coordinator| {
        let heard = it.heard.lock();
        heard.beats.iter().flat_map(|beat| &beat.fetched).filter(|fetched| **fetched == name).count()
    };
    for coordinator in &coordinators {
        eventually("the copy is told", || told(coordinator) > 0).await;
        coordinator.beaten_at().await;
        assert_eq!(told(coordinator), 1);
        assert_eq!(coordinator.heard.lock().joins[0].held[0].name, name);
    }
}

#[tokio::test]
async fn a_coordinator_of_an_older_term_removes_nothing() {
    let (behind, newest) = (Coordinator::default(), Coordinator::default());
    let seeds = [behind.start().await, newest.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let (dir, name) = (Arc::clone(&parts.dir), held(&parts.dir).name);
    let _heartbeat = Heartbeat::start(parts).unwrap();
    let removes_in = |term| Orders { term, discard: vec![name.clone()], ..Orders::default() };
    newest.orders.lock().push_back(Orders { term: 3, ..Orders::default() });
    newest.beaten_at().await;
    behind.orders.lock().push_back(removes_in(2));
    behind.beaten_at().await;
    assert_eq!(dir.held().len(), 1);
    behind.orders.lock().push_back(removes_in(3));
    eventually("it is removed", || dir.held().is_empty()).await;
}

#[tokio::test]
async fn what_was_ordered_before_the_worker_told_what_is_here_is_not_removed() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let (dir, replicator) = (Arc::clone(&parts.dir), parts.replicator.clone());
    let name = held(&dir).name;
    let _heartbeat = Heartbeat::start(parts).unwrap();
    coordinator.beaten_at().await;
    // As if it had come after what was told first.
    replicator.staged_for_nobody(0);
    eventually("a second join", || coordinator.counts().0 == 2).await;
    let numbers: Vec<u64> = coordinator.heard.lock().joins.iter().map(|join| join.number).collect();
    assert_eq!(numbers, [1, 2]);
    let removes_after = |after_join| Orders { after_join, discard: vec![name.clone()], ..Orders::default() };
    coordinator.orders.lock().push_back(removes_after(1));
    coordinator.beaten_at().await;
    assert_eq!(dir.held().len(), 1);
    coordinator.orders.lock().push_back(removes_after(2));
    eventually("it is removed", || dir.held().is_empty()).await;
}

#[tokio::test]
async fn a_damaged_segment_is_told_to_all_on_the_same_streams() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let seeds = [coordinators[0].start().await, coordinators[1].start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let (replicator, name) = (parts.replicator.clone(), held(&parts.dir).name);
    let _heartbeat = Heartbeat::start(parts).unwrap();
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
    }
    replicator.damaged(&name.parse().unwrap(), &std::io::Error::other("rot"));
    for coordinator in &coordinators {
        eventually("a second join", || coordinator.counts().0 == 2).await;
        coordinator.beaten_at().await;
        let (joins, streams, _) = coordinator.counts();
        assert_eq!((joins, streams), (2, 1));
        let held: Vec<_> = coordinator.heard.lock().joins.iter().map(|join| join.held[0].bytes).collect();
        assert_eq!(held, [4, 0]);
    }
}

#[tokio::test]
async fn copies_that_are_ordered_unasked_are_made_and_answer_no_wish() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let request = held(&parts.dir);
    let name = request.name.clone();
    let heartbeat = Heartbeat::start(parts).unwrap();
    coordinator.beaten_at().await;
    let unasked = Orders { fetch: vec![request], unasked: true, ..Orders::default() };
    coordinator.send(unasked.clone());
    let is_told = || {
        let heard = coordinator.heard.lock();
        heard.beats.iter().any(|beat| beat.fetched.contains(&name))
    };
    eventually("the copy is told", is_told).await;
    // From here on it answers no beat.
    coordinator.is_mute.store(true, Ordering::Relaxed);
    coordinator.beaten_at().await;
    heartbeat.wishes.leave.cancel();
    coordinator.send(unasked);
    let all_told = tokio::time::timeout(SILENT, heartbeat.coordinators.all_told()).await;
    assert!(all_told.is_err(), "orders that were on their way are taken for the answer");
}
