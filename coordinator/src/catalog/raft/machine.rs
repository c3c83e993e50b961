//! The catalog's state as openraft sees it: entries of the log go in, one after
//! the other, and everybody else sees the state behind the newest.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_data::Segment;
use shoal_proto::fault::{self, Step};
use tokio::sync::watch;
use uuid::Uuid;

use super::file::{KeptSnapshot, RaftFile};
use super::types::{
    CoordinatorId, Entry, LogId, Membership, Proposal, Reply, SnapshotMeta, StorageError, TypeConfig, term_of,
};
use crate::Error;
use crate::catalog::{CatalogError, Command, Outcome, State, disk};

/// Commands whose replies are remembered. One that is sent again later than that
/// many others is not applied, and its sender told that nobody knows.
const RECENT_MAX: usize = 4_096;

/// Numbers that lost coordinators may have given without this one.
const NUMBERS_SKIPPED: u64 = 100;

/// How often a snapshot that finds no room on the disk looks again.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// A segment that no state has since a version of the catalog.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// The first version without it that anybody saw.
    pub version: u64,
    /// The segment.
    pub segment: Arc<Segment>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Entries up to there.
    pub entries: u64,
    /// The term of the last one.
    pub term: u64,
}

/// What the rest of the coordinator sees of the machine.
#[derive(Clone, Debug)]
pub struct Published {
    /// The newest state.
    pub state: watch::Sender<Arc<State>>,
    /// Up to where the log is in that state.
    pub applied: watch::Sender<Position>,
    /// Segments that were dropped since somebody last asked.
    pub dropped: Arc<Mutex<Vec<Dropped>>>,
}

impl Published {
    /// A catalog with nothing in it.
    pub fn new(cluster: &str) -> Self {
        Self {
            state: watch::Sender::new(Arc::new(State::new(cluster))),
            applied: watch::Sender::default(),
            dropped: Arc::default(),
        }
    }
}

/// The replies to the newest commands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "KeptRecent", into = "KeptRecent")]
pub struct Recent {
    replies: HashMap<Uuid, Reply>,
    /// Oldest first, each with the entries of the log up to it.
    order: VecDeque<(Uuid, u64)>,
    /// Entries of the log up to the last one whose reply is not remembered.
    forgotten: u64,
}

/// As it is in a snapshot.
#[derive(Serialize, Deserialize)]
struct KeptRecent {
    replies: Vec<(Uuid, u64, Reply)>,
    forgotten: u64,
}

impl Recent {
    fn insert(&mut self, id: Uuid, entries: u64, reply: Reply) {
        self.replies.insert(id, reply);
        self.order.push_back((id, entries));
        while self.order.len() > RECENT_MAX {
            if let Some((oldest, entries)) = self.order.pop_front() {
                self.replies.remove(&oldest);
                self.forgotten = self.forgotten.max(entries);
            }
        }
    }
}

impl From<KeptRecent> for Recent {
    fn from(kept: KeptRecent) -> Self {
        let mut recent = Self { forgotten: kept.forgotten, ..Self::default() };
        for (id, entries, reply) in kept.replies {
            recent.insert(id, entries, reply);
        }
        recent
    }
}

impl From<Recent> for KeptRecent {
    fn from(recent: Recent) -> Self {
        let Recent { mut replies, order, forgotten } = recent;
        let in_order =
            order.into_iter().filter_map(|(id, entries)| Some((id, entries, replies.remove(&id)?)));
        Self { replies: in_order.collect(), forgotten }
    }
}

/// The state behind one entry of the log.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    state: Arc<State>,
    recent: Recent,
    last: Option<LogId>,
    membership: Membership,
}

