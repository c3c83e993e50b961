//! The durable catalog: a log of commands and a snapshot in redb. A command
//! is on disk before anybody sees what it did.
//!
//! One thread owns the store; commands that wait together share one commit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use shoal_data::Segment;
use shoal_data::data_dir::make_dir;
use shoal_proto::fault::{self, Step};
use tokio::sync::{mpsc, oneshot, watch};

use super::command::{Command, Outcome};
use super::disk::{self, Disk};
use super::state::{CatalogError, State};
use crate::Error;

const FILE: &str = "catalog.redb";
/// What this program writes, and the newest that it reads.
const FORMAT: u64 = 1;
/// Commands after which the log is folded into a snapshot.
const SNAPSHOT_EVERY: u64 = 1_000;
/// Commands that wait; more make their senders wait.
const QUEUE_MAX: usize = 1_024;
/// Commands in one commit.
const BATCH_MAX: usize = 256;
/// Pages kept in memory; the state itself is in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::NotFound(message) => Self::NotFound(message),
            CatalogError::AlreadyExists(message) => Self::AlreadyExists(message),
            CatalogError::Invalid(message) => Self::Invalid(message),
        }
    }
}

/// The catalog. Cheap to clone; the store closes with the last clone.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<Handle>);

/// A segment that no state has since a version of the catalog.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// The first version without it that anybody saw.
    pub version: u64,
    /// The segment.
    pub segment: Arc<Segment>,
}

