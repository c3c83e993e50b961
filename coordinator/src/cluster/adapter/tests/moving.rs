//! Shards leave workers, and come to them.

use super::*;
use crate::cluster::moves::Moved;

/// A table `t` on `w1`, `w2` and `w3`: two copies of three shards, a segment in
/// each. The segments, by shard.
async fn with_copies(cluster: &Cluster) -> Vec<Segment> {
    let Ok(Outcome::Table(id)) = cluster.catalog.apply(Command::ReserveTable).await else {
        panic!("no table id");
    };
    let mut table = table(id, "t");
    table.layout.shards = 3;
    table.layout.replicas = ReplicaCount::Count(2);
    table.placement = shards(["w1 w2", "w2 w3", "w3 w1"]);
    let held = |(workers, shard): (&Vec<WorkerId>, u32)| Segment {
        replicas: workers.clone(),
        ..segment(id, shard, "")
    };
    let segments: Vec<Segment> = table.placement.iter().zip(0..).map(held).collect();
    table.segments = segments.iter().cloned().map(Arc::new).collect();
    cluster.catalog.apply(create(table)).await.unwrap();
    segments
}

fn shards(workers: [&str; 3]) -> Vec<Vec<WorkerId>> {
    workers.iter().map(|shard| shard.split_whitespace().map(WorkerId::from).collect()).collect()
}

async fn apply(cluster: &Cluster, command: Command) {
    assert_eq!(cluster.catalog.apply(command.clone()).await.unwrap(), Outcome::Done, "{command:?}");
}

async fn move_shards(cluster: &Cluster, workers: [&str; 3]) {
    let table = cluster.catalog.snapshot().table("public", "t").unwrap().clone();
    let (seen, placement) = (table.placement.clone(), shards(workers));
    apply(cluster, Command::MoveShards { table: table.id, seen, placement }).await;
}

/// All that `w1` has goes to the other two, which have it at once.
async fn move_from_w1(cluster: &Cluster, segments: &[Segment]) {
    move_shards(cluster, ["w2 w3", "w2 w3", "w3 w2"]).await;
    for (shard, worker) in [(0, "w3"), (2, "w2")] {
        let SegmentName { table, segment, .. } = segments[shard].name();
        apply(cluster, Command::AddReplica { table, segment, worker: worker.into() }).await;
        let segments = vec![segment];
        apply(cluster, Command::RemoveReplicas { table, worker: "w1".into(), segments }).await;
    }
}

fn placed(cluster: &Cluster) -> Vec<Vec<WorkerId>> {
    cluster.catalog.snapshot().table("public", "t").unwrap().placement.clone()
}

/// On how many shards a worker is placed.
fn shards_on(cluster: &Cluster, worker: &str) -> usize {
    placed(cluster).iter().filter(|shard| shard.contains(&worker.into())).count()
}

fn replicas(cluster: &Cluster, segment: &Segment) -> Vec<WorkerId> {
    cluster.catalog.snapshot().segment(&segment.name()).unwrap().replicas.clone()
}

/// What was told but for who joined.
fn kinds(cluster: &Cluster) -> Vec<&'static str> {
    let kinds = cluster.events().into_iter().map(|event| event.kind.name());
    kinds.filter(|kind| *kind != "joined").collect()
}

/// Makes the copies that the worker is told to make; which.
async fn fetch(cluster: &Cluster, worker: &str, stream: StreamNumber) -> Vec<String> {
    cluster.order_copies(Instant::now());
    let ordered = beat(cluster, worker, stream).fetch;
    let fetched: Vec<String> = ordered.into_iter().map(|request| request.name).collect();
    let done = Beat {
        worker: worker.to_owned(),
        incarnation: "one".to_owned(),
        fetched: fetched.clone(),
        ..Beat::default()
    };
    cluster.beat(stream, done);
    cluster.record_fetched().await;
    fetched
}

