//! A worker without rows: it joins and beats as a real one does, says that it
//! holds what the catalog counts on it for, and is done at once with whatever it
//! is told to copy or to remove.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::channel::mpsc;
use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_proto::channel::{MESSAGE_BYTES_MAX, endpoint};
use shoal_proto::cluster::cluster_client::ClusterClient;
use shoal_proto::cluster::{Beat, HeldSegment, JoinReply, JoinRequest, Orders};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tonic::transport::Channel;

use super::fill::Holder;

/// How long the coordinator may take to answer a join, and how long it may be
/// silent: as a worker has it.
const JOIN_MAX: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_millis(1_750);
/// Waits between attempts to join: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Memory, threads and disk that each says it has.
const MEMORY_BYTES: u64 = 64 << 30;
const THREADS: u32 = 16;
const DISK_BYTES: u64 = 4 << 40;

/// What happened to all stubs together.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Streams that broke, and joins that failed.
    pub(super) breaks: AtomicU64,
    /// The longest that a beat waited for its answer.
    slowest_us: AtomicU64,
    /// Copies that were ordered.
    pub(super) fetches: AtomicU64,
    /// Copies that were taken away.
    pub(super) discards: AtomicU64,
}

impl Counts {
    /// Begins anew with what may be asked for later.
    pub(super) fn reset(&self) {
        self.breaks.store(0, Ordering::Relaxed);
        self.slowest_us.store(0, Ordering::Relaxed);
    }

    /// The longest that a beat waited for its answer, in milliseconds.
    pub(super) fn slowest_ms(&self) -> f64 {
        self.slowest_us.load(Ordering::Relaxed) as f64 / 1e3
    }

    fn answered_in(&self, waited: Duration) {
        let waited = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.slowest_us.fetch_max(waited, Ordering::Relaxed);
    }
}

/// One stub that runs. Its process is killed by dropping it.
pub(super) struct Running {
    pub(super) stub: Arc<Stub>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker without rows.
pub(super) struct Stub {
    name: String,
    address: String,
    zone: String,
    cluster: String,
    coordinator: String,
    held: Mutex<HashMap<SegmentName, u64>>,
    counts: Arc<Counts>,
    is_heard: AtomicBool,
    /// The newest term of the coordinators that it has heard of.
    term: AtomicU64,
    /// How often it has joined.
    joins: AtomicU64,
}

impl Stub {
    /// Starts it.
    pub(super) fn start(holder: Holder, cluster: &str, coordinator: &str, counts: &Arc<Counts>) -> Running {
        let stub = Arc::new(Self {
            name: holder.worker.id.to_string(),
            address: holder.worker.address,
            zone: holder.worker.zone,
            cluster: cluster.to_owned(),
            coordinator: coordinator.to_owned(),
            held: Mutex::new(holder.held.into_iter().collect()),
            counts: Arc::clone(counts),
            is_heard: AtomicBool::new(false),
            term: AtomicU64::new(0),
            joins: AtomicU64::new(0),
        });
        let running = Arc::clone(&stub);
        let task = tokio::spawn(async move { running.run().await });
        Running { stub, task }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the coordinator has answered a beat, and its stream is open.
    pub(super) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Relaxed)
    }

