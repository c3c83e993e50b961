//! Claims about the state machine.

use arrow::datatypes::{DataType, Field, Schema};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use shoal_data::{ColumnStatistics, KeyHash, PackedStatistics, ReplicaCount, TableLayout};

use super::*;

pub(crate) fn table(id: TableId, name: &str) -> Table {
    Table {
        id,
        schema_name: SCHEMA_DEFAULT.to_owned(),
        name: name.to_owned(),
        columns: Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)])),
        layout: TableLayout {
            shards: 2,
            replicas: ReplicaCount::Count(1),
            shard_key: vec!["a".to_owned()],
            sort_key: vec![],
            hash: KeyHash::DataFusion55,
            bloom_filters: Vec::new(),
        },
        placement: vec![vec!["w1".into()], vec!["w2".into()]],
        segments: vec![],
        sketches: None,
    }
}

pub(crate) fn segment(table: TableId, shard: u32, worker: &str) -> Segment {
    Segment {
        id: SegmentId::random(),
        table,
        shard,
        rows: 10,
        bytes: 100,
        crc32c: 7,
        columns: vec![ColumnStatistics::default()].into(),
        replicas: vec![worker.into()],
    }
}

pub(crate) fn create(table: Table) -> Command {
    Command::CreateTable { table, if_not_exists: false, write: None }
}

pub(crate) fn commit(id: &str, segment: &Segment) -> Command {
    Command::CommitWrite {
        write: WriteRecord { id: id.into(), rows: segment.rows },
        table: segment.table,
        segments: vec![segment.clone()],
        replace: false,
        sketches: None,
    }
}

/// Some tables, some workers, and segments that are anywhere: the same for the
/// same seed, but for the ids of segments.
pub(crate) fn random(seed: u64) -> State {
    let mut random = StdRng::seed_from_u64(seed);
    let mut some = |least: usize, most: usize| -> Vec<WorkerId> {
        let mut all: Vec<WorkerId> = (0..10).map(|number| WorkerId::new(format!("w{number}"))).collect();
        all.shuffle(&mut random);
        all.truncate(random.random_range(least..=most));
        all
    };
    let mut state = State::new("c");
    for id in some(8, 10) {
        let (address, zone) = (format!("http://{id}"), String::new());
        let worker = WorkerRecord { id, address, zone, is_draining: false };
        state.apply(Command::RegisterWorker { worker }).unwrap();
    }
    for number in 0..4 {
        let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else {
            panic!("no table id");
        };
        let mut table = table(id, &format!("t{number}"));
        let shards = some(1, 5).len();
        table.layout.shards = u32::try_from(shards).unwrap();
        table.layout.replicas = ReplicaCount::Count(2);
        table.placement = (0..shards).map(|_| some(1, 3)).collect();
        for place in 0..some(0, 10).len() * 3 {
            let shard = (place * 7 + some(1, 2).len()) % shards;
            let is_right = some(0, 1).is_empty();
            let replicas = if is_right { table.placement[shard].clone() } else { some(1, 4) };
            let bytes = 100 * some(1, 10).len() as u64;
            let shard = u32::try_from(shard).unwrap();
            table.segments.push(Arc::new(Segment { replicas, bytes, ..segment(id, shard, "") }));
        }
        state.apply(create(table)).unwrap();
    }
    state
}

/// A state with the table `t`.
fn with_table() -> (State, TableId) {
    let mut state = State::new("c");
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else {
        panic!("no table id");
    };
    state.apply(create(table(id, "t"))).unwrap();
    (state, id)
}

fn refused(state: &mut State, command: Command) -> String {
    let before = serde_json::to_string(state).unwrap();
    let error = state.apply(command).unwrap_err();
    assert_eq!(serde_json::to_string(state).unwrap(), before, "a refused command changed something");
    error.to_string()
}

#[test]
fn a_write_that_is_sent_twice_happens_once() {
    let (mut state, id) = with_table();
    let first = segment(id, 0, "w1");
    assert_eq!(state.apply(commit("x", &first)), Ok(Outcome::Done));
    let version = state.version;
    let again = segment(id, 1, "w2");
    assert_eq!(state.apply(commit("x", &again)), Ok(Outcome::AlreadyWritten { rows: 10 }));
    assert_eq!(state.version, version);
    assert_eq!(state.table("public", "t").unwrap().segments.len(), 1);
    assert_eq!(state.written(&"x".into()), Some(10));
    // Also when its table is gone, and also as CREATE TABLE AS.
    state
        .apply(Command::DropTable { schema_name: "public".into(), name: "t".into(), if_exists: false })
        .unwrap();
    assert_eq!(state.apply(commit("x", &again)), Ok(Outcome::AlreadyWritten { rows: 10 }));
    let write = Some(WriteRecord { id: "x".into(), rows: 3 });
    let twice = Command::CreateTable { table: table(TableId(9), "u"), if_not_exists: false, write };
    assert_eq!(state.apply(twice), Ok(Outcome::AlreadyWritten { rows: 10 }));
}

