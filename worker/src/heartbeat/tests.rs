//! Claims about the heartbeat, against coordinators that are servers.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use shoal_data::DataDir;
use shoal_data::shard_store::LocalSegments;
use shoal_proto::ErrorCode;
use shoal_proto::cluster::cluster_server::{Cluster, ClusterServer};
use shoal_proto::cluster::{Beat, JoinReply, JoinRequest, LocateReply, LocateRequest, Orders};
use shoal_proto::server::{self, Incoming};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::identity::Identity;

/// Some time for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// From where on a coordinator hears everything and answers nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MuteFrom {
    Join,
    Stream,
    Beats,
    #[default]
    Never,
}

/// A coordinator of cluster `c`. All clones are one.
#[derive(Clone, Default)]
struct Coordinator {
    mute_from: MuteFrom,
    /// Whether it answers no beat any more.
    is_mute: Arc<AtomicBool>,
    /// What it says of who there is.
    list: Arc<Mutex<Vec<String>>>,
    /// What it answers to the next beats.
    orders: Arc<Mutex<VecDeque<Orders>>>,
    /// What it sends besides.
    unasked: Arc<Mutex<Option<mpsc::UnboundedSender<Orders>>>>,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    joins: Vec<JoinRequest>,
    streams: usize,
    beats: Vec<Beat>,
}

#[async_trait]
impl Cluster for Coordinator {
    type HeartbeatStream = BoxStream<'static, Result<Orders, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        self.heard.lock().joins.push(request.into_inner());
        if self.mute_from == MuteFrom::Join {
            std::future::pending::<()>().await;
        }
        let (cluster, coordinators) = ("c".to_owned(), self.list.lock().clone());
        Ok(Response::new(JoinReply { cluster, coordinators, beat_interval_ms: 50, ..JoinReply::default() }))
    }

    async fn heartbeat(
        &self,
        beats: Request<Streaming<Beat>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        self.heard.lock().streams += 1;
        if self.mute_from == MuteFrom::Stream {
            std::future::pending::<()>().await;
        }
        let coordinator = self.clone();
        let answers = beats.into_inner().filter_map(move |beat| {
            coordinator.heard.lock().beats.extend(beat.ok());
            let orders = coordinator.orders.lock().pop_front().unwrap_or_default();
            let is_mute =
                coordinator.mute_from == MuteFrom::Beats || coordinator.is_mute.load(Ordering::Relaxed);
            std::future::ready((!is_mute).then_some(Ok(orders)))
        });
        let (sender, unasked) = mpsc::unbounded_channel();
        *self.unasked.lock() = Some(sender);
        let unasked = UnboundedReceiverStream::new(unasked).map(Ok);
        Ok(Response::new(stream::select(answers, unasked).boxed()))
    }

    async fn locate(&self, _: Request<LocateRequest>) -> Result<Response<LocateReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

impl Coordinator {
    /// Sends orders on the newest stream, whether there was a beat or not.
    fn send(&self, orders: Orders) {
        self.unasked.lock().as_ref().unwrap().send(orders).unwrap();
    }

    fn mute_from(mute_from: MuteFrom) -> Self {
        Self { mute_from, ..Self::default() }
    }

    /// Begins to serve; its URL.
    async fn start(&self) -> String {
        let (listener, url) = bound().await;
        self.serve(listener);
        url
    }

    fn serve(&self, listener: TcpListener) {
        let service = ClusterServer::new(self.clone());
        tokio::spawn(server::builder().add_service(service).serve_with_incoming(Incoming::new(listener)));
    }

    /// How often it was joined, on how many streams, with how many beats.
    fn counts(&self) -> (usize, usize, usize) {
        let heard = self.heard.lock();
        (heard.joins.len(), heard.streams, heard.beats.len())
    }

    /// Waits until it is beaten at a few more times.
    async fn beaten_at(&self) {
        let before = self.counts().2;
        eventually("beats", || self.counts().2 > before + 2).await;
    }
}

