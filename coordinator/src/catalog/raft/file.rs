//! The coordinators' log, votes and snapshots on this disk, in one redb file.
//!
//! One thread owns the file; changes that wait together share one commit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use openraft::storage::LogFlushed;
use parking_lot::Mutex;
use redb::{Database, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::types::{CoordinatorId, Entry, LogId, TypeConfig, Vote};
use crate::Error;
use crate::catalog::disk::Disk;

pub(in crate::catalog) mod format;
mod pieces;
mod writer;

pub use pieces::{KeptSnapshot, SnapshotHead};
use pieces::{PIECES_AT_ONCE, cut};
use writer::Writer;

/// Pages kept in memory; the log itself is in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

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
