//! Which workers should hold which shard of a table.
//!
//! Pure and deterministic: the same workers and tables give the same answer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use shoal_data::{ReplicaCount, Table, TableLayout};
use shoal_proto::WorkerId;

use self::ring::ring;
use super::disk::{Disk, Fill, fills};

mod ring;

/// Partitions of each task of a query, each of which reads whole shards: what the shards of one task are
/// follows from it.
pub const TASK_PARTITIONS: usize = 2;

/// Where the shards of a table live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The workers of each shard.
    pub shards: Vec<Vec<WorkerId>>,
    /// What its owner should know: that there are fewer copies than asked for.
    pub notice: Option<String>,
}

/// A worker that can hold shards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The worker.
    pub id: WorkerId,
    /// Its zone; workers without one share the empty zone.
    pub zone: String,
    /// Where its shards would go.
    pub disk: Disk,
}

/// Places a new table: with the newest table of as many shards and replicas,
/// where that is whole on these workers, so that equal-numbered shards meet;
/// otherwise so that the shards of each task of a scan are together, where that is even;
/// otherwise spread over zones first, then evenly over workers. Those whose disks
/// are full are left out, and the notice counts only the others. None without workers.
pub fn place<'a>(
    layout: &TableLayout,
    workers: &[Candidate],
    tables: impl Iterator<Item = &'a Table>,
) -> Option<Placement> {
    let mut workers = workers.to_vec();
    workers.sort();
    workers.dedup_by(|a, b| a.id == b.id);
    if workers.is_empty() {
        return None;
    }
    let live = workers.len();
    let mut fills = fills(&workers).into_iter();
    workers.retain(|_| fills.next() != Some(Fill::Full));
    let wanted = match layout.replicas {
        ReplicaCount::All => workers.len(),
        ReplicaCount::Count(count) => count as usize,
    };
    let copies = wanted.min(workers.len());
    let notice = (copies < wanted).then(|| {
        format!(
            "replicas = {wanted}, but there {} live{}: each shard gets {copies} for now",
            if copies == 1 { "is 1 worker".to_owned() } else { format!("are {copies} workers") },
            if copies < live { " whose disks are not full" } else { "" }
        )
    });
    let shards = match layout.replicas {
        ReplicaCount::All => {
            let all: Vec<_> = workers.into_iter().map(|worker| worker.id).collect();
            vec![all; layout.shards as usize]
        }
        ReplicaCount::Count(_) => group_of(layout, &workers, copies, tables)
            .or_else(|| ring(layout.shards as usize, copies, &workers, TASK_PARTITIONS))
            .unwrap_or_else(|| spread(layout.shards as usize, copies, &workers)),
    };
    Some(Placement { shards, notice })
}

/// The placement of the newest table of the same group, if it is as good as a
/// new one would be.
fn group_of<'a>(
    layout: &TableLayout,
    workers: &[Candidate],
    copies: usize,
    tables: impl Iterator<Item = &'a Table>,
) -> Option<Vec<Vec<WorkerId>>> {
    let here: HashSet<&WorkerId> = workers.iter().map(|worker| &worker.id).collect();
    let is_whole = |shard: &Vec<WorkerId>| shard.len() >= copies && shard.iter().all(|id| here.contains(id));
    tables
        .filter(|table| table.layout.shards == layout.shards && table.layout.replicas == layout.replicas)
        .filter(|table| {
            table.placement.len() == layout.shards as usize && table.placement.iter().all(is_whole)
        })
        .max_by_key(|table| table.id)
        .map(|table| table.placement.clone())
}

/// The placement of a table as it should be: as many copies as it asks for, none
/// on workers that `leave`; none where it is that already. All that leave stay
/// where there are too few to take their place. Workers that are neither `workers` nor leave
/// may come back, and keep what they have. Nothing new goes where the disk is
/// full. Tables of one group get the same answer.
pub fn rehome(
    table: &Table,
    workers: &[Candidate],
    leave: &BTreeSet<WorkerId>,
) -> Option<Vec<Vec<WorkerId>>> {
    let is_right = |shard: &Vec<WorkerId>| is_right(table.layout.replicas, shard, workers, leave);
    if table.placement.iter().all(is_right) { None } else { rehomed(table, workers, leave) }
}

fn rehomed(table: &Table, workers: &[Candidate], leave: &BTreeSet<WorkerId>) -> Option<Vec<Vec<WorkerId>>> {
    let mut workers = workers.to_vec();
    workers.retain(|worker| !leave.contains(&worker.id));
    workers.sort();
    let mut spread = Spread::over(&workers);
    for worker in table.placement.iter().flatten().filter(|id| !leave.contains(*id)) {
        spread.count(worker, 1);
    }
    let rehomed = table.placement.iter().map(|shard| {
        let (left, mut kept): (Vec<_>, Vec<_>) = shard.iter().cloned().partition(|id| leave.contains(id));
        let wanted = match table.layout.replicas {
            ReplicaCount::Count(count) => count as usize,
            ReplicaCount::All => {
                let new = spread.open().filter(|worker| !kept.contains(&worker.id));
                kept.len() + new.count()
            }
        };
        while kept.len() > wanted {
            let Some(least) = (0..kept.len()).max_by_key(|&at| (spread.crowding(&kept, at), at)) else {
                break;
            };
            spread.count(&kept.remove(least), -1);
        }
        spread.complete(&mut kept, wanted);
        if kept.is_empty() || kept.len() < wanted {
            kept.extend(left);
        }
        let is_same = kept.len() == shard.len() && kept.iter().all(|id| shard.contains(id));
        if is_same { shard.clone() } else { kept }
    });
    let rehomed: Vec<Vec<WorkerId>> = rehomed.collect();
    (rehomed != table.placement).then_some(rehomed)
}

