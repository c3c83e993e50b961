//! Claims about copies that are lost before the change that names them.

use shoal_data::{Segment, SegmentName, Table};
use shoal_proto::{SegmentId, TableId};

use super::*;
use crate::catalog::WriteRecord;
use crate::catalog::state::tests::{commit, create, segment, table};

fn register(state: &mut State, worker: &str, disk: &str) -> Outcome {
    state.apply(Command::RegisterDisk { worker: worker.into(), disk: disk.to_owned() }).unwrap()
}

fn ids(workers: &[&str]) -> Vec<WorkerId> {
    workers.iter().copied().map(WorkerId::from).collect()
}

/// A table of three copies.
fn three_copies(id: TableId, name: &str) -> Table {
    let mut table = table(id, name);
    table.placement = vec![ids(&["w1", "w2", "w3"]); 2];
    table
}

/// A state with that table, and three workers on their first disks.
fn with_table() -> (State, TableId) {
    let mut state = State::new("c");
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else {
        panic!("no table id");
    };
    state.apply(create(three_copies(id, "t"))).unwrap();
    for worker in ["w1", "w2", "w3"] {
        assert_eq!(register(&mut state, worker, "first"), Outcome::Done);
    }
    (state, id)
}

/// A segment on all three.
fn written(table: TableId) -> Segment {
    Segment { replicas: ids(&["w1", "w2", "w3"]), ..segment(table, 0, "") }
}

/// That a segment is on this disk of each of its workers.
fn all_on(segment: &Segment, disk: &str) -> Vec<(SegmentId, WorkerId, String)> {
    segment.replicas.iter().map(|worker| (segment.id, worker.clone(), disk.to_owned())).collect()
}

fn replicas(state: &State, segment: &Segment) -> Vec<WorkerId> {
    state.segment(&segment.name()).unwrap().replicas.clone()
}

#[test]
fn a_copy_that_was_lost_before_its_commit_does_not_count() {
    let (mut state, id) = with_table();
    let [before, between, after] = [(); 3].map(|()| written(id));
    let change = |name: &str, segment: &Segment| commit(name, segment).on_disks(all_on(segment, "first"));
    assert_eq!(state.apply(change("a", &before)), Ok(Outcome::Done));
    assert_eq!(register(&mut state, "w1", "first"), Outcome::Unchanged, "it has only restarted");
    assert_eq!(state.apply(change("b", &between)), Ok(Outcome::Done));
    assert_eq!(register(&mut state, "w1", "second"), Outcome::Done);
    let version = state.version;
    assert_eq!(state.apply(change("c", &after)), Ok(Outcome::Done));
    assert_eq!(state.version, version + 1);
    // What it had before, it says when it joins.
    for whole in [&before, &between] {
        assert_eq!(replicas(&state, whole), ids(&["w1", "w2", "w3"]));
    }
    assert_eq!(replicas(&state, &after), ids(&["w2", "w3"]));
    // What it says nothing of, and who never said what disk it has, is believed.
    let silent = written(id);
    assert_eq!(state.apply(commit("d", &silent).on_disks(all_on(&silent, ""))), Ok(Outcome::Done));
    let stranger = Segment { replicas: ids(&["w2", "w9"]), ..segment(id, 1, "") };
    let change = commit("e", &stranger).on_disks(all_on(&stranger, "first"));
    assert_eq!(state.apply(change), Ok(Outcome::Done));
    assert_eq!(replicas(&state, &silent), ids(&["w1", "w2", "w3"]));
    assert_eq!(replicas(&state, &stranger), ids(&["w2", "w9"]));
}

