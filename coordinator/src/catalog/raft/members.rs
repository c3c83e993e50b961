//! Which coordinators there are: one change after the other, and each to its
//! end, also where whoever asked for it is gone, or led and does not any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::{BasicNode, ChangeMembers};
use shoal_proto::{ErrorCode, Failure};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::core::{Answer, Core, Enlist, Enlisted};
use super::peers::{Call, Peers};
use super::types::CoordinatorId;
use crate::Error;
use crate::catalog::command::{Command, Outcome};

/// How long a coordinator may take to be taken in or let go.
const MEMBERSHIP_MAX: Duration = Duration::from_secs(60);
/// How long the one that is asked to see to that may take.
const ENLIST_MAX: Duration = Duration::from_secs(90);
/// How long a change may wait for those before it.
const TURN_MAX: Duration = Duration::from_secs(30);
/// Entries that a coordinator may lack when it becomes a voter.
const LAG_MAX: u64 = 10;
/// How often a leader looks for changes that were left half-way.
const COMPLETE_INTERVAL: Duration = Duration::from_secs(1);

/// Where changes of the members wait for one another. The log takes one at a
/// time, and one that adds or removes a voter is two entries of it.
#[derive(Clone, Debug)]
pub struct Turns {
    /// Where a change goes on when whoever asked for it is gone.
    runtime: Handle,
    turn: Arc<Mutex<()>>,
}

impl Turns {
    /// Nobody waits yet; changes will run in `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, turn: Arc::default() }
    }

    /// Runs a change after those that run, to its end. Whoever goes before it has
    /// begun does not want it any more.
    async fn run<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let unavailable = |why: String| Failure::new(ErrorCode::Unavailable, why);
        let turn = timeout(TURN_MAX, Arc::clone(&self.turn).lock_owned()).await.map_err(|_| {
            unavailable(format!(
                "another change of the coordinators has run for {TURN_MAX:?}; see system.coordinators, and try again"
            ))
        })?;
        let running = self.runtime.spawn(async move {
            let _turn = turn;
            change.await
        });
        let ended = running.await;
        ended.unwrap_or_else(|_| Err(unavailable("the coordinator is stopping".to_owned())))
    }
}

impl Core {
    /// Takes a coordinator in, or gives it a number first.
    ///
    /// # Errors
    /// `Invalid` for one that was removed; `Unavailable` without a majority.
    pub async fn enlist(&self, request: &Enlist) -> Result<Enlisted, Error> {
        let limits = (MEMBERSHIP_MAX, MEMBERSHIP_MAX);
        let request = Enlist { may_forward: false, ..request.clone() };
        let enlisted = self.at_leader(Call::Enlist, &request, limits, || self.enlist_here(&request)).await;
        enlisted.map_err(|unanswered| unanswered.why.into())
    }

    /// [`Self::enlist`] for one that knows no leader, through any of these
    /// coordinators.
    ///
    /// # Errors
    /// What each of them says.
    pub async fn enlist_through(
        peers: &Peers,
        coordinators: &[String],
        request: &Enlist,
    ) -> Result<Enlisted, Error> {
        let mut failures = Vec::new();
        for other in coordinators {
            match peers.call((None, other), Call::Enlist, request, ENLIST_MAX).await {
                Ok(Answer::Done(enlisted)) => return Ok(enlisted),
                Ok(Answer::NotLeader) => failures.push(format!("{other} does not know who leads")),
                Ok(Answer::Failed(failure)) | Err(failure) => failures.push(format!("{other}: {failure}")),
            }
        }
        Err(Error::Unavailable(format!(
            "no coordinator took this one in ({}); --join names one that runs; only the first of a new cluster \
             starts without it",
            failures.join("; ")
        )))
    }

