//! Claims about which segments are compacted, and how often a row is written
//! anew for it.

use std::collections::HashMap;

use arrow::datatypes::Field;
use shoal_proto::WorkerId;

use super::*;
use crate::catalog::state::tests::{commit, create, segment, table};
use crate::catalog::{Command, Outcome};
use crate::cluster::membership::{Holds, LiveWorker};

const MIB: u64 = 1 << 20;
const TABLE: TableId = TableId(1);
/// What a file has beside its rows.
const FILE_BYTES: u64 = 3_000;

/// These workers, with disks on which there is much room.
fn live(workers: &[&str]) -> LiveWorkers {
    let worker = |id: &&str| LiveWorker { disk_free_bytes: 1 << 40, ..LiveWorker::named(*id) };
    LiveWorkers { workers: workers.iter().map(worker).collect(), ..LiveWorkers::default() }
}

fn sized(shard: u32, rows: u64, bytes: u64) -> Segment {
    let worker = if shard == 0 { "w1" } else { "w2" };
    Segment { rows, bytes, ..segment(TABLE, shard, worker) }
}

/// A catalog with one table, shard 0 of which is on `w1` and shard 1 on `w2`.
fn state(segments: &[Segment]) -> State {
    let mut state = State::new("c");
    assert_eq!(state.apply(Command::ReserveTable), Ok(Outcome::Table(TABLE)));
    let segments = segments.iter().cloned().map(Arc::new).collect();
    state.apply(create(Table { segments, ..table(TABLE, "t") })).unwrap();
    state
}

/// What is due where nothing waits for anything.
fn due_of(state: &State, live: &LiveWorkers) -> Vec<Compaction> {
    due(state, live, &Leaving::new(), &Rests::default(), Instant::now())
}

fn due_now(segments: &[Segment]) -> Vec<Compaction> {
    due_of(&state(segments), &live(&["w1", "w2"]))
}

/// Where in `segments` those are that one compaction takes.
fn places(segments: &[Segment], due: &[Compaction]) -> Vec<usize> {
    let [only] = due else { panic!("{due:?}") };
    let place = |id: &SegmentId| segments.iter().position(|segment| segment.id == *id).unwrap();
    only.segments.iter().map(place).collect()
}

#[test]
fn eight_small_segments_are_enough() {
    let mut segments: Vec<_> = (0..7).map(|_| sized(0, 10, 1_000)).collect();
    segments.push(sized(1, 10, 1_000));
    assert_eq!(due_now(&segments), []);
    segments.push(sized(0, 10, 1_000));
    let due = due_now(&segments);
    // In the order of the table.
    assert_eq!(places(&segments, &due), [0, 1, 2, 3, 4, 5, 6, 8]);
    assert_eq!((due[0].table, due[0].shard, due[0].bytes), (TABLE, 0, 8_000));
}

#[test]
fn what_has_many_rows_is_not_written_anew_for_a_few() {
    let mut segments: Vec<_> = (0..8).map(|_| sized(0, 10, 1_000)).collect();
    segments.insert(3, sized(0, 81, 8_100));
    assert_eq!(places(&segments, &due_now(&segments)), [0, 1, 2, 4, 5, 6, 7, 8]);
    segments[3].rows = 80;
    assert_eq!(places(&segments, &due_now(&segments)).len(), 9);
    // Each larger than all before it: nothing is worth it.
    let doubling: Vec<_> = (0..20).map(|power| sized(0, 1 << power, 1_000)).collect();
    assert_eq!(due_now(&doubling), []);
}

#[test]
fn large_segments_stay_as_they_are() {
    let mut segments: Vec<_> = (0..7).map(|_| sized(0, 10, 1_000)).collect();
    segments.extend((0..20).map(|_| sized(0, 10, LARGE_BYTES)));
    assert_eq!(due_now(&segments), []);
    // What makes a large one is enough, however few they are.
    let segments: Vec<_> = (0..9).map(|_| sized(0, 100, 30 * MIB)).collect();
    assert_eq!(places(&segments, &due_now(&segments)), [0, 1, 2, 3]);
    // What fits beside them goes with them.
    let small = (0..3).map(|_| sized(0, 1, 1_000));
    let segments: Vec<_> = segments.into_iter().chain(small).collect();
    assert_eq!(places(&segments, &due_now(&segments)), [0, 1, 2, 3, 9, 10, 11]);
    let many: Vec<_> = (0..3 * INPUTS_MAX).map(|_| sized(0, 1, 1_000)).collect();
    assert_eq!(places(&many, &due_now(&many)).len(), INPUTS_MAX);
}

