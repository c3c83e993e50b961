//! One story: events in the order of their time, until there were enough.

use shoal_data::SegmentName;

use super::agreement::{Agreement, Asker, Pending};
use super::chance::Chance;
use super::context::{Context, Envelope, Event, Happening, Message, Millis, Timer};
use super::coordinator::Coordinator;
use super::network::{Network, Node};
use super::trace::Trace;
use super::worker::Worker;
use crate::catalog::shown_term;

/// Everything that there is.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) context: Context,
    pub(super) log: Agreement,
    pub(super) coordinators: Vec<Coordinator>,
    pub(super) workers: Vec<Worker>,
    /// How many tables there may be.
    pub(super) tables: usize,
    /// A worker that is away for good.
    pub(super) away: Option<usize>,
}

impl Drop for World {
    /// Tells how a story went that ended badly.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.seed;
            let lines: Vec<&str> = self.context.trace.end().collect();
            eprintln!(
                "the end of story {seed}:\n{}\n\nstory {seed} ends badly; it is told again, with each line, by\n\
                 SHOAL_SIM_SEED={seed} cargo test --release -p shoal-coordinator simulation",
                lines.join("\n")
            );
        }
    }
}

impl World {
    /// The beginning of a story.
    pub(super) fn new(seed: u64, is_told: bool) -> Self {
        let mut chance = Chance::new(seed);
        // One coordinator asks nobody, and does some things in another way.
        let count = chance.pick(&[1, 3, 3, 3, 3, 5]).unwrap_or(1);
        let worker_count = 3 + chance.below(4);
        let zones = 1 + chance.below(3);
        let tables = 2 + chance.below(4);
        let mut context = Context::new(chance, Trace::new(is_told), Network::new(count, worker_count));
        let log = Agreement::new();
        let coordinators: Vec<_> = (0..count).map(|me| Coordinator::new(me, count, &log, 0)).collect();
        let zone = |me: usize| format!("z{}", me % zones);
        let workers: Vec<_> = (0..worker_count).map(|me| Worker::new(me, zone(me), count)).collect();
        context.note(format_args!("{count} coordinators, {worker_count} workers, {tables} tables"));
        for coordinator in &coordinators {
            coordinator.start(&mut context);
        }
        for worker in &workers {
            // Some come later.
            let delay = if worker.id.as_str() > "w2" && context.chance.one_in(2) {
                context.chance.between(1_000, 20_000)
            } else {
                context.chance.between(1, 300)
            };
            context.happens_after(delay, Happening::Start(worker.node()));
        }
        context.happens_after(10, Happening::Elect);
        context.happens_after(100, Happening::Replicate);
        context.happens_after(1_500, Happening::Client);
        context.happens_after(2_500, Happening::Fault);
        Self { seed, context, log, coordinators, workers, tables, away: None }
    }

    /// One event, and a look at what came of it.
    pub(super) fn step(&mut self) {
        match self.context.next_event() {
            Event::Deliver(envelope) => self.deliver(*envelope),
            Event::Flow { stream, is_up } => self.flow(stream, is_up),
            Event::Timer { node, life, timer } => {
                let context = &mut self.context;
                if context.network.life(node) != life || !context.network.is_up(node) {
                    return;
                }
                let until = context.network.paused_until(node);
                if until > context.now {
                    context.after(until - context.now, Event::Timer { node, life, timer });
                    return;
                }
                self.take_time(node, timer);
            }
            Event::Happens(happening) => self.happen(happening),
        }
        self.check_decisions();
    }

    fn take_time(&mut self, node: Node, timer: Timer) {
        let context = &mut self.context;
        match (node, timer) {
            (Node::Coordinator(at), Timer::Tick) => self.coordinators[at].tick(context),
            (Node::Coordinator(at), Timer::Round) => self.coordinators[at].begin_round(context),
            (Node::Worker(at), Timer::Beat(coordinator)) => self.workers[at].beat(context, coordinator),
            (Node::Worker(at), Timer::Installed { number, waiting, waiting_life, write }) => {
                self.install(at, number, (waiting, waiting_life, write));
            }
            (Node::Worker(at), Timer::Copied { name, from }) => self.copy(at, name, from),
            (Node::Worker(at), Timer::Removed(names)) => {
                let gone = self.workers[at].remove(&names);
                self.workers[at].note_removed(context, &gone);
                for name in &gone {
                    self.check_removal(at, name);
                }
            }
            (node, _) => panic!("{node} has no such timer"),
        }
    }