#[tokio::test]
async fn shards_of_a_worker_that_stays_away_get_another() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    let mut streams = Vec::new();
    for worker in ["w2", "w3"] {
        streams.push((worker, connect(&cluster, worker, &[]).await));
    }
    let segments = with_copies(&cluster).await;
    cluster.disconnected(&"w1".into(), w1);
    let now = Instant::now();
    for away in [Duration::ZERO, DEAD_AFTER - Duration::from_secs(1)] {
        cluster.give_up(now + away);
        cluster.place_anew().await;
        assert_eq!(cluster.given_up(&"w1".into()), None);
        assert_eq!(placed(&cluster), shards(["w1 w2", "w2 w3", "w3 w1"]));
    }
    cluster.give_up(now + DEAD_AFTER);
    assert_eq!(cluster.given_up(&"w1".into()), Some(GivenUp::Dead));
    assert!(cluster.drained().is_empty());
    cluster.place_anew().await;
    assert_eq!(placed(&cluster), shards(["w2 w3", "w2 w3", "w3 w2"]));
    assert_eq!(kinds(&cluster), ["lost", "dead", "moved", "moved"]);
    // What it has counts until there are other copies.
    cluster.place_anew().await;
    assert_eq!(replicas(&cluster, &segments[0]), ["w1", "w2"].map(WorkerId::from));
    for ((worker, stream), shard) in streams.into_iter().zip([2, 0]) {
        assert_eq!(fetch(&cluster, worker, stream).await, [segments[shard].name().to_string()]);
    }
    cluster.place_anew().await;
    assert_eq!(replicas(&cluster, &segments[0]), ["w2", "w3"].map(WorkerId::from));
    assert_eq!(replicas(&cluster, &segments[2]), ["w3", "w2"].map(WorkerId::from));
    let version = cluster.catalog.snapshot().version;
    cluster.give_up(now + DEAD_AFTER);
    cluster.place_anew().await;
    assert_eq!(cluster.catalog.snapshot().version, version, "it moves again");
    // It is back after all: nobody needs what it has, and it gets its part.
    let held = [&segments[0], &segments[2]].map(Segment::name);
    assert!(join(&cluster, "w1", &held).await.is_empty(), "they were taken out a moment ago");
    collect(&cluster).await;
    let orders = beat(&cluster, "w1", cluster.open_stream());
    assert_eq!(orders.discard, held.map(|name| name.to_string()));
    cluster.give_up(now + DEAD_AFTER);
    assert_eq!(cluster.given_up(&"w1".into()), None);
    cluster.place_anew().await;
    assert_eq!(shards_on(&cluster, "w1"), 2);
}

#[tokio::test]
async fn a_worker_that_is_back_in_time_keeps_its_shards() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    for worker in ["w2", "w3"] {
        join(&cluster, worker, &[]).await;
    }
    let segments = with_copies(&cluster).await;
    let held = [&segments[0], &segments[2]].map(Segment::name);
    let version = cluster.catalog.snapshot().version;
    cluster.disconnected(&"w1".into(), stream);
    let now = Instant::now();
    cluster.give_up(now);
    cluster.place_anew().await;
    let stream = connect(&cluster, "w1", &held).await;
    cluster.give_up(now + DEAD_AFTER);
    cluster.place_anew().await;
    assert_eq!(cluster.given_up(&"w1".into()), None);
    assert_eq!(cluster.catalog.snapshot().version, version);
    // The time counts anew when it is lost again.
    cluster.disconnected(&"w1".into(), stream);
    let second = Duration::from_secs(1);
    for (away, expected) in
        [(DEAD_AFTER + second, None), (2 * DEAD_AFTER, None), (2 * DEAD_AFTER + second, Some(GivenUp::Dead))]
    {
        cluster.give_up(now + away);
        assert_eq!(cluster.given_up(&"w1".into()), expected, "{away:?}");
    }
}

#[tokio::test]
async fn what_only_moved_becomes_urgent_when_a_copy_is_lost() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    let w2 = connect(&cluster, "w2", &[]).await;
    connect(&cluster, "w3", &[]).await;
    let segments = with_copies(&cluster).await;
    apply(&cluster, Command::DrainWorker { worker: "w1".into(), is_draining: true }).await;
    let now = Instant::now();
    cluster.give_up(now);
    cluster.place_anew().await;
    let ordered = || {
        cluster.order_copies(now);
        let fetch = beat(&cluster, "w2", w2).fetch;
        fetch.into_iter().map(|it| (it.name, it.urgent, it.bytes_per_second)).collect::<Vec<_>>()
    };
    let (name, rates) = (segments[2].name().to_string(), CopyRates::default());
    assert_eq!(ordered(), [(name.clone(), false, rates.move_bytes_per_second)]);
    assert!(ordered().is_empty(), "it is being made");
    cluster.disconnected(&"w1".into(), w1);
    assert_eq!(ordered(), [(name, true, rates.repair_bytes_per_second)]);
    assert!(ordered().is_empty());
}