#[test]
fn small_work_comes_first_and_shards_rest() {
    let in_shard = |shard: u32, bytes: u64| (0..8).map(move |_| sized(shard, 10, bytes));
    let segments: Vec<_> = in_shard(0, 2_000).chain(in_shard(1, 1_000)).collect();
    let shards = |due: Vec<Compaction>| due.iter().map(|compaction| compaction.shard).collect::<Vec<_>>();
    assert_eq!(shards(due_now(&segments)), [1, 0]);
    let mut rests = Rests::default();
    let now = Instant::now();
    let failed = due_now(&segments).remove(0);
    rests.failed(&failed, now);
    let both = live(&["w1", "w2"]);
    let due_at = |now: Instant| due(&state(&segments), &both, &Leaving::new(), &rests, now);
    assert_eq!(shards(due_at(now)), [0]);
    // The shard comes back first, and what failed of it only later.
    let again = (1..10_000).map(|second| now + std::time::Duration::from_secs(second));
    let again = again.filter(|now| !rests.is_resting(TABLE, 1, *now));
    let mut again = again.skip_while(|now| shards(due_at(*now)) == [0]);
    let all_are_back = again.next().unwrap();
    assert_eq!(shards(due_at(all_are_back)), [1, 0]);
    assert!(failed.segments.iter().all(|segment| !rests.has_failed(*segment, all_are_back)));
}

#[test]
fn what_failed_does_not_keep_others_of_its_shard_waiting() {
    let segments: Vec<_> = (0..17).map(|_| sized(0, 10, 1_000)).collect();
    let both = live(&["w1", "w2"]);
    let mut rests = Rests::default();
    let now = Instant::now();
    // As if there had been one compaction of it alone, and the shard had had its rest.
    let bad = Compaction { table: TABLE, shard: 1, segments: vec![segments[4].id], bytes: 1_000 };
    rests.failed(&bad, now);
    let due = due(&state(&segments), &both, &Leaving::new(), &rests, now);
    let expected: Vec<usize> = (0..17).filter(|place| *place != 4).collect();
    assert_eq!(places(&segments, &due), expected);
}

#[test]
fn segments_are_cut_by_what_they_are_when_decoded() {
    // Numbers that are all the same take nothing on disk, and eight bytes each in memory.
    let rows = DECODED_BYTES / 8 / 10;
    let segments: Vec<_> = (0..16).map(|_| sized(0, rows, 1_000)).collect();
    assert_eq!(places(&segments, &due_now(&segments)).len(), 9);
    let large = LARGE_DECODED_BYTES / 8;
    let segments: Vec<_> = (0..16).map(|_| sized(0, large, 1_000)).collect();
    assert_eq!(due_now(&segments), []);
    let both = live(&["w1", "w2"]);
    let state = state(&segments);
    let facts = state.facts(state.table_by_id(TABLE).unwrap());
    assert_eq!((left(&facts), asked(&facts, 0, &both, &Leaving::new())), (0, None));
}

#[test]
fn a_row_takes_what_its_types_say() {
    let item = Arc::new(Field::new_list_field(DataType::Int64, true));
    for (data_type, expected) in [
        (DataType::Int64, 8),
        (DataType::Decimal128(12, 2), 16),
        (DataType::Boolean, 1),
        (DataType::Utf8, REFERENCE_BYTES),
        (DataType::FixedSizeBinary(20), 20),
        (DataType::FixedSizeList(Arc::clone(&item), 100), 800),
        (DataType::List(Arc::clone(&item)), REFERENCE_BYTES),
        (DataType::Struct(vec![Arc::clone(&item), item].into()), 16),
    ] {
        let columns = Schema::new(vec![Field::new("c", data_type.clone(), true)]);
        assert_eq!(row_bytes(&columns), expected, "{data_type}");
    }
}

#[test]
fn many_that_grow_do_not_hide_those_behind_them() {
    // More than are looked at together, each larger than all before it, and then
    // many that are alike.
    let mut segments: Vec<_> = (0..INPUTS_MAX as u64).map(|power| sized(0, 1 << power, 1_000)).collect();
    assert_eq!(due_now(&segments), []);
    segments.extend((0..8).map(|_| sized(0, 1 << 20, 1_000)));
    let chosen = places(&segments, &due_now(&segments));
    assert!(chosen.iter().any(|place| *place >= INPUTS_MAX), "{chosen:?}");
    assert!(chosen.len() <= INPUTS_MAX, "{chosen:?}");
}

