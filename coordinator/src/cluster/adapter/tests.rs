//! Claims about the cluster as a whole, over a real catalog.

use shoal_data::{ReplicaCount, Segment};
use shoal_proto::TableId;
use shoal_proto::cluster::{Beat, HeldSegment, JoinRequest, Orders, QueryProgress};

use super::*;
use crate::catalog::state::tests::{commit, create, segment, table};
use crate::catalog::{Command, Outcome, WorkerRecord};
use crate::cluster::membership::{BEAT_INTERVAL, SILENCE_MAX, StreamNumber};
use crate::config::DEAD_AFTER;

struct Fixture {
    cluster: Cluster,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Fixture {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

async fn cluster() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(Catalog::alone(dir.path()).await.unwrap(), DEAD_AFTER);
    cluster.lead();
    Fixture { cluster, _dir: dir }
}

/// What the loop does about segments that were dropped.
async fn collect(cluster: &Cluster) {
    let leads = cluster.lead();
    cluster.collect(leads);
    cluster.ask_needs().await;
    cluster.remove_what_nobody_needs(leads.unwrap()).await;
}

fn request(worker: &str, held: &[SegmentName]) -> JoinRequest {
    JoinRequest {
        worker: worker.to_owned(),
        address: format!("http://{worker}"),
        threads: 1,
        incarnation: "one".to_owned(),
        held: held.iter().map(|name| HeldSegment { name: name.to_string(), bytes: 100 }).collect(),
        // It has heard of every leader.
        term: u64::MAX,
        ..JoinRequest::default()
    }
}

fn beat(cluster: &Cluster, worker: &str, stream: StreamNumber) -> Orders {
    let beat = Beat { worker: worker.to_owned(), incarnation: "one".to_owned(), ..Beat::default() };
    cluster.beat(stream, beat)
}

/// Joins and beats; what the worker was told to discard.
async fn join(cluster: &Cluster, worker: &str, held: &[SegmentName]) -> Vec<String> {
    let reply = cluster.join(request(worker, held)).await.unwrap();
    let orders = beat(cluster, worker, cluster.open_stream());
    assert!(!orders.rejoin);
    reply.discard
}

/// A table on `w1` (shard 0) and `w2` (shard 1).
async fn with_table(cluster: &Cluster) -> TableId {
    let Ok(Outcome::Table(id)) = cluster.catalog.apply(Command::ReserveTable).await else {
        panic!("no table id");
    };
    cluster.catalog.apply(create(table(id, "t"))).await.unwrap();
    id
}

fn live(cluster: &Cluster) -> Vec<String> {
    cluster.live().workers.iter().map(|worker| worker.id.to_string()).collect()
}

#[tokio::test]
async fn a_worker_is_live_from_its_first_beat_to_its_last_word() {
    let cluster = cluster().await;
    cluster.join(request("w1", &[])).await.unwrap();
    assert!(live(&cluster).is_empty());
    let stream = cluster.open_stream();
    beat(&cluster, "w1", stream);
    assert_eq!(live(&cluster), ["w1"]);
    cluster.suspect(&"w1".into(), "test");
    assert!(live(&cluster).is_empty());
    beat(&cluster, "w1", stream);
    assert_eq!(live(&cluster), ["w1"]);
    cluster.disconnected(&"w1".into(), stream);
    assert!(live(&cluster).is_empty());
    assert!(beat(&cluster, "w1", stream).rejoin);
    assert_eq!(cluster.catalog.snapshot().workers().count(), 1);
}

#[tokio::test]
async fn a_worker_that_waits_for_its_turn_to_join_again_is_not_lost() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    let turn = cluster.joining.lock().await;
    let mut again = Box::pin(cluster.join(request("w1", &[])));
    assert!(futures::poll!(&mut again).is_pending(), "it is not its turn");
    cluster.expire(Instant::now() + SILENCE_MAX);
    assert_eq!(live(&cluster), ["w1"]);
    drop(turn);
    again.await.unwrap();
    assert!(!beat(&cluster, "w1", stream).rejoin);
    assert_eq!((live(&cluster), cluster.times_lost(&"w1".into())), (vec!["w1".to_owned()], 0));
}

