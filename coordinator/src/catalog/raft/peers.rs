//! Calls to the other coordinators.

use std::time::Duration;

use openraft::BasicNode;
use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::consensus::Payload;
use shoal_proto::consensus::consensus_client::ConsensusClient;
use shoal_proto::{Channels, ErrorCode, Failure};

use super::types::{CoordinatorId, TypeConfig};

/// How often a coordinator that cannot be reached is tried.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// What a coordinator is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// To take entries of the log, or to hear that there is a leader.
    Append,
    /// To vote for a leader.
    Vote,
    /// To take a piece of a snapshot.
    InstallSnapshot,
    /// To make a change, as the leader.
    Propose,
    /// How much of the log a read must have seen, as the leader.
    ReadIndex,
    /// To take a coordinator in, as the leader.
    Enlist,
    /// To remove a coordinator, as the leader.
    Dismiss,
    /// What it needs of some segments.
    Needs,
}

/// The other coordinators of a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    channels: Channels,
    cluster: String,
}

impl Peers {
    /// The others of this cluster; an empty name is of one that is not known yet.
    pub fn new(channels: Channels, cluster: impl Into<String>) -> Self {
        Self { channels, cluster: cluster.into() }
    }

    /// Asks the coordinator at `address`, which may take `limit`; `to` is its
    /// number, where only that one may answer.
    ///
    /// # Errors
    /// `Unavailable` where it does not answer in time; what it says.
    pub async fn call<T: DeserializeOwned>(
        &self,
        (to, address): (Option<CoordinatorId>, &str),
        call: Call,
        request: &impl Serialize,
        limit: Duration,
    ) -> Result<T, Failure> {
        let json = serde_json::to_vec(request).map_err(|error| unreadable(&error))?;
        self.send((to, address), call, (json, Vec::new()), limit).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        (to, address): (Option<CoordinatorId>, &str),
        call: Call,
        (json, data): (Vec<u8>, Vec<u8>),
        limit: Duration,
    ) -> Result<T, Failure> {
        let mut client = ConsensusClient::new(self.channels.get(address)?)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let to = to.unwrap_or_default();
        let payload = Payload { cluster: self.cluster.clone(), json: json.into(), to, data: data.into() };
        let asked = async {
            match call {
                Call::Append => client.append(payload).await,
                Call::Vote => client.vote(payload).await,
                Call::InstallSnapshot => client.install_snapshot(payload).await,
                Call::Propose => client.propose(payload).await,
                Call::ReadIndex => client.read_index(payload).await,
                Call::Enlist => client.enlist(payload).await,
                Call::Dismiss => client.dismiss(payload).await,
                Call::Needs => client.needs(payload).await,
            }
        };
        let answer = tokio::time::timeout(limit, asked).await.map_err(|_| {
            Failure::new(ErrorCode::Unavailable, format!("coordinator {address} was silent for {limit:?}"))
        })?;
        // What it has to say it says in its answer: this is a broken connection.
        let answer = answer.map_err(|status| {
            Failure::new(ErrorCode::Unavailable, format!("coordinator {address}: {}", status.message()))
        })?;
        // It may have done what it was asked for.
        serde_json::from_slice(&answer.into_inner().json).map_err(|error| {
            Failure::new(
                ErrorCode::Unavailable,
                format!("coordinator {address} answers in another way: {error}"),
            )
        })
    }
}

fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("a message between coordinators: {error}"))
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: CoordinatorId, node: &BasicNode) -> Peer {
        Peer { peers: self.clone(), target, address: node.addr.clone() }
    }
}

/// One of them, for openraft.
#[derive(Debug)]
pub struct Peer {
    peers: Peers,
    target: CoordinatorId,
    address: String,
}

type Failed<E> = RPCError<CoordinatorId, BasicNode, RaftError<CoordinatorId, E>>;

impl Peer {
    async fn ask<T: DeserializeOwned, E: std::error::Error + DeserializeOwned>(
        &self,
        call: Call,
        (json, data): (Vec<u8>, Vec<u8>),
        option: &RPCOption,
    ) -> Result<T, Failed<E>> {
        let answer: Result<Result<T, RaftError<CoordinatorId, E>>, Failure> =
            self.peers.send((Some(self.target), &self.address), call, (json, data), option.hard_ttl()).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refused)) => Err(RPCError::RemoteError(RemoteError::new(self.target, refused))),
            Err(failure) => Err(RPCError::Unreachable(Unreachable::new(&failure))),
        }
    }
}

fn encode(request: &impl Serialize) -> Result<Vec<u8>, NetworkError> {
    serde_json::to_vec(request).map_err(|error| NetworkError::new(&error))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<CoordinatorId>, Failed<openraft::error::Infallible>> {
        let json = encode(&request)?;
        let entries = u64::try_from(request.entries.len()).unwrap_or(u64::MAX);
        if json.len() > MESSAGE_BYTES_MAX / 2 && entries > 1 {
            return Err(RPCError::PayloadTooLarge(PayloadTooLarge::new_entries_hint(entries / 2)));
        }
        self.ask(Call::Append, (json, Vec::new()), &option).await
    }

    async fn install_snapshot(
        &mut self,
        mut request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<CoordinatorId>, Failed<InstallSnapshotError>> {
        // As JSON each byte would be a number of up to three digits.
        let data = std::mem::take(&mut request.data);
        self.ask(Call::InstallSnapshot, (encode(&request)?, data), &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<CoordinatorId>,
        option: RPCOption,
    ) -> Result<VoteResponse<CoordinatorId>, Failed<openraft::error::Infallible>> {
        self.ask(Call::Vote, (encode(&request)?, Vec::new()), &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_INTERVAL))
    }
}
