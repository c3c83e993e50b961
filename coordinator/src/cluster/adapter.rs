//! The cluster as the rest of the coordinator sees it: the pure parts behind
//! one lock, and the loops that give them the time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use shoal_data::{Locate, Located, Replica, Segment, SegmentName, Table, TableLayout};
use shoal_proto::cluster::{FetchRequest, ScrubProgress};
use shoal_proto::{ErrorCode, Failure, QueryId, WorkerId, WriteId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::disk::{Disk, Fill};
use super::events::{Event, Events};
use super::given_up::{GivenUp, GivenUps};
use super::going::Going;
use super::membership::{LiveWorkers, Membership};
use super::older::Older;
use super::outliers::Outliers;
use super::pins::{Pinned, Pins};
use super::placement::{self, Placement};
use super::repair::{self, CopyRates};
use super::repairing::Repairing;
use super::silence::Silences;
use crate::Error;
use crate::catalog::Catalog;

mod beats;
pub(crate) mod candidates;
mod compacting;
mod draining;
mod leading;
mod rebalance;
mod upkeep;

use candidates::ToCome;
use leading::Answered;
pub use rebalance::Rebalanced;

/// How often silence is looked for.
const SILENCE_TICK: Duration = Duration::from_millis(100);
/// How often dropped segments and missing copies are looked for.
const TICK: Duration = Duration::from_millis(200);
/// How soon at least after workers said something new: copies that they made count
/// then, and the next ones are ordered.
const TICK_MIN: Duration = Duration::from_millis(10);
/// So many times as long as a round took nothing is looked for, up to [`TICK`].
const REST_FACTOR: u32 = 4;
/// After so long an order to remove what a write staged is repeated: it may have
/// been on its way when the order was given first.
const DISCARD_AGAIN: Duration = Duration::from_secs(30);

/// How long a coordinator that starts gives workers that were there before.
const JOIN_WITHIN: Duration = Duration::from_secs(2);

/// What all workers together have read for a query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows read from segments.
    pub rows: u64,
    /// Bytes read from segments.
    pub bytes: u64,
    /// Segments opened.
    pub segments: u64,
    /// Workers that report something of it.
    pub workers: usize,
    /// For how long a task of it has not moved, on one of them.
    pub still: Duration,
    /// The attempt of that task, from 1 on; 0 where no task is left.
    pub attempt: u32,
}

/// The cluster of one coordinator.
#[derive(Debug)]
pub struct Cluster {
    catalog: Catalog,
    pins: Pins,
    live: watch::Sender<Arc<LiveWorkers>>,
    started: Instant,
    core: Mutex<Core>,
    outliers: Mutex<Outliers>,
    /// What the disks of workers were to get, when that was looked at last.
    to_come: Mutex<ToCome>,
    events: Events,
    /// After so long without a word a worker is given up.
    dead_after: Duration,
    rates: CopyRates,
    /// Something may need repair, or be free to be removed.
    changed: Notify,
    /// Something waits to be removed: all are to be asked who needs it.
    to_ask: Notify,
    /// The turn of a worker that joins.
    joining: tokio::sync::Mutex<()>,
    /// Copies wait for a worker.
    ordered: watch::Sender<()>,
    /// Whether copies were being made of what has too few, when that was looked at last.
    repairs: AtomicBool,
    streams: AtomicU64,
}

