//! Segments that take the place of others.

use shoal_data::{ColumnStatistics, PackedStatistics, Segment};
use shoal_proto::{TableId, WorkerId};

use super::{commit, refused, segment, with_table};
use crate::catalog::{Command, Outcome, State, WriteRecord};

/// A segment with these rows, on these workers.
fn with_rows(table: TableId, shard: u32, rows: u64, workers: &str) -> Segment {
    let replicas = workers.split_whitespace().map(WorkerId::from).collect();
    Segment { rows, replicas, ..segment(table, shard, "") }
}

fn compact(table: TableId, shard: u32, old: &[&Segment], new: &[&Segment]) -> Command {
    let old = old.iter().map(|segment| segment.id).collect();
    Command::Compact { table, shard, old, new: new.iter().map(|segment| (*segment).clone()).collect() }
}

/// A state with the table `t` and four segments: three of shard 0, the second
/// one of shard 1.
fn with_segments() -> (State, TableId, [Segment; 4]) {
    let (mut state, id) = with_table();
    let segments = [(0, 10), (1, 7), (0, 20), (0, 30)].map(|(shard, rows)| with_rows(id, shard, rows, "w1"));
    for (number, segment) in segments.iter().enumerate() {
        state.apply(commit(&number.to_string(), segment)).unwrap();
    }
    (state, id, segments)
}

#[test]
fn segments_are_compacted_all_at_once() {
    let (mut state, id, [a, b, c, d]) = with_segments();
    let (before, version) = (state.clone(), state.version);
    let one = with_rows(id, 0, 40, "w1 w2");
    assert_eq!(state.apply(compact(id, 0, &[&a, &d], &[&one])), Ok(Outcome::Done));
    assert_eq!(state.version, version + 1);
    let ids = |state: &State| -> Vec<_> {
        state.table_by_id(id).unwrap().segments.iter().map(|segment| segment.id).collect()
    };
    // In the place of the first of them.
    assert_eq!(ids(&state), [one.id, b.id, c.id]);
    assert_eq!(ids(&before), [a.id, b.id, c.id, d.id], "a snapshot changed");
    assert_eq!(state.table_by_id(id).unwrap().rows(), before.table_by_id(id).unwrap().rows());
    let dropped: Vec<_> = state.take_dropped().iter().map(|segment| segment.id).collect();
    assert_eq!(dropped, [a.id, d.id]);
    // What was written stays written.
    assert_eq!(state.written(&"0".into()), Some(10));
    assert_eq!(state.apply(commit("0", &a)), Ok(Outcome::AlreadyWritten { rows: 10 }));
    assert_eq!(state.writes().count(), 4);
    // One may become several, and the same command again finds nothing.
    assert_eq!(state.apply(compact(id, 0, &[&a, &d], &[&one])), Ok(Outcome::Unchanged));
    let two = [with_rows(id, 0, 35, "w1 w2"), with_rows(id, 0, 25, "w2 w1")];
    assert_eq!(state.apply(compact(id, 0, &[&one, &c], &[&two[0], &two[1]])), Ok(Outcome::Done));
    assert_eq!(ids(&state), [two[0].id, two[1].id, b.id]);
}

#[test]
fn segments_that_are_gone_are_not_compacted() {
    let (mut state, id, [a, b, c, d]) = with_segments();
    let one = with_rows(id, 0, 30, "w1");
    let gone = with_rows(id, 0, 10, "w1");
    for stale in [
        compact(id, 0, &[&gone, &c], &[&one]),
        compact(id, 0, &[&a, &c, &gone], &[&one]),
        // Of another shard, of another table, and none at all.
        compact(id, 0, &[&a, &b], &[&one]),
        compact(id, 1, &[&a, &c], &[&one]),
        compact(TableId(99), 0, &[&a, &c], &[&one]),
        compact(id, 0, &[], &[&one]),
    ] {
        let before = serde_json::to_string(&state).unwrap();
        assert_eq!(state.apply(stale.clone()), Ok(Outcome::Unchanged), "{stale:?}");
        assert_eq!(serde_json::to_string(&state).unwrap(), before, "{stale:?}");
    }
    assert!(state.take_dropped().is_empty());
    // Another write took the place of all.
    let write = WriteRecord { id: "r".into(), rows: 10 };
    state
        .apply(Command::CommitWrite { write, table: id, segments: vec![], replace: true, sketches: None })
        .unwrap();
    assert_eq!(state.apply(compact(id, 0, &[&a, &c, &d], &[&one])), Ok(Outcome::Unchanged));
}

#[test]
fn rows_do_not_have_fewer_copies_when_they_were_compacted() {
    let (mut state, id, [a, _, c, _]) = with_segments();
    let add = |segment: &Segment, worker: &str| Command::AddReplica {
        table: id,
        segment: segment.id,
        worker: worker.into(),
    };
    // The shard went to other workers meanwhile.
    state.apply(add(&c, "w5")).unwrap();
    let (elsewhere, both) = (with_rows(id, 0, 30, "w1"), with_rows(id, 0, 30, "w1 w5"));
    assert_eq!(state.apply(compact(id, 0, &[&a, &c], &[&elsewhere])), Ok(Outcome::Unchanged));
    let halves = [with_rows(id, 0, 15, "w1 w5"), with_rows(id, 0, 15, "w1")];
    assert_eq!(state.apply(compact(id, 0, &[&a, &c], &[&halves[0], &halves[1]])), Ok(Outcome::Unchanged));
    assert_eq!(state.apply(compact(id, 0, &[&a, &c], &[&both])), Ok(Outcome::Done));
}

#[test]
fn a_compaction_that_loses_or_makes_rows_is_refused() {
    let (mut state, id, [a, _, c, _]) = with_segments();
    let right = with_rows(id, 0, 30, "w1");
    let nulls = ColumnStatistics { nulls: 1, ..ColumnStatistics::default() };
    for (wrong, why) in [
        (with_rows(id, 0, 29, "w1"), "30 rows became 29"),
        (with_rows(id, 0, 31, "w1"), "30 rows became 31"),
        (Segment { columns: vec![nulls].into(), ..right.clone() }, "nulls [0] and [1]"),
        (Segment { columns: PackedStatistics::default(), ..right.clone() }, "other columns"),
        (with_rows(id, 1, 30, "w1"), "is not of shard 0"),
        (Segment { table: TableId(99), ..right.clone() }, "not of this table"),
        (Segment { id: a.id, ..right.clone() }, "committed already"),
    ] {
        let error = refused(&mut state, compact(id, 0, &[&a, &c], &[&wrong]));
        assert!(error.contains(why), "{error}");
    }
    assert!(refused(&mut state, compact(id, 0, &[&a, &c], &[])).contains("30 rows became 0"));
    assert!(state.take_dropped().is_empty());
    assert_eq!(state.apply(compact(id, 0, &[&a, &c], &[&right])), Ok(Outcome::Done));
}
