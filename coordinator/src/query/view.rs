//! The cluster as one attempt sees it: frozen. The planner asks several times
//! per query who the workers are and where shards live; every answer comes
//! from here, so that they agree.

mod assignment;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion_distributed::WorkerResolver;
use parking_lot::Mutex;
use shoal_proto::exchange::worker_url;
use shoal_proto::{ErrorCode, Failure, TableId, WorkerId};
use url::Url;

use crate::catalog::TableFacts;
use crate::cluster::LiveWorkers;

/// How often the choice of workers is gone over to make it better, where it is not the best.
const ROUNDS_MAX: usize = 32;
/// Of so many tasks the best choice of workers is made: with as many workers in about a
/// millisecond.
const ASSIGNED_TASKS_MAX: usize = 64;

/// A worker that may take tasks of this attempt.
#[derive(Clone, Debug)]
pub struct ViewWorker {
    /// Its id.
    pub id: WorkerId,
    /// How plans name it.
    pub url: Url,
    /// Where it stands.
    pub zone: String,
    /// Threads on which it runs tasks.
    pub threads: u32,
    /// Limit of its query memory; 0: not known.
    pub memory_bytes: u64,
    /// What runs on it already.
    pub tasks_running: u32,
    holds: Arc<crate::cluster::Holds>,
}

/// One attempt's immutable picture of workers and shards.
#[derive(Debug)]
pub struct View {
    /// Workers that may take tasks, the preferred ones first.
    workers: Vec<ViewWorker>,
    /// Workers of other zones, where those of this one can do without them. They
    /// are numbered on from the others.
    beyond: Vec<ViewWorker>,
    /// Where the coordinator stands; may be empty.
    zone: String,
    /// For the shards of the tables in the query: which workers can read all of
    /// the shard from their own disk.
    readable: HashMap<(TableId, u32), BTreeSet<usize>>,
    /// Shards of each table of the query.
    shards: BTreeMap<TableId, usize>,
    /// Their names.
    names: BTreeMap<TableId, String>,
    /// Partitions of each task.
    partitions: usize,
    /// Workers chosen for a stage of so many tasks; the same for every stage
    /// of that size, so that stages meet where the rows are. A plan that is sent
    /// whole is one task.
    chosen: Mutex<BTreeMap<usize, Arc<Vec<usize>>>>,
}

impl View {
    /// The view of an attempt over `tables`. `turn` spreads small queries
    /// over the workers; `avoid` are workers that failed an earlier attempt.
    /// Where workers of `zone` can read all shards, no others take tasks; else
    /// they are preferred.
    ///
    /// # Errors
    /// `Unavailable` where no worker is left, naming those that were tried.
    pub fn new(
        live: &LiveWorkers,
        tables: &[Arc<TableFacts>],
        avoid: &BTreeSet<WorkerId>,
        zone: &str,
        turn: usize,
        partitions: usize,
    ) -> Result<Self, Failure> {
        let mut workers = Vec::with_capacity(live.workers.len());
        for worker in live.workers.iter().filter(|worker| !avoid.contains(&worker.id)) {
            let url = worker_url(&worker.address, &worker.id, &worker.zone);
            let url = url.map_err(|error| Failure::from_datafusion(&error))?;
            workers.push(ViewWorker {
                id: worker.id.clone(),
                url,
                zone: worker.zone.clone(),
                threads: worker.threads,
                memory_bytes: worker.memory_bytes,
                tasks_running: worker.tasks_running,
                holds: Arc::clone(&worker.holds),
            });
        }
        if workers.is_empty() {
            let tried: Vec<_> = avoid.iter().map(WorkerId::as_str).collect();
            let tried =
                if tried.is_empty() { String::new() } else { format!(" (tried {})", tried.join(", ")) };
            return Err(Failure::new(
                ErrorCode::Unavailable,
                format!("no live worker{tried}: start one with `shoal worker --coordinator URL ...`"),
            ));
        }
        let turn = turn % workers.len();
        workers.rotate_left(turn);
        workers.sort_by_key(|worker| worker.zone != zone);

        let mut readable = HashMap::new();
        for facts in tables {
            let (table, of_table) = (facts.table(), readers_of(facts, &workers));
            readable.extend((0_u32..).zip(of_table).map(|(shard, readers)| ((table.id, shard), readers)));
        }
        let near = workers.iter().filter(|worker| worker.zone == zone).count();
        let can_read_all = |holders: &BTreeSet<usize>| holders.first().is_some_and(|first| *first < near);
        let is_enough = !zone.is_empty() && near > 0 && readable.values().all(can_read_all);
        let beyond = if is_enough { workers.split_off(near) } else { Vec::new() };
        let tables = || tables.iter().map(|facts| facts.table());
        let shards = tables().map(|table| (table.id, table.layout.shards as usize)).collect();
        let names = tables().map(|table| (table.id, table.name.clone())).collect();
        let (zone, chosen) = (zone.to_owned(), Mutex::default());
        Ok(Self { workers, beyond, zone, readable, shards, names, partitions, chosen })
    }