    fn happen(&mut self, happening: Happening) {
        let is_calm = self.context.network.is_calm;
        match happening {
            Happening::Commit => self.commit(),
            Happening::Replicate => self.replicate(),
            Happening::Elect => self.look_for_leader(),
            Happening::Heal(links) => {
                for (from, to) in links {
                    self.context.network.set_cut(from, to, false);
                }
            }
            Happening::Start(node) => self.start(node),
            // Both are over when it is calm.
            Happening::Client | Happening::Fault if is_calm => {}
            Happening::Client => {
                self.client();
                let delay = self.context.chance.between(20, 250);
                self.context.happens_after(delay, Happening::Client);
            }
            Happening::Fault => {
                self.fault();
                let delay = self.context.chance.between(100, 1_000);
                self.context.happens_after(delay, Happening::Fault);
            }
        }
    }

    fn deliver(&mut self, envelope: Envelope) {
        let context = &mut self.context;
        let Envelope { from, from_life, to, to_life, .. } = envelope;
        let network = &context.network;
        // What a process sent, or was sent, ends with it.
        let is_lost = network.life(from) != from_life || network.life(to) != to_life || !network.is_up(to);
        if is_lost {
            return;
        }
        let until = network.paused_until(to);
        if until > context.now {
            context.after(until - context.now, Event::Deliver(Box::new(envelope)));
            return;
        }
        if !network.reaches(from, to) {
            if context.chance.one_in(2) {
                let delay = context.chance.between(100, 600);
                context.after(delay, Event::Deliver(Box::new(envelope)));
            }
            return;
        }
        match (from, to) {
            (Node::Coordinator(from), Node::Coordinator(to)) => self.among(from, to, envelope.message),
            (Node::Worker(from), Node::Coordinator(to)) => self.hear(from, to, envelope.message),
            (Node::Coordinator(from), Node::Worker(to)) => self.tell(from, to, envelope.message),
            (Node::Worker(from), Node::Worker(to)) => panic!("w{from} says something to w{to}"),
        }
    }

    /// One coordinator says something to another, or to itself.
    fn among(&mut self, from: usize, to: usize, message: Message) {
        let reply = match message {
            Message::Propose(proposal) => {
                let id = proposal.id.as_u128();
                match self.coordinators[to].leads {
                    Some(term) if self.leads_for_sure(to, term) => {
                        let leader_life = self.context.network.life(Node::Coordinator(to));
                        let asker = Some(Asker { coordinator: from, leader_life });
                        self.log.tail.push(Pending { term, leader: to, proposal: Some(*proposal), asker });
                        self.see_to_commit();
                        return;
                    }
                    // It does not know that it leads no more: no majority takes what it has.
                    Some(_) => return,
                    None => Message::Proposed { id, answer: None },
                }
            }
            Message::ReadIndex { id } => {
                let entries = match self.coordinators[to].leads {
                    Some(term) => {
                        let now = self.context.now;
                        let is_sure =
                            self.leads_for_sure(to, term) && self.context.network.has_majority(to, now);
                        if !is_sure {
                            return;
                        }
                        Some(self.log.len())
                    }
                    None => None,
                };
                Message::ReadAt { id, entries }
            }
            Message::AskNeeds { id, asked } => {
                Message::Needed { id, needs: self.coordinators[to].needs(&asked) }
            }
            Message::Proposed { id, answer } => {
                self.coordinators[to].proposed(&mut self.context, id, answer);
                return;
            }
            Message::ReadAt { id, entries } => {
                self.coordinators[to].read_at(&mut self.context, id, entries);
                return;
            }
            Message::Needed { id, needs } => {
                self.coordinators[to].needed(&mut self.context, from, id, needs);
                return;
            }
            Message::Join { .. }
            | Message::Joined { .. }
            | Message::Closed { .. }
            | Message::Stage { .. }
            | Message::Staged { .. } => panic!("c{from} takes c{to} for a worker"),
        };
        self.context.send(Node::Coordinator(to), Node::Coordinator(from), reply);
    }

