//! What must be copied to or removed from workers, so that each holds what it
//! should.
//!
//! Pure: from the catalog and who is alive to orders. A segment is removed
//! only where no table has it, no write stages it and no query may read it.

use std::collections::{BTreeSet, HashMap, HashSet};

use shoal_data::table::REPLICAS_DEFAULT;
use shoal_data::{ReplicaCount, Segment, SegmentName, Table};
use shoal_proto::cluster::{FetchRequest, Location};
use shoal_proto::{TableId, WorkerId};

use super::membership::{LiveWorker, LiveWorkers};
use crate::catalog::State;
use crate::config::{MOVE_BYTES_PER_SECOND, REPAIR_BYTES_PER_SECOND};

/// How fast one worker makes copies; 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRates {
    /// Of what only goes elsewhere.
    pub move_bytes_per_second: u64,
    /// Of what has too few copies.
    pub repair_bytes_per_second: u64,
}

impl Default for CopyRates {
    fn default() -> Self {
        Self {
            move_bytes_per_second: MOVE_BYTES_PER_SECOND,
            repair_bytes_per_second: REPAIR_BYTES_PER_SECOND,
        }
    }
}

impl CopyRates {
    /// That of copies which are urgent, or not.
    pub fn bytes_per_second(self, is_urgent: bool) -> u64 {
        if is_urgent { self.repair_bytes_per_second } else { self.move_bytes_per_second }
    }
}

/// What follows from the report of a worker that joins.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// It holds them and nobody needs them.
    pub discard: Vec<SegmentName>,
    /// The catalog counts on it for them, or may do so later, and it does not have
    /// them.
    pub lacks: HashSet<SegmentName>,
    /// It holds them as it should, and the catalog does not know yet.
    pub adopt: Vec<SegmentName>,
}

/// Compares what a worker holds (with lengths, of 0 where it is damaged) with what it
/// should hold.
/// `is_spared` says of segments that it need not hold whether they must stay.
pub fn reconcile(
    state: &State,
    live: &LiveWorkers,
    worker: &WorkerId,
    held: &HashMap<SegmentName, u64>,
    is_spared: impl Fn(&SegmentName) -> bool,
) -> Reconciled {
    let mut result = Reconciled::default();
    for table in state.tables() {
        for segment in state.facts(table).of_worker(worker) {
            let name = segment.name();
            if held.get(&name) != Some(&segment.bytes) {
                result.lacks.insert(name);
            }
        }
    }
    for (name, bytes) in held {
        // It may be about to be committed, with the copy that it was.
        if *bytes == 0 {
            result.lacks.insert(*name);
        }
        let known = state.table_by_id(name.table).zip(state.segment(name));
        if known.is_some_and(|(_, segment)| segment.replicas.contains(worker)) {
            continue;
        }
        let counts = known.is_some_and(|(table, segment)| {
            *bytes == segment.bytes
                && (table.should_hold(segment.shard, worker) || !has_all_copies(table, segment, live))
        });
        if counts {
            result.adopt.push(*name);
        } else if !is_spared(name) {
            result.discard.push(*name);
        }
    }
    result.adopt.sort_unstable();
    result.discard.sort_unstable();
    result
}

/// What a worker keeps of segments that it was to discard.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StillNeeded {
    /// The catalog counts on it for them, or will.
    pub held: HashSet<SegmentName>,
    /// Others that should have them do not, or are not there: its copies count
    /// again.
    pub adopt: HashSet<SegmentName>,
}

/// Looks again at segments that a worker is about to discard. Time has passed
/// since that was decided, and whoever was to have the other copies may be gone.
pub fn still_needed(
    state: &State,
    live: &LiveWorkers,
    worker: &WorkerId,
    names: &BTreeSet<SegmentName>,
) -> StillNeeded {
    let mut needed = StillNeeded::default();
    for name in names {
        let Some((table, segment)) = state.table_by_id(name.table).zip(state.segment(name)) else { continue };
        if segment.replicas.contains(worker) || table.should_hold(segment.shard, worker) {
            needed.held.insert(*name);
        } else if !has_all_copies(table, segment, live) {
            needed.adopt.insert(*name);
        }
    }
    needed
}

/// Whether every worker that should hold a segment is live and has it.
pub fn has_all_copies(table: &Table, segment: &Segment, live: &LiveWorkers) -> bool {
    let placed = table.placement.get(segment.shard as usize);
    placed.is_some_and(|workers| {
        !workers.is_empty()
            && workers.iter().all(|id| live.get(id).is_some_and(|worker| has(segment, worker)))
    })
}

