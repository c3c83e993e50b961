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
        },
        placement: vec![vec!["w1".into()], vec!["w2".into()]],
        segments: vec![],
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
        let command = Command::CommitWrite { write, table: id, segments: vec![], replace: false };
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
    state.apply(Command::CommitWrite { write, table: id, segments: vec![c.clone()], replace: true }).unwrap();
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

/// `w1 w2, w2` is where two shards live.
fn shards(text: &str) -> Vec<Vec<WorkerId>> {
    text.split(',').map(|shard| shard.split_whitespace().map(WorkerId::from).collect()).collect()
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
    state.apply(Command::CommitWrite { write, table: id, segments: vec![], replace: true }).unwrap();
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
