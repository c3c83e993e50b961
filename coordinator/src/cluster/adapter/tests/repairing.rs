//! Whether others are to stand back for copies of what has too few.

use super::*;
use crate::cluster::EventKind;

/// So many segments that only `w2` has and `w1` should have, too; the stream of its
/// beats.
async fn with_too_few(cluster: &Cluster, segments: usize) -> (StreamNumber, Vec<Segment>) {
    let id = with_table(cluster).await;
    let stream = connect(cluster, "w1", &[]).await;
    join(cluster, "w2", &[]).await;
    let held: Vec<_> = (0..segments).map(|_| segment(id, 0, "w2")).collect();
    for (number, held) in held.iter().enumerate() {
        cluster.catalog.apply(commit(&number.to_string(), held)).await.unwrap();
    }
    let (schema_name, name, replicas) = ("public".to_owned(), "t".to_owned(), ReplicaCount::Count(2));
    cluster.catalog.apply(Command::SetReplicas { schema_name, name, replicas }).await.unwrap();
    (stream, held)
}

/// `w1` says that it has made this copy.
fn tell(cluster: &Cluster, stream: StreamNumber, made: &Segment) {
    let done = Beat {
        worker: "w1".to_owned(),
        incarnation: "one".to_owned(),
        fetched: vec![made.name().to_string()],
        ..Beat::default()
    };
    cluster.beat(stream, done);
}

/// The same, and it counts.
async fn make(cluster: &Cluster, stream: StreamNumber, made: &Segment) {
    tell(cluster, stream, made);
    cluster.record_fetched().await;
    let replicas = cluster.catalog.snapshot().segment(&made.name()).unwrap().replicas.clone();
    assert_eq!(replicas, ["w2", "w1"].map(WorkerId::from), "it is not counted");
}

#[tokio::test]
async fn copies_that_get_on_keep_others_waiting_however_long_ago_they_were_ordered() {
    let cluster = cluster().await;
    let (stream, segments) = with_too_few(&cluster, 3).await;
    let long_ago = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
    cluster.order_copies(long_ago);
    assert!(cluster.is_repairing());
    assert_eq!(beat(&cluster, "w1", stream).fetch.len(), segments.len(), "not all are ordered at once");
    cluster.order_copies(Instant::now());
    assert!(!cluster.is_repairing(), "nothing has come of them");
    for made in &segments[..2] {
        make(&cluster, stream, made).await;
        let made_at = Instant::now();
        cluster.order_copies(made_at);
        assert!(beat(&cluster, "w1", stream).fetch.is_empty(), "what is being made is ordered again");
        assert!(cluster.is_repairing(), "one was made a moment ago, and there is another one to make");
        cluster.order_copies(made_at + Duration::from_secs(11));
        assert!(!cluster.is_repairing(), "the next one does not get on");
    }
    make(&cluster, stream, &segments[2]).await;
    cluster.order_copies(Instant::now());
    assert!(!cluster.is_repairing(), "all are made");
    let events = cluster.events();
    let told: Vec<&str> = events
        .iter()
        .filter(|event| event.kind == EventKind::Repaired)
        .map(|event| event.message.as_str())
        .collect();
    assert!(
        matches!(told[..], [one] if one.starts_with("3 copies of what had too few were made, ")),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_was_made_since_the_round_began_is_not_ordered_again() {
    let cluster = cluster().await;
    let (stream, segments) = with_too_few(&cluster, 1).await;
    cluster.order_copies(Instant::now());
    assert_eq!(beat(&cluster, "w1", stream).fetch.len(), 1);
    tell(&cluster, stream, &segments[0]);
    cluster.order_copies(Instant::now());
    assert!(beat(&cluster, "w1", stream).fetch.is_empty(), "it is there");
}

#[tokio::test]
async fn who_leads_no_more_does_not_stand_back_for_copies() {
    let cluster = cluster().await;
    with_too_few(&cluster, 1).await;
    cluster.order_copies(Instant::now());
    assert!(cluster.is_repairing());
    // Another one leads, as it finds in the middle of a round.
    cluster.core.lock().leads_in = None;
    cluster.order_copies(Instant::now());
    assert!(!cluster.is_repairing());
}
