//! Whose shards should leave them: who is drained, and who has been away for too
//! long.
//!
//! Pure: from the catalog, who is a member and `now` to what is to be done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use shoal_proto::WorkerId;

use crate::catalog::{State, WorkerRecord};

/// Why the shards of a worker leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// It was away for too long.
    Dead,
    /// Somebody drains it, and some copies are still on it.
    Draining,
    /// Nothing is left on it.
    Drained,
}

/// A worker that was given up now, or for another reason than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The worker.
    pub worker: WorkerId,
    /// Why.
    pub why: GivenUp,
    /// Whether it holds or should hold something.
    pub is_used: bool,
}

/// The workers that are given up, and since when others have been away.
#[derive(Debug, Default)]
pub struct GivenUps {
    absent: HashMap<WorkerId, Instant>,
    why: BTreeMap<WorkerId, GivenUp>,
}

impl GivenUps {
    /// Why a worker is given up; none where it is not.
    pub fn get(&self, worker: &WorkerId) -> Option<GivenUp> {
        self.why.get(worker).copied()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&WorkerId, GivenUp)> {
        self.why.iter().map(|(worker, why)| (worker, *why))
    }

    /// Looks again. Where more than half of those that hold something are away, it
    /// is not they who are dead. A worker that a write still goes to is not drained.
    pub fn update(
        &mut self,
        now: Instant,
        dead_after: Duration,
        state: &State,
        is_member: impl Fn(&WorkerId) -> bool,
        is_written_to: impl Fn(&WorkerId) -> bool,
    ) -> Vec<News> {
        for WorkerRecord { id, .. } in state.workers() {
            if is_member(id) {
                self.absent.remove(id);
            } else {
                self.absent.entry(id.clone()).or_insert(now);
            }
        }
        let used = used_workers(state);
        let away = used.iter().filter(|id| self.absent.contains_key(**id)).count();
        let are_few_away = 2 * away <= used.len();
        let mut given_up = BTreeMap::new();
        for WorkerRecord { id, is_draining, .. } in state.workers() {
            let since = self.absent.get(id);
            let is_long_away = since.is_some_and(|since| now.saturating_duration_since(*since) >= dead_after);
            let was_dead = self.get(id) == Some(GivenUp::Dead);
            if *is_draining {
                let is_needed = used.contains(id) || is_written_to(id);
                let why = if is_needed { GivenUp::Draining } else { GivenUp::Drained };
                given_up.insert(id.clone(), why);
            } else if is_long_away && (was_dead || are_few_away) {
                given_up.insert(id.clone(), GivenUp::Dead);
            }
        }
        let new = given_up.iter().filter(|(worker, why)| self.why.get(*worker) != Some(*why));
        let news = new.map(|(worker, why)| News {
            worker: worker.clone(),
            why: *why,
            is_used: used.contains(worker),
        });
        let news = news.collect();
        self.why = given_up;
        news
    }
}

/// The workers that hold or should hold something.
fn used_workers(state: &State) -> BTreeSet<&WorkerId> {
    let placed = state.tables().flat_map(|table| table.placement.iter().flatten());
    let held = state.tables().flat_map(|table| &table.segments).flat_map(|segment| &segment.replicas);
    placed.chain(held).collect()
}
