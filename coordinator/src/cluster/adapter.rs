//! The cluster as the rest of the coordinator sees it: the pure parts behind
//! one lock, and the loops that give them the time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use shoal_data::{Locate, Located, Replica, SegmentName, Table, TableLayout};
use shoal_proto::cluster::{Beat, FetchRequest, JoinReply, JoinRequest, Orders, ScrubProgress};
use shoal_proto::{ErrorCode, Failure, QueryId, WorkerId, WriteId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::membership::{BEAT_INTERVAL, Heard, Joining, LiveWorkers, Membership, StreamNumber, Vitals};
use super::outliers::Outliers;
use super::pins::{Pinned, Pins};
use super::placement::{self, Candidate, Placement};
use super::repair;
use crate::Error;
use crate::catalog::{Catalog, Command, WorkerRecord};

/// How often silence is looked for.
const SILENCE_TICK: Duration = Duration::from_millis(100);
/// How often dropped segments and missing copies are looked for.
const TICK: Duration = Duration::from_millis(200);
/// Copies that one worker makes at a time.
const FETCHES_MAX: usize = 16;
/// After so long a copy that was ordered is ordered again.
const FETCH_MAX: Duration = Duration::from_secs(60);
/// After so long an order to remove is repeated: the segment may have been on
/// its way when it was given first.
const DISCARD_AGAIN: Duration = Duration::from_secs(30);
/// Names in one message of orders.
const DISCARDS_MAX: usize = 10_000;
/// How long the progress of a query is kept after its last beat.
const PROGRESS_KEPT: Duration = Duration::from_secs(60);

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
}

/// The cluster of one coordinator.
#[derive(Debug)]
pub struct Cluster {
    catalog: Catalog,
    pins: Pins,
    live: watch::Sender<Arc<LiveWorkers>>,
    core: Mutex<Core>,
    outliers: Mutex<Outliers>,
    /// Something may need repair.
    changed: Notify,
    streams: AtomicU64,
}

#[derive(Debug, Default)]
struct Core {
    membership: Membership,
    protected: HashMap<WriteId, HashSet<SegmentName>>,
    waiting: HashMap<WorkerId, Waiting>,
    again: Vec<(Instant, WorkerId, SegmentName)>,
    fetching: HashMap<WorkerId, HashMap<SegmentName, Instant>>,
    /// Copies that are made and not yet in the catalog.
    fetched: Vec<(WorkerId, SegmentName)>,
    progress: HashMap<QueryId, HashMap<WorkerId, (Instant, Progress)>>,
    /// What each worker said last of its scrub, and when.
    scrubs: HashMap<WorkerId, (Instant, ScrubProgress)>,
}

/// Orders that wait for a worker's next beat.
#[derive(Debug, Default)]
struct Waiting {
    discard: BTreeSet<SegmentName>,
    fetch: Vec<FetchRequest>,
}

