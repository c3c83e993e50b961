//! Claims about several catalogs that agree over real sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shoal_proto::server::{self, Incoming};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::Error;
use crate::catalog::{Catalog, CatalogOptions, Command, Outcome};
use crate::config::DEAD_AFTER;

/// What an election, or the news of it, may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// One coordinator's catalog and what serves it to the others.
struct Node {
    cluster: Arc<Cluster>,
    served: JoinHandle<()>,
    end: CancellationToken,
    address: SocketAddr,
    dir: TempDir,
}

impl std::ops::Deref for Node {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        self.cluster.catalog()
    }
}

impl Node {
    async fn start(join: &[&Node]) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        Self::start_in(tempfile::tempdir().unwrap(), address, join).await
    }

    async fn start_in(dir: TempDir, address: SocketAddr, join: &[&Node]) -> Self {
        let node = Self::begin_in(dir, address, join).await;
        node.enlist().await;
        node
    }

    /// As [`Self::start_in`], and not counted in yet.
    async fn begin_in(dir: TempDir, address: SocketAddr, join: &[&Node]) -> Self {
        let (listener, address) = server::bind(address).await.unwrap();
        let join = join.iter().map(|node| format!("http://{}", node.address)).collect();
        let catalog = open(dir.path(), address, join).await.unwrap();
        let cluster = Arc::new(Cluster::new(catalog, DEAD_AFTER));
        let service = ConsensusService::new(Arc::clone(&cluster)).into_server();
        let end = CancellationToken::new();
        let served = server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(Incoming::new(listener), end.clone().cancelled_owned());
        let served = tokio::spawn(async move { served.await.unwrap() });
        Self { cluster, served, end, address, dir }
    }

    /// Ends it; where it was, to start it again.
    async fn stop(self) -> (TempDir, SocketAddr) {
        self.end.cancel();
        self.served.await.unwrap();
        drop(self.cluster);
        (self.dir, self.address)
    }

    fn json(&self) -> String {
        serde_json::to_string(self.snapshot().as_ref()).unwrap()
    }
}

async fn open(dir: &Path, address: SocketAddr, join: Vec<String>) -> Result<Catalog, Error> {
    Catalog::open(CatalogOptions {
        dir: dir.to_owned(),
        address: format!("http://{address}"),
        listening: address.ip(),
        join,
        force_new_cluster: false,
    })
    .await
}

