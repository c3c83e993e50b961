//! The coordinators' log, votes and snapshots on this disk, in one redb file.
//!
//! One thread owns the file; changes that wait together share one commit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::storage::LogFlushed;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::types::{CoordinatorId, Entry, LogId, SnapshotMeta, TypeConfig, Vote};
use crate::Error;
use crate::catalog::disk::Disk;

pub(in crate::catalog) mod format;

use format::{begin, check_format};

/// Commits that share one write to the disk.
const BATCH_MAX: usize = 256;
/// Pages kept in memory; the log itself is in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// How often a commit that found the disk full is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Single values as JSON: `identity`, `vote`, `committed`, `purged`, `snapshot`.
const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
/// The newest snapshot, under the key `data`; what it is says `snapshot` in [`VALUES`].
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot_data");

/// Who a coordinator is, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Id of its cluster.
    pub cluster: String,
    /// Its number there.
    pub coordinator: CoordinatorId,
}

/// A snapshot as it is kept.
#[derive(Clone, Debug)]
pub struct KeptSnapshot {
    /// What it is of.
    pub meta: SnapshotMeta,
    /// The state, encoded.
    pub data: Vec<u8>,
}

/// What a file held when it was opened.
#[derive(Debug)]
pub struct Opened {
    /// The file, for changes.
    pub file: RaftFile,
    /// None before it belongs to a cluster.
    pub identity: Option<Identity>,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// Up to where the log is known to be committed.
    pub committed: Option<LogId>,
    /// Up to where the log was removed.
    pub purged: Option<LogId>,
    /// The log behind that.
    pub entries: BTreeMap<u64, Entry>,
    /// The newest snapshot.
    pub snapshot: Option<KeptSnapshot>,
}

/// The open file. Cheap to clone; it is closed with the last clone.
#[derive(Clone, Debug)]
pub struct RaftFile(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    path: PathBuf,
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    committed: Arc<Mutex<Option<LogId>>>,
    /// Set when nobody waits any more for what is not written.
    closing: Arc<AtomicBool>,
    /// The writer itself, where there is no thread for it.
    #[cfg(test)]
    here: Option<Mutex<Writer>>,
}

/// What a database is kept on.
pub(crate) trait Storage: std::fmt::Debug + Send {
    /// Opens the database, or makes it.
    fn open(&self) -> Result<Database, Error>;

    /// What cannot be written is lost: the process ends, to recover at the next
    /// start.
    fn fail(&self) {
        std::process::abort()
    }
}

/// A file of this machine.
#[derive(Debug)]
struct OnDisk(PathBuf);

impl Storage for OnDisk {
    fn open(&self) -> Result<Database, Error> {
        open_database(&self.0)
    }
}

enum Request {
    Append(Vec<(u64, Vec<u8>)>, LogFlushed<TypeConfig>),
    Change(Change, oneshot::Sender<()>),
    ReadSnapshot(oneshot::Sender<Result<Option<KeptSnapshot>, Error>>),
}

/// A change other than new entries.
pub enum Change {
    /// Who it is.
    Identity(Identity),
    /// A vote that was given.
    Vote(Vote),
    /// Entries from this index on go.
    Truncate(u64),
    /// Entries up to this one go.
    Purge(LogId),
    /// A snapshot takes the place of the one before.
    Snapshot(KeptSnapshot),
    /// The same, and of the whole log; its coordinator votes anew.
    Alone(KeptSnapshot, Vote),
}

impl RaftFile {
    /// Opens the file, or makes it. `address` is where this coordinator is
    /// reached, for a file from before there were several.
    ///
    /// # Errors
    /// `Invalid` where a newer version of shoal wrote it or another process has
    /// it open; `Store` and `Internal` where it cannot be read.
    pub fn open(path: &Path, address: &str) -> Result<Opened, Error> {
        let (held, writer) = Writer::open(Box::new(OnDisk(path.to_owned())), path, address)?;
        let (committed, closing) = (Arc::clone(&writer.committed), Arc::clone(&writer.closing));
        let (queue, requests) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("catalog-disk".to_owned())
            .spawn(move || writer.run(&requests))
            .map_err(|error| Error::io("cannot start the catalog's thread", error))?;
        let handle = Handle {
            path: path.to_owned(),
            queue: Some(queue),
            writer: Some(writer),
            committed,
            closing,
            #[cfg(test)]
            here: None,
        };
        Ok(held.of(Self(Arc::new(handle))))
    }

