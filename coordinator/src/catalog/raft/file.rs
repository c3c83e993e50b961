//! The coordinators' log, votes and snapshots on this disk, in one redb file.
//!
//! One thread owns the file; changes that wait together share one commit.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::LogFlushed;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::types::{CoordinatorId, Entry, LogId, TypeConfig, Vote};
use crate::Error;
use crate::catalog::disk::Disk;

pub(in crate::catalog) mod format;
mod pieces;

use format::{begin, check_format};
pub use pieces::{KeptSnapshot, SnapshotHead};
use pieces::{PIECES_AT_ONCE, cut, forget_some, is_older, put_pieces, read_snapshot, strays};

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

/// Who a coordinator is, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Id of its cluster.
    pub cluster: String,
    /// Its number there.
    pub coordinator: CoordinatorId,
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
    /// The log behind that, and how many bytes each entry takes.
    pub entries: BTreeMap<u64, (Entry, u64)>,
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
    /// The number of the next snapshot.
    next_snapshot: AtomicU64,
    /// The length of the snapshot that counts.
    snapshot_bytes: Arc<AtomicU64>,
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
    /// Pieces of a snapshot that does not count yet: its number, and the place of
    /// the first of them.
    Pieces(u64, u64, Vec<Bytes>),
    /// A snapshot, whose pieces are there, takes the place of the one before.
    Snapshot(SnapshotHead),
    /// The same, and of the whole log; its coordinator votes anew.
    Alone(SnapshotHead, Vote),
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
        let (queue, requests) = mpsc::channel();
        let mut handle = Handle::new(&writer, held.next_snapshot);
        let thread = std::thread::Builder::new()
            .name("catalog-disk".to_owned())
            .spawn(move || writer.run(&requests))
            .map_err(|error| Error::io("cannot start the catalog's thread", error))?;
        (handle.queue, handle.writer) = (Some(queue), Some(thread));
        Ok(held.of(Self(Arc::new(handle))))
    }

    /// Opens a file of which every change is made at once, by whoever wants it.
    #[cfg(test)]
    pub(crate) fn open_here(storage: Box<dyn Storage>, path: &Path, address: &str) -> Result<Opened, Error> {
        let (held, writer) = Writer::open(storage, path, address)?;
        let mut handle = Handle::new(&writer, held.next_snapshot);
        handle.here = Some(Mutex::new(writer));
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

    /// Puts a snapshot in the place of the one before. It is written piece by piece,
    /// with the log's own entries in between, and counts once all of it is there.
    ///
    /// # Errors
    /// Where the file is closed.
    pub async fn keep(&self, snapshot: KeptSnapshot) -> io::Result<()> {
        let head = self.write_pieces(snapshot).await?;
        self.change(Change::Snapshot(head)).await
    }

    /// The same, also in the place of the whole log, with another vote.
    ///
    /// # Errors
    /// Where the file is closed.
    pub async fn keep_alone(&self, snapshot: KeptSnapshot, vote: Vote) -> io::Result<()> {
        let head = self.write_pieces(snapshot).await?;
        self.change(Change::Alone(head, vote)).await
    }

    async fn write_pieces(&self, KeptSnapshot { meta, data }: KeptSnapshot) -> io::Result<SnapshotHead> {
        let number = self.0.next_snapshot.fetch_add(1, Ordering::Relaxed);
        let head = SnapshotHead { meta, number, bytes: data.len() as u64 };
        for place in (0..head.pieces()).step_by(PIECES_AT_ONCE) {
            self.change(Change::Pieces(number, place, cut(&data, place))).await?;
        }
        Ok(head)
    }

    /// The length of the snapshot that counts.
    pub fn snapshot_bytes(&self) -> u64 {
        self.0.snapshot_bytes.load(Ordering::Relaxed)
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

impl Handle {
    /// Of a file that nobody writes yet.
    fn new(writer: &Writer, next_snapshot: u64) -> Self {
        Self {
            path: writer.path.clone(),
            queue: None,
            writer: None,
            committed: Arc::clone(&writer.committed),
            closing: Arc::clone(&writer.closing),
            next_snapshot: AtomicU64::new(next_snapshot),
            snapshot_bytes: Arc::clone(&writer.snapshot_bytes),
            #[cfg(test)]
            here: None,
        }
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
    entries: BTreeMap<u64, (Entry, u64)>,
    snapshot: Option<KeptSnapshot>,
    /// The number of the next snapshot.
    next_snapshot: u64,
}

impl Held {
    fn of(self, file: RaftFile) -> Opened {
        let Self { identity, vote, committed, purged, entries, snapshot, .. } = self;
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
    /// The snapshot on the disk that counts.
    kept_snapshot: Option<SnapshotHead>,
    /// Pieces of others, by the number of the snapshot: they go with the commits
    /// that come, some with each.
    unneeded: BTreeMap<u64, Range<u64>>,
    /// The length of the snapshot that counts, for others.
    snapshot_bytes: Arc<AtomicU64>,
    /// What may be removed from the log once there is a snapshot of it: openraft
    /// does not wait for the one before it asks for the other.
    purge: Option<LogId>,
}

impl Writer {
    fn open(storage: Box<dyn Storage>, path: &Path, address: &str) -> Result<(Held, Self), Error> {
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

fn put<T: Serialize>(transaction: &WriteTransaction, key: &str, value: &T) -> Result<(), Error> {
    let mut values = transaction.open_table(VALUES).map_err(store)?;
    values.insert(key, to_json(value)?.as_slice()).map_err(store)?;
    Ok(())
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
