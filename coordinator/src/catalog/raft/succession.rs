//! Who leads after a leader that is gone. Each follower has a call open at the
//! leader, which breaks with it. Those that miss it ask one another, and where a
//! majority does, the one with the longest log asks for votes, at once.
//!
//! It only decides when that is done: the log is right without it, and where it
//! comes to nothing openraft's own timers do the same, later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::metrics::RaftServerMetrics;
use openraft::{BasicNode, ServerState};
use parking_lot::Mutex;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use shoal_proto::Failure;
use tokio::time::{Instant, sleep, timeout};

use super::core::{Answer, Coordinator, Core};
use super::peers::{Call, Peers};
use super::types::{CoordinatorId, LeaderId, LogId, Vote};

/// How long the leader has nothing to say before it says that it leads. Less than
/// what a node that stops waits for calls that are open.
const HOLD: Duration = Duration::from_millis(200);
/// How long it may take for that in all.
const ATTEND_MAX: Duration = Duration::from_millis(700);
/// How long the answer may take whether it leads.
const PROBE_MAX: Duration = Duration::from_millis(200);
/// How often that is asked in vain before it is gone.
const PROBES_MIN: u32 = 2;
/// A leader that may only be starved of its processor is silent for so long before
/// it is gone; openraft's timers wait for 1.2 s at least.
const SILENCE_MAX: Duration = Duration::from_millis(1_100);
/// So many leaders are remembered: while one is looked for another one may be
/// followed already.
const LEADERS_MAX: usize = 4;
/// How long the others may take to say whether they miss it.
const ASK_MAX: Duration = Duration::from_millis(500);
/// How long somebody who has begun to ask for votes may take to lead.
const GRACE: Duration = Duration::from_millis(300);
/// How soon the leader is looked after again where only a minority misses it.
const RETRY: Duration = Duration::from_millis(250);
/// How long votes may take to come. Each is forced to a disk: whoever asks anew
/// before they are there never has them.
const VOTES_MAX: Duration = Duration::from_millis(300);
/// What is waited between tries, and up to half as much again, so that two that
/// both ask for votes do not do so together for ever.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(40),
    Duration::from_millis(200),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(300),
    Duration::from_millis(300),
];

type Metrics = RaftServerMetrics<CoordinatorId, BasicNode>;
/// Of two, the one with the greater leads: its log is longer, or its number
/// greater.
type Place = (Option<LogId>, CoordinatorId);

/// What a follower asks of the leader.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Attend {
    /// Whom it follows.
    pub leader: LeaderId,
    /// Whether the answer may wait until there is something to say.
    pub holds: bool,
}

/// What a coordinator says that misses the leader, too.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Missing {
    /// The last entry of its log.
    pub last: Option<LogId>,
    /// Whether it is still bound by its promise to vote for nobody else for a
    /// while. To ask for votes itself frees it of that.
    pub is_bound: bool,
}

/// When each of those who led lately last said so here. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<VecDeque<(LeaderId, Instant)>>>);

impl Heard {
    fn note(&self, leader: LeaderId, now: Instant) {
        let mut heard = self.0.lock();
        heard.retain(|(whom, _)| *whom != leader);
        heard.push_back((leader, now));
        if heard.len() > LEADERS_MAX {
            heard.pop_front();
        }
    }

    /// When this leader said so; one that did not yet counts from the first time
    /// that this is asked.
    fn since(&self, leader: LeaderId, now: Instant) -> Instant {
        let known = self.0.lock().iter().find(|(whom, _)| *whom == leader).map(|(_, at)| *at);
        known.unwrap_or_else(|| {
            self.note(leader, now);
            now
        })
    }
}

impl Core {
    /// Says to a follower whether this one leads, as whom it is followed: at once
    /// where it does not, or as soon as it does not any more.
    pub async fn attend_here(&self, Attend { leader, holds }: Attend) -> Answer<()> {
        let mut metrics = self.raft.server_metrics();
        let has_ended = metrics.has_changed().is_err();
        if has_ended || leads_no_more(&metrics.borrow(), leader) {
            return Answer::NotLeader;
        }
        let ends = async { drop(metrics.wait_for(|now| leads_no_more(now, leader)).await) };
        if holds && timeout(HOLD, ends).await.is_ok() {
            return Answer::NotLeader;
        }
        Answer::Done(())
    }

    /// Whether this one misses the leader, too; none where it does not, or knows
    /// another one.
    pub async fn misses(&self, leader: LeaderId) -> Option<Missing> {
        let vote = self.vote().await?;
        let is_bound = vote.committed;
        if is_bound && (vote.leader_id != leader || !self.has_left(leader).await) {
            return None;
        }
        // What openraft tells of the log is behind while it is busy: an entry that
        // was acknowledged may be missing.
        Some(Missing { last: self.log.last(), is_bound })
    }

