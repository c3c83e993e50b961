//! Brings this worker's segments to what coordinators order: fetches
//! copies from peers, removes what nobody needs.
//!
//! What is urgent and what only moves have a lane each, so that neither waits
//! for the other.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_data::file_stream::{self, STALL_MAX};
use shoal_data::shard_store::ReportDamage;
use shoal_proto::cluster::{FetchRequest, Location};
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::pace::Pace;
use crate::reports::{Reporters, Reports};
use crate::segment_dir::{SegmentDir, Staging};
use crate::segments::blocking;

/// Urgent copies that are made at a time: while one is made durable, the next
/// one comes. More are not faster, and would only take from queries.
const URGENT_MAX: usize = 2;
/// Other copies that are made at a time: one can take all that the rate allows.
const MOVES_MAX: usize = 1;

/// Pieces that came and are not written yet, of one copy.
const CHUNKS_AHEAD: usize = 4;

/// How often a copy that is ordered looks whether the old one is removed.
const REMOVAL_WAIT: Duration = Duration::from_millis(20);

/// Carries out orders. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: Arc<SegmentDir>,
    channels: Channels,
    /// Where the work is done: never on the heartbeat's thread.
    io: Handle,
    tasks: TaskTracker,
    urgent: Lane,
    moves: Lane,
    /// Copies that are being made or wait for that; cancelled is whichever is
    /// urgent, from the start or by now.
    under_way: Mutex<HashMap<SegmentName, CancellationToken>>,
    /// What is about to be removed. A copy that is ordered later waits for that.
    leaving: Mutex<HashSet<SegmentName>>,
    reporters: Reporters,
}

/// One copy that is being made or waits for that. It is no more when this is
/// dropped: whoever waited for it may be gone before its end.
struct UnderWay<'a> {
    replicator: &'a Replicator,
    name: SegmentName,
    /// Cancelled when it is urgent.
    urgent: CancellationToken,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.replicator.0.under_way.lock().remove(&self.name);
    }
}

/// Copies of one kind: so many at a time, at one rate together.
#[derive(Debug)]
struct Lane {
    permits: Semaphore,
    pace: Mutex<Pace>,
    /// As the newest order has it.
    bytes_per_second: AtomicU64,
}

impl Lane {
    fn of(copies: usize) -> Self {
        Self { permits: Semaphore::new(copies), pace: Mutex::default(), bytes_per_second: AtomicU64::new(0) }
    }

    /// Counts bytes that came; how long to wait before more do.
    fn pay(&self, bytes: u64) -> Duration {
        self.pace.lock().pay(Instant::now(), bytes, self.bytes_per_second.load(Ordering::Relaxed))
    }
}

impl ReportDamage for Replicator {
    fn has(&self, name: &SegmentName) -> bool {
        self.0.dir.bytes_of(name).is_some()
    }

    /// A damaged segment is as good as none: it is set aside, and a coordinator
    /// orders a copy of a peer's.
    fn damaged(&self, name: &SegmentName, what: &io::Error) {
        if self.0.dir.bytes_of(name).is_none() {
            return;
        }
        self.0.dir.set_aside(name, what);
        self.0.reporters.tell_anew();
    }
}

impl Replicator {
    /// Works on `dir`, on the runtime `io`.
    pub fn new(dir: Arc<SegmentDir>, channels: Channels, io: Handle) -> Self {
        Self(Arc::new(Inner {
            dir,
            channels,
            io,
            tasks: TaskTracker::new(),
            urgent: Lane::of(URGENT_MAX),
            moves: Lane::of(MOVES_MAX),
            under_way: Mutex::default(),
            leaving: Mutex::default(),
            reporters: Reporters::default(),
        }))
    }