#[derive(Debug, Default)]
struct Core {
    membership: Membership,
    /// What writes that are under way stage, and where.
    protected: Protected,
    waiting: HashMap<WorkerId, Waiting>,
    /// The newest join of each worker: of which process, and its number there.
    joined: HashMap<WorkerId, (String, u64)>,
    /// Those of segments that nobody ever saw, until they are repeated.
    again: Vec<(Instant, WorkerId, SegmentName)>,
    fetching: HashMap<WorkerId, HashMap<SegmentName, Ordered>>,
    /// Copies that are made and not yet in the catalog.
    fetched: Vec<Copied>,
    /// How far it is with the urgent ones.
    repairing: Repairing,
    progress: HashMap<QueryId, HashMap<WorkerId, (Instant, Progress)>>,
    /// Those whose shards leave or have left, because they are drained or dead.
    given_up: GivenUps,
    /// How often each worker was lost.
    times_lost: HashMap<WorkerId, u64>,
    /// What goes from workers once no coordinator needs it. Only of a leader.
    going: Going,
    /// What was said of that, until a round looks at it.
    answered: Option<Answered>,
    /// Which other coordinators do not answer the leader, by address.
    silences: Silences,
    /// Which other coordinators cannot read the newest commands.
    older: Older,
    /// The term in which this coordinator looks after the cluster; none: another
    /// one does.
    leads_in: Option<u64>,
    /// What each worker said last of its scrub, and when.
    scrubs: HashMap<WorkerId, (Instant, ScrubProgress)>,
    /// Beats told something since the workers were shown last.
    is_stale: bool,
    /// For what no shard needed another place, when that was looked at last.
    at_rest: Option<AtRest>,
}

/// What writes stage, and where.
type Protected = HashMap<WriteId, HashMap<SegmentName, Vec<WorkerId>>>;

/// All that the places of shards follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AtRest {
    /// Of the catalog.
    version: u64,
    /// Of the live workers.
    generation: u64,
    leave: BTreeSet<WorkerId>,
    /// Of those that can take shards.
    disks: Vec<(Fill, Disk)>,
}

/// A copy that was made.
#[derive(Clone, Debug)]
struct Copied {
    worker: WorkerId,
    name: SegmentName,
    /// The id of the disk on which it is; empty: not known.
    disk: String,
    /// Of what has too few, and ordered as such.
    is_urgent: bool,
}

/// A copy that was ordered.
#[derive(Clone, Copy, Debug)]
struct Ordered {
    at: Instant,
    is_urgent: bool,
}

/// Orders that wait for a worker's next beat; copies do not wait for that.
#[derive(Debug, Default)]
struct Waiting {
    /// By segment: the term in which it was decided. Who leads in a newer one
    /// may have decided otherwise.
    discard: BTreeMap<SegmentName, u64>,
    fetch: Vec<FetchRequest>,
    /// Whether the worker is to say again what it holds.
    report: bool,
    /// Whether it was told so, and has not said it yet.
    is_reporting: bool,
}

/// The term of an order that holds in every term: nobody ever saw the segment.
const ANY_TERM: u64 = u64::MAX;

impl Cluster {
    /// A cluster without workers, over a catalog. A worker that is away for
    /// `dead_after` is given up: its shards get other workers.
    pub fn new(catalog: Catalog, dead_after: Duration) -> Self {
        Self {
            dead_after,
            rates: CopyRates::default(),
            events: Events::default(),
            catalog,
            pins: Pins::default(),
            live: watch::Sender::new(Arc::default()),
            started: Instant::now(),
            core: Mutex::default(),
            outliers: Mutex::default(),
            to_come: Mutex::default(),
            changed: Notify::new(),
            to_ask: Notify::new(),
            joining: tokio::sync::Mutex::default(),
            ordered: watch::Sender::default(),
            repairs: AtomicBool::new(false),
            streams: AtomicU64::new(0),
        }
    }

    /// With copies at these rates.
    pub fn with_rates(self, rates: CopyRates) -> Self {
        Self { rates, ..self }
    }

    /// The catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The pins of running queries.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The catalog as it is here, readable as long as the result lives.
    pub fn pin(&self) -> Pinned {
        self.pins.pin_newest(|| self.catalog.snapshot())
    }

    /// The live workers now.
    pub fn live(&self) -> Arc<LiveWorkers> {
        Arc::clone(&self.live.borrow())
    }

    /// Follows what is ordered: a wake-up whenever copies wait for a worker.
    pub fn watch_orders(&self) -> watch::Receiver<()> {
        self.ordered.subscribe()
    }

    /// Follows the live workers: a wake-up at each change.
    pub fn watch(&self) -> watch::Receiver<Arc<LiveWorkers>> {
        self.live.subscribe()
    }

