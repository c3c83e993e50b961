//! The likeness of `raft::core::Core`: changes and reads, at whoever leads.

use shoal_data::SegmentName;
use shoal_proto::WorkerId;
use uuid::Uuid;

use super::{Coordinator, write_id};
use crate::catalog::raft::types::Reply;
use crate::catalog::{Command, Outcome, Proposal};
use crate::simulation::client::Wish;
use crate::simulation::context::{Context, Message, Millis};
use crate::simulation::network::Node;

/// How long a change may look for a leader and its majority.
const CHANGE_MAX: Millis = 3_000;
/// How long a read may.
const READ_MAX: Millis = 2_000;
/// After so long without an answer a question is asked again.
const ASK_AGAIN: Millis = 400;

/// A change that is under way.
pub(super) struct Asked {
    proposal: Proposal,
    why: Why,
    /// None for one that is to be settled, however long it takes.
    deadline: Option<Millis>,
    again_at: Millis,
    /// Whether a leader may have got it.
    is_sent: bool,
    /// Its place in the log, and what came of it.
    answer: Option<(u64, Reply)>,
}

impl Asked {
    /// Whether it says that this worker has something.
    pub(super) fn names(&self, worker: &WorkerId) -> bool {
        self.proposal.command.as_ref().is_some_and(|command| names(command, worker))
    }
}

/// Whether a command says that this worker has something.
pub(in crate::simulation) fn names(command: &Command, worker: &WorkerId) -> bool {
    match command {
        Command::AddReplica { worker: added, .. } => added == worker,
        Command::CommitWrite { segments, .. } | Command::Compact { new: segments, .. } => {
            segments.iter().any(|segment| segment.replicas.contains(worker))
        }
        _ => false,
    }
}

/// What a change is for.
pub(super) enum Why {
    Record(WorkerId, SegmentName),
    Place,
    ApplyAll,
    /// A worker is taken in.
    Register,
    Commit,
    Settle,
    /// A client's; nobody needs to know what came of it.
    Client,
    /// An id for a table that a client makes.
    Reserve(usize),
}

/// How a change ended: the answer, or whether it may be made all the same.
pub(super) type Ended = Result<Reply, bool>;

/// A read that waits until the state is new enough.
pub(super) struct Read {
    wish: Wish,
    deadline: Millis,
    again_at: Millis,
    /// What must be applied, once the leader has said so.
    entries: Option<u64>,
    /// What was acknowledged anywhere when it began.
    version: u64,
}

impl Coordinator {
    /// Makes a change; its number.
    pub(super) fn change(
        &mut self,
        context: &mut Context,
        term: Option<u64>,
        command: Option<Command>,
        why: Why,
    ) -> u128 {
        let id = u128::from(context.new_id());
        let deadline = Some(context.now + CHANGE_MAX);
        let (from, since) = (self.me as u64 + 1, self.entries);
        let proposal = Proposal { id: Uuid::from_u128(id), from, since, term, command };
        self.ask(context, proposal, why, deadline);
        id
    }

    /// Sees to it that a change is made or never made.
    fn settle(&mut self, context: &mut Context, change: Proposal) {
        self.ask(context, Proposal { term: None, command: None, ..change }, Why::Settle, None);
    }

    fn ask(&mut self, context: &mut Context, proposal: Proposal, why: Why, deadline: Option<Millis>) {
        let id = proposal.id.as_u128();
        let asked = Asked { proposal, why, deadline, again_at: 0, is_sent: false, answer: None };
        self.asked.insert(id, asked);
        self.ask_leader(context, id);
    }

    fn ask_leader(&mut self, context: &mut Context, id: u128) {
        let (me, leader) = (self.node(), self.leader);
        let Some(asked) = self.asked.get_mut(&id) else { return };
        asked.again_at = context.now + ASK_AGAIN;
        if let Some(leader) = leader {
            asked.is_sent = true;
            let message = Message::Propose(Box::new(asked.proposal.clone()));
            context.send(me, Node::Coordinator(leader), message);
        }
    }

    /// Somebody answered; none: it does not lead.
    pub(in crate::simulation) fn proposed(
        &mut self,
        context: &mut Context,
        id: u128,
        answer: Option<(u64, Reply)>,
    ) {
        let Some(asked) = self.asked.get_mut(&id) else { return };
        match answer {
            None => asked.again_at = context.now + 50,
            Some(answer) if asked.answer.is_none() => asked.answer = Some(answer),
            Some(_) => {}
        }
        self.end_changes(context);
    }

