//! Claims about calls that take longer than openraft waits.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use openraft::{CommittedLeaderId, EntryPayload};
use shoal_proto::consensus::consensus_server::{Consensus, ConsensusServer};
use shoal_proto::server::{self, Incoming};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::*;
use crate::catalog::raft::types::Entry;

type Reply = Result<Response<Payload>, Status>;

/// Answers to entries when it may, and to all else at once. It is of a version in
/// which a leader was not attended.
#[derive(Clone)]
pub(in crate::catalog::raft) struct Slow {
    may_answer: Arc<Semaphore>,
    appends: Arc<AtomicUsize>,
}

type Serving = AbortOnDropHandle<Result<(), tonic::transport::Error>>;

impl Slow {
    /// Serves, and where.
    pub(in crate::catalog::raft) async fn serve() -> (Self, Serving, String) {
        let slow = Self { may_answer: Arc::new(Semaphore::new(0)), appends: Arc::default() };
        let (listener, address) = server::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let service = ConsensusServer::new(slow.clone());
        let serving = server::builder().add_service(service).serve_with_incoming(Incoming::new(listener));
        (slow, AbortOnDropHandle::new(tokio::spawn(serving)), format!("http://{address}"))
    }
}

fn success() -> Reply {
    let answer: Result<_, RaftError<CoordinatorId>> = Ok(AppendEntriesResponse::<CoordinatorId>::Success);
    let json = serde_json::to_vec(&answer).unwrap();
    Ok(Response::new(Payload { json: json.into(), ..Payload::default() }))
}

#[async_trait]
impl Consensus for Slow {
    async fn append(&self, request: Request<Payload>) -> Reply {
        let json = request.into_inner().json;
        let request: AppendEntriesRequest<TypeConfig> = serde_json::from_slice(&json).unwrap();
        if !request.entries.is_empty() {
            self.appends.fetch_add(1, Ordering::Relaxed);
            self.may_answer.acquire().await.unwrap().forget();
        }
        success()
    }

    async fn vote(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn install_snapshot(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn propose(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn read_index(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn enlist(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn dismiss(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn needs(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn rebalance(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn elect(&self, _: Request<Payload>) -> Reply {
        success()
    }

    async fn attend(&self, _: Request<Payload>) -> Reply {
        Err(Status::unimplemented("no such call"))
    }

    async fn misses(&self, _: Request<Payload>) -> Reply {
        Err(Status::unimplemented("no such call"))
    }
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

/// Everything behind entry 1 up to `last`.
fn request(term: u64, last: u64) -> AppendEntriesRequest<TypeConfig> {
    let entry = |index| Entry { log_id: log_id(index), payload: EntryPayload::Blank };
    AppendEntriesRequest {
        vote: Vote::new_committed(term, 1),
        prev_log_id: Some(log_id(1)),
        entries: (2..=last).map(entry).collect(),
        leader_commit: None,
    }
}

#[tokio::test]
async fn entries_that_take_longer_than_a_heartbeat_are_sent_once() {
    let (slow, _serving, address) = Slow::serve().await;
    let mut peers = Peers::new(Channels::new(tokio::runtime::Handle::current()), "c");
    let mut peer = peers.new_client(2, &BasicNode::new(address)).await;
    let heartbeat = Duration::from_millis(50);
    let option = || RPCOption::new(heartbeat);
    // The log grows meanwhile.
    for last in [3, 3, 4] {
        let asked = tokio::time::timeout(heartbeat, peer.append_entries(request(1, last), option())).await;
        assert!(asked.is_err(), "{asked:?}");
    }
    // That the leader is there is heard all the same.
    let there = RPCOption::new(Duration::from_secs(10));
    assert!(peer.append_entries(request(1, 1), there).await.unwrap().is_success());
    slow.may_answer.add_permits(1);
    let answer = peer.append_entries(request(1, 5), option()).await.unwrap();
    assert!(
        matches!(answer, AppendEntriesResponse::PartialSuccess(Some(last)) if last == log_id(3)),
        "{answer:?}"
    );
    assert_eq!(slow.appends.load(Ordering::Relaxed), 1);
    // What another leader sends is another thing.
    slow.may_answer.add_permits(1);
    assert!(peer.append_entries(request(2, 3), option()).await.unwrap().is_success());
    assert_eq!(slow.appends.load(Ordering::Relaxed), 2);
}
