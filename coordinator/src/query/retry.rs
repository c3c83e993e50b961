//! What to do when an attempt fails: pure. Events go in, decisions come out;
//! time is passed in, and nothing here waits, calls or locks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shoal_proto::{ErrorCode, Failure, WorkerId};

use super::join_room::Joins;

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
        }
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self) {
        self.attempt += 1;
        self.can_merge = false;
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lost(worker: &str) -> Event {
        Event::Failed(Failure::new(ErrorCode::Unavailable, "connection reset").at(worker))
    }

    fn suspecting(worker: &str) -> Decision {
        Decision::Again { suspect: Some(WorkerId::from(worker)) }
    }

    #[test]
    fn a_lost_worker_is_suspected_and_avoided() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        attempted.begin();
        assert_eq!(attempted.on(lost("w2"), now), suspecting("w2"));
        assert_eq!(attempted.avoid(), &BTreeSet::from([WorkerId::from("w2")]));
        assert_eq!(attempted.losses().len(), 1);
    }

    #[test]
    fn corrupt_bytes_are_read_elsewhere_without_suspicion() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        attempted.begin();
        let corrupt = Failure::new(ErrorCode::Corrupt, "checksum").at("w1");
        assert_eq!(attempted.on(Event::Failed(corrupt), now), Decision::Again { suspect: None });
        assert!(attempted.avoid().contains(&WorkerId::from("w1")));
    }

    #[test]
    fn what_no_attempt_can_cure_is_told_at_once() {
        let curable = [ErrorCode::Unavailable, ErrorCode::Corrupt, ErrorCode::Stopping];
        for code in ErrorCode::ALL.into_iter().filter(|code| !curable.contains(code)) {
            let now = Instant::now();
            let mut attempted = Attempted::new(now);
            attempted.begin();
            let failure = Failure::new(code, "as it is").at("w1");
            let decision = attempted.on(Event::Failed(failure.clone()), now);
            assert_eq!(decision, Decision::Fail { failure, suspect: None });
            assert!(attempted.avoid().is_empty());
        }
    }

    fn exhausted(message: &str) -> Event {
        Event::Failed(Failure::new(ErrorCode::Exhausted, message).at("w1"))
    }

    #[test]
    fn hash_joins_that_did_not_fit_are_merged_once() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        attempted.begin();
        assert_eq!(attempted.joins(), Joins::ByRoom);
        attempted.planned(true);
        assert_eq!(attempted.on(exhausted("no room for the table"), now), Decision::Again { suspect: None });
        assert!(attempted.avoid().is_empty() && attempted.losses().is_empty(), "no worker is to blame");
        assert_eq!(attempted.why(), "worker w1: no room for the table");
        attempted.begin();
        assert_eq!((attempted.joins(), attempted.pause()), (Joins::Merged, FREED_AFTER));
        assert_eq!(attempted.why(), "");
        // One that cannot be a merge is left.
        attempted.planned(true);
        let Decision::Fail { failure, suspect: None } = attempted.on(exhausted("no room for the sort"), now)
        else {
            panic!("tried again")
        };
        assert_eq!(failure.code, ErrorCode::Exhausted);
        assert_eq!(
            failure.message,
            "no room for the sort (joins were merged, after an attempt with hash joins: \
             worker w1: no room for the table)"
        );
    }

    #[test]
    fn what_is_short_of_memory_without_hash_joins_or_after_its_first_rows_is_told_at_once() {
        let now = Instant::now();
        let mut without = Attempted::new(now);
        without.begin();
        without.planned(false);
        assert!(matches!(without.on(exhausted("full"), now), Decision::Fail { .. }));
        let mut released = Attempted::new(now);
        released.begin();
        released.planned(true);
        released.on(Event::Released, now);
        assert!(matches!(released.on(exhausted("full"), now), Decision::Fail { .. }));
        // Nor does the plan of an attempt before say anything of the one that runs.
        let mut later = Attempted::new(now);
        later.begin();
        later.planned(true);
        later.on(lost("w2"), now);
        later.begin();
        assert!(matches!(later.on(exhausted("full"), now), Decision::Fail { .. }));
    }

    #[test]
    fn merged_joins_stay_merged_when_a_worker_is_lost() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        attempted.begin();
        attempted.planned(true);
        attempted.on(exhausted("full"), now);
        attempted.begin();
        attempted.on(lost("w2"), now);
        attempted.begin();
        assert_eq!(attempted.joins(), Joins::Merged);
        assert!(attempted.avoid().contains(&WorkerId::from("w2")));
    }

    #[test]
    fn a_query_that_ends_worker_after_worker_is_stopped_and_says_so() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        for worker in ["w1", "w2", "w3", "w4", "w5"] {
            attempted.begin();
            assert_eq!(attempted.on(lost(worker), now), suspecting(worker));
        }
        attempted.begin();
        let Decision::Fail { failure, suspect } = attempted.on(lost("w6"), now) else {
            panic!("tried again")
        };
        assert_eq!(suspect, Some(WorkerId::from("w6")));
        assert_eq!(
            failure.message,
            "connection reset (after 6 attempts: attempt 1 lost w1, attempt 2 lost w2, attempt 3 lost w3, \
             attempt 4 lost w4, attempt 5 lost w5, attempt 6 lost w6; it may be the query that ends them)"
        );
    }

    #[test]
    fn a_stream_that_goes_on_is_not_to_blame() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        for turn in 0..3 * ATTEMPTS_MAX {
            attempted.begin();
            assert_eq!(attempted.on(lost("w1"), now), suspecting("w1"), "turn {turn}");
            attempted.begin();
            attempted.progressed(now);
            assert!(attempted.avoid().is_empty() && attempted.losses().is_empty());
        }
    }

    #[test]
    fn workers_that_failed_are_better_than_none() {
        let now = Instant::now();
        let none = || Event::NoWorkerLeft(Failure::new(ErrorCode::Unavailable, "no live worker"));
        let mut attempted = Attempted::new(now);
        attempted.begin();
        assert!(
            matches!(attempted.on(none(), now), Decision::Fail { .. }),
            "there is nobody to fall back on"
        );
        let mut attempted = Attempted::new(now);
        attempted.begin();
        attempted.on(lost("w1"), now);
        attempted.begin();
        assert_eq!(attempted.on(none(), now), Decision::Again { suspect: None });
        assert!(attempted.avoid().is_empty());
    }

    #[test]
    fn nothing_is_retried_for_ever() {
        let now = Instant::now();
        let mut attempted = Attempted::new(now);
        attempted.begin();
        assert!(matches!(attempted.on(lost("w1"), now + RETRY_FOR), Decision::Fail { .. }));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let code = prop_oneof![
            2 => Just(ErrorCode::Unavailable),
            2 => Just(ErrorCode::Corrupt),
            1 => proptest::sample::select(ErrorCode::ALL.to_vec()),
        ];
        let failure = (code, proptest::option::of(0..5_u8)).prop_map(|(code, worker)| {
            let failure = Failure::new(code, "failed");
            match worker {
                Some(worker) => failure.at(&format!("w{worker}")),
                None => failure,
            }
        });
        prop_oneof![
            1 => Just(Event::Released),
            6 => failure.clone().prop_map(Event::Failed),
            1 => failure.prop_map(Event::NoWorkerLeft),
        ]
    }

    proptest! {
        /// Whatever happens, in whatever order: rows that were released are
        /// never given again, attempts are few, only what a retry can cure is
        /// retried, and a worker that failed is avoided by the next attempt.
        #[test]
        fn any_story_ends_well(
            events in proptest::collection::vec((any_event(), 0..400_u64, any::<bool>()), 1..40),
        ) {
            let mut now = Instant::now();
            let mut attempted = Attempted::new(now);
            attempted.begin();
            let mut attempts = 1;
            let mut is_released = false;
            let mut merged = 0;
            for (event, seconds, can_merge) in events {
                attempted.planned(can_merge);
                now += Duration::from_secs(seconds);
                let decision = attempted.on(event.clone(), now);
                is_released |= matches!(event, Event::Released);
                match decision {
                    Decision::GoOn => prop_assert!(matches!(event, Event::Released)),
                    Decision::Again { suspect } => {
                        prop_assert!(!is_released, "rows would come twice");
                        if let Event::Failed(failure) = &event
                            && failure.code == ErrorCode::Exhausted
                        {
                            prop_assert!(can_merge && suspect.is_none());
                            merged += 1;
                            prop_assert_eq!(merged, 1, "merges do not need other merges");
                        } else if let Event::Failed(failure) = &event {
                            prop_assert!(failure.code.is_retryable());
                            let worker = failure.worker.as_deref().map(WorkerId::from);
                            prop_assert!(worker.iter().all(|worker| attempted.avoid().contains(worker)));
                            prop_assert!(suspect.is_none() || suspect == worker);
                        }
                        attempts += 1;
                        prop_assert!(attempts <= ATTEMPTS_MAX);
                        attempted.begin();
                    }
                    Decision::Fail { failure, .. } => {
                        let (Event::Failed(cause) | Event::NoWorkerLeft(cause)) = &event else {
                            return Err(TestCaseError::fail("failed without a failure"));
                        };
                        prop_assert_eq!(failure.code, cause.code);
                        prop_assert!(failure.message.starts_with(&cause.message));
                        return Ok(());
                    }
                }
            }
        }
    }
}
