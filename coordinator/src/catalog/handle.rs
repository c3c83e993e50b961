//! The catalog as the rest of a coordinator sees it: the newest state here, and
//! changes that all coordinators agree on.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::FutureExt;
use openraft::Raft;
use shoal_data::data_dir::make_dir;
use shoal_proto::{Channels, Failure};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::start::start;
use super::command::{Command, Outcome};
use super::raft::changes::{ChangeError, Number, Settled};
use super::raft::core::{Coordinator, Core, Enlist};
use super::raft::file::RaftFile;
use super::raft::machine::Dropped;
use super::raft::types::{CoordinatorId, TypeConfig};
use super::state::{CatalogError, State};
use crate::Error;

const FILE: &str = "catalog.redb";
/// How long the log may take to end.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// How often a coordinator that is not counted in asks to be.
const ENLIST_RETRY: Duration = Duration::from_millis(500);
/// How often the state is asked for that has a change which was settled.
const SETTLE_RETRY: Duration = Duration::from_secs(1);
/// Reads that wait for the same answer of the leader.
const READS_MAX: usize = 10_000;
/// So long it may take to be counted in before that is worth a warning.
const ENLIST_QUIET: Duration = Duration::from_secs(5);

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::NotFound(message) => Self::NotFound(message),
            CatalogError::AlreadyExists(message) => Self::AlreadyExists(message),
            CatalogError::Invalid(message) => Self::Invalid(message),
            CatalogError::Unavailable(message) => Self::Unavailable(message),
        }
    }
}

/// How a catalog is opened.
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    /// Where its file is.
    pub dir: PathBuf,
    /// The URL at which the other coordinators reach this one.
    pub address: String,
    /// Where this one listens, which connections to others may come from.
    pub listening: IpAddr,
    /// URLs of coordinators whose cluster it joins, where it is of none yet.
    pub join: Vec<String>,
    /// Makes it the only coordinator of its cluster.
    pub force_new_cluster: bool,
}

/// The catalog. Cheap to clone; the file closes with the last clone.
#[derive(Clone)]
pub struct Catalog(Arc<Handle>);

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("coordinator", &self.core().me).finish_non_exhaustive()
    }
}

type Caught = Result<(), Failure>;

struct Handle {
    /// None only while it closes.
    core: Option<Core>,
    reads: Option<mpsc::Sender<oneshot::Sender<Caught>>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    /// Waits for the thread, so that the file can be opened again at once.
    fn drop(&mut self) {
        self.core = None;
        self.reads = None;
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the catalog's thread panicked");
        }
    }
}