    /// A view in which nobody takes tasks: for plans that read no data.
    pub(crate) fn without_workers() -> Self {
        Self {
            workers: Vec::new(),
            beyond: Vec::new(),
            zone: String::new(),
            readable: HashMap::new(),
            shards: BTreeMap::new(),
            names: BTreeMap::new(),
            partitions: 1,
            chosen: Mutex::default(),
        }
    }

    /// Where the coordinator stands; may be empty.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The limit of query memory of the worker that has least; none where it is not known.
    pub(crate) fn least_memory_bytes(&self) -> Option<u64> {
        self.workers.iter().map(|worker| worker.memory_bytes).filter(|bytes| *bytes > 0).min()
    }

    /// Bytes that a task is worth where each of its threads is worth so many: it has one for each of its partitions, if
    /// its worker has as many, whichever worker that is.
    pub(crate) fn task_bytes(&self, of_thread: usize) -> u64 {
        let threads = self.workers.iter().map(|worker| worker.threads as usize).min().unwrap_or(1);
        (of_thread as u64).saturating_mul(threads.clamp(1, self.partitions) as u64)
    }

    /// Shards of a table of the query.
    pub fn shards_of(&self, table: TableId) -> usize {
        self.shards.get(&table).copied().unwrap_or(1)
    }

    /// Whether there is a shard that no worker can read from its own disk.
    pub fn lacks_readers(&self) -> bool {
        self.readable.values().any(BTreeSet::is_empty)
    }

    /// The workers that can read all of a shard from their own disk, also those
    /// that take no tasks.
    pub fn readers(&self, table: TableId, shard: u32) -> BTreeSet<WorkerId> {
        let readers = self.readable.get(&(table, shard)).into_iter().flatten();
        let numbered = |&index: &usize| self.workers.iter().chain(&self.beyond).nth(index);
        readers.filter_map(numbered).map(|worker| worker.id.clone()).collect()
    }

    /// Whether each worker of a stage of so many tasks reads all of a shard from its own disk.
    pub(crate) fn is_read_by_each(&self, table: TableId, shard: u32, tasks: usize) -> bool {
        let Some(readers) = self.readable.get(&(table, shard)) else { return false };
        self.task_workers(tasks).iter().all(|worker| readers.contains(worker))
    }

    /// The name of a table of the query.
    pub fn table_name(&self, table: TableId) -> Option<String> {
        self.names.get(&table).cloned()
    }

    /// Workers that may take tasks.
    pub fn workers(&self) -> &[ViewWorker] {
        &self.workers
    }

    /// The workers for the tasks of a stage, in the order of the tasks. Each
    /// set covers as many shards of the query's tables as it can.
    pub fn task_workers(&self, tasks: usize) -> Arc<Vec<usize>> {
        let mut chosen = self.chosen.lock();
        let choice = chosen.entry(tasks).or_insert_with(|| Arc::new(self.choose(tasks)));
        Arc::clone(choice)
    }