    fn leads_for_sure(&self, coordinator: usize, term: u64) -> bool {
        self.log.leader == Some(coordinator) && self.log.term == term
    }

    /// A worker says something to a coordinator.
    fn hear(&mut self, from: usize, to: usize, message: Message) {
        let Worker { id, zone, .. } = &self.workers[from];
        let life = self.context.network.life(Node::Worker(from));
        let coordinator = &mut self.coordinators[to];
        match message {
            Message::Join { stream, report } => {
                coordinator.join(&mut self.context, (id, zone.as_str(), life), (stream, report));
            }
            Message::Closed { stream } => coordinator.lose(&mut self.context, id, stream),
            Message::Staged { write, name } => coordinator.staged(&mut self.context, id, write, name),
            _ => panic!("w{from} takes c{to} for something else"),
        }
    }

    /// A coordinator says something to a worker.
    fn tell(&mut self, from: usize, to: usize, message: Message) {
        let worker = &mut self.workers[to];
        match message {
            Message::Joined { stream, discard, term } => {
                worker.joined(&mut self.context, from, (stream, discard.as_slice(), term));
            }
            Message::Stage { write, name } => {
                worker.stage(&mut self.context, Node::Coordinator(from), write, name);
            }
            _ => panic!("c{from} takes w{to} for something else"),
        }
    }

    /// The next message of a stream arrives, unless that is broken.
    fn flow(&mut self, number: u64, is_up: bool) {
        let context = &mut self.context;
        if !context.is_open(number) {
            return;
        }
        let Some(stream) = context.streams.get(&number) else { return };
        let (worker, coordinator) = (stream.worker, stream.coordinator);
        let (worker_node, coordinator_node) = (Node::Worker(worker), Node::Coordinator(coordinator));
        let (from, to) =
            if is_up { (worker_node, coordinator_node) } else { (coordinator_node, worker_node) };
        let until = context.network.paused_until(to);
        let wait: Option<Millis> = if until > context.now {
            Some(until - context.now)
        } else if !context.network.reaches(from, to) {
            Some(context.chance.between(100, 300))
        } else if !is_up && self.workers[worker].is_asking(coordinator) {
            Some(20)
        } else {
            None
        };
        if let Some(wait) = wait {
            context.after(wait, Event::Flow { stream: number, is_up });
            return;
        }
        let Some(stream) = context.streams.get_mut(&number) else { return };
        if is_up {
            let Some(beat) = stream.up.pop_front() else { return };
            let life = context.network.life(worker_node);
            let id = &self.workers[worker].id;
            let orders = self.coordinators[coordinator].beat(context, (id, life), number, &beat);
            context.send_orders(number, orders);
        } else {
            let Some(orders) = stream.down.pop_front() else { return };
            self.workers[worker].ordered(context, coordinator, number, &orders);
        }
    }

    /// A staged segment is durable; whoever sent it is told.
    fn install(&mut self, at: usize, number: u64, (waiting, waiting_life, write): (Node, u32, u128)) {
        let Some(name) = self.workers[at].install(number) else { return };
        self.workers[at].note_here(&mut self.context, &name, "staged");
        self.context.seen.lost.remove(&(at, name));
        let Node::Coordinator(coordinator) = waiting else { return };
        let is_waiting = self.context.network.life(waiting) == waiting_life
            && self.coordinators[coordinator].waits_for(&self.workers[at].id, write, &name);
        if !is_waiting {
            self.workers[at].staged_for_nobody(number);
        }
        self.context.send(Node::Worker(at), waiting, Message::Staged { write, name });
    }

