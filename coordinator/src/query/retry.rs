//! What to do when an attempt fails: pure. Events go in, decisions come out;
//! time is passed in, and nothing here waits, calls or locks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shoal_proto::{ErrorCode, Failure, WorkerId};

use super::join_room::Joins;
use super::rows_stay::Refusal;

/// Attempts at one query before its error is the answer. A plan that kills
/// worker after worker must not kill them all; one that is only unlucky, with
/// workers that come and go, should not fail.
pub(super) const ATTEMPTS_MAX: u32 = 6;
/// How much longer each further attempt waits before it begins.
const PAUSE: Duration = Duration::from_millis(200);
/// No new attempt begins after a query was retried for so long.
const RETRY_FOR: Duration = Duration::from_secs(600);

/// How long the attempt after one that ran out of memory waits: for that to be free again on all
/// workers.
const FREED_AFTER: Duration = Duration::from_millis(500);

/// A worker that an attempt lost, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) attempt: u32,
    pub(super) worker: WorkerId,
    pub(super) why: String,
}

/// An attempt whose hash joins, perhaps, did not fit in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outgrown {
    attempt: u32,
    why: String,
}

/// What an attempt came to before its end.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Its rows go to the client from now on, and cannot be taken back.
    Released,
    /// It failed.
    Failed(Failure),
    /// It gave all rows, and they were not taken: no worker is to blame, and no join.
    Refused(Refusal),
    /// No worker is left that did not fail an earlier attempt.
    NoWorkerLeft(Failure),
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// Nothing: the attempt goes on.
    GoOn,
    /// Plan and run anew, without the workers to avoid, with such joins as are to be.
    /// Tell the cluster where one is suspected.
    Again {
        /// Could not be reached.
        suspect: Option<WorkerId>,
    },
    /// The query fails with this.
    Fail {
        /// What the client is told.
        failure: Failure,
        /// Could not be reached.
        suspect: Option<WorkerId>,
    },
}

/// The attempts at one query so far.
#[derive(Clone, Debug)]
pub(super) struct Attempted {
    began: Instant,
    attempt: u32,
    is_released: bool,
    avoid: BTreeSet<WorkerId>,
    losses: Vec<Loss>,
    /// The attempt that runs has hash joins that could be merges.
    can_merge: bool,
    outgrown: Option<Outgrown>,
    /// Why the attempt that runs has failed, if its rows were refused.
    refused: Option<String>,
}

