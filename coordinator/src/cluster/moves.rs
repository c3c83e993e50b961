//! Which copies should live elsewhere, and which are there too many.
//!
//! Pure: from the catalog and who is alive to commands. A shard moves in three
//! steps, each of which can be the last that happens: another worker is given
//! the shard and copies it (`repair`), then the old copy is taken out of the
//! catalog, then, when no query reads it any more, its file is removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_data::{ReplicaCount, Table};
use shoal_proto::{SegmentId, TableId, WorkerId};

use super::disk::{Fill, fills, weights};
use super::membership::LiveWorkers;
use super::placement::{Candidate, rehome};
use super::repair::{has_all_copies, missing};
use crate::catalog::{Command, State, WorkerRecord};

mod apart;

/// Shards that are moved at a time for evenness or zones alone.
const MOVES_MAX: usize = 4;
/// A worker that has more than another by less than this part of the mean keeps it.
const UNEVEN_MIN: f64 = 0.05;

/// A shard that is a smaller part of the gap does not close it.
const CRUMB: u64 = 64;

/// One shard that moves, for people to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// What is to be done now: what `leave` makes necessary or there is too little
/// of, then what is too much, and when all that is done, what is uneven.
pub fn due(
    state: &State,
    live: &LiveWorkers,
    workers: &[Candidate],
    leave: &BTreeSet<WorkerId>,
) -> Vec<Command> {
    let mut commands = mend(state, workers, leave);
    if commands.is_empty() {
        commands = surplus(state, live, leave);
    }
    let is_there = |worker: &WorkerRecord| leave.contains(&worker.id) || live.get(&worker.id).is_some();
    // Evenness can wait until all that are expected are here and complete.
    if commands.is_empty()
        && state.workers().all(is_there)
        && missing(state, live, 1, |_, _, _| false).is_empty()
    {
        commands = even_out(state, workers);
    }
    commands
}

/// The same without waiting for anybody.
pub fn at_once(state: &State, workers: &[Candidate], leave: &BTreeSet<WorkerId>) -> Vec<Command> {
    let mended = mend(state, workers, leave);
    if mended.is_empty() { even_out(state, workers) } else { mended }
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

/// A few moves that bring copies of a shard from one zone to another that has none, and
/// then leave the workers with more even numbers of bytes, for the sizes of their disks;
/// none where they are even enough. Tables of one group move together, no two copies
/// come into one zone that were not, and nothing goes where there is less room than
/// elsewhere.
pub fn even_out(state: &State, workers: &[Candidate]) -> Vec<Command> {
    let mut groups = grouped(state);
    let mut load = load_of(workers, &groups);
    let zones: HashMap<&WorkerId, &str> =
        workers.iter().map(|worker| (&worker.id, worker.zone.as_str())).collect();
    let mut sizes = sizes(workers);
    for _ in 0..MOVES_MAX {
        let apart = apart::best_move(&groups, &by_load(&load, &sizes), &zones);
        let next = apart.or_else(|| best_move(&groups, &load, &zones, &sizes));
        let Some((from, to, index, shard)) = next else { break };
        let bytes = groups[index].bytes[shard];
        if let Some(size) = sizes.get_mut(to) {
            size.room_bytes = size.room_bytes.saturating_sub(bytes);
        }
        for worker in groups[index].placement[shard].iter_mut().filter(|worker| **worker == *from) {
            worker.clone_from(to);
        }
        *load.entry(from).or_default() -= bytes;
        *load.entry(to).or_default() += bytes;
    }
    let changed = groups.into_iter().filter(|group| group.placement != *group.before);
    changed.flat_map(Group::into_commands).collect()
}

/// Why [`even_out`] moves nothing, for people to read.
pub fn why_not(state: &State, workers: &[Candidate]) -> String {
    let (load, sizes) = (load_of(workers, &grouped(state)), sizes(workers));
    let by_load = by_load(&load, &sizes);
    let mean = mean(&load);
    let (emptiest, fullest) = match by_load.as_slice() {
        [] => return "no worker can take shards".to_owned(),
        [only] => return format!("{} is the only worker that can take shards", only.id),
        [emptiest, .., fullest] => (emptiest, fullest),
    };
    if fullest.bytes == 0 {
        return "no table has rows in shards that could go elsewhere".to_owned();
    }
    let held =
        format!("{} holds {} bytes and {} holds {}", fullest.id, fullest.bytes, emptiest.id, emptiest.bytes);
    let are_even = by_load.iter().all(|one| by_load.iter().all(|other| is_even(one.gap_to(other), mean)));
    if are_even {
        return format!("workers hold as much as they should: {held}");
    }
    format!(
        "{held}, and no shard can go that would make it more even: each is too large, is there already, would bring \
         two copies into one zone, or finds no room"
    )
}

fn grouped(state: &State) -> Vec<Group<'_>> {
    let mut groups: Groups<'_> = BTreeMap::new();
    for table in state.tables() {
        if matches!(table.layout.replicas, ReplicaCount::Count(_)) {
            groups.entry(&table.placement).or_default().push(table);
        }
    }
    groups.into_iter().map(|(placement, tables)| Group::new(state, placement, tables)).collect()
}

