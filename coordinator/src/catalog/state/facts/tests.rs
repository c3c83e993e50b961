//! Facts are what a plain look at the whole table says, also after it changed.

use arrow::datatypes::Schema;
use datafusion::common::stats::Precision;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shoal_data::{PackedStatistics, ReplicaCount, SegmentName, TableLayout};
use shoal_proto::WriteId;

use super::*;
use crate::catalog::state::tests::{commit, create, random, segment, table};
use crate::catalog::{Command, Outcome, State, WriteRecord};

/// States of these seeds are looked at.
const SEEDS: u64 = 200;
/// Changes of one story.
const CHANGES: usize = 20;

/// Something for each segment that tells it from others.
fn bounds_of(segments: &[Arc<Segment>]) -> ColumnBounds {
    let each = |of: fn(&Segment) -> u64| -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(segments.iter().map(|segment| of(segment)))))
    };
    ColumnBounds {
        min: each(|segment| segment.bytes),
        max: each(|segment| segment.rows),
        nulls: each(|segment| segment.id.0.as_u64_pair().1),
    }
}

/// Something that all segments have a part in.
fn merged_of(segments: &[Arc<Segment>]) -> ColumnStatistics {
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let null_count = Precision::Exact(usize::try_from(bytes).unwrap());
    ColumnStatistics { null_count, ..ColumnStatistics::new_unknown() }
}

fn names<'a>(segments: impl Iterator<Item = &'a Arc<Segment>>) -> Vec<SegmentName> {
    segments.map(|segment| segment.name()).collect()
}

fn check(state: &State, seed: u64) {
    let workers: Vec<WorkerId> = (0..12).map(|number| WorkerId::new(format!("w{number}"))).collect();
    for table in state.tables() {
        let facts = state.facts(table);
        let all = || table.segments.iter();
        for (place, segment) in all().enumerate() {
            assert_eq!(facts.place(segment.id), Some(place), "seed {seed}");
            assert_eq!(state.segment(&segment.name()), Some(segment), "seed {seed}");
            let elsewhere = SegmentName { shard: segment.shard + 1, ..segment.name() };
            assert_eq!(state.segment(&elsewhere), None, "seed {seed}");
        }
        assert_eq!(facts.place(SegmentId::random()), None);
        let rows: ArrayRef = Arc::new(UInt64Array::from_iter_values(all().map(|segment| segment.rows)));
        assert_eq!(facts.rows(), &rows, "seed {seed}");
        let (bounds, plain) = (facts.bounds(0, bounds_of), bounds_of(&table.segments));
        assert_eq!((&bounds.min, &bounds.max), (&plain.min, &plain.max), "seed {seed}");
        assert_eq!(bounds.nulls, plain.nulls, "seed {seed}");
        let merged = facts.merged(0, |segments| Ok::<_, String>(merged_of(segments))).unwrap();
        assert_eq!(merged, merged_of(&table.segments), "seed {seed}");
        for shard in 0..=table.layout.shards {
            let plain = names(table.shard_segments(shard));
            assert_eq!(names(facts.of_shard(shard)), plain, "seed {seed}, shard {shard}");
            let bytes: u64 = table.shard_segments(shard).map(|segment| segment.bytes).sum();
            assert_eq!(
                facts.shard_bytes().get(shard as usize).copied().unwrap_or_default(),
                bytes,
                "seed {seed}"
            );
        }
        for (shard, replicas) in (0..).zip(facts.shard_replicas()) {
            let mut segments = table.shard_segments(shard);
            let first = segments.next();
            let mut plain = first.map(|first| first.replicas.clone());
            for segment in segments {
                plain.iter_mut().for_each(|plain| plain.retain(|worker| segment.replicas.contains(worker)));
            }
            assert_eq!(*replicas, plain, "seed {seed}, shard {shard}");
        }
        for worker in &workers {
            let held: Vec<_> = all().filter(|segment| segment.replicas.contains(worker)).collect();
            assert_eq!(names(facts.of_worker(worker)), names(held.iter().copied()), "seed {seed}, {worker}");
            let should_hold = all().filter(|segment| table.should_hold(segment.shard, worker));
            let lacking = should_hold.filter(|segment| !segment.replicas.contains(worker));
            let bytes: u64 = lacking.map(|segment| segment.bytes).sum();
            assert_eq!(
                facts.lacking_bytes().get(worker).copied().unwrap_or_default(),
                bytes,
                "seed {seed}, {worker}"
            );
            let is_used = !held.is_empty() || table.placement.iter().flatten().any(|id| id == worker);
            assert_eq!(facts.workers().contains(worker), is_used, "seed {seed}, {worker}");
        }
        let lacks = |segment: &&Arc<Segment>| {
            table.placement[segment.shard as usize].iter().any(|worker| !segment.replicas.contains(worker))
        };
        let has_more = |segment: &&Arc<Segment>| {
            segment.replicas.iter().any(|worker| !table.should_hold(segment.shard, worker))
        };
        assert_eq!(names(facts.at(facts.lacking())), names(all().filter(lacks)), "seed {seed}");
        assert_eq!(names(facts.at(facts.surplus())), names(all().filter(has_more)), "seed {seed}");
    }
}