#[test]
fn segments_that_move_or_cannot_be_read_wait() {
    let segments: Vec<_> = (0..8).map(|_| sized(0, 10, 1_000)).collect();
    let both = live(&["w1", "w2"]);
    let count = |segments: &[Segment], live: &LiveWorkers| due_of(&state(segments), live).len();
    assert_eq!(count(&segments, &both), 1);
    assert_eq!(count(&segments, &live(&["w2"])), 0);
    // One copy is where it should not be, or on a worker that is away.
    for replicas in [vec!["w1", "w2"], vec!["w1", "w9"], vec!["w9"]] {
        let mut moving = segments.clone();
        moving[3].replicas = replicas.into_iter().map(WorkerId::from).collect();
        assert_eq!(count(&moving, &both), 0);
    }
    let mut lacking = both.clone();
    lacking.workers[0].holds = Arc::new(Holds::all_but([segments[5].name()].into()));
    assert_eq!(count(&segments, &lacking), 0);
    let mut full = both.clone();
    full.workers[0].disk_free_bytes = 0;
    assert_eq!(count(&segments, &full), 0);
    full.workers[0].disk_free_bytes = 1 << 20;
    assert_eq!(count(&segments, &full), 1);
    // So many generations of them wait that nobody may remove yet.
    let leaving = Leaving::from([("w1".into(), 1 << 20)]);
    assert_eq!(due(&state(&segments), &full, &leaving, &Rests::default(), Instant::now()), []);
}

#[test]
fn whoever_asks_gets_one_segment_where_all_fit() {
    let both = live(&["w1", "w2"]);
    let of = |segments: &[Segment]| {
        let state = state(segments);
        asked(&state.facts(state.table_by_id(TABLE).unwrap()), 0, &both, &Leaving::new())
    };
    assert_eq!(of(&[sized(0, 10, 1_000), sized(1, 10, 1_000)]), None);
    let segments = [sized(0, 1_000_000, 60 * MIB), sized(1, 1, 1_000), sized(0, 1, 1_000)];
    let compaction = of(&segments).unwrap();
    assert_eq!(compaction.segments, [segments[0].id, segments[2].id]);
    let mut segments: Vec<_> = (0..5).map(|_| sized(0, 10, 50 * MIB)).collect();
    segments.push(sized(0, 10, LARGE_BYTES));
    assert_eq!(of(&segments).unwrap().segments.len(), 2);
    let state = state(&segments);
    let facts = state.facts(state.table_by_id(TABLE).unwrap());
    assert_eq!((left(&facts), asked(&facts, 0, &live(&["w2"]), &Leaving::new())), (1, None));
}

#[test]
fn a_compaction_is_found_while_all_its_segments_are_there() {
    let segments: Vec<_> = (0..8).map(|_| sized(0, 10, 1_000)).collect();
    let mut state = state(&segments);
    let compaction = due_of(&state, &live(&["w1", "w2"])).remove(0);
    let (table, found) = compaction.found(&state).unwrap();
    assert_eq!((table.id, found.len()), (TABLE, 8));
    let new = sized(0, 20, 2_000);
    let old = segments[..2].iter().map(|segment| segment.id).collect();
    assert_eq!(
        state.apply(Command::Compact { table: TABLE, shard: 0, old, new: vec![new] }),
        Ok(Outcome::Done)
    );
    assert!(compaction.found(&state).is_none());
}

#[test]
fn what_is_left_is_told_with_why_where_all_was_looked_at() {
    assert_eq!(told_left("public.t", 8, 0, true), None);
    assert_eq!(told_left("public.t", 8, 0, false), None);
    let told = |is_whole| told_left("public.t", 8, 2, is_whole).unwrap();
    assert_eq!(told(false), "2 of 8 shards of public.t have small segments left");
    assert!(
        told(true).starts_with("2 of 8 shards of public.t have small segments left: workers"),
        "{}",
        told(true)
    );
}

#[test]
fn many_compactions_of_a_table_are_told_in_one_line() {
    let compacted = |table: &str, shard: u32| Compacted {
        table: table.to_owned(),
        shard,
        before: 12,
        after: 1,
        bytes: 3_100_000,
    };
    let lines = told(&[compacted("public.t", 3), compacted("public.u", 0), compacted("public.u", 1)]);
    assert_eq!(
        lines,
        [
            "public.t, shard 3: 12 segments of 3.1 MB into 1",
            "public.u, 2 times: 24 segments of 6.2 MB into 2"
        ]
    );
    assert_eq!(told(&[]), Vec::<String>::new());
}

