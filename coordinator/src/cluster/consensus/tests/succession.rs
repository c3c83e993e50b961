//! Claims about who leads after a leader that is gone.

use super::*;

type Vote = openraft::Vote<u64>;

/// Whom it votes for, and whether that one leads.
async fn vote_of(node: &Node) -> Vote {
    node.consensus().raft.with_raft_state(|state| *state.vote_ref()).await.unwrap()
}

/// Nobody asks for votes any more because some time has passed: whoever leads next
/// does so because the one before was missed.
fn without_timers(nodes: &[&Node]) {
    for node in nodes {
        node.consensus().raft.runtime_config().elect(false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_gone_is_missed_and_replaced() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&first]).await;
    without_timers(&[&first, &second, &third]);
    first.apply(schema("before")).await.unwrap();
    for node in [&second, &third] {
        node.catch_up().await.unwrap();
    }
    let led = vote_of(&second).await;
    assert!(led.committed && led.leader_id.node_id == first.consensus().me, "{led}");
    // One that thinks otherwise is alone with that.
    let missed = third.consensus().misses(led.leader_id).await;
    assert!(missed.is_none(), "{missed:?}");
    second.consensus().replace(led.leader_id).await;
    assert_eq!(vote_of(&second).await, led);
    first.stop().await;
    until("another one leads", || second.is_leader() || third.is_leader()).await;
    assert_eq!(second.apply(schema("after")).await.unwrap(), Outcome::Done);
    third.catch_up().await.unwrap();
    assert!(third.snapshot().has_schema("before") && third.snapshot().has_schema("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lives_and_leads_no_more_is_replaced() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&first]).await;
    without_timers(&[&first, &second, &third]);
    first.apply(schema("before")).await.unwrap();
    for node in [&second, &third] {
        node.catch_up().await.unwrap();
    }
    // Somebody whom nobody hears of again has its vote, as soon as it may give that.
    let led = vote_of(&first).await.leader_id;
    let request = openraft::raft::VoteRequest {
        vote: Vote::new(led.term + 1, 99),
        last_log_id: Some(openraft::LogId::new(led, u64::MAX)),
    };
    let since = Instant::now();
    while !first.consensus().raft.vote(request.clone()).await.unwrap().vote_granted {
        assert!(since.elapsed() < SOON, "it never gives its vote");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (node, name) in [(&first, "by1"), (&second, "by2"), (&third, "by3")] {
        assert_eq!(node.apply(schema(name)).await.unwrap(), Outcome::Done, "{name}");
    }
    assert!(vote_of(&first).await.leader_id > request.vote.leader_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_asks_for_no_votes_alone() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    without_timers(&[&first, &second]);
    second.catch_up().await.unwrap();
    let led = vote_of(&second).await;
    assert!(led.committed, "{led}");
    first.stop().await;
    // As often as it misses it.
    for _ in 0..3 {
        second.consensus().replace(led.leader_id).await;
    }
    assert_eq!(vote_of(&second).await, led);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longer_log_leads_also_with_the_smaller_number() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&first]).await;
    without_timers(&[&first, &second, &third]);
    first.apply(schema("before")).await.unwrap();
    third.catch_up().await.unwrap();
    let (third_dir, third_address) = third.stop().await;
    first.apply(schema("without_third")).await.unwrap();
    first.stop().await;
    let third = Node::begin_in(third_dir, third_address, &[]).await;
    without_timers(&[&third]);
    until("the one with the longer log leads", || second.is_leader()).await;
    assert_eq!(third.apply(schema("after")).await.unwrap(), Outcome::Done);
    assert!(third.snapshot().has_schema("without_third"));
}
