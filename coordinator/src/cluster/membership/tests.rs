use super::*;

const INTERVAL: Duration = BEAT_INTERVAL;

fn joining(id: &str, incarnation: &str) -> Joining {
    Joining {
        id: id.into(),
        incarnation: incarnation.to_owned(),
        disk: String::new(),
        address: format!("http://{id}"),
        zone: String::new(),
        threads: 1,
        memory_bytes: 1,
        wants_drain: false,
        lacks: HashSet::new(),
    }
}

fn live(membership: &Membership) -> Vec<String> {
    membership.live().workers.iter().map(|worker| worker.id.to_string()).collect()
}

/// A membership with `w1` live on stream 1.
fn one_live(now: Instant) -> Membership {
    let mut membership = Membership::default();
    membership.join(now, joining("w1", "a"));
    assert!(live(&membership).is_empty(), "a worker is live before it beats");
    let heard = membership.beat(now, &"w1".into(), "a", 1, &Vitals::default());
    assert_eq!(heard, Heard::Changed);
    assert_eq!(live(&membership), ["w1"]);
    membership
}

#[test]
fn expired_worker_leaves_once() {
    let start = Instant::now();
    let mut membership = one_live(start);
    let mut left = Vec::new();
    for tick in 1..20 {
        left.extend(membership.expire(start + tick * INTERVAL / 2));
    }
    assert_eq!(left, [WorkerId::from("w1")]);
    assert!(live(&membership).is_empty() && membership.live().is_lost(&"w1".into()));
    // Its stream is still open, and it beats again: it must join anew.
    let late = start + 20 * INTERVAL;
    assert_eq!(membership.beat(late, &"w1".into(), "a", 1, &Vitals::default()), Heard::Unknown);
}

#[test]
fn a_beating_worker_stays() {
    let start = Instant::now();
    let mut membership = one_live(start);
    for tick in 1..100 {
        let now = start + tick * INTERVAL;
        assert_eq!(membership.beat(now, &"w1".into(), "a", 1, &Vitals::default()), Heard::Same);
        assert!(membership.expire(now).is_empty());
    }
}

#[test]
fn a_worker_that_waits_to_join_again_is_not_silent() {
    let start = Instant::now();
    let at = |time: Duration| start + time;
    let mut membership = one_live(start);
    membership.asks_to_join(start, &"w1".into(), "a");
    // What it sent before may come later.
    membership.beat(start, &"w1".into(), "a", 1, &Vitals::default());
    let moment = Duration::from_millis(1);
    assert!(membership.expire(at(ASKING_MAX - moment)).is_empty());
    assert_eq!(live(&membership), ["w1"]);
    // Once it is answered it beats.
    membership.join(at(ASKING_MAX - moment), joining("w1", "a"));
    assert!(membership.expire(at(ASKING_MAX)).is_empty());
    let silent = (1..10).find(|tick| !membership.expire(at(ASKING_MAX + *tick * INTERVAL)).is_empty());
    assert!(silent.is_some_and(|ticks| ticks * INTERVAL <= SILENCE_MAX), "{silent:?}");
}

#[test]
fn a_worker_that_is_never_answered_is_lost_and_another_process_does_not_help() {
    let start = Instant::now();
    let lost = vec![WorkerId::from("w1")];
    let mut membership = one_live(start);
    membership.asks_to_join(start, &"w1".into(), "a");
    assert_eq!(membership.expire(start + ASKING_MAX), lost);
    let mut membership = one_live(start);
    membership.asks_to_join(start, &"w1".into(), "b");
    assert_eq!(membership.expire(start + SILENCE_MAX), lost);
}

#[test]
fn a_broken_stream_is_a_lost_worker_at_once() {
    let mut membership = one_live(Instant::now());
    assert!(!membership.live().is_lost(&"w1".into()));
    assert!(membership.disconnected(&"w1".into(), 1));
    assert!(live(&membership).is_empty());
    assert!(membership.live().is_lost(&"w1".into()));
    assert!(!membership.disconnected(&"w1".into(), 1));
}

#[test]
fn an_old_stream_does_not_lose_a_new_one() {
    let now = Instant::now();
    let mut membership = one_live(now);
    membership.join(now, joining("w1", "b"));
    membership.beat(now, &"w1".into(), "b", 2, &Vitals::default());
    assert!(!membership.disconnected(&"w1".into(), 1));
    assert_eq!(live(&membership), ["w1"]);
    assert_eq!(membership.beat(now, &"w1".into(), "a", 1, &Vitals::default()), Heard::Unknown);
    assert_eq!(membership.beat(now, &"w1".into(), "b", 1, &Vitals::default()), Heard::Unknown);
}