#[test]
fn they_are_what_a_look_at_the_whole_table_says() {
    for seed in 0..SEEDS {
        check(&random(seed), seed);
    }
}

#[test]
fn a_table_that_changed_has_facts_of_its_own() {
    for seed in 0..SEEDS {
        let mut state = random(seed);
        check(&state, seed);
        let before = state.clone();
        let commands: Vec<Command> = before
            .tables()
            .flat_map(|table| {
                let placement: Vec<Vec<WorkerId>> =
                    table.placement.iter().map(|_| vec!["w0".into(), "w1".into()]).collect();
                let seen = table.placement.clone();
                let moved = Command::MoveShards { table: table.id, seen, placement };
                let taken = Command::RemoveReplicas {
                    table: table.id,
                    worker: "w2".into(),
                    segments: table.segments.iter().map(|segment| segment.id).collect(),
                };
                let names = table.segments.iter().map(|segment| segment.name()).collect();
                let copied = Command::AddReplicas { copies: vec![("w3".into(), names)] };
                // All behind it have other places afterwards.
                let compacted = table.segments.first().map(|first| Command::Compact {
                    table: table.id,
                    shard: first.shard,
                    old: vec![first.id],
                    new: [4, first.rows - 4]
                        .map(|rows| Segment { id: SegmentId::random(), rows, ..first.as_ref().clone() })
                        .to_vec(),
                });
                compacted.into_iter().chain([moved, taken, copied])
            })
            .collect();
        for command in commands {
            state.apply(command).unwrap();
            check(&state, seed);
        }
        // Queries may still read the state that was.
        check(&before, seed);
        check(&state, seed);
    }
}

/// Commands that together change one table of the state, as whatever may happen does.
fn any_change(state: &State, chance: &mut StdRng) -> Vec<Command> {
    let worker = |chance: &mut StdRng| WorkerId::new(format!("w{}", chance.random_range(0..12)));
    let workers = |chance: &mut StdRng| -> Vec<WorkerId> {
        let first = chance.random_range(0..12);
        let count = chance.random_range(1..=3);
        (first..first + count).map(|number| WorkerId::new(format!("w{}", number % 12))).collect()
    };
    let tables: Vec<&Arc<Table>> = state.tables().collect();
    let changed: &Table = tables.choose(chance).unwrap();
    let some = |chance: &mut StdRng| -> Vec<Arc<Segment>> {
        changed.segments.iter().filter(|_| chance.random_bool(0.3)).cloned().collect()
    };
    let shard = chance.random_range(0..changed.layout.shards);
    let of_shard: Vec<&Arc<Segment>> = changed.shard_segments(shard).take(2).collect();
    let new = |chance: &mut StdRng, shard: u32, rows: u64, replicas: Vec<WorkerId>| Segment {
        rows,
        bytes: chance.random_range(1..1_000),
        replicas,
        ..segment(changed.id, shard, "")
    };
    let (schema_name, name) = (changed.schema_name.clone(), changed.name.clone());
    match chance.random_range(0..10) {
        0 if of_shard.len() == 2 => {
            let rows: u64 = of_shard.iter().map(|segment| segment.rows).sum();
            let mut replicas: Vec<WorkerId> =
                of_shard.iter().flat_map(|segment| segment.replicas.iter().cloned()).collect();
            replicas.sort_unstable();
            replicas.dedup();
            let old = of_shard.iter().map(|segment| segment.id).collect();
            let new = vec![new(chance, shard, rows, replicas)];
            vec![Command::Compact { table: changed.id, shard, old, new }]
        }
        1 if tables.len() > 2 => vec![Command::DropTable { schema_name, name, if_exists: false }],
        2 => {
            // A new one in its place, with as many shards or others.
            let mut other = table(TableId(state.next_table), &name);
            other.layout.shards = chance.random_range(1..=5);
            other.placement = (0..other.layout.shards).map(|_| workers(chance)).collect();
            vec![Command::ReserveTable, Command::ReplaceTable { table: other, write: None }]
        }
        3 | 4 => {
            let names = some(chance).iter().map(|segment| segment.name()).collect();
            let strange = SegmentName { segment: SegmentId::random(), ..segment(changed.id, 0, "").name() };
            vec![Command::AddReplicas {
                copies: vec![(worker(chance), names), (worker(chance), vec![strange])],
            }]
        }
        5 | 6 => {
            let segments = some(chance).iter().map(|segment| segment.id).collect();
            vec![Command::RemoveReplicas { table: changed.id, worker: worker(chance), segments }]
        }
        7 => {
            let placement = changed.placement.iter().map(|_| workers(chance)).collect();
            vec![Command::MoveShards { table: changed.id, seen: changed.placement.clone(), placement }]
        }
        8 => {
            let replicas = match chance.random_range(0..4) {
                0 => ReplicaCount::All,
                count => ReplicaCount::Count(count),
            };
            vec![Command::SetReplicas { schema_name, name, replicas }]
        }
        _ => {
            let count = chance.random_range(1..=3);
            let mut one = || {
                let (shard, rows) =
                    (chance.random_range(0..changed.layout.shards), chance.random_range(1..100));
                let replicas = workers(chance);
                new(chance, shard, rows, replicas)
            };
            let segments: Vec<Segment> = (0..count).map(|_| one()).collect();
            let write = WriteRecord { id: WriteId::random(), rows: 1 };
            let replace = chance.random_bool(0.2);
            vec![Command::CommitWrite { write, table: changed.id, segments, replace, sketches: None }]
        }
    }
}

