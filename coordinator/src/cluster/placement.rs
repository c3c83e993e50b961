//! Which workers should hold which shard of a table.
//!
//! Pure and deterministic: the same workers and tables give the same answer.

use std::collections::{BTreeMap, BTreeSet};

use shoal_data::{ReplicaCount, Table, TableLayout};
use shoal_proto::WorkerId;

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
}

/// Places a new table: with the newest table of as many shards and replicas,
/// where that is whole on these workers, so that equal-numbered shards meet;
/// otherwise spread over zones first, then evenly over workers. None without
/// workers.
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
    let wanted = match layout.replicas {
        ReplicaCount::All => workers.len(),
        ReplicaCount::Count(count) => count as usize,
    };
    let copies = wanted.min(workers.len());
    let notice = (copies < wanted).then(|| {
        format!(
            "replicas = {wanted}, but there {} live: each shard gets {copies} for now",
            if copies == 1 { "is 1 worker".to_owned() } else { format!("are {copies} workers") }
        )
    });
    let shards = match layout.replicas {
        ReplicaCount::All => {
            let all: Vec<_> = workers.into_iter().map(|worker| worker.id).collect();
            vec![all; layout.shards as usize]
        }
        ReplicaCount::Count(_) => group_of(layout, &workers, copies, tables)
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
    let is_whole = |shard: &Vec<WorkerId>| {
        shard.len() >= copies && shard.iter().all(|id| workers.iter().any(|worker| worker.id == *id))
    };
    tables
        .filter(|table| table.layout.shards == layout.shards && table.layout.replicas == layout.replicas)
        .filter(|table| {
            table.placement.len() == layout.shards as usize && table.placement.iter().all(is_whole)
        })
        .max_by_key(|table| table.id)
        .map(|table| table.placement.clone())
}

/// The placement of a table as it should be: as many copies as it asks for, none
/// on workers that `leave`; none where it is that already. What leaves stays
/// where nobody can take its place. Workers that are neither `workers` nor leave
/// may come back, and keep what they have. Tables of one group get the same
/// answer.
pub fn rehome(
    table: &Table,
    workers: &[Candidate],
    leave: &BTreeSet<WorkerId>,
) -> Option<Vec<Vec<WorkerId>>> {
    let ReplicaCount::Count(wanted) = table.layout.replicas else {
        return None;
    };
    let wanted = wanted as usize;
    let mut workers = workers.to_vec();
    workers.sort();
    let index_of = |id: &WorkerId| workers.iter().position(|worker| worker.id == *id);
    let mut spread = Spread::over(&workers);
    let stays = |id: &&WorkerId| !leave.contains(*id);
    for worker in table.placement.iter().flatten().filter(stays).filter_map(index_of) {
        spread.load[worker] += 1;
    }
    let rehomed = table.placement.iter().map(|shard| {
        let mut kept: Vec<WorkerId> = shard.iter().filter(stays).cloned().collect();
        while kept.len() > wanted {
            // Whoever is not there, then whoever has most.
            let load = |id: &WorkerId| index_of(id).map_or(usize::MAX, |worker| spread.load[worker]);
            let Some(most) = (0..kept.len()).max_by_key(|&at| (load(&kept[at]), at)) else { break };
            if let Some(worker) = index_of(&kept.remove(most)) {
                spread.load[worker] -= 1;
            }
        }
        let chosen: Vec<usize> = kept.iter().filter_map(index_of).collect();
        let before = chosen.len();
        let chosen = spread.choose(chosen, before + wanted.saturating_sub(kept.len()));
        kept.extend(chosen[before..].iter().map(|&worker| workers[worker].id.clone()));
        let left = shard.iter().filter(|id| leave.contains(*id));
        let missing = wanted.saturating_sub(kept.len());
        kept.extend(left.take(missing).cloned());
        kept
    });
    let rehomed: Vec<Vec<WorkerId>> = rehomed.collect();
    (rehomed != table.placement).then_some(rehomed)
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

/// Workers, by their index, and what each holds so far.
struct Spread<'a> {
    zones: BTreeMap<&'a str, Vec<usize>>,
    load: Vec<usize>,
}

impl<'a> Spread<'a> {
    fn over(workers: &'a [Candidate]) -> Self {
        let mut zones: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, worker) in workers.iter().enumerate() {
            zones.entry(&worker.zone).or_default().push(index);
        }
        Self { zones, load: vec![0; workers.len()] }
    }

    /// Adds distinct workers to those of one shard until there are `copies`.
    fn choose(&mut self, mut chosen: Vec<usize>, copies: usize) -> Vec<usize> {
        while chosen.len() < copies {
            let in_zone = |zone: &Vec<usize>| {
                let used = zone.iter().filter(|worker| chosen.contains(worker)).count();
                let free = zone.iter().copied().filter(|worker| !chosen.contains(worker));
                let worker = free.min_by_key(|worker| self.load[*worker])?;
                let total: usize = zone.iter().map(|worker| self.load[*worker]).sum();
                Some(((used, self.load[worker], total), worker))
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
