//! Joins one coordinator and beats there for as long as it is one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::cluster::cluster_client::ClusterClient;
use shoal_proto::cluster::{Beat, FetchRequest, HeldSegment, JoinReply, JoinRequest, Orders};
use shoal_proto::{ErrorCode, Failure};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::Worker;
use crate::coordinators::DrainWord;
use crate::reports::Reports;
use crate::segments::blocking;

/// How long the coordinator may take to answer a join.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// Silence of the coordinator after which the stream is taken for broken: it
/// answers each beat. A worker that hears nothing cannot be reached either, and
/// to end the stream is how the coordinator gets to know, within two seconds.
const SILENCE_MAX: Duration = Duration::from_millis(1_750);
/// Waits between attempts to join: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often a cause that lasts is logged.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// The heartbeat at one coordinator.
pub(super) struct Beating {
    coordinator: String,
    worker: Arc<Worker>,
    /// The number of the newest join.
    last_join: AtomicU64,
}

impl Beating {
    pub(super) fn new(coordinator: String, worker: Arc<Worker>) -> Self {
        Self { coordinator, worker, last_join: AtomicU64::new(0) }
    }

    /// Beats, and joins again whenever that breaks, until the coordinator does
    /// not know the worker and need not.
    pub(super) async fn run(self) {
        let (coordinator, worker) = (&self.coordinator, &self.worker);
        let mut backoff = BACKOFF.0;
        let mut logged: Option<(Instant, String)> = None;
        loop {
            let started = Instant::now();
            let Err(failure) = self.beat().await else {
                if worker.parts.coordinators.forgotten(coordinator) {
                    continue;
                }
                return;
            };
            worker.parts.coordinators.broken(coordinator);
            if started.elapsed() > SILENCE_MAX {
                backoff = BACKOFF.0;
            }
            let what = failure.to_string();
            let is_news = logged.as_ref().is_none_or(|(at, last)| *last != what || at.elapsed() >= LOG_EVERY);
            if is_news {
                tracing::warn!(%coordinator, error = %what, retry_in = ?backoff, "not connected to the coordinator");
                logged = Some((Instant::now(), what));
            }
            worker.channels.forget(coordinator);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Joins and beats until the stream breaks, which is an error, or the
    /// coordinator does not know the worker any more.
    pub(super) async fn beat(&self) -> Result<(), Failure> {
        let (coordinator, worker) = (&self.coordinator, &self.worker);
        let mut client = ClusterClient::new(worker.channels.get(coordinator)?)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reports = worker.parts.replicator.subscribe();
        let reply = self.join(&mut client, &reports).await?;
        let interval = Duration::from_millis(reply.beat_interval_ms.clamp(50, 1_000).into());

        let (beats, outgoing) = mpsc::channel(4);
        let opened = client.heartbeat(ReceiverStream::new(outgoing));
        let opened = tokio::time::timeout(JOIN_MAX, opened).await.map_err(|_| self.silent())?;
        let mut orders = opened.map_err(|status| Failure::from_status(&status))?.into_inner();
        tracing::info!(%coordinator, cluster = %reply.cluster, "joined the cluster");

        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let (mut told_drain, mut told_leaving) = (false, false);
        // The newest closing before each beat that is not answered yet.
        let mut closings: VecDeque<u64> = VecDeque::new();
        loop {
            let is_asked = tokio::select! {
                _ = ticks.tick() => false,
                () = reports.news() => false,
                () = worker.wishes.drain.cancelled(), if !told_drain => {
                    told_drain = true;
                    false
                }
                () = worker.wishes.leave.cancelled(), if !told_leaving => {
                    told_leaving = true;
                    false
                }
                received = next(&mut orders) => {
                    let received = received?;
                    if received.rejoin {
                        return Ok(());
                    }
                    heard_at = Instant::now();
                    if received.unasked {
                        // It may not have heard of this worker's wishes yet.
                        self.obey(received.term, received.fetch, &[]);
                        continue;
                    }
                    let discard: &[String] =
                        if self.is_overtaken(&received) { &[] } else { &received.discard };
                    let is_newest = self.obey(received.term, received.fetch, discard);
                    let is_done = received.drained && is_newest;
                    // Each beat is answered, in order.
                    let closing = closings.pop_front().unwrap_or_default();
                    let word = DrainWord { is_done, lacks: received.drain_lacks, closing };
                    worker.parts.coordinators.heard(coordinator, told_leaving, word);
                    worker.parts.coordinators.listed(&received.coordinators);
                    if !received.report {
                        continue;
                    }
                    true
                }
            };
            if reports.take_lost() || is_asked {
                // A join tells what is here, and brings orders for the rest. The
                // stream stays: to end it would be to be lost.
                self.join(&mut client, &reports).await?;
                heard_at = Instant::now();
            }
            if heard_at.elapsed() > SILENCE_MAX {
                return Err(self.silent());
            }
            match beats.try_reserve() {
                Ok(room) => {
                    closings.push_back(worker.wishes.closings.load(Ordering::Acquire));
                    room.send(self.next_beat(&reports));
                }
                // Full or closed: the answer that does not come says the rest.
                Err(_) => tracing::debug!("a beat was not sent"),
            }
        }
    }

    /// Tells what is here, and obeys the answer.
    async fn join(
        &self,
        client: &mut ClusterClient<Channel>,
        reports: &Reports,
    ) -> Result<JoinReply, Failure> {
        let parts = &self.worker.parts;
        reports.skip();
        let number = self.worker.joins.fetch_add(1, Ordering::Relaxed) + 1;
        self.last_join.store(number, Ordering::Relaxed);
        // In this order: what is gone when it is looked at was leaving before.
        let term = self.worker.newest_term.load(Ordering::Relaxed);
        let leaving = parts.replicator.leaving();
        let mut held = parts.dir.report();
        held.retain(|(name, _)| !leaving.contains(name));
        let request = JoinRequest {
            worker: parts.identity.name().to_string(),
            address: parts.introduction.address.clone(),
            zone: parts.introduction.zone.clone(),
            memory_bytes: parts.introduction.memory_bytes,
            threads: parts.introduction.threads,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            held: held
                .into_iter()
                .map(|(name, bytes)| HeldSegment { name: name.to_string(), bytes })
                .collect(),
            incarnation: self.worker.incarnation.clone(),
            disk: parts.dir.disk().to_owned(),
            cluster: parts.identity.cluster().unwrap_or_default().to_owned(),
            drain: self.worker.wishes.drain.is_cancelled(),
            term,
            number,
        };
        let joined = tokio::time::timeout(JOIN_MAX, client.join(request)).await;
        let joined = joined.map_err(|_| Failure::new(ErrorCode::Unavailable, "no answer to the join"))?;
        let mut reply = joined.map_err(|status| Failure::from_status(&status))?.into_inner();
        if parts.identity.cluster() != Some(reply.cluster.as_str()) {
            // Never remove anything on the word of another cluster.
            let (identity, cluster) = (Arc::clone(&parts.identity), reply.cluster.clone());
            blocking(move || identity.belong_to(&cluster)).await?;
        }
        parts.coordinators.listed(&reply.coordinators);
        self.obey(reply.term, std::mem::take(&mut reply.fetch), &reply.discard);
        Ok(reply)
    }

    /// Carries out orders. A coordinator of an older term than another's may not
    /// know what is needed by now: on its word nothing is removed. Whether it is of
    /// the newest.
    fn obey(&self, term: u64, fetch: Vec<FetchRequest>, discard: &[String]) -> bool {
        let is_newest = self.worker.newest_term.fetch_max(term, Ordering::Relaxed) <= term;
        let discard = if is_newest { discard } else { &[] };
        self.worker.parts.replicator.obey(fetch, discard);
        is_newest
    }

    /// Whether the coordinator has heard of what is here since it gave these orders,
    /// or is about to.
    fn is_overtaken(&self, orders: &Orders) -> bool {
        orders.after_join != 0 && orders.after_join < self.last_join.load(Ordering::Relaxed)
    }

    fn next_beat(&self, reports: &Reports) -> Beat {
        let parts = &self.worker.parts;
        let (disk_free_bytes, disk_total_bytes) = parts.dir.disk_bytes();
        Beat {
            worker: parts.identity.name().to_string(),
            incarnation: self.worker.incarnation.clone(),
            memory_used_bytes: parts.status.memory_used_bytes(),
            tasks_running: parts.status.tasks_running(),
            disk_free_bytes,
            disk_total_bytes,
            disk_used_bytes: parts.dir.used_bytes(),
            fetched: reports.take_fetched().iter().map(ToString::to_string).collect(),
            progress: parts.status.progress(),
            leaving: self.worker.wishes.leave.is_cancelled(),
            scrub: Some(parts.scrub.progress()),
            drain: self.worker.wishes.drain.is_cancelled(),
            cross_zone_bytes: parts.replicator.cross_zone_bytes(),
            rows_loaded: parts.rows_loaded.load(Ordering::Relaxed),
        }
    }

    fn silent(&self) -> Failure {
        let what = format!("coordinator {} was silent for {SILENCE_MAX:?}", self.coordinator);
        Failure::new(ErrorCode::Unavailable, what)
    }
}

async fn next(orders: &mut Streaming<Orders>) -> Result<Orders, Failure> {
    match orders.message().await {
        Ok(Some(orders)) => Ok(orders),
        Ok(None) => Err(Failure::new(ErrorCode::Unavailable, "the coordinator ended the heartbeat stream")),
        Err(status) => Err(Failure::from_status(&status)),
    }
}
