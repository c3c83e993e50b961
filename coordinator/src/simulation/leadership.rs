//! Who leads, and what is committed: the consensus, as it promises to be.

use super::agreement::Pending;
use super::context::{Happening, Message};
use super::network::Node;
use super::world::World;
use crate::catalog::shown_term;

impl World {
    pub(super) fn leads_for_sure(&self, coordinator: usize, term: u64) -> bool {
        self.log.leader == Some(coordinator) && self.log.term == term
    }

    pub(super) fn see_to_commit(&mut self) {
        if !self.log.is_commit_due {
            self.log.is_commit_due = true;
            let delay = self.context.chance.between(2, 30);
            self.context.happens_after(delay, Happening::Commit);
        }
    }

    /// What is in the leader's log is committed, where a majority has it.
    pub(super) fn commit(&mut self) {
        self.log.is_commit_due = false;
        let Some(leader) = self.log.leader.filter(|_| !self.log.tail.is_empty()) else { return };
        if !self.context.network.has_majority(leader, self.context.now) {
            self.log.is_commit_due = true;
            let delay = self.context.chance.between(50, 200);
            self.context.happens_after(delay, Happening::Commit);
            return;
        }
        let mut answers = Vec::new();
        for Pending { term, leader: owner, proposal, asker } in std::mem::take(&mut self.log.tail) {
            let before = self.log.newest();
            let id = proposal.as_ref().map(|proposal| proposal.id.as_u128());
            let command = proposal.as_ref().and_then(|proposal| proposal.command.clone());
            let (index, reply) = self.log.commit(term, owner, proposal);
            self.check_commit(&before, command.as_ref());
            let life = self.context.network.life(Node::Coordinator(leader));
            let asker = asker.filter(|asker| owner == leader && asker.leader_life == life);
            if let (Some(id), Some(asker)) = (id, asker) {
                answers.push((asker.coordinator, Message::Proposed { id, answer: Some((index, reply)) }));
            }
        }
        let entries = self.log.len();
        self.coordinators[leader].advance(&mut self.context, &self.log, entries, false);
        for (asker, answer) in answers {
            self.context.send(Node::Coordinator(leader), Node::Coordinator(asker), answer);
        }
    }

    /// The others hear of the leader, and of some of what is committed.
    pub(super) fn replicate(&mut self) {
        let delay = self.context.chance.between(60, 140);
        self.context.happens_after(delay, Happening::Replicate);
        let now = self.context.now;
        let Some(leader) = self.log.leader else { return };
        if !self.context.network.is_awake(Node::Coordinator(leader), now) {
            return;
        }
        for at in 0..self.coordinators.len() {
            let other = Node::Coordinator(at);
            let network = &self.context.network;
            let hears = network.is_awake(other, now) && network.talks(Node::Coordinator(leader), other);
            if at == leader || !hears {
                continue;
            }
            let coordinator = &mut self.coordinators[at];
            coordinator.leads = None;
            coordinator.leader = Some(leader);
            let newest = self.log.len();
            let lag = if self.context.goes_wrong(3) { self.context.chance.between(0, 5) } else { 0 };
            let is_leap = self.context.goes_wrong(20);
            let entries = newest.saturating_sub(lag);
            coordinator.advance(&mut self.context, &self.log, entries, is_leap);
        }
        let applied = self.coordinators.iter().map(|coordinator| coordinator.entries);
        self.log.forget(applied.min().unwrap_or_default());
    }

    /// Somebody is elected where nobody leads, and now and then all the same.
    pub(super) fn look_for_leader(&mut self) {
        let delay = self.context.chance.between(250, 600);
        self.context.happens_after(delay, Happening::Elect);
        let now = self.context.now;
        let is_led = self.log.leader.is_some_and(|leader| self.context.network.has_majority(leader, now));
        if !is_led || self.context.goes_wrong(25) {
            self.elect();
        }
    }

    /// A coordinator that reaches a majority leads in a new term.
    pub(super) fn elect(&mut self) {
        let now = self.context.now;
        let network = &self.context.network;
        let able: Vec<usize> =
            (0..self.coordinators.len()).filter(|at| network.has_majority(*at, now)).collect();
        let Some(leader) = self.context.chance.pick(&able) else { return };
        // Of what no majority has yet, it has what came first, or nothing.
        if self.log.leader != Some(leader) {
            let kept = self.context.chance.below(self.log.tail.len() + 1);
            self.log.tail.truncate(kept);
        }
        let term = self.log.elect(leader);
        self.context.note(format_args!("c{leader} is elected for term {}", shown_term(term)));
        for at in 0..self.coordinators.len() {
            let network = &self.context.network;
            let (here, other) = (Node::Coordinator(leader), Node::Coordinator(at));
            if network.is_awake(other, now) && network.talks(here, other) {
                self.coordinators[at].leads = None;
                self.coordinators[at].leader = None;
            }
        }
        self.coordinators[leader].leads = Some(term);
        self.coordinators[leader].leader = Some(leader);
        self.log.tail.push(Pending { term, leader, proposal: None, asker: None });
        self.see_to_commit();
    }
}