#[derive(Debug)]
struct Handle {
    current: watch::Receiver<Arc<State>>,
    dropped: Arc<Mutex<Vec<Dropped>>>,
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Request {
    command: Command,
    reply: oneshot::Sender<Result<Outcome, Error>>,
}

impl Catalog {
    /// Opens the catalog in `dir`, or starts an empty one there, and brings it
    /// to the state after the last command that was acknowledged.
    ///
    /// # Errors
    /// `Invalid` where a newer version of shoal wrote it or another process
    /// has it open; `Store` where it cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        make_dir(dir)?;
        let store = Store::open(dir.join(FILE))?;
        let (publish, current) = watch::channel(Arc::clone(&store.state));
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let dropped = Arc::clone(&store.dropped);
        let writer = std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || store.run(requests, &publish))
            .map_err(|error| Error::io("cannot start the catalog's thread", error))?;
        Ok(Self(Arc::new(Handle { current, dropped, queue: Some(queue), writer: Some(writer) })))
    }

    /// The catalog as it is now.
    pub fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.0.current.borrow())
    }

    /// Follows the catalog: the newest state, and a wake-up at each change.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.current.clone()
    }

    /// Segments that were dropped since the last call, also by commands that
    /// came and went between two looks at [`Self::snapshot`]. Each is returned
    /// once, and only after a state without it is visible.
    pub fn take_dropped(&self) -> Vec<Dropped> {
        std::mem::take(&mut self.0.dropped.lock())
    }

    /// Applies one command; it is durable and visible when this returns.
    ///
    /// # Errors
    /// Why the catalog refuses it; `Exhausted` where the disk is full. Nothing
    /// was changed then.
    pub async fn apply(&self, command: Command) -> Result<Outcome, Error> {
        let closed = || Error::Unavailable("the catalog is closed: the coordinator is stopping".to_owned());
        let queue = self.0.queue.as_ref().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        queue.send(Request { command, reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for Handle {
    /// Waits for the writer, so that the file can be opened again at once.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the catalog's thread panicked");
        }
    }
}

/// The store and the state that it holds; owned by one thread.
struct Store {
    path: PathBuf,
    /// None after a failure, until it is opened again.
    database: Option<Database>,
    state: Arc<State>,
    dropped: Arc<Mutex<Vec<Dropped>>>,
    /// Commands in the log since the last snapshot.
    logged: u64,
}

impl Store {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let (database, state, logged) = reopen(&path)?;
        Ok(Self { path, database: Some(database), state: Arc::new(state), dropped: Arc::default(), logged })
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>, publish: &watch::Sender<Arc<State>>) {
        while let Some(first) = requests.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(next) = requests.try_recv()
            {
                batch.push(next);
            }
            let (commands, replies): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|request| (request.command, request.reply)).unzip();
            let (outcomes, dropped) = self.apply(commands);
            publish.send_if_modified(|current| {
                let changed = !Arc::ptr_eq(current, &self.state);
                *current = Arc::clone(&self.state);
                changed
            });
            let version = self.state.version;
            self.dropped.lock().extend(dropped.into_iter().map(|segment| Dropped { version, segment }));
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                // Whoever asked may have gone; the command stands all the same.
                let _gone = reply.send(outcome);
            }
        }
    }

    /// Applies commands in order and commits those that changed something.
    /// Returns what each did, and the segments that they dropped.
    fn apply(&mut self, commands: Vec<Command>) -> (Vec<Result<Outcome, Error>>, Vec<Arc<Segment>>) {
        let mut state = State::clone(&self.state);
        let mut log = Vec::new();
        let has_room = disk::has_room(&self.path);
        let is_write = commands.iter().any(|command| command.write().is_some());
        let mut outcomes: Vec<_> = commands
            .into_iter()
            .map(|command| {
                if !has_room && adds(&command) {
                    return Err(self.full());
                }
                let json = to_json(&command)?;
                let before = state.version;
                let outcome = state.apply(command)?;
                if state.version > before {
                    log.push((state.version, json));
                }
                Ok(outcome)
            })
            .collect();
        if log.is_empty() {
            return (outcomes, Vec::new());
        }
        let wanted = state.version;
        let dropped = state.take_dropped();
        if let Err(error) = self.commit(state, &log)
            && self.recover(wanted).is_none()
        {
            tracing::error!(%error, "catalog commit failed");
            let full = is_full(&error);
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(if full { self.full() } else { Error::Internal(error.to_string()) });
            }
            return (outcomes, Vec::new());
        }
        if is_write {
            fault::point(Step::CommitLogged);
        }
        (outcomes, dropped)
    }

    fn commit(&mut self, state: State, log: &[(u64, Vec<u8>)]) -> Result<(), Error> {
        if self.database.is_none() {
            let (database, found, logged) = reopen(&self.path)?;
            if found.version != self.state.version {
                tracing::error!(
                    "a commit that was given up is on disk: ending, to recover at the next start"
                );
                std::process::abort()
            }
            self.logged = logged;
            self.database = Some(database);
        }
        let Some(database) = &self.database else {
            return Err(Error::Internal("the catalog's store is not open".to_owned()));
        };
        let logged = self.logged + log.len() as u64;
        let folds = logged >= SNAPSHOT_EVERY;
        let mut transaction = database.begin_write().map_err(store)?;
        transaction.set_durability(Durability::Immediate).map_err(store)?;
        if folds {
            let mut entries = transaction.open_table(LOG).map_err(store)?;
            entries.retain(|_, _| false).map_err(store)?;
            let json = to_json(&state)?;
            let mut snapshot = transaction.open_table(SNAPSHOT).map_err(store)?;
            snapshot.insert("state", json.as_slice()).map_err(store)?;
        } else {
            let mut entries = transaction.open_table(LOG).map_err(store)?;
            for (version, json) in log {
                entries.insert(version, json.as_slice()).map_err(store)?;
            }
        }
        transaction.commit().map_err(store)?;
        self.logged = if folds { 0 } else { logged };
        self.state = Arc::new(state);
        Ok(())
    }

    /// After a failed commit: finds out what the disk really holds. Some where
    /// the commit is there after all.
    fn recover(&mut self, wanted: u64) -> Option<()> {
        self.database = None;
        match reopen(&self.path) {
            Ok((database, state, logged)) => {
                let committed = state.version == wanted;
                if committed {
                    self.state = Arc::new(state);
                }
                self.logged = logged;
                self.database = Some(database);
                committed.then_some(())
            }
            Err(error) if is_full(&error) => None,
            Err(error) => {
                tracing::error!(%error, "the catalog cannot be opened again: ending, to recover at the next start");
                std::process::abort()
            }
        }
    }

    fn full(&self) -> Error {
        Error::Exhausted(format!(
            "the disk of the catalog ({}) is full; nothing was changed; free some space there",
            self.path.display()
        ))
    }
}

