//! Workers that are drained, and those that leave.

use shoal_data::SegmentName;
use shoal_proto::{SegmentId, TableId};

use super::*;
use crate::drain::until_drained;

#[tokio::test]
async fn who_leads_says_when_a_worker_is_drained() {
    let (behind, newest) = (Coordinator::default(), Coordinator::default());
    let seeds = [behind.start().await, newest.start().await];
    let (_root, heartbeat) = started(&seeds);
    for coordinator in [&behind, &newest] {
        coordinator.beaten_at().await;
    }
    assert_eq!(heartbeat.drain_word(), DrainWord::default());
    heartbeat.drain();
    let is_asked = |it: &Coordinator| it.heard.lock().beats.last().is_some_and(|beat| beat.drain);
    for coordinator in [&behind, &newest] {
        eventually("it is asked for a drain", || is_asked(coordinator)).await;
        assert!(!coordinator.heard.lock().joins[0].drain, "it was asked before");
    }
    // It asks on when it joins again, too.
    newest.orders.lock().push_back(Orders { report: true, ..Orders::default() });
    eventually("a second join", || newest.counts().0 == 2).await;
    assert!(newest.heard.lock().joins[1].drain);

    let says = |it: &Coordinator, term: u64, drained: bool, lacks: &str| {
        let orders = Orders { term, drained, drain_lacks: lacks.to_owned(), ..Orders::default() };
        *it.orders.lock() = vec![orders; 10_000].into();
    };
    let word = |is_done: bool, lacks: &str| DrainWord { is_done, lacks: lacks.to_owned(), closing: 0 };
    says(&newest, 3, false, "");
    newest.beaten_at().await;
    says(&behind, 2, true, "");
    behind.beaten_at().await;
    behind.beaten_at().await;
    assert_eq!(heartbeat.drain_word(), DrainWord::default(), "a coordinator of an older term is believed");
    says(&behind, 2, false, "");
    says(&newest, 3, false, "a worker");
    eventually("it is told what is missing", || heartbeat.drain_word() == word(false, "a worker")).await;
    says(&newest, 3, true, "");
    eventually("it is told that it is drained", || heartbeat.drain_word() == word(true, "")).await;
    says(&newest, 3, false, "");
    eventually("that is taken back", || heartbeat.drain_word() == DrainWord::default()).await;
}

/// From now on says of a worker that it is drained, or that it is not.
fn say_drained(coordinator: &Coordinator, drained: bool) {
    let orders = Orders { drained, ..Orders::default() };
    *coordinator.orders.lock() = vec![orders; 10_000].into();
}

#[tokio::test]
async fn a_word_from_before_a_worker_took_no_more_lets_it_not_go() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let (_root, heartbeat) = started(&seeds);
    say_drained(&coordinator, true);
    eventually("it is told that it is drained", || heartbeat.drain_word().is_done).await;
    // Something was placed there since, and the worker does not know it yet.
    say_drained(&coordinator, false);
    assert!(!heartbeat.is_let_go(Duration::from_millis(500)).await, "an old word is believed");
    say_drained(&coordinator, true);
    assert!(heartbeat.is_let_go(SOON).await);
}

#[tokio::test]
async fn a_worker_that_is_drained_waits_for_what_is_being_written_and_takes_no_more() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let dir = Arc::clone(&parts.dir);
    let heartbeat = Heartbeat::start(parts).unwrap();
    say_drained(&coordinator, true);
    eventually("it is told that it is drained", || heartbeat.drain_word().is_done).await;
    let name = SegmentName { table: TableId(3), shard: 0, segment: SegmentId::random() };
    let written = dir.stage(name, 0, 0).unwrap();
    let draining = until_drained(&heartbeat, &dir);
    tokio::pin!(draining);
    let early = tokio::time::timeout(Duration::from_secs(1), &mut draining).await;
    assert!(early.is_err(), "it does not wait");
    written.finish().unwrap();
    let early = tokio::time::timeout(Duration::from_secs(1), &mut draining).await;
    assert!(early.is_err(), "a write may count on what is here");
    dir.remove(&name).unwrap();
    tokio::time::timeout(SOON, draining).await.expect("still waited for").unwrap();
    assert_eq!(dir.stage(name, 0, 0).unwrap_err().code(), ErrorCode::Stopping);
}

#[tokio::test]
async fn whoever_leaves_waits_until_all_that_are_connected_know() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let mute = Coordinator::mute_from(MuteFrom::Join);
    let seeds = [coordinators[0].start().await, mute.start().await, coordinators[1].start().await];
    let (_root, heartbeat) = started(&seeds);
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
    }
    let before = Instant::now();
    heartbeat.leave(SOON).await;
    assert!(before.elapsed() < SOON / 2, "a coordinator that is not connected is waited for");
    for coordinator in &coordinators {
        assert!(coordinator.heard.lock().beats.iter().any(|beat| beat.leaving));
    }
}
