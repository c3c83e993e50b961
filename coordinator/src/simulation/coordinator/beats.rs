//! The likeness of `cluster::adapter::beats`: workers join and beat.

use std::collections::{BTreeSet, HashMap};
use std::mem::take;

use shoal_data::SegmentName;
use shoal_proto::WorkerId;

use super::Coordinator;
use super::changes::{Ended, Why};
use crate::catalog::raft::types::Reply;
use crate::catalog::{Command, WorkerRecord};
use crate::cluster::membership::{Heard, Joining, Vitals};
use crate::cluster::repair;
use crate::simulation::context::{Beat, Context, Decision, Message, Orders, Report};
use crate::simulation::network::Node;
use crate::simulation::trace::Briefs;
use crate::simulation::worker::index_of;

/// The length of every segment of a story.
pub(in crate::simulation) const BYTES: u64 = 100;

/// A worker that is about to be taken in.
pub(super) struct Join {
    worker: WorkerRecord,
    life: u32,
    stream: u64,
    report: Report,
    /// Before the state: an order is never of a newer term than what it rests on.
    term: u64,
}

impl Join {
    pub(super) fn is_of(&self, worker: &WorkerId) -> bool {
        self.worker.id == *worker
    }
}

impl Coordinator {
    /// `Cluster::join`, up to where it waits for the catalog.
    pub(in crate::simulation) fn join(
        &mut self,
        context: &mut Context,
        (worker, zone, life): (&WorkerId, &str, u32),
        (stream, report): (u64, Report),
    ) {
        let worker = WorkerRecord {
            id: worker.clone(),
            address: format!("http://{worker}"),
            zone: zone.to_owned(),
            is_draining: self.state.worker(worker).is_some_and(|known| known.is_draining),
        };
        let is_known = self.state.worker(&worker.id) == Some(&worker);
        let join = Join { worker, life, stream, report, term: self.term };
        if is_known {
            self.take_in(context, join);
        } else {
            let command = Command::RegisterWorker { worker: join.worker.clone() };
            let id = self.change(context, None, Some(command), Why::Register);
            self.joins.insert(id, join);
        }
    }

    pub(super) fn registered(&mut self, context: &mut Context, id: u128, ended: &Ended) {
        // Without the catalog nobody is taken in: the worker tries again.
        if let (Some(join), Ok(Reply::Done(_))) = (self.joins.remove(&id), ended) {
            self.take_in(context, join);
        }
    }

    /// `Cluster::join`, from there on.
    fn take_in(&mut self, context: &mut Context, join: Join) {
        let Join { worker: WorkerRecord { id, address, zone, .. }, life, stream, report, term } = join;
        let newest = self.core.joined.get(&id);
        if newest.is_some_and(|(of, number)| *of == life && *number > report.number) {
            return;
        }
        self.core.joined.insert(id.clone(), (life, report.number));
        let held: HashMap<SegmentName, u64> = report.held.iter().map(|name| (*name, BYTES)).collect();
        let core = &mut self.core;
        let protected = core.staged();
        let dropped = take(&mut self.dropped);
        self.pins.note(|| dropped);
        let live = core.membership.live();
        let mut reconciled =
            repair::reconcile(&self.state, &live, &id, &held, |name| protected.contains(name));
        let may_lose = report.term < self.term;
        let mut is_to_report = false;
        if core.leads_in.is_none() {
            reconciled.adopt.clear();
            reconciled.discard.clear();
        } else {
            let is_read = self.pins.oldest().is_some_and(|oldest| oldest < self.state.version);
            let is_asked = is_read || self.count > 1;
            let fetched = core.fetched_by(&id);
            for name in take(&mut reconciled.discard) {
                if is_asked || fetched.contains(&name) || self.pins.retired(&name).is_some() {
                    core.going.unknown(name, self.state.version, id.clone());
                } else {
                    reconciled.discard.push(name);
                }
            }
            if may_lose {
                is_to_report = !reconciled.adopt.is_empty();
                reconciled.adopt.clear();
            }
        }
        context.note(format_args!(
            "c{} takes {id} in: {} held, {} lacking, adopts {}, discards {}",
            self.me,
            held.len(),
            reconciled.lacks.len(),
            Briefs(&reconciled.adopt),
            Briefs(&reconciled.discard)
        ));
        let waiting = core.waiting.get_mut(&id);
        if !waiting.is_some_and(|waiting| take(&mut waiting.is_reporting)) {
            core.forget(&id);
        }
        if let Some(ordered) = core.fetching.get_mut(&id) {
            ordered.retain(|name, _| !reconciled.discard.contains(name));
        }
        if is_to_report {
            core.waiting.entry(id.clone()).or_default().report = true;
        }
        core.fetched.extend(reconciled.adopt.into_iter().map(|name| (id.clone(), name)));
        let to = Node::Worker(index_of(id.as_str()));
        let joining = Joining {
            id,
            incarnation: life.to_string(),
            address,
            zone,
            threads: 1,
            memory_bytes: 1,
            wants_drain: report.wants_drain,
            disk: String::new(),
            lacks: reconciled.lacks,
        };
        core.membership.join(context.instant(), joining);
        self.send(context, to, Message::Joined { stream, discard: reconciled.discard, term });
    }

