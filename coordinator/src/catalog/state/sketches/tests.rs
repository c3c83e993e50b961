//! Claims about what tables know of distinct values.

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use shoal_proto::TableId;

use super::*;
use crate::catalog::state::tests::{create, segment, table};
use crate::catalog::{Command, Outcome, State, WriteRecord};

/// Those of these numbers.
fn of(values: std::ops::Range<i64>) -> Option<Arc<Sketches>> {
    let values: ArrayRef = Arc::new(values.collect::<Int64Array>());
    Sketches::of_rows(&RecordBatch::try_from_iter([("a", values)]).unwrap()).map(Arc::new)
}

/// A state with one table of no rows.
fn with_table() -> (State, TableId) {
    let mut state = State::new("c");
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else { panic!() };
    state.apply(create(table(id, "t"))).unwrap();
    (state, id)
}

/// A write of one segment.
fn write(table: TableId, name: &str, sketches: Option<Arc<Sketches>>, replace: bool) -> Command {
    let segments = vec![segment(table, 0, "w1")];
    let write = WriteRecord { id: name.into(), rows: 10 };
    Command::CommitWrite { write, table, segments, replace, sketches }
}

fn known(state: &State, id: TableId) -> Option<u64> {
    state.table_by_id(id).unwrap().sketches.as_ref()?.distinct(0)
}

/// As it comes out of a snapshot.
fn restarted(state: &State) -> State {
    State::from_bytes::<()>(&state.to_bytes(&()).unwrap()).unwrap().0
}

/// A command as it comes out of the log.
fn logged(command: &Command) -> Command {
    serde_json::from_str(&serde_json::to_string(command).unwrap()).unwrap()
}

#[test]
fn what_writes_bring_is_put_together_and_kept() {
    let (mut state, id) = with_table();
    for (name, values) in [("one", 0..30), ("two", 20..40), ("three", 0..40)] {
        state.apply(logged(&write(id, name, of(values), false))).unwrap();
        state = restarted(&state);
    }
    assert_eq!(state.table_by_id(id).unwrap().sketches, of(0..40));
    // The same write again brings nothing.
    state.apply(write(id, "two", of(1_000..2_000), false)).unwrap();
    assert_eq!(state.table_by_id(id).unwrap().sketches, of(0..40));
}

#[test]
fn a_write_that_brings_none_makes_it_unknown_for_ever() {
    let (mut state, id) = with_table();
    state.apply(write(id, "one", of(0..30), false)).unwrap();
    assert!(known(&state, id).is_some());
    state.apply(write(id, "older", None, false)).unwrap();
    assert_eq!(known(&state, id), None);
    state.apply(write(id, "two", of(0..30), false)).unwrap();
    assert_eq!(known(&state, id), None);
    assert_eq!(known(&restarted(&state), id), None);
}

#[test]
fn all_rows_that_are_replaced_are_forgotten() {
    let (mut state, id) = with_table();
    state.apply(write(id, "older", None, false)).unwrap();
    state.apply(write(id, "all", of(0..5), true)).unwrap();
    assert_eq!(state.table_by_id(id).unwrap().sketches, of(0..5));
}

#[test]
fn rows_that_nothing_replaces_are_forgotten_too() {
    let (mut state, id) = with_table();
    state.apply(write(id, "one", of(0..30), false)).unwrap();
    let record = WriteRecord { id: "nothing".into(), rows: 0 };
    let nothing =
        Command::CommitWrite { write: record, table: id, segments: vec![], replace: true, sketches: None };
    state.apply(nothing).unwrap();
    for state in [&state, &restarted(&state)] {
        let table = state.table_by_id(id).unwrap();
        assert_eq!((table.rows(), &table.sketches), (0, &Some(Arc::default())));
    }
    state.apply(write(id, "two", of(40..45), false)).unwrap();
    assert_eq!(state.table_by_id(id).unwrap().sketches, of(40..45));
}

#[test]
fn a_write_without_rows_changes_nothing() {
    let (mut state, id) = with_table();
    state.apply(write(id, "one", of(0..30), false)).unwrap();
    let record = WriteRecord { id: "nothing".into(), rows: 0 };
    let nothing =
        Command::CommitWrite { write: record, table: id, segments: vec![], replace: false, sketches: None };
    state.apply(nothing).unwrap();
    assert_eq!(state.table_by_id(id).unwrap().sketches, of(0..30));
}

#[test]
fn sketches_of_other_columns_are_not_taken() {
    let two: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let rows = RecordBatch::try_from_iter([("a", Arc::clone(&two)), ("b", two)]).unwrap();
    let other = Sketches::of_rows(&rows).map(Arc::new);
    let (mut state, id) = with_table();
    state.apply(write(id, "one", other.clone(), false)).unwrap();
    assert_eq!(known(&state, id), None);
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else { panic!() };
    let made = Table { sketches: other, segments: vec![Arc::new(segment(id, 0, "w1"))], ..table(id, "u") };
    state.apply(create(made)).unwrap();
    assert_eq!(known(&state, id), None);
}

#[test]
fn a_compaction_leaves_it_as_it_is() {
    let (mut state, id) = with_table();
    state.apply(write(id, "one", of(0..30), false)).unwrap();
    let old = state.table_by_id(id).unwrap().segments[0].id;
    let new = vec![segment(id, 0, "w1")];
    let outcome = state.apply(Command::Compact { table: id, shard: 0, old: vec![old], new }).unwrap();
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(state.table_by_id(id).unwrap().sketches, of(0..30));
}

#[test]
fn a_snapshot_and_a_log_from_before_are_read_and_know_nothing() {
    let (mut state, id) = with_table();
    state.apply(write(id, "one", of(0..30), false)).unwrap();
    let mut json = serde_json::to_value(&state).unwrap();
    let table = &mut json["tables"][0];
    assert!(table.as_object_mut().unwrap().remove("sketches").is_some(), "{table}");
    let mut before: State = serde_json::from_value(json).unwrap();
    assert_eq!((known(&before, id), before.table_by_id(id).unwrap().rows()), (None, 10));
    assert_eq!(known(&restarted(&before), id), None);
    // A command from then, on a table that has rows: not known either.
    let mut command = serde_json::to_value(write(id, "two", of(0..9), false)).unwrap();
    assert!(command["commit_write"].as_object_mut().unwrap().remove("sketches").is_some(), "{command}");
    before.apply(serde_json::from_value(command).unwrap()).unwrap();
    assert_eq!((known(&before, id), before.table_by_id(id).unwrap().rows()), (None, 20));
}

#[test]
fn a_command_without_sketches_is_written_as_it_was_before() {
    let (_, id) = with_table();
    let mut command = write(id, "one", of(0..30), false).on_disks([]);
    command.leave_out_sketches();
    let json = serde_json::to_value(&command).unwrap();
    assert!(json["commit_write"].get("sketches").is_none(), "{json}");
}