/// Whether a shard is on as many workers as it should be, and none of them leaves:
/// nearly always, and quickly told.
fn is_right(
    replicas: ReplicaCount,
    shard: &[WorkerId],
    workers: &[Candidate],
    leave: &BTreeSet<WorkerId>,
) -> bool {
    if !leave.is_empty() && shard.iter().any(|id| leave.contains(id)) {
        return false;
    }
    match replicas {
        ReplicaCount::Count(count) => shard.len() == count as usize,
        ReplicaCount::All => {
            let here: HashSet<&WorkerId> = shard.iter().collect();
            workers.iter().all(|worker| here.contains(&worker.id) || leave.contains(&worker.id))
        }
    }
}

/// Copies of each shard on distinct workers: as many zones as there can be,
/// then the least loaded. Within a zone no worker holds more than one shard
/// more than another; over zones of one size neither.
fn spread(shards: usize, copies: usize, workers: &[Candidate]) -> Vec<Vec<WorkerId>> {
    let mut spread = Spread::over(workers);
    let shard = |_| {
        let chosen = spread.choose(Vec::with_capacity(copies), copies);
        chosen.into_iter().map(|worker| workers[worker].id.clone()).collect()
    };
    (0..shards).map(shard).collect()
}

/// Workers, by their index, what each holds so far, and how full it is.
struct Spread<'a> {
    workers: &'a [Candidate],
    indexes: HashMap<&'a WorkerId, usize>,
    zones: BTreeMap<&'a str, Vec<usize>>,
    load: Vec<usize>,
    fills: Vec<Fill>,
}

impl<'a> Spread<'a> {
    fn over(workers: &'a [Candidate]) -> Self {
        let mut zones: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, worker) in workers.iter().enumerate() {
            zones.entry(&worker.zone).or_default().push(index);
        }
        let indexes = workers.iter().enumerate().map(|(index, worker)| (&worker.id, index)).collect();
        Self { workers, indexes, zones, load: vec![0; workers.len()], fills: fills(workers) }
    }

    /// Those that more can go to.
    fn open(&self) -> impl Iterator<Item = &'a Candidate> {
        let all = self.workers.iter().zip(&self.fills);
        all.filter(|(_, fill)| **fill != Fill::Full).map(|(worker, _)| worker)
    }

    fn index_of(&self, id: &WorkerId) -> Option<usize> {
        self.indexes.get(id).copied()
    }

    /// How little one of a shard's workers is needed: most of all one that is not
    /// here, then one that shares its zone with more, then one that has more.
    fn crowding(&self, shard: &[WorkerId], at: usize) -> (bool, usize, usize) {
        let Some(worker) = self.index_of(&shard[at]) else { return (true, 0, 0) };
        let here = shard.iter().filter_map(|id| self.index_of(id));
        let zone = &self.workers[worker].zone;
        let in_zone = here.filter(|other| self.workers[*other].zone == *zone).count();
        (false, in_zone, self.load[worker])
    }

    /// Counts so many shards more on a worker, if it is one of these.
    fn count(&mut self, id: &WorkerId, shards: isize) {
        if let Some(worker) = self.index_of(id) {
            self.load[worker] = self.load[worker].saturating_add_signed(shards);
        }
    }

    /// Adds workers to those of one shard, some of which may be others than
    /// these, until there are `copies`.
    fn complete(&mut self, shard: &mut Vec<WorkerId>, copies: usize) {
        let here: Vec<usize> = shard.iter().filter_map(|id| self.index_of(id)).collect();
        let before = here.len();
        let chosen = self.choose(here, before + copies.saturating_sub(shard.len()));
        shard.extend(chosen[before..].iter().map(|&worker| self.workers[worker].id.clone()));
    }

    /// Adds distinct workers to those of one shard until there are `copies`.
    fn choose(&mut self, mut chosen: Vec<usize>, copies: usize) -> Vec<usize> {
        while chosen.len() < copies {
            let in_zone = |zone: &Vec<usize>| {
                let used = zone.iter().filter(|worker| chosen.contains(worker)).count();
                let free = zone.iter().copied().filter(|worker| !chosen.contains(worker));
                let open = free.filter(|worker| self.fills[*worker] != Fill::Full);
                let worker = open.min_by_key(|worker| (self.fills[*worker], self.load[*worker]))?;
                let total: usize = zone.iter().map(|worker| self.load[*worker]).sum();
                Some(((used, self.fills[worker], self.load[worker], total), worker))
            };
            let Some((_, worker)) = self.zones.values().filter_map(in_zone).min() else {
                break;
            };
            self.load[worker] += 1;
            chosen.push(worker);
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
