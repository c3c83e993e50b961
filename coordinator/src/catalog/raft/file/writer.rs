//! What writes the file: changes that wait together in one commit, and what the
//! file held when it was opened.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use super::format::{begin, check_format};
use super::pieces::{forget_some, is_older, put_pieces, read_snapshot, strays};
use super::{
    Change, ENTRIES, Identity, KeptSnapshot, Opened, RaftFile, Request, SnapshotHead, Storage, VALUES,
    closed, from_json, put, store,
};
use crate::Error;
use crate::catalog::raft::types::{Entry, LogId, Vote};

/// Commits that share one write to the disk.
const BATCH_MAX: usize = 256;
/// How often a commit that found the disk full is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// What a file held, without the file.
pub(super) struct Held {
    identity: Option<Identity>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, (Entry, u64)>,
    snapshot: Option<KeptSnapshot>,
    /// The number of the next snapshot.
    pub(super) next_snapshot: u64,
}

impl Held {
    pub(super) fn of(self, file: RaftFile) -> Opened {
        let Self { identity, vote, committed, purged, entries, snapshot, .. } = self;
        Opened { file, identity, vote, committed, purged, entries, snapshot }
    }
}

/// What owns the database.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) path: PathBuf,
    storage: Box<dyn Storage>,
    /// None after a failure, until it is opened again.
    database: Option<Database>,
    pub(super) committed: Arc<Mutex<Option<LogId>>>,
    kept_committed: Option<LogId>,
    pub(super) closing: Arc<AtomicBool>,
    /// The snapshot on the disk that counts.
    kept_snapshot: Option<SnapshotHead>,
    /// Pieces of others, by the number of the snapshot: they go with the commits
    /// that come, some with each.
    unneeded: BTreeMap<u64, Range<u64>>,
    /// The length of the snapshot that counts, for others.
    pub(super) snapshot_bytes: Arc<AtomicU64>,
    /// What may be removed from the log once there is a snapshot of it: openraft
    /// does not wait for the one before it asks for the other.
    purge: Option<LogId>,
}

impl Writer {
    pub(super) fn open(storage: Box<dyn Storage>, path: &Path, address: &str) -> Result<(Held, Self), Error> {
        let database = storage.open()?;
        check_format(&database, path, address)?;
        let transaction = database.begin_read().map_err(store)?;
        let values = transaction.open_table(VALUES).map_err(store)?;
        let read = |key| values.get(key).map_err(store);
        let identity = read("identity")?.map(|json| from_json(path, "identity", json.value())).transpose()?;
        let vote = read("vote")?.map(|json| from_json(path, "vote", json.value())).transpose()?;
        let committed =
            read("committed")?.map(|json| from_json(path, "committed", json.value())).transpose()?;
        let purged = read("purged")?.map(|json| from_json(path, "purged", json.value())).transpose()?;
        let mut entries = BTreeMap::new();
        for entry in transaction.open_table(ENTRIES).map_err(store)?.iter().map_err(store)? {
            let (index, json) = entry.map_err(store)?;
            let entry = (from_json(path, "entry", json.value())?, json.value().len() as u64);
            entries.insert(index.value(), entry);
        }
        let head: Option<SnapshotHead> =
            read("snapshot")?.map(|json| from_json(path, "snapshot", json.value())).transpose()?;
        drop((values, transaction));
        let snapshot = read_snapshot(&database, head.as_ref(), path)?;
        let (unneeded, next_snapshot) = strays(&database, head.as_ref())?;
        let writer = Self {
            path: path.to_owned(),
            storage,
            database: Some(database),
            committed: Arc::new(Mutex::new(committed)),
            kept_committed: committed,
            closing: Arc::default(),
            snapshot_bytes: Arc::new(AtomicU64::new(head.as_ref().map_or(0, |head| head.bytes))),
            kept_snapshot: head,
            unneeded,
            purge: None,
        };
        let held = Held { identity, vote, committed, purged, entries, snapshot, next_snapshot };
        Ok((held, writer))
    }