/// Where somebody will listen.
async fn bound() -> (TcpListener, String) {
    let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    (listener, format!("http://{address}"))
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, waited).await.is_ok(), "still waited for: {what}");
}

/// A worker that runs nothing.
struct Idle;

impl ExecutionStatus for Idle {
    fn progress(&self) -> Vec<QueryProgress> {
        Vec::new()
    }

    fn tasks_running(&self) -> u32 {
        0
    }

    fn memory_used_bytes(&self) -> u64 {
        0
    }
}

/// The heartbeat of a worker that keeps its data below `root`.
fn parts(root: &Path, seeds: &[String]) -> HeartbeatParts {
    let data_dir = DataDir::lock(root).unwrap();
    let dir = Arc::new(SegmentDir::open(&data_dir).unwrap());
    let io = tokio::runtime::Handle::current();
    let replicator = Replicator::new(Arc::clone(&dir), Channels::new(io.clone()), io);
    let local = LocalSegments::new(dir.path().to_owned(), Arc::new(replicator.clone()));
    HeartbeatParts {
        coordinators: Arc::new(Coordinators::new(seeds.to_vec())),
        identity: Arc::new(KeptIdentity::new(Identity::load(root, Some("w1")).unwrap(), root)),
        listening: Ipv4Addr::LOCALHOST.into(),
        introduction: Introduction {
            address: "http://127.0.0.1:1".to_owned(),
            zone: String::new(),
            memory_bytes: 1,
            threads: 1,
        },
        scrub: Scrub::new(Arc::clone(&dir), Arc::new(local), 0),
        dir,
        replicator,
        status: Arc::new(Idle),
        rows_loaded: Arc::default(),
    }
}

/// The heartbeat of a worker at these coordinators.
fn started(seeds: &[String]) -> (TempDir, Heartbeat) {
    let root = tempfile::tempdir().unwrap();
    let heartbeat = Heartbeat::start(parts(root.path(), seeds)).unwrap();
    (root, heartbeat)
}

#[tokio::test]
async fn a_coordinator_that_falls_silent_is_given_up() {
    // Five seconds for each of the first two, and less than two between a
    // beat and its answer; the rest is for a busy machine.
    let cases = [(MuteFrom::Join, 7), (MuteFrom::Stream, 7), (MuteFrom::Beats, 4)];
    let ended = cases.map(|(mute_from, limit_s)| async move {
        let url = Coordinator::mute_from(mute_from).start().await;
        let root = tempfile::tempdir().unwrap();
        let channels = Channels::new(tokio::runtime::Handle::current());
        let worker = Worker::new(parts(root.path(), &[]), channels, Wishes::default());
        let beating = Beating::new(url, worker);
        let beats = tokio::time::timeout(Duration::from_secs(limit_s), beating.beat()).await;
        let ended = beats.unwrap_or_else(|_| panic!("{mute_from:?}: still waited for"));
        let failure = ended.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable, "{mute_from:?}: {failure}");
    });
    join_all(ended).await;
}

#[tokio::test]
async fn every_coordinator_is_joined_and_beaten_at() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let seeds = [coordinators[0].start().await, coordinators[1].start().await];
    let (_root, _heartbeat) = started(&seeds);
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
        // Neither has the worker to itself.
        coordinator.beaten_at().await;
        let (joins, streams, _) = coordinator.counts();
        assert_eq!((joins, streams), (1, 1));
    }
    let incarnation = |it: &Coordinator| it.heard.lock().joins[0].incarnation.clone();
    assert_eq!(incarnation(&coordinators[0]), incarnation(&coordinators[1]));
}

