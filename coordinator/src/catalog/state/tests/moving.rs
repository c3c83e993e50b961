//! Where shards should be, and where copies of their segments are.

use shoal_data::{ReplicaCount, Segment, SegmentName};
use shoal_proto::{TableId, WorkerId};

use super::{commit, refused, segment, with_table};
use crate::catalog::{Command, Outcome, State, WorkerRecord};

/// `w1 w2, w2` is where two shards live.
fn shards(text: &str) -> Vec<Vec<WorkerId>> {
    text.split(',').map(|shard| shard.split_whitespace().map(WorkerId::from).collect()).collect()
}

#[test]
fn a_copy_is_recorded_once_and_forgotten_with_its_segment() {
    let (mut state, id) = with_table();
    let held = segment(id, 0, "w1");
    state.apply(commit("x", &held)).unwrap();
    let add = |segment: &Segment| Command::AddReplica { table: id, segment: segment.id, worker: "w9".into() };
    assert_eq!(state.apply(add(&held)), Ok(Outcome::Done));
    assert_eq!(state.apply(add(&held)), Ok(Outcome::Unchanged));
    assert_eq!(state.apply(add(&segment(id, 0, "w1"))), Ok(Outcome::Unchanged));
    let replicas = &state.segment(&held.name()).unwrap().replicas;
    assert_eq!(replicas, &[WorkerId::from("w1"), WorkerId::from("w9")]);
}

#[test]
fn a_placement_only_grows() {
    let (mut state, id) = with_table();
    let extend = |shards: [&[&str]; 2]| {
        let placement = shards.map(|shard| shard.iter().copied().map(WorkerId::from).collect()).to_vec();
        Command::ExtendPlacement { table: id, placement }
    };
    assert_eq!(state.apply(extend([&["w1", "w3"], &["w2"]])), Ok(Outcome::Done));
    for stale in
        [extend([&["w1", "w3"], &["w2"]]), extend([&["w1"], &["w2", "w3"]]), extend([&["w3"], &["w2"]])]
    {
        assert_eq!(state.apply(stale), Ok(Outcome::Unchanged));
    }
    assert_eq!(state.table_by_id(id).unwrap().placement[0].len(), 2);
}

#[test]
fn a_worker_that_is_drained_stays_so_however_often_it_joins() {
    let mut state = State::new("c");
    let register = |address: &str, is_draining: bool| Command::RegisterWorker {
        worker: WorkerRecord {
            id: "w1".into(),
            address: address.to_owned(),
            zone: String::new(),
            is_draining,
        },
    };
    let drain = |worker: &str, is_draining: bool| Command::DrainWorker { worker: worker.into(), is_draining };
    let is_draining = |state: &State| state.worker(&"w1".into()).map(|worker| worker.is_draining);
    assert_eq!(state.apply(register("http://a", true)), Ok(Outcome::Done));
    assert_eq!(is_draining(&state), Some(false), "a worker drains itself");
    let unknown = refused(&mut state, drain("w9", true));
    assert_eq!(unknown, "worker `w9` never joined this cluster; there are: w1");
    assert_eq!(state.apply(drain("w1", true)), Ok(Outcome::Done));
    assert_eq!(state.apply(drain("w1", true)), Ok(Outcome::Unchanged));
    assert_eq!(state.apply(register("http://a", false)), Ok(Outcome::Unchanged));
    assert_eq!(state.apply(register("http://b", false)), Ok(Outcome::Done));
    assert_eq!(is_draining(&state), Some(true));
    assert_eq!(state.apply(drain("w1", false)), Ok(Outcome::Done));
    assert_eq!(is_draining(&state), Some(false));
}

#[test]
fn shards_move_only_from_where_they_were_seen() {
    let (mut state, id) = with_table();
    let held = segment(id, 0, "w1");
    state.apply(commit("x", &held)).unwrap();
    let version = state.version;
    let from = |table: TableId, seen: &str, placement: &str| Command::MoveShards {
        table,
        seen: shards(seen),
        placement: shards(placement),
    };
    for stale in [
        from(id, "w2, w2", "w3, w2"),
        from(id, "w1", "w3"),
        from(id, "w1, w2", "w3"),
        // A shard would be nowhere.
        from(id, "w1, w2", "w3,"),
        from(id, "w1, w2", "w1, w2"),
        from(TableId(99), "w1, w2", "w3, w2"),
    ] {
        assert_eq!(state.apply(stale.clone()), Ok(Outcome::Unchanged), "{stale:?}");
    }
    assert_eq!(state.version, version);
    assert_eq!(state.apply(from(id, "w1, w2", "w3 w4, w2")), Ok(Outcome::Done));
    assert_eq!(state.table_by_id(id).unwrap().placement, shards("w3 w4, w2"));
    // What there is stays readable until there are copies.
    assert_eq!(state.segment(&held.name()).unwrap().replicas, [WorkerId::from("w1")]);
    assert!(state.take_dropped().is_empty());
}

