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
const APPEND_BYTES_MAX: u64 = 512 * 1024;

/// Bytes, as JSON, of entries that stay behind a snapshot; a log that is longer than
/// that and than the snapshot asks for another one.
const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Entries after a snapshot that ask for another one, where they are large beside it.
pub const SNAPSHOT_EVERY: u64 = 1_000;
/// They are where they are this part of it: each snapshot is all of the catalog.
const SNAPSHOT_SHARE: u64 = 8;

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogStore {
    log: Arc<Mutex<Log>>,
    file: RaftFile,
}

#[derive(Debug)]
struct Log {
    entries: BTreeMap<u64, Kept>,
    /// Bytes of all entries that were ever appended here.
    appended: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    /// Bytes of all entries that were appended before this one, and with it.
    start: u64,
    end: u64,
}

impl Log {
    fn append(&mut self, index: u64, entry: Entry, bytes: u64) {
        let start = self.appended;
        self.appended += bytes;
        self.entries.insert(index, Kept { entry, start, end: self.appended });
    }

    /// Bytes of the entries after this one.
    fn bytes_after(&self, index: Option<u64>) -> u64 {
        let next = index.map_or(0, |index| index + 1);
        let first = self.entries.range(next..).next();
        first.map_or(0, |(_, first)| self.appended - first.start)
    }

    /// The last entry, also where it was removed behind a snapshot.
    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|kept| kept.entry.log_id).or(self.purged)
    }

    fn wants_snapshot(&self, kept: Option<u64>, applied: u64, snapshot_bytes: u64) -> bool {
        let entries = applied.saturating_sub(kept.unwrap_or_default());
        let bytes = self.bytes_after(kept);
        let is_large = bytes >= snapshot_bytes / SNAPSHOT_SHARE;
        entries > 0
            && (bytes >= KEPT_BYTES_MAX.max(snapshot_bytes) || (entries >= SNAPSHOT_EVERY && is_large))
    }

    fn removable(&self, kept: u64) -> Option<u64> {
        let too_many =
            self.entries.range(..=kept).take_while(|(_, it)| self.appended - it.end >= KEPT_BYTES_MAX);
        too_many.last().map(|(index, _)| *index)
    }
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
        let mut log = Log {
            entries: BTreeMap::new(),
            appended: 0,
            vote: opened.vote.map(leads_no_more),
            committed: opened.committed,
            purged: opened.purged,
        };
        for (index, (entry, bytes)) in std::mem::take(&mut opened.entries) {
            log.append(index, entry, bytes);
        }
        Self { log: Arc::new(Mutex::new(log)), file: opened.file.clone() }
    }

    /// Whether there should be a snapshot of what was applied up to `applied`; the
    /// newest is of what was up to `kept`. To write it takes the longer the larger
    /// the catalog is, and the log before it is read at each start.
    pub fn wants_snapshot(&self, kept: Option<u64>, applied: u64) -> bool {
        self.log.lock().wants_snapshot(kept, applied, self.file.snapshot_bytes())
    }

    /// Up to which entry the log should be removed for the sake of memory, of those
    /// that the newest snapshot has, which is of what was up to `kept`.
    pub fn removable(&self, kept: u64) -> Option<u64> {
        self.log.lock().removable(kept)
    }

    /// The last entry that was appended.
    pub fn last(&self) -> Option<LogId> {
        self.log.lock().last()
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
            sum += kept.end - kept.start;
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
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last() })
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
                log.append(index, entry, json.len() as u64);
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

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;

    /// A log of entries of so many bytes each, from index 1 on.
    fn log(bytes: &[u64]) -> Log {
        let mut log =
            Log { entries: BTreeMap::new(), appended: 0, vote: None, committed: None, purged: None };
        for (index, bytes) in (1..).zip(bytes) {
            let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
            log.append(index, Entry { log_id, payload: EntryPayload::Blank }, *bytes);
        }
        log
    }

    #[test]
    fn a_snapshot_is_due_when_what_came_since_is_long_and_not_small_beside_it() {
        let many = log(&[100; 1_500]);
        assert!(!many.wants_snapshot(Some(501), 1_500, 0), "too few");
        assert!(many.wants_snapshot(Some(500), 1_500, 0));
        assert!(many.wants_snapshot(None, 1_500, 0));
        let bytes = 1_000 * 100;
        assert!(many.wants_snapshot(Some(500), 1_500, bytes * SNAPSHOT_SHARE));
        assert!(!many.wants_snapshot(Some(500), 1_500, (bytes + 100) * SNAPSHOT_SHARE));
        let large = log(&[1, KEPT_BYTES_MAX, 1]);
        assert!(large.wants_snapshot(Some(1), 3, 0));
        assert!(!large.wants_snapshot(Some(2), 3, 0));
        assert!(!large.wants_snapshot(Some(1), 3, 2 * KEPT_BYTES_MAX), "the catalog is larger");
        assert!(!large.wants_snapshot(Some(3), 3, 0), "nothing came since");
    }

    #[test]
    fn a_log_that_is_too_long_is_cut_as_far_as_there_is_a_snapshot() {
        let third = KEPT_BYTES_MAX / 3 + 1;
        let log = log(&[third; 6]);
        assert_eq!(log.removable(6), Some(3), "three of them are as much as may stay");
        assert_eq!(log.removable(2), Some(2));
        assert_eq!(log.removable(0), None);
        assert_eq!(super::tests::log(&[third; 3]).removable(3), None);
    }
}
