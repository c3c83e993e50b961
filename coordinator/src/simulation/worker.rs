//! A worker with a made-up disk: what is fsynced outlives a crash, and nothing
//! else does. It obeys as the real one does (`heartbeat::beating`,
//! `replicate` and `segment_dir` of the worker), which knows nothing of this.

use std::collections::{BTreeMap, BTreeSet};

use shoal_data::SegmentName;
use shoal_proto::WorkerId;

use super::context::{Beat, Context, Message, Millis, Orders, Report, Timer};
use super::network::Node;
use super::trace::{Brief, Briefs};

/// How often a worker beats; seldom enough to leave steps for other things, and
/// often enough to be alive.
const BEAT_EVERY: (Millis, Millis) = (300, 450);
/// Silence of a coordinator after which its stream is taken for broken.
const SILENCE_MAX: Millis = 1_750;
/// How long a coordinator may take to answer a join.
const JOIN_MAX: Millis = 2_000;

/// One worker.
pub(super) struct Worker {
    me: usize,
    pub(super) id: WorkerId,
    pub(super) zone: String,
    /// What is durable.
    pub(super) disk: BTreeSet<SegmentName>,
    /// It asks that its shards go to others.
    pub(super) wants_drain: bool,
    newest_term: u64,
    joins: u64,
    /// By coordinator.
    doors: Vec<Door>,
    /// Copies that are being made, and whether they are revoked.
    under_way: BTreeMap<SegmentName, bool>,
    leaving: BTreeSet<SegmentName>,
    /// What is being staged, by number, and whether it is revoked.
    writing: BTreeMap<u64, (SegmentName, bool)>,
    next: u64,
    /// Those below this number began before the newest report.
    reported: u64,
}

/// What a worker has to do with one coordinator.
#[derive(Default)]
struct Door {
    link: Link,
    /// The number of the newest join.
    last_join: u64,
    /// What it was not told yet.
    fetched: Vec<SegmentName>,
    is_to_tell_anew: bool,
}

#[derive(Clone, Copy, Default)]
enum Link {
    #[default]
    Gone,
    Joining {
        stream: u64,
        since: Millis,
    },
    Open {
        stream: u64,
        heard_at: Millis,
        /// Since when it waits for the answer to another join.
        asking_since: Option<Millis>,
    },
}

impl Worker {
    pub(super) fn new(me: usize, zone: String, coordinators: usize) -> Self {
        Self {
            me,
            id: WorkerId::new(format!("w{me}")),
            zone,
            disk: BTreeSet::new(),
            wants_drain: false,
            newest_term: 0,
            joins: 0,
            doors: (0..coordinators).map(|_| Door::default()).collect(),
            under_way: BTreeMap::new(),
            leaving: BTreeSet::new(),
            writing: BTreeMap::new(),
            next: 0,
            reported: 0,
        }
    }

    pub(super) fn node(&self) -> Node {
        Node::Worker(self.me)
    }

    /// Begins to beat everywhere.
    pub(super) fn start(&self, context: &mut Context) {
        for coordinator in 0..self.doors.len() {
            let delay = context.chance.between(1, 200);
            context.timer(delay, self.node(), Timer::Beat(coordinator));
        }
    }

    /// Only what is durable is left, or not even that.
    pub(super) fn crash(&mut self, keeps_disk: bool) {
        let disk = if keeps_disk { std::mem::take(&mut self.disk) } else { BTreeSet::new() };
        *self = Self { disk, ..Self::new(self.me, self.zone.clone(), self.doors.len()) };
    }

    /// The streams on which it beats, by coordinator.
    pub(super) fn streams(&self) -> Vec<(usize, u64)> {
        let stream = |(coordinator, door): (usize, &Door)| match door.link {
            Link::Open { stream, .. } => Some((coordinator, stream)),
            Link::Gone | Link::Joining { .. } => None,
        };
        self.doors.iter().enumerate().filter_map(stream).collect()
    }

    /// Whether it waits for the answer to a join on an open stream, and reads
    /// nothing from that meanwhile.
    pub(super) fn is_asking(&self, coordinator: usize) -> bool {
        matches!(self.doors[coordinator].link, Link::Open { asking_since: Some(_), .. })
    }