#[test]
fn over_any_story_all_versions_with_the_same_segments_share_what_is_known_of_them() {
    let segments_of = |table: &Table| -> Vec<SegmentName> { names(table.segments.iter()) };
    let (mut shared, mut anew) = (0, 0);
    for seed in 0..SEEDS / 2 {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut state = random(seed);
        check(&state, seed);
        let mut known: BTreeMap<TableId, Arc<TableFacts>> = BTreeMap::new();
        for _ in 0..CHANGES {
            let before = state.clone();
            for command in any_change(&state, &mut chance) {
                state.apply(command).unwrap();
            }
            // Many changes come before anybody asks, and some ask about what was.
            if chance.random_bool(0.3) {
                continue;
            }
            if chance.random_bool(0.3) {
                check(&before, seed);
            }
            check(&state, seed);
            for table in state.tables() {
                let facts = state.facts(table);
                let Some(last) = known.insert(table.id, Arc::clone(&facts)) else { continue };
                let is_shared = Arc::ptr_eq(&last.of_segments, &facts.of_segments);
                let are_same = segments_of(&last.table) == segments_of(table);
                assert_eq!(is_shared, are_same, "seed {seed}, table {}", table.id);
                match Arc::ptr_eq(&last.table, table) {
                    true => {}
                    false if is_shared => shared += 1,
                    false => anew += 1,
                }
            }
        }
    }
    assert!(shared > 100 && anew > 100, "{shared} shared, {anew} anew: there is little to see");
}

#[test]
fn what_is_known_of_columns_is_not_worked_out_again_while_copies_come_and_go() {
    let mut state = State::new("c");
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else { panic!("no table id") };
    let segments = [0, 1, 0].map(|shard| Arc::new(segment(id, shard, "w1")));
    let names_of_all = names(segments.iter());
    state.apply(create(Table { segments: segments.to_vec(), ..table(id, "t") })).unwrap();
    let facts = |state: &State| state.facts(state.table_by_id(id).unwrap());
    let bounds = facts(&state).bounds(0, bounds_of);
    facts(&state).merged(0, |segments| Ok::<_, String>(merged_of(segments))).unwrap();
    let seen = state.table_by_id(id).unwrap().placement.clone();
    let changes = [
        Command::AddReplicas { copies: vec![("w2".into(), names_of_all)] },
        Command::MoveShards {
            table: id,
            seen,
            placement: vec![vec!["w2".into()], vec!["w2".into(), "w3".into()]],
        },
        Command::RemoveReplicas {
            table: id,
            worker: "w1".into(),
            segments: segments.iter().map(|segment| segment.id).collect(),
        },
        Command::SetReplicas {
            schema_name: "public".to_owned(),
            name: "t".to_owned(),
            replicas: ReplicaCount::Count(2),
        },
    ];
    for change in changes {
        let (before, what) = (facts(&state), format!("{change:?}"));
        assert_eq!(state.apply(change), Ok(Outcome::Done), "{what}");
        let after = facts(&state);
        assert!(!Arc::ptr_eq(&before, &after), "{what}");
        assert!(Arc::ptr_eq(&bounds, &after.bounds(0, |_| panic!("bounds anew after {what}"))));
        after.merged(0, |_| -> Result<_, String> { panic!("merged anew after {what}") }).unwrap();
    }
    // What depends on copies is that of now.
    let now = facts(&state);
    let [w1, w2, w3] = ["w1", "w2", "w3"].map(WorkerId::from);
    assert_eq!((now.of_worker(&w1).count(), now.of_worker(&w2).count()), (0, 3));
    assert_eq!(now.lacking_bytes(), &HashMap::from([(w3, 100)]));
    // One more segment, and all is another table.
    state.apply(commit("x", &segment(id, 0, "w1"))).unwrap();
    assert_eq!(facts(&state).bounds(0, bounds_of).max.as_ref().map(|max| max.len()), Some(4));
}

