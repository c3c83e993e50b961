//! One story: events in the order of their time, until there were enough.

use shoal_data::SegmentName;

use super::agreement::{Agreement, Pending};
use super::chance::Chance;
use super::context::{Context, Event, Happening, Message, Timer};
use super::coordinator::Coordinator;
use super::network::{Network, Node};
use super::trace::Trace;
use super::worker::Worker;

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