impl Catalog {
    /// Opens the catalog, or starts an empty one, of a cluster of its own or of
    /// the one to join. One that is alone is then as it was after the last
    /// command that was acknowledged; others catch up when they are read.
    ///
    /// # Errors
    /// `Invalid` where a newer version of shoal wrote it or another process
    /// has it open; `Store` where it cannot be read; `Unavailable` where no
    /// coordinator answers that could take it in.
    pub async fn open(options: CatalogOptions) -> Result<Self, Error> {
        make_dir(&options.dir)?;
        let path = options.dir.join(FILE);
        let mut opened = RaftFile::open(&path, &options.address)?;
        if options.force_new_cluster {
            recover::make_alone(opened, &options.address).await?;
            opened = RaftFile::open(&path, &options.address)?;
        }
        let stop = CancellationToken::new();
        let (started, starting) = oneshot::channel();
        let stopped = stop.clone();
        // A thread of its own: who leads does not change because queries are planned.
        let thread = std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        drop(started.send(Err(Error::io("cannot start the catalog", error))));
                        return;
                    }
                };
                let ended = runtime.block_on(async {
                    let channels = Channels::new(tokio::runtime::Handle::current());
                    let channels = channels.from_loopback(options.listening);
                    let core = start(opened, options, channels).await;
                    let core = core.map(|core| (core.clone(), serve_reads(core)));
                    let raft = core.as_ref().ok().map(|(core, _)| core.raft.clone());
                    drop(started.send(core));
                    let Some(raft) = raft else { return Ok(()) };
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        why = end_of(&raft) => crash(&why),
                    }
                    // It may wait for a disk that is full.
                    match tokio::time::timeout(SHUTDOWN_MAX, raft.shutdown()).await {
                        Ok(ended) => ended.map_err(|error| error.to_string()),
                        Err(_) => Err("it waits for its disk".to_owned()),
                    }
                });
                if let Err(error) = ended {
                    tracing::error!(%error, "the catalog did not end in order");
                }
            })
            .map_err(|error| Error::io("cannot start the catalog's thread", error))?;
        let mut handle = Handle { core: None, reads: None, stop, thread: Some(thread) };
        let closed = |_| Error::Internal("the catalog's thread ended".to_owned());
        let (core, reads) = starting.await.map_err(closed)??;
        handle.core = Some(core);
        handle.reads = Some(reads);
        Ok(Self(Arc::new(handle)))
    }

    /// A catalog of one coordinator in `dir`.
    #[cfg(test)]
    pub async fn alone(dir: &std::path::Path) -> Result<Self, Error> {
        let address = "http://127.0.0.1:1".to_owned();
        let listening = std::net::Ipv4Addr::LOCALHOST.into();
        Self::open(CatalogOptions {
            dir: dir.to_owned(),
            address,
            listening,
            join: Vec::new(),
            force_new_cluster: false,
        })
        .await
    }

    /// A catalog over an open file that lives on the runtime of whoever calls this,
    /// and ends with that.
    #[cfg(test)]
    pub(crate) async fn open_here(
        opened: super::raft::file::Opened,
        options: CatalogOptions,
        channels: Channels,
    ) -> Result<Self, Error> {
        let core = start(opened, options, channels).await?;
        let reads = Some(serve_reads(core.clone()));
        let stop = CancellationToken::new();
        Ok(Self(Arc::new(Handle { core: Some(core), reads, stop, thread: None })))
    }

    #[expect(clippy::expect_used, reason = "it is taken out only where the last clone is dropped")]
    fn core(&self) -> &Core {
        self.0.core.as_ref().expect("an open catalog")
    }

    /// The consensus, for the coordinators' own service.
    pub(crate) fn consensus(&self) -> &Core {
        self.core()
    }

    /// The catalog as it is here. It may be behind what others have seen: see
    /// [`Self::catch_up`].
    pub fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.core().published.state.borrow())
    }

    /// Follows the catalog: the newest state here, and a wake-up at each change.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.core().published.state.subscribe()
    }

    /// Waits until [`Self::snapshot`] is at least as new as whatever was
    /// acknowledged by any coordinator before this was called.
    ///
    /// # Errors
    /// `Unavailable` where no majority of the coordinators answers.
    pub async fn catch_up(&self) -> Result<(), Error> {
        if self.core().is_alone() {
            return Ok(());
        }
        let closed = || Error::Unavailable("the catalog is closed: the coordinator is stopping".to_owned());
        let reads = self.0.reads.as_ref().ok_or_else(closed)?;
        let (reply, caught_up) = oneshot::channel();
        reads.send(reply).await.map_err(|_| closed())?;
        Ok(caught_up.await.map_err(|_| closed())??)
    }

    /// Segments that were dropped since the last call, also by commands that
    /// came and went between two looks at [`Self::snapshot`]. Each is returned
    /// once, and only after a state without it is visible.
    pub fn take_dropped(&self) -> Vec<Dropped> {
        std::mem::take(&mut self.core().published.dropped.lock())
    }

    /// Applies one command; it is durable on a majority, and visible here, when
    /// this returns.
    ///
    /// # Errors
    /// Why the catalog refuses it; `Exhausted` where the disk is full. Nothing
    /// was changed then. `Unavailable` where no majority of the coordinators
    /// answers; the message says whether the command may count all the same.
    pub async fn apply(&self, command: Command) -> Result<Outcome, Error> {
        Ok(self.change(command).await?)
    }

    /// As [`Self::apply`], for what this coordinator decided as the leader of this
    /// term: where another one leads by then, it is refused.
    ///
    /// # Errors
    /// The same.
    pub(crate) async fn apply_in(&self, term: u64, command: Command) -> Result<Outcome, Error> {
        Ok(self.core().change_in(term, command).boxed().await?)
    }

    /// Waits, as the leader of this term, until all that is in the log by now is in
    /// [`Self::snapshot`].
    ///
    /// # Errors
    /// `Unavailable` without a majority; `Invalid` where another one leads by now.
    pub(crate) async fn apply_all(&self, term: u64) -> Result<(), Error> {
        self.core().apply_all(term).boxed().await
    }

    /// As [`Self::apply`], for those who must know in the end.
    ///
    /// # Errors
    /// The same; what is not settled can be given to [`Self::settle`].
    pub async fn change(&self, command: Command) -> Result<Outcome, ChangeError> {
        self.core().change(command).boxed().await
    }

    /// Sees to it that a change that is not settled is made or never made, and
    /// says which. What is made, or not made, is seen here then. Takes as long as
    /// there is no majority.
    pub async fn settle(&self, change: Number) -> Settled {
        let settled = self.core().settle(change).boxed().await;
        while let Err(error) = self.catch_up().await {
            if self.core().raft.metrics().has_changed().is_err() {
                return Settled::Unknown(error);
            }
            tokio::time::sleep(SETTLE_RETRY).await;
        }
        settled
    }

    /// Keeps the state as a snapshot now and removes the log before it: the next
    /// start reads the one and need not apply the other.
    ///
    /// # Errors
    /// Where that takes too long.
    pub async fn compact(&self) -> Result<(), Error> {
        self.core().compact().boxed().await
    }

    /// The coordinators of the cluster, by number.
    pub fn coordinators(&self) -> Vec<Coordinator> {
        self.core().coordinators()
    }

    /// Whether this is the only coordinator, and leads.
    pub fn is_alone(&self) -> bool {
        self.core().is_alone()
    }

    /// Whether this coordinator leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.core().is_leader()
    }

    /// Has another coordinator lead, where this one does, so that it can stop
    /// without being missed. Takes two seconds at most.
    pub async fn hand_over(&self) {
        self.core().hand_over().boxed().await;
    }

    /// The newest term of the consensus that this coordinator knows.
    pub fn term(&self) -> u64 {
        self.core().term()
    }

    /// Removes a coordinator for good.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for the only one; `Unavailable` without a majority.
    pub async fn dismiss(&self, coordinator: CoordinatorId) -> Result<(), Error> {
        self.core().dismiss(coordinator).boxed().await
    }

    /// Sees to it that the cluster counts this coordinator in, at its address.
    /// To be called once it can be reached there.
    pub async fn enlist(&self) {
        let core = self.core();
        let address = core.address.clone();
        let request = Enlist { coordinator: Some(core.me), address, may_forward: true };
        let mut said = String::new();
        let since = Instant::now();
        loop {
            let is_in = |it: &Coordinator| it.is_self && it.is_voter && it.address == core.address;
            if self.coordinators().iter().any(is_in) {
                return;
            }
            // One that was never counted in hears nothing of those that are.
            let enlisted = match core.join.as_slice() {
                join if !core.knows_leader() && !join.is_empty() => {
                    Core::enlist_through(&core.peers, join, &request).boxed().await
                }
                _ => core.enlist(&request).boxed().await,
            };
            match enlisted {
                Ok(_) => return,
                Err(error) => {
                    let what = error.to_string();
                    if what != said && since.elapsed() >= ENLIST_QUIET {
                        tracing::warn!(%error, "this coordinator is not counted in yet");
                        said = what;
                    }
                }
            }
            tokio::time::sleep(ENLIST_RETRY).await;
        }
    }
}

