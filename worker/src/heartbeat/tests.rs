//! Claims about the heartbeat, against coordinators that are servers.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use shoal_data::shard_store::{LocalSegments, ReportDamage};
use shoal_data::{DataDir, SegmentName};
use shoal_proto::cluster::cluster_server::{Cluster, ClusterServer};
use shoal_proto::cluster::{Beat, FetchRequest, JoinReply, JoinRequest, LocateReply, LocateRequest, Orders};
use shoal_proto::server::{self, Incoming};
use shoal_proto::{ErrorCode, SegmentId, TableId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::drain::until_drained;
use crate::identity::Identity;

/// Some time for a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Some beats, and less than a coordinator may be silent.
const SILENT: Duration = Duration::from_millis(500);

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

/// A segment that is here already, as a coordinator orders it.
fn held(dir: &Arc<SegmentDir>) -> FetchRequest {
    let bytes = Bytes::from_static(b"0123");
    let name = SegmentName { table: TableId(3), shard: 0, segment: SegmentId::random() };
    let crc32c = crc32c::crc32c(&bytes);
    let mut staging = dir.stage(name, 4, crc32c).unwrap();
    staging.write(&bytes).unwrap();
    staging.finish().unwrap();
    FetchRequest { name: name.to_string(), bytes: 4, crc32c, ..FetchRequest::default() }
}

#[tokio::test]
async fn what_one_coordinator_orders_is_told_to_all() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let seeds = [coordinators[0].start().await, coordinators[1].start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let request = held(&parts.dir);
    let _heartbeat = Heartbeat::start(parts).unwrap();
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
    }
    let name = request.name.clone();
    coordinators[0].orders.lock().push_back(Orders { fetch: vec![request], ..Orders::default() });
    let told = |it: &Coordinator| {
        let heard = it.heard.lock();
        heard.beats.iter().flat_map(|beat| &beat.fetched).filter(|fetched| **fetched == name).count()
    };
    for coordinator in &coordinators {
        eventually("the copy is told", || told(coordinator) > 0).await;
        coordinator.beaten_at().await;
        assert_eq!(told(coordinator), 1);
        assert_eq!(coordinator.heard.lock().joins[0].held[0].name, name);
    }
}

#[tokio::test]
async fn a_coordinator_of_an_older_term_removes_nothing() {
    let (behind, newest) = (Coordinator::default(), Coordinator::default());
    let seeds = [behind.start().await, newest.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let (dir, name) = (Arc::clone(&parts.dir), held(&parts.dir).name);
    let _heartbeat = Heartbeat::start(parts).unwrap();
    let removes_in = |term| Orders { term, discard: vec![name.clone()], ..Orders::default() };
    newest.orders.lock().push_back(Orders { term: 3, ..Orders::default() });
    newest.beaten_at().await;
    behind.orders.lock().push_back(removes_in(2));
    behind.beaten_at().await;
    assert_eq!(dir.held().len(), 1);
    behind.orders.lock().push_back(removes_in(3));
    eventually("it is removed", || dir.held().is_empty()).await;
}

#[tokio::test]
async fn what_was_ordered_before_the_worker_told_what_is_here_is_not_removed() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let (dir, replicator) = (Arc::clone(&parts.dir), parts.replicator.clone());
    let name = held(&dir).name;
    let _heartbeat = Heartbeat::start(parts).unwrap();
    coordinator.beaten_at().await;
    // As if it had come after what was told first.
    replicator.staged_for_nobody(0);
    eventually("a second join", || coordinator.counts().0 == 2).await;
    let numbers: Vec<u64> = coordinator.heard.lock().joins.iter().map(|join| join.number).collect();
    assert_eq!(numbers, [1, 2]);
    let removes_after = |after_join| Orders { after_join, discard: vec![name.clone()], ..Orders::default() };
    coordinator.orders.lock().push_back(removes_after(1));
    coordinator.beaten_at().await;
    assert_eq!(dir.held().len(), 1);
    coordinator.orders.lock().push_back(removes_after(2));
    eventually("it is removed", || dir.held().is_empty()).await;
}

#[tokio::test]
async fn a_damaged_segment_is_told_to_all_on_the_same_streams() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let seeds = [coordinators[0].start().await, coordinators[1].start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let (replicator, name) = (parts.replicator.clone(), held(&parts.dir).name);
    let _heartbeat = Heartbeat::start(parts).unwrap();
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
    }
    replicator.damaged(&name.parse().unwrap(), &std::io::Error::other("rot"));
    for coordinator in &coordinators {
        eventually("a second join", || coordinator.counts().0 == 2).await;
        coordinator.beaten_at().await;
        let (joins, streams, _) = coordinator.counts();
        assert_eq!((joins, streams), (2, 1));
        let held: Vec<_> = coordinator.heard.lock().joins.iter().map(|join| join.held[0].bytes).collect();
        assert_eq!(held, [4, 0]);
    }
}

