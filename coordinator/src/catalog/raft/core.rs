//! One coordinator's part in the consensus: changes and reads of the catalog,
//! here or at the leader.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{BasicNode, Raft, ServerState};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_proto::{ErrorCode, Failure};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::file::to_json;
use super::machine::Published;
use super::members::Turns;
use super::peers::{Call, Peers};
use super::types::{CoordinatorId, Proposal, Reply, TypeConfig};
use crate::Error;
use crate::catalog::command::{Command, Outcome};
use crate::catalog::disk;

/// How long a change may look for a leader and its majority.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How long a read may.
const READ_MAX: Duration = Duration::from_secs(5);
/// After so long another coordinator is looked for.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How often who leads is asked for while nobody does.
const LEADER_POLL: Duration = Duration::from_millis(50);
/// Bytes of one change: it must reach a majority before anything else does.
const COMMAND_BYTES_MAX: usize = 8 * 1024 * 1024;

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

/// Under which a change is sent, each time that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    id: Uuid,
    since: u64,
}

/// What became of a change in the end.
#[derive(Debug)]
pub enum Settled {
    /// It was made.
    Made(Outcome),
    /// Why it was not made, and never will be.
    NotMade(Error),
    /// Nobody knows, and nobody will.
    Unknown(Error),
}

/// Why a change did not come about.
#[derive(Debug)]
pub enum ChangeError {
    /// It was not made, and will not be.
    Refused(Error),
    /// Nobody knows whether it was made, or still will be.
    Unsettled {
        /// What [`Core::settle`] needs.
        change: Number,
        /// Why.
        error: Error,
    },
}

impl From<ChangeError> for Error {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(error) | ChangeError::Unsettled { error, .. } => error,
        }
    }
}

type Metrics = openraft::RaftMetrics<CoordinatorId, BasicNode>;

/// Where a call to the leader ended without an answer.
pub(super) struct Unanswered {
    /// Whether a leader may have got it.
    is_sent: bool,
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
    /// The other coordinators.
    pub peers: Peers,
    /// What was applied.
    pub published: Published,
    /// Changes of the members, one after the other.
    pub turns: Turns,
    /// Proposals that this one is about to take as the leader; closed while it
    /// has another one lead.
    pub proposals: TaskTracker,
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
        metrics.state == ServerState::Leader && metrics.current_term == self.term()
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

    fn unreached(&self, what: &str, why: &Failure) -> Error {
        let nobody = self.nobody_leads();
        let cause = if why.message == nobody.message { String::new() } else { format!("; last: {why}") };
        Error::Unavailable(format!("{}{cause}{what}", nobody.message))
    }

    /// Makes a change. It is durable, and visible here, when this returns.
    ///
    /// # Errors
    /// Why the catalog refuses it; that no majority answers, and whether the
    /// change may be made all the same.
    pub async fn change(&self, command: Command) -> Result<Outcome, ChangeError> {
        self.make(None, command).await
    }

    /// As [`Self::change`], for what this coordinator decided as the leader of this
    /// term: where another one leads by then, it is refused.
    ///
    /// # Errors
    /// The same.
    pub async fn change_in(&self, term: u64, command: Command) -> Result<Outcome, ChangeError> {
        self.make(Some(term), command).await
    }

    async fn make(&self, term: Option<u64>, command: Command) -> Result<Outcome, ChangeError> {
        check_size(&command).map_err(ChangeError::Refused)?;
        let change = self.number();
        match self.propose(&self.proposal(change, term, Some(command))).await {
            Ok(reply) => match outcome(reply) {
                Some(outcome) => outcome.map_err(ChangeError::Refused),
                None => Err(ChangeError::Unsettled { change, error: forgotten() }),
            },
            Err(Unanswered { is_sent: true, why }) => {
                let what = "; whether the change was made is not known: look before you try again";
                Err(ChangeError::Unsettled { change, error: self.unreached(what, &why) })
            }
            Err(Unanswered { why, .. }) if why.code == ErrorCode::Unavailable => {
                Err(ChangeError::Refused(self.unreached("; nothing was changed", &why)))
            }
            Err(Unanswered { why, .. }) => Err(ChangeError::Refused(why.into())),
        }
    }