#[test]
fn old_writes_are_forgotten_in_order() {
    let (mut state, id) = with_table();
    for number in 0..=WRITES_MAX {
        let write = WriteRecord { id: WriteId::new(number.to_string()), rows: 1 };
        let command =
            Command::CommitWrite { write, table: id, segments: vec![], replace: false, sketches: None };
        assert_eq!(state.apply(command), Ok(Outcome::Done));
    }
    assert_eq!(state.written(&"0".into()), None);
    assert_eq!(state.written(&"1".into()), Some(1));
    let copy: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    assert_eq!(copy.written(&"0".into()), None);
    assert_eq!(copy.writes().count(), WRITES_MAX);
    assert_eq!(copy.writes().next().map(|write| write.id.as_str()), Some("1"));
    assert_eq!(copy.written(&WriteId::new(WRITES_MAX.to_string())), Some(1));
}

#[test]
fn a_name_is_used_once_whatever_it_names() {
    let (mut state, _) = with_table();
    let view = |name: &str| View {
        default_schema: None,
        schema_name: "public".into(),
        name: name.into(),
        sql: "SELECT 1".into(),
        columns: None,
    };
    let taken = refused(&mut state, Command::CreateView { view: view("t"), or_replace: true });
    assert_eq!(taken, "table `public.t` already exists");
    state.apply(Command::CreateView { view: view("v"), or_replace: false }).unwrap();
    state.apply(Command::CreateView { view: view("v"), or_replace: true }).unwrap();
    let taken = refused(&mut state, Command::CreateView { view: view("v"), or_replace: false });
    assert_eq!(taken, "view `public.v` already exists");
    let id = TableId(state.next_table);
    state.apply(Command::ReserveTable).unwrap();
    let taken = refused(&mut state, create(table(id, "v")));
    assert_eq!(taken, "view `public.v` already exists");
    let tolerated = Command::CreateTable { table: table(id, "t"), if_not_exists: true, write: None };
    assert_eq!(state.apply(tolerated), Ok(Outcome::Unchanged));
}

#[test]
fn what_is_not_there_is_named() {
    let mut state = State::new("c");
    let drop = |if_exists| Command::DropTable { schema_name: "public".into(), name: "t".into(), if_exists };
    assert_eq!(refused(&mut state, drop(false)), "table `public.t` does not exist");
    assert_eq!(state.apply(drop(true)), Ok(Outcome::Unchanged));
    let late = refused(&mut state, commit("x", &segment(TableId(7), 0, "w1")));
    assert!(late.contains("dropped"), "{late}");
    assert_eq!(state.version, 0);
}

#[test]
fn table_ids_are_never_used_again() {
    let (mut state, id) = with_table();
    state
        .apply(Command::DropTable { schema_name: "public".into(), name: "t".into(), if_exists: false })
        .unwrap();
    assert_eq!(state.apply(Command::ReserveTable), Ok(Outcome::Table(TableId(id.0 + 1))));
    let wrong = refused(&mut state, create(table(TableId(99), "t")));
    assert!(wrong.contains("not reserved"), "{wrong}");
}

#[test]
fn segments_that_cannot_be_are_refused() {
    let (mut state, id) = with_table();
    let right = segment(id, 0, "w1");
    for (wrong, why) in [
        (Segment { shard: 2, ..right.clone() }, "not of this table"),
        (Segment { replicas: vec![], ..right.clone() }, "on no worker"),
        (Segment { columns: PackedStatistics::default(), ..right.clone() }, "other columns"),
    ] {
        let error = refused(&mut state, commit("x", &wrong));
        assert!(error.contains(why), "{error}");
    }
    state.apply(commit("x", &right)).unwrap();
    let error = refused(&mut state, commit("y", &right));
    assert!(error.contains("committed already"), "{error}");
}

#[test]
fn everything_dropped_is_named_once() {
    let (mut state, id) = with_table();
    let [a, b, c] = [0, 1, 0].map(|shard| segment(id, shard, "w1"));
    state.apply(commit("a", &a)).unwrap();
    state.apply(commit("b", &b)).unwrap();
    assert!(state.take_dropped().is_empty());
    let write = WriteRecord { id: "c".into(), rows: 10 };
    state
        .apply(Command::CommitWrite {
            write,
            table: id,
            segments: vec![c.clone()],
            replace: true,
            sketches: None,
        })
        .unwrap();
    let ids = |dropped: Vec<Arc<Segment>>| dropped.iter().map(|segment| segment.id).collect::<Vec<_>>();
    assert_eq!(ids(state.take_dropped()), [a.id, b.id]);
    assert_eq!(state.segment(&c.name()).map(|segment| segment.id), Some(c.id));
    assert!(state.segment(&a.name()).is_none());
    state.apply(Command::ReserveTable).unwrap();
    let replaced = Command::ReplaceTable { table: table(TableId(id.0 + 1), "t"), write: None };
    assert_eq!(state.apply(replaced), Ok(Outcome::Done));
    assert_eq!(ids(state.take_dropped()), [c.id]);
    assert!(state.take_dropped().is_empty());
}