impl Applied {
    /// Before any entry.
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state, recent: Recent::default(), last: None, membership: Membership::default() }
    }

    /// Takes the next entry into a state that is not shown to anybody yet.
    pub(crate) fn apply(&mut self, state: &mut State, entry: Entry) -> Reply {
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Reply::Nothing,
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(entry.log_id), membership);
                Reply::Nothing
            }
            EntryPayload::Normal(Proposal { id, from, since, term, command }) => {
                if let Some(reply) = self.recent.replies.get(&id) {
                    return reply.clone();
                }
                if since < self.recent.forgotten {
                    return Reply::Forgotten;
                }
                // Nobody asks one that was removed what it stages.
                let is_refused = state.is_dismissed(from);
                let is_late = term.is_some_and(|term| term != term_of(&entry.log_id.leader_id));
                let reply = match command {
                    // It may rest on what was so under the leader before.
                    _ if is_late => Reply::Refused(CatalogError::Invalid(
                        "it was decided by a leader that does not lead any more".to_owned(),
                    )),
                    None => Reply::Abandoned,
                    Some(command) if is_refused && command.names_staged() => Reply::Refused(
                        CatalogError::Invalid(format!("coordinator {from} was removed from the cluster")),
                    ),
                    Some(command) => state.apply(command).map_or_else(Reply::Refused, Reply::Done),
                };
                self.recent.insert(id, entry.log_id.index + 1, reply.clone());
                reply
            }
        }
    }
}

/// The machine. It is the only one that changes the state.
#[derive(Debug)]
pub struct Machine {
    applied: Applied,
    published: Published,
    file: RaftFile,
    /// The snapshot that was read at the start, until it is asked for: openraft asks
    /// for it before anything else.
    first: Option<KeptSnapshot>,
}

impl Machine {
    /// The machine behind the newest snapshot of a file, or of a new cluster.
    ///
    /// # Errors
    /// Where the snapshot cannot be read.
    pub fn new(file: RaftFile, snapshot: Option<KeptSnapshot>, published: Published) -> Result<Self, Error> {
        let applied = Applied::new(Arc::clone(&published.state.borrow()));
        let mut machine = Self { applied, published, file, first: None };
        if let Some(snapshot) = snapshot {
            let unpacked = Unpacked::of(&snapshot.data, &machine.applied.state)?;
            machine.replace(&snapshot.meta, unpacked);
            machine.first = Some(snapshot);
            // Nothing reads them after a restart; workers are told when they join.
            machine.published.dropped.lock().clear();
        }
        Ok(machine)
    }

    /// What was applied, as the bytes of a snapshot.
    ///
    /// # Errors
    /// `Internal` for a state that cannot be encoded.
    pub fn encoded(&self) -> Result<Bytes, Error> {
        Ok(self.applied.state.to_bytes(&self.applied.recent)?.into())
    }

    /// Dismisses all coordinators but this one: those that may have come while
    /// others led, too, whose numbers are not given again.
    ///
    /// # Errors
    /// `Invalid` for a state that takes no such command.
    pub fn dismiss_all_but(&mut self, me: CoordinatorId) -> Result<(), Error> {
        let mut state = State::clone(&self.applied.state);
        let mut last = me;
        for _ in 0..NUMBERS_SKIPPED {
            if let Outcome::Coordinator(number) = state.apply(Command::ReserveCoordinator)? {
                last = last.max(number);
            }
        }
        for coordinator in (1..=last).filter(|number| *number != me) {
            state.apply(Command::DismissCoordinator { coordinator })?;
        }
        self.applied.state = Arc::new(state);
        Ok(())
    }

    fn replace(&mut self, meta: &SnapshotMeta, Unpacked { state, recent, gone }: Unpacked) {
        self.applied =
            Applied { state, recent, last: meta.last_log_id, membership: meta.last_membership.clone() };
        self.publish(gone);
    }

    /// Shows the state to everybody, and what it does not have any more.
    fn publish(&self, dropped: Vec<Arc<Segment>>) {
        let state = &self.applied.state;
        // Held meanwhile: whoever has seen the state finds all that it dropped.
        let mut all_dropped = self.published.dropped.lock();
        self.published.state.send_if_modified(|current| {
            let changed = !Arc::ptr_eq(current, state);
            *current = Arc::clone(state);
            changed
        });
        let version = state.version;
        let dropped = dropped.into_iter().map(|segment| Dropped { version, segment });
        all_dropped.extend(dropped);
        drop(all_dropped);
        let position = |last: LogId| Position { entries: last.index + 1, term: term_of(&last.leader_id) };
        let applied = self.applied.last.map(position).unwrap_or_default();
        self.published.applied.send_replace(applied);
    }
}

/// What a snapshot says.
struct Unpacked {
    state: Arc<State>,
    recent: Recent,
    /// Segments that the state before has, and this one does not.
    gone: Vec<Arc<Segment>>,
}

