//! A leader that is about to stop has another one lead first, so that changes
//! and queries need not wait until it is missed.

use std::time::Duration;

use openraft::metrics::RaftServerMetrics;
use openraft::{BasicNode, ServerState};
use shoal_proto::{ErrorCode, Failure};
use tokio::time::timeout;

use super::core::{Answer, Coordinator, Core};
use super::types::{CoordinatorId, LeaderId};

type Metrics = RaftServerMetrics<CoordinatorId, BasicNode>;

/// How long all of it may take. Nobody waits for more than that would cost.
const HANDOVER_MAX: Duration = Duration::from_secs(2);
/// How long another coordinator may take to say that it tries.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// How long it may take to lead before it is asked again. With five coordinators
/// it needs the votes of some that promised this one to wait for it, and that free
/// one another of that a little later (`succession`).
const ELECTED_MAX: Duration = Duration::from_millis(200);

impl Core {
    /// Has another coordinator lead, where this one does. Changes wait meanwhile,
    /// here and elsewhere, and are made by the next one.
    pub async fn hand_over(&self) {
        let is_alone = self.coordinators().iter().filter(|it| it.is_voter).count() < 2;
        if is_alone || self.raft.metrics().borrow().state != ServerState::Leader {
            return;
        }
        // No entry may come that the next one lacks: its log would be refused.
        self.proposals.close();
        self.raft.runtime_config().elect(false);
        let handing = async {
            self.proposals.wait().await;
            let heirs = self.heirs().await;
            self.ask_to_lead(&heirs).await
        };
        match timeout(HANDOVER_MAX, handing).await {
            Ok(next) => tracing::info!(next, "another coordinator leads now"),
            Err(_) => tracing::warn!("no other coordinator leads within {HANDOVER_MAX:?}"),
        }
        self.raft.runtime_config().elect(true);
        self.proposals.reopen();
    }

    /// The other voters that have the whole log, once there is one.
    async fn heirs(&self) -> Vec<Coordinator> {
        let mut metrics = self.raft.metrics();
        loop {
            let whole: Vec<CoordinatorId> = {
                let metrics = metrics.borrow_and_update();
                let last = metrics.last_log_index;
                let logs = metrics.replication.iter().flatten();
                let whole = logs.filter(|(_, log)| log.map(|log| log.index) == last);
                whole.map(|(id, _)| *id).collect()
            };
            let others = self.coordinators().into_iter().filter(|it| it.is_voter && !it.is_self);
            let heirs: Vec<Coordinator> = others.filter(|it| whole.contains(&it.id)).collect();
            if !heirs.is_empty() || metrics.changed().await.is_err() {
                return heirs;
            }
        }
    }

    /// Asks one of them to lead, and the next where it does not answer, until
    /// somebody does; who.
    async fn ask_to_lead(&self, heirs: &[Coordinator]) -> CoordinatorId {
        let mut metrics = self.raft.metrics();
        let mut turn = 0;
        loop {
            if let Some(heir) = heirs.get(turn % heirs.len().max(1)) {
                let term = metrics.borrow().vote.leader_id.term;
                let (to, leader) = ((heir.id, heir.address.as_str()), LeaderId::new(term, self.me));
                let asked = self.peers.elect(to, leader, ANSWER_MAX).await;
                if !matches!(asked, Ok(Answer::Done(()))) {
                    turn += 1;
                }
            }
            let another = async {
                let leads =
                    metrics.wait_for(|now| now.current_leader.is_some_and(|leader| leader != self.me));
                leads.await.ok().and_then(|now| now.current_leader)
            };
            if let Ok(Some(next)) = timeout(ELECTED_MAX, another).await {
                return next;
            }
        }
    }

    /// Asks for votes in place of `leader`, as it leads in this term (0: not said): one
    /// that stops and wants it, or one that a majority misses.
    ///
    /// # Errors
    /// `Unavailable` where this one is stopping.
    pub async fn elect_here(&self, leader: CoordinatorId, term: u64) -> Result<Answer<()>, Failure> {
        let may_lead = may_lead(&self.raft.server_metrics().borrow(), leader, term);
        if may_lead {
            tracing::info!(leader, "the leader stops or is gone: this coordinator was asked to lead");
            let begun = self.raft.trigger().elect().await;
            begun.map_err(|error| Failure::new(ErrorCode::Unavailable, error.to_string()))?;
        }
        Ok(Answer::Done(()))
    }
}

/// Whether this leader may still lead in that term, as far as this coordinator knows:
/// a call that comes late does not depose one that was elected since.
fn may_lead(now: &Metrics, leader: CoordinatorId, term: u64) -> bool {
    // One of an older version does not say which term it means.
    let is_past = term != 0 && now.vote.committed && now.vote.leader_id.term > term;
    now.current_leader.is_none_or(|known| known == leader && !is_past)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::raft::types::Vote;

    #[test]
    fn a_late_call_deposes_nobody_who_was_elected_since() {
        let told = |vote: Vote| {
            let current_leader = vote.committed.then_some(vote.leader_id.node_id);
            Metrics { id: 3, vote, current_leader, ..Metrics::default() }
        };
        for (vote, term, expected) in [
            (Vote::new_committed(5, 1), 5, true),
            // What is told here is behind.
            (Vote::new_committed(4, 1), 5, true),
            (Vote::new_committed(7, 1), 5, false),
            (Vote::new_committed(7, 1), 0, true),
            (Vote::new_committed(5, 2), 5, false),
            (Vote::new_committed(5, 2), 0, false),
            // Nobody leads, also where one asked for votes before and did not get them.
            (Vote::new(6, 3), 5, true),
            (Vote::new(6, 2), 5, true),
        ] {
            assert_eq!(may_lead(&told(vote), 1, term), expected, "{vote} in term {term}");
        }
    }
}