#[tokio::test]
async fn a_worker_of_another_cluster_is_refused() {
    let cluster = cluster().await;
    let stranger = JoinRequest { cluster: "other".to_owned(), ..request("w1", &[]) };
    let error = cluster.join(stranger).await.unwrap_err().to_string();
    assert!(error.contains("belongs to cluster other"), "{error}");
    assert_eq!(cluster.catalog.snapshot().workers().count(), 0);
}

#[tokio::test]
async fn two_workers_of_one_name_are_not_mixed_up() {
    let cluster = cluster().await;
    join(&cluster, "w1", &[]).await;
    let other = JoinRequest {
        incarnation: "two".to_owned(),
        address: "http://elsewhere".to_owned(),
        ..request("w1", &[])
    };
    let error = cluster.join(other.clone()).await.unwrap_err().to_string();
    assert!(error.contains("alive at http://w1"), "{error}");
    // The same process place, restarted, takes over at once.
    let restarted = JoinRequest { address: "http://w1".to_owned(), ..other };
    cluster.join(restarted).await.unwrap();
}

#[tokio::test]
async fn a_write_under_way_is_not_swept_up() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    let staged = segment(id, 0, "w1");
    let write = WriteId::random();
    cluster.protect(&write, staged.name(), &["w1".into()]);
    assert!(join(&cluster, "w1", &[staged.name()]).await.is_empty());
    // Given up: what it staged goes.
    cluster.unprotect(&write);
    cluster.discard(vec![(staged.name(), vec!["w1".into()])]);
    let orders = beat(&cluster, "w1", cluster.open_stream());
    assert_eq!(orders.discard, [staged.name().to_string()]);
    assert_eq!(join(&cluster, "w1", &[staged.name()]).await, [staged.name().to_string()]);
}

#[tokio::test]
async fn what_an_earlier_term_wanted_removed_is_not_removed_in_this_one() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    let stream = connect(&cluster, "w1", &[]).await;
    let term = cluster.catalog.term();
    let [earlier, now] = ["w1", "w1"].map(|worker| segment(id, 0, worker).name());
    cluster.discard_in(term - 1, vec![(earlier, vec!["w1".into()])]);
    cluster.discard_in(term, vec![(now, vec!["w1".into()])]);
    assert_eq!(beat(&cluster, "w1", stream).discard, [now.to_string()]);
}

#[tokio::test]
async fn a_committed_segment_is_never_removed_by_mistake() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w1", &[]).await;
    let held = segment(id, 0, "w1");
    cluster.discard(vec![(held.name(), vec!["w1".into()])]);
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    assert!(beat(&cluster, "w1", cluster.open_stream()).discard.is_empty());
}

#[tokio::test]
async fn who_begins_to_lead_asks_all_members_what_they_hold() {
    let cluster = cluster().await;
    let stray = segment(with_table(&cluster).await, 0, "w1").name();
    // Elected, and not at work yet.
    cluster.core.lock().leads_in = None;
    let silent = cluster.join(request("silent", &[stray])).await.unwrap();
    assert!(silent.discard.is_empty(), "nobody looks after the workers yet");
    let suspected = connect(&cluster, "suspected", &[]).await;
    cluster.suspect(&"suspected".into(), "test");
    let live = connect(&cluster, "live", &[]).await;
    cluster.lead();
    for (worker, stream) in [("silent", cluster.open_stream()), ("suspected", suspected), ("live", live)] {
        assert!(beat(&cluster, worker, stream).report, "{worker} is not asked");
        assert!(!beat(&cluster, worker, stream).report, "{worker} is asked twice");
    }
    assert_eq!(join(&cluster, "silent", &[stray]).await, [stray.to_string()]);
}

