//! Which copies should live elsewhere, and which are there too many.
//!
//! Pure: from the catalog and who is alive to commands. A shard moves in three
//! steps, each of which can be the last that happens: another worker is given
//! the shard and copies it (`repair`), then the old copy is taken out of the
//! catalog, then, when no query reads it any more, its file is removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use shoal_data::{ReplicaCount, Table};
use shoal_proto::{SegmentId, TableId, WorkerId};

use super::membership::LiveWorkers;
use super::placement::{Candidate, rehome};
use super::repair::has_all_copies;
use crate::catalog::{Command, State};

/// Shards that are moved at a time for evenness alone.
const MOVES_MAX: usize = 4;
/// A worker that has more than another by less than this part of the mean keeps it.
const UNEVEN_MIN: f64 = 0.05;

/// A shard that is a smaller part of the gap does not close it.
const CRUMB: u64 = 64;

/// One shard that moves, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The table, with its schema.
    pub table: String,
    /// Its shard.
    pub shard: u32,
    /// Workers that had it and will not.
    pub from: Vec<WorkerId>,
    /// Workers that will have it and did not.
    pub to: Vec<WorkerId>,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |workers: &[WorkerId]| {
            let names: Vec<_> = workers.iter().map(WorkerId::as_str).collect();
            names.join(", ")
        };
        let Self { table, shard, from, to } = self;
        match (from.is_empty(), to.is_empty()) {
            (false, false) => write!(f, "{table}, shard {shard}: from {} to {}", names(from), names(to)),
            (false, true) => write!(f, "{table}, shard {shard}: not on {} any more", names(from)),
            (true, _) => write!(f, "{table}, shard {shard}: also on {}", names(to)),
        }
    }
}

/// Where tables have too few or too many copies, or copies on workers that
/// `leave`: the placements that mend it.
pub fn mend(state: &State, workers: &[Candidate], leave: &BTreeSet<WorkerId>) -> Vec<Command> {
    let placements = state.tables().filter_map(|table| Some((table, rehome(table, workers, leave)?)));
    placements.map(|(table, placement)| moved(table, placement)).collect()
}

/// What the shards lack that stay on a worker although it is one that should
/// `leave`, for people to read: the first table that asks for more other workers
/// than there are. None where all can go.
pub fn lacking(
    state: &State,
    workers: &[Candidate],
    leave: &BTreeSet<WorkerId>,
    worker: &WorkerId,
) -> Option<String> {
    let mut on_worker =
        state.tables().filter(|table| table.placement.iter().flatten().any(|id| id == worker));
    on_worker.find_map(|table| lacking_of(table, workers, leave, worker))
}

fn lacking_of(
    table: &Table,
    workers: &[Candidate],
    leave: &BTreeSet<WorkerId>,
    worker: &WorkerId,
) -> Option<String> {
    let mended = rehome(table, workers, leave);
    let placement = mended.as_ref().unwrap_or(&table.placement);
    let staying = placement.iter().find(|shard| shard.contains(worker))?;
    let wanted = match table.layout.replicas {
        ReplicaCount::All => "a copy of each shard on every worker".to_owned(),
        ReplicaCount::Count(1) => "a copy of each shard".to_owned(),
        ReplicaCount::Count(count) => format!("{count} copies of each shard"),
    };
    let others = match staying.iter().filter(|id| !leave.contains(*id)).count() {
        0 => "no other worker".to_owned(),
        1 => "only 1 other worker".to_owned(),
        count => format!("only {count} other workers"),
    };
    let table = table.full_name();
    Some(format!("{table} is to have {wanted}, and {others} can hold one: start another worker"))
}

/// A few moves that leave the workers with more even numbers of bytes; none where
/// they are even enough. Tables of one group move together, and no two copies
/// come into one zone that were not.
pub fn even_out(state: &State, workers: &[Candidate]) -> Vec<Command> {
    let mut groups: Groups<'_> = BTreeMap::new();
    for table in state.tables() {
        if matches!(table.layout.replicas, ReplicaCount::Count(_)) {
            groups.entry(&table.placement).or_default().push(table);
        }
    }
    let mut groups: Vec<Group<'_>> =
        groups.into_iter().map(|(placement, tables)| Group::new(state, placement, tables)).collect();
    let mut load: BTreeMap<&WorkerId, u64> = workers.iter().map(|worker| (&worker.id, 0)).collect();
    for group in &groups {
        for (shard, bytes) in group.placement.iter().zip(&group.bytes) {
            for worker in shard {
                if let Some(load) = load.get_mut(worker) {
                    *load += bytes;
                }
            }
        }
    }
    let zones: HashMap<&WorkerId, &str> =
        workers.iter().map(|worker| (&worker.id, worker.zone.as_str())).collect();
    for _ in 0..MOVES_MAX {
        let Some((from, to, index, shard)) = best_move(&groups, &load, &zones) else { break };
        let bytes = groups[index].bytes[shard];
        for worker in groups[index].placement[shard].iter_mut().filter(|worker| **worker == *from) {
            worker.clone_from(to);
        }
        *load.entry(from).or_default() -= bytes;
        *load.entry(to).or_default() += bytes;
    }
    let changed = groups.into_iter().filter(|group| group.placement != *group.before);
    changed.flat_map(Group::into_commands).collect()
}