    /// [`Self::enlist`], as the leader.
    ///
    /// # Errors
    /// The same.
    pub async fn enlist_here(&self, request: &Enlist) -> Result<Answer<Enlisted>, Failure> {
        if !self.is_leader() {
            return Ok(Answer::NotLeader);
        }
        shoal_proto::channel::endpoint(&request.address)?;
        let Some(coordinator) = request.coordinator else {
            let outcome = self.change(Command::ReserveCoordinator).await.map_err(Error::from)?;
            let Outcome::Coordinator(coordinator) = outcome else {
                return Err(Failure::new(ErrorCode::Internal, "no number for a coordinator"));
            };
            return Ok(Answer::Done(Enlisted { cluster: self.cluster.clone(), coordinator }));
        };
        let (core, address) = (self.clone(), request.address.clone());
        let is_voter = self.turns.run(async move { core.make_known(coordinator, &address).await }).await?;
        if !is_voter {
            // Others have their turn meanwhile.
            self.wait_until_caught_up(coordinator).await?;
            let core = self.clone();
            self.turns.run(async move { core.count_in(coordinator).await }).await?;
            tracing::info!(coordinator, address = request.address, "coordinator joins");
        }
        Ok(Answer::Done(Enlisted { cluster: self.cluster.clone(), coordinator }))
    }

    /// Has the cluster know where a coordinator is; whether it counts already.
    async fn make_known(&self, coordinator: CoordinatorId, address: &str) -> Result<bool, Failure> {
        self.refuse_dismissed(coordinator)?;
        let known = self.coordinators().into_iter().find(|it| it.id == coordinator);
        let nodes = BTreeMap::from([(coordinator, BasicNode::new(address))]);
        match &known {
            None => self.change_members(ChangeMembers::AddNodes(nodes)).await?,
            Some(known) if known.address != address => {
                tracing::info!(coordinator, address, "coordinator has another address");
                self.change_members(ChangeMembers::SetNodes(nodes)).await?;
            }
            Some(_) => {}
        }
        Ok(known.is_some_and(|known| known.is_voter))
    }

    /// Has a coordinator count for a majority.
    async fn count_in(&self, coordinator: CoordinatorId) -> Result<(), Failure> {
        self.refuse_dismissed(coordinator)?;
        self.change_members(ChangeMembers::AddVoterIds(BTreeSet::from([coordinator]))).await
    }