    /// Beats at a coordinator, or joins it.
    pub(super) fn beat(&mut self, context: &mut Context, coordinator: usize) {
        let delay = context.chance.between(BEAT_EVERY.0, BEAT_EVERY.1);
        context.timer(delay, self.node(), Timer::Beat(coordinator));
        let now = context.now;
        match self.doors[coordinator].link {
            Link::Gone => self.join_anew(context, coordinator),
            Link::Joining { since, .. } if now - since > JOIN_MAX => {
                self.doors[coordinator].link = Link::Gone
            }
            Link::Joining { .. } => {}
            Link::Open { stream, heard_at, asking_since } => {
                let is_silent = now - heard_at > SILENCE_MAX;
                let is_unanswered = asking_since.is_some_and(|since| now - since > JOIN_MAX);
                if !context.is_open(stream) || is_silent || is_unanswered {
                    self.close(context, coordinator, stream);
                } else if asking_since.is_some() {
                    // The answer comes, or it does not.
                } else if self.doors[coordinator].is_to_tell_anew {
                    self.join_again(context, coordinator, stream, heard_at);
                } else {
                    self.send_beat(context, coordinator, stream);
                }
            }
        }
    }

    fn send_beat(&mut self, context: &mut Context, coordinator: usize, stream: u64) {
        let fetched = std::mem::take(&mut self.doors[coordinator].fetched);
        context.send_beat(stream, Beat { fetched, wants_drain: self.wants_drain });
    }

    fn close(&mut self, context: &mut Context, coordinator: usize, stream: u64) {
        context.streams.remove(&stream);
        self.doors[coordinator] = Door::default();
        context.send(self.node(), Node::Coordinator(coordinator), Message::Closed { stream });
    }

    fn join_anew(&mut self, context: &mut Context, coordinator: usize) {
        let stream = context.new_id();
        let link = Link::Joining { stream, since: context.now };
        self.doors[coordinator] = Door { link, ..Door::default() };
        self.send_join(context, coordinator, stream);
    }

    fn join_again(&mut self, context: &mut Context, coordinator: usize, stream: u64, heard_at: Millis) {
        let link = Link::Open { stream, heard_at, asking_since: Some(context.now) };
        self.doors[coordinator] = Door { link, ..Door::default() };
        self.send_join(context, coordinator, stream);
    }

    /// Tells what is here, but for what is about to go.
    fn send_join(&mut self, context: &mut Context, coordinator: usize, stream: u64) {
        self.joins += 1;
        self.doors[coordinator].last_join = self.joins;
        self.reported = self.next;
        let held = self.disk.difference(&self.leaving).copied().collect();
        let (term, number) = (self.newest_term, self.joins);
        let report = Report { held, term, number, wants_drain: self.wants_drain };
        context.send(self.node(), Node::Coordinator(coordinator), Message::Join { stream, report });
    }

    /// A coordinator answered a join.
    pub(super) fn joined(
        &mut self,
        context: &mut Context,
        coordinator: usize,
        (stream, discard, term): (u64, &[SegmentName], u64),
    ) {
        let heard_at = context.now;
        match self.doors[coordinator].link {
            Link::Joining { stream: awaited, .. } if awaited == stream => {
                context.open_stream(stream, self.me, coordinator);
                self.doors[coordinator].link = Link::Open { stream, heard_at, asking_since: None };
                self.obey(context, term, discard, &[]);
                self.send_beat(context, coordinator, stream);
            }
            Link::Open { stream: awaited, asking_since: Some(_), .. } if awaited == stream => {
                self.doors[coordinator].link = Link::Open { stream, heard_at, asking_since: None };
                self.obey(context, term, discard, &[]);
                self.send_beat(context, coordinator, stream);
            }
            Link::Gone | Link::Joining { .. } | Link::Open { .. } => {}
        }
    }

    /// A coordinator answered a beat.
    pub(super) fn ordered(
        &mut self,
        context: &mut Context,
        coordinator: usize,
        stream: u64,
        orders: &Orders,
    ) {
        match &mut self.doors[coordinator].link {
            Link::Open { stream: open, heard_at, .. } if *open == stream => *heard_at = context.now,
            _ => return,
        }
        if orders.rejoin {
            self.close(context, coordinator, stream);
            self.join_anew(context, coordinator);
            return;
        }
        let copies = orders.fetch.iter().map(|request| {
            let from: Vec<usize> = request.from.iter().map(|location| index_of(&location.worker)).collect();
            (request.name.parse::<SegmentName>().unwrap(), from)
        });
        let copies: Vec<(SegmentName, Vec<usize>)> = copies.collect();
        let is_overtaken = orders.after_join < self.doors[coordinator].last_join;
        let discard: &[SegmentName] = if is_overtaken { &[] } else { &orders.discard };
        self.obey(context, orders.term, discard, &copies);
        if orders.report {
            self.join_again(context, coordinator, stream, context.now);
        }
    }