impl Attempted {
    /// Before the first attempt.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            attempt: 0,
            is_released: false,
            avoid: BTreeSet::new(),
            losses: Vec::new(),
            can_merge: false,
            outgrown: None,
            refused: None,
        }
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self) {
        self.attempt += 1;
        self.can_merge = false;
        self.refused = None;
    }

    /// How the attempt that has begun is to join.
    pub(super) fn joins(&self) -> Joins {
        if self.outgrown.is_some() { Joins::Merged } else { Joins::ByRoom }
    }

    /// The attempt has a plan, with hash joins that could be merges or without any.
    pub(super) fn planned(&mut self, can_merge: bool) {
        self.can_merge = can_merge;
    }

    /// How long to wait before the attempt that has begun: the second begins at
    /// once, later ones leave time for what is only suspected to be back.
    pub(super) fn pause(&self) -> Duration {
        let pause = PAUSE * self.attempt.saturating_sub(2);
        let is_next = |outgrown: &Outgrown| outgrown.attempt + 1 == self.attempt;
        if self.outgrown.as_ref().is_some_and(is_next) { pause.max(FREED_AFTER) } else { pause }
    }

    /// Why the attempt that runs has failed, where another one is to follow; empty where
    /// it has not.
    pub(super) fn why(&self) -> &str {
        if let Some(why) = &self.refused {
            return why;
        }
        let outgrown = self.outgrown.as_ref().filter(|outgrown| outgrown.attempt == self.attempt);
        let loss = self.losses.last().filter(|loss| loss.attempt == self.attempt);
        outgrown.map(|outgrown| outgrown.why.as_str()).or(loss.map(|loss| loss.why.as_str())).unwrap_or("")
    }

    /// The attempt gave rows that need not be given again: what was lost before
    /// it says nothing about the query any more.
    pub(super) fn progressed(&mut self, now: Instant) {
        if !self.losses.is_empty() {
            *self = Self { attempt: 1, is_released: self.is_released, ..Self::new(now) };
        }
    }

    /// Workers that the next attempt does without.
    pub(super) fn avoid(&self) -> &BTreeSet<WorkerId> {
        &self.avoid
    }

    /// What was lost so far.
    pub(super) fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Takes what happened and says what to do.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Decision {
        match event {
            Event::Released => {
                self.is_released = true;
                Decision::GoOn
            }
            Event::NoWorkerLeft(failure) => {
                // Those that failed may be back; without them there is none.
                if self.is_released || self.avoid.is_empty() || !self.may_begin(now) {
                    return Decision::Fail {
                        failure: self.told(self.with_last_loss(failure)),
                        suspect: None,
                    };
                }
                self.avoid.clear();
                Decision::Again { suspect: None }
            }
            Event::Refused(Refusal { failure, may_come_here }) => {
                if may_come_here && !self.is_released && self.may_begin(now) {
                    self.refused = Some(failure.message);
                    return Decision::Again { suspect: None };
                }
                Decision::Fail { failure: self.told(failure), suspect: None }
            }
            Event::Failed(failure) => {
                let worker = failure.worker.as_deref().map(WorkerId::from);
                let suspect = worker.clone().filter(|_| failure.code == ErrorCode::Unavailable);
                if failure.code == ErrorCode::Exhausted
                    && self.can_merge
                    && self.outgrown.is_none()
                    && !self.is_released
                    && self.may_begin(now)
                {
                    let why = match &worker {
                        Some(worker) => format!("worker {worker}: {}", failure.message),
                        None => failure.message,
                    };
                    self.outgrown = Some(Outgrown { attempt: self.attempt, why });
                    return Decision::Again { suspect: None };
                }
                if failure.code.is_retryable()
                    && let Some(worker) = worker
                {
                    let why = failure.message.clone();
                    self.losses.push(Loss { attempt: self.attempt, worker: worker.clone(), why });
                    if !self.is_released && self.may_begin(now) {
                        self.avoid.insert(worker);
                        return Decision::Again { suspect };
                    }
                }
                Decision::Fail { failure: self.told(failure), suspect }
            }
        }
    }

    fn may_begin(&self, now: Instant) -> bool {
        self.attempt < ATTEMPTS_MAX && now.saturating_duration_since(self.began) < RETRY_FOR
    }

    /// That nobody is left, and what it was that failed last: workers may live,
    /// and lack what is asked for.
    fn with_last_loss(&self, failure: Failure) -> Failure {
        let Some(loss) = self.losses.last() else { return failure };
        let message = format!("{}; the last said: worker {}: {}", failure.message, loss.worker, loss.why);
        Failure { message, ..failure }
    }

    /// The failure with the story of the attempts before it.
    fn told(&self, failure: Failure) -> Failure {
        let failure = self.with_losses(failure);
        let Some(outgrown) = &self.outgrown else { return failure };
        let message = format!(
            "{} (joins were merged, after an attempt with hash joins: {})",
            failure.message, outgrown.why
        );
        Failure { message, ..failure }
    }

    fn with_losses(&self, failure: Failure) -> Failure {
        if self.attempt < 2 || self.losses.is_empty() {
            return failure;
        }
        let losses: Vec<String> =
            self.losses.iter().map(|loss| format!("attempt {} lost {}", loss.attempt, loss.worker)).collect();
        let hint = if self.attempt >= ATTEMPTS_MAX { "; it may be the query that ends them" } else { "" };
        let message =
            format!("{} (after {} attempts: {}{hint})", failure.message, self.attempt, losses.join(", "));
        Failure { message, ..failure }
    }
}

#[cfg(test)]
mod tests;