#[tokio::test]
async fn a_dropped_table_stays_readable_until_its_readers_are_done() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w1", &[]).await;
    let held = segment(id, 0, "w1");
    let name = held.name();
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    let reader = cluster.pin();
    let drop_table = Command::DropTable { schema_name: "public".into(), name: "t".into(), if_exists: false };
    cluster.catalog.apply(drop_table).await.unwrap();
    collect(&cluster).await;
    assert!(beat(&cluster, "w1", cluster.open_stream()).discard.is_empty());
    assert_eq!(cluster.locate(&name).await.unwrap().replicas[0].worker, "w1".into());
    assert!(join(&cluster, "w1", &[name]).await.is_empty(), "a joining worker was told to drop it");
    drop(reader);
    collect(&cluster).await;
    assert_eq!(beat(&cluster, "w1", cluster.open_stream()).discard, [name.to_string()]);
    assert_eq!(cluster.locate(&name).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn what_was_dropped_a_moment_ago_is_not_taken_from_a_worker_that_joins() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    let held = segment(id, 0, "w1");
    let name = held.name();
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    let reader = cluster.pin();
    let drop_table = Command::DropTable { schema_name: "public".into(), name: "t".into(), if_exists: false };
    cluster.catalog.apply(drop_table).await.unwrap();
    assert!(join(&cluster, "w1", &[name]).await.is_empty(), "it is still read");
    drop(reader);
    collect(&cluster).await;
    assert_eq!(beat(&cluster, "w1", cluster.open_stream()).discard, [name.to_string()]);
}

#[tokio::test]
async fn copies_do_not_wait_for_a_beat_and_go_where_the_worker_listens() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w1", &[]).await;
    join(&cluster, "w2", &[]).await;
    let held = segment(id, 0, "w2");
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    let (old, new) = (cluster.open_stream(), cluster.open_stream());
    beat(&cluster, "w1", new);
    let (schema_name, name, replicas) = ("public".to_owned(), "t".to_owned(), ReplicaCount::Count(2));
    cluster.catalog.apply(Command::SetReplicas { schema_name, name, replicas }).await.unwrap();
    let mut ordered = cluster.watch_orders();
    assert!(!cluster.is_repairing());
    let ordered_at = Instant::now();
    cluster.order_copies(ordered_at);
    assert!(cluster.is_repairing(), "there are fewer copies than there should be");
    assert!(ordered.has_changed().unwrap(), "nobody is woken");
    ordered.mark_unchanged();
    assert!(cluster.copies_for(&"w1".into(), old).is_none(), "nobody reads an old stream");
    assert!(cluster.copies_for(&"w2".into(), new).is_none());
    let orders = cluster.copies_for(&"w1".into(), new).unwrap();
    assert!(orders.unasked);
    assert_eq!(orders.fetch.len(), 1, "{orders:?}");
    // They are given once, and nobody is woken for nothing.
    assert!(cluster.copies_for(&"w1".into(), new).is_none());
    assert!(beat(&cluster, "w1", new).fetch.is_empty());
    cluster.order_copies(Instant::now());
    assert!(!ordered.has_changed().unwrap());
    // Nothing comes of it: others need not wait for that, until it is ordered again.
    for (seconds, is_repairing) in [(9, true), (11, false), (59, false), (61, true), (72, false)] {
        cluster.order_copies(ordered_at + Duration::from_secs(seconds));
        assert_eq!(cluster.is_repairing(), is_repairing, "after {seconds} s");
    }
    cluster.order_copies(ordered_at + Duration::from_secs(130));
    assert!(cluster.is_repairing());
    // Another one leads, and then this one again.
    cluster.core.lock().leads_in = None;
    cluster.lead();
    assert!(!cluster.is_repairing());
}

#[tokio::test]
async fn a_copy_counts_once_it_is_in_the_catalog() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w1", &[]).await;
    join(&cluster, "w2", &[]).await;
    // Only `w2` has it, and `w1` should.
    let held = segment(id, 0, "w2");
    let name = held.name();
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    cluster.order_copies(Instant::now());
    cluster.order_copies(Instant::now());
    let stream = cluster.open_stream();
    let orders = beat(&cluster, "w1", stream);
    assert_eq!(orders.fetch.len(), 1, "{orders:?}");
    assert_eq!((orders.fetch[0].name.clone(), orders.fetch[0].crc32c), (name.to_string(), 7));
    assert_eq!(orders.fetch[0].from[0].worker, "w2");
    let done = Beat {
        worker: "w1".to_owned(),
        incarnation: "one".to_owned(),
        fetched: vec![name.to_string()],
        ..Beat::default()
    };
    cluster.beat(stream, done);
    assert_eq!(cluster.locate(&name).await.unwrap().replicas.len(), 1);
    cluster.record_fetched().await;
    assert_eq!(cluster.locate(&name).await.unwrap().replicas.len(), 2);
    cluster.order_copies(Instant::now());
    assert!(beat(&cluster, "w1", stream).fetch.is_empty());
}

