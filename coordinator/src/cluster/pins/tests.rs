//! Claims about pins.

use shoal_proto::{TableId, WorkerId};

use super::*;
use crate::catalog::state::tests::segment;

fn state(version: u64) -> Arc<State> {
    let mut state = State::new("c");
    state.version = version;
    Arc::new(state)
}

fn dropped(version: u64) -> Dropped {
    Dropped { version, segment: Arc::new(segment(TableId(1), 0, "w1")) }
}

#[test]
fn a_segment_stays_until_the_last_reader_is_done() {
    let pins = Pins::default();
    let first = pins.pin_newest(|| state(4));
    let second = pins.pin(4);
    let gone = dropped(5);
    let name = gone.segment.name();
    assert!(pins.collect(|| vec![gone]).is_empty());
    assert!(pins.retired(&name).is_some());
    drop(first);
    assert!(pins.collect(Vec::new).is_empty());
    drop(second);
    let free = pins.collect(Vec::new);
    assert_eq!(free.len(), 1);
    assert_eq!(free[0].segment.name(), name);
    assert!(pins.collect(Vec::new).is_empty(), "a segment was collected twice");
    assert!(pins.retired(&name).is_none());
}

#[test]
fn what_was_noted_can_be_read_and_goes_later() {
    let pins = Pins::default();
    let gone = dropped(5);
    let name = gone.segment.name();
    pins.note(|| vec![gone]);
    assert!(pins.retired(&name).is_some());
    assert_eq!(pins.collect(Vec::new).len(), 1);
    assert!(pins.retired(&name).is_none());
}

#[test]
fn readers_of_newer_versions_hold_nothing_back() {
    let pins = Pins::default();
    let newer = pins.pin_newest(|| state(5));
    assert_eq!(newer.version, 5);
    assert_eq!(pins.collect(|| vec![dropped(5)]).len(), 1);
    let (_, guard) = newer.into_parts();
    assert!(pins.collect(|| vec![dropped(6)]).is_empty());
    drop(guard);
    assert_eq!(pins.collect(Vec::new).len(), 1);
}

#[test]
fn an_old_reader_holds_back_all_that_came_after() {
    let pins = Pins::default();
    let old = pins.pin(1);
    let _new = pins.pin(9);
    assert!(pins.collect(|| vec![dropped(2), dropped(5), dropped(9)]).is_empty());
    drop(old);
    assert_eq!(pins.collect(Vec::new).len(), 3);
}

#[test]
fn a_segment_that_leaves_one_worker_after_the_other_is_removed_from_all() {
    let pins = Pins::default();
    let gone = dropped(6).segment;
    let from = |worker: &str, version: u64| {
        let segment = Segment { replicas: vec![worker.into()], ..gone.as_ref().clone() };
        Dropped { version, segment: Arc::new(segment) }
    };
    let [old, new] = [5, 6].map(|version| pins.pin(version));
    assert!(pins.collect(|| vec![from("w1", 6)]).is_empty());
    assert!(pins.collect(|| vec![from("w2", 7), from("w1", 7)]).is_empty());
    drop(old);
    assert!(pins.collect(Vec::new).is_empty(), "the copy that left last is still read");
    assert_eq!(pins.retired(&gone.name()).map(|segment| segment.replicas.len()), Some(2));
    drop(new);
    let free = pins.collect(Vec::new);
    assert_eq!(free.len(), 1);
    let mut workers = free[0].segment.replicas.clone();
    workers.sort();
    assert_eq!(workers, ["w1", "w2"].map(WorkerId::from));
    // What comes later is told without them.
    let free = pins.collect(|| vec![from("w3", 8)]);
    assert_eq!(free[0].segment.replicas, [WorkerId::from("w3")]);
}