#[tokio::test]
async fn a_mute_coordinator_delays_no_other() {
    let well = Coordinator::default();
    let mute = [MuteFrom::Join, MuteFrom::Stream, MuteFrom::Beats].map(Coordinator::mute_from);
    let mut seeds = join_all(mute.iter().map(Coordinator::start)).await;
    // Nobody is there.
    seeds.push(bound().await.1);
    seeds.push(well.start().await);
    let before = Instant::now();
    let (_root, _heartbeat) = started(&seeds);
    well.beaten_at().await;
    // The first of the others takes five seconds to be given up.
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    for (mute, joins) in mute.iter().zip([2, 2, 4]) {
        eventually("it is tried again", || mute.counts().0 >= joins).await;
    }
    let (joins, streams, beats) = well.counts();
    assert_eq!((joins, streams), (1, 1));
    // There were at least some 100 ticks.
    assert!(beats > 40, "{beats}");
}

#[tokio::test]
async fn a_list_brings_coordinators_and_is_kept() {
    let [seed, named_at_join, named_later] = [(); 3].map(|()| Coordinator::default());
    let [(first, a), (second, b), (third, c)] = [bound().await, bound().await, bound().await];
    *seed.list.lock() = vec![a.clone(), b.clone()];
    seed.serve(first);
    named_at_join.serve(second);
    named_later.serve(third);
    let (root, heartbeat) = started(std::slice::from_ref(&a));
    named_at_join.beaten_at().await;
    assert_eq!(named_later.counts(), (0, 0, 0));
    let all = vec![a, b, c];
    let news = Orders { coordinators: all.clone(), ..Orders::default() };
    seed.orders.lock().push_back(news);
    named_later.beaten_at().await;
    for coordinator in [&seed, &named_at_join] {
        let (joins, streams, _) = coordinator.counts();
        assert_eq!((joins, streams), (1, 1));
    }
    let mut sorted = all;
    sorted.sort_unstable();
    let is_kept = || Identity::load(root.path(), None).is_ok_and(|identity| identity.coordinators == sorted);
    eventually("the list is durable", is_kept).await;
    drop(heartbeat);
    assert_eq!(Identity::load(root.path(), None).unwrap().cluster, "c");
}

#[tokio::test]
async fn a_second_url_of_a_coordinator_is_left() {
    // Two servers stand for one process with two addresses.
    let (by_seed, by_list) = (Coordinator::default(), Coordinator::default());
    let (seed, listed) = (by_seed.start().await, by_list.start().await);
    *by_seed.list.lock() = vec![listed.clone()];
    *by_list.list.lock() = vec![listed];
    let (_root, heartbeat) = started(std::slice::from_ref(&seed));
    by_list.beaten_at().await;
    by_seed.orders.lock().push_back(Orders { rejoin: true, ..Orders::default() });
    eventually("it is left", || !heartbeat.coordinators.in_order().contains(&seed)).await;
    let (joins, _, beats) = by_seed.counts();
    by_list.beaten_at().await;
    assert_eq!((joins, by_seed.counts().0), (1, 1));
    assert!(by_seed.counts().2 <= beats + 1, "it still beats there");
}

#[tokio::test]
async fn a_coordinator_of_another_cluster_is_refused() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    parts.identity.belong_to("another").unwrap();
    let _heartbeat = Heartbeat::start(parts).unwrap();
    eventually("it is tried again", || coordinator.counts().0 > 2).await;
    assert_eq!(coordinator.counts().1, 0);
    assert!(coordinator.heard.lock().joins.iter().all(|join| join.cluster == "another"));
}

#[tokio::test]
async fn a_coordinator_that_asks_is_told_anew_on_the_same_stream() {
    let (curious, other) = (Coordinator::default(), Coordinator::default());
    let seeds = [curious.start().await, other.start().await];
    let (_root, _heartbeat) = started(&seeds);
    curious.beaten_at().await;
    other.beaten_at().await;
    curious.orders.lock().push_back(Orders { report: true, ..Orders::default() });
    eventually("a second join", || curious.counts().0 == 2).await;
    curious.beaten_at().await;
    let of = |it: &Coordinator| (it.counts().0, it.counts().1);
    assert_eq!((of(&curious), of(&other)), ((2, 1), (1, 1)));
}

mod drains;
mod segments;