#[tokio::test]
async fn a_rebalance_waits_for_nobody() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    for worker in ["w2", "w3"] {
        connect(&cluster, worker, &[]).await;
    }
    with_copies(&cluster).await;
    cluster.disconnected(&"w1".into(), w1);
    connect(&cluster, "w4", &[]).await;
    cluster.give_up(Instant::now());
    cluster.place_anew().await;
    assert_eq!(shards_on(&cluster, "w4"), 0, "w1 is expected back");
    let Rebalanced { moved, why_not } = cluster.rebalance().await.unwrap();
    let moved: Vec<String> = moved.iter().map(Moved::to_string).collect();
    assert_eq!(
        (moved.as_slice(), why_not.as_str()),
        (&["public.t, shard 2: from w3 to w4".to_owned()][..], "")
    );
    assert_eq!(placed(&cluster), shards(["w1 w2", "w2 w3", "w4 w1"]));
    assert_eq!(kinds(&cluster), ["lost", "moved"]);
    // w2 holds 200 bytes and w4 half of that: a shard would turn it round.
    let Rebalanced { moved, why_not } = cluster.rebalance().await.unwrap();
    assert!(moved.is_empty(), "{moved:?}");
    for part in ["w2 holds 200 bytes", "no shard can go", "copies are still being made"] {
        assert!(why_not.contains(part), "{why_not}");
    }
}

#[tokio::test]
async fn what_waits_for_room_is_placed_once_there_is_some() {
    let cluster = cluster().await;
    let mut streams = Vec::new();
    for worker in ["w1", "w2", "w3", "w4"] {
        streams.push((worker, connect(&cluster, worker, &[]).await));
    }
    with_copies(&cluster).await;
    let say_free_gib = |free: [u64; 4]| {
        for ((worker, stream), free) in streams.iter().zip(free) {
            let said = Beat {
                worker: (*worker).to_owned(),
                incarnation: "one".to_owned(),
                disk_free_bytes: free << 30,
                disk_total_bytes: 100 << 30,
                ..Beat::default()
            };
            cluster.beat(*stream, said);
        }
        cluster.expire(Instant::now());
    };
    let all_placed = || ["w1", "w2", "w3", "w4"].map(|worker| shards_on(&cluster, worker));
    say_free_gib([50, 50, 50, 0]);
    let (schema_name, name, replicas) = ("public".to_owned(), "t".to_owned(), ReplicaCount::Count(4));
    apply(&cluster, Command::SetReplicas { schema_name, name, replicas }).await;
    for _ in 0..2 {
        cluster.place_anew().await;
        assert_eq!(all_placed(), [3, 3, 3, 0]);
    }
    // Nothing else has changed.
    say_free_gib([50, 50, 50, 50]);
    cluster.place_anew().await;
    assert_eq!(all_placed(), [3, 3, 3, 3]);
}

#[tokio::test]
async fn a_copy_that_left_stays_until_its_readers_are_done() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    for worker in ["w2", "w3"] {
        connect(&cluster, worker, &[]).await;
    }
    let segments = with_copies(&cluster).await;
    let reader = cluster.pin();
    move_from_w1(&cluster, &segments).await;
    collect(&cluster).await;
    assert!(beat(&cluster, "w1", stream).discard.is_empty());
    drop(reader);
    collect(&cluster).await;
    let gone = [&segments[0], &segments[2]].map(|segment| segment.name().to_string());
    assert_eq!(beat(&cluster, "w1", stream).discard, gone);
}

#[tokio::test]
async fn a_round_is_not_woken_for_what_a_query_here_keeps() {
    let cluster = cluster().await;
    for worker in ["w1", "w2", "w3"] {
        connect(&cluster, worker, &[]).await;
    }
    let segments = with_copies(&cluster).await;
    move_from_w1(&cluster, &segments).await;
    let leads = cluster.lead();
    cluster.collect(leads);
    // It is newer than what left `w1`, and reads the segments that are dropped now.
    let reader = cluster.pin();
    let (schema_name, name) = ("public".to_owned(), "t".to_owned());
    apply(&cluster, Command::DropTable { schema_name, name, if_exists: false }).await;
    cluster.collect(leads);
    cluster.ask_needs().await;
    assert!(cluster.core.lock().answered.is_none(), "nothing would be removed");
    drop(reader);
    cluster.collect(leads);
    cluster.ask_needs().await;
    assert!(cluster.core.lock().answered.is_some());
}

#[tokio::test]
async fn what_queries_read_goes_from_whoever_joins_with_it_when_they_are_done() {
    let cluster = cluster().await;
    for worker in ["w1", "w2", "w3"] {
        connect(&cluster, worker, &[]).await;
    }
    let segments = with_copies(&cluster).await;
    let reader = cluster.pin();
    // The copy of `w1` leaves the catalog; `w4` has one of which nobody knew.
    move_from_w1(&cluster, &segments).await;
    let name = segments[0].name();
    let stream = connect(&cluster, "w4", &[name]).await;
    collect(&cluster).await;
    assert!(beat(&cluster, "w4", stream).discard.is_empty(), "a query may read it");
    drop(reader);
    collect(&cluster).await;
    assert_eq!(beat(&cluster, "w4", stream).discard, [name.to_string()]);
}