    /// On the word of a coordinator of an older term than another's nothing is
    /// removed.
    fn obey(
        &mut self,
        context: &mut Context,
        term: u64,
        discard: &[SegmentName],
        copies: &[(SegmentName, Vec<usize>)],
    ) {
        let is_newest = term >= self.newest_term;
        self.newest_term = self.newest_term.max(term);
        let discard = if is_newest { discard } else { &[] };
        let new: Vec<_> = discard.iter().filter(|name| self.leaving.insert(**name)).copied().collect();
        for name in &new {
            if let Some(is_revoked) = self.under_way.get_mut(name) {
                *is_revoked = true;
            }
        }
        if !new.is_empty() {
            let delay = context.chance.between(0, 60);
            context.timer(delay, self.node(), Timer::Removed(new));
        }
        for (name, from) in copies {
            if !self.under_way.contains_key(name) {
                self.under_way.insert(*name, false);
                let delay = context.chance.between(5, 200);
                context.timer(delay, self.node(), Timer::Copied { name: *name, from: from.clone() });
            }
        }
    }

    /// Files go; which were here.
    pub(super) fn remove(&mut self, names: &[SegmentName]) -> Vec<SegmentName> {
        for (name, is_revoked) in self.writing.values_mut() {
            *is_revoked |= names.contains(name);
        }
        self.leaving.retain(|name| !names.contains(name));
        names.iter().filter(|name| self.disk.remove(*name)).copied().collect()
    }

    /// Whether a copy is to wait until the file that was here is gone.
    pub(super) fn waits_to_copy(&self, name: &SegmentName) -> bool {
        self.leaving.contains(name) && self.under_way.get(name) == Some(&false)
    }

    /// A copy ends: whether it is there, perhaps only until it is removed.
    pub(super) fn end_copy(&mut self, name: SegmentName, is_read: bool) -> bool {
        let is_revoked = self.under_way.remove(&name).unwrap_or(true);
        let is_leaving = self.leaving.contains(&name);
        // It is revoked when its removal is carried out, and there until then.
        let is_there = is_read && (is_leaving || !is_revoked);
        if is_there {
            self.disk.insert(name);
        }
        if is_there && !is_leaving {
            for door in self.doors.iter_mut().filter(|door| !matches!(door.link, Link::Gone)) {
                door.fetched.push(name);
            }
        }
        is_there
    }

    /// Begins to write a segment.
    pub(super) fn stage(&mut self, context: &mut Context, sender: Node, write: u128, name: SegmentName) {
        let number = self.next;
        self.next += 1;
        self.writing.insert(number, (name, false));
        let delay = if context.goes_wrong(30) { context.chance.between(200, 1_500) } else { 10 };
        let waiting_life = context.network.life(sender);
        let timer = Timer::Installed { number, waiting: sender, waiting_life, write };
        context.timer(delay, self.node(), timer);
    }

    /// A segment is durable; none where it was revoked meanwhile.
    pub(super) fn install(&mut self, number: u64) -> Option<SegmentName> {
        let (name, is_revoked) = self.writing.remove(&number)?;
        if is_revoked {
            return None;
        }
        self.disk.insert(name);
        Some(name)
    }

    /// Nobody waits for a segment that is here now: where it was begun before a
    /// report, all are told anew.
    pub(super) fn staged_for_nobody(&mut self, number: u64) {
        if number < self.reported {
            for door in self.doors.iter_mut().filter(|door| !matches!(door.link, Link::Gone)) {
                door.is_to_tell_anew = true;
            }
        }
    }

    /// For people to read.
    pub(super) fn note_removed(&self, context: &mut Context, gone: &[SegmentName]) {
        context.note(format_args!("{} removes {}", self.node(), Briefs(gone)));
    }

    /// For people to read.
    pub(super) fn note_here(&self, context: &mut Context, name: &SegmentName, how: &str) {
        context.note(format_args!("{} has {}: {how}", self.node(), Brief(name)));
    }
}

/// The number of a worker.
pub(super) fn index_of(id: &str) -> usize {
    id.trim_start_matches('w').parse().unwrap()
}