/// Answers reads that wait at the same time with one question to the leader.
fn serve_reads(core: Core) -> mpsc::Sender<oneshot::Sender<Caught>> {
    let (reads, mut waiting) = mpsc::channel::<oneshot::Sender<Caught>>(READS_MAX);
    tokio::spawn(async move {
        while let Some(first) = waiting.recv().await {
            let mut all = vec![first];
            while let Ok(next) = waiting.try_recv() {
                all.push(next);
            }
            let caught_up = core.catch_up().await;
            for reply in all {
                // Whoever asked may have gone.
                drop(reply.send(caught_up.clone()));
            }
        }
    });
    reads
}

/// Waits until the consensus has ended, and says why.
async fn end_of(raft: &Raft<TypeConfig>) -> String {
    let mut metrics = raft.metrics();
    match metrics.wait_for(|now| now.running_state.is_err()).await {
        Ok(now) => now.running_state.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        Err(_) => "it panicked".to_owned(),
    }
}

/// Ends the process: a coordinator without its consensus can neither read nor
/// write, and the next start recovers what the disk holds.
fn crash(why: &str) -> ! {
    tracing::error!(why, "the catalog's consensus ended: ending, to recover at the next start");
    std::process::abort()
}

mod recover;
mod start;

#[cfg(test)]
mod tests;