    /// Waits until all workers that the catalog knows have joined, as long as this
    /// coordinator has only just begun: it does not know who is there yet.
    pub async fn workers_have_joined(&self) {
        let give_up = self.started + JOIN_WITHIN;
        let mut live = self.watch();
        let all_joined = live
            .wait_for(|live| self.catalog.snapshot().workers().all(|known| live.get(&known.id).is_some()));
        // Some may be gone for good.
        let _all_or_late = tokio::time::timeout_at(give_up.into(), all_joined).await;
    }

    /// Where the shards of a new table should live.
    ///
    /// # Errors
    /// `Unavailable` where no worker is alive.
    pub fn place(&self, layout: &TableLayout) -> Result<Placement, Error> {
        let state = self.catalog.snapshot();
        let workers = self.candidates(&self.live(), &state);
        placement::place(layout, &workers, state.tables().map(AsRef::<Table>::as_ref)).ok_or_else(|| {
            let why = if self.live().workers.is_empty() {
                "no worker is live: start one with `shoal worker --coordinator URL`, or wait for one to come back"
            } else {
                "all live workers are drained, or stop soon: start another one, or ALTER WORKER 'name' CANCEL DRAIN"
            };
            Error::Unavailable(why.to_owned())
        })
    }

    /// An RPC to the worker failed: it gets no work until it beats again.
    pub fn suspect(&self, worker: &WorkerId, why: &str) {
        let mut core = self.core.lock();
        if core.membership.suspect(worker) {
            tracing::warn!(%worker, why, "worker is suspected");
            self.publish(&core);
        }
    }

    /// What happened lately, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.events.all()
    }

    /// Why the shards of a worker leave it; none where they do not.
    pub fn given_up(&self, worker: &WorkerId) -> Option<GivenUp> {
        self.core.lock().given_up.get(worker)
    }

    /// Workers that are being drained: others get the work where they can.
    pub fn drained(&self) -> BTreeSet<WorkerId> {
        self.core.lock().given_up.drained()
    }

    /// Workers that are slower than the others.
    pub fn outliers(&self) -> &Mutex<Outliers> {
        &self.outliers
    }

    /// Keeps a segment of a write that is under way from being removed.
    pub fn protect(&self, write: &WriteId, name: SegmentName, workers: &[WorkerId]) {
        self.core.lock().protected.entry(write.clone()).or_default().insert(name, workers.to_vec());
    }

    /// The write is committed or given up. Call it after the commit.
    pub fn unprotect(&self, write: &WriteId) {
        self.core.lock().protected.remove(write);
    }

    /// Removes segments that were staged and never will be committed, soon.
    /// Workers that are not here are told when they join.
    pub fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        self.discard_in(ANY_TERM, names);
    }

    /// Removes segments from workers, as it was decided in this term; segments
    /// that the catalog has stay.
    fn discard_in(&self, term: u64, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        let again = Instant::now() + DISCARD_AGAIN;
        let mut core = self.core.lock();
        for (name, workers) in names {
            for worker in workers {
                core.discard(&worker, name, term);
                // What the catalog had may have come back there by then; and who
                // holds it all the same says so when it joins.
                if term == ANY_TERM {
                    core.again.push((again, worker, name));
                }
            }
        }
    }

    /// What workers have read for a query so far, by their last beats.
    pub fn progress(&self, query: QueryId) -> Progress {
        let core = self.core.lock();
        let mut sum = Progress::default();
        for (_, progress) in core.progress.get(&query).into_iter().flat_map(HashMap::values) {
            sum.rows += progress.rows;
            sum.bytes += progress.bytes;
            sum.segments += progress.segments;
            sum.workers += 1;
            if (progress.attempt, progress.still) > (sum.attempt, sum.still) {
                (sum.attempt, sum.still) = (progress.attempt, progress.still);
            }
        }
        sum
    }

    /// The one of these workers on which a task of the attempt has not moved for
    /// longest, by their last beats, and for how long.
    pub fn stillest(
        &self,
        query: QueryId,
        attempt: u32,
        workers: &BTreeSet<WorkerId>,
    ) -> Option<(WorkerId, Duration)> {
        let core = self.core.lock();
        let of_attempt = core.progress.get(&query)?.iter().filter(|(_, (_, said))| said.attempt == attempt);
        let reports = of_attempt.filter(|(worker, _)| workers.contains(*worker));
        let stillest = reports.max_by_key(|(_, (_, progress))| progress.still)?;
        Some((stillest.0.clone(), stillest.1.1.still))
    }

    /// How often a worker was lost since this coordinator started.
    pub fn times_lost(&self, worker: &WorkerId) -> u64 {
        self.core.lock().times_lost.get(worker).copied().unwrap_or_default()
    }

    /// How far a worker is with looking for rot, by its last beat.
    pub fn scrub(&self, worker: &WorkerId) -> Option<ScrubProgress> {
        let core = self.core.lock();
        let (at, scrub) = core.scrubs.get(worker)?;
        let age_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let since_round_ms = scrub.since_round_ms.map(|ms| ms.saturating_add(age_ms));
        Some(ScrubProgress { since_round_ms, ..*scrub })
    }

    /// Looks after silence, dropped segments and missing copies until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let expiry = async {
            let mut ticks = tokio::time::interval(SILENCE_TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                self.expire(Instant::now());
            }
        };
        let repair = async {
            let mut catalog = self.catalog.watch();
            loop {
                let began = Instant::now();
                self.look_after_workers().await;
                let rest = (began.elapsed() * REST_FACTOR).clamp(TICK_MIN, TICK);
                tokio::time::sleep(rest).await;
                let catalog_changes = async {
                    tokio::time::sleep(TICK.saturating_sub(rest)).await;
                    let _ended = catalog.changed().await;
                };
                tokio::select! {
                    () = catalog_changes => {}
                    () = self.changed.notified() => {}
                    // Pins end without a word, and orders can be lost.
                    () = tokio::time::sleep(5 * TICK) => {}
                }
            }
        };
        let asking = async {
            loop {
                self.to_ask.notified().await;
                self.ask_needs().await;
            }
        };
        tokio::select! {
            () = expiry => {}
            () = repair => {}
            () = asking => {}
            () = stop.cancelled() => {}
        }
    }

    /// A segment that the catalog has, or that was dropped and may still be read.
    fn named(&self, name: &SegmentName) -> Option<Arc<Segment>> {
        let segment = self.catalog.snapshot().segment(name).cloned();
        segment.or_else(|| {
            self.pins.note(|| self.catalog.take_dropped());
            self.pins.retired(name)
        })
    }

    fn publish(&self, core: &Core) {
        self.live.send_replace(Arc::new(core.membership.live()));
    }
}

