//! A coordinator without locks, threads and RPC: the pure parts, held together
//! as `cluster::adapter` and `catalog::handle` hold them together. Where those
//! wait for an answer, this ends a step and goes on when the answer comes.
//!
//! Each part says of what it is the likeness; what is changed there is to be
//! changed here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use shoal_data::SegmentName;
use shoal_proto::cluster::FetchRequest;
use shoal_proto::{WorkerId, WriteId};

use super::agreement::{Agreement, Logged};
use super::context::{Context, Message, Millis, Timer};
use super::network::Node;
use crate::catalog::raft::machine::gone;
use crate::catalog::{COMMANDS, Dropped, State, shown_term};
use crate::cluster::Pinned;
use crate::cluster::given_up::GivenUps;
use crate::cluster::going::{Going, Needs};
use crate::cluster::membership::{Membership, StreamNumber};
use crate::cluster::pins::Pins;
use crate::cluster::silence::Silences;

mod beats;
mod changes;
mod needs;
mod round;
mod writes;

use changes::{Asked, Read};
use needs::{Answered, Asking};
use round::Round;
use writes::Write;

pub(super) use changes::names;

/// How often silence is looked for.
const TICK: Millis = 200;

/// One coordinator.
pub(super) struct Coordinator {
    pub(super) me: usize,
    /// How many there are.
    count: usize,
    /// The term in which it leads, as far as it knows.
    pub(super) leads: Option<u64>,
    /// Who leads, as far as it knows.
    pub(super) leader: Option<usize>,
    pub(super) state: Arc<State>,
    /// Entries of the log that are in the state.
    pub(super) entries: u64,
    /// The term of the last of them.
    pub(super) term: u64,
    pub(super) core: Core,
    pins: Pins,
    dropped: Vec<Dropped>,
    asked: BTreeMap<u128, Asked>,
    reads: BTreeMap<u128, Read>,
    joins: BTreeMap<u128, beats::Join>,
    writes: BTreeMap<u128, Write>,
    queries: Vec<Query>,
    round: Round,
    /// What the others are asked for, and whether that is to be asked (again).
    asking: Option<Asking>,
    is_to_ask: bool,
    streams: BTreeMap<u64, StreamNumber>,
}

/// The likeness of the adapter's own.
#[derive(Default)]
pub(super) struct Core {
    pub(super) membership: Membership,
    /// What writes that are under way stage, and where.
    protected: BTreeMap<u128, BTreeMap<SegmentName, Vec<WorkerId>>>,
    waiting: BTreeMap<WorkerId, Waiting>,
    /// The newest join of each worker: in which life, and its number.
    joined: BTreeMap<WorkerId, (u32, u64)>,
    again: Vec<(Millis, WorkerId, SegmentName)>,
    fetching: BTreeMap<WorkerId, BTreeMap<SegmentName, Ordered>>,
    fetched: Vec<(WorkerId, SegmentName)>,
    pub(super) given_up: GivenUps,
    going: Going,
    /// What was said of that, until a round looks at it.
    answered: Option<Answered>,
    /// Which other coordinators do not answer the leader, by name.
    silences: Silences,
    leads_in: Option<u64>,
}

/// A copy that was ordered.
struct Ordered {
    at: Millis,
    is_urgent: bool,
}

#[derive(Default)]
struct Waiting {
    discard: BTreeMap<SegmentName, u64>,
    fetch: Vec<FetchRequest>,
    report: bool,
    is_reporting: bool,
}

/// The term of an order that holds in every term.
const ANY_TERM: u64 = u64::MAX;
/// After so long an order to remove what a write staged is repeated.
const DISCARD_AGAIN: Millis = 2_000;

impl Core {
    fn discard(&mut self, worker: &WorkerId, name: SegmentName, term: u64) {
        if self.membership.is_member(worker) {
            self.waiting.entry(worker.clone()).or_default().discard.insert(name, term);
        }
    }

    fn fetched_by(&self, worker: &WorkerId) -> HashSet<SegmentName> {
        self.fetched.iter().filter(|(id, _)| id == worker).map(|(_, name)| *name).collect()
    }

    fn discard_in(&mut self, now: Millis, term: u64, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        for (name, workers) in names {
            for worker in workers {
                self.discard(&worker, name, term);
                if term == ANY_TERM {
                    self.again.push((now + DISCARD_AGAIN, worker, name));
                }
            }
        }
    }