    /// Sees to it that a change that is not settled is made or never made.
    /// Takes as long as there is no majority.
    pub async fn settle(&self, change: Number) -> Settled {
        loop {
            match self.propose(&self.proposal(change, None, None)).await {
                Ok(reply) => {
                    return match outcome(reply) {
                        Some(Ok(outcome)) => Settled::Made(outcome),
                        Some(Err(error)) => Settled::NotMade(error),
                        None => Settled::Unknown(forgotten()),
                    };
                }
                Err(Unanswered { why, .. }) if self.raft.metrics().has_changed().is_err() => {
                    return Settled::Unknown(why.into());
                }
                Err(Unanswered { why, .. }) => tracing::warn!(%why, "a change is not settled yet"),
            }
            tokio::time::sleep(ANSWER_MAX).await;
        }
    }

    /// Waits, as the leader of this term, until all that is in its log by now is
    /// applied here: also changes of which nobody knows yet whether they are made.
    ///
    /// # Errors
    /// `Unavailable` without a majority; `Invalid` where another one leads by now.
    pub async fn apply_all(&self, term: u64) -> Result<(), Error> {
        match self.propose(&self.proposal(self.number(), Some(term), None)).await {
            Ok(Reply::Abandoned) => Ok(()),
            Ok(reply) => outcome(reply).unwrap_or_else(|| Err(forgotten())).map(drop),
            Err(Unanswered { why, .. }) => Err(why.into()),
        }
    }

    /// A number for a change that is made from now on.
    fn number(&self) -> Number {
        Number { id: Uuid::new_v4(), since: self.published.applied.borrow().entries }
    }

    fn proposal(&self, Number { id, since }: Number, term: Option<u64>, command: Option<Command>) -> Proposal {
        Proposal { id, from: self.me, since, term, command }
    }

    async fn propose(&self, proposal: &Proposal) -> Result<Reply, Unanswered> {
        let limits = (CHANGE_MAX, ANSWER_MAX.max(CHANGE_MAX / 2));
        let (index, reply): (u64, Reply) =
            self.at_leader(Call::Propose, proposal, limits, || self.propose_here(proposal.clone())).await?;
        // Whoever made the change sees it, here too.
        let mut applied = self.published.applied.subscribe();
        let seen =
            tokio::time::timeout(CHANGE_MAX, applied.wait_for(|applied| applied.entries > index)).await;
        if !matches!(seen, Ok(Ok(_))) {
            tracing::warn!(index, "a change of the catalog is made, and has not come here");
        }
        Ok(reply)
    }

    /// Takes a proposal as the leader: its place in the log, and what came of it.
    ///
    /// # Errors
    /// `Exhausted` where the disk of this coordinator is full.
    pub async fn propose_here(&self, proposal: Proposal) -> Result<Answer<(u64, Reply)>, Failure> {
        let _proposing = self.proposals.token();
        // Looked at with the token in hand: whoever closes waits for that.
        if self.proposals.is_closed() {
            return Ok(Answer::NotLeader);
        }
        if proposal.command.as_ref().is_some_and(Command::adds) && !disk::has_room(&self.path) {
            return Err(Failure::new(
                ErrorCode::Exhausted,
                format!(
                    "the disk of the catalog ({}) is full; nothing was changed; free some space there",
                    self.path.display()
                ),
            ));
        }
        match self.raft.client_write(proposal).await {
            Ok(written) => Ok(Answer::Done((written.log_id.index, written.data))),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Ok(Answer::NotLeader),
            // It may be in the log of others.
            Err(error) => Err(Failure::new(ErrorCode::Unavailable, error.to_string())),
        }
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

    /// Whether it knows who leads.
    pub fn knows_leader(&self) -> bool {
        self.leader().is_some()
    }
}

fn check_size(command: &Command) -> Result<(), Error> {
    let bytes = to_json(command)?.len();
    if bytes <= COMMAND_BYTES_MAX {
        return Ok(());
    }
    let what = match command.segments() {
        0 => String::new(),
        segments => format!(" ({segments} segments)"),
    };
    Err(Error::Exhausted(format!(
        "this change of the catalog takes {bytes} bytes{what}, and one may take {COMMAND_BYTES_MAX}; nothing was \
         changed; load in several parts"
    )))
}

/// What came of a change; none where nobody knows.
fn outcome(reply: Reply) -> Option<Result<Outcome, Error>> {
    match reply {
        Reply::Done(outcome) => Some(Ok(outcome)),
        Reply::Refused(error) => Some(Err(error.into())),
        Reply::Abandoned => {
            Some(Err(Error::Unavailable("the change was given up before a majority had it".to_owned())))
        }
        Reply::Forgotten | Reply::Nothing => None,
    }
}

fn forgotten() -> Error {
    Error::Unavailable(
        "the catalog has changed too often meanwhile to say whether the change was made: look before you try again"
            .to_owned(),
    )
}
