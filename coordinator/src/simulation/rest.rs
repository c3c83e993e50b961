//! How a story ends: when nothing goes wrong any more, all that was begun comes
//! to its end.

use std::collections::BTreeSet;

use shoal_data::{ReplicaCount, SegmentName};
use shoal_proto::WorkerId;

use super::context::{Happening, Millis};
use super::network::Node;
use super::world::World;
use crate::catalog::{Command, State};
use crate::cluster::adapter::candidates::candidates_of;
use crate::cluster::arriving::bytes_to_come;

/// Seconds that it may take.
const SECONDS_MAX: usize = 90;
/// Seconds for which nothing may change then.
const STILL: usize = 4;

impl World {
    /// Lets all that goes wrong end, and sees to it that nothing is left to do.
    pub(super) fn come_to_rest(&mut self) {
        self.context.note(format_args!("nothing goes wrong any more"));
        self.context.network.calm();
        self.leave_one();
        for node in self.context.network.nodes() {
            let delay = self.context.chance.between(10, 500);
            self.context.happens_after(delay, Happening::Start(node));
        }
        // Who wants to be drained wants that as long as its process lives.
        let drained = self.workers.iter().filter(|worker| worker.wants_drain);
        let drained: Vec<Node> = drained.map(|worker| worker.node()).collect();
        for node in drained {
            self.crash(node, true);
            self.context.happens_after(600, Happening::Start(node));
        }
        self.run_for(3_000);
        self.cancel_drains();
        self.run_for(5_000);
        // What was left on disks is told to a new leader.
        self.elect();
        let mut still = 0;
        let mut version = 0;
        let mut unrest = None;
        for _ in 0..SECONDS_MAX {
            self.run_for(1_000);
            unrest = self.unrest();
            let newest = self.log.newest().version;
            still = if unrest.is_none() && newest == version { still + 1 } else { 0 };
            version = newest;
            if still == STILL {
                return;
            }
        }
        panic!("there is no rest after {SECONDS_MAX} s: {}", unrest.unwrap_or_else(|| "it moves".to_owned()));
    }

    fn run_for(&mut self, millis: Millis) {
        let until = self.context.now + millis;
        while self.context.next_at() <= until {
            self.step();
        }
    }

    /// One worker may stay away for good, where that loses nothing.
    fn leave_one(&mut self) {
        let at = self.context.chance.below(self.workers.len());
        // It is given up only where it is one of several that are used.
        let newest = self.log.newest();
        let tables = newest.tables().flat_map(|table| table.placement.iter().flatten());
        let used = tables.collect::<BTreeSet<_>>().len();
        let is_spare = self.workers.len() > 3 && used > 2 && self.is_spare(at) && !self.counts_on(at);
        if is_spare && self.context.chance.one_in(2) {
            self.context.note(format_args!("w{at} is away for good"));
            self.crash(Node::Worker(at), true);
            self.away = Some(at);
        }
    }

    /// All but one of those that are drained are not any more.
    fn cancel_drains(&mut self) {
        let newest = self.log.newest();
        let drained = newest.workers().filter(|worker| worker.is_draining).skip(1);
        let drained: Vec<WorkerId> = drained.map(|worker| worker.id.clone()).collect();
        for worker in drained {
            let command = Command::DrainWorker { worker, is_draining: false };
            self.coordinators[0].wants(&mut self.context, command);
        }
    }

    /// What is not as it should be; none where all is.
    fn unrest(&self) -> Option<String> {
        let Some(leader) = self.log.leader.filter(|at| self.coordinators[*at].is_leader()) else {
            return Some("nobody leads".to_owned());
        };
        for coordinator in &self.coordinators {
            if coordinator.entries != self.log.len() {
                return Some(format!("c{} is behind", coordinator.me));
            }
            if let Some(unfinished) = coordinator.unfinished() {
                return Some(unfinished);
            }
        }
        let state = self.log.newest();
        let live = self.coordinators[leader].core.membership.live();
        let here: BTreeSet<&WorkerId> = live.workers.iter().map(|worker| &worker.id).collect();
        let away = self.away.map(|at| &self.workers[at].id);
        if let Some(worker) = self.workers.iter().find(|it| !here.contains(&it.id) && Some(&it.id) != away) {
            return Some(format!("{} is not live", worker.id));
        }
        let staying: BTreeSet<WorkerId> =
            candidates_of(&live, &state, &bytes_to_come(&state, &live)).into_iter().map(|it| it.id).collect();
        self.misplaced(&state, &staying, &here).or_else(|| self.left_over(&state, &staying, &here))
    }

    /// A shard that is not where it should be, or copies that are not where the
    /// shard is.
    fn misplaced(
        &self,
        state: &State,
        staying: &BTreeSet<WorkerId>,
        here: &BTreeSet<&WorkerId>,
    ) -> Option<String> {
        for table in state.tables() {
            let wanted = match table.layout.replicas {
                ReplicaCount::Count(count) => count as usize,
                ReplicaCount::All => staying.len(),
            };
            for placed in &table.placement {
                let count = placed.iter().filter(|worker| staying.contains(*worker)).count();
                let is_right =
                    count == wanted.min(staying.len()) && (count < wanted || placed.len() == wanted);
                if !is_right {
                    return Some(format!("{} is to have {wanted} copies, on {placed:?}", table.name));
                }
            }
            for segment in &table.segments {
                let placed = table.placement.get(segment.shard as usize)?;
                let set = |ids: &[WorkerId]| ids.iter().cloned().collect::<BTreeSet<WorkerId>>();
                let is_same = set(placed) == set(&segment.replicas);
                if !is_same && placed.iter().all(|worker| here.contains(worker)) {
                    let holders = self.holders(&segment.name());
                    return Some(format!(
                        "{holders}: counted on {:?}, placed on {placed:?}",
                        segment.replicas
                    ));
                }
            }
        }
        None
    }

    /// A worker that has other files than the catalog counts on. Who is drained keeps its copies,
    /// and is counted on for one that it lost, while somebody who should have one is away and no
    /// other worker can take that place.
    fn left_over(
        &self,
        state: &State,
        staying: &BTreeSet<WorkerId>,
        here: &BTreeSet<&WorkerId>,
    ) -> Option<String> {
        for (at, worker) in self.workers.iter().enumerate().filter(|(at, _)| Some(*at) != self.away) {
            let mut counted = BTreeSet::new();
            let mut waits = BTreeSet::new();
            let is_draining = state.workers().any(|it| it.id == worker.id && it.is_draining);
            for table in state.tables() {
                for segment in table.segments.iter().filter(|it| it.replicas.contains(&worker.id)) {
                    counted.insert(segment.name());
                    let placed = table.placement.get(segment.shard as usize).map_or(&[][..], Vec::as_slice);
                    let is_away = placed.iter().any(|it| !here.contains(it));
                    let nobody_can = staying.iter().all(|it| placed.contains(it));
                    if is_draining && is_away && nobody_can && !placed.contains(&worker.id) {
                        waits.insert(segment.name());
                    }
                }
            }
            let differs = |name: &&SegmentName| worker.disk.contains(name) || !waits.contains(name);
            if let Some(name) = worker.disk.symmetric_difference(&counted).find(differs) {
                return Some(format!("w{at} should not have, or lacks: {}", self.holders(name)));
            }
        }
        None
    }
}
