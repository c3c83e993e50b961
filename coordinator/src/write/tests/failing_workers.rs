//! Workers that are away, silent or full while rows are written.

use shoal_proto::ErrorCode;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_gone_is_done_without() {
    let fixture = Fixture::new(0).await;
    fixture.cluster.addresses.lock().remove(&WorkerId::from("w2"));
    let staged = fixture.write(&table(1, &["k"]), rows(10, 10)).await.unwrap();
    let replicas: Vec<&str> = staged.segments[0].replicas.iter().map(WorkerId::as_str).collect();
    assert_eq!(replicas, ["w1", "w3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_is_waited_for_while_it_is_live_and_then_done_without() {
    let fixture = Fixture::new(0).await;
    fixture.stores[1].is_mute.store(true, Ordering::Relaxed);
    let table = table(1, &["k"]);
    let writing = fixture.write(&table, rows(10, 10));
    tokio::pin!(writing);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut writing).await;
    assert!(early.is_err(), "a live worker is not waited for");
    fixture.cluster.addresses.lock().remove(&WorkerId::from("w2"));
    let staged = tokio::time::timeout(Duration::from_secs(20), writing).await;
    let staged = staged.expect("the write waits for the silent").unwrap();
    let replicas: Vec<&str> = staged.segments[0].replicas.iter().map(WorkerId::as_str).collect();
    assert_eq!(replicas, ["w1", "w3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_silent_worker_is_waited_for() {
    let fixture = Fixture::new(0).await;
    for store in &fixture.stores[1..] {
        store.is_mute.store(true, Ordering::Relaxed);
    }
    let table = table(1, &["k"]);
    let writing = fixture.write(&table, rows(10, 10));
    tokio::pin!(writing);
    let first = tokio::time::timeout(Duration::from_millis(100), &mut writing).await;
    assert!(first.is_err());
    fixture.cluster.addresses.lock().remove(&WorkerId::from("w2"));
    let still = tokio::time::timeout(Duration::from_millis(300), &mut writing).await;
    assert!(still.is_err(), "one of three was taken for enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_answer_is_suspected() {
    let fixture = Fixture::new(0).await;
    // Bound and closed again: nobody listens there.
    let (listener, address) = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    drop(listener);
    fixture.cluster.addresses.lock().insert(WorkerId::from("w1"), format!("http://{address}"));
    let staged = fixture.write(&table(1, &["k"]), rows(10, 10)).await.unwrap();
    assert_eq!(staged.segments[0].replicas.len(), 2);
    assert!(fixture.cluster.suspected.lock().contains(&WorkerId::from("w1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_written_and_the_reasons_are_told() {
    let fixture = Fixture::new(0).await;
    for worker in ["w1", "w2"] {
        fixture.cluster.addresses.lock().remove(&WorkerId::from(worker));
    }
    let error = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains("w1: is not live; w2: is not live"), "{error}");
    assert!(error.to_string().contains("1 of its 3 workers"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_about_to_join_are_waited_for() {
    let fixture = Fixture::new(0).await;
    let known = std::mem::take(&mut *fixture.cluster.addresses.lock());
    let table = table(2, &["k"]);
    let writing = fixture.write(&table, rows(100, 10));
    let joining = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.cluster.addresses.lock().extend(known);
    };
    let (staged, ()) = tokio::join!(writing, joining);
    assert!(staged.unwrap().segments.iter().all(|segment| segment.replicas.len() >= 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_are_told_as_such() {
    let fixture = Fixture::new(0).await;
    for store in &fixture.stores[1..] {
        store.is_full.store(true, Ordering::Relaxed);
    }
    let error = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exhausted);
    assert!(error.to_string().contains("no space left"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_disk_of_three_is_done_without() {
    let fixture = Fixture::new(0).await;
    fixture.stores[1].is_full.store(true, Ordering::Relaxed);
    let staged = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap();
    assert_eq!((staged.segments.len(), staged.rows), (2, 100));
    for segment in &staged.segments {
        let replicas: Vec<&str> = segment.replicas.iter().map(WorkerId::as_str).collect();
        assert_eq!(replicas, ["w1", "w3"]);
    }
    for worker in [0, 2] {
        let mut keys: Vec<i64> = fixture.keys(worker).into_values().flatten().collect();
        keys.sort_unstable();
        assert!(keys.into_iter().eq(0..100), "worker {worker}");
    }
    assert!(fixture.keys(1).is_empty());
    // It answers, and what it holds can be read.
    assert!(fixture.cluster.suspected.lock().is_empty());
    staged.committed();
    assert!(fixture.cluster.discarded.lock().is_empty());
}
