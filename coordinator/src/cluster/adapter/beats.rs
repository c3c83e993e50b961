//! What workers tell: that they join, that they beat, and, by silence, that
//! they are lost.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shoal_data::SegmentName;
use shoal_proto::cluster::{Beat, JoinReply, JoinRequest, Orders};
use shoal_proto::{QueryId, WorkerId};

use super::{ANY_TERM, Cluster, Copied, Progress};
use crate::Error;
use crate::catalog::{Command, WorkerRecord};
use crate::cluster::events::EventKind;
use crate::cluster::membership::{BEAT_INTERVAL, Heard, Joining, StreamNumber, Vitals};
use crate::cluster::repair;

/// Names in one message of orders.
const DISCARDS_MAX: usize = 10_000;
/// How long the progress of a query is kept after its last beat.
const PROGRESS_KEPT: Duration = Duration::from_secs(60);

impl Cluster {
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
        // Before the state: an order is never of a newer term than what it rests on.
        let term = self.catalog.term();
        let cluster = self.catalog.snapshot().cluster.clone();
        if !request.cluster.is_empty() && request.cluster != cluster {
            return Err(Error::Invalid(format!(
                "worker `{id}` belongs to cluster {}, and this is cluster {cluster}: give it an empty --data-dir, \
                 or the coordinator that it belongs to",
                request.cluster
            )));
        }
        {
            let mut core = self.core.lock();
            if let Some(rival) = core.membership.rival(&id, &request.incarnation, &request.address) {
                return Err(Error::AlreadyExists(format!(
                    "a worker named `{id}` is alive at {rival}; choose another --name"
                )));
            }
            // It does not beat before it is answered, and its turn may come late.
            core.membership.asks_to_join(Instant::now(), &id, &request.incarnation);
        }
        let state = self.catalog.snapshot();
        let worker = WorkerRecord {
            id: id.clone(),
            address: request.address.clone(),
            zone: request.zone.clone(),
            is_draining: state.worker(&id).is_some_and(|known| known.is_draining),
        };
        if state.worker(&id) != Some(&worker) {
            self.catalog.apply(Command::RegisterWorker { worker }).await?;
        }
        self.register_disk(&id, &request.disk).await?;

