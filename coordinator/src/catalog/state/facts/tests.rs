//! Facts are what a plain look at the whole table says, also after it changed.

use shoal_data::SegmentName;

use super::*;
use crate::catalog::state::tests::random;
use crate::catalog::{Command, Outcome, State};

/// States of these seeds are looked at.
const SEEDS: u64 = 200;

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
        let table = crate::catalog::state::tests::table(id, &name);
        state.apply(crate::catalog::state::tests::create(table)).unwrap();
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
            let written = crate::catalog::state::tests::segment(id, 0, "w1");
            state.apply(crate::catalog::state::tests::commit(&format!("write to {id}"), &written)).unwrap();
            assert!(!same(&state, id), "seed {seed}");
            let new = [4, written.rows - 4];
            let new = new.map(|rows| Segment { id: SegmentId::random(), rows, ..written.clone() }).to_vec();
            let (between, old) = (contents(&state, id), vec![written.id]);
            state.apply(Command::Compact { table: id, shard: 0, old, new }).unwrap();
            assert!(!same(&state, id) && contents(&state, id) != between, "seed {seed}");
        }
    }
}
