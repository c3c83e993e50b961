//! The `Consensus` service: translates and forwards, decides nothing.

use std::sync::Arc;

use async_trait::async_trait;
use openraft::raft::InstallSnapshotRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::consensus::Payload;
use shoal_proto::consensus::consensus_server::{Consensus, ConsensusServer};
use shoal_proto::{ErrorCode, Failure};
use tonic::{Request, Response, Status};

use super::adapter::Cluster;
use crate::catalog::{Answer, TypeConfig};

/// Serves a [`Cluster`]'s catalog to the other coordinators.
#[derive(Clone, Debug)]
pub struct ConsensusService(Arc<Cluster>);

impl ConsensusService {
    /// Serves for this cluster.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self(cluster)
    }

    /// The service, ready to be added to a server.
    pub fn into_server(self) -> ConsensusServer<Self> {
        ConsensusServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What a coordinator of this cluster says; a new one may not know yet which
    /// that is.
    fn read<T: DeserializeOwned>(&self, request: Request<Payload>, may_be_new: bool) -> Result<T, Status> {
        let payload = request.into_inner();
        let consensus = self.0.catalog().consensus();
        let ours = &consensus.cluster;
        if payload.cluster != *ours && !(may_be_new && payload.cluster.is_empty()) {
            let message = format!("this is a coordinator of cluster {ours}, not of {}", payload.cluster);
            return Err(Failure::new(ErrorCode::Invalid, message).to_status());
        }
        if payload.to != 0 && payload.to != consensus.me {
            // It may stand where one stood whose log it does not have.
            let message = format!("this is coordinator {}, not {}", consensus.me, payload.to);
            return Err(Failure::new(ErrorCode::Invalid, message).to_status());
        }
        serde_json::from_slice(&payload.json).map_err(|error| unreadable(&error))
    }
}

type Reply = Result<Response<Payload>, Status>;

fn reply(answer: &impl Serialize) -> Reply {
    let json = serde_json::to_vec(answer).map_err(|error| unreadable(&error))?;
    Ok(Response::new(Payload { json: json.into(), ..Payload::default() }))
}

fn reply_or_failure<T: Serialize>(answer: Result<Answer<T>, Failure>) -> Reply {
    reply(&answer.unwrap_or_else(Answer::Failed))
}

fn unreadable(error: &serde_json::Error) -> Status {
    Failure::new(ErrorCode::Internal, format!("a message between coordinators: {error}")).to_status()
}

#[async_trait]
impl Consensus for ConsensusService {
    async fn append(&self, request: Request<Payload>) -> Reply {
        let entries = self.read(request, false)?;
        reply(&self.0.catalog().consensus().raft.append_entries(entries).await)
    }

    async fn vote(&self, request: Request<Payload>) -> Reply {
        let vote = self.read(request, false)?;
        reply(&self.0.catalog().consensus().raft.vote(vote).await)
    }

    async fn install_snapshot(&self, mut request: Request<Payload>) -> Reply {
        let data = std::mem::take(&mut request.get_mut().data);
        let mut piece: InstallSnapshotRequest<TypeConfig> = self.read(request, false)?;
        if !piece.data.is_empty() {
            // In a form that this one would take for damage, and end.
            let message = "a snapshot of a coordinator of an older version: update that one first";
            return Err(Failure::new(ErrorCode::Unsupported, message).to_status());
        }
        piece.data = data.into();
        reply(&self.0.catalog().consensus().raft.install_snapshot(piece).await)
    }

    async fn propose(&self, request: Request<Payload>) -> Reply {
        let proposal = self.read(request, false)?;
        reply_or_failure(self.0.catalog().consensus().propose_here(proposal).await)
    }

    async fn read_index(&self, request: Request<Payload>) -> Reply {
        self.read::<()>(request, false)?;
        reply_or_failure(self.0.catalog().consensus().read_index().await)
    }

    async fn enlist(&self, request: Request<Payload>) -> Reply {
        let enlist: crate::catalog::Enlist = self.read(request, true)?;
        let consensus = self.0.catalog().consensus();
        if enlist.may_forward && !consensus.is_leader() {
            // A new one knows one coordinator only, which need not be the leader.
            let enlisted = consensus.enlist(&enlist).await.map_err(Failure::from);
            return reply_or_failure(enlisted.map(Answer::Done));
        }
        reply_or_failure(consensus.enlist_here(&enlist).await)
    }

    async fn dismiss(&self, request: Request<Payload>) -> Reply {
        let coordinator = self.read(request, false)?;
        reply_or_failure(self.0.catalog().consensus().dismiss_here(coordinator).await)
    }

    async fn needs(&self, request: Request<Payload>) -> Reply {
        let asked: Vec<shoal_data::SegmentName> = self.read(request, false)?;
        reply(&self.0.needs(&asked))
    }

    async fn rebalance(&self, request: Request<Payload>) -> Reply {
        self.read::<()>(request, false)?;
        reply_or_failure(self.0.rebalance_here().await)
    }

    async fn elect(&self, request: Request<Payload>) -> Reply {
        let term = request.get_ref().term;
        let leader = self.read(request, false)?;
        reply_or_failure(self.0.catalog().consensus().elect_here(leader, term).await)
    }

    async fn attend(&self, request: Request<Payload>) -> Reply {
        let attend = self.read(request, false)?;
        reply(&self.0.catalog().consensus().attend_here(attend).await)
    }

    async fn misses(&self, request: Request<Payload>) -> Reply {
        let leader = self.read(request, false)?;
        reply(&self.0.catalog().consensus().misses(leader).await)
    }
}

#[cfg(test)]
mod tests;
