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
fn rows_that_are_refused_blame_no_worker_and_no_join() {
    let now = Instant::now();
    for (code, may_come_here) in [(ErrorCode::Exhausted, false), (ErrorCode::Unavailable, true)] {
        let mut attempted = Attempted::new(now);
        attempted.begin();
        attempted.planned(true);
        let failure = Failure::new(code, "no room").at("w1");
        let decision = attempted.on(Event::Refused(Refusal { failure: failure.clone(), may_come_here }), now);
        let expected = match may_come_here {
            true => Decision::Again { suspect: None },
            false => Decision::Fail { failure, suspect: None },
        };
        assert_eq!(decision, expected);
        assert!(attempted.avoid().is_empty() && attempted.losses().is_empty());
        assert_eq!(attempted.why(), if may_come_here { "no room" } else { "" });
        attempted.begin();
        assert_eq!((attempted.joins(), attempted.why()), (Joins::ByRoom, ""));
    }
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
    let Decision::Fail { failure, suspect } = attempted.on(lost("w6"), now) else { panic!("tried again") };
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
    assert!(matches!(attempted.on(none(), now), Decision::Fail { .. }), "there is nobody to fall back on");
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
    let refused = (failure.clone(), any::<bool>());
    let refused = refused.prop_map(|(failure, may_come_here)| Refusal { failure, may_come_here });
    prop_oneof![
        1 => Just(Event::Released),
        6 => failure.clone().prop_map(Event::Failed),
        1 => refused.prop_map(Event::Refused),
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
                    } else if let Event::Refused(refusal) = &event {
                        prop_assert!(refusal.may_come_here && suspect.is_none());
                    }
                    attempts += 1;
                    prop_assert!(attempts <= ATTEMPTS_MAX);
                    attempted.begin();
                }
                Decision::Fail { failure, .. } => {
                    let cause = match &event {
                        Event::Failed(cause) | Event::NoWorkerLeft(cause) => cause,
                        Event::Refused(refusal) => &refusal.failure,
                        Event::Released => return Err(TestCaseError::fail("failed without a failure")),
                    };
                    prop_assert_eq!(failure.code, cause.code);
                    prop_assert!(failure.message.starts_with(&cause.message));
                    return Ok(());
                }
            }
        }
    }
}