/// Numbers that look random, and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Writes for a long time, and compacts what is due after each write.
fn check_long_run(what: &str, bytes_per_row: u64, mut rows_of: impl FnMut(&mut Numbers) -> u64) {
    let live = live(&["w1", "w2"]);
    let mut numbers = Numbers(1);
    let mut state = state(&[]);
    // For each segment: how often a row in it was written anew.
    let mut times: HashMap<SegmentId, u32> = HashMap::new();
    let (mut written, mut rewritten) = (0_u64, 0_u64);
    for write in 0..3_000 {
        let rows = rows_of(&mut numbers);
        let added = sized(0, rows, FILE_BYTES + rows * bytes_per_row);
        times.insert(added.id, 0);
        written += rows;
        state.apply(commit(&format!("{write}"), &added)).unwrap();
        while let Some(compaction) = due_of(&state, &live).first() {
            let (_, old) = compaction.found(&state).unwrap();
            assert!(compaction.bytes <= TARGET_BYTES, "{what}: {compaction:?}");
            let rows: u64 = old.iter().map(|segment| segment.rows).sum();
            let bytes = FILE_BYTES + old.iter().map(|segment| segment.bytes - FILE_BYTES).sum::<u64>();
            let new = sized(0, rows, bytes);
            let most = 1 + old.iter().map(|segment| times[&segment.id]).max().unwrap();
            assert!(most <= rows.ilog2(), "{what}: a row of a segment of {rows} was written {most} times");
            times.insert(new.id, most);
            rewritten += rows;
            let old = compaction.segments.clone();
            let command = Command::Compact { table: TABLE, shard: 0, old, new: vec![new] };
            assert_eq!(state.apply(command), Ok(Outcome::Done));
        }
        let table = state.table_by_id(TABLE).unwrap();
        assert_eq!(table.rows(), written);
        let small = small_of(&state.facts(table), 0).count();
        assert!(small <= 8 + written.ilog2() as usize, "{what}: {small} small segments of {written} rows");
        let large = (table.segments.len() - small) as u64;
        assert!(large <= table.bytes() / LARGE_BYTES, "{what}: {large} large segments");
    }
    let most = u64::from(written.ilog2());
    assert!(rewritten <= most * written, "{what}: {rewritten} rows written anew for {written}");
}

#[test]
fn a_shard_keeps_few_small_segments_and_no_row_is_often_written_anew() {
    check_long_run("single rows", 50, |_| 1);
    check_long_run("a thousand rows", 50, |_| 1_000);
    check_long_run("up to two thousand rows", 50, |numbers| 1 + numbers.below(2_000));
    check_long_run("from single rows to a million", 100, |numbers| {
        let digits = numbers.below(7) as u32;
        1 + numbers.below(10_u64.pow(digits))
    });
    check_long_run("a third of a large segment", 100, |numbers| 200_000 + numbers.below(40_000));
    check_long_run("mostly few", 100, |numbers| 1 + 4_000 / (1 + numbers.below(4_000)));
}

#[test]
fn shards_that_stay_as_they_are_are_named_with_the_reason_of_the_first() {
    let of_whole = |shards: &[u32], of: u32, is_whole: bool| {
        let refusal = |shard: &u32| (*shard, Error::Exhausted(format!("too long rows in {shard}")));
        let refused = refused("public.t", of, shards.iter().map(refusal).collect(), is_whole);
        refused.map(|error| error.to_string())
    };
    let refused_of = |shards: &[u32], of: u32| of_whole(shards, of, true);
    assert_eq!(refused_of(&[], 8), None);
    assert_eq!(refused_of(&[0], 1).unwrap(), "too long rows in 0");
    assert_eq!(
        refused_of(&[2, 5], 8).unwrap(),
        "2 of 8 shards of public.t stay as they are: 2, 5; the others were looked at. Shard 2: too long rows in 2"
    );
    // Something else has ended it in between.
    assert_eq!(of_whole(&[], 8, false), None);
    assert_eq!(
        of_whole(&[2, 5], 8, false).unwrap(),
        "2 of 8 shards of public.t stay as they are: 2, 5. Shard 2: too long rows in 2"
    );
    let all: Vec<u32> = (0..1_000).collect();
    let many = refused_of(&all, 1_001).unwrap();
    assert!(many.contains("30, 31 and 968 more; the others"), "{many}");
    let whole = refused_of(&all, 1_000).unwrap();
    assert!(whole.contains("30, 31 and 968 more. Shard 0: too long"), "{whole}");
}