impl Cluster {
    /// A cluster without workers, over a catalog.
    pub fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            pins: Pins::default(),
            live: watch::Sender::new(Arc::default()),
            core: Mutex::default(),
            outliers: Mutex::default(),
            changed: Notify::new(),
            streams: AtomicU64::new(0),
        }
    }

    /// The catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The pins of running queries.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The newest catalog, readable as long as the result lives.
    pub fn pin(&self) -> Pinned {
        self.pins.pin_newest(|| self.catalog.snapshot())
    }

    /// The live workers now.
    pub fn live(&self) -> Arc<LiveWorkers> {
        Arc::clone(&self.live.borrow())
    }

    /// Follows the live workers: a wake-up at each change.
    pub fn watch(&self) -> watch::Receiver<Arc<LiveWorkers>> {
        self.live.subscribe()
    }

    /// Where the shards of a new table should live.
    ///
    /// # Errors
    /// `Unavailable` where no worker is alive.
    pub fn place(&self, layout: &TableLayout) -> Result<Placement, Error> {
        let workers = candidates(&self.live());
        let state = self.catalog.snapshot();
        placement::place(layout, &workers, state.tables().map(AsRef::<Table>::as_ref)).ok_or_else(|| {
            Error::Unavailable(
                "no worker is live: start one with `shoal worker --coordinator URL`, or wait for one to come back"
                    .to_owned(),
            )
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

    /// Workers that are slower than the others.
    pub fn outliers(&self) -> &Mutex<Outliers> {
        &self.outliers
    }

    /// Keeps the segments of a write that is under way from being removed.
    pub fn protect(&self, write: &WriteId, names: impl IntoIterator<Item = SegmentName>) {
        self.core.lock().protected.entry(write.clone()).or_default().extend(names);
    }

    /// The write is committed or given up. Call it after the commit.
    pub fn unprotect(&self, write: &WriteId) {
        self.core.lock().protected.remove(write);
    }

    /// Removes segments from workers, soon. Workers that are not here are told
    /// when they join; segments that the catalog has stay.
    pub fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        let again = Instant::now() + DISCARD_AGAIN;
        let mut core = self.core.lock();
        for (name, workers) in names {
            for worker in workers {
                core.discard(&worker, name);
                core.again.push((again, worker, name));
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
            sum.still = sum.still.max(progress.still);
        }
        sum
    }

    /// The one of these workers on which a task of the query has not moved for
    /// longest, by their last beats, and for how long.
    pub fn stillest(&self, query: QueryId, workers: &BTreeSet<WorkerId>) -> Option<(WorkerId, Duration)> {
        let core = self.core.lock();
        let reports = core.progress.get(&query)?.iter().filter(|(worker, _)| workers.contains(*worker));
        let stillest = reports.max_by_key(|(_, (_, progress))| progress.still)?;
        Some((stillest.0.clone(), stillest.1.1.still))
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
                self.record_fetched().await;
                self.collect();
                self.extend_placements().await;
                self.order_copies(Instant::now());
                tokio::time::sleep(TICK).await;
                tokio::select! {
                    _ = catalog.changed() => {}
                    () = self.changed.notified() => {}
                    // Pins end without a word, and orders can be lost.
                    () = tokio::time::sleep(5 * TICK) => {}
                }
            }
        };
        tokio::select! {
            () = expiry => {}
            () = repair => {}
            () = stop.cancelled() => {}
        }
    }

    /// Takes a worker in and tells it what nobody needs.
    ///
    /// # Errors
    /// `Invalid` for a worker of another cluster or a name that cannot be;
    /// `AlreadyExists` where another worker of that name is alive.
    pub async fn join(&self, request: JoinRequest) -> Result<JoinReply, Error> {
        let id = WorkerId::new(request.worker);
        if id.as_str().is_empty() || id.as_str().len() > 128 {
            return Err(Error::Invalid("a worker's name has 1 to 128 characters".to_owned()));
        }
        let mut held = HashMap::with_capacity(request.held.len());
        for segment in request.held {
            held.insert(segment.name.parse::<SegmentName>()?, segment.bytes);
        }
        let cluster = self.catalog.snapshot().cluster.clone();
        if !request.cluster.is_empty() && request.cluster != cluster {
            return Err(Error::Invalid(format!(
                "worker `{id}` belongs to cluster {}, and this is cluster {cluster}: give it an empty --data-dir, \
                 or the coordinator that it belongs to",
                request.cluster
            )));
        }
        if let Some(rival) = self.core.lock().membership.rival(&id, &request.incarnation, &request.address) {
            return Err(Error::AlreadyExists(format!(
                "a worker named `{id}` is alive at {rival}; choose another --name"
            )));
        }
        let worker =
            WorkerRecord { id: id.clone(), address: request.address.clone(), zone: request.zone.clone() };
        if self.catalog.snapshot().worker(&id) != Some(&worker) {
            self.catalog.apply(Command::RegisterWorker { worker }).await?;
        }

        let mut core = self.core.lock();
        // In this order: a write that ends in between is in the catalog.
        let protected: HashSet<_> = core.protected.values().flatten().copied().collect();
        let is_spared = |name: &SegmentName| protected.contains(name) || self.pins.retired(name).is_some();
        let reconciled = repair::reconcile(&self.catalog.snapshot(), &id, &held, is_spared);
        tracing::info!(
            worker = %id,
            address = %request.address,
            held = held.len(),
            lacks = reconciled.lacks.len(),
            discard = reconciled.discard.len(),
            "worker joins"
        );
        core.forget(&id);
        core.fetched.extend(reconciled.adopt.into_iter().map(|name| (id.clone(), name)));
        let joining = Joining {
            id,
            incarnation: request.incarnation,
            address: request.address,
            zone: request.zone,
            threads: request.threads,
            memory_bytes: request.memory_bytes,
            lacks: reconciled.lacks,
        };
        core.membership.join(Instant::now(), joining);
        self.publish(&core);
        Ok(JoinReply {
            cluster,
            discard: reconciled.discard.iter().map(SegmentName::to_string).collect(),
            fetch: Vec::new(),
            beat_interval_ms: u32::try_from(BEAT_INTERVAL.as_millis()).unwrap_or(u32::MAX),
        })
    }

    /// The number of a heartbeat stream that was opened now.
    pub fn open_stream(&self) -> StreamNumber {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes a beat and returns the orders that wait for the worker.
    pub fn beat(&self, stream: StreamNumber, beat: Beat) -> Orders {
        let now = Instant::now();
        let id = WorkerId::new(beat.worker);
        let vitals = Vitals {
            memory_used_bytes: beat.memory_used_bytes,
            tasks_running: beat.tasks_running,
            disk_free_bytes: beat.disk_free_bytes,
            disk_used_bytes: beat.disk_used_bytes,
            leaving: beat.leaving,
        };
        let mut core = self.core.lock();
        let heard = core.membership.beat(now, &id, &beat.incarnation, stream, &vitals);
        match heard {
            Heard::Unknown => return Orders { rejoin: true, ..Orders::default() },
            Heard::Changed => tracing::info!(worker = %id, leaving = vitals.leaving, "worker beats"),
            Heard::Same => {}
        }
        self.publish(&core);
        for name in beat.fetched.iter().filter_map(|name| name.parse::<SegmentName>().ok()) {
            if let Some(fetching) = core.fetching.get_mut(&id) {
                fetching.remove(&name);
            }
            core.fetched.push((id.clone(), name));
        }
        if heard == Heard::Changed || !beat.fetched.is_empty() {
            self.changed.notify_one();
        }
        if let Some(scrub) = beat.scrub {
            core.scrubs.insert(id.clone(), (now, scrub));
        }
        for report in beat.progress {
            if let Ok(query) = report.query.parse::<QueryId>() {
                let progress = Progress {
                    rows: report.rows,
                    bytes: report.bytes,
                    segments: report.segments,
                    workers: 1,
                    still: Duration::from_millis(report.still_ms),
                };
                core.progress.entry(query).or_default().insert(id.clone(), (now, progress));
            }
        }
        let Some(waiting) = core.waiting.get_mut(&id) else {
            return Orders::default();
        };
        let fetch = std::mem::take(&mut waiting.fetch);
        let mut discard = std::mem::take(&mut waiting.discard);
        if let Some(first_kept) = discard.iter().nth(DISCARDS_MAX).copied() {
            waiting.discard = discard.split_off(&first_kept);
        }
        let state = self.catalog.snapshot();
        let discard = discard.iter().filter(|name| state.segment(name).is_none());
        Orders { discard: discard.map(SegmentName::to_string).collect(), fetch, rejoin: false }
    }

    /// A heartbeat stream broke.
    pub fn disconnected(&self, worker: &WorkerId, stream: StreamNumber) {
        let mut core = self.core.lock();
        let was_leaving = core.membership.is_leaving(worker);
        if core.membership.disconnected(worker, stream) {
            if was_leaving {
                tracing::info!(%worker, "worker has left");
            } else {
                tracing::warn!(%worker, "worker is lost: its connection broke");
            }
            core.forget(worker);
            self.publish(&core);
        }
    }

    fn expire(&self, now: Instant) {
        let mut core = self.core.lock();
        let expired = core.membership.expire(now);
        for worker in &expired {
            tracing::warn!(%worker, "worker is lost: it is silent");
            core.forget(worker);
        }
        if !expired.is_empty() {
            self.publish(&core);
        }
        let due: Vec<_> = core.again.extract_if(.., |(due, ..)| *due <= now).collect();
        for (_, worker, name) in due {
            core.discard(&worker, name);
        }
        core.progress.retain(|_, workers| {
            workers.retain(|_, (at, _)| now.saturating_duration_since(*at) < PROGRESS_KEPT);
            !workers.is_empty()
        });
    }

    /// Removes what was dropped and no query reads any more.
    fn collect(&self) {
        let free = self.pins.collect(|| self.catalog.take_dropped());
        if !free.is_empty() {
            tracing::info!(segments = free.len(), "dropped segments are removed");
            self.discard(free.iter().map(|segment| (segment.name(), segment.replicas.clone())).collect());
        }
    }

    /// Brings copies that were made into the catalog, then lets them count.
    async fn record_fetched(&self) {
        let fetched = std::mem::take(&mut self.core.lock().fetched);
        let commands = fetched.iter().map(|(worker, name)| {
            let worker = worker.clone();
            self.catalog.apply(Command::AddReplica { table: name.table, segment: name.segment, worker })
        });
        let outcomes = join_all(commands).await;
        let mut core = self.core.lock();
        for ((worker, name), outcome) in fetched.iter().zip(outcomes) {
            match outcome {
                Ok(_) => core.membership.gained(worker, name),
                Err(error) => tracing::warn!(%worker, segment = %name, %error, "copy not recorded"),
            }
        }
        if !fetched.is_empty() {
            self.publish(&core);
        }
    }

    /// Gives workers that came later a part in tables with too few copies.
    async fn extend_placements(&self) {
        let workers = candidates(&self.live());
        let state = self.catalog.snapshot();
        let short = state.tables().filter_map(|table| Some((table, placement::extend(table, &workers)?)));
        let commands = short.map(|(table, placement)| {
            tracing::info!(table = %table.full_name(), "table gets more copies");
            self.catalog.apply(Command::ExtendPlacement { table: table.id, placement })
        });
        for error in join_all(commands).await.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "placement not extended");
        }
    }

    fn order_copies(&self, now: Instant) {
        let live = self.live();
        let state = self.catalog.snapshot();
        let mut core = self.core.lock();
        let core = &mut *core;
        for fetching in core.fetching.values_mut() {
            fetching.retain(|_, since| now.saturating_duration_since(*since) < FETCH_MAX);
        }
        let fetching = &core.fetching;
        let orders = repair::missing(&state, &live, FETCHES_MAX, |worker, name| {
            let under_way = fetching.get(worker);
            under_way.is_some_and(|names| names.len() >= FETCHES_MAX || names.contains_key(name))
        });
        for (worker, request) in orders {
            let Ok(name) = request.name.parse() else {
                continue;
            };
            core.fetching.entry(worker.clone()).or_default().insert(name, now);
            core.waiting.entry(worker).or_default().fetch.push(request);
        }
    }

    fn publish(&self, core: &Core) {
        self.live.send_replace(Arc::new(core.membership.live()));
    }
}

