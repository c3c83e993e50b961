//! The other side of a load: what its coordinator says of the workers, and what it
//! is told before a segment is staged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_data::load::{Announce, Holders};
use shoal_proto::cluster::load_news::News;
use shoal_proto::cluster::{LoadNews, LoadSuspect, LoadWorkers, StageHeader};
use shoal_proto::{ErrorCode, Failure, WorkerId};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::replicate::Replicator;
use crate::segment_dir::SegmentDir;
use crate::segments::{begun, blocking, finished};

/// A worker that has not been live for so long is not about to be.
const LOST_AFTER: Duration = Duration::from_millis(500);

type NewsSender = mpsc::Sender<Result<LoadNews, Status>>;

/// A worker, as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    address: Option<String>,
    is_live: bool,
}

type AllKnown = HashMap<WorkerId, Known>;

/// Whom the coordinator tells of.
#[derive(Debug)]
pub(super) struct KnownWorkers(watch::Sender<AllKnown>);

impl KnownWorkers {
    /// From now on they are so.
    pub(super) fn tell(&self, workers: LoadWorkers) {
        let known = workers.workers.into_iter().map(|worker| {
            let address = Some(worker.address).filter(|address| !address.is_empty());
            (WorkerId::new(worker.worker), Known { address, is_live: worker.is_live })
        });
        self.0.send_replace(known.collect());
    }
}

/// The workers of a load; this one is among them, or not.
pub(super) struct LoadHolders {
    me: WorkerId,
    dir: Arc<SegmentDir>,
    replicator: Replicator,
    known: watch::Receiver<AllKnown>,
    news: NewsSender,
}

impl LoadHolders {
    /// Workers of whom nothing is known yet, and where it is to be told.
    pub(super) fn new(
        me: WorkerId,
        dir: Arc<SegmentDir>,
        replicator: Replicator,
        news: NewsSender,
    ) -> (Self, KnownWorkers) {
        let (sender, known) = watch::channel(AllKnown::new());
        (Self { me, dir, replicator, known, news }, KnownWorkers(sender))
    }

    /// Makes a segment durable in this worker's own directory, as one that is sent
    /// here; the id of its disk.
    async fn store(&self, header: StageHeader, bytes: Bytes) -> Result<String, Failure> {
        let dir = Arc::clone(&self.dir);
        let written = blocking(move || {
            let mut staging = begun(&dir, &header)?;
            staging.write(&bytes)?;
            Ok(staging)
        });
        finished(written.await?, &self.replicator).await?;
        Ok(self.dir.disk().to_owned())
    }
}

impl Holders for LoadHolders {
    fn address(&self, worker: &WorkerId) -> Option<String> {
        self.known.borrow().get(worker)?.address.clone()
    }

    fn joined<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut known = self.known.clone();
            let is_there =
                |known: &AllKnown| known.get(worker).is_some_and(|worker| worker.address.is_some());
            if known.wait_for(is_there).await.is_err() {
                // The load is over.
                std::future::pending().await
            }
        })
    }

    fn lost<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()> {
        let is_live = move |known: &AllKnown| known.get(worker).is_some_and(|worker| worker.is_live);
        Box::pin(async move {
            let mut known = self.known.clone();
            loop {
                if known.wait_for(|known| !is_live(known)).await.is_err() {
                    return;
                }
                // A worker that is only suspected beats again soon.
                let is_back = known.wait_for(is_live);
                let is_back = matches!(tokio::time::timeout(LOST_AFTER, is_back).await, Ok(Ok(_)));
                if !is_back {
                    return;
                }
            }
        })
    }

    fn suspect(&self, worker: &WorkerId, why: &str) {
        let suspect = LoadSuspect { worker: worker.to_string(), why: why.to_owned() };
        // Where there is no room for it, the coordinator sees for itself.
        let _full = self.news.try_send(Ok(LoadNews { news: Some(News::Suspect(suspect)) }));
    }

    fn store_here<'a>(
        &'a self,
        worker: &'a WorkerId,
        header: &'a StageHeader,
        bytes: &'a Bytes,
    ) -> Option<BoxFuture<'a, Result<String, Failure>>> {
        (*worker == self.me).then(|| self.store(header.clone(), bytes.clone()).boxed())
    }
}

/// Tells the coordinator of segments, and waits until it knows of them.
pub(super) struct Announced {
    news: NewsSender,
    waiting: Mutex<HashMap<String, oneshot::Sender<()>>>,
}

impl Announced {
    pub(super) fn new(news: NewsSender) -> Self {
        Self { news, waiting: Mutex::default() }
    }

    /// The coordinator knows of this segment.
    pub(super) fn go_on(&self, name: &str) {
        if let Some(waiting) = self.waiting.lock().remove(name) {
            // It may have been given up.
            let _nobody_waits = waiting.send(());
        }
    }

