//! Brings this worker's segments to what the coordinator orders: fetches
//! copies from peers, removes what nobody needs.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_data::file_stream::{self, STALL_MAX};
use shoal_data::shard_store::ReportDamage;
use shoal_proto::cluster::FetchRequest;
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::segment_dir::{SegmentDir, Staging};
use crate::segments::blocking;

/// Copies that are made at a time.
const FETCHES_MAX: usize = 2;

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
    permits: Semaphore,
    under_way: Mutex<HashSet<SegmentName>>,
    /// What is about to be removed. A copy that is ordered later waits for that.
    leaving: Mutex<HashSet<SegmentName>>,
    fetched: Mutex<Vec<SegmentName>>,
    /// Whether segments were lost, or came late, since the coordinator was
    /// told what is here.
    has_lost: AtomicBool,
    news: Notify,
}

impl ReportDamage for Replicator {
    /// A damaged segment is as good as none: it is set aside, and the
    /// coordinator orders a copy of a peer's.
    fn damaged(&self, name: &SegmentName, what: &io::Error) {
        if self.0.dir.bytes_of(name).is_none() {
            return;
        }
        self.0.dir.set_aside(name, what);
        self.tell_anew();
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
            permits: Semaphore::new(FETCHES_MAX),
            under_way: Mutex::default(),
            leaving: Mutex::default(),
            fetched: Mutex::default(),
            has_lost: AtomicBool::new(false),
            news: Notify::new(),
        }))
    }

    /// Starts what the coordinator orders; returns at once.
    pub fn obey(&self, fetch: Vec<FetchRequest>, discard: &[String]) {
        let names: Vec<SegmentName> = discard.iter().filter_map(|name| name.parse().ok()).collect();
        if !names.is_empty() {
            self.0.leaving.lock().extend(names.iter().copied());
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
                    if let Err(error) = replicator.fetch(request).await {
                        tracing::warn!(segment = %name, %error, "copy not made");
                    }
                },
                &self.0.io,
            );
        }
    }

    /// Copies made since the last call.
    pub fn take_fetched(&self) -> Vec<SegmentName> {
        std::mem::take(&mut self.0.fetched.lock())
    }

    /// The segment with this number was staged, and its sender is gone. Where it
    /// was begun before the coordinator was told what is here, it is adopted or
    /// discarded when the worker joins again.
    pub fn staged_for_nobody(&self, number: u64) {
        if self.0.dir.is_late(number) {
            tracing::warn!("a segment came after the coordinator was told what is here: it is told anew");
            self.tell_anew();
        }
    }

    fn tell_anew(&self) {
        self.0.has_lost.store(true, Ordering::Relaxed);
        self.0.news.notify_one();
    }

    /// Whether segments were lost or came late since the last call: the
    /// coordinator must be told anew what is here.
    pub fn take_lost(&self) -> bool {
        self.0.has_lost.swap(false, Ordering::Relaxed)
    }

    /// Waits until a copy is made, or one is lost.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// Makes sure that the segment is here, from the first peer that delivers
    /// it whole. Returns its length and checksum.
    ///
    /// # Errors
    /// `Unavailable` where no peer delivers it; `DiskFull`; `Io`.
    pub async fn fetch(&self, request: FetchRequest) -> Result<(u64, u32), Error> {
        let name: SegmentName = request.name.parse()?;
        let result = (request.bytes, request.crc32c);
        if !self.0.under_way.lock().insert(name) {
            return Err(Error::Invalid(format!("segment {name} is being fetched already")));
        }
        while self.0.leaving.lock().contains(&name) {
            tokio::time::sleep(REMOVAL_WAIT).await;
        }
        let done = self.fetch_once(name, &request).await;
        self.0.under_way.lock().remove(&name);
        done?;
        self.0.fetched.lock().push(name);
        self.0.news.notify_one();
        Ok(result)
    }

    async fn fetch_once(&self, name: SegmentName, request: &FetchRequest) -> Result<(), Error> {
        if self.0.dir.bytes_of(&name) == Some(request.bytes) {
            return Ok(());
        }
        let _permit = self.0.permits.acquire().await.map_err(|closed| Error::Internal(closed.to_string()))?;
        let mut tried = Vec::new();
        for peer in &request.from {
            match self.fetch_from(name, request, &peer.address).await {
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
        address: &str,
    ) -> Result<(), Error> {
        let (bytes, crc32c) = (request.bytes, request.crc32c);
        let mut data =
            file_stream::receive(&self.0.channels, address, &request.name, 0..bytes, STALL_MAX).await?;
        let dir = Arc::clone(&self.0.dir);
        let mut staging = blocking(move || dir.stage(name, bytes, crc32c)).await?;
        while let Some(chunk) = data.next().await {
            let chunk = chunk?;
            staging = blocking(move || {
                staging.write(&chunk)?;
                Ok(staging)
            })
            .await?;
        }
        blocking(move || Staging::finish(staging)).await?;
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