#[tokio::test]
async fn a_copy_that_nobody_ordered_counts_once_its_worker_says_that_it_is_there() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    let stream = connect(&cluster, "w1", &[]).await;
    let held = segment(id, 0, "w2");
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    let done = Beat {
        worker: "w1".to_owned(),
        incarnation: "one".to_owned(),
        fetched: vec![held.name().to_string()],
        ..Beat::default()
    };
    // The leader before may have ordered it, and that it goes.
    assert!(cluster.beat(stream, done).report);
    cluster.record_fetched().await;
    let replicas = || cluster.catalog.snapshot().segment(&held.name()).unwrap().replicas.clone();
    assert_eq!(replicas(), ["w2"].map(WorkerId::from));
    let unaware = JoinRequest { term: 0, ..request("w1", &[held.name()]) };
    cluster.join(unaware).await.unwrap();
    cluster.record_fetched().await;
    assert_eq!(replicas(), ["w2"].map(WorkerId::from), "it may still remove it for another leader");
    assert!(beat(&cluster, "w1", stream).report, "it is not asked again");
    cluster.join(request("w1", &[held.name()])).await.unwrap();
    cluster.record_fetched().await;
    assert_eq!(replicas(), ["w2", "w1"].map(WorkerId::from));
}

#[tokio::test]
async fn orders_say_which_join_they_rest_on_and_a_join_that_was_overtaken_says_nothing() {
    let cluster = cluster().await;
    let join = |number: u64| JoinRequest { number, ..request("w1", &[]) };
    cluster.join(join(2)).await.unwrap();
    let stream = cluster.open_stream();
    assert_eq!(beat(&cluster, "w1", stream).after_join, 2);
    let late = cluster.join(join(1)).await.unwrap_err().to_string();
    assert!(late.contains("has joined again since"), "{late}");
    assert_eq!(live(&cluster), ["w1"], "it is as it was");
    cluster.join(join(3)).await.unwrap();
    assert_eq!(beat(&cluster, "w1", stream).after_join, 3);
    // Another process counts from the beginning.
    cluster.join(JoinRequest { incarnation: "two".to_owned(), ..join(1) }).await.unwrap();
}

#[tokio::test]
async fn a_worker_without_its_files_is_not_read_from() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    let mut held = segment(id, 0, "w1");
    held.replicas.push("w2".into());
    let name = held.name();
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    join(&cluster, "w1", &[]).await;
    join(&cluster, "w2", &[name]).await;
    assert!(!cluster.live().get(&"w1".into()).unwrap().holds.contains(&name));
    let located = cluster.locate(&name).await.unwrap();
    assert_eq!(located.replicas.len(), 1);
    assert_eq!(located.replicas[0].worker, "w2".into());
}

#[tokio::test]
async fn progress_is_the_sum_over_workers() {
    let cluster = cluster().await;
    let query = QueryId::random();
    for (worker, rows) in [("w1", 3), ("w2", 4)] {
        join(&cluster, worker, &[]).await;
        let report = shoal_proto::cluster::QueryProgress {
            query: query.to_string(),
            rows,
            bytes: 10 * rows,
            segments: 1,
            still_ms: 0,
            attempt: 0,
        };
        let beat = Beat {
            worker: worker.to_owned(),
            incarnation: "one".to_owned(),
            progress: vec![report],
            ..Beat::default()
        };
        cluster.beat(cluster.open_stream(), beat);
    }
    assert_eq!(
        cluster.progress(query),
        Progress { rows: 7, bytes: 70, segments: 2, workers: 2, ..Progress::default() }
    );
    assert_eq!(cluster.progress(QueryId::random()), Progress::default());
}