#[test]
fn a_schema_takes_what_it_holds_only_with_cascade() {
    let mut state = State::new("c");
    state.apply(Command::CreateSchema { name: "s".into(), if_not_exists: false }).unwrap();
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else {
        panic!("no table id");
    };
    let held = segment(id, 0, "w1");
    let inside = Table { schema_name: "s".into(), segments: vec![Arc::new(held.clone())], ..table(id, "t") };
    state.apply(create(inside)).unwrap();
    let drop = |cascade| Command::DropSchema { name: "s".into(), if_exists: false, cascade };
    assert!(refused(&mut state, drop(false)).contains("CASCADE"));
    state.apply(drop(true)).unwrap();
    assert_eq!(state.take_dropped().len(), 1);
    assert!(!state.has_schema("s"));
    let kept = Command::DropSchema { name: SCHEMA_DEFAULT.into(), if_exists: false, cascade: true };
    assert!(refused(&mut state, kept).contains("cannot be dropped"));
}

#[test]
fn a_snapshot_does_not_see_later_commands() {
    let (mut state, id) = with_table();
    let before = state.clone();
    state.apply(commit("x", &segment(id, 0, "w1"))).unwrap();
    assert!(before.table("public", "t").unwrap().segments.is_empty());
    assert_eq!(state.table("public", "t").unwrap().segments.len(), 1);
}

#[test]
fn a_state_survives_json() {
    let (mut state, id) = with_table();
    state.apply(commit("x", &segment(id, 0, "w1"))).unwrap();
    let worker =
        WorkerRecord { id: "w1".into(), address: "http://a".into(), zone: "z".into(), is_draining: false };
    state.apply(Command::RegisterWorker { worker: worker.clone() }).unwrap();
    let view = View {
        schema_name: "public".into(),
        name: "v".into(),
        sql: "SELECT 1".into(),
        columns: None,
        default_schema: None,
    };
    state.apply(Command::CreateView { view, or_replace: false }).unwrap();
    let external = ExternalTable {
        schema_name: "public".into(),
        name: "e".into(),
        columns: Arc::clone(&state.table("public", "t").unwrap().columns),
        format: "CSV".into(),
        location: "/data/*.csv".into(),
        options: BTreeMap::from([("delimiter".into(), ";".into())]),
    };
    state
        .apply(Command::CreateExternal { table: external, if_not_exists: false, or_replace: false })
        .unwrap();
    let json = serde_json::to_string(&state).unwrap();
    let copy: State = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&copy).unwrap(), json);
    assert_eq!(copy.worker(&"w1".into()), Some(&worker));
    assert_eq!(copy.table_by_id(id).map(|table| table.rows()), Some(10));
    assert_eq!(copy.view("public", "v"), state.view("public", "v"));
    assert_eq!(copy.external("public", "e"), state.external("public", "e"));
}

#[test]
fn commands_on_disk_stay_readable() {
    for json in [
        r#"{"move_shards":{"table":1,"seen":[["w1"],["w2"]],"placement":[["w3"],["w2","w1"]]}}"#,
        r#"{"remove_replicas":{"table":1,"worker":"w9","segments":[]}}"#,
        r#"{"compact":{"table":1,"shard":3,"old":[],"new":[]}}"#,
        r#"{"set_replicas":{"schema_name":"public","name":"t","replicas":{"count":2}}}"#,
        r#"{"set_replicas":{"schema_name":"public","name":"t","replicas":"all"}}"#,
        r#"{"drain_worker":{"worker":"w1","is_draining":true}}"#,
        r#"{"add_replicas":{"copies":[["w1",[{"table":1,"shard":0,"segment":"00000000-0000-0000-0000-000000000007"}]]]}}"#,
        r#"{"add_replica":{"table":1,"segment":"00000000-0000-0000-0000-000000000007","worker":"w1"}}"#,
    ] {
        let command: Command = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&command).unwrap(), json);
    }
    // Written before workers could be drained.
    let old = r#"{"register_worker":{"worker":{"id":"w1","address":"http://a","zone":"z"}}}"#;
    let Command::RegisterWorker { worker } = serde_json::from_str(old).unwrap() else {
        panic!("read as something else");
    };
    let expected =
        WorkerRecord { id: "w1".into(), address: "http://a".into(), zone: "z".into(), is_draining: false };
    assert_eq!(worker, expected);
    let (mut state, _) = with_table();
    state.apply(Command::RegisterWorker { worker }).unwrap();
    let json = serde_json::to_string(&state).unwrap();
    let old = json.replace(",\"is_draining\":false", "");
    assert_ne!(old, json);
    let read: State = serde_json::from_str(&old).unwrap();
    assert_eq!(read.worker(&"w1".into()), Some(&expected));
}

mod compacting;
mod moving;
