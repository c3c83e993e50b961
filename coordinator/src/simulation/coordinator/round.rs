//! The likeness of `Cluster::look_after_workers`: what is done for tables and
//! workers, one thing after the other.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_data::SegmentName;
use shoal_proto::WorkerId;

use super::changes::{Ended, Why};
use super::needs::Answered;
use super::{Coordinator, Ordered};
use crate::catalog::raft::types::Reply;
use crate::catalog::{Command, Dropped, Outcome};
use crate::cluster::adapter::candidates::candidates_of;
use crate::cluster::arriving::bytes_to_come;
use crate::cluster::{moves, repair};
use crate::simulation::context::{Context, Decision, Millis};

/// After so long without a word a worker is given up.
const DEAD_AFTER: Duration = Duration::from_secs(3);
/// Urgent copies that one worker has orders for at a time, and as many others.
const FETCHES_MAX: usize = 4;
/// After so long a copy that was ordered is ordered again.
const FETCH_MAX: Millis = 3_000;

/// Where a round is.
pub(super) enum Round {
    Resting,
    /// Copies that were made are brought into the catalog.
    Recording {
        term: u64,
        count: usize,
        left: BTreeSet<u128>,
        ended: Vec<(WorkerId, SegmentName, Ended)>,
    },
    /// All that is in the log is applied, before what nobody needs is removed.
    Applying(Answered),
    /// Shards get other workers.
    Placing {
        left: BTreeSet<u128>,
    },
}

impl Coordinator {
    pub(in crate::simulation) fn begin_round(&mut self, context: &mut Context) {
        let leads = self.lead(context);
        self.collect(leads);
        self.give_up(context);
        match leads {
            Some(term) => self.record_fetched(context, term),
            None => self.rest(context),
        }
    }

    /// `Cluster::collect`.
    pub(super) fn collect(&mut self, leads: Option<u64>) {
        let dropped = std::mem::take(&mut self.dropped);
        let free = self.pins.collect(|| dropped);
        if leads.is_none() {
            return;
        }
        for Dropped { version, segment } in free {
            self.core.going.dropped(segment.name(), version, segment.bytes, segment.replicas.iter().cloned());
        }
    }

    /// `Cluster::give_up`.
    fn give_up(&mut self, context: &mut Context) {
        let super::Core { given_up, membership, protected, .. } = &mut self.core;
        let is_written_to = |id: &WorkerId| {
            let mut staged_to = protected.values().flat_map(|staged| staged.values()).flatten();
            staged_to.any(|worker| worker == id)
        };
        let is_member = |id: &WorkerId| membership.is_member(id);
        let wants_drain = |id: &WorkerId| membership.wants_drain(id);
        let now = context.instant();
        for news in given_up.update(now, DEAD_AFTER, &self.state, is_member, wants_drain, is_written_to) {
            context.note(format_args!("c{} gives {} up: {:?}", self.me, news.worker, news.why));
        }
    }

    /// `Cluster::record_fetched`.
    fn record_fetched(&mut self, context: &mut Context, term: u64) {
        let fetched = self.core.fetched.clone();
        let Some(leads_in) = self.core.leads_in.filter(|_| !fetched.is_empty()) else {
            self.remove_what_nobody_needs(context, term);
            return;
        };
        let mut left = BTreeSet::new();
        for (worker, name) in fetched {
            let added = worker.clone();
            let command = Command::AddReplica { table: name.table, segment: name.segment, worker: added };
            left.insert(self.change(context, Some(leads_in), Some(command), Why::Record(worker, name)));
        }
        self.round = Round::Recording { term, count: left.len(), left, ended: Vec::new() };
    }

    pub(super) fn recorded(
        &mut self,
        context: &mut Context,
        id: u128,
        (worker, name): (WorkerId, SegmentName),
        result: Ended,
    ) {
        let Round::Recording { term, count, left, ended } = &mut self.round else { return };
        left.remove(&id);
        ended.push((worker, name, result));
        if !left.is_empty() {
            return;
        }
        let (term, count, ended) = (*term, *count, std::mem::take(ended));
        let recorded = count.min(self.core.fetched.len());
        self.core.fetched.drain(..recorded);
        for (worker, name, result) in ended {
            match result {
                Ok(Reply::Done(Outcome::Unchanged)) if self.state.segment(&name).is_none() => {
                    self.core.going.dropped(name, self.state.version, 0, [worker]);
                }
                Ok(Reply::Done(_)) => self.core.membership.gained(&worker, &name),
                Ok(_) | Err(_) => {}
            }
        }
        self.remove_what_nobody_needs(context, term);
    }

    /// `Cluster::place_anew`.
    pub(super) fn place_anew(&mut self, context: &mut Context) {
        let Some(term) = self.core.leads_in else {
            self.rest(context);
            return;
        };
        let live = self.core.membership.live();
        let state = self.state.clone();
        let workers = candidates_of(&live, &state, &bytes_to_come(&state, &live));
        let leave = self.core.given_up.leaving();
        let commands = moves::due(&state, &live, &workers, &leave);
        let mut left = BTreeSet::new();
        for command in commands {
            match &command {
                Command::RemoveReplicas { table, worker, segments } => {
                    context.note(format_args!("c{} takes {} copies off {worker}", self.me, segments.len()));
                    let (coordinator, table, segments) = (self.me, *table, segments.clone());
                    let decision = Decision::Replicas { coordinator, table, segments, state: state.clone() };
                    context.seen.decisions.push(decision);
                }
                other => {
                    for moved in moves::changes(&state, other) {
                        context.note(format_args!("c{} moves {moved}", self.me));
                    }
                }
            }
            left.insert(self.change(context, Some(term), Some(command), Why::Place));
        }
        let is_done = left.is_empty();
        self.round = Round::Placing { left };
        if is_done {
            self.end_round(context);
        }
    }

    pub(super) fn placed(&mut self, context: &mut Context, id: u128) {
        let Round::Placing { left } = &mut self.round else { return };
        if left.remove(&id) && left.is_empty() {
            self.end_round(context);
        }
    }

    /// `Cluster::order_copies`, at the end of a round.
    fn end_round(&mut self, context: &mut Context) {
        let now = context.now;
        let live = self.core.membership.live();
        for fetching in self.core.fetching.values_mut() {
            fetching.retain(|_, ordered| now - ordered.at < FETCH_MAX);
        }
        let fetching = &self.core.fetching;
        let made: BTreeSet<_> = self.core.fetched.iter().map(|(worker, name)| (worker, *name)).collect();
        let orders = repair::missing(&self.state, &live, FETCHES_MAX, |worker, name, is_urgent| {
            if made.contains(&(worker, *name)) {
                return true;
            }
            let Some(ordered) = fetching.get(worker) else { return false };
            let is_ordered = ordered.get(name).is_some_and(|it| it.is_urgent || !is_urgent);
            is_ordered || ordered.values().filter(|it| it.is_urgent == is_urgent).count() >= FETCHES_MAX
        });
        for (worker, request) in orders {
            context.note(format_args!("c{} has {worker} copy {}", self.me, request.name));
            let name = request.name.parse().unwrap();
            let ordered = Ordered { at: now, is_urgent: request.urgent };
            self.core.fetching.entry(worker.clone()).or_default().insert(name, ordered);
            self.core.waiting.entry(worker).or_default().fetch.push(request);
        }
        self.is_to_ask |= !self.core.going.is_empty();
        self.ask_needs(context);
        self.rest(context);
    }
}