    /// Attends whoever leads, for as long as there is a consensus.
    pub async fn attend(self) {
        let mut metrics = self.raft.server_metrics();
        let mut before = None;
        while metrics.has_changed().is_ok() {
            let (whom, is_settled) = {
                let now = metrics.borrow_and_update();
                (followed(&now), now.vote.committed)
            };
            match (whom, before) {
                (Some(leader), _) => {
                    before = whom;
                    self.attend_at(leader).await;
                }
                // It was asked for its vote, or to ask for votes, in place of the one
                // that it followed. Whoever did may be gone, or not be the right one.
                (None, Some(leader)) if !is_settled => {
                    before = None;
                    self.give_way(leader).await;
                }
                // It leads itself, or waits for the first one.
                _ => {
                    before = None;
                    let _changed_or_ended = metrics.changed().await;
                }
            }
        }
    }

    /// Keeps one call open at the leader.
    async fn attend_at(&self, leader: LeaderId) {
        self.heard.since(leader, Instant::now());
        let Some(address) = self.address_of(leader.node_id) else {
            sleep(RETRY).await;
            return;
        };
        let to = (Some(leader.node_id), address.as_str());
        let attend = Attend { leader, holds: true };
        let answer: Result<Answer<()>, Failure> = tokio::select! {
            () = self.follows_no_more(leader) => return,
            answer = self.peers.call(to, Call::Attend, &attend, ATTEND_MAX) => answer,
        };
        match answer {
            Ok(Answer::Done(())) => self.heard.note(leader, Instant::now()),
            Ok(_) => self.give_way(leader).await,
            Err(_) => {
                let has_left = tokio::select! {
                    // A frozen one is doubted for long: the next one is to be attended.
                    () = self.follows_no_more(leader) => return,
                    has_left = self.has_left(leader) => has_left,
                };
                if has_left {
                    self.replace(leader).await;
                } else {
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until this one does not follow this leader, or there is no consensus.
    async fn follows_no_more(&self, leader: LeaderId) {
        let mut metrics = self.raft.server_metrics();
        drop(metrics.wait_for(|now| followed(now) != Some(leader)).await);
    }

    /// Whether the leader is gone, or leads no more, as far as this one can tell.
    async fn has_left(&self, leader: LeaderId) -> bool {
        let Some(address) = self.address_of(leader.node_id) else { return true };
        let mut doubt = Doubt::default();
        loop {
            let said = probe(&self.peers, &address, leader).await;
            let now = Instant::now();
            if said == Probe::Leads {
                self.heard.note(leader, now);
            }
            let silence = now.saturating_duration_since(self.heard.since(leader, now));
            if let Some(has_left) = doubt.after(said, silence) {
                return has_left;
            }
        }
    }

    /// Lets somebody lead who has begun to ask for votes, and only then replaces
    /// the leader.
    async fn give_way(&self, leader: LeaderId) {
        if !self.another_leads(leader, GRACE).await {
            self.replace(leader).await;
        }
    }

    /// Has another one lead in place of a leader that this one misses, where a
    /// majority does, too. Gives up after some tries: openraft's timers go on.
    pub(crate) async fn replace(&self, leader: LeaderId) {
        for pause in PAUSES {
            let is_missed = self.try_to_replace(leader).await;
            let pause = if is_missed { pause.mul_f64(rand::random_range(1.0..1.5)) } else { RETRY };
            if self.another_leads(leader, pause).await || !is_missed {
                return;
            }
        }
    }

    /// False where it is not for this one to do: it has no vote, or knows who leads
    /// by now, or only a minority misses the leader.
    async fn try_to_replace(&self, leader: LeaderId) -> bool {
        let Some(vote) = self.vote().await else { return false };
        let mut voters = self.coordinators();
        voters.retain(|it| it.is_voter);
        if is_another(&vote, leader) || !voters.iter().any(|it| it.is_self) {
            return false;
        }
        // Also the one that is gone counts.
        let count = voters.len();
        voters.retain(|it| !it.is_self && it.id != leader.node_id);
        let missing = self.who_misses(leader, voters).await;
        if !is_majority(missing.len(), count) {
            return false;
        }
        let places: Vec<Place> = missing.iter().map(|(other, it)| (it.last, other.id)).collect();
        if is_next((self.log.last(), self.me), &places) {
            let bound = missing.into_iter().filter(|(_, it)| it.is_bound);
            self.stand(leader, vote, bound.map(|(other, _)| other).collect()).await;
        }
        true
    }

    /// Those of the others that miss the leader, too.
    async fn who_misses(&self, leader: LeaderId, others: Vec<Coordinator>) -> Vec<(Coordinator, Missing)> {
        let asking = others.into_iter().map(|other| async move {
            let to = (Some(other.id), other.address.as_str());
            let asked: Result<Option<Missing>, Failure> =
                self.peers.call(to, Call::Misses, &leader, ASK_MAX).await;
            let missing = asked.ok().flatten()?;
            Some((other, missing))
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    /// Asks for votes, after those that are bound were freed. Nobody else is asked
    /// to: each time that one is, its vote grows, and where its number is the greater
    /// this one's would never be above it.
    async fn stand(&self, leader: LeaderId, vote: Vote, bound: Vec<Coordinator>) {
        let freeing = bound.into_iter().map(|other| async move {
            self.peers.elect((other.id, &other.address), leader, PROBE_MAX).await.is_ok()
        });
        let _freed_or_not = join_all(freeing).await;
        // Another one may have its vote by now.
        if self.vote().await != Some(vote) {
            return;
        }
        tracing::info!(leader = leader.node_id, "the leader is gone: this coordinator asks for votes");
        if self.raft.trigger().elect().await.is_err() {
            return;
        }
        let Some(mine) = self.vote().await else { return };
        // It leads, or somebody has a greater vote.
        let mut metrics = self.raft.server_metrics();
        let is_over = |now: &Metrics| now.vote > mine || is_another(&now.vote, leader);
        let over = async { drop(metrics.wait_for(is_over).await) };
        let _over_or_late = timeout(VOTES_MAX, over).await;
    }

    /// Waits until somebody leads after this leader: another one, or the same anew.
    async fn another_leads(&self, leader: LeaderId, within: Duration) -> bool {
        let mut metrics = self.raft.server_metrics();
        let leads = async { metrics.wait_for(|now| is_another(&now.vote, leader)).await.is_ok() };
        timeout(within, leads).await.unwrap_or(false)
    }

    /// Whom this one votes for, and whether that one leads.
    async fn vote(&self) -> Option<Vote> {
        self.raft.with_raft_state(|state| *state.vote_ref()).await.ok()
    }

    fn address_of(&self, coordinator: CoordinatorId) -> Option<String> {
        let known = self.coordinators().into_iter().find(|it| it.id == coordinator);
        known.map(|known| known.address)
    }
}

/// Asks the leader whether it leads.
async fn probe(peers: &Peers, address: &str, leader: LeaderId) -> Probe {
    let to = (Some(leader.node_id), address);
    let asking = async {
        let attend = Attend { leader, holds: false };
        let answer: Result<Answer<()>, Failure> = peers.call(to, Call::Attend, &attend, ATTEND_MAX).await;
        match answer {
            Ok(Answer::Done(())) => return Probe::Leads,
            Ok(_) => return Probe::LeadsNoMore,
            Err(_) => {}
        }
        // One of an older version is there and does not know that question.
        let needs: Result<IgnoredAny, Failure> = peers.call(to, Call::Needs, &[(); 0], ATTEND_MAX).await;
        if needs.is_ok() { Probe::Leads } else { Probe::Broken }
    };
    timeout(PROBE_MAX, asking).await.unwrap_or(Probe::Silent)
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Leads,
    LeadsNoMore,
    /// It failed at once: nobody is there.
    Broken,
    Silent,
}

/// What is to be thought of a leader after some probes. Knows no clock.
#[derive(Debug, Default)]
struct Doubt {
    failed: u32,
    broken: u32,
}

impl Doubt {
    /// Whether it has left; none where another probe must tell. It has said nothing
    /// for `silence`.
    fn after(&mut self, said: Probe, silence: Duration) -> Option<bool> {
        match said {
            Probe::Leads => return Some(false),
            Probe::LeadsNoMore => return Some(true),
            Probe::Broken => self.broken += 1,
            Probe::Silent => {}
        }
        self.failed += 1;
        let is_dead = self.broken >= PROBES_MIN;
        let is_silent = self.failed >= PROBES_MIN && silence >= SILENCE_MAX;
        (is_dead || is_silent).then_some(true)
    }
}

/// Whom this one follows.
fn followed(now: &Metrics) -> Option<LeaderId> {
    let leader = now.vote.leader_id;
    let is_known = now.vote.committed && now.current_leader == Some(leader.node_id);
    (is_known && leader.node_id != now.id).then_some(leader)
}

/// Whether this one has ceased to lead, as whom it was followed. openraft tells
/// late while it is busy, above all of one that has just begun: as long as it tells
/// of a time before, nothing has ceased.
fn leads_no_more(now: &Metrics, leader: LeaderId) -> bool {
    let newest = now.vote.leader_id;
    let may_lead = matches!(now.state, ServerState::Leader | ServerState::Candidate);
    newest > leader || (newest == leader && !may_lead)
}

/// Whether this is the vote of one that knows who leads, and not as this leader.
fn is_another(vote: &Vote, leader: LeaderId) -> bool {
    vote.committed && vote.leader_id != leader
}

/// Whether so many others and this one are more than half of the voters.
fn is_majority(others: usize, voters: usize) -> bool {
    others + 1 > voters / 2
}

/// Whether this one is the one to lead. Its log is at least as long as that of each
/// other, or they would refuse it.
fn is_next(me: Place, others: &[Place]) -> bool {
    others.iter().all(|other| *other < me)
}

#[cfg(test)]
mod tests;
