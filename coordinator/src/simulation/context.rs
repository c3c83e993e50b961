//! What all processes share: the time, what is on its way, and chance.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_data::SegmentName;
use shoal_proto::cluster::FetchRequest;
use shoal_proto::{SegmentId, TableId, WriteId};

use super::chance::Chance;
use super::network::{Network, Node};
use super::trace::Trace;
use crate::catalog::raft::types::Reply;
use crate::catalog::{Proposal, State};
use crate::cluster::going::Needs;

/// Milliseconds since a story began.
pub(super) type Millis = u64;

/// What one process says to another.
#[derive(Clone)]
pub(super) enum Message {
    /// To the leader.
    Propose(Box<Proposal>),
    /// Its place in the log and what came of it; none: it does not lead.
    Proposed {
        id: u128,
        answer: Option<(u64, Reply)>,
    },
    /// To the leader.
    ReadIndex {
        id: u128,
    },
    /// How much of the log must be applied; none: it does not lead.
    ReadAt {
        id: u128,
        entries: Option<u64>,
    },
    AskNeeds {
        id: u128,
        asked: Vec<SegmentName>,
    },
    Needed {
        id: u128,
        needs: Needs,
    },
    /// Of a worker, on a new stream or one that is open.
    Join {
        stream: u64,
        report: Report,
    },
    Joined {
        stream: u64,
        discard: Vec<SegmentName>,
        term: u64,
    },
    /// The worker ended the stream.
    Closed {
        stream: u64,
    },
    Stage {
        write: u128,
        name: SegmentName,
    },
    /// It is durable.
    Staged {
        write: u128,
        name: SegmentName,
    },
}

impl Message {
    /// Whether whoever sends it may send it again.
    fn may_come_twice(&self) -> bool {
        matches!(self, Self::Propose(_) | Self::Stage { .. })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Propose(_) => "proposal",
            Self::Proposed { .. } => "answer to a proposal",
            Self::ReadIndex { .. } => "question before a read",
            Self::ReadAt { .. } => "answer before a read",
            Self::AskNeeds { .. } => "question about needs",
            Self::Needed { .. } => "needs",
            Self::Join { .. } => "join",
            Self::Joined { .. } => "answer to a join",
            Self::Closed { .. } => "end of a stream",
            Self::Stage { .. } => "segment",
            Self::Staged { .. } => "word of a durable segment",
        }
    }
}

/// What a worker says when it joins.
#[derive(Clone)]
pub(super) struct Report {
    pub(super) held: Vec<SegmentName>,
    pub(super) term: u64,
    pub(super) number: u64,
    pub(super) wants_drain: bool,
}

/// What a worker says again and again.
pub(super) struct Beat {
    pub(super) fetched: Vec<SegmentName>,
    pub(super) wants_drain: bool,
}

/// What a coordinator answers.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) rejoin: bool,
    pub(super) report: bool,
    pub(super) term: u64,
    pub(super) after_join: u64,
    pub(super) fetch: Vec<FetchRequest>,
    pub(super) discard: Vec<SegmentName>,
}

/// A message on its way.
pub(super) struct Envelope {
    pub(super) from: Node,
    pub(super) from_life: u32,
    pub(super) to: Node,
    pub(super) to_life: u32,
    pub(super) message: Message,
}

/// The heartbeat stream of a worker at a coordinator: in order, unlike messages.
pub(super) struct Stream {
    pub(super) worker: usize,
    pub(super) coordinator: usize,
    pub(super) lives: (u32, u32),
    pub(super) up: VecDeque<Beat>,
    pub(super) down: VecDeque<Orders>,
}

/// What is due for one process.
pub(super) enum Timer {
    /// A coordinator looks after silence and what waits for answers.
    Tick,
    /// A coordinator looks after workers.
    Round,
    /// A worker beats at this coordinator.
    Beat(usize),
    /// A staged segment is durable: its number, and who waits for it.
    Installed { number: u64, waiting: Node, waiting_life: u32, write: u128 },
    /// A copy is made from one of these workers.
    Copied { name: SegmentName, from: Vec<usize> },
    /// Files are removed.
    Removed(Vec<SegmentName>),
}

/// What is due for nobody in particular.
pub(super) enum Happening {
    /// What is in the leader's log reaches a majority.
    Commit,
    /// The leader tells the others what is committed.
    Replicate,
    /// Somebody may want to lead.
    Elect,
    /// A client wants something.
    Client,
    /// Something goes wrong.
    Fault,
    /// Links are well again.
    Heal(Vec<(Node, Node)>),
    /// A process that crashed starts.
    Start(Node),
}

pub(super) enum Event {
    Deliver(Box<Envelope>),
    /// The next message of a stream arrives.
    Flow {
        stream: u64,
        is_up: bool,
    },
    Timer {
        node: Node,
        life: u32,
        timer: Timer,
    },
    Happens(Happening),
}