    /// Starts what a coordinator orders; returns at once. What was ordered
    /// already and is not done yet is not begun a second time.
    pub fn obey(&self, fetch: Vec<FetchRequest>, discard: &[String]) {
        let names = self.new_among(discard);
        if !names.is_empty() {
            let replicator = self.clone();
            self.0.tasks.spawn_on(
                async move {
                    match replicator.discard(names.clone()).await {
                        Ok(count) => tracing::info!(count, "segments removed"),
                        Err(error) => tracing::warn!(%error, "segments not removed"),
                    }
                    replicator.0.leaving.lock().retain(|name| !names.contains(name));
                },
                &self.0.io,
            );
        }
        for request in fetch {
            let replicator = self.clone();
            self.0.tasks.spawn_on(
                async move {
                    let name = request.name.clone();
                    match replicator.fetch_alone(request).await {
                        Ok(Some(_)) => {}
                        Ok(None) => tracing::debug!(segment = %name, "copy is being made already"),
                        Err(error) => tracing::warn!(segment = %name, %error, "copy not made"),
                    }
                },
                &self.0.io,
            );
        }
    }

    /// Those that are not about to be removed already: a copy that is ordered
    /// after the first removal must not fall to a second one.
    fn new_among(&self, discard: &[String]) -> Vec<SegmentName> {
        let mut leaving = self.0.leaving.lock();
        let names = discard.iter().filter_map(|name| name.parse::<SegmentName>().ok());
        names.filter(|name| leaving.insert(*name)).collect()
    }

    /// What is about to be removed: whoever counts on it would count on nothing.
    pub fn leaving(&self) -> HashSet<SegmentName> {
        self.0.leaving.lock().clone()
    }

    /// From here on gathers what one coordinator must be told: from before it
    /// is told all that is here, so that nothing falls between.
    pub fn subscribe(&self) -> Reports {
        self.0.reporters.subscribe()
    }

    /// Bytes of rows, segments and copies that came from other zones.
    pub fn cross_zone_bytes(&self) -> u64 {
        self.0.channels.zone().crossed_bytes()
    }

    /// The segment with this number was staged, and its sender is gone. Where it
    /// was begun before a coordinator was told what is here, it is adopted or
    /// discarded when all are told anew.
    pub fn staged_for_nobody(&self, number: u64) {
        if self.0.dir.is_late(number) {
            tracing::warn!("a segment came after a coordinator was told what is here: all are told anew");
            self.0.reporters.tell_anew();
        }
    }

    /// Makes sure that the segment is here, from the first peer that delivers
    /// it whole. Returns its length and checksum.
    ///
    /// # Errors
    /// `Unavailable` where no peer delivers it; `DiskFull`; `Io`.
    pub async fn fetch(&self, request: FetchRequest) -> Result<(u64, u32), Error> {
        let name = request.name.clone();
        let fetched = self.fetch_alone(request).await?;
        fetched.ok_or_else(|| Error::Invalid(format!("segment {name} is being fetched already")))
    }

    /// None where it is being fetched already.
    async fn fetch_alone(&self, request: FetchRequest) -> Result<Option<(u64, u32)>, Error> {
        let name: SegmentName = request.name.parse()?;
        let result = (request.bytes, request.crc32c);
        let Some(under_way) = self.begin(name, &request) else { return Ok(None) };
        while self.0.leaving.lock().contains(&name) {
            tokio::time::sleep(REMOVAL_WAIT).await;
        }
        let done = self.fetch_once(name, &request, &under_way.urgent).await;
        // Whoever is told of it may order it again.
        drop(under_way);
        done?;
        // What is about to be removed is as good as gone.
        if !self.0.leaving.lock().contains(&name) {
            self.0.reporters.fetched(name);
        }
        Ok(Some(result))
    }

