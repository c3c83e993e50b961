//! What only the leader does.

use futures::FutureExt;
use openraft::{BasicNode, ChangeMembers};

use super::*;
use crate::catalog::WriteRecord;

async fn until_there_are(cluster: &Cluster, coordinators: usize) {
    let mut metrics = cluster.catalog.consensus().raft.metrics();
    let seen = metrics.wait_for(|now| now.membership_config.membership().nodes().count() == coordinators);
    assert!(seen.await.is_ok());
}

#[tokio::test]
async fn who_does_not_say_what_it_needs_holds_up_removals_and_no_copies() {
    let cluster = cluster().await;
    let id = with_table(&cluster).await;
    let stream = connect(&cluster, "w1", &[]).await;
    connect(&cluster, "w2", &[]).await;
    // `w1` should hold what is on `w2`, and has what is replaced by that.
    let (gone, lacking) = (segment(id, 0, "w1"), segment(id, 0, "w2"));
    cluster.catalog.apply(commit("first", &gone)).await.unwrap();
    let write = WriteRecord { id: "second".into(), rows: lacking.rows };
    let segments = vec![lacking.clone()];
    let replace = Command::CommitWrite { write, table: id, segments, replace: true, sketches: None };
    cluster.catalog.apply(replace).await.unwrap();
    // Nobody is there.
    let raft = &cluster.catalog.consensus().raft;
    raft.add_learner(2, BasicNode::new("http://127.0.0.1:1"), false).await.unwrap();
    until_there_are(&cluster, 2).await;

    let leads = cluster.lead();
    cluster.collect(leads);
    let mut asking = Box::pin(cluster.ask_needs());
    assert!(futures::poll!(&mut asking).is_pending(), "the other one is not asked");
    assert!(cluster.look_after_workers().now_or_never().is_some(), "a round waits for its answer");
    let orders = beat(&cluster, "w1", stream);
    let fetch: Vec<_> = orders.fetch.into_iter().map(|request| request.name).collect();
    assert_eq!(fetch, [lacking.name().to_string()]);
    asking.await;
    cluster.look_after_workers().await;
    assert!(beat(&cluster, "w1", stream).discard.is_empty(), "the other one may read it");

    let without = ChangeMembers::RemoveNodes(BTreeSet::from([2]));
    raft.change_membership(without, false).await.unwrap();
    until_there_are(&cluster, 1).await;
    cluster.ask_needs().await;
    cluster.look_after_workers().await;
    assert_eq!(beat(&cluster, "w1", stream).discard, [gone.name().to_string()]);
}
