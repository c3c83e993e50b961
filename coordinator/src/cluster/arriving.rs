//! Copies of shards that are still to come to workers: for people to read, and what
//! room they will take.
//!
//! Pure: what is left to do follows from the catalog and who is alive.

use std::collections::{BTreeSet, HashMap};

use shoal_data::{Segment, Table};
use shoal_proto::WorkerId;

use super::membership::LiveWorkers;
use super::repair::{are_too_few, has, readable};
use crate::catalog::{State, TableFacts};

/// Why a shard comes to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There are fewer live copies than the table asks for.
    Repair,
    /// It leaves a worker that is drained.
    Drain,
    /// The worker has less than others, or nothing yet of a table that is to be
    /// everywhere.
    Even,
}

impl Kind {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Drain => "drain",
            Self::Even => "even",
        }
    }
}

/// Segments of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// How many.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Part {
    fn add(&mut self, segment: &Segment) {
        self.segments += 1;
        self.bytes += segment.bytes;
    }
}

/// A shard that is not complete yet on a worker that should hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arriving {
    /// The worker.
    pub worker: WorkerId,
    /// Why it comes there.
    pub kind: Kind,
    /// Whether the worker is waited for.
    pub is_waiting: bool,
    /// What is there.
    pub done: Part,
    /// What is not.
    pub left: Part,
}

/// What is still to come of a shard to workers that should hold it. `draining`
/// are those that copies leave.
pub fn arriving(
    facts: &TableFacts,
    shard: u32,
    live: &LiveWorkers,
    draining: &BTreeSet<WorkerId>,
) -> Vec<Arriving> {
    let table = facts.table();
    let workers = table.placement.get(shard as usize).into_iter().flatten();
    let arriving = workers.map(|id| {
        let worker = live.get(id);
        let (mut done, mut left) = (Part::default(), Part::default());
        let mut kind = Kind::Even;
        for segment in facts.of_shard(shard) {
            let is_there = match worker {
                Some(worker) => has(segment, worker),
                None => segment.replicas.contains(id),
            };
            if is_there {
                done.add(segment);
            } else {
                left.add(segment);
                kind = worse(kind, kind_of(table, segment, live, draining));
            }
        }
        Arriving { worker: id.clone(), kind, is_waiting: worker.is_none(), done, left }
    });
    arriving.filter(|arriving| arriving.left.segments > 0).collect()
}

/// Bytes that are still to come to each worker: of segments that it should hold and
/// does not, as far as is known. What has come and is not in the catalog yet counts
/// for that while, too: better too many than too few.
pub fn bytes_to_come(state: &State, live: &LiveWorkers) -> HashMap<WorkerId, u64> {
    let mut to_come: HashMap<WorkerId, u64> = HashMap::new();
    for table in state.tables() {
        for (worker, bytes) in state.facts(table).lacking_bytes() {
            *to_come.entry(worker.clone()).or_default() += bytes;
        }
    }
    // What the catalog counts on and is lost comes anew.
    for worker in &live.workers {
        let lost = worker.holds.lacks().filter_map(|name| {
            let (table, segment) = state.table_by_id(name.table).zip(state.segment(name))?;
            let is_to_come =
                segment.replicas.contains(&worker.id) && table.should_hold(segment.shard, &worker.id);
            is_to_come.then_some(segment.bytes)
        });
        let bytes: u64 = lost.sum();
        if bytes > 0 {
            *to_come.entry(worker.id.clone()).or_default() += bytes;
        }
    }
    to_come
}

fn kind_of(table: &Table, segment: &Segment, live: &LiveWorkers, draining: &BTreeSet<WorkerId>) -> Kind {
    if are_too_few(table, readable(segment, live).count()) {
        return Kind::Repair;
    }
    let leaves = |id: &WorkerId| draining.contains(id) && !table.should_hold(segment.shard, id);
    if segment.replicas.iter().any(leaves) { Kind::Drain } else { Kind::Even }
}