    /// Takes note of a copy that is to be made. None where it is being made already;
    /// an urgent order hurries that.
    fn begin(&self, name: SegmentName, request: &FetchRequest) -> Option<UnderWay<'_>> {
        self.lane(request.urgent).bytes_per_second.store(request.bytes_per_second, Ordering::Relaxed);
        let mut under_way = self.0.under_way.lock();
        let is_new = !under_way.contains_key(&name);
        let urgent = under_way.entry(name).or_default();
        if request.urgent {
            urgent.cancel();
        }
        is_new.then(|| UnderWay { replicator: self, name, urgent: urgent.clone() })
    }

    fn lane(&self, is_urgent: bool) -> &Lane {
        if is_urgent { &self.0.urgent } else { &self.0.moves }
    }

    /// Waits for its turn; what becomes urgent meanwhile waits no longer than
    /// others that are.
    async fn turn(&self, urgent: &CancellationToken) -> Result<SemaphorePermit<'_>, Error> {
        let turn = tokio::select! {
            biased;
            () = urgent.cancelled() => self.0.urgent.permits.acquire().await,
            turn = self.0.moves.permits.acquire() => turn,
        };
        turn.map_err(|closed| Error::Internal(closed.to_string()))
    }

    /// Waits as long as the rate asks for after so many bytes.
    async fn rest(&self, bytes: u64, urgent: &CancellationToken) {
        let is_urgent = urgent.is_cancelled();
        let wait = self.lane(is_urgent).pay(bytes);
        if wait.is_zero() {
            return;
        }
        if is_urgent {
            tokio::time::sleep(wait).await;
        } else {
            let _until_urgent = tokio::time::timeout(wait, urgent.cancelled()).await;
        }
    }

    async fn fetch_once(
        &self,
        name: SegmentName,
        request: &FetchRequest,
        urgent: &CancellationToken,
    ) -> Result<(), Error> {
        if self.0.dir.bytes_of(&name) == Some(request.bytes) {
            return Ok(());
        }
        let _turn = self.turn(urgent).await?;
        let mut tried = Vec::new();
        for peer in &request.from {
            match self.fetch_from(name, request, peer, urgent).await {
                Ok(()) => {
                    tracing::info!(segment = %name, from = %peer.worker, "copy made");
                    return Ok(());
                }
                // Another peer does not make room.
                Err(error) if error.code() == ErrorCode::Exhausted => return Err(error),
                Err(error) => tried.push(format!("{}: {error}", peer.worker)),
            }
        }
        Err(Error::Failure(Failure::new(
            ErrorCode::Unavailable,
            format!("segment {name} cannot be fetched from anybody ({})", tried.join("; ")),
        )))
    }

    async fn fetch_from(
        &self,
        name: SegmentName,
        request: &FetchRequest,
        peer: &Location,
        urgent: &CancellationToken,
    ) -> Result<(), Error> {
        let (bytes, crc32c) = (request.bytes, request.crc32c);
        let data = file_stream::receive_unsummed(
            &self.0.channels,
            &peer.address,
            &request.name,
            0..bytes,
            STALL_MAX,
        );
        let data = data.await?;
        let dir = Arc::clone(&self.0.dir);
        let (chunks, mut to_write) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
        // While one piece is written, the next one comes.
        let writing = tokio::task::spawn_blocking(move || {
            let mut staging = dir.stage(name, bytes, crc32c)?;
            while let Some(chunk) = to_write.blocking_recv() {
                staging.write(&chunk)?;
            }
            Ok::<_, Error>(staging)
        });
        let received = self.pass_on(data, chunks, peer, urgent).await;
        let staging = writing.await.unwrap_or_else(|join| Err(Error::Internal(join.to_string())))?;
        received?;
        // Here it is looked at whether the bytes are those that were announced.
        blocking(move || Staging::finish(staging)).await?;
        Ok(())
    }

    /// Passes on what comes from a peer, as fast as the rate allows.
    async fn pass_on(
        &self,
        mut data: BoxStream<'static, Result<Bytes, Failure>>,
        chunks: mpsc::Sender<Bytes>,
        peer: &Location,
        urgent: &CancellationToken,
    ) -> Result<(), Error> {
        while let Some(chunk) = data.next().await {
            let chunk = chunk?;
            let length = chunk.len() as u64;
            self.0.channels.zone().received(&peer.zone, length);
            if chunks.send(chunk).await.is_err() {
                // Writing has failed, and says why.
                break;
            }
            self.rest(length, urgent).await;
        }
        Ok(())
    }

    /// Removes segments; how many were here.
    ///
    /// # Errors
    /// `Io`; the others are removed all the same.
    pub async fn discard(&self, names: Vec<SegmentName>) -> Result<u32, Error> {
        let dir = Arc::clone(&self.0.dir);
        blocking(move || {
            let mut removed = 0;
            let mut failed = None;
            for name in names {
                match dir.remove(&name) {
                    Ok(was_here) => removed += u32::from(was_here),
                    Err(error) => failed = Some(error),
                }
            }
            failed.map_or(Ok(removed), Err)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