    fn forget(&mut self, worker: &WorkerId) {
        self.waiting.remove(worker);
        self.fetching.remove(worker);
    }

    fn staged(&self) -> BTreeSet<SegmentName> {
        self.protected.values().flat_map(BTreeMap::keys).copied().collect()
    }
}

/// A query that runs.
pub(super) struct Query {
    pub(super) pinned: Pinned,
    pub(super) since: Millis,
    until: Millis,
}

impl Coordinator {
    /// One that has just started, with this much of the log applied.
    pub(super) fn new(me: usize, count: usize, log: &Agreement, entries: u64) -> Self {
        Self {
            me,
            count,
            leads: None,
            leader: None,
            state: log.state_at(entries),
            entries,
            term: log.term_at(entries),
            core: Core::default(),
            pins: Pins::default(),
            dropped: Vec::new(),
            asked: BTreeMap::new(),
            reads: BTreeMap::new(),
            joins: BTreeMap::new(),
            writes: BTreeMap::new(),
            queries: Vec::new(),
            round: Round::Resting,
            asking: None,
            is_to_ask: false,
            streams: BTreeMap::new(),
        }
    }

    pub(super) fn node(&self) -> Node {
        Node::Coordinator(self.me)
    }

    /// Begins to look after things.
    pub(super) fn start(&self, context: &mut Context) {
        context.timer(1, self.node(), Timer::Tick);
        let delay = context.chance.between(1, 200);
        context.timer(delay, self.node(), Timer::Round);
    }

    /// `raft::core::Core::is_leader`: it leads, and has all that was acknowledged
    /// under those who led before.
    pub(super) fn is_leader(&self) -> bool {
        self.leads == Some(self.term)
    }

    /// `Machine::apply`, and `Machine::install_snapshot` where it takes a leap.
    pub(super) fn advance(&mut self, context: &mut Context, log: &Agreement, entries: u64, is_leap: bool) {
        if entries <= self.entries {
            return;
        }
        let Logged { term, state, .. } = log.logged(entries - 1);
        let segments: Vec<_> = if is_leap {
            gone(&self.state, state)
        } else {
            (self.entries..entries).flat_map(|index| log.logged(index).dropped.clone()).collect()
        };
        let version = state.version;
        self.state = Arc::clone(state);
        self.dropped.extend(segments.into_iter().map(|segment| Dropped { version, segment }));
        (self.entries, self.term) = (entries, *term);
        self.end_changes(context);
        self.end_reads(context);
    }

    /// `Cluster::lead`.
    fn lead(&mut self, context: &mut Context) -> Option<u64> {
        let leads = self.is_leader().then_some(self.term);
        if self.core.leads_in != leads {
            let core = &mut self.core;
            core.leads_in = leads;
            core.going.clear();
            core.answered = None;
            core.fetched.clear();
            core.fetching.clear();
            core.silences.clear();
            if let Some(term) = leads {
                context.note(format_args!(
                    "c{} looks after the workers in term {}",
                    self.me,
                    shown_term(term)
                ));
                for worker in core.membership.members() {
                    core.waiting.entry(worker.clone()).or_default().report = true;
                }
            }
        }
        if let Some(term) = leads {
            let first = *context.seen.led.entry(term).or_insert(self.me);
            assert_eq!(first, self.me, "two coordinators act as the leader of term {term}");
        }
        leads
    }

    /// `Cluster::needs`.
    pub(super) fn needs(&self, asked: &[SegmentName]) -> Needs {
        let version = self.state.version;
        let staged = self.core.staged();
        Needs {
            version,
            oldest_read: self.pins.oldest(),
            staged: asked.iter().filter(|name| staged.contains(*name)).copied().collect(),
            reads: COMMANDS,
        }
    }