    /// Whoever made a change sees it, here too.
    pub(super) fn end_changes(&mut self, context: &mut Context) {
        let entries = self.entries;
        let is_seen = |asked: &Asked| asked.answer.as_ref().is_some_and(|(index, _)| entries > *index);
        while let Some(id) = self.asked.iter().find(|entry| is_seen(entry.1)).map(|entry| *entry.0) {
            self.end_change(context, id);
        }
    }

    pub(super) fn look_after_changes(&mut self, context: &mut Context) {
        let ids: Vec<u128> = self.asked.keys().copied().collect();
        for id in ids {
            let Some(asked) = self.asked.get(&id) else { continue };
            let is_over = asked.deadline.is_some_and(|deadline| context.now >= deadline);
            let is_unanswered = asked.answer.is_none() && context.now >= asked.again_at;
            if is_over {
                self.end_change(context, id);
            } else if is_unanswered {
                self.ask_leader(context, id);
            }
        }
    }

    fn end_change(&mut self, context: &mut Context, id: u128) {
        let Some(Asked { proposal, why, is_sent, answer, .. }) = self.asked.remove(&id) else { return };
        let ended: Ended = answer.map(|(_, reply)| reply).ok_or(is_sent);
        match why {
            Why::Record(worker, name) => self.recorded(context, id, (worker, name), ended),
            Why::Place => self.placed(context, id),
            Why::ApplyAll => self.all_applied(context, &ended),
            Why::Register => self.registered(context, id, &ended),
            Why::Commit if matches!(ended, Err(true) | Ok(Reply::Forgotten)) => {
                self.unsettled(context, id);
                self.settle(context, proposal);
            }
            Why::Commit => self.committed(context, id, &ended),
            Why::Settle => self.settled(context, id, &ended),
            Why::Client => {}
            Why::Reserve(table) => {
                if let Ok(Reply::Done(Outcome::Table(table_id))) = ended {
                    self.create_table(context, table_id, table);
                }
            }
        }
    }

    /// `Catalog::catch_up`, and then what the client wants.
    pub(in crate::simulation) fn read(&mut self, context: &mut Context, wish: Wish) {
        let id = u128::from(context.new_id());
        let version = context.seen.version;
        let deadline = context.now + READ_MAX;
        self.reads.insert(id, Read { wish, deadline, again_at: 0, entries: None, version });
        self.ask_for_index(context, id);
    }

    fn ask_for_index(&mut self, context: &mut Context, id: u128) {
        let (me, leader) = (self.node(), self.leader);
        let Some(read) = self.reads.get_mut(&id) else { return };
        read.again_at = context.now + ASK_AGAIN;
        if let Some(leader) = leader {
            context.send(me, Node::Coordinator(leader), Message::ReadIndex { id });
        }
    }

    /// The leader says how much must be applied; none: it does not lead.
    pub(in crate::simulation) fn read_at(&mut self, context: &mut Context, id: u128, entries: Option<u64>) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        match entries {
            None => read.again_at = context.now + 50,
            Some(entries) => read.entries = Some(entries),
        }
        self.end_reads(context);
    }

    pub(super) fn end_reads(&mut self, context: &mut Context) {
        let entries = self.entries;
        let is_seen = |read: &Read| read.entries.is_some_and(|needed| entries >= needed);
        while let Some(id) = self.reads.iter().find(|entry| is_seen(entry.1)).map(|entry| *entry.0) {
            let Some(Read { wish, version, .. }) = self.reads.remove(&id) else { return };
            match wish {
                Wish::Query => self.begin_query(context, version),
                Wish::Write { id, lot } => self.begin_write(context, write_id(id), lot),
                Wish::WriteAgain { id } => self.begin_write(context, id, 0),
                Wish::Discard { write } => self.discard_refused(context, write),
            }
        }
    }

    pub(super) fn look_after_reads(&mut self, context: &mut Context) {
        let now = context.now;
        let over: Vec<u128> =
            self.reads.iter().filter(|(_, read)| now >= read.deadline).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(Read { wish: Wish::Discard { write }, .. }) = self.reads.remove(&id) {
                self.leave_write(context, write);
            }
        }
        let unanswered: Vec<u128> = self
            .reads
            .iter()
            .filter(|(_, read)| read.entries.is_none() && now >= read.again_at)
            .map(|(id, _)| *id)
            .collect();
        for id in unanswered {
            self.ask_for_index(context, id);
        }
    }
}