    /// Chooses the worker for a plan that is sent whole and reads so many bytes of
    /// these shards: one that has most of them on its own disk. It is one of the
    /// used workers from then on. There must be a worker.
    pub fn assign_whole(&self, shards: &BTreeMap<(TableId, u32), u64>) -> &ViewWorker {
        let mut covers = vec![0; self.workers.len()];
        for (shard, bytes) in shards {
            for reader in self.readable.get(shard).into_iter().flat_map(|readers| self.near(readers)) {
                covers[*reader] += bytes;
            }
        }
        let best = self.best_of(0..self.workers.len(), &covers).unwrap_or_default();
        self.chosen.lock().insert(1, Arc::new(vec![best]));
        &self.workers[best]
    }

    /// The one of `candidates` that can read the most, by what each covers; of
    /// equal ones one of this zone, then an idle one before a busy one, then the
    /// earlier one, which the turn put there.
    fn best_of(&self, candidates: impl Iterator<Item = usize>, covers: &[u64]) -> Option<usize> {
        candidates.max_by_key(|index| {
            let worker = &self.workers[*index];
            (covers[*index], worker.zone == self.zone, Reverse(worker.tasks_running), Reverse(*index))
        })
    }

    /// Those of a shard's readers that may take tasks.
    fn near<'a>(&self, readers: &'a BTreeSet<usize>) -> impl Iterator<Item = &'a usize> + use<'a> {
        readers.range(..self.workers.len())
    }

    /// The workers that stages were given so far.
    pub fn used_workers(&self) -> BTreeSet<WorkerId> {
        self.chosen
            .lock()
            .values()
            .flat_map(|choice| choice.iter())
            .map(|&index| self.workers[index].id.clone())
            .collect()
    }

    fn choose(&self, tasks: usize) -> Vec<usize> {
        let mut choice: Vec<usize> = Vec::with_capacity(tasks);
        let mut is_chosen = vec![false; self.workers.len()];
        // Of the shards that nobody chosen so far reads, how many each worker does.
        let shards: Vec<&BTreeSet<usize>> = self.readable.values().collect();
        let mut read_by: Vec<Vec<usize>> = vec![Vec::new(); self.workers.len()];
        for (shard, readers) in shards.iter().enumerate() {
            for reader in self.near(readers) {
                read_by[*reader].push(shard);
            }
        }
        let mut covers: Vec<u64> = read_by.iter().map(|shards| shards.len() as u64).collect();
        let mut is_covered = vec![false; shards.len()];
        while choice.len() < tasks.min(self.workers.len()) {
            let others = (0..self.workers.len()).filter(|index| !is_chosen[*index]);
            let Some(best) = self.best_of(others, &covers) else { break };
            for shard in &read_by[best] {
                if !std::mem::replace(&mut is_covered[*shard], true) {
                    for reader in self.near(shards[*shard]) {
                        covers[*reader] -= 1;
                    }
                }
            }
            is_chosen[best] = true;
            choice.push(best);
        }
        // More tasks than workers: they share, in turn.
        let mut choice: Vec<usize> = (0..tasks).map(|task| choice[task % choice.len()]).collect();
        self.improve(&mut choice);
        choice
    }

    /// Changes which worker each task has, so that as many as can be of the shards that the
    /// hash layout gives to a task are on its worker's disk.
    fn improve(&self, choice: &mut [usize]) {
        let count = choice.len() * self.partitions;
        // How many of the shards of each task each worker reads.
        let mut scores = vec![vec![0_i64; self.workers.len()]; choice.len()];
        let hashed =
            self.readable.iter().filter(|((table, _), _)| self.shards_of(*table).is_multiple_of(count));
        let mut is_hashed = false;
        for ((_, shard), readers) in hashed {
            is_hashed = true;
            let scores = &mut scores[(*shard as usize % count) / self.partitions];
            for reader in self.near(readers) {
                scores[*reader] += 1;
            }
        }
        if !is_hashed {
            return;
        }
        let is_one_each = choice.iter().collect::<BTreeSet<_>>().len() == choice.len();
        if !is_one_each || choice.len() > ASSIGNED_TASKS_MAX {
            return Self::swap(choice, &scores);
        }
        // Of workers that read as much those that were chosen are taken, and in their order.
        let more = 2 * choice.len() as i64 + 1;
        let is_chosen: BTreeSet<usize> = choice.iter().copied().collect();
        for (scores, mine) in scores.iter_mut().zip(choice.iter()) {
            for (worker, score) in scores.iter_mut().enumerate() {
                *score = *score * more + i64::from(is_chosen.contains(&worker)) + i64::from(worker == *mine);
            }
        }
        choice.copy_from_slice(&assignment::best(&scores));
    }

    /// Swaps workers between tasks as long as that is better.
    fn swap(choice: &mut [usize], scores: &[Vec<i64>]) {
        for _round in 0..choice.len().min(ROUNDS_MAX) {
            let mut is_better = false;
            for task in 0..choice.len() {
                for other in 0..choice.len() {
                    let (mine, theirs) = (choice[task], choice[other]);
                    let swapped = scores[task][theirs] + scores[other][mine];
                    if swapped > scores[task][mine] + scores[other][theirs] {
                        choice.swap(task, other);
                        is_better = true;
                    }
                }
            }
            if !is_better {
                break;
            }
        }
    }

    /// Deals shards to the tasks of a stage: each to a task whose worker can
    /// read it from its own disk, the least loaded first, then to any. Gives
    /// the task of each shard, in the order of `shards`. The same for the
    /// same arguments; depends on a shard's number and readers alone, so that
    /// tables of one placement group are dealt alike.
    pub fn deal(&self, shards: &[ShardLoad], tasks: usize) -> Vec<usize> {
        let workers = self.task_workers(tasks);
        let mut tasks_of: HashMap<usize, Vec<usize>> = HashMap::new();
        for (task, worker) in workers.iter().enumerate() {
            tasks_of.entry(*worker).or_default().push(task);
        }
        let mut loads = vec![0_u64; tasks];
        let mut counts = vec![0_usize; tasks];
        shards
            .iter()
            .map(|shard| {
                let readers = self.readable.get(&(shard.table, shard.shard)).into_iter().flatten();
                let task = readers
                    .filter_map(|reader| tasks_of.get(reader))
                    .flatten()
                    .copied()
                    .min_by_key(|&task| (loads[task], counts[task], task))
                    .or_else(|| (0..tasks).min_by_key(|&task| (loads[task], counts[task], task)))
                    .unwrap_or_default();
                loads[task] += shard.bytes;
                counts[task] += 1;
                task
            })
            .collect()
    }
}