    async fn tell(&self, name: SegmentName) -> Result<(), Failure> {
        let over = || Failure::new(ErrorCode::Cancelled, "the load was given up");
        let (sender, known) = oneshot::channel();
        let name = name.to_string();
        self.waiting.lock().insert(name.clone(), sender);
        let told = self.news.send(Ok(LoadNews { news: Some(News::Staging(name)) })).await;
        told.map_err(|_| over())?;
        known.await.map_err(|_| over())
    }
}

impl Announce for Announced {
    fn announce<'a>(
        &'a self,
        name: SegmentName,
        _workers: &'a [WorkerId],
    ) -> BoxFuture<'a, Result<(), Failure>> {
        self.tell(name).boxed()
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::cluster::LoadWorker;
    use shoal_proto::{Channels, SegmentId, TableId};

    use super::*;

    /// The holders of a load on `w1`, and what belongs to them.
    struct Fixture {
        _root: tempfile::TempDir,
        dir: Arc<SegmentDir>,
        holders: LoadHolders,
        workers: KnownWorkers,
        news: mpsc::Receiver<Result<LoadNews, Status>>,
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let data_dir = shoal_data::DataDir::lock(root.path()).unwrap();
            let dir = Arc::new(SegmentDir::open(&data_dir).unwrap());
            let io = tokio::runtime::Handle::current();
            let replicator = Replicator::new(Arc::clone(&dir), Channels::new(io.clone()), io);
            let (sender, news) = mpsc::channel(4);
            let (holders, workers) = LoadHolders::new("w1".into(), Arc::clone(&dir), replicator, sender);
            Self { _root: root, dir, holders, workers, news }
        }

        fn tell(&self, address: &str, is_live: bool) {
            let worker = LoadWorker { worker: "w2".to_owned(), address: address.to_owned(), is_live };
            self.workers.tell(LoadWorkers { workers: vec![worker] });
        }
    }

    fn name() -> SegmentName {
        SegmentName { table: TableId(1), shard: 0, segment: SegmentId::random() }
    }

    #[tokio::test]
    async fn workers_are_as_the_coordinator_says() {
        let fixture = Fixture::new();
        let w2 = WorkerId::from("w2");
        assert_eq!(fixture.holders.address(&w2), None);
        let joined = fixture.holders.joined(&w2);
        fixture.tell("http://w2", true);
        joined.await;
        assert_eq!(fixture.holders.address(&w2).as_deref(), Some("http://w2"));
        let mut lost = fixture.holders.lost(&w2);
        assert!(futures::poll!(&mut lost).is_pending());
        fixture.tell("http://w2", false);
        assert!(futures::poll!(&mut lost).is_pending(), "it may be back soon");
        assert_eq!(fixture.holders.address(&w2).as_deref(), Some("http://w2"), "suspected");
        lost.await;
        fixture.tell("", false);
        assert_eq!(fixture.holders.address(&w2), None);
    }

    #[tokio::test]
    async fn what_is_for_this_worker_is_not_sent() {
        let fixture = Fixture::new();
        let bytes = Bytes::from_static(b"a segment");
        let header = |name: SegmentName| StageHeader {
            name: name.to_string(),
            bytes: bytes.len() as u64,
            crc32c: shoal_data::checksum::crc32c(&bytes),
            ..StageHeader::default()
        };
        let (w1, w2) = (WorkerId::from("w1"), WorkerId::from("w2"));
        let (here, well) = (&fixture.holders, name());
        assert!(here.store_here(&w2, &header(well), &bytes).is_none());
        let disk = here.store_here(&w1, &header(well), &bytes).unwrap().await.unwrap();
        assert_eq!(fixture.dir.bytes_of(&well), Some(bytes.len() as u64));
        assert_eq!(disk, fixture.dir.disk());
        assert!(!disk.is_empty());
        for (changed, code) in [
            (StageHeader { crc32c: 0, ..header(name()) }, ErrorCode::Corrupt),
            (StageHeader { keep_free_bytes: 1 << 60, ..header(name()) }, ErrorCode::Exhausted),
        ] {
            let failure = here.store_here(&w1, &changed, &bytes).unwrap().await.unwrap_err();
            assert_eq!(failure.code, code, "{failure}");
        }
        assert_eq!(fixture.dir.held(), [(well, bytes.len() as u64)]);
    }

    #[tokio::test]
    async fn a_segment_waits_until_the_coordinator_knows_of_it() {
        let mut fixture = Fixture::new();
        let announced = Announced::new(fixture.holders.news.clone());
        let name = name();
        let mut waiting = announced.announce(name, &[]);
        assert!(futures::poll!(&mut waiting).is_pending());
        let told = fixture.news.recv().await.unwrap().unwrap();
        assert_eq!(told.news, Some(News::Staging(name.to_string())));
        announced.go_on("another");
        assert!(futures::poll!(&mut waiting).is_pending());
        announced.go_on(&name.to_string());
        waiting.await.unwrap();
    }
}