    /// `Cluster::expire`, and all else that waits for a time.
    pub(super) fn tick(&mut self, context: &mut Context) {
        context.timer(TICK, self.node(), Timer::Tick);
        for worker in self.core.membership.expire(context.instant()) {
            context.note(format_args!("c{} loses {worker}: it is silent", self.me));
            self.core.forget(&worker);
        }
        let now = context.now;
        let due: Vec<_> = self.core.again.extract_if(.., |(due, ..)| *due <= now).collect();
        for (_, worker, name) in due {
            self.core.discard(&worker, name, ANY_TERM);
        }
        self.queries.retain(|query| query.until > now);
        self.look_after_changes(context);
        self.look_after_reads(context);
        self.look_after_writes(context);
        self.look_after_answers(context);
    }

    /// An RPC to the worker failed.
    pub(super) fn suspect(&mut self, worker: &WorkerId) {
        self.core.membership.suspect(worker);
    }

    /// The queries that run here.
    pub(super) fn queries(&self) -> &[Query] {
        &self.queries
    }

    /// Whether a write of this coordinator is about to commit the segment, or has
    /// been.
    pub(super) fn stages(&self, name: &SegmentName) -> bool {
        self.core.protected.values().any(|staged| staged.contains_key(name))
    }

    /// Pins the newest state for a query.
    fn begin_query(&mut self, context: &mut Context, version: u64) {
        let pinned = self.pins.pin_newest(|| Arc::clone(&self.state));
        assert!(
            pinned.version >= version,
            "c{} reads version {}, and version {version} was acknowledged before it asked",
            self.me,
            pinned.version
        );
        let until = context.now + context.chance.between(50, 2_500);
        context.note(format_args!("c{} reads version {} until {until}", self.me, pinned.version));
        self.queries.push(Query { pinned, since: context.now, until });
    }

    /// What is under way, for people to read; nothing where all is done.
    pub(super) fn unfinished(&self) -> Option<String> {
        let Self { asked, reads, joins, writes, queries, core, .. } = self;
        let waiting = core.waiting.values().map(|waiting| waiting.discard.len()).sum::<usize>();
        let counts = [asked.len(), reads.len(), joins.len(), writes.len(), queries.len(), waiting];
        let is_done = counts.iter().sum::<usize>() == 0 && core.fetched.is_empty() && core.going.is_empty();
        (!is_done).then(|| {
            format!(
                "c{}: changes, reads, joins, writes, queries, orders: {counts:?}; fetched: {:?}; going: {:?}",
                self.me, core.fetched, core.going
            )
        })
    }

    /// The other coordinators.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.count).filter(move |other| *other != me)
    }

    fn send(&self, context: &mut Context, to: Node, message: Message) {
        context.send(self.node(), to, message);
    }

    /// Whether somebody counts on what this worker has, or is about to: its disk
    /// may not be lost then.
    pub(super) fn counts_on(&self, worker: &WorkerId) -> bool {
        self.core.fetched.iter().any(|(id, _)| id == worker)
            || self.joins.values().any(|join| join.is_of(worker))
            || self.writes.values().any(|write| write.is_on(worker))
            || self.asked.values().any(|asked| asked.names(worker))
    }

    /// The worker is gone at once for everybody.
    pub(super) fn lose(&mut self, context: &mut Context, worker: &WorkerId, stream: u64) {
        let Some(number) = self.streams.remove(&stream) else { return };
        if self.core.membership.disconnected(worker, number) {
            context.note(format_args!("c{} loses {worker}: its stream broke", self.me));
            self.core.forget(worker);
        }
    }

    /// The same, on whichever stream it beat.
    pub(super) fn lose_for_sure(&mut self, worker: &WorkerId) {
        let Self { streams, core, .. } = self;
        if streams.values().any(|number| core.membership.disconnected(worker, *number)) {
            core.forget(worker);
        }
    }

    /// The term in which it looks after the workers.
    pub(super) fn acts_in(&self) -> Option<u64> {
        self.core.leads_in
    }

    /// Whether it does not know for sure what the worker has, and will ask or has
    /// asked.
    pub(super) fn awaits_report(&self, worker: &WorkerId) -> bool {
        self.core.waiting.get(worker).is_some_and(|waiting| waiting.report || waiting.is_reporting)
    }

    /// The next round, some time from now.
    fn rest(&mut self, context: &mut Context) {
        self.round = Round::Resting;
        let delay = context.chance.between(200, 900);
        context.timer(delay, self.node(), Timer::Round);
    }
}

/// A write id of this story.
fn write_id(number: u64) -> WriteId {
    WriteId::new(format!("write {number}"))
}
