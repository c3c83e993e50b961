//! One coordinator's part in the consensus: who leads, and what is asked of
//! whoever does. Reads of the catalog; for changes see `changes`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use openraft::error::RaftError;
use openraft::{BasicNode, Raft, ServerState};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_proto::{ErrorCode, Failure};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::log::LogStore;
use super::machine::Published;
use super::members::Turns;
use super::peers::{Call, Peers};
use super::succession::Heard;
use super::types::{CoordinatorId, TypeConfig, term_of};
use crate::Error;

/// How long a read may.
const READ_MAX: Duration = Duration::from_secs(5);
/// After so long another coordinator is looked for.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a snapshot may take that is asked for.
const COMPACT_MAX: Duration = Duration::from_secs(120);
/// How often it is asked for again: while one is made, no other is begun.
const COMPACT_RETRY: Duration = Duration::from_secs(1);
/// How often who leads is asked for while nobody does.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// What the leader answers, or that it is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer<T> {
    /// Its answer.
    Done(T),
    /// It does not lead (any more).
    NotLeader,
    /// Why it cannot be done.
    Failed(Failure),
}

/// A coordinator as its cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// Its number.
    pub id: CoordinatorId,
    /// The URL at which it is reached.
    pub address: String,
    /// Whether it counts for a majority; otherwise it only follows, until it
    /// has caught up.
    pub is_voter: bool,
    /// Whether it leads, as far as this coordinator knows.
    pub is_leader: bool,
    /// Whether it is this one.
    pub is_self: bool,
}

/// A coordinator that wants to belong to the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enlist {
    /// Its number; none before it has one.
    pub coordinator: Option<CoordinatorId>,
    /// Where it is reached.
    pub address: String,
    /// Whether one that does not lead asks the leader; the leader's word it is
    /// otherwise.
    pub may_forward: bool,
}

/// Who it is now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enlisted {
    /// Id of the cluster.
    pub cluster: String,
    /// Its number.
    pub coordinator: CoordinatorId,
}

type Metrics = openraft::RaftMetrics<CoordinatorId, BasicNode>;

/// Where a call to the leader ended without an answer.
pub(super) struct Unanswered {
    /// Whether a leader may have got it.
    pub(super) is_sent: bool,
    pub(super) why: Failure,
}

/// The consensus, for this coordinator.
#[derive(Clone)]
pub struct Core {
    /// Its number.
    pub me: CoordinatorId,
    /// Id of its cluster.
    pub cluster: String,
    /// Where the others reach it.
    pub address: String,
    /// Whom it asked to be taken in.
    pub join: Vec<String>,
    /// The file of the catalog.
    pub path: PathBuf,
    /// What agrees on the log.
    pub raft: Raft<TypeConfig>,
    /// The log itself.
    pub log: LogStore,
    /// The other coordinators.
    pub peers: Peers,
    /// What was applied.
    pub published: Published,
    /// Changes of the members, one after the other.
    pub turns: Turns,
    /// Proposals that this one is about to take as the leader; closed while it
    /// has another one lead.
    pub proposals: TaskTracker,
    /// When whoever leads last said so.
    pub heard: Heard,
}