impl Core {
    fn discard(&mut self, worker: &WorkerId, name: SegmentName) {
        if self.membership.is_member(worker) {
            self.waiting.entry(worker.clone()).or_default().discard.insert(name);
        }
    }

    /// Drops what was meant for a worker that is gone: it is worked out anew
    /// when it joins.
    fn forget(&mut self, worker: &WorkerId) {
        self.waiting.remove(worker);
        self.fetching.remove(worker);
    }
}

fn candidates(live: &LiveWorkers) -> Vec<Candidate> {
    let candidate =
        |worker: &super::LiveWorker| Candidate { id: worker.id.clone(), zone: worker.zone.clone() };
    live.workers.iter().map(candidate).collect()
}

#[async_trait]
impl Locate for Cluster {
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure> {
        let segment = self.catalog.snapshot().segment(name).cloned().or_else(|| self.pins.retired(name));
        let segment = segment.ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("segment {name} is not in the catalog (any more)"))
        })?;
        let live = self.live();
        // One that is only suspected may be the last: it is asked after the others.
        let suspected = live.suspected.iter().filter(|worker| repair::has(&segment, worker));
        let replicas = repair::readable(&segment, &live)
            .chain(suspected)
            .map(|worker| Replica { worker: worker.id.clone(), address: worker.address.clone() })
            .collect();
        Ok(Located { replicas, bytes: segment.bytes, crc32c: segment.crc32c })
    }
}

#[cfg(test)]
mod tests;