/// For each shard of a table, which of `workers` can read all of it from their own
/// disk: of a shard without segments, all of them.
fn readers_of(facts: &TableFacts, workers: &[ViewWorker]) -> Vec<BTreeSet<usize>> {
    let numbers: HashMap<&WorkerId, usize> =
        workers.iter().enumerate().map(|(index, worker)| (&worker.id, index)).collect();
    let of_shard = |replicas: &Option<Vec<WorkerId>>| -> BTreeSet<usize> {
        match replicas {
            Some(replicas) => replicas.iter().filter_map(|id| numbers.get(id).copied()).collect(),
            None => (0..workers.len()).collect(),
        }
    };
    let mut readers: Vec<BTreeSet<usize>> = facts.shard_replicas().iter().map(of_shard).collect();
    for (index, worker) in workers.iter().enumerate() {
        for name in worker.holds.lacks().filter(|name| name.table == facts.table().id) {
            let place = facts.place(name.segment);
            let is_there = place
                .and_then(|place| facts.table().segments.get(place))
                .is_some_and(|segment| segment.shard == name.shard);
            if is_there && let Some(readers) = readers.get_mut(name.shard as usize) {
                readers.remove(&index);
            }
        }
    }
    readers
}

/// A shard to be dealt.
#[derive(Clone, Copy, Debug)]
pub struct ShardLoad {
    /// The table.
    pub table: TableId,
    /// Its shard.
    pub shard: u32,
    /// Bytes to be read of it.
    pub bytes: u64,
}

/// The view as datafusion-distributed asks for it.
#[derive(Clone, Debug)]
pub(crate) struct ViewResolver(pub Arc<View>);

impl WorkerResolver for ViewResolver {
    fn get_urls(&self) -> Result<Vec<Url>, DataFusionError> {
        // Never empty: a view without workers cannot be made.
        Ok(self.0.workers.iter().map(|worker| worker.url.clone()).collect())
    }
}

#[cfg(test)]
mod tests;