/// Copies that are missing on live workers and can be made from live workers, at
/// most `per_worker_max` urgent ones for each, and as many others: those of which
/// there are fewest first. `is_under_way` leaves out those that a worker makes
/// already, as urgently as is said.
pub fn missing(
    state: &State,
    live: &LiveWorkers,
    per_worker_max: usize,
    is_under_way: impl Fn(&WorkerId, &SegmentName, bool) -> bool,
) -> Vec<(WorkerId, FetchRequest)> {
    let mut lacking: Vec<(bool, usize, &Segment, &WorkerId)> = Vec::new();
    let lost = lost(state, live);
    for table in state.tables() {
        // All others are where they should be, as far as is known.
        let facts = state.facts(table);
        let mut places = facts.lacking().to_vec();
        if let Some(lost) = lost.get(&table.id) {
            places.extend(lost);
            places.sort_unstable();
            places.dedup();
        }
        for segment in places.into_iter().filter_map(|place| table.segments.get(place as usize)) {
            let placed = table.placement.get(segment.shard as usize).into_iter().flatten();
            let mut lacks: Vec<&LiveWorker> =
                placed.filter_map(|id| live.get(id)).filter(|worker| !has(segment, worker)).collect();
            if lacks.is_empty() {
                continue;
            }
            lacks.sort_unstable_by(|a, b| a.id.cmp(&b.id));
            lacks.dedup_by(|a, b| a.id == b.id);
            let copies = readable(segment, live).count();
            if copies == 0 {
                continue;
            }
            let is_urgent = are_too_few(table, copies);
            lacks.retain(|worker| !is_under_way(&worker.id, &segment.name(), is_urgent));
            lacking.extend(lacks.into_iter().map(|worker| (is_urgent, copies, segment.as_ref(), &worker.id)));
        }
    }
    lacking.sort_by_key(|(is_urgent, copies, ..)| (!is_urgent, *copies));
    let mut orders = Vec::new();
    let mut given: HashMap<(&WorkerId, bool), usize> = HashMap::new();
    for (is_urgent, _, segment, worker) in lacking {
        let count = given.entry((worker, is_urgent)).or_default();
        if *count < per_worker_max {
            *count += 1;
            let request = FetchRequest {
                name: segment.name().to_string(),
                bytes: segment.bytes,
                crc32c: segment.crc32c,
                from: sources(segment, live, worker, orders.len()),
                urgent: is_urgent,
                ..FetchRequest::default()
            };
            orders.push((worker.clone(), request));
        }
    }
    orders
}

/// Whether so many copies that can be read are fewer than the table asks for; of
/// one that is to be everywhere, fewer than other tables ask for.
pub fn are_too_few(table: &Table, copies: usize) -> bool {
    let wanted = match table.layout.replicas {
        ReplicaCount::Count(count) => count,
        ReplicaCount::All => REPLICAS_DEFAULT,
    };
    copies < wanted as usize
}

/// The places of segments that live workers do not have although the catalog
/// counts on them, by table.
fn lost(state: &State, live: &LiveWorkers) -> HashMap<TableId, Vec<u32>> {
    let mut lost: HashMap<TableId, Vec<u32>> = HashMap::new();
    for name in live.workers.iter().flat_map(|worker| worker.holds.lacks()) {
        let place = state.table_by_id(name.table).and_then(|table| state.facts(table).place(name.segment));
        if let Some(place) = place.and_then(|place| u32::try_from(place).ok()) {
            lost.entry(name.table).or_default().push(place);
        }
    }
    lost
}

/// The live workers from which a segment can be read, by id.
pub fn readable<'a>(segment: &'a Segment, live: &'a LiveWorkers) -> impl Iterator<Item = &'a LiveWorker> {
    let name = segment.name();
    let replicas = segment.replicas.iter().filter_map(|id| live.get(id));
    let mut readable: Vec<_> = replicas.filter(|worker| worker.holds.contains(&name)).collect();
    readable.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    readable.into_iter()
}

/// Whether the segment can be read from the worker: the catalog counts it as
/// a replica, and it has the file.
pub fn has(segment: &Segment, worker: &LiveWorker) -> bool {
    segment.replicas.contains(&worker.id) && worker.holds.contains(&segment.name())
}

/// Readable replicas, starting with another one for each `turn`, but first those
/// of the zone of the worker that copies.
fn sources(segment: &Segment, live: &LiveWorkers, to: &WorkerId, turn: usize) -> Vec<Location> {
    let location = |worker: &LiveWorker| Location {
        worker: worker.id.to_string(),
        address: worker.address.clone(),
        zone: worker.zone.clone(),
    };
    let mut from: Vec<Location> = readable(segment, live).map(location).collect();
    if !from.is_empty() {
        let by = turn % from.len();
        from.rotate_left(by);
    }
    let zone = live.get(to).map(|worker| worker.zone.as_str());
    from.sort_by_key(|location| Some(location.zone.as_str()) != zone);
    from
}

#[cfg(test)]
mod tests;