#[test]
fn one_thing_that_is_another_makes_all_facts_of_segments_others() {
    let one = Table {
        segments: [0, 1].map(|shard| Arc::new(segment(TableId(1), shard, "w1"))).to_vec(),
        ..table(TableId(1), "t")
    };
    let with = |change: fn(&mut Segment)| {
        let mut other = one.clone();
        change(Arc::make_mut(&mut other.segments[1]));
        other
    };
    assert!(has_same_segments(&one, &with(|segment| segment.replicas.push("w2".into()))));
    assert!(has_same_segments(&one, &Table { placement: vec![], name: "u".to_owned(), ..one.clone() }));
    let others = [
        with(|segment| segment.id = SegmentId::random()),
        with(|segment| segment.shard = 0),
        with(|segment| segment.rows += 1),
        with(|segment| segment.bytes += 1),
        with(|segment| segment.crc32c += 1),
        with(|segment| segment.columns = PackedStatistics::default()),
        Table { segments: one.segments[..1].to_vec(), ..one.clone() },
        Table { segments: one.segments.iter().rev().cloned().collect(), ..one.clone() },
        Table { id: TableId(2), ..one.clone() },
        Table { columns: Arc::new(Schema::empty()), ..one.clone() },
        Table { layout: TableLayout { shards: 3, ..one.layout.clone() }, ..one.clone() },
    ];
    for other in others {
        assert!(!has_same_segments(&one, &other), "{other:?}");
    }
}

#[test]
fn places_are_found_with_facts_of_another_version_and_without_any() {
    for seed in 0..SEEDS {
        let state = random(seed);
        let other = random(seed + SEEDS);
        for table in state.tables() {
            let mut ids: Vec<SegmentId> = table.segments.iter().map(|segment| segment.id).collect();
            ids.push(SegmentId::random());
            ids.extend(ids.first().copied());
            let plain: Vec<Option<usize>> =
                ids.iter().map(|id| table.segments.iter().position(|segment| segment.id == *id)).collect();
            let memo = Memo::default();
            assert_eq!(memo.places(table, &ids), plain, "seed {seed}");
            // Of quite another table of that number.
            if let Some(strange) = other.table_by_id(table.id) {
                memo.of(strange, 1, |_| true);
                assert_eq!(memo.places(table, &ids), plain, "seed {seed}");
            }
            memo.of(table, 1, |_| true);
            assert_eq!(memo.places(table, &ids), plain, "seed {seed}");
        }
    }
}

#[test]
fn facts_of_tables_that_are_gone_are_forgotten() {
    let mut state = State::new("c");
    for number in 0..100 {
        let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else { panic!("no table id") };
        let name = format!("t{number}");
        state.apply(create(table(id, &name))).unwrap();
        state.facts(state.table_by_id(id).unwrap());
        let dropped = Command::DropTable { schema_name: "public".to_owned(), name, if_exists: false };
        state.apply(dropped).unwrap();
    }
    assert!(state.memo.0.lock().len() <= STALE_MAX + 1);
}

#[test]
fn contents_are_the_same_as_long_as_the_segments_are() {
    for seed in 0..SEEDS {
        let mut state = random(seed);
        let before = state.clone();
        let contents = |state: &State, id: TableId| state.facts(state.table_by_id(id).unwrap()).contents();
        let same = |state: &State, id: TableId| contents(state, id) == contents(&before, id);
        for table in before.tables() {
            let id = table.id;
            // Copies come and go: the rows are the same.
            let (seen, workers) = (table.placement.clone(), vec!["w0".into(), "w1".into()]);
            let placement = vec![workers; seen.len()];
            let names = table.segments.iter().map(|segment| segment.name()).collect();
            let ids = table.segments.iter().map(|segment| segment.id).collect();
            for command in [
                Command::MoveShards { table: id, seen, placement },
                Command::AddReplicas { copies: vec![("w3".into(), names)] },
                Command::RemoveReplicas { table: id, worker: "w2".into(), segments: ids },
            ] {
                state.apply(command).unwrap();
                assert!(same(&state, id), "seed {seed}");
            }
            let written = segment(id, 0, "w1");
            state.apply(commit(&format!("write to {id}"), &written)).unwrap();
            assert!(!same(&state, id), "seed {seed}");
            let new = [4, written.rows - 4];
            let new = new.map(|rows| Segment { id: SegmentId::random(), rows, ..written.clone() }).to_vec();
            let (between, old) = (contents(&state, id), vec![written.id]);
            state.apply(Command::Compact { table: id, shard: 0, old, new }).unwrap();
            assert!(!same(&state, id) && contents(&state, id) != between, "seed {seed}");
        }
    }
}