/// Bytes that each of these workers is to hold.
fn load_of<'a>(workers: &'a [Candidate], groups: &[Group<'_>]) -> BTreeMap<&'a WorkerId, u64> {
    let mut load: BTreeMap<&WorkerId, u64> = workers.iter().map(|worker| (&worker.id, 0)).collect();
    for group in groups {
        for (shard, bytes) in group.placement.iter().zip(&group.bytes) {
            for worker in shard {
                if let Some(load) = load.get_mut(worker) {
                    *load += bytes;
                }
            }
        }
    }
    load
}

fn mean(load: &BTreeMap<&WorkerId, u64>) -> f64 {
    load.values().sum::<u64>() as f64 / load.len() as f64
}

/// Whether a gap between two workers is not worth a move.
fn is_even(gap: u64, mean: f64) -> bool {
    gap == 0 || (gap as f64) < mean * UNEVEN_MIN
}

/// How much a worker should hold, against others, and what may still go there.
#[derive(Clone, Copy)]
struct Size {
    weight: u64,
    room_bytes: u64,
}

fn sizes(workers: &[Candidate]) -> BTreeMap<&WorkerId, Size> {
    let weights = weights(workers);
    let with_fills = workers.iter().zip(fills(workers));
    let sized = with_fills.map(|(worker, fill)| {
        let weight = weights.get(&worker.id).copied().unwrap_or(1);
        let room_bytes = if fill == Fill::Roomy { worker.disk.room_bytes() } else { 0 };
        (&worker.id, Size { weight, room_bytes })
    });
    sized.collect()
}

/// A worker with so many bytes.
#[derive(Clone, Copy)]
struct Loaded<'a> {
    id: &'a WorkerId,
    bytes: u64,
    size: Size,
}

impl Loaded<'_> {
    /// How full it is for its size, in parts of a byte for each unit of weight.
    fn fullness(&self) -> u128 {
        (u128::from(self.bytes) << 32) / u128::from(self.size.weight)
    }

    /// Bytes that it has more than another one: half of them would leave both
    /// equally full for their sizes.
    fn gap_to(&self, other: &Self) -> u64 {
        let (heavy, light) = (u128::from(self.size.weight), u128::from(other.size.weight));
        let over = (u128::from(self.bytes) * light).saturating_sub(u128::from(other.bytes) * heavy);
        u64::try_from(2 * over / (heavy + light)).unwrap_or(u64::MAX)
    }
}

/// The emptiest for their sizes first.
fn by_load<'a>(load: &BTreeMap<&'a WorkerId, u64>, sizes: &BTreeMap<&WorkerId, Size>) -> Vec<Loaded<'a>> {
    let loaded = load.iter().filter_map(|(&id, &bytes)| Some(Loaded { id, bytes, size: *sizes.get(id)? }));
    let mut by_load: Vec<Loaded<'a>> = loaded.collect();
    by_load.sort_unstable_by_key(|worker| (worker.fullness(), worker.id));
    by_load
}

/// From whom to whom, and which shard of which group: the largest that fits, from
/// the fullest that has one to the emptiest that can take one.
fn best_move<'a>(
    groups: &[Group<'_>],
    load: &BTreeMap<&'a WorkerId, u64>,
    zones: &HashMap<&WorkerId, &str>,
    sizes: &BTreeMap<&WorkerId, Size>,
) -> Option<(&'a WorkerId, &'a WorkerId, usize, usize)> {
    let (by_load, mean, held) = (by_load(load, sizes), mean(load), held_shards(groups));
    for fuller in by_load.iter().rev() {
        let Some(of_fuller) = held.get(fuller.id) else { continue };
        for emptier in &by_load {
            let gap = fuller.gap_to(emptier);
            if is_even(gap, mean) || emptier.size.room_bytes == 0 {
                continue;
            }
            let (from, to) = (fuller.id, emptier.id);
            // More would swing the other way.
            let bytes_max = (gap / 4 * 3).min(emptier.size.room_bytes);
            let movable = of_fuller
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
