//! Who of one class runs, who waits, and who is next. No clock, no locks.
//!
//! Each session has a share of the turns, by its priority, however many queries it
//! sends. A query gets a number on a scale when it comes: one step behind the query of
//! its session before it, or, where that has gone, behind the query that was let in
//! last. Least numbers are next, and those with the same number in the order in which
//! they came. As everybody is put behind who was let in last, nobody is passed for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::need::{Class, Need, Priority};

/// Where a query waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) class: Class,
    spot: Spot,
}

/// A number on the scale, and which one it is of all that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Spot {
    at: u64,
    number: u64,
}

/// Steps on the scale from one query of a session to its next one.
fn step(priority: Priority) -> u64 {
    match priority {
        Priority::Low => 16,
        Priority::Normal => 4,
        Priority::High => 1,
    }
}

/// What a line takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Queries that run at once.
    pub(super) running_max: usize,
    /// Queries that wait.
    pub(super) waiting_max: usize,
}

/// What comes of a query that wants to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered<T> {
    /// It runs. Its token is given back.
    Runs(T),
    /// It waits, and its token with it.
    Waits(Ticket),
    /// As many wait as may. Its token is given back.
    Full(T),
}

/// One that waits; `token` tells it of its turn.
#[derive(Debug)]
struct Waiting<T> {
    session: u64,
    memory_bytes: u64,
    token: T,
}

/// What is known of a session some of whose queries wait.
#[derive(Debug)]
struct Queued {
    waiting: usize,
    /// The number of the one that came last.
    last: u64,
    /// Numbers of those that went away while others of it waited: its next ones get them.
    given_back: BTreeSet<u64>,
}

impl Queued {
    /// The number of one that comes, where `reached` was let in last.
    fn number(&mut self, reached: u64, step: u64) -> u64 {
        // What was passed meanwhile would be before those who waited for longer.
        self.given_back = self.given_back.split_off(&reached.saturating_add(1));
        if let Some(at) = self.given_back.pop_first() {
            return at;
        }
        self.last = self.last.max(reached).saturating_add(step);
        self.last
    }
}

/// The queries of one class.
#[derive(Debug)]
pub(super) struct Line<T> {
    class: Class,
    limits: Limits,
    running: usize,
    /// What those that run may take.
    running_bytes: u64,
    /// The number of the one that was let in last.
    reached: u64,
    /// Queries that ever waited.
    came: u64,
    waiting: BTreeMap<Spot, Waiting<T>>,
    sessions: HashMap<u64, Queued>,
}

impl<T> Line<T> {
    pub(super) fn new(class: Class, limits: Limits) -> Self {
        Self {
            class,
            limits,
            running: 0,
            running_bytes: 0,
            reached: 0,
            came: 0,
            waiting: BTreeMap::new(),
            sessions: HashMap::new(),
        }
    }

    /// One comes. Where others wait it waits behind them, whatever room there is.
    pub(super) fn enter(&mut self, need: Need, memory_max: Option<u64>, token: T) -> Entered<T> {
        if self.waiting.is_empty() && self.has_room(need.memory_bytes, memory_max) {
            self.begin(need.memory_bytes);
            return Entered::Runs(token);
        }
        if self.waiting.len() >= self.limits.waiting_max {
            return Entered::Full(token);
        }
        let reached = self.reached;
        let new = || Queued { waiting: 0, last: reached, given_back: BTreeSet::new() };
        let session = self.sessions.entry(need.session).or_insert_with(new);
        session.waiting += 1;
        let at = session.number(reached, step(need.priority));
        let spot = Spot { at, number: self.came };
        self.came += 1;
        let waiting = Waiting { session: need.session, memory_bytes: need.memory_bytes, token };
        self.waiting.insert(spot, waiting);
        Entered::Waits(Ticket { class: self.class, spot })
    }

    /// One that waits goes away; whether it still waited. Its turn is its session's still.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        let left = self.waiting.remove(&ticket.spot);
        if let Some(left) = &left {
            self.forget(left.session);
            if let Some(session) = self.sessions.get_mut(&left.session) {
                session.given_back.insert(ticket.spot.at);
            }
        }
        left.is_some()
    }

    /// One that ran has ended.
    pub(super) fn end(&mut self, memory_bytes: u64) {
        self.running = self.running.saturating_sub(1);
        self.running_bytes = self.running_bytes.saturating_sub(memory_bytes);
    }

    /// Lets the next one in where there is room for it; its token, and what it may take.
    /// Where there is none, nobody behind it is let in either: it would never be there.
    pub(super) fn next(&mut self, memory_max: Option<u64>) -> Option<(T, u64)> {
        let (_, first) = self.waiting.first_key_value()?;
        if !self.has_room(first.memory_bytes, memory_max) {
            return None;
        }
        let (spot, next) = self.waiting.pop_first()?;
        self.reached = spot.at;
        self.forget(next.session);
        self.begin(next.memory_bytes);
        Some((next.token, next.memory_bytes))
    }

    /// Nobody waits any more; the tokens of those that did.
    pub(super) fn dismiss(&mut self) -> Vec<T> {
        self.sessions.clear();
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.token).collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Whether all places are taken; those that wait may also wait for memory.
    pub(super) fn is_full(&self) -> bool {
        self.running >= self.limits.running_max
    }

    /// The place in the line, from 1: how many turns it is away. Steps by those before it.
    pub(super) fn place(&self, ticket: Ticket) -> usize {
        self.waiting.range(..=ticket.spot).count().max(1)
    }

    /// The places of all that wait.
    pub(super) fn places(&self) -> impl Iterator<Item = (Ticket, usize)> {
        let class = self.class;
        let spots = self.waiting.keys().zip(1..);
        spots.map(move |(spot, place)| (Ticket { class, spot: *spot }, place))
    }

    /// Whether one more may run. A query that wants more memory than there is runs alone.
    fn has_room(&self, memory_bytes: u64, memory_max: Option<u64>) -> bool {
        let is_in_memory = || {
            let all = self.running_bytes.saturating_add(memory_bytes);
            memory_max.is_none_or(|most| all <= most)
        };
        self.running < self.limits.running_max && (self.running == 0 || is_in_memory())
    }

    fn begin(&mut self, memory_bytes: u64) {
        self.running += 1;
        self.running_bytes = self.running_bytes.saturating_add(memory_bytes);
    }

    /// A query of this session waits no more.
    fn forget(&mut self, session: u64) {
        let Some(queued) = self.sessions.get_mut(&session) else { return };
        queued.waiting -= 1;
        if queued.waiting == 0 {
            self.sessions.remove(&session);
        }
    }
}

#[cfg(test)]
mod tests;