    fn refuse_dismissed(&self, coordinator: CoordinatorId) -> Result<(), Failure> {
        if !self.published.state.borrow().is_dismissed(coordinator) {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::Invalid,
            format!(
                "coordinator {coordinator} was removed from the cluster: stop it, or start it with an empty \
                 --data-dir and --join to add it anew"
            ),
        ))
    }

    /// A voter that is far behind would make a majority harder to reach.
    async fn wait_until_caught_up(&self, coordinator: CoordinatorId) -> Result<(), Failure> {
        let wait = self.raft.wait(Some(MEMBERSHIP_MAX));
        let caught_up = wait.metrics(
            |metrics| {
                let replicated = metrics.replication.as_ref().and_then(|all| all.get(&coordinator).copied());
                // One that never answered has nothing, however short the log is.
                let matched = replicated.flatten().map(|log| log.index);
                metrics.last_log_index.zip(matched).is_some_and(|(last, matched)| matched + LAG_MAX >= last)
            },
            "the coordinator has the log",
        );
        caught_up.await.map(drop).map_err(|error| {
            Failure::new(
                ErrorCode::Unavailable,
                format!("coordinator {coordinator} does not catch up with the catalog: {error}"),
            )
        })
    }

    /// Removes a coordinator for good.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for the last one, `Unavailable` without a majority.
    pub async fn dismiss(&self, coordinator: CoordinatorId) -> Result<(), Error> {
        let limits = (MEMBERSHIP_MAX, MEMBERSHIP_MAX);
        let here = || self.dismiss_here(coordinator);
        let dismissed = self.at_leader(Call::Dismiss, &coordinator, limits, here).await;
        dismissed.map_err(|unanswered| unanswered.why.into())
    }

    /// [`Self::dismiss`], as the leader.
    ///
    /// # Errors
    /// The same.
    pub async fn dismiss_here(&self, coordinator: CoordinatorId) -> Result<Answer<()>, Failure> {
        let core = self.clone();
        self.turns.run(async move { core.dismiss_in_turn(coordinator).await }).await
    }

    async fn dismiss_in_turn(&self, coordinator: CoordinatorId) -> Result<Answer<()>, Failure> {
        if !self.is_leader() {
            return Ok(Answer::NotLeader);
        }
        let all = self.coordinators();
        let Some(known) = all.iter().find(|it| it.id == coordinator) else {
            if self.published.state.borrow().is_dismissed(coordinator) {
                return Ok(Answer::Done(()));
            }
            let numbers: Vec<_> = all.iter().map(|it| it.id.to_string()).collect();
            return Err(Failure::new(
                ErrorCode::NotFound,
                format!("there is no coordinator {coordinator}; there are {}", numbers.join(", ")),
            ));
        };
        if all.iter().filter(|it| it.is_voter).count() == 1 && known.is_voter {
            return Err(Failure::new(
                ErrorCode::Invalid,
                format!("coordinator {coordinator} is the only one: start another one with --join first"),
            ));
        }
        self.change(Command::DismissCoordinator { coordinator }).await.map_err(Error::from)?;
        self.take_out(coordinator).await?;
        tracing::info!(coordinator, "coordinator is removed");
        Ok(Answer::Done(()))
    }

    async fn take_out(&self, coordinator: CoordinatorId) -> Result<(), Failure> {
        let ids = BTreeSet::from([coordinator]);
        let is_voter = self.coordinators().iter().any(|it| it.id == coordinator && it.is_voter);
        let change =
            if is_voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change_members(change).await
    }

    /// Call it in turn.
    async fn change_members(&self, change: ChangeMembers<CoordinatorId, BasicNode>) -> Result<(), Failure> {
        // Whoever counts no more is not kept as one that only follows.
        let changing = self.raft.change_membership(change, false);
        let unavailable = |why: String| Failure::new(ErrorCode::Unavailable, why);
        match timeout(MEMBERSHIP_MAX, changing).await {
            Ok(changed) => changed.map(drop).map_err(|error| unavailable(error.to_string())),
            // Its first half may still be taken; the second is made then.
            Err(_) => Err(unavailable(format!(
                "no majority of the coordinators took the change within {MEMBERSHIP_MAX:?}"
            ))),
        }
    }

    /// Completes, whenever it leads, what was left half-way by one that led
    /// before. As long as a change is between its two entries, a majority of the
    /// old coordinators and one of the new ones must be there.
    pub async fn complete_changes(self) {
        let mut said = String::new();
        loop {
            tokio::time::sleep(COMPLETE_INTERVAL).await;
            // Whoever has its turn completes its change itself.
            let turn = Arc::clone(&self.turns.turn).try_lock_owned();
            let (true, Ok(_turn)) = (self.is_leader(), turn) else { continue };
            match self.complete_change().await {
                Ok(()) => said.clear(),
                Err(failure) => {
                    let what = failure.to_string();
                    if what != said {
                        tracing::warn!(why = %what, "a change of the coordinators is not completed yet");
                        said = what;
                    }
                }
            }
        }
    }

    async fn complete_change(&self) -> Result<(), Failure> {
        if self.is_changing() {
            tracing::info!("a change of the coordinators was left half-way, and is completed");
            // The newer of both as it is: nobody is added to it.
            return self.change_members(ChangeMembers::AddVoterIds(BTreeSet::new())).await;
        }
        let Some(dismissed) = self.dismissed_member() else { return Ok(()) };
        self.take_out(dismissed).await?;
        tracing::info!(coordinator = dismissed, "coordinator is removed, as it was left half-way");
        Ok(())
    }

    /// Whether the old coordinators and the new ones decide together.
    pub(crate) fn is_changing(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_joint_config().len() > 1
    }

    /// One that was removed and is still counted.
    fn dismissed_member(&self) -> Option<CoordinatorId> {
        let all = self.coordinators();
        let voters = all.iter().filter(|it| it.is_voter).count();
        let state = self.published.state.borrow();
        let is_left =
            |id: CoordinatorId, is_voter: bool| state.is_dismissed(id) && !(is_voter && voters == 1);
        all.iter().find(|it| is_left(it.id, it.is_voter)).map(|it| it.id)
    }
}