#[tokio::test]
async fn only_tasks_of_the_attempt_that_is_asked_for_stand_still() {
    let cluster = cluster().await;
    let query = QueryId::random();
    // What the first attempt left on `w1` has stood still for longest.
    for (worker, attempt, still_ms) in [("w1", 1, 20_000), ("w2", 2, 300), ("w3", 2, 700)] {
        join(&cluster, worker, &[]).await;
        let report =
            QueryProgress { query: query.to_string(), still_ms, attempt, ..QueryProgress::default() };
        let beat = Beat {
            worker: worker.to_owned(),
            incarnation: "one".to_owned(),
            progress: vec![report],
            ..Beat::default()
        };
        cluster.beat(cluster.open_stream(), beat);
    }
    let among = |workers: &[&str], attempt: u32| {
        let workers: BTreeSet<WorkerId> = workers.iter().copied().map(WorkerId::from).collect();
        let stillest = cluster.stillest(query, attempt, &workers);
        stillest.map(|(worker, still)| (worker.to_string(), still.as_millis()))
    };
    let said = |worker: &str, millis: u128| Some((worker.to_owned(), millis));
    assert_eq!(among(&["w1", "w2", "w3"], 2), said("w3", 700));
    assert_eq!(among(&["w1", "w2", "w3"], 1), said("w1", 20_000));
    assert_eq!(among(&["w1", "w2", "w3"], 3), None);
    assert_eq!(among(&["w1", "w2"], 2), said("w2", 300));
    assert_eq!(among(&["w1"], 2), None);
    let all: BTreeSet<WorkerId> = ["w1", "w2", "w3"].map(WorkerId::from).into();
    assert_eq!(cluster.stillest(QueryId::random(), 2, &all), None);
    let progress = cluster.progress(query);
    assert_eq!((progress.attempt, progress.still), (2, Duration::from_millis(700)));
}

#[tokio::test]
async fn a_worker_is_lost_when_its_stream_breaks_or_it_is_silent_and_not_when_it_leaves() {
    let cluster = cluster().await;
    let times_lost = |worker: &str| cluster.times_lost(&worker.into());
    let joined = async |worker: &str| {
        cluster.join(request(worker, &[])).await.unwrap();
        let stream = cluster.open_stream();
        beat(&cluster, worker, stream);
        stream
    };

    let stream = joined("w1").await;
    cluster.suspect(&"w1".into(), "test");
    beat(&cluster, "w1", stream);
    // It says again what it holds, on the same stream.
    cluster.join(request("w1", &[])).await.unwrap();
    beat(&cluster, "w1", stream);
    assert_eq!(times_lost("w1"), 0, "it was only suspected, and joined again");
    cluster.disconnected(&"w1".into(), stream);
    assert_eq!(times_lost("w1"), 1);
    cluster.disconnected(&"w1".into(), stream);
    assert_eq!(times_lost("w1"), 1, "it was lost before");

    let stream = joined("w2").await;
    let leaving =
        Beat { worker: "w2".to_owned(), incarnation: "one".to_owned(), leaving: true, ..Beat::default() };
    cluster.beat(stream, leaving);
    cluster.disconnected(&"w2".into(), stream);
    assert_eq!(times_lost("w2"), 0, "it has left");

    joined("w3").await;
    let heard = Instant::now();
    let mut silent = Duration::ZERO;
    while silent < SILENCE_MAX * 2 {
        cluster.expire(heard + silent);
        silent += BEAT_INTERVAL;
    }
    assert_eq!(times_lost("w3"), 1);
    assert!(live(&cluster).is_empty());

    // It counts on when it is back.
    let stream = joined("w1").await;
    cluster.disconnected(&"w1".into(), stream);
    assert_eq!(["w1", "w2", "w3", "w4"].map(times_lost), [2, 0, 1, 0]);
}

#[tokio::test]
async fn without_workers_a_table_has_no_place() {
    let cluster = cluster().await;
    let layout = table(TableId(1), "t").layout;
    let error = cluster.place(&layout).unwrap_err();
    assert!(error.to_string().contains("no worker is live"), "{error}");
    join(&cluster, "w1", &[]).await;
    assert_eq!(cluster.place(&layout).unwrap().shards.len(), 2);
}

/// Joins and beats; the stream of its beats.
async fn connect(cluster: &Cluster, worker: &str, held: &[SegmentName]) -> StreamNumber {
    cluster.join(request(worker, held)).await.unwrap();
    let stream = cluster.open_stream();
    assert!(!beat(cluster, worker, stream).rejoin);
    stream
}

mod compacting;
mod leading;
mod lost_disks;
mod moving;
mod repairing;
mod room;