    pub(super) fn run(mut self, requests: &mpsc::Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(next) = requests.try_recv()
            {
                batch.push(next);
            }
            if !self.take(batch) {
                return;
            }
        }
    }

    /// Does what is asked for, all in one commit, and tells whoever asked. False
    /// where it cannot be done any more.
    pub(super) fn take(&mut self, batch: Vec<Request>) -> bool {
        if batch.iter().any(|request| !matches!(request, Request::ReadSnapshot(_))) && !self.commit(&batch) {
            return false;
        }
        for request in batch {
            // Whoever asked may have gone; the change stands all the same.
            match request {
                Request::Append(_, flushed) => flushed.log_io_completed(Ok(())),
                Request::Change(_, reply) => drop(reply.send(())),
                Request::ReadSnapshot(reply) => drop(reply.send(self.read_snapshot())),
            }
        }
        true
    }

    /// Commits the changes. Where the disk is full it waits until it is not:
    /// what is promised to the other coordinators cannot be taken back. Any
    /// other failure ends the process, to recover at the next start. False where
    /// the file is closed before there is room: nobody was promised anything.
    fn commit(&mut self, batch: &[Request]) -> bool {
        let mut is_told = false;
        while let Err(error) = self.try_commit(batch) {
            if !is_full(&error) {
                tracing::error!(%error, "the catalog cannot be written: ending, to recover at the next start");
                self.storage.fail();
                return false;
            }
            if !is_told {
                tracing::error!(path = %self.path.display(), "the disk of the catalog is full: changes wait for room");
                is_told = true;
            }
            // After a failed commit the file may only be used when it was opened anew.
            self.database = None;
            std::thread::sleep(FULL_RETRY);
            if self.closing.load(Ordering::Relaxed) {
                return false;
            }
        }
        true
    }

    fn try_commit(&mut self, batch: &[Request]) -> Result<(), Error> {
        let committed = *self.committed.lock();
        let database = match self.database.take() {
            Some(database) => database,
            None => self.storage.open()?,
        };
        let database = self.database.insert(database);
        let transaction = begin(database)?;
        let (mut snapshot, mut purge) = (self.kept_snapshot.clone(), self.purge);
        let mut unneeded = self.unneeded.clone();
        forget_some(&transaction, &mut unneeded)?;
        for request in batch {
            match request {
                Request::Append(entries, _) => {
                    let mut table = transaction.open_table(ENTRIES).map_err(store)?;
                    for (index, json) in entries {
                        table.insert(index, json.as_slice()).map_err(store)?;
                    }
                }
                Request::Change(Change::Purge(upto), _) => purge = purge.max(Some(*upto)),
                Request::Change(Change::Snapshot(head), _) if is_older(head, snapshot.as_ref()) => {
                    // One that came from the leader was quicker: the log goes on behind that.
                    unneeded.insert(head.number, 0..head.pieces());
                }
                Request::Change(change, _) => {
                    if let Change::Snapshot(head) | Change::Alone(head, _) = change
                        && let Some(before) = snapshot.replace(head.clone())
                    {
                        unneeded.insert(before.number, 0..before.pieces());
                    }
                    make(&transaction, change)?;
                }
                Request::ReadSnapshot(_) => {}
            }
        }
        let kept_upto = snapshot.as_ref().and_then(|head| head.meta.last_log_id);
        if let Some(upto) = purge.filter(|_| purge <= kept_upto) {
            make(&transaction, &Change::Purge(upto))?;
            purge = None;
        }
        if committed != self.kept_committed {
            put(&transaction, "committed", &committed)?;
        }
        transaction.commit().map_err(store)?;
        self.kept_committed = committed;
        self.snapshot_bytes.store(snapshot.as_ref().map_or(0, |head| head.bytes), Ordering::Relaxed);
        (self.kept_snapshot, self.purge, self.unneeded) = (snapshot, purge, unneeded);
        Ok(())
    }

    fn read_snapshot(&self) -> Result<Option<KeptSnapshot>, Error> {
        let database = self.database.as_ref().ok_or_else(|| Error::io("catalog", closed()))?;
        read_snapshot(database, self.kept_snapshot.as_ref(), &self.path)
    }
}

fn make(transaction: &WriteTransaction, change: &Change) -> Result<(), Error> {
    match change {
        Change::Identity(identity) => put(transaction, "identity", identity),
        Change::Vote(vote) => put(transaction, "vote", vote),
        Change::Truncate(since) => {
            let mut entries = transaction.open_table(ENTRIES).map_err(store)?;
            entries.retain_in(*since.., |_, _| false).map_err(store)
        }
        Change::Purge(upto) => {
            let mut entries = transaction.open_table(ENTRIES).map_err(store)?;
            entries.retain_in(..=upto.index, |_, _| false).map_err(store)?;
            put(transaction, "purged", upto)
        }
        Change::Pieces(number, first, pieces) => put_pieces(transaction, *number, *first, pieces),
        Change::Snapshot(head) => put(transaction, "snapshot", head),
        Change::Alone(head, vote) => {
            let mut entries = transaction.open_table(ENTRIES).map_err(store)?;
            entries.retain(|_, _| false).map_err(store)?;
            drop(entries);
            put(transaction, "purged", &head.meta.last_log_id)?;
            put(transaction, "vote", vote)?;
            put(transaction, "snapshot", head)
        }
    }
}

fn is_full(error: &Error) -> bool {
    match error {
        Error::Store(error) => match error.as_ref() {
            redb::Error::Io(error) => shoal_data::data_dir::is_full(error),
            _ => false,
        },
        _ => false,
    }
}