impl Unpacked {
    fn of(data: &[u8], before: &State) -> Result<Self, Error> {
        let (state, recent) = State::from_bytes(data)?;
        let gone = gone(before, &state);
        Ok(Self { state: Arc::new(state), recent, gone })
    }
}

fn is_write_of(entry: &Entry) -> bool {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.command.as_ref().is_some_and(|it| it.write().is_some()),
        EntryPayload::Blank | EntryPayload::Membership(_) => false,
    }
}

/// The segments of one state that another does not have.
pub(crate) fn gone(before: &State, after: &State) -> Vec<Arc<Segment>> {
    // At its start a coordinator has nothing that could be gone.
    if before.tables().next().is_none() {
        return Vec::new();
    }
    let kept: HashSet<_> =
        after.tables().flat_map(|table| &table.segments).map(|segment| segment.name()).collect();
    let segments = before.tables().flat_map(|table| &table.segments);
    segments.filter(|segment| !kept.contains(&segment.name())).cloned().collect()
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = State::clone(&self.applied.state);
        let mut is_write = false;
        let mut replies = Vec::new();
        for entry in entries {
            is_write |= is_write_of(&entry);
            replies.push(self.applied.apply(&mut state, entry));
        }
        if is_write {
            fault::point(Step::CommitLogged);
        }
        let dropped = state.take_dropped();
        if state.version != self.applied.state.version {
            self.applied.state = Arc::new(state);
        }
        self.publish(dropped);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { applied: self.applied.clone(), file: self.file.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        self.first = None;
        let data = Bytes::from(snapshot.into_inner());
        let failed =
            |error: AnyError| StorageIOError::<CoordinatorId>::read_snapshot(Some(meta.signature()), error);
        // It may take seconds, and the leader is to be heard meanwhile.
        let (bytes, before) = (data.clone(), Arc::clone(&self.applied.state));
        let unpacked = tokio::task::spawn_blocking(move || Unpacked::of(&bytes, &before)).await;
        let unpacked = unpacked.map_err(|error| failed(AnyError::new(&error)))?;
        self.replace(meta, unpacked.map_err(|error| failed(AnyError::new(&error)))?);
        keep(&self.file, KeptSnapshot { meta: meta.clone(), data }).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let kept = match self.first.take() {
            Some(first) => Some(first),
            None => {
                self.file.snapshot().await.map_err(|error| StorageIOError::read_snapshot(None, &error))?
            }
        };
        Ok(kept.map(|KeptSnapshot { meta, data }| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(Vec::from(data))),
        }))
    }
}

/// Makes a snapshot of what was applied when it was asked for.
#[derive(Debug)]
pub struct Builder {
    applied: Applied,
    file: RaftFile,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let Applied { state, recent, last, membership } = self.applied.clone();
        let meta = SnapshotMeta {
            last_log_id: last,
            last_membership: membership,
            snapshot_id: format!("{}-{}", last.map_or(0, |last| last.index), Uuid::new_v4().simple()),
        };
        let failed =
            |error: AnyError| StorageIOError::<CoordinatorId>::write_snapshot(Some(meta.signature()), error);
        // It may take seconds, and the log goes on.
        let encoded = tokio::task::spawn_blocking(move || state.to_bytes(&recent)).await;
        let encoded = encoded.map_err(|error| failed(AnyError::new(&error)))?;
        let data: Bytes = encoded.map_err(|error| failed(AnyError::new(&error)))?.into();
        // What is given to the file must be written, and holds up the log until then.
        while !disk::has_room_for(self.file.path(), 2 * data.len() as u64) {
            tokio::time::sleep(ROOM_RETRY).await;
        }
        keep(&self.file, KeptSnapshot { meta: meta.clone(), data: data.clone() }).await?;
        tracing::debug!(snapshot_bytes = data.len(), "a snapshot of the catalog is kept");
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(Vec::from(data))) })
    }
}

async fn keep(file: &RaftFile, snapshot: KeptSnapshot) -> Result<(), StorageError> {
    let signature = snapshot.meta.signature();
    let kept = file.keep(snapshot).await;
    kept.map_err(|error| StorageIOError::write_snapshot(Some(signature), &error).into())
}

#[cfg(test)]
mod tests;