fn worse(one: Kind, other: Kind) -> Kind {
    match (one, other) {
        (Kind::Repair, _) | (_, Kind::Repair) => Kind::Repair,
        (Kind::Drain, _) | (_, Kind::Drain) => Kind::Drain,
        (Kind::Even, Kind::Even) => Kind::Even,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use shoal_data::{ReplicaCount, SegmentName};
    use shoal_proto::{SegmentId, TableId};

    use super::*;
    use crate::catalog::Command;
    use crate::catalog::state::tests::{create, segment, table};
    use crate::cluster::{Holds, LiveWorker};

    /// A table of two copies whose first shard is placed so, with segments on
    /// these workers.
    fn held_by(placed: &[&str], segments: &[&[&str]]) -> TableFacts {
        let ids = |names: &[&str]| names.iter().copied().map(WorkerId::from).collect::<Vec<_>>();
        let mut held = table(TableId(1), "t");
        held.layout.replicas = ReplicaCount::Count(2);
        held.placement[0] = ids(placed);
        let segments = segments.iter().map(|on| Segment { replicas: ids(on), ..segment(held.id, 0, "") });
        held.segments = segments.map(Arc::new).collect();
        TableFacts::new(Arc::new(held))
    }

    fn shown(
        facts: &TableFacts,
        live: &[&str],
        draining: &[&str],
    ) -> Vec<(String, &'static str, bool, [u64; 4])> {
        let workers = live.iter().map(|name| LiveWorker::named(*name)).collect();
        let live = LiveWorkers { workers, ..LiveWorkers::default() };
        let draining = draining.iter().copied().map(WorkerId::from).collect();
        let shown = |it: Arriving| {
            let numbers = [it.done.segments, it.done.bytes, it.left.segments, it.left.bytes];
            (it.worker.to_string(), it.kind.name(), it.is_waiting, numbers)
        };
        arriving(facts, 0, &live, &draining).into_iter().map(shown).collect()
    }

    #[test]
    fn what_is_complete_is_not_shown() {
        let whole = held_by(&["w1", "w2"], &[&["w1", "w2"], &["w2", "w1", "w3"]]);
        assert!(shown(&whole, &["w1", "w2"], &[]).is_empty());
        assert!(shown(&whole, &["w1"], &[]).is_empty(), "what w2 has it has when it is back, too");
    }

    #[test]
    fn each_copy_says_why_it_is_made_and_how_far_it_is() {
        // The first of three segments has come to w3, in the place of w1.
        let moving = held_by(&["w2", "w3"], &[&["w1", "w2", "w3"], &["w1", "w2"], &["w1", "w2"]]);
        let to_w3 = |kind: &'static str, is_waiting: bool| {
            vec![("w3".to_owned(), kind, is_waiting, [1, 100, 2, 200])]
        };
        let all = ["w1", "w2", "w3"];
        assert_eq!(shown(&moving, &all, &[]), to_w3("even", false));
        assert_eq!(shown(&moving, &all, &["w1"]), to_w3("drain", false));
        assert_eq!(shown(&moving, &all, &["w2"]), to_w3("even", false), "w2 is not left");
        // With one live copy it is urgent, whatever it was made for.
        assert_eq!(shown(&moving, &["w2", "w3"], &["w1"]), to_w3("repair", false));
        assert_eq!(shown(&moving, &["w1", "w2"], &["w1"]), to_w3("drain", true));
    }

    #[test]
    fn one_segment_in_danger_makes_the_shard_so() {
        let moving = held_by(&["w2", "w3"], &[&["w1", "w2"], &["w2"]]);
        let expected = vec![("w3".to_owned(), "repair", false, [0, 0, 2, 200])];
        assert_eq!(shown(&moving, &["w1", "w2", "w3"], &["w1"]), expected);
    }

    #[test]
    fn what_is_to_come_is_what_a_worker_should_hold_and_does_not() {
        // Each segment has 100 bytes.
        let moving = held_by(&["w2", "w3"], &[&["w1", "w2", "w3"], &["w1", "w2"], &["w1", "w2"]]);
        let mut state = State::new("c");
        state.apply(Command::ReserveTable).unwrap();
        state.apply(create(Table::clone(moving.table()))).unwrap();
        let [first, second, third] = [0, 1, 2].map(|place| moving.table().segments[place].name());
        let lacking = |worker: &'static str, lacks: &[SegmentName]| {
            let holds = Arc::new(Holds::all_but(lacks.iter().copied().collect()));
            LiveWorker { holds, ..LiveWorker::named(worker) }
        };
        let to_come = |workers: Vec<LiveWorker>| {
            let live = LiveWorkers { workers, ..LiveWorkers::default() };
            let to_come = bytes_to_come(&state, &live).into_iter();
            to_come.map(|(worker, bytes)| (worker.to_string(), bytes)).collect::<BTreeMap<_, _>>()
        };
        let bytes = |expected: &[(&str, u64)]| {
            expected.iter().map(|(worker, bytes)| ((*worker).to_owned(), *bytes)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(to_come(vec![]), bytes(&[("w3", 200)]), "also while it is away");
        // A worker that lost its files gets those that it should still hold.
        let lost = vec![lacking("w1", &[first, second]), lacking("w2", &[first, second, third])];
        assert_eq!(to_come(lost), bytes(&[("w2", 300), ("w3", 200)]));
        // It lacks one that it has to get anyhow, and one that no table has.
        let unknown = SegmentName { segment: SegmentId::random(), ..first };
        assert_eq!(to_come(vec![lacking("w3", &[first, second, unknown])]), bytes(&[("w3", 300)]));
    }
}