fn schema(name: impl Into<String>) -> Command {
    Command::CreateSchema { name: name.into(), if_not_exists: false }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < SOON, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_was_told_all_know_also_who_came_late() {
    let first = Node::start(&[]).await;
    // More than the log keeps: who comes later gets a snapshot.
    let made = join_all((0..2_500).map(|number| first.apply(schema(format!("s{number}"))))).await;
    assert!(made.iter().all(Result::is_ok));
    until("the log is cut", || first.consensus().raft.metrics().borrow().purged.is_some()).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&second]).await;
    // Whoever leads says that it is counted in before it hears so itself.
    until("the third knows of all three", || {
        third.coordinators().iter().filter(|it| it.is_voter).count() == 3
    })
    .await;
    for (node, name) in [(&first, "by1"), (&second, "by2"), (&third, "by3")] {
        assert_eq!(node.apply(schema(name)).await.unwrap(), Outcome::Done);
        assert!(node.snapshot().has_schema(name), "who made {name} does not see it");
        for other in [&first, &second, &third] {
            other.catch_up().await.unwrap();
            assert!(other.snapshot().has_schema(name) && other.snapshot().has_schema("s2499"), "{name}");
        }
    }
    assert_eq!(first.json(), second.json());
    assert_eq!(first.json(), third.json());
    let refused = third.apply(schema("by1")).await.unwrap_err();
    assert!(matches!(refused, Error::AlreadyExists(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_go_on_and_one_does_not() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&first]).await;
    first.apply(schema("before")).await.unwrap();
    let (first_dir, first_address) = first.stop().await;
    assert_eq!(second.apply(schema("without_first")).await.unwrap(), Outcome::Done);
    third.catch_up().await.unwrap();
    assert!(third.snapshot().has_schema("without_first"));
    let (second_dir, second_address) = second.stop().await;
    let alone = third.catch_up().await.unwrap_err().to_string();
    assert!(alone.contains("no majority of the coordinators"), "{alone}");
    let unsettled = third.change(schema("alone")).await.unwrap_err();
    let message = Error::from(unsettled).to_string();
    assert!(message.contains("no majority of the coordinators"), "{message}");
    let first = Node::start_in(first_dir, first_address, &[]).await;
    first.apply(schema("again")).await.unwrap();
    let second = Node::start_in(second_dir, second_address, &[]).await;
    for node in [&first, &second, &third] {
        node.catch_up().await.unwrap();
        assert!(node.snapshot().has_schema("again") && node.snapshot().has_schema("without_first"));
    }
    assert_eq!(first.json(), third.json());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_and_no_change_is_lost() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&first]).await;
    assert!(first.is_leader());
    let (on_first, on_third) = (Catalog::clone(&first), Catalog::clone(&third));
    let changes = tokio::spawn(async move {
        for number in 0..100 {
            let on = if number % 2 == 0 { &on_first } else { &on_third };
            assert_eq!(on.apply(schema(format!("s{number}"))).await.unwrap(), Outcome::Done);
        }
    });
    until("changes are made", || first.snapshot().has_schema("s10")).await;
    first.hand_over().await;
    // Without that it would lead until it is stopped.
    let leads = first.coordinators().into_iter().find(|it| it.is_leader).unwrap();
    assert!(!leads.is_self, "{leads:?}");
    until("the next one leads", || second.is_leader() || third.is_leader()).await;
    changes.await.unwrap();
    // It goes on as one that follows, and hands over nothing.
    first.hand_over().await;
    assert_eq!(first.apply(schema("after")).await.unwrap(), Outcome::Done);
    for node in [&first, &second, &third] {
        node.catch_up().await.unwrap();
        assert!(node.snapshot().has_schema("s99") && node.snapshot().has_schema("after"));
    }
    assert_eq!(first.json(), second.json());
    first.stop().await;
    assert_eq!(second.apply(schema("without_first")).await.unwrap(), Outcome::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_alone_hands_over_nothing() {
    let only = Node::start(&[]).await;
    only.hand_over().await;
    assert!(only.is_leader());
    assert_eq!(only.apply(schema("s")).await.unwrap(), Outcome::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_coordinator_stays_out() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    let third = Node::start(&[&first]).await;
    let number = second.consensus().me;
    let unknown = third.dismiss(99).await.unwrap_err().to_string();
    assert!(unknown.contains("there is no coordinator 99"), "{unknown}");
    third.dismiss(number).await.unwrap();
    assert!(first.coordinators().iter().all(|it| it.id != number));
    let request = crate::catalog::Enlist {
        coordinator: Some(number),
        address: "http://127.0.0.1:9".into(),
        may_forward: false,
    };
    let refused = third.consensus().enlist(&request).await.unwrap_err().to_string();
    assert!(refused.contains("was removed from the cluster"), "{refused}");
    second.stop().await;
    // It does not count any more: the other two are both of them.
    first.apply(schema("s")).await.unwrap();
    third.dismiss(first.consensus().me).await.unwrap();
    until("the last one leads", || third.is_alone()).await;
    third.apply(schema("t")).await.unwrap();
    let last = third.dismiss(third.consensus().me).await.unwrap_err().to_string();
    assert!(last.contains("is the only one"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_rebalances_whoever_is_asked() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[&first]).await;
    until("the first one leads", || first.is_leader()).await;
    for node in [&first, &second] {
        let rebalanced = node.cluster.rebalance().await.unwrap();
        assert_eq!(rebalanced.why_not, "no worker can take shards");
    }
    first.stop().await;
    let alone = second.cluster.rebalance().await.unwrap_err().to_string();
    assert!(alone.contains("no majority of the coordinators"), "{alone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_come_at_once_are_taken_in_one_after_the_other() {
    let first = Node::start(&[]).await;
    let begin = async || {
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        Node::begin_in(tempfile::tempdir().unwrap(), anywhere, &[&first]).await
    };
    let (second, third) = (begin().await, begin().await);
    let request = |node: &Node| crate::catalog::Enlist {
        coordinator: Some(node.consensus().me),
        address: format!("http://{}", node.address),
        may_forward: false,
    };
    let (one, other) = (request(&second), request(&third));
    let leader = first.consensus();
    let (one, other) = tokio::join!(leader.enlist_here(&one), leader.enlist_here(&other));
    for taken in [one, other] {
        assert!(matches!(taken, Ok(Answer::Done(_))), "{taken:?}");
    }
    until("all count", || first.coordinators().iter().filter(|it| it.is_voter).count() == 3).await;
}

type Members = openraft::ChangeMembers<u64, openraft::BasicNode>;

/// Begins a change of the members, and is gone between its two halves.
async fn leave_half_way(node: &Node, change: Members) {
    let raft = &node.consensus().raft;
    let mut metrics = raft.metrics();
    let is_joint = |now: &openraft::RaftMetrics<u64, openraft::BasicNode>| {
        now.membership_config.membership().get_joint_config().len() > 1
    };
    let since = Instant::now();
    loop {
        tokio::select! {
            biased;
            joint = metrics.wait_for(is_joint) => {
                assert!(joint.is_ok());
                return;
            }
            // The one before may still be on its way to a majority.
            changed = raft.change_membership(change.clone(), false) => {
                assert!(changed.is_err() && since.elapsed() < SOON, "it was not left half-way: {changed:?}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_members_that_was_left_half_way_is_completed() {
    let first = Node::start(&[]).await;
    let _second = Node::start(&[&first]).await;
    let voters =
        || -> Vec<u64> { first.coordinators().iter().filter(|it| it.is_voter).map(|it| it.id).collect() };
    let is_done = |expected: &[u64]| {
        !first.consensus().is_changing()
            && voters() == expected
            && first.coordinators().len() == expected.len()
    };
    for gone in [8, 9] {
        let nobody = openraft::BasicNode::new("http://127.0.0.1:1");
        let raft = &first.consensus().raft;
        let since = Instant::now();
        // The change before may still be on its way to a majority.
        while let Err(error) = raft.add_learner(gone, nobody.clone(), false).await {
            assert!(since.elapsed() < SOON, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        leave_half_way(&first, Members::AddVoterIds([gone].into())).await;
        until("it is added", || is_done(&[1, 2, gone])).await;
        if gone == 8 {
            leave_half_way(&first, Members::RemoveVoters([gone].into())).await;
        } else {
            // Whoever removes it is gone before the first half.
            first.apply(Command::DismissCoordinator { coordinator: gone }).await.unwrap();
        }
        until("it is removed", || is_done(&[1, 2])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_an_older_version_is_refused() {
    let only = Node::start(&[]).await;
    let consensus = only.consensus();
    let piece = InstallSnapshotRequest::<TypeConfig> {
        vote: openraft::Vote::new_committed(99, 2),
        meta: openraft::SnapshotMeta::default(),
        offset: 0,
        data: b"{}".to_vec(),
        done: true,
    };
    let payload = Payload {
        cluster: consensus.cluster.clone(),
        json: serde_json::to_vec(&piece).unwrap().into(),
        to: consensus.me,
        ..Payload::default()
    };
    let service = ConsensusService::new(Arc::clone(&only.cluster));
    let refused = service.install_snapshot(Request::new(payload)).await.unwrap_err();
    assert!(refused.message().contains("of an older version"), "{refused}");
    assert_eq!(only.apply(schema("s")).await.unwrap(), Outcome::Done);
}

#[tokio::test]
async fn who_cannot_be_taken_in_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let address = (Ipv4Addr::LOCALHOST, 1).into();
    let error = open(dir.path(), address, vec!["http://127.0.0.1:1".to_owned()]).await.unwrap_err();
    assert!(error.to_string().contains("no coordinator took this one in"), "{error}");
}

mod succession;