    /// Opens a file of which every change is made at once, by whoever wants it.
    #[cfg(test)]
    pub(crate) fn open_here(storage: Box<dyn Storage>, path: &Path, address: &str) -> Result<Opened, Error> {
        let (held, writer) = Writer::open(storage, path, address)?;
        let (committed, closing) = (Arc::clone(&writer.committed), Arc::clone(&writer.closing));
        let here = Some(Mutex::new(writer));
        let handle = Handle { path: path.to_owned(), queue: None, writer: None, committed, closing, here };
        Ok(held.of(Self(Arc::new(handle))))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Appends entries; `flushed` is told when they are durable.
    ///
    /// # Errors
    /// Where the file is closed.
    pub fn append(&self, entries: Vec<(u64, Vec<u8>)>, flushed: LogFlushed<TypeConfig>) -> io::Result<()> {
        self.send(Request::Append(entries, flushed))
    }

    /// Makes one change; it is durable when this returns.
    ///
    /// # Errors
    /// Where the file is closed.
    pub async fn change(&self, change: Change) -> io::Result<()> {
        let (reply, done) = oneshot::channel();
        self.send(Request::Change(change, reply))?;
        done.await.map_err(|_| closed())
    }

    /// Remembers up to where the log is committed, with the next change.
    pub fn committed(&self, committed: Option<LogId>) {
        *self.0.committed.lock() = committed;
    }

    /// The newest snapshot.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn snapshot(&self) -> Result<Option<KeptSnapshot>, Error> {
        let error = || Error::io("cannot read the catalog's snapshot", closed());
        let (reply, snapshot) = oneshot::channel();
        self.send(Request::ReadSnapshot(reply)).map_err(|_| error())?;
        snapshot.await.map_err(|_| error())?
    }

    fn send(&self, request: Request) -> io::Result<()> {
        #[cfg(test)]
        if let Some(writer) = &self.0.here {
            let is_written = writer.lock().take(vec![request]);
            return if is_written { Ok(()) } else { Err(closed()) };
        }
        let queue = self.0.queue.as_ref().ok_or_else(closed)?;
        queue.send(request).map_err(|_| closed())
    }
}

impl Drop for Handle {
    /// Waits for the writer, so that the file can be opened again at once.
    fn drop(&mut self) {
        self.queue = None;
        self.closing.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the catalog's thread panicked");
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the catalog's file is closed")
}

/// What a file held, without the file.
struct Held {
    identity: Option<Identity>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
    snapshot: Option<KeptSnapshot>,
}

impl Held {
    fn read(database: &Database, path: &Path) -> Result<Self, Error> {
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
            entries.insert(index.value(), from_json(path, "entry", json.value())?);
        }
        let snapshot = read_snapshot(database, path)?;
        Ok(Self { identity, vote, committed, purged, entries, snapshot })
    }

    fn of(self, file: RaftFile) -> Opened {
        let Self { identity, vote, committed, purged, entries, snapshot } = self;
        Opened { file, identity, vote, committed, purged, entries, snapshot }
    }
}

/// What owns the database.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    storage: Box<dyn Storage>,
    /// None after a failure, until it is opened again.
    database: Option<Database>,
    committed: Arc<Mutex<Option<LogId>>>,
    kept_committed: Option<LogId>,
    closing: Arc<AtomicBool>,
    /// Up to where the snapshot on the disk is.
    kept_snapshot: Option<LogId>,
    /// What may be removed from the log once there is a snapshot of it: openraft
    /// does not wait for the one before it asks for the other.
    purge: Option<LogId>,
}