#[test]
fn only_copies_that_are_too_many_are_taken_out() {
    let (mut state, id) = with_table();
    let on = |shard: u32, workers: &str| {
        let replicas = workers.split_whitespace().map(WorkerId::from).collect();
        Segment { replicas, ..segment(id, shard, "") }
    };
    let [surplus, last, placed, other] = [on(0, "w1 w9"), on(0, "w9"), on(1, "w2 w9"), on(0, "w1 w9")];
    for (number, segment) in [&surplus, &last, &placed, &other].into_iter().enumerate() {
        state.apply(commit(&number.to_string(), segment)).unwrap();
    }
    let before = state.clone();
    let remove = |worker: &str, segments: &[&Segment]| Command::RemoveReplicas {
        table: id,
        worker: worker.into(),
        segments: segments.iter().map(|segment| segment.id).collect(),
    };
    // `w2` should have it, though not of shard 0.
    assert_eq!(state.apply(remove("w2", &[&surplus, &placed])), Ok(Outcome::Unchanged));
    assert_eq!(state.apply(remove("w9", &[&last])), Ok(Outcome::Unchanged));
    assert_eq!(state.version, before.version);
    assert_eq!(state.apply(remove("w9", &[&surplus, &last])), Ok(Outcome::Done));
    let replicas = |state: &State, segment: &Segment| {
        let names = state.segment(&segment.name()).unwrap().replicas.iter().map(WorkerId::to_string);
        names.collect::<Vec<_>>().join(" ")
    };
    let left = [&surplus, &last, &placed, &other].map(|segment| replicas(&state, segment));
    assert_eq!(left, ["w1", "w9", "w2 w9", "w1 w9"]);
    assert_eq!(replicas(&before, &surplus), "w1 w9", "a snapshot changed");
    let dropped = state.take_dropped();
    assert_eq!(dropped.len(), 1);
    assert_eq!(*dropped[0], Segment { replicas: vec!["w9".into()], ..surplus.clone() });
    assert_eq!(state.apply(remove("w9", &[&surplus])), Ok(Outcome::Unchanged));
    assert!(state.take_dropped().is_empty());
}

#[test]
fn copies_are_recorded_all_at_once_and_those_of_what_is_gone_are_not() {
    let (mut state, id) = with_table();
    let [a, b] = [0, 1].map(|shard| segment(id, shard, "w1"));
    state.apply(commit("a", &a)).unwrap();
    state.apply(commit("b", &b)).unwrap();
    let (before, gone) = (state.clone(), segment(id, 0, "w1"));
    let of_no_table = SegmentName { table: TableId(99), ..a.name() };
    let copies = Command::AddReplicas {
        copies: vec![
            ("w2".into(), vec![a.name(), gone.name(), b.name(), of_no_table]),
            ("w3".into(), vec![b.name(), b.name()]),
            ("w1".into(), vec![a.name()]),
        ],
    };
    assert_eq!(state.apply(copies.clone()), Ok(Outcome::Done));
    assert_eq!(state.version, before.version + 1);
    let replicas = |state: &State, segment: &Segment| {
        let names = state.segment(&segment.name()).unwrap().replicas.iter().map(WorkerId::to_string);
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!([&a, &b].map(|segment| replicas(&state, segment)), ["w1 w2", "w1 w2 w3"]);
    assert_eq!([&a, &b].map(|segment| replicas(&before, segment)), ["w1", "w1"], "a snapshot changed");
    assert_eq!(state.apply(copies), Ok(Outcome::Unchanged));
    let old = Command::AddReplica { table: id, segment: a.id, worker: "w4".into() };
    assert_eq!(state.apply(old.clone()), Ok(Outcome::Done));
    assert_eq!(state.apply(old), Ok(Outcome::Unchanged));
    assert_eq!(replicas(&state, &a), "w1 w2 w4");
}

#[test]
fn a_table_asks_for_another_number_of_copies() {
    let (mut state, id) = with_table();
    let set = |name: &str, replicas: ReplicaCount| Command::SetReplicas {
        schema_name: "public".into(),
        name: name.to_owned(),
        replicas,
    };
    let unknown = refused(&mut state, set("u", ReplicaCount::All));
    assert_eq!(unknown, "table `public.u` does not exist");
    assert_eq!(state.apply(set("t", ReplicaCount::Count(1))), Ok(Outcome::Unchanged));
    for replicas in [ReplicaCount::Count(2), ReplicaCount::All] {
        assert_eq!(state.apply(set("t", replicas)), Ok(Outcome::Done));
        let table = state.table_by_id(id).unwrap();
        assert_eq!(table.layout.replicas, replicas);
        assert_eq!(table.placement, shards("w1, w2"), "where to is not decided here");
    }
}