    /// A worker copies a segment from the first that delivers it.
    fn copy(&mut self, at: usize, name: SegmentName, from: Vec<usize>) {
        let here = Node::Worker(at);
        if self.workers[at].waits_to_copy(&name) {
            self.context.timer(20, here, Timer::Copied { name, from });
            return;
        }
        let (network, now) = (&self.context.network, self.context.now);
        let delivers = |peer: &usize| {
            let node = Node::Worker(*peer);
            let is_heard = network.is_awake(node, now) && network.talks(here, node);
            is_heard && self.workers[*peer].disk.contains(&name)
        };
        let is_read = self.workers[at].disk.contains(&name) || from.iter().any(delivers);
        if self.workers[at].end_copy(name, is_read) {
            self.workers[at].note_here(&mut self.context, &name, "copied");
            self.context.seen.lost.remove(&(at, name));
        }
    }

    fn see_to_commit(&mut self) {
        if !self.log.is_commit_due {
            self.log.is_commit_due = true;
            let delay = self.context.chance.between(2, 30);
            self.context.happens_after(delay, Happening::Commit);
        }
    }

    /// What is in the leader's log is committed, where a majority has it.
    fn commit(&mut self) {
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
    fn replicate(&mut self) {
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
    fn look_for_leader(&mut self) {
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

    /// A process that is not up starts.
    fn start(&mut self, node: Node) {
        if self.context.network.is_up(node) {
            return;
        }
        if let Node::Worker(at) = node {
            if self.away == Some(at) {
                return;
            }
            // Whoever counts on what an empty disk had is not to see it back: see `faults`.
            if self.workers[at].disk.is_empty() && self.counts_on(at) {
                self.context.happens_after(500, Happening::Start(node));
                return;
            }
        }
        self.context.network.start(node);
        self.context.note(format_args!("{node} starts"));
        match node {
            Node::Coordinator(at) => self.coordinators[at].start(&mut self.context),
            Node::Worker(at) => self.workers[at].start(&mut self.context),
        }
    }

    /// A process ends as by `kill -9`; a coordinator has what it had on its disk,
    /// a worker too unless that is lost.
    pub(super) fn crash(&mut self, node: Node, keeps_disk: bool) {
        if !self.context.network.is_up(node) {
            return;
        }
        self.context.network.crash(node);
        match node {
            Node::Coordinator(at) => {
                let back = self.context.chance.between(0, super::agreement::RESTART_BACK);
                let entries = self.log.after_restart(self.coordinators[at].entries, back);
                let count = self.context.network.coordinators();
                self.coordinators[at] = Coordinator::new(at, count, &self.log, entries);
                if self.log.leader == Some(at) {
                    self.log.leader = None;
                }
                self.context.streams.retain(|_, stream| stream.coordinator != at);
            }
            Node::Worker(at) => self.crash_worker(at, keeps_disk),
        }
    }

    fn crash_worker(&mut self, at: usize, keeps_disk: bool) {
        let streams = self.workers[at].streams();
        if !keeps_disk {
            let lost = self.workers[at].disk.iter().map(|name| (at, *name));
            self.context.seen.lost.extend(lost);
        }
        self.workers[at].crash(keeps_disk);
        let (here, now) = (Node::Worker(at), self.context.now);
        let id = &self.workers[at].id;
        for (coordinator, stream) in streams {
            self.context.streams.remove(&stream);
            // A connection that breaks is noticed at once, unless it is cut off.
            let there = Node::Coordinator(coordinator);
            let network = &self.context.network;
            if network.is_awake(there, now) && network.reaches(here, there) {
                self.coordinators[coordinator].lose(&mut self.context, id, stream);
            }
        }
        // That a disk is lost is noticed by all: see `faults`.
        if !keeps_disk {
            for coordinator in &mut self.coordinators {
                coordinator.lose_for_sure(id);
            }
        }
    }

    /// Whether somebody counts on what this worker has, or is about to.
    pub(super) fn counts_on(&self, at: usize) -> bool {
        let id = &self.workers[at].id;
        let in_log = |pending: &Pending| {
            let command = pending.proposal.as_ref().and_then(|proposal| proposal.command.as_ref());
            command.is_some_and(|command| super::coordinator::names(command, id))
        };
        self.log.tail.iter().any(in_log) || self.coordinators.iter().any(|it| it.counts_on(id))
    }
}
