//! Copies that a worker made durable on a disk which it does not have any more.

use super::*;

fn with_disk(disk: &str, incarnation: &str) -> JoinRequest {
    let (disk, incarnation) = (disk.to_owned(), incarnation.to_owned());
    JoinRequest { disk, incarnation, ..request("w1", &[]) }
}

fn fetched(incarnation: &str, fetched: &[String]) -> Beat {
    let (worker, incarnation) = ("w1".to_owned(), incarnation.to_owned());
    Beat { worker, incarnation, fetched: fetched.to_vec(), ..Beat::default() }
}

/// What `w1` is told to copy.
fn ordered(cluster: &Cluster, stream: StreamNumber, incarnation: &str) -> Vec<String> {
    cluster.order_copies(Instant::now());
    cluster.beat(stream, fetched(incarnation, &[])).fetch.into_iter().map(|order| order.name).collect()
}

fn readable(cluster: &Cluster, name: &SegmentName) -> Vec<WorkerId> {
    let (state, live) = (cluster.catalog.snapshot(), cluster.live());
    let segment = state.segment(name).unwrap();
    repair::readable(segment, &live).map(|worker| worker.id.clone()).collect()
}

#[tokio::test]
async fn what_a_worker_lost_before_its_commit_is_copied_to_it() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w2", &[]).await;
    cluster.join(with_disk("first", "one")).await.unwrap();
    let mut written = segment(id, 0, "w1");
    written.replicas.push("w2".into());
    let (name, write) = (written.name(), WriteId::random());
    cluster.protect(&write, name, &written.replicas);
    // Both said that it is durable. Then the one has another disk, and joins.
    cluster.join(with_disk("second", "two")).await.unwrap();
    let stream = cluster.open_stream();
    cluster.beat(stream, fetched("two", &[]));
    let copies = [("w1", "first"), ("w2", "")];
    let copies = copies.map(|(worker, disk)| (written.id, WorkerId::from(worker), disk.to_owned()));
    cluster.catalog.apply(commit("x", &written).on_disks(copies)).await.unwrap();
    cluster.unprotect(&write);
    assert_eq!(readable(&cluster, &name), ["w2"].map(WorkerId::from), "it counts for ever");
    let copied = ordered(&cluster, stream, "two");
    assert_eq!(copied, [name.to_string()]);
    cluster.beat(stream, fetched("two", &copied));
    cluster.record_fetched().await;
    assert_eq!(readable(&cluster, &name), ["w1", "w2"].map(WorkerId::from));
}

#[tokio::test]
async fn a_copy_that_was_lost_before_it_was_recorded_is_made_again() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w2", &[]).await;
    let held = segment(id, 0, "w2");
    let name = held.name();
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    cluster.join(with_disk("first", "one")).await.unwrap();
    let stream = cluster.open_stream();
    cluster.beat(stream, fetched("one", &[]));
    let copied = ordered(&cluster, stream, "one");
    assert_eq!(copied, [name.to_string()]);
    cluster.beat(stream, fetched("one", &copied));
    // It is not in the catalog yet.
    cluster.join(with_disk("second", "two")).await.unwrap();
    let stream = cluster.open_stream();
    cluster.beat(stream, fetched("two", &[]));
    cluster.record_fetched().await;
    assert_eq!(readable(&cluster, &name), ["w2"].map(WorkerId::from));
    let copied = ordered(&cluster, stream, "two");
    assert_eq!(copied, [name.to_string()]);
    cluster.beat(stream, fetched("two", &copied));
    cluster.record_fetched().await;
    assert_eq!(readable(&cluster, &name), ["w1", "w2"].map(WorkerId::from));
}

#[tokio::test]
async fn what_was_lost_stays_so_when_the_copy_that_was_lost_too_is_recorded() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    join(&cluster, "w2", &[]).await;
    let mut held = segment(id, 0, "w1");
    held.replicas.push("w2".into());
    let name = held.name();
    cluster.catalog.apply(commit("x", &held)).await.unwrap();
    cluster.join(with_disk("first", "one")).await.unwrap();
    let stream = cluster.open_stream();
    cluster.beat(stream, fetched("one", &[]));
    let copied = ordered(&cluster, stream, "one");
    assert_eq!(copied, [name.to_string()], "it came with nothing");
    cluster.beat(stream, fetched("one", &copied));
    cluster.join(with_disk("second", "two")).await.unwrap();
    cluster.beat(cluster.open_stream(), fetched("two", &[]));
    cluster.record_fetched().await;
    assert_eq!(readable(&cluster, &name), ["w2"].map(WorkerId::from));
}

#[tokio::test]
async fn a_worker_says_again_what_disk_it_has_where_the_catalog_shows_another() {
    let cluster = cluster().await;
    cluster.join(with_disk("first", "one")).await.unwrap();
    let stream = cluster.open_stream();
    assert!(!cluster.beat(stream, fetched("one", &[])).report);
    // As a process would have it that was there before, and is heard late.
    let late = Command::RegisterDisk { worker: "w1".into(), disk: "before".to_owned() };
    cluster.catalog.apply(late).await.unwrap();
    assert!(cluster.beat(stream, fetched("one", &[])).report);
    cluster.join(JoinRequest { number: 1, ..with_disk("first", "one") }).await.unwrap();
    assert_eq!(cluster.catalog.snapshot().disk(&"w1".into()), Some("first"));
    assert!(!cluster.beat(stream, fetched("one", &[])).report);
}