impl Writer {
    fn open(storage: Box<dyn Storage>, path: &Path, address: &str) -> Result<(Held, Self), Error> {
        let database = storage.open()?;
        check_format(&database, path, address)?;
        let held = Held::read(&database, path)?;
        let writer = Self {
            path: path.to_owned(),
            storage,
            database: Some(database),
            committed: Arc::new(Mutex::new(held.committed)),
            kept_committed: held.committed,
            closing: Arc::default(),
            kept_snapshot: held.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id),
            purge: None,
        };
        Ok((held, writer))
    }

    fn run(mut self, requests: &mpsc::Receiver<Request>) {
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
    fn take(&mut self, batch: Vec<Request>) -> bool {
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
        let (mut snapshot, mut purge) = (self.kept_snapshot, self.purge);
        for request in batch {
            match request {
                Request::Append(entries, _) => {
                    let mut table = transaction.open_table(ENTRIES).map_err(store)?;
                    for (index, json) in entries {
                        table.insert(index, json.as_slice()).map_err(store)?;
                    }
                }
                Request::Change(Change::Purge(upto), _) => purge = purge.max(Some(*upto)),
                Request::Change(change, _) => {
                    if let Change::Snapshot(kept) | Change::Alone(kept, _) = change {
                        snapshot = kept.meta.last_log_id;
                    }
                    make(&transaction, change)?;
                }
                Request::ReadSnapshot(_) => {}
            }
        }
        if let Some(upto) = purge.filter(|_| purge <= snapshot) {
            make(&transaction, &Change::Purge(upto))?;
            purge = None;
        }
        if committed != self.kept_committed {
            put(&transaction, "committed", &committed)?;
        }
        transaction.commit().map_err(store)?;
        self.kept_committed = committed;
        (self.kept_snapshot, self.purge) = (snapshot, purge);
        Ok(())
    }

    fn read_snapshot(&self) -> Result<Option<KeptSnapshot>, Error> {
        let database = self.database.as_ref();
        read_snapshot(database.ok_or_else(|| Error::io("catalog", closed()))?, &self.path)
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
        Change::Snapshot(snapshot) => {
            put(transaction, "snapshot", &snapshot.meta)?;
            let mut data = transaction.open_table(SNAPSHOT).map_err(store)?;
            data.insert("data", snapshot.data.as_slice()).map_err(store)?;
            Ok(())
        }
        Change::Alone(snapshot, vote) => {
            let mut entries = transaction.open_table(ENTRIES).map_err(store)?;
            entries.retain(|_, _| false).map_err(store)?;
            drop(entries);
            put(transaction, "purged", &snapshot.meta.last_log_id)?;
            put(transaction, "vote", vote)?;
            make(transaction, &Change::Snapshot(snapshot.clone()))
        }
    }
}

fn put<T: Serialize>(transaction: &WriteTransaction, key: &str, value: &T) -> Result<(), Error> {
    let mut values = transaction.open_table(VALUES).map_err(store)?;
    values.insert(key, to_json(value)?.as_slice()).map_err(store)?;
    Ok(())
}

fn read_snapshot(database: &Database, path: &Path) -> Result<Option<KeptSnapshot>, Error> {
    let transaction = database.begin_read().map_err(store)?;
    let values = transaction.open_table(VALUES).map_err(store)?;
    let data = transaction.open_table(SNAPSHOT).map_err(store)?;
    let (meta, data) = (values.get("snapshot").map_err(store)?, data.get("data").map_err(store)?);
    let (Some(meta), Some(data)) = (meta, data) else {
        return Ok(None);
    };
    let meta = from_json(path, "snapshot", meta.value())?;
    Ok(Some(KeptSnapshot { meta, data: data.value().to_vec() }))
}

fn open_database(path: &Path) -> Result<Database, Error> {
    let disk = Disk::open(path).map_err(store)?;
    let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(disk);
    database.map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => Error::Invalid(format!(
            "catalog {} is open in another process; stop it, or choose another --data-dir",
            path.display()
        )),
        redb::DatabaseError::UpgradeRequired(version) => Error::Invalid(format!(
            "catalog {} is in file format {version}, which this version of shoal does not read",
            path.display()
        )),
        other => store(other),
    })
}

/// A value as JSON.
///
/// # Errors
/// `Internal` for what has no such form.
pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Internal(format!("catalog entry: {error}")))
}

fn from_json<T: DeserializeOwned>(path: &Path, what: &str, json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|error| broken(path, &format!("{what}: {error}")))
}

fn broken(path: &Path, what: &str) -> Error {
    Error::Internal(format!("catalog {} cannot be read: {what}", path.display()))
}

fn store(error: impl Into<redb::Error>) -> Error {
    Error::Store(Box::new(error.into()))
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
