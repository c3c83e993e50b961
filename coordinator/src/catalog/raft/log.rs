//! The log as openraft sees it: whole in memory, and on disk through
//! [`RaftFile`]. Snapshots keep it short.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader, StorageIOError};
use parking_lot::Mutex;

use super::file::{Change, Opened, RaftFile, to_json};
use super::types::{CoordinatorId, Entry, LogId, StorageError, TypeConfig, Vote};

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogStore {
    log: Arc<Mutex<Log>>,
    file: RaftFile,
}

#[derive(Debug)]
struct Log {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl LogStore {
    /// The log that a file held when it was opened. Who led asks for votes anew:
    /// openraft would let it lead on in its old term, in which it does not know
    /// up to where its log was acknowledged.
    pub fn new(opened: &mut Opened) -> Self {
        let me = opened.identity.as_ref().map(|identity| identity.coordinator);
        let leads_no_more = |vote: Vote| match me {
            Some(me) if vote.leader_id.node_id == me => Vote { committed: false, ..vote },
            _ => vote,
        };
        let log = Log {
            entries: std::mem::take(&mut opened.entries),
            vote: opened.vote.map(leads_no_more),
            committed: opened.committed,
            purged: opened.purged,
        };
        Self { log: Arc::new(Mutex::new(log)), file: opened.file.clone() }
    }

    async fn change(&self, change: Change) -> Result<(), StorageIOError<CoordinatorId>> {
        self.file.change(change).await.map_err(|error| StorageIOError::write_logs(&error))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.log.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = self.log.lock();
        let last = log.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last.or(log.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.change(Change::Vote(*vote)).await?;
        self.log.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.log.lock().committed = committed;
        self.file.committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        {
            let mut log = self.log.lock();
            for entry in entries {
                let json = to_json(&entry).map_err(|error| StorageIOError::write_logs(&error))?;
                encoded.push((entry.log_id.index, json));
                log.entries.insert(entry.log_id.index, entry);
            }
        }
        self.file.append(encoded, flushed).map_err(|error| StorageIOError::write_logs(&error))?;
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.log.lock().entries.split_off(&since.index);
        self.change(Change::Truncate(since.index)).await?;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        {
            let mut log = self.log.lock();
            log.entries = log.entries.split_off(&(upto.index + 1));
            log.purged = Some(upto);
        }
        self.change(Change::Purge(upto)).await?;
        Ok(())
    }
}