#[tokio::test]
async fn what_a_worker_should_hold_again_is_not_removed_from_it() {
    let cluster = cluster().await;
    let stream = connect(&cluster, "w1", &[]).await;
    for worker in ["w2", "w3"] {
        connect(&cluster, worker, &[]).await;
    }
    let segments = with_copies(&cluster).await;
    move_from_w1(&cluster, &segments).await;
    collect(&cluster).await;
    // The order to remove both waits for a beat, and is late for one of them.
    move_shards(&cluster, ["w2 w3", "w2 w3", "w3 w1"]).await;
    cluster.order_copies(Instant::now());
    let orders = beat(&cluster, "w1", stream);
    assert_eq!(orders.discard, [segments[0].name().to_string()]);
    let fetch: Vec<_> = orders.fetch.iter().map(|request| request.name.clone()).collect();
    assert_eq!(fetch, [segments[2].name().to_string()]);
}

#[tokio::test]
async fn a_copy_counts_again_where_those_that_took_its_place_are_gone() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    connect(&cluster, "w2", &[]).await;
    let w3 = connect(&cluster, "w3", &[]).await;
    let segments = with_copies(&cluster).await;
    move_from_w1(&cluster, &segments).await;
    collect(&cluster).await;
    cluster.disconnected(&"w3".into(), w3);
    let orders = beat(&cluster, "w1", w1);
    assert!(orders.discard.is_empty() && orders.report, "{orders:?}");
    cluster.record_fetched().await;
    assert_eq!(replicas(&cluster, &segments[0]), ["w2", "w3"].map(WorkerId::from), "it may have removed it");
    join(&cluster, "w1", &[&segments[0], &segments[2]].map(Segment::name)).await;
    cluster.record_fetched().await;
    assert_eq!(replicas(&cluster, &segments[0]), ["w2", "w3", "w1"].map(WorkerId::from));
    // The same for a worker that comes back and is told what to remove.
    move_from_w1_again(&cluster, &segments).await;
    cluster.disconnected(&"w1".into(), w1);
    assert!(join(&cluster, "w1", &[segments[0].name()]).await.is_empty());
    cluster.record_fetched().await;
    assert!(replicas(&cluster, &segments[0]).contains(&"w1".into()));
}

#[tokio::test]
async fn a_copy_that_was_taken_over_is_not_removed_before_it_is_recorded() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    connect(&cluster, "w2", &[]).await;
    let w3 = connect(&cluster, "w3", &[]).await;
    let segments = with_copies(&cluster).await;
    move_from_w1(&cluster, &segments).await;
    collect(&cluster).await;
    beat(&cluster, "w1", w1);
    let name = segments[0].name();
    cluster.disconnected(&"w3".into(), w3);
    assert!(join(&cluster, "w1", &[name]).await.is_empty(), "who should have it is not there");
    // Who should is back before that is in the catalog, and it says again what it has.
    let all: Vec<_> = segments.iter().map(Segment::name).collect();
    connect(&cluster, "w3", &all).await;
    assert!(join(&cluster, "w1", &[name]).await.is_empty(), "it is about to be in the catalog");
    cluster.record_fetched().await;
    assert!(replicas(&cluster, &segments[0]).contains(&"w1".into()));
    collect(&cluster).await;
    assert!(beat(&cluster, "w1", cluster.open_stream()).discard.is_empty());
}

/// Takes the copy of the first shard out of the catalog once more.
async fn move_from_w1_again(cluster: &Cluster, segments: &[Segment]) {
    let SegmentName { table, segment, .. } = segments[0].name();
    apply(cluster, Command::RemoveReplicas { table, worker: "w1".into(), segments: vec![segment] }).await;
}

#[tokio::test]
async fn where_most_are_away_nobody_is_dead() {
    let cluster = cluster().await;
    let mut streams = Vec::new();
    for worker in ["w1", "w2", "w3"] {
        streams.push(connect(&cluster, worker, &[]).await);
    }
    with_copies(&cluster).await;
    let now = Instant::now();
    cluster.disconnected(&"w1".into(), streams[0]);
    cluster.give_up(now);
    cluster.disconnected(&"w2".into(), streams[1]);
    for away in [Duration::ZERO, DEAD_AFTER] {
        cluster.give_up(now + away);
        assert_eq!(cluster.given_up(&"w1".into()), None, "it is the coordinator that is cut off");
    }
    connect(&cluster, "w2", &[]).await;
    cluster.give_up(now + DEAD_AFTER);
    assert_eq!(cluster.given_up(&"w1".into()), Some(GivenUp::Dead));
    // Who is dead stays so, whoever follows.
    cluster.disconnected(&"w3".into(), streams[2]);
    cluster.give_up(now + DEAD_AFTER);
    assert_eq!(cluster.given_up(&"w1".into()), Some(GivenUp::Dead));
}

mod drains;