/// What somebody outside of the cluster sees, to hold it against what was promised.
#[derive(Default)]
pub(super) struct Seen {
    /// Who led in each term.
    pub(super) led: BTreeMap<u64, usize>,
    /// How new a catalog must be that is read from now on.
    pub(super) version: u64,
    /// Segments that were ever in the catalog.
    pub(super) committed: BTreeSet<SegmentName>,
    /// Segments whose write told nobody that it is made, and never will be.
    pub(super) given_up: BTreeSet<SegmentName>,
    /// Copies that were lost with a disk.
    pub(super) lost: BTreeSet<(usize, SegmentName)>,
    /// Until when queries of a coordinator began that nobody waits for.
    pub(super) excused: BTreeMap<usize, Millis>,
    /// What leaders decided since this was looked at.
    pub(super) decisions: Vec<Decision>,
    /// Writes of which their client does not know whether they were made.
    pub(super) unsettled: Vec<WriteId>,
}

/// What a coordinator wants to take away, and what it knew.
pub(super) enum Decision {
    /// Copies, from the catalog.
    Replicas { coordinator: usize, table: TableId, segments: Vec<SegmentId>, state: Arc<State> },
    /// Files, from a worker.
    Files { coordinator: usize, worker: usize, names: Vec<SegmentName>, state: Arc<State> },
}

/// What all processes share.
pub(super) struct Context {
    pub(super) now: Millis,
    started: Instant,
    pub(super) chance: Chance,
    pub(super) trace: Trace,
    pub(super) network: Network,
    queue: BTreeMap<(Millis, u64), Event>,
    pub(super) streams: BTreeMap<u64, Stream>,
    last_id: u64,
    pub(super) seen: Seen,
}

impl Context {
    pub(super) fn new(chance: Chance, trace: Trace, network: Network) -> Self {
        Self {
            now: 0,
            started: Instant::now(),
            chance,
            trace,
            network,
            queue: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_id: 0,
            seen: Seen::default(),
        }
    }

    /// A moment of the story, for those who need one of the clock.
    pub(super) fn instant(&self) -> Instant {
        self.started + Duration::from_millis(self.now)
    }

    /// A number that nothing else has.
    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    pub(super) fn after(&mut self, delay: Millis, event: Event) {
        let id = self.new_id();
        self.queue.insert((self.now + delay, id), event);
    }

    pub(super) fn happens_after(&mut self, delay: Millis, happening: Happening) {
        self.after(delay, Event::Happens(happening));
    }

    /// For this process, if it has not crashed by then.
    pub(super) fn timer(&mut self, delay: Millis, node: Node, timer: Timer) {
        let life = self.network.life(node);
        self.after(delay, Event::Timer { node, life, timer });
    }

    /// When the next event is.
    pub(super) fn next_at(&self) -> Millis {
        self.queue.keys().next().map_or(Millis::MAX, |(at, _)| *at)
    }

    /// The next event; the time moves to it.
    pub(super) fn next_event(&mut self) -> Event {
        let Some(((at, _), event)) = self.queue.pop_first() else { panic!("nothing happens any more") };
        self.now = at;
        event
    }

    /// True once in so many times, as long as things may go wrong.
    pub(super) fn goes_wrong(&mut self, times: u32) -> bool {
        !self.network.is_calm && self.chance.one_in(times)
    }

    fn latency(&mut self) -> Millis {
        if self.goes_wrong(150) {
            self.chance.between(300, 3_000)
        } else if self.goes_wrong(20) {
            self.chance.between(20, 300)
        } else {
            self.chance.between(1, 15)
        }
    }

    /// Sends a message, which may be lost, be late, or come twice.
    pub(super) fn send(&mut self, from: Node, to: Node, message: Message) {
        let is_own = from == to;
        if !is_own && self.goes_wrong(80) {
            self.note(format_args!("{from} to {to} loses a {}", message.kind()));
            return;
        }
        if !is_own && message.may_come_twice() && self.goes_wrong(25) {
            self.put(from, to, message.clone());
        }
        self.put(from, to, message);
    }

    fn put(&mut self, from: Node, to: Node, message: Message) {
        let delay = if from == to { 1 } else { self.latency() };
        let (from_life, to_life) = (self.network.life(from), self.network.life(to));
        let envelope = Envelope { from, from_life, to, to_life, message };
        self.after(delay, Event::Deliver(Box::new(envelope)));
    }

    /// Opens a stream, under a number that its join had already.
    pub(super) fn open_stream(&mut self, number: u64, worker: usize, coordinator: usize) {
        let lives =
            (self.network.life(Node::Worker(worker)), self.network.life(Node::Coordinator(coordinator)));
        let (up, down) = (VecDeque::new(), VecDeque::new());
        self.streams.insert(number, Stream { worker, coordinator, lives, up, down });
    }

    /// Whether both ends of a stream still run.
    pub(super) fn is_open(&self, number: u64) -> bool {
        self.streams.get(&number).is_some_and(|stream| {
            let worker = self.network.life(Node::Worker(stream.worker));
            let coordinator = self.network.life(Node::Coordinator(stream.coordinator));
            stream.lives == (worker, coordinator)
        })
    }

    pub(super) fn send_beat(&mut self, number: u64, beat: Beat) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.up.push_back(beat);
            let delay = self.latency();
            self.after(delay, Event::Flow { stream: number, is_up: true });
        }
    }

    pub(super) fn send_orders(&mut self, number: u64, orders: Orders) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.down.push_back(orders);
            let delay = self.latency();
            self.after(delay, Event::Flow { stream: number, is_up: false });
        }
    }
}