        // One after the other: where a thousand come at once, one that has waited too
        // long joins again, and its place here goes with it.
        let _turn = self.joining.lock().await;
        let state = self.catalog.snapshot();
        // Others wait for the lock.
        state.tables().for_each(|table| state.facts(table).prepare());
        let mut core = self.core.lock();
        if let Some((incarnation, newest)) = core.joined.get(&id)
            && *incarnation == request.incarnation
            && *newest > request.number
        {
            return Err(Error::Unavailable(format!("worker `{id}` has joined again since")));
        }
        core.joined.insert(id.clone(), (request.incarnation.clone(), request.number));
        // In this order: a write that ends in between is in the catalog.
        let protected: HashSet<_> =
            core.protected.values().flat_map(|staged| staged.keys()).copied().collect();
        let live = core.membership.live();
        let state = self.catalog.snapshot();
        self.pins.note(|| self.catalog.take_dropped());
        let mut reconciled = repair::reconcile(&state, &live, &id, &held, |name| protected.contains(name));
        // Until it hears of this term it may remove some of that for an older leader.
        let may_lose = request.term < self.catalog.term();
        let mut is_to_report = false;
        if core.leads_in.is_none() {
            // Whoever leads sees to both; this one, once it has begun to, asks again.
            reconciled.adopt.clear();
            reconciled.discard.clear();
        } else {
            let is_read = self.pins.oldest().is_some_and(|oldest| oldest < state.version);
            // Queries may read them, and others, also those that only follow, may stage them: all are
            // asked first. A copy that has just left the catalog may come back by what is in the log.
            let is_asked = is_read || self.catalog.coordinators().len() > 1;
            // Another request of this worker's may have had it taken over: it is about to be in the catalog.
            let fetched = core.fetched_by(&id);
            for name in std::mem::take(&mut reconciled.discard) {
                if is_asked || fetched.contains(&name) || self.pins.retired(&name).is_some() {
                    core.going.unknown(name, state.version, id.clone());
                } else {
                    reconciled.discard.push(name);
                }
            }
            if may_lose {
                is_to_report = !reconciled.adopt.is_empty();
                reconciled.adopt.clear();
            }
        }
        tracing::info!(
            worker = %id,
            address = %request.address,
            held = held.len(),
            lacks = reconciled.lacks.len(),
            discard = reconciled.discard.len(),
            "worker joins"
        );
        let how = if held.is_empty() { "joins, with nothing" } else { "joins" };
        self.events.tell(EventKind::Joined, Some(&id), format!("{how}, at {}", request.address));
        // One that was asked goes on with what it was told to copy.
        let waiting = core.waiting.get_mut(&id);
        if !waiting.is_some_and(|waiting| std::mem::take(&mut waiting.is_reporting)) {
            core.forget(&id);
        }
        if let Some(ordered) = core.fetching.get_mut(&id) {
            ordered.retain(|name, _| !reconciled.discard.contains(name));
        }
        if is_to_report {
            core.waiting.entry(id.clone()).or_default().report = true;
        }
        let adopted =
            |name| Copied { worker: id.clone(), name, disk: request.disk.clone(), is_urgent: false };
        core.fetched.extend(reconciled.adopt.into_iter().map(adopted));
        let joining = Joining {
            id,
            incarnation: request.incarnation,
            disk: request.disk,
            address: request.address,
            zone: request.zone,
            threads: request.threads,
            memory_bytes: request.memory_bytes,
            wants_drain: request.drain,
            lacks: reconciled.lacks,
        };
        core.membership.join(Instant::now(), joining);
        self.publish(&core);
        Ok(JoinReply {
            cluster,
            discard: reconciled.discard.iter().map(SegmentName::to_string).collect(),
            fetch: Vec::new(),
            beat_interval_ms: u32::try_from(BEAT_INTERVAL.as_millis()).unwrap_or(u32::MAX),
            coordinators: self.coordinator_urls(),
            term,
        })
    }

    /// Has the catalog know on which disk the worker keeps what it has from now on:
    /// copies that were made durable on another one do not count any more where they
    /// are not in the catalog yet, and those that are there are known here then.
    async fn register_disk(&self, id: &WorkerId, disk: &str) -> Result<(), Error> {
        let is_known = || disk.is_empty() || self.catalog.snapshot().disk(id) == Some(disk);
        if is_known() {
            return Ok(());
        }
        self.catalog.apply(Command::RegisterDisk { worker: id.clone(), disk: disk.to_owned() }).await?;
        if is_known() {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "the catalog does not show yet what disk worker `{id}` has: join again"
        )))
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
            disk_total_bytes: beat.disk_total_bytes,
            disk_used_bytes: beat.disk_used_bytes,
            cross_zone_bytes: beat.cross_zone_bytes,
            rows_loaded: beat.rows_loaded,
            leaving: beat.leaving,
            wants_drain: beat.drain,
        };
        let is_leader = self.catalog.is_leader();
        let mut core = self.core.lock();
        let heard = core.membership.beat(now, &id, &beat.incarnation, stream, &vitals);
        match heard {
            Heard::Unknown => return Orders { rejoin: true, ..Orders::default() },
            Heard::Changed => {
                let (leaving, drain) = (vitals.leaving, vitals.wants_drain);
                tracing::info!(worker = %id, leaving, drain, "worker beats");
            }
            Heard::Same => {}
        }
        // Each beat says something of its worker's load. To show all workers anew for
        // each would be most of what a coordinator of many workers does.
        match heard {
            Heard::Changed => self.publish(&core),
            Heard::Same | Heard::Unknown => core.is_stale = true,
        }
        let disk = core.membership.disk(&id).unwrap_or_default().to_owned();
        for name in beat.fetched.iter().filter_map(|name| name.parse::<SegmentName>().ok()) {
            let ordered = core.fetching.get_mut(&id).and_then(|ordered| ordered.remove(&name));
            if !is_leader {
                core.membership.gained(&id, &name);
                core.is_stale = true;
            } else if let Some(ordered) = ordered {
                let is_urgent = ordered.is_urgent;
                core.fetched.push(Copied { worker: id.clone(), name, disk: disk.clone(), is_urgent });
            } else {
                // It may have been told to remove it since: it is to say what is there.
                core.waiting.entry(id.clone()).or_default().report = true;
            }
        }
        // Another process of its name was taken in since: it says again what it has.
        if is_leader && !disk.is_empty() && self.catalog.snapshot().disk(&id) != Some(disk.as_str()) {
            core.waiting.entry(id.clone()).or_default().report = true;
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
                    attempt: report.attempt,
                };
                core.progress.entry(query).or_default().insert(id.clone(), (now, progress));
            }
        }
        // Before what waits: what a newer leader may see otherwise is not ordered.
        let term = self.catalog.term();
        let coordinators = self.coordinator_urls();
        let after_join = core.joined.get(&id).map_or(0, |(_, number)| *number);
        let plain = Orders { coordinators, term, after_join, ..self.word_on_drain(&core, &id) };
        let Some(waiting) = core.waiting.get_mut(&id) else {
            return plain;
        };
        let fetch = std::mem::take(&mut waiting.fetch);
        let mut report = std::mem::take(&mut waiting.report);
        waiting.is_reporting |= report;
        let mut discard = std::mem::take(&mut waiting.discard);
        if let Some(first_kept) = discard.keys().nth(DISCARDS_MAX).copied() {
            waiting.discard = discard.split_off(&first_kept);
        }
        // What was just copied is about to be in the catalog.
        let fetched = core.fetched_by(&id);
        discard.retain(|name, decided_in| *decided_in >= term && !fetched.contains(name));
        let mut discard: BTreeSet<SegmentName> = discard.into_keys().collect();
        drop(core);
        if !discard.is_empty() {
            let (state, live) = (self.catalog.snapshot(), self.live());
            let kept = repair::still_needed(&state, &live, &id, &discard);
            discard.retain(|name| !kept.held.contains(name) && !kept.adopt.contains(name));
            let mut core = self.core.lock();
            if is_leader && !kept.adopt.is_empty() {
                // Its copies count again once it has said that they are still there.
                core.waiting.entry(id.clone()).or_default().is_reporting = true;
                report = true;
            }
            if let Some(ordered) = core.fetching.get_mut(&id) {
                ordered.retain(|name, _| !discard.contains(name));
            }
        }
        Orders { discard: discard.iter().map(SegmentName::to_string).collect(), fetch, report, ..plain }
    }

    /// The copies that wait for a worker whose beats come on `stream`; none where
    /// none do.
    pub fn copies_for(&self, worker: &WorkerId, stream: StreamNumber) -> Option<Orders> {
        let term = self.catalog.term();
        let mut core = self.core.lock();
        if !core.membership.beats_on(worker, stream) {
            return None;
        }
        let after_join = core.joined.get(worker).map_or(0, |(_, number)| *number);
        let fetch = std::mem::take(&mut core.waiting.get_mut(worker)?.fetch);
        let is_any = !fetch.is_empty();
        is_any.then(|| Orders { fetch, term, after_join, unasked: true, ..Orders::default() })
    }

    /// Where all coordinators are, for workers; nothing where there never was
    /// another one than this, which they know.
    fn coordinator_urls(&self) -> Vec<String> {
        if !self.catalog.snapshot().had_several_coordinators() {
            return Vec::new();
        }
        self.catalog.coordinators().into_iter().map(|it| it.address).collect()
    }

    /// A heartbeat stream broke.
    pub fn disconnected(&self, worker: &WorkerId, stream: StreamNumber) {
        let mut core = self.core.lock();
        let was_leaving = core.membership.is_leaving(worker);
        if core.membership.disconnected(worker, stream) {
            if was_leaving {
                tracing::info!(%worker, "worker has left");
                self.events.tell(EventKind::Left, Some(worker), "stopped, as it was told to");
            } else {
                tracing::warn!(%worker, "worker is lost: its connection broke");
                self.events.tell(EventKind::Lost, Some(worker), "its connection broke");
                core.lost(worker);
            }
            core.forget(worker);
            self.publish(&core);
        }
    }

    pub(super) fn expire(&self, now: Instant) {
        let mut core = self.core.lock();
        let expired = core.membership.expire(now);
        for worker in &expired {
            tracing::warn!(%worker, "worker is lost: it is silent");
            self.events.tell(EventKind::Lost, Some(worker), "it is silent");
            core.lost(worker);
            core.forget(worker);
        }
        let is_stale = std::mem::take(&mut core.is_stale);
        if is_stale || !expired.is_empty() {
            self.publish(&core);
        }
        let due: Vec<_> = core.again.extract_if(.., |(due, ..)| *due <= now).collect();
        for (_, worker, name) in due {
            core.discard(&worker, name, ANY_TERM);
        }
        core.progress.retain(|_, workers| {
            workers.retain(|_, (at, _)| now.saturating_duration_since(*at) < PROGRESS_KEPT);
            !workers.is_empty()
        });
    }
}