impl Core {
    fn discard(&mut self, worker: &WorkerId, name: SegmentName, term: u64) {
        if self.membership.is_member(worker) {
            self.waiting.entry(worker.clone()).or_default().discard.insert(name, term);
        }
    }

    /// The copies of this worker's that are about to be in the catalog.
    fn fetched_by(&self, worker: &WorkerId) -> HashSet<SegmentName> {
        self.fetched.iter().filter(|copied| copied.worker == *worker).map(|copied| copied.name).collect()
    }

    fn lost(&mut self, worker: &WorkerId) {
        *self.times_lost.entry(worker.clone()).or_default() += 1;
    }

    /// Drops what was meant for a worker that is gone: it is worked out anew
    /// when it joins.
    fn forget(&mut self, worker: &WorkerId) {
        self.waiting.remove(worker);
        self.fetching.remove(worker);
    }
}

#[async_trait]
impl Locate for Cluster {
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure> {
        let segment = self.named(name).ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("segment {name} is not in the catalog (any more)"))
        })?;
        let live = self.live();
        // One that is only suspected may be the last: it is asked after the others.
        let suspected = live.suspected.iter().filter(|worker| repair::has(&segment, worker));
        let replicas = repair::readable(&segment, &live)
            .chain(suspected)
            .map(|worker| Replica {
                worker: worker.id.clone(),
                address: worker.address.clone(),
                zone: worker.zone.clone(),
            })
            .collect();
        Ok(Located { replicas, bytes: segment.bytes, crc32c: segment.crc32c })
    }
}

#[cfg(test)]
mod tests;
