//! Brings this worker's segments to what coordinators order: fetches
//! copies from peers, removes what nobody needs.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_data::file_stream::{self, STALL_MAX};
use shoal_data::shard_store::ReportDamage;
use shoal_proto::cluster::FetchRequest;
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::reports::{Reporters, Reports};
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
    reporters: Reporters,
}

impl ReportDamage for Replicator {
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
            permits: Semaphore::new(FETCHES_MAX),
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
        if !self.0.under_way.lock().insert(name) {
            return Ok(None);
        }
        while self.0.leaving.lock().contains(&name) {
            tokio::time::sleep(REMOVAL_WAIT).await;
        }
        let done = self.fetch_once(name, &request).await;
        self.0.under_way.lock().remove(&name);
        done?;
        // What is about to be removed is as good as gone.
        if !self.0.leaving.lock().contains(&name) {
            self.0.reporters.fetched(name);
        }
        Ok(Some(result))
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