#[test]
fn a_write_whose_majority_was_lost_before_its_commit_is_refused() {
    let (mut state, id) = with_table();
    let done = written(id);
    state.apply(commit("done", &done)).unwrap();
    for worker in ["w1", "w3"] {
        register(&mut state, worker, "second");
    }
    let lost = written(id);
    let version = state.version;
    let named = || all_on(&lost, "first");
    let error = state.apply(commit("lost", &lost).on_disks(named())).unwrap_err();
    assert!(matches!(error, CatalogError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("shard 0 is on 1 of its 3 workers"), "{error}");
    let Ok(Outcome::Table(new)) = state.apply(Command::ReserveTable) else {
        panic!("no table id");
    };
    let mut as_select = three_copies(new, "u");
    as_select.segments = vec![std::sync::Arc::new(Segment { table: new, ..lost.clone() })];
    let error = state.apply(create(as_select).on_disks(named())).unwrap_err();
    assert!(matches!(error, CatalogError::Unavailable(_)), "{error:?}");
    assert_eq!((state.version, state.written(&"lost".into())), (version + 1, None));
    assert!(state.table("public", "u").is_none());
    // One that is sent again is answered as it was the first time.
    let again = commit("done", &lost).on_disks(named());
    assert_eq!(state.apply(again), Ok(Outcome::AlreadyWritten { rows: 10 }));
}

#[test]
fn of_a_worker_that_changed_its_disk_during_a_write_only_what_came_after_counts() {
    let (mut state, id) = with_table();
    let [old, new] = [(); 2].map(|()| written(id));
    register(&mut state, "w1", "second");
    let mut copies = all_on(&old, "first");
    copies.extend(all_on(&new, "first"));
    for (segment, worker, disk) in &mut copies {
        if *segment == new.id && worker.as_str() == "w1" {
            *disk = "second".to_owned();
        }
    }
    let both = Command::CommitWrite {
        write: WriteRecord { id: "x".into(), rows: 20 },
        table: id,
        segments: vec![old.clone(), new.clone()],
        replace: false,
        sketches: None,
    };
    let change = both.on_disks(copies);
    assert_eq!((change.segments(), change.write().map(|write| write.rows)), (2, Some(20)));
    state.apply(change).unwrap();
    assert_eq!(replicas(&state, &old), ids(&["w2", "w3"]));
    assert_eq!(replicas(&state, &new), ids(&["w1", "w2", "w3"]));
}

#[test]
fn copies_that_were_made_on_a_disk_that_is_gone_are_not_recorded() {
    let (mut state, id) = with_table();
    let one = Segment { replicas: ids(&["w2"]), ..segment(id, 0, "") };
    state.apply(commit("x", &one)).unwrap();
    let SegmentName { segment, .. } = one.name();
    let record = |disk: &str| {
        let copies = vec![("w1".into(), vec![one.name()])];
        Command::AddReplicas { copies }.on_disks([(segment, "w1".into(), disk.to_owned())])
    };
    register(&mut state, "w1", "second");
    assert_eq!(state.apply(record("first")), Ok(Outcome::Unchanged));
    assert_eq!(replicas(&state, &one), ids(&["w2"]));
    assert_eq!(state.apply(record("second")), Ok(Outcome::Done));
    assert_eq!(replicas(&state, &one), ids(&["w2", "w1"]));
}

#[test]
fn a_compaction_that_lost_a_copy_changes_nothing() {
    let (mut state, id) = with_table();
    let old = written(id);
    state.apply(commit("x", &old)).unwrap();
    let new = written(id);
    let compact = || {
        let change = Command::Compact { table: id, shard: 0, old: vec![old.id], new: vec![new.clone()] };
        change.on_disks(all_on(&new, "first"))
    };
    register(&mut state, "w2", "second");
    assert_eq!(state.apply(compact()), Ok(Outcome::Unchanged));
    assert!(state.segment(&old.name()).is_some());
    register(&mut state, "w2", "first");
    assert_eq!(state.apply(compact()), Ok(Outcome::Done));
    assert_eq!(replicas(&state, &new), ids(&["w1", "w2", "w3"]));
}

#[test]
fn disks_survive_a_snapshot() {
    let (mut state, _) = with_table();
    register(&mut state, "w1", "second");
    let (read, ()): (State, ()) = State::from_bytes(&state.to_bytes(&()).unwrap()).unwrap();
    assert_eq!((read.disk(&"w1".into()), read.disk(&"w2".into())), (Some("second"), Some("first")));
    assert_eq!(read.disk(&"w9".into()), None);
}