impl Core {
    /// The coordinators of the cluster, by number.
    pub fn coordinators(&self) -> Vec<Coordinator> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<_> = membership.voter_ids().collect();
        let coordinator = |(id, node): (&CoordinatorId, &BasicNode)| Coordinator {
            id: *id,
            address: node.addr.clone(),
            is_voter: voters.contains(id),
            is_leader: metrics.current_leader == Some(*id),
            is_self: *id == self.me,
        };
        membership.nodes().map(coordinator).collect()
    }

    /// Whether this one leads, as far as it knows, and has all that was
    /// acknowledged under those who led before.
    pub fn is_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.state == ServerState::Leader && term_of(&metrics.vote.leader_id) == self.term()
    }

    /// The newest term of a leader of which something was applied here.
    pub fn term(&self) -> u64 {
        self.published.applied.borrow().term
    }

    /// Whether it leads and no other could: all that was acknowledged is here.
    pub fn is_alone(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let mut voters = membership.voter_ids();
        metrics.state == ServerState::Leader && voters.next() == Some(self.me) && voters.next().is_none()
    }

    fn leader(&self) -> Option<(CoordinatorId, String)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some((id, node.addr.clone()))
    }

    /// Asks whoever leads, and whoever leads next, until there is an answer or
    /// the time is over. `here` is what this coordinator does as the leader.
    pub(super) async fn at_leader<T, F>(
        &self,
        call: Call,
        request: &(impl Serialize + Sync),
        (limit, answer_max): (Duration, Duration),
        here: impl Fn() -> F + Sync,
    ) -> Result<T, Unanswered>
    where
        T: DeserializeOwned + Send,
        F: Future<Output = Result<Answer<T>, Failure>> + Send,
    {
        let deadline = Instant::now() + limit;
        let mut metrics = self.raft.metrics();
        let mut last = Unanswered { is_sent: false, why: self.nobody_leads() };
        loop {
            let was_sent = last.is_sent;
            let leader = self.leader();
            let asked = leader.as_ref().map(|(id, _)| *id);
            last.is_sent |= asked.is_some();
            let answer = match leader {
                Some((id, _)) if id == self.me => {
                    timeout_at(deadline, here().boxed()).await.unwrap_or_else(|_| Err(self.nobody_leads()))
                }
                Some((id, address)) => {
                    // Nobody waits for one that is frozen once another one leads.
                    let follows = async {
                        let is_next =
                            |now: &Metrics| now.current_leader.is_some() && now.current_leader != asked;
                        drop(metrics.wait_for(is_next).await);
                    };
                    let left = deadline.saturating_duration_since(Instant::now());
                    tokio::select! {
                        answer = self.peers.call((Some(id), &address), call, request, left.min(answer_max)) => {
                            answer.and_then(|answer| match answer {
                                Answer::Failed(failure) => Err(failure),
                                other => Ok(other),
                            })
                        }
                        () = follows => Ok(Answer::NotLeader),
                    }
                }
                None => Ok(Answer::NotLeader),
            };
            match answer {
                Ok(Answer::Done(answer)) => return Ok(answer),
                Ok(Answer::NotLeader | Answer::Failed(_)) => {}
                Err(why) if why.code == ErrorCode::Unavailable => last.why = why,
                // Whoever answers so has not made the change; one before may have.
                Err(why) => return Err(Unanswered { is_sent: was_sent, why }),
            }
            let has_ended = metrics.has_changed().is_err();
            if Instant::now() >= deadline || has_ended {
                return Err(last);
            }
            let next = deadline.min(Instant::now() + LEADER_POLL);
            let changes = async { drop(metrics.wait_for(|now| now.current_leader != asked).await) };
            let _changed_or_not = timeout_at(next, changes).await;
        }
    }

    /// Has whoever leads do something that the log does not do by itself; `here`
    /// is how this coordinator does it. Where the leader goes away it may be done
    /// twice.
    ///
    /// # Errors
    /// What the leader says; `Unavailable` where nobody leads for so long.
    pub async fn ask_leader<T, F>(
        &self,
        call: Call,
        request: &(impl Serialize + Sync),
        limit: Duration,
        here: impl Fn() -> F + Sync,
    ) -> Result<T, Error>
    where
        T: DeserializeOwned + Send,
        F: Future<Output = Result<Answer<T>, Failure>> + Send,
    {
        let asked = self.at_leader(call, request, (limit, limit), here).await;
        asked.map_err(|Unanswered { why, .. }| match why.code {
            ErrorCode::Unavailable => self.unreached("", &why),
            _ => why.into(),
        })
    }

    fn nobody_leads(&self) -> Failure {
        let all = self.coordinators();
        let voters = all.iter().filter(|it| it.is_voter);
        let needed = voters.clone().count() / 2 + 1;
        let addresses: Vec<_> = voters.map(|it| format!("{} at {}", it.id, it.address)).collect();
        Failure::new(
            ErrorCode::Unavailable,
            format!(
                "no majority of the coordinators is there: {needed} of {} must run and reach one another ({})",
                addresses.len(),
                addresses.join(", ")
            ),
        )
    }

    pub(super) fn unreached(&self, what: &str, why: &Failure) -> Error {
        let nobody = self.nobody_leads();
        let cause = if why.message == nobody.message { String::new() } else { format!("; last: {why}") };
        Error::Unavailable(format!("{}{cause}{what}", nobody.message))
    }

    /// Waits until the state is at least as new as whatever was acknowledged
    /// anywhere before this was called.
    ///
    /// # Errors
    /// `Unavailable` where no majority answers.
    pub async fn catch_up(&self) -> Result<(), Failure> {
        let index: u64 = self
            .at_leader(Call::ReadIndex, &(), (READ_MAX, ANSWER_MAX), || self.read_index())
            .await
            .map_err(|unanswered| Failure::from(self.unreached("", &unanswered.why)))?;
        let mut applied = self.published.applied.subscribe();
        let caught_up =
            tokio::time::timeout(READ_MAX, applied.wait_for(|applied| applied.entries >= index)).await;
        match caught_up {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Failure::new(
                ErrorCode::Unavailable,
                "this coordinator is behind the others and does not catch up: use another one, and see its log",
            )),
        }
    }

    /// How much of the log a read must have seen; the leader knows. Counts from
    /// 1, as [`Published`] does.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be sure that it still leads.
    pub async fn read_index(&self) -> Result<Answer<u64>, Failure> {
        match self.raft.get_read_log_id().await {
            Ok((index, _)) => Ok(Answer::Done(index.map_or(0, |index| index.index + 1))),
            Err(RaftError::APIError(_)) => Ok(Answer::NotLeader),
            Err(error) => Err(Failure::new(ErrorCode::Unavailable, error.to_string())),
        }
    }

    /// Keeps what was applied as a snapshot, and removes the log before it.
    ///
    /// # Errors
    /// Where that takes too long, because the disk is full or very slow.
    pub async fn compact(&self) -> Result<(), Error> {
        let failed = |error: &dyn std::error::Error| Error::Internal(format!("the catalog's log: {error}"));
        let metrics = self.raft.metrics();
        let Some(applied) = metrics.borrow().last_applied else { return Ok(()) };
        let deadline = Instant::now() + COMPACT_MAX;
        loop {
            self.raft.trigger().snapshot().await.map_err(|error| failed(&error))?;
            let wait = self.raft.wait(Some(COMPACT_RETRY));
            match wait.metrics(|now| now.snapshot >= Some(applied), "a snapshot is kept").await {
                Ok(_) => break,
                Err(_) if Instant::now() < deadline => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        self.raft.trigger().purge_log(applied.index).await.map_err(|error| failed(&error))?;
        let wait = self.raft.wait(Some(COMPACT_MAX));
        let purged = wait.metrics(|now| now.purged >= Some(applied), "the log before it is removed").await;
        purged.map(drop).map_err(|error| failed(&error))
    }

    /// Whether it knows who leads.
    pub fn knows_leader(&self) -> bool {
        self.leader().is_some()
    }
}