/// From whom to whom, and which shard of which group: the largest that fits, from
/// the fullest that has one to the emptiest that can take one.
fn best_move<'a>(
    groups: &[Group<'_>],
    load: &BTreeMap<&'a WorkerId, u64>,
    zones: &HashMap<&WorkerId, &str>,
) -> Option<(&'a WorkerId, &'a WorkerId, usize, usize)> {
    let mean = load.values().sum::<u64>() as f64 / load.len() as f64;
    let mut by_load: Vec<(u64, &'a WorkerId)> = load.iter().map(|(id, bytes)| (*bytes, *id)).collect();
    by_load.sort_unstable();
    let is_even = |gap: u64| gap == 0 || (gap as f64) < mean * UNEVEN_MIN;
    if is_even(by_load.last()?.0 - by_load.first()?.0) {
        return None;
    }
    let held = held_shards(groups);
    for &(most, from) in by_load.iter().rev() {
        let Some(of_from) = held.get(from) else { continue };
        for &(least, to) in &by_load {
            let gap = most.saturating_sub(least);
            if is_even(gap) {
                break;
            }
            // More would swing the other way.
            let bytes_max = gap / 4 * 3;
            let movable = of_from
                .iter()
                .copied()
                .filter(|(_, index, shard)| may_move(&groups[*index].placement[*shard], from, to, zones));
            let (fitting, too_large): (Vec<_>, Vec<_>) = movable.partition(|(bytes, ..)| *bytes <= bytes_max);
            let Some((bytes, index, shard)) = fitting.into_iter().max() else { continue };
            // Beside large shards, crumbs are not worth a move.
            if too_large.is_empty() || bytes >= gap / CRUMB {
                return Some((from, to, index, shard));
            }
        }
    }
    None
}

/// The shards with rows that each worker holds: their bytes, and which of which
/// group they are.
fn held_shards<'a>(groups: &'a [Group<'_>]) -> HashMap<&'a WorkerId, Vec<(u64, usize, usize)>> {
    let mut held: HashMap<&WorkerId, Vec<(u64, usize, usize)>> = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        for (shard, (workers, bytes)) in group.placement.iter().zip(&group.bytes).enumerate() {
            for worker in workers.iter().filter(|_| *bytes > 0) {
                held.entry(worker).or_default().push((*bytes, index, shard));
            }
        }
    }
    held
}

/// Copies on workers that should not hold them, where all that should have
/// theirs. A table that is to be everywhere has none too many but on workers that
/// `leave`: the others are about to be given their part.
pub fn surplus(state: &State, live: &LiveWorkers, leave: &BTreeSet<WorkerId>) -> Vec<Command> {
    let mut surplus: BTreeMap<(TableId, &WorkerId), Vec<SegmentId>> = BTreeMap::new();
    for table in state.tables() {
        let facts = state.facts(table);
        for segment in facts.surplus().iter().filter_map(|place| table.segments.get(*place as usize)) {
            let strangers = segment.replicas.iter().filter(|worker| {
                !table.should_hold(segment.shard, worker)
                    && (table.layout.replicas != ReplicaCount::All || leave.contains(worker))
            });
            for worker in strangers {
                if has_all_copies(table, segment, live) {
                    surplus.entry((table.id, worker)).or_default().push(segment.id);
                }
            }
        }
    }
    let command = |((table, worker), segments): ((TableId, &WorkerId), Vec<SegmentId>)| {
        Command::RemoveReplicas { table, worker: worker.clone(), segments }
    };
    surplus.into_iter().map(command).collect()
}

/// What a placement command changes, shard by shard.
pub fn changes(state: &State, command: &Command) -> Vec<Moved> {
    let Command::MoveShards { table, seen, placement } = command else { return Vec::new() };
    let table = state.table_by_id(*table).map(|table| table.full_name()).unwrap_or_default();
    let without = |these: &[WorkerId], those: &[WorkerId]| -> Vec<WorkerId> {
        these.iter().filter(|worker| !those.contains(worker)).cloned().collect()
    };
    let changed = seen.iter().zip(placement).zip(0_u32..).filter(|((before, after), _)| before != after);
    let moved = changed.map(|((before, after), shard)| Moved {
        table: table.clone(),
        shard,
        from: without(before, after),
        to: without(after, before),
    });
    moved.collect()
}

type Groups<'a> = BTreeMap<&'a Vec<Vec<WorkerId>>, Vec<&'a Arc<Table>>>;

/// Tables whose shards lie alike, and stay so.
struct Group<'a> {
    before: &'a Vec<Vec<WorkerId>>,
    placement: Vec<Vec<WorkerId>>,
    tables: Vec<&'a Arc<Table>>,
    /// Of each shard, over all tables.
    bytes: Vec<u64>,
}

impl<'a> Group<'a> {
    fn new(state: &State, before: &'a Vec<Vec<WorkerId>>, tables: Vec<&'a Arc<Table>>) -> Self {
        let mut bytes = vec![0; before.len()];
        for table in &tables {
            for (bytes, more) in bytes.iter_mut().zip(state.facts(table).shard_bytes()) {
                *bytes += more;
            }
        }
        Self { before, placement: before.clone(), tables, bytes }
    }

    fn into_commands(self) -> Vec<Command> {
        self.tables.iter().map(|table| moved(table, self.placement.clone())).collect()
    }
}

fn moved(table: &Table, placement: Vec<Vec<WorkerId>>) -> Command {
    Command::MoveShards { table: table.id, seen: table.placement.clone(), placement }
}

/// Whether a shard of these workers can go from one to another.
fn may_move(workers: &[WorkerId], from: &WorkerId, to: &WorkerId, zones: &HashMap<&WorkerId, &str>) -> bool {
    let in_zone = |zone: &str| {
        let others = workers.iter().filter(|worker| *worker != from);
        others.filter(|worker| zones.get(worker) == Some(&zone)).count()
    };
    let (Some(old), Some(new)) = (zones.get(from), zones.get(to)) else { return false };
    workers.contains(from) && !workers.contains(to) && in_zone(new) <= in_zone(old)
}

#[cfg(test)]
mod tests;