#[tokio::test]
async fn who_leads_says_when_a_worker_is_drained() {
    let (behind, newest) = (Coordinator::default(), Coordinator::default());
    let seeds = [behind.start().await, newest.start().await];
    let (_root, heartbeat) = started(&seeds);
    for coordinator in [&behind, &newest] {
        coordinator.beaten_at().await;
    }
    assert_eq!(heartbeat.drain_word(), DrainWord::default());
    heartbeat.drain();
    let is_asked = |it: &Coordinator| it.heard.lock().beats.last().is_some_and(|beat| beat.drain);
    for coordinator in [&behind, &newest] {
        eventually("it is asked for a drain", || is_asked(coordinator)).await;
        assert!(!coordinator.heard.lock().joins[0].drain, "it was asked before");
    }
    // It asks on when it joins again, too.
    newest.orders.lock().push_back(Orders { report: true, ..Orders::default() });
    eventually("a second join", || newest.counts().0 == 2).await;
    assert!(newest.heard.lock().joins[1].drain);

    let says = |it: &Coordinator, term: u64, drained: bool, lacks: &str| {
        let orders = Orders { term, drained, drain_lacks: lacks.to_owned(), ..Orders::default() };
        *it.orders.lock() = vec![orders; 10_000].into();
    };
    let word = |is_done: bool, lacks: &str| DrainWord { is_done, lacks: lacks.to_owned(), closing: 0 };
    says(&newest, 3, false, "");
    newest.beaten_at().await;
    says(&behind, 2, true, "");
    behind.beaten_at().await;
    behind.beaten_at().await;
    assert_eq!(heartbeat.drain_word(), DrainWord::default(), "a coordinator of an older term is believed");
    says(&behind, 2, false, "");
    says(&newest, 3, false, "a worker");
    eventually("it is told what is missing", || heartbeat.drain_word() == word(false, "a worker")).await;
    says(&newest, 3, true, "");
    eventually("it is told that it is drained", || heartbeat.drain_word() == word(true, "")).await;
    says(&newest, 3, false, "");
    eventually("that is taken back", || heartbeat.drain_word() == DrainWord::default()).await;
}

/// From now on says of a worker that it is drained, or that it is not.
fn say_drained(coordinator: &Coordinator, drained: bool) {
    let orders = Orders { drained, ..Orders::default() };
    *coordinator.orders.lock() = vec![orders; 10_000].into();
}

#[tokio::test]
async fn a_word_from_before_a_worker_took_no_more_lets_it_not_go() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let (_root, heartbeat) = started(&seeds);
    say_drained(&coordinator, true);
    eventually("it is told that it is drained", || heartbeat.drain_word().is_done).await;
    // Something was placed there since, and the worker does not know it yet.
    say_drained(&coordinator, false);
    assert!(!heartbeat.is_let_go(Duration::from_millis(500)).await, "an old word is believed");
    say_drained(&coordinator, true);
    assert!(heartbeat.is_let_go(SOON).await);
}

#[tokio::test]
async fn a_worker_that_is_drained_waits_for_what_is_being_written_and_takes_no_more() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let dir = Arc::clone(&parts.dir);
    let heartbeat = Heartbeat::start(parts).unwrap();
    say_drained(&coordinator, true);
    eventually("it is told that it is drained", || heartbeat.drain_word().is_done).await;
    let name = SegmentName { table: TableId(3), shard: 0, segment: SegmentId::random() };
    let written = dir.stage(name, 0, 0).unwrap();
    let draining = until_drained(&heartbeat, &dir);
    tokio::pin!(draining);
    let early = tokio::time::timeout(Duration::from_secs(1), &mut draining).await;
    assert!(early.is_err(), "it does not wait");
    written.finish().unwrap();
    let early = tokio::time::timeout(Duration::from_secs(1), &mut draining).await;
    assert!(early.is_err(), "a write may count on what is here");
    dir.remove(&name).unwrap();
    tokio::time::timeout(SOON, draining).await.expect("still waited for").unwrap();
    assert_eq!(dir.stage(name, 0, 0).unwrap_err().code(), ErrorCode::Stopping);
}

#[tokio::test]
async fn whoever_leaves_waits_until_all_that_are_connected_know() {
    let coordinators = [Coordinator::default(), Coordinator::default()];
    let mute = Coordinator::mute_from(MuteFrom::Join);
    let seeds = [coordinators[0].start().await, mute.start().await, coordinators[1].start().await];
    let (_root, heartbeat) = started(&seeds);
    for coordinator in &coordinators {
        coordinator.beaten_at().await;
    }
    let before = Instant::now();
    heartbeat.leave(SOON).await;
    assert!(before.elapsed() < SOON / 2, "a coordinator that is not connected is waited for");
    for coordinator in &coordinators {
        assert!(coordinator.heard.lock().beats.iter().any(|beat| beat.leaving));
    }
}

#[tokio::test]
async fn copies_that_are_ordered_unasked_are_made_and_answer_no_wish() {
    let coordinator = Coordinator::default();
    let seeds = [coordinator.start().await];
    let root = tempfile::tempdir().unwrap();
    let parts = parts(root.path(), &seeds);
    let request = held(&parts.dir);
    let name = request.name.clone();
    let heartbeat = Heartbeat::start(parts).unwrap();
    coordinator.beaten_at().await;
    let unasked = Orders { fetch: vec![request], unasked: true, ..Orders::default() };
    coordinator.send(unasked.clone());
    let is_told = || {
        let heard = coordinator.heard.lock();
        heard.beats.iter().any(|beat| beat.fetched.contains(&name))
    };
    eventually("the copy is told", is_told).await;
    // From here on it answers no beat.
    coordinator.is_mute.store(true, Ordering::Relaxed);
    coordinator.beaten_at().await;
    heartbeat.wishes.leave.cancel();
    coordinator.send(unasked);
    let all_told = tokio::time::timeout(SILENT, heartbeat.coordinators.all_told()).await;
    assert!(all_told.is_err(), "orders that were on their way are taken for the answer");
}
