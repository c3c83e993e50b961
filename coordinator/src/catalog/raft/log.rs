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

/// Bytes that are sent to a follower at once, unless one entry has more.
const APPEND_BYTES_MAX: usize = 512 * 1024;

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogStore {
    log: Arc<Mutex<Log>>,
    file: RaftFile,
}

#[derive(Debug)]
struct Log {
    entries: BTreeMap<u64, Kept>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    /// As it is encoded.
    bytes: usize,
}

impl LogStore {
    /// The log that a file held when it was opened. Who led asks for votes anew:
    /// openraft would let it lead on in its old term, in which it does not know
    /// up to where its log was acknowledged.
    pub fn new(opened: &mut Opened) -> Self {
        let me = opened.identity.as_ref().map(|identity| identity.coordinator);
        let leads_no_more = |vote: Vote| match me {
            Some(me) if vote.leader_id.voted_for == Some(me) => Vote { committed: false, ..vote },
            _ => vote,
        };
        let entries = std::mem::take(&mut opened.entries).into_iter().map(|(index, entry)| {
            let bytes = to_json(&entry).map_or(0, |json| json.len());
            (index, Kept { entry, bytes })
        });
        let log = Log {
            entries: entries.collect(),
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
        Ok(self.log.lock().entries.range(range).map(|(_, kept)| kept.entry.clone()).collect())
    }

    /// As many as a follower can take before openraft loses patience.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let log = self.log.lock();
        let mut entries = Vec::new();
        let mut sum = 0;
        for kept in log.entries.range(start..end).map(|(_, kept)| kept) {
            sum += kept.bytes;
            if sum > APPEND_BYTES_MAX && !entries.is_empty() {
                break;
            }
            entries.push(kept.entry.clone());
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = self.log.lock();
        let last = log.entries.values().next_back().map(|kept| kept.entry.log_id);
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
                let index = entry.log_id.index;
                let json = to_json(&entry).map_err(|error| StorageIOError::write_logs(&error))?;
                log.entries.insert(index, Kept { entry, bytes: json.len() });
                encoded.push((index, json));
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