    /// `Cluster::beat`.
    pub(in crate::simulation) fn beat(
        &mut self,
        context: &mut Context,
        (worker, life): (&WorkerId, u32),
        stream: u64,
        beat: &Beat,
    ) -> Orders {
        let number = *self.streams.entry(stream).or_insert_with(|| context.new_id());
        let vitals = Vitals { wants_drain: beat.wants_drain, ..Vitals::default() };
        let is_leader = self.is_leader();
        let core = &mut self.core;
        let heard = core.membership.beat(context.instant(), worker, &life.to_string(), number, &vitals);
        if heard == Heard::Unknown {
            return Orders { rejoin: true, ..Orders::default() };
        }
        for name in &beat.fetched {
            let ordered = core.fetching.get_mut(worker);
            let is_ordered = ordered.is_some_and(|ordered| ordered.remove(name).is_some());
            if !is_leader {
                core.membership.gained(worker, name);
            } else if is_ordered {
                core.fetched.push((worker.clone(), *name));
            } else {
                core.waiting.entry(worker.clone()).or_default().report = true;
            }
        }
        let term = self.term;
        let after_join = core.joined.get(worker).map_or(0, |(_, number)| *number);
        let Some(waiting) = core.waiting.get_mut(worker) else {
            return Orders { term, after_join, ..Orders::default() };
        };
        let fetch = take(&mut waiting.fetch);
        let mut report = take(&mut waiting.report);
        waiting.is_reporting |= report;
        let mut discard = take(&mut waiting.discard);
        let fetched = core.fetched_by(worker);
        discard.retain(|name, decided_in| *decided_in >= term && !fetched.contains(name));
        let mut discard: BTreeSet<SegmentName> = discard.into_keys().collect();
        if !discard.is_empty() {
            let live = core.membership.live();
            let kept = repair::still_needed(&self.state, &live, worker, &discard);
            discard.retain(|name| !kept.held.contains(name) && !kept.adopt.contains(name));
            if is_leader && !kept.adopt.is_empty() {
                core.waiting.entry(worker.clone()).or_default().is_reporting = true;
                report = true;
            }
            if let Some(ordered) = core.fetching.get_mut(worker) {
                ordered.retain(|name, _| !discard.contains(name));
            }
        }
        let discard: Vec<SegmentName> = discard.into_iter().collect();
        if !discard.is_empty() {
            context.note(format_args!(
                "c{} in term {term} has {worker} remove {}",
                self.me,
                Briefs(&discard)
            ));
            let (coordinator, names, state) = (self.me, discard.clone(), self.state.clone());
            let worker = index_of(worker.as_str());
            context.seen.decisions.push(Decision::Files { coordinator, worker, names, state });
        }
        Orders { rejoin: false, report, term, after_join, fetch, discard }
    }
}
