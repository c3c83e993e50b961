//! What is done for tables whatever is asked of them: what was dropped is
//! removed, shards get workers that can hold them, and copies that are missing
//! are made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use shoal_proto::WorkerId;

use super::{Cluster, GivenUp, candidates};
use crate::catalog::{Command, State, WorkerRecord};
use crate::cluster::events::EventKind;
use crate::cluster::{moves, repair};

/// Copies that one worker makes at a time.
const FETCHES_MAX: usize = 16;
/// After so long a copy that was ordered is ordered again.
const FETCH_MAX: Duration = Duration::from_secs(60);

impl Cluster {
    /// Removes what was dropped and no query reads any more.
    pub(super) fn collect(&self) {
        let free = self.pins.collect(|| self.catalog.take_dropped());
        if !free.is_empty() {
            tracing::info!(segments = free.len(), "dropped segments are removed");
            self.discard(free.iter().map(|segment| (segment.name(), segment.replicas.clone())).collect());
        }
    }

    /// Brings copies that were made into the catalog, then lets them count.
    pub(super) async fn record_fetched(&self) {
        let fetched = std::mem::take(&mut self.core.lock().fetched);
        let commands = fetched.iter().map(|(worker, name)| {
            let worker = worker.clone();
            self.catalog.apply(Command::AddReplica { table: name.table, segment: name.segment, worker })
        });
        let outcomes = join_all(commands).await;
        let mut core = self.core.lock();
        for ((worker, name), outcome) in fetched.iter().zip(outcomes) {
            match outcome {
                Ok(_) => core.membership.gained(worker, name),
                Err(error) => tracing::warn!(%worker, segment = %name, %error, "copy not recorded"),
            }
        }
        if !fetched.is_empty() {
            self.publish(&core);
        }
    }

    /// Finds out whose shards should leave: who has been away for too long, and
    /// who is drained.
    pub(super) fn give_up(&self, now: Instant) {
        let state = self.catalog.snapshot();
        let mut core = self.core.lock();
        let core = &mut *core;
        let mut given_up = BTreeMap::new();
        for WorkerRecord { id, is_draining, .. } in state.workers() {
            if core.membership.is_member(id) {
                core.absent.remove(id);
            } else {
                let since = *core.absent.entry(id.clone()).or_insert(now);
                if now.saturating_duration_since(since) >= self.dead_after {
                    given_up.insert(id.clone(), GivenUp::Dead);
                    continue;
                }
            }
            if *is_draining {
                let why = if is_used(&state, id) { GivenUp::Draining } else { GivenUp::Drained };
                given_up.insert(id.clone(), why);
            }
        }
        for (worker, why) in &given_up {
            if core.given_up.get(worker) != Some(why) {
                self.tell_given_up(worker, *why);
            }
        }
        core.given_up = given_up;
    }

    fn tell_given_up(&self, worker: &WorkerId, why: GivenUp) {
        let (kind, message) = match why {
            GivenUp::Dead => {
                let away = self.dead_after.as_secs_f64();
                (EventKind::Dead, format!("away for {away:.0} s: its shards get other workers"))
            }
            GivenUp::Draining => (EventKind::Draining, "its shards get other workers".to_owned()),
            GivenUp::Drained => (EventKind::Drained, "nothing is left on it: it may be stopped".to_owned()),
        };
        tracing::warn!(%worker, kind = kind.name(), message);
        self.events.tell(kind, Some(worker), message);
    }

    /// Gives shards other workers: where there are too few copies or too many,
    /// where workers are given up, and, when all that is done, where workers
    /// hold more than others. Takes out copies that are too many then.
    pub(super) async fn place_anew(&self) {
        let live = self.live();
        let state = self.catalog.snapshot();
        let workers = candidates(&live, &state);
        let leave: BTreeSet<WorkerId> = self.core.lock().given_up.keys().cloned().collect();
        let mut commands = moves::mend(&state, &workers, &leave);
        if commands.is_empty() {
            commands = moves::surplus(&state, &live);
        }
        let is_there = |worker: &WorkerRecord| leave.contains(&worker.id) || live.get(&worker.id).is_some();
        // Evenness can wait until all that are expected are here and complete.
        if commands.is_empty()
            && state.workers().all(is_there)
            && repair::missing(&state, &live, 1, |_, _| false).is_empty()
        {
            commands = moves::even_out(&state, &workers);
        }
        for moved in commands.iter().flat_map(|command| moves::changes(&state, command)) {
            let message = moved.to_string();
            tracing::info!("{message}");
            self.events.tell(EventKind::Moved, None, message);
        }
        let outcomes = join_all(commands.into_iter().map(|command| self.catalog.apply(command))).await;
        for error in outcomes.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "shards not moved");
        }
    }

    pub(super) fn order_copies(&self, now: Instant) {
        let live = self.live();
        let state = self.catalog.snapshot();
        let mut core = self.core.lock();
        let core = &mut *core;
        for fetching in core.fetching.values_mut() {
            fetching.retain(|_, since| now.saturating_duration_since(*since) < FETCH_MAX);
        }
        let fetching = &core.fetching;
        let orders = repair::missing(&state, &live, FETCHES_MAX, |worker, name| {
            let under_way = fetching.get(worker);
            under_way.is_some_and(|names| names.len() >= FETCHES_MAX || names.contains_key(name))
        });
        for (worker, request) in orders {
            let Ok(name) = request.name.parse() else {
                continue;
            };
            core.fetching.entry(worker.clone()).or_default().insert(name, now);
            core.waiting.entry(worker).or_default().fetch.push(request);
        }
    }
}

/// Whether a worker holds or should hold something.
fn is_used(state: &State, worker: &WorkerId) -> bool {
    state.tables().any(|table| {
        table.placement.iter().flatten().any(|placed| placed == worker)
            || table.segments.iter().any(|segment| segment.replicas.contains(worker))
    })
}