    async fn run(&self) {
        let mut backoff = BACKOFF.0;
        loop {
            let began = Instant::now();
            let ended = self.beat().await;
            self.is_heard.store(false, Ordering::Relaxed);
            if ended.is_err() {
                self.counts.breaks.fetch_add(1, Ordering::Relaxed);
            }
            if began.elapsed() > SILENCE_MAX {
                backoff = BACKOFF.0;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Joins and beats until the stream breaks, or the coordinator wants it to
    /// join anew.
    async fn beat(&self) -> Result<()> {
        let endpoint = endpoint(&self.coordinator).map_err(|failure| failure.to_status())?;
        let channel = endpoint.connect().await.context("connect")?;
        let mut client = ClusterClient::new(channel)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reply = self.join(&mut client).await?;
        let interval = Duration::from_millis(reply.beat_interval_ms.clamp(50, 1_000).into());
        let (mut beats, outgoing) = mpsc::channel(4);
        let opened = timeout(JOIN_MAX, client.heartbeat(outgoing)).await.context("open the stream")?;
        let mut orders = opened?.into_inner();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut asked_at: Option<Instant> = None;
        loop {
            let mut fetched = Vec::new();
            tokio::select! {
                _ = ticks.tick() => {}
                received = orders.message() => {
                    let Some(mut received) = received? else { bail!("the coordinator ended the stream") };
                    if received.rejoin {
                        return Ok(());
                    }
                    heard_at = Instant::now();
                    if let Some(asked_at) = asked_at.take() {
                        self.counts.answered_in(asked_at.elapsed());
                    }
                    self.is_heard.store(true, Ordering::Relaxed);
                    self.term.fetch_max(received.term, Ordering::Relaxed);
                    if received.after_join < self.joins.load(Ordering::Relaxed) {
                        // It is about to hear of what is here.
                        received.discard.clear();
                    }
                    let report = received.report;
                    fetched = self.obey(received);
                    if report {
                        self.join(&mut client).await?;
                        heard_at = Instant::now();
                    }
                    if fetched.is_empty() {
                        continue;
                    }
                }
            }
            if heard_at.elapsed() > SILENCE_MAX {
                bail!("the coordinator was silent for {SILENCE_MAX:?}");
            }
            let beat = Beat {
                worker: self.name.clone(),
                incarnation: self.name.clone(),
                disk_free_bytes: DISK_BYTES,
                fetched,
                ..Beat::default()
            };
            match beats.try_send(beat) {
                Ok(()) => {
                    asked_at.get_or_insert_with(Instant::now);
                }
                // What was copied is told with the next join.
                Err(_full) => bail!("the coordinator takes no beats"),
            }
        }
    }

    async fn join(&self, client: &mut ClusterClient<Channel>) -> Result<JoinReply> {
        let held =
            |(name, bytes): (&SegmentName, &u64)| HeldSegment { name: name.to_string(), bytes: *bytes };
        let request = JoinRequest {
            worker: self.name.clone(),
            address: self.address.clone(),
            zone: self.zone.clone(),
            memory_bytes: MEMORY_BYTES,
            threads: THREADS,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            held: self.held.lock().iter().map(held).collect(),
            incarnation: self.name.clone(),
            cluster: self.cluster.clone(),
            drain: false,
            term: self.term.load(Ordering::Relaxed),
            number: self.joins.fetch_add(1, Ordering::Relaxed) + 1,
            disk: String::new(),
        };
        let joined = timeout(JOIN_MAX, client.join(request)).await.context("no answer to the join")?;
        let mut reply = joined?.into_inner();
        self.term.fetch_max(reply.term, Ordering::Relaxed);
        let discard = std::mem::take(&mut reply.discard);
        self.obey(Orders { discard, ..Orders::default() });
        Ok(reply)
    }

    /// Carries out orders; what it has copied.
    fn obey(&self, orders: Orders) -> Vec<String> {
        if orders.fetch.is_empty() && orders.discard.is_empty() {
            return Vec::new();
        }
        self.counts.fetches.fetch_add(orders.fetch.len() as u64, Ordering::Relaxed);
        self.counts.discards.fetch_add(orders.discard.len() as u64, Ordering::Relaxed);
        let mut held = self.held.lock();
        for name in orders.discard.iter().filter_map(|name| name.parse::<SegmentName>().ok()) {
            held.remove(&name);
        }
        let mut fetched = Vec::with_capacity(orders.fetch.len());
        for request in orders.fetch {
            if let Ok(name) = request.name.parse::<SegmentName>() {
                held.insert(name, request.bytes);
                fetched.push(request.name);
            }
        }
        fetched
    }
}