/// Whether a command makes the catalog larger; those that make it smaller may
/// use the last bytes of the disk.
fn adds(command: &Command) -> bool {
    match command {
        Command::CreateSchema { .. }
        | Command::ReserveTable
        | Command::CreateTable { .. }
        | Command::ReplaceTable { .. }
        | Command::CreateView { .. }
        | Command::CreateExternal { .. }
        | Command::CommitWrite { .. } => true,
        Command::DropSchema { .. }
        | Command::DropTable { .. }
        | Command::DropView { .. }
        | Command::DropExternal { .. }
        | Command::RegisterWorker { .. }
        | Command::ExtendPlacement { .. }
        | Command::MoveShards { .. }
        | Command::RemoveReplicas { .. }
        | Command::SetReplicas { .. }
        | Command::DrainWorker { .. }
        | Command::AddReplica { .. } => false,
    }
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

/// The store as it is on disk: itself, its state, and the length of its log.
fn reopen(path: &Path) -> Result<(Database, State, u64), Error> {
    let database = open_database(path)?;
    let (state, logged) = load(&database, path)?;
    Ok((database, state, logged))
}

/// The state that the store holds, and how many commands its log has.
fn load(database: &Database, path: &Path) -> Result<(State, u64), Error> {
    check_format(database, path)?;
    let transaction = database.begin_read().map_err(store)?;
    let snapshot = transaction.open_table(SNAPSHOT).map_err(store)?;
    let json = snapshot.get("state").map_err(store)?;
    let json = json.ok_or_else(|| broken(path, "it has no snapshot"))?;
    let mut state: State =
        serde_json::from_slice(json.value()).map_err(|error| broken(path, &format!("snapshot: {error}")))?;
    let mut logged = 0;
    for entry in transaction.open_table(LOG).map_err(store)?.iter().map_err(store)? {
        let (version, json) = entry.map_err(store)?;
        let version = version.value();
        let wrong = |why: &dyn std::fmt::Display| broken(path, &format!("command {version}: {why}"));
        let command = serde_json::from_slice(json.value()).map_err(|error| wrong(&error))?;
        state.apply(command).map_err(|error| wrong(&error))?;
        if state.version != version {
            return Err(wrong(&"it does not follow the one before"));
        }
        logged += 1;
    }
    // Nothing reads them after a restart; workers are told when they join.
    state.take_dropped();
    Ok((state, logged))
}

/// Refuses what a newer program wrote; starts an empty catalog in a new file.
fn check_format(database: &Database, path: &Path) -> Result<(), Error> {
    match format_of(database)? {
        Some(FORMAT) => return Ok(()),
        Some(other) => {
            return Err(Error::Invalid(format!(
                "catalog {} is in format {other}; this version of shoal reads up to format {FORMAT}: \
                 start the version that wrote it, or a newer one",
                path.display()
            )));
        }
        None => {}
    }
    let transaction = database.begin_write().map_err(store)?;
    {
        let mut meta = transaction.open_table(META).map_err(store)?;
        meta.insert("format", FORMAT).map_err(store)?;
        let state = State::new(uuid::Uuid::new_v4().simple().to_string());
        let mut snapshot = transaction.open_table(SNAPSHOT).map_err(store)?;
        snapshot.insert("state", to_json(&state)?.as_slice()).map_err(store)?;
        transaction.open_table(LOG).map_err(store)?;
    }
    transaction.commit().map_err(store)
}

fn format_of(database: &Database) -> Result<Option<u64>, Error> {
    let transaction = database.begin_read().map_err(store)?;
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get("format").map_err(store)?.map(|format| format.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(store(error)),
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Internal(format!("catalog entry: {error}")))
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

#[cfg(test)]
mod tests;
