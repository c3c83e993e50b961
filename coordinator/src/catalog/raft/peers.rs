//! Calls to the other coordinators.

use std::time::Duration;

use openraft::BasicNode;
use openraft::error::{
    Infallible, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
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
use tokio_util::task::AbortOnDropHandle;

use super::core::Answer;
use super::types::{CoordinatorId, LeaderId, LogId, TypeConfig, Vote};

/// How often a coordinator that cannot be reached is tried.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How long it may take to keep entries, which openraft asks for again at each
/// heartbeat.
const APPEND_MAX: Duration = Duration::from_secs(5);

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
    /// To give shards other workers, as the leader.
    Rebalance,
    /// To ask for votes in place of a leader that stops or is gone.
    Elect,
    /// Whether it leads, and to say when it does not any more.
    Attend,
    /// Whether it misses the leader, too.
    Misses,
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
        let message = message(request).map_err(|error| unreadable(&error))?;
        self.send((to, address), call, message, limit).await
    }

    /// Asks the coordinator of this number to ask for votes in place of a leader.
    ///
    /// # Errors
    /// As [`Peers::call`].
    pub async fn elect(
        &self,
        (to, address): (CoordinatorId, &str),
        leader: LeaderId,
        limit: Duration,
    ) -> Result<Answer<()>, Failure> {
        // Older versions know the number only.
        let message = message(&leader.node_id).map_err(|error| unreadable(&error))?;
        let message = Payload { term: leader.term, ..message };
        self.send((Some(to), address), Call::Elect, message, limit).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        (to, address): (Option<CoordinatorId>, &str),
        call: Call,
        message: Payload,
        limit: Duration,
    ) -> Result<T, Failure> {
        let mut client = ConsensusClient::new(self.channels.get(address)?)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let to = to.unwrap_or_default();
        let payload = Payload { cluster: self.cluster.clone(), to, ..message };
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
                Call::Rebalance => client.rebalance(payload).await,
                Call::Elect => client.elect(payload).await,
                Call::Attend => client.attend(payload).await,
                Call::Misses => client.misses(payload).await,
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

/// What is asked, for whoever it will be sent to.
fn message(request: &impl Serialize) -> Result<Payload, serde_json::Error> {
    Ok(Payload { json: serde_json::to_vec(request)?.into(), ..Payload::default() })
}

fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("a message between coordinators: {error}"))
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: CoordinatorId, node: &BasicNode) -> Peer {
        Peer { peers: self.clone(), target, address: node.addr.clone(), under_way: None }
    }
}

/// One of them, for openraft.
#[derive(Debug)]
pub struct Peer {
    peers: Peers,
    target: CoordinatorId,
    address: String,
    under_way: Option<UnderWay>,
}

type Failed<E> = RPCError<CoordinatorId, BasicNode, RaftError<CoordinatorId, E>>;
type Appended = Result<AppendEntriesResponse<CoordinatorId>, Failed<Infallible>>;

/// Entries that were sent and not answered yet.
#[derive(Debug)]
struct UnderWay {
    vote: Vote,
    previous: Option<LogId>,
    last: LogId,
    answer: AbortOnDropHandle<Appended>,
}

impl UnderWay {
    /// Whether this request asks for them again, and perhaps for more.
    fn is_of(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        self.vote == request.vote
            && self.previous == request.prev_log_id
            && request.entries.iter().any(|entry| entry.log_id == self.last)
    }
}

impl Peer {
    async fn ask<T: DeserializeOwned, E: std::error::Error + DeserializeOwned>(
        &self,
        call: Call,
        message: Payload,
        limit: Duration,
    ) -> Result<T, Failed<E>> {
        ask(&self.peers, (self.target, &self.address), call, message, limit).await
    }

    fn begin_append(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
        last: LogId,
    ) -> Result<UnderWay, NetworkError> {
        let message = encode(request)?;
        let (peers, target, address) = (self.peers.clone(), self.target, self.address.clone());
        let asking = async move { ask(&peers, (target, &address), Call::Append, message, APPEND_MAX).await };
        let answer = AbortOnDropHandle::new(tokio::spawn(asking));
        Ok(UnderWay { vote: request.vote, previous: request.prev_log_id, last, answer })
    }
}

async fn ask<T: DeserializeOwned, E: std::error::Error + DeserializeOwned>(
    peers: &Peers,
    (target, address): (CoordinatorId, &str),
    call: Call,
    message: Payload,
    limit: Duration,
) -> Result<T, Failed<E>> {
    let answer: Result<Result<T, RaftError<CoordinatorId, E>>, Failure> =
        peers.send((Some(target), address), call, message, limit).await;
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(refused)) => Err(RPCError::RemoteError(RemoteError::new(target, refused))),
        Err(failure) => Err(RPCError::Unreachable(Unreachable::new(&failure))),
    }
}

fn encode(request: &impl Serialize) -> Result<Payload, NetworkError> {
    message(request).map_err(|error| NetworkError::new(&error))
}

impl RaftNetwork<TypeConfig> for Peer {
    /// openraft waits for one heartbeat and then asks for the same again, for
    /// ever if it takes longer: what is under way is waited for, not sent again.
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Appended {
        let Some(last) = request.entries.last().map(|entry| entry.log_id) else {
            // It only says that there is a leader, and need not wait.
            return self.ask(Call::Append, encode(&request)?, option.hard_ttl()).await;
        };
        let under_way = match self.under_way.take().filter(|under_way| under_way.is_of(&request)) {
            Some(under_way) => under_way,
            None => self.begin_append(&request, last)?,
        };
        let UnderWay { last: sent, answer, .. } = self.under_way.insert(under_way);
        let sent = *sent;
        let answer = answer.await;
        self.under_way = None;
        match answer.map_err(|error| NetworkError::new(&error))? {
            Ok(AppendEntriesResponse::Success) if sent != last => {
                Ok(AppendEntriesResponse::PartialSuccess(Some(sent)))
            }
            answer => answer,
        }
    }

    async fn install_snapshot(
        &mut self,
        mut request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<CoordinatorId>, Failed<InstallSnapshotError>> {
        // As JSON each byte would be a number of up to three digits.
        let data = std::mem::take(&mut request.data);
        let message = Payload { data: data.into(), ..encode(&request)? };
        self.ask(Call::InstallSnapshot, message, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<CoordinatorId>,
        option: RPCOption,
    ) -> Result<VoteResponse<CoordinatorId>, Failed<Infallible>> {
        self.ask(Call::Vote, encode(&request)?, option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_INTERVAL))
    }
}

#[cfg(test)]
pub(super) mod tests;
