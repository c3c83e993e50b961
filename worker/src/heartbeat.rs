//! Joins every coordinator of the cluster and beats there, on a thread and on
//! connections of its own: a worker busy with queries is not taken for dead.
//!
//! Nothing on this thread touches the disk or waits for a query.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use shoal_proto::Channels;
use shoal_proto::cluster::QueryProgress;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::coordinators::{Coordinators, DrainWord};
use crate::identity::KeptIdentity;
use crate::replicate::Replicator;
use crate::scrub::Scrub;
use crate::segment_dir::SegmentDir;
use crate::segments::blocking;

mod beating;

use beating::Beating;

/// How often it is looked at which coordinators to begin or to end, besides
/// after every change.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the execution of tasks tells coordinators with every beat. Answers
/// at once, without waiting for anything.
pub trait ExecutionStatus: Send + Sync {
    /// What each running query has read from segments so far.
    fn progress(&self) -> Vec<QueryProgress>;
    /// Tasks that run.
    fn tasks_running(&self) -> u32;
    /// Query memory in use.
    fn memory_used_bytes(&self) -> u64;
}

/// Who the worker is and how it is reached.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// URL at which it is reached.
    pub address: String,
    /// May be empty.
    pub zone: String,
    /// Limit of its query memory.
    pub memory_bytes: u64,
    /// Threads on which it runs tasks.
    pub threads: u32,
}

/// The thread that beats.
#[derive(Debug)]
pub struct Heartbeat {
    coordinators: Arc<Coordinators>,
    wishes: Wishes,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What the worker asks of all coordinators before it ends.
#[derive(Clone, Debug, Default)]
struct Wishes {
    /// That its shards go to others.
    drain: CancellationToken,
    /// That no new work comes.
    leave: CancellationToken,
    /// How often it has taken no more segments, to ask whether it may end.
    closings: Arc<AtomicU64>,
}

/// What the thread works with.
pub struct HeartbeatParts {
    /// Where it beats, and where it tells what it hears of them.
    pub coordinators: Arc<Coordinators>,
    /// The worker's identity; its cluster is recorded at the first join.
    pub identity: Arc<KeptIdentity>,
    /// Where the worker listens, which a connection may come from.
    pub listening: IpAddr,
    /// What it says of itself.
    pub introduction: Introduction,
    /// What it holds.
    pub dir: Arc<SegmentDir>,
    /// Who carries out the coordinators' orders.
    pub replicator: Replicator,
    /// What looks for rot.
    pub scrub: Scrub,
    /// What it runs.
    pub status: Arc<dyn ExecutionStatus>,
    /// Rows that became segments here.
    pub rows_loaded: Arc<AtomicU64>,
}

impl Heartbeat {
    /// Starts the thread; it tries to join for ever.
    ///
    /// # Errors
    /// `Io` where there can be no thread.
    pub fn start(parts: HeartbeatParts) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot start the heartbeat", error))?;
        let (wishes, end) = (Wishes::default(), CancellationToken::new());
        let coordinators = Arc::clone(&parts.coordinators);
        let channels = Channels::new(runtime.handle().clone()).from_loopback(parts.listening);
        let beats = Beats::new(Worker::new(parts, channels, wishes.clone()));
        let ended = end.clone();
        let thread = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = beats.run() => {}
                        () = ended.cancelled() => {}
                    }
                });
            })
            .map_err(|error| Error::io("cannot start the heartbeat", error))?;
        Ok(Self { coordinators, wishes, end, thread: Some(thread) })
    }

    /// Asks the coordinators, from now on, that all shards of this worker go to
    /// others. It serves on meanwhile.
    pub(crate) fn drain(&self) {
        self.wishes.drain.cancel();
    }

    /// How far they are with that.
    pub(crate) fn drain_word(&self) -> DrainWord {
        self.coordinators.drain_word()
    }

    /// Asks them once more, now that this worker takes no more segments and has none:
    /// whether who leads still says that nothing is left, within `limit`. What it
    /// said before may be older than the last segment that came.
    pub(crate) async fn is_let_go(&self, limit: Duration) -> bool {
        let closing = self.wishes.closings.fetch_add(1, Ordering::AcqRel) + 1;
        tokio::time::timeout(limit, self.coordinators.let_go(closing)).await.is_ok()
    }

    /// Tells the coordinators that no new work should come; returns when all
    /// that are connected know it, or after `limit`.
    pub async fn leave(&self, limit: Duration) {
        self.wishes.leave.cancel();
        if tokio::time::timeout(limit, self.coordinators.all_told()).await.is_err() {
            tracing::warn!("not every coordinator was told that this worker stops");
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat's thread panicked");
        }
    }
}

/// Who beats: the same at all coordinators.
struct Worker {
    parts: HeartbeatParts,
    channels: Channels,
    /// New at each process start.
    incarnation: String,
    wishes: Wishes,
    /// The newest term of the coordinators' consensus that any of them told.
    newest_term: AtomicU64,
    /// How often it joined any of them.
    joins: AtomicU64,
}

impl Worker {
    fn new(parts: HeartbeatParts, channels: Channels, wishes: Wishes) -> Arc<Self> {
        let incarnation = uuid::Uuid::new_v4().simple().to_string();
        let (newest_term, joins) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { parts, channels, incarnation, wishes, newest_term, joins })
    }
}

/// Beats at all coordinators, at each by a task of its own: none waits for
/// another.
struct Beats {
    worker: Arc<Worker>,
    tasks: JoinSet<()>,
    by_coordinator: HashMap<String, AbortHandle>,
    /// The coordinators that were last written down, or are being so.
    kept: Vec<String>,
}

impl Beats {
    fn new(worker: Arc<Worker>) -> Self {
        Self { worker, tasks: JoinSet::new(), by_coordinator: HashMap::new(), kept: Vec::new() }
    }

    async fn run(mut self) {
        let coordinators = Arc::clone(&self.worker.parts.coordinators);
        let mut changes = coordinators.subscribe();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.follow(&coordinators.in_order());
            self.keep();
            tokio::select! {
                _ = looks.tick() => coordinators.look(),
                // There is always a sender: it is held here.
                _ = changes.changed() => {}
            }
        }
    }

    /// Ends and begins, so that the worker beats at these.
    fn follow(&mut self, wanted: &[String]) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a heartbeat panicked");
            }
        }
        let worker = &self.worker;
        self.by_coordinator.retain(|coordinator, beating| {
            if wanted.contains(coordinator) && !beating.is_finished() {
                return true;
            }
            beating.abort();
            worker.channels.forget(coordinator);
            worker.parts.coordinators.broken(coordinator);
            false
        });
        for coordinator in wanted {
            if !self.by_coordinator.contains_key(coordinator) {
                let beating = Beating::new(coordinator.clone(), Arc::clone(&self.worker));
                let task = self.tasks.spawn(beating.run());
                self.by_coordinator.insert(coordinator.clone(), task);
            }
        }
    }

    /// Has the coordinators written down where they changed.
    fn keep(&mut self) {
        let worker = Arc::clone(&self.worker);
        let kept = worker.parts.coordinators.kept();
        if kept == self.kept {
            return;
        }
        self.kept = kept;
        self.tasks.spawn(async move {
            let write = move || worker.parts.identity.keep(&worker.parts.coordinators);
            if let Err(error) = blocking(write).await {
                tracing::warn!(%error, "the coordinators are not written down");
            }
        });
    }
}

#[cfg(test)]
mod tests;
