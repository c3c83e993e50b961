//! The coordinators' log as the consensus promises it: whatever a majority has
//! is there for good, in one order, and only the leader of the newest term adds
//! to it. Whether openraft keeps that promise is for other tests to find out.

use std::collections::VecDeque;
use std::sync::Arc;

use openraft::{CommittedLeaderId, EntryPayload};
use shoal_data::Segment;

use crate::catalog::raft::machine::Applied;
use crate::catalog::raft::types::{Entry, LogId, Reply, shown_term, term_of};
use crate::catalog::{Proposal, State};

/// So many entries may have to be applied again after a restart.
pub(super) const RESTART_BACK: u64 = 4;

/// The log, and who may add to it.
pub(super) struct Agreement {
    /// The newest term that somebody was elected for.
    pub(super) term: u64,
    /// Who leads in it; none after that one crashed.
    pub(super) leader: Option<usize>,
    /// What the leader has in its log, and no majority yet.
    pub(super) tail: Vec<Pending>,
    /// Whether it was seen to that this is committed.
    pub(super) is_commit_due: bool,
    machine: Applied,
    empty: Arc<State>,
    /// The committed log, without its beginning.
    entries: VecDeque<Logged>,
    first: u64,
}

/// An entry that is not committed yet.
pub(super) struct Pending {
    pub(super) term: u64,
    /// Whose log it was put into.
    pub(super) leader: usize,
    /// None for the one with which a leader begins.
    pub(super) proposal: Option<Proposal>,
    /// Who waits for it at the leader, as long as that one lives.
    pub(super) asker: Option<Asker>,
}

/// Who waits for an entry.
pub(super) struct Asker {
    pub(super) coordinator: usize,
    pub(super) leader_life: u32,
}

/// An entry that is committed.
pub(super) struct Logged {
    pub(super) term: u64,
    /// The state behind it.
    pub(super) state: Arc<State>,
    /// The segments that it took out.
    pub(super) dropped: Vec<Arc<Segment>>,
}

/// Who leads in a term, as the log's entries say it.
fn leader_of(term: u64, leader: usize) -> CommittedLeaderId<u64> {
    CommittedLeaderId::new(shown_term(term), leader as u64 + 1)
}

impl Agreement {
    pub(super) fn new() -> Self {
        let empty = Arc::new(State::new("story"));
        Self {
            term: 0,
            leader: None,
            tail: Vec::new(),
            is_commit_due: false,
            machine: Applied::new(Arc::clone(&empty)),
            empty,
            entries: VecDeque::new(),
            first: 0,
        }
    }

    /// How many entries are committed.
    pub(super) fn len(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The committed entry with this index.
    pub(super) fn logged(&self, index: u64) -> &Logged {
        assert!(index >= self.first, "entry {index} is forgotten; the log begins at {}", self.first);
        &self.entries[(index - self.first) as usize]
    }

    /// The state behind so many entries.
    pub(super) fn state_at(&self, entries: u64) -> Arc<State> {
        Arc::clone(entries.checked_sub(1).map_or(&self.empty, |last| &self.logged(last).state))
    }

    /// Begins the next term, in which this one leads.
    pub(super) fn elect(&mut self, leader: usize) -> u64 {
        let next = CommittedLeaderId::new(shown_term(self.term) + 1, leader as u64 + 1);
        (self.term, self.leader) = (term_of(&next), Some(leader));
        self.term
    }

    /// The term of the last of so many entries.
    pub(super) fn term_at(&self, entries: u64) -> u64 {
        entries.checked_sub(1).map_or(0, |last| self.logged(last).term)
    }

    /// The newest state.
    pub(super) fn newest(&self) -> Arc<State> {
        self.state_at(self.len())
    }

    /// Commits one entry: its index, and what came of it.
    pub(super) fn commit(&mut self, term: u64, leader: usize, proposal: Option<Proposal>) -> (u64, Reply) {
        let index = self.len();
        let log_id = LogId::new(leader_of(term, leader), index);
        let payload = proposal.map_or(EntryPayload::Blank, EntryPayload::Normal);
        let before = self.newest();
        let mut state = State::clone(&before);
        let reply = self.machine.apply(&mut state, Entry { log_id, payload });
        let dropped = state.take_dropped();
        let state = if state.version == before.version { before } else { Arc::new(state) };
        self.entries.push_back(Logged { term, state, dropped });
        (index, reply)
    }

    /// Forgets what everybody has applied, but for what a restart may go back to.
    pub(super) fn forget(&mut self, applied_everywhere: u64) {
        while self.first + 1 + RESTART_BACK < applied_everywhere {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// How much is applied after a restart where so much was before: what was
    /// committed is written down a little later than what is in the log.
    pub(super) fn after_restart(&self, entries: u64, back: u64) -> u64 {
        let oldest = if self.first == 0 { 0 } else { self.first + 1 };
        entries.saturating_sub(back.min(RESTART_BACK)).max(oldest.min(entries))
    }
}