#[test]
fn a_suspect_is_live_again_when_it_beats() {
    let now = Instant::now();
    let mut membership = one_live(now);
    assert!(membership.suspect(&"w1".into()));
    assert!(!membership.suspect(&"w1".into()));
    assert!(live(&membership).is_empty());
    assert!(!membership.live().is_lost(&"w1".into()), "it may answer yet");
    assert_eq!(membership.beat(now, &"w1".into(), "a", 1, &Vitals::default()), Heard::Changed);
    assert_eq!(live(&membership), ["w1"]);
}

#[test]
fn a_leaving_worker_gets_no_work_and_is_not_lost() {
    let start = Instant::now();
    let mut membership = one_live(start);
    let leaving = Vitals { leaving: true, ..Vitals::default() };
    assert_eq!(membership.beat(start, &"w1".into(), "a", 1, &leaving), Heard::Changed);
    assert!(live(&membership).is_empty());
    assert!(membership.is_member(&"w1".into()));
    assert!(!membership.live().is_lost(&"w1".into()), "it ends what it has");
    assert!(membership.disconnected(&"w1".into(), 1));
    assert!(membership.live().is_lost(&"w1".into()), "it has left");
}

#[test]
fn a_wish_to_be_drained_ends_with_the_process_and_not_with_a_stream() {
    let now = Instant::now();
    let mut membership = one_live(now);
    let wants_drain = Vitals { wants_drain: true, ..Vitals::default() };
    assert_eq!(membership.beat(now, &"w1".into(), "a", 1, &wants_drain), Heard::Changed);
    assert_eq!(membership.beat(now, &"w1".into(), "a", 1, &wants_drain), Heard::Same);
    assert_eq!(live(&membership), ["w1"], "it goes on serving");
    assert!(membership.live().workers[0].wants_drain);
    membership.suspect(&"w1".into());
    assert!(membership.wants_drain(&"w1".into()));
    // It joins on a new stream, and beats on that only later.
    membership.join(now, Joining { wants_drain: true, ..joining("w1", "a") });
    assert!(membership.wants_drain(&"w1".into()));
    membership.join(now, joining("w1", "b"));
    assert!(!membership.wants_drain(&"w1".into()), "it is another process");
}

#[test]
fn the_generation_is_another_where_decisions_may_be_and_the_same_while_workers_only_beat() {
    let now = Instant::now();
    let lost =
        SegmentName { table: shoal_proto::TableId(1), shard: 0, segment: shoal_proto::SegmentId::random() };
    let mut membership = Membership::default();
    let mut last = membership.live().generation;
    let mut is_another = |membership: &Membership| {
        let generation = membership.live().generation;
        std::mem::replace(&mut last, generation) != generation
    };
    membership.join(now, Joining { lacks: HashSet::from([lost]), ..joining("w1", "a") });
    assert!(is_another(&membership));
    let beat = |membership: &mut Membership, vitals: &Vitals| {
        membership.beat(now, &"w1".into(), "a", 1, vitals);
    };
    beat(&mut membership, &Vitals::default());
    assert!(is_another(&membership), "it is live");
    beat(&mut membership, &Vitals { tasks_running: 7, ..Vitals::default() });
    assert!(!is_another(&membership));
    membership.gained(&"w1".into(), &lost);
    assert!(is_another(&membership));
    membership.gained(&"w1".into(), &lost);
    assert!(!is_another(&membership), "it had it");
    beat(&mut membership, &Vitals { wants_drain: true, ..Vitals::default() });
    assert!(is_another(&membership));
    membership.suspect(&"w1".into());
    assert!(is_another(&membership));
    membership.suspect(&"w1".into());
    assert!(!is_another(&membership));
    membership.disconnected(&"w1".into(), 1);
    assert!(is_another(&membership));
    membership.disconnected(&"w1".into(), 1);
    assert!(!is_another(&membership));
    membership.join(now, joining("w1", "b"));
    assert!(is_another(&membership));
    assert!(membership.expire(now).is_empty() && !is_another(&membership));
    let silent = (1..10).any(|tick| !membership.expire(now + tick * INTERVAL).is_empty());
    assert!(silent && is_another(&membership));
}

#[test]
fn nobody_is_blamed_for_a_pause_of_our_own() {
    let start = Instant::now();
    let mut membership = one_live(start);
    assert!(membership.expire(start + INTERVAL).is_empty());
    let woken = start + Duration::from_secs(60);
    assert!(membership.expire(woken).is_empty());
    let mut left = Vec::new();
    for tick in 1..8 {
        left.extend(membership.expire(woken + tick * INTERVAL));
    }
    assert_eq!(left, [WorkerId::from("w1")]);
}
