//! Claims about when a leader is taken for gone, and about who is to lead then. How
//! coordinators do that together: `cluster::consensus::tests`.

use std::net::Ipv4Addr;

use shoal_proto::Channels;
use tokio::net::TcpListener;

use super::*;
use crate::catalog::raft::peers::tests::Slow;

fn leader(term: u64, number: CoordinatorId) -> LeaderId {
    LeaderId::new(term, number)
}

/// The end of a log.
fn last(term: u64, index: u64) -> Option<LogId> {
    Some(LogId::new(leader(term, 1), index))
}

#[test]
fn more_than_half_of_all_voters_is_a_majority_also_of_those_that_are_gone() {
    for (voters, needed) in [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)] {
        for others in 0..voters {
            assert_eq!(is_majority(others, voters), others >= needed, "{others} others of {voters} voters");
        }
    }
    // Of two, the other one is the one that is gone: there is nobody to ask.
    assert!(!is_majority(0, 2));
}

#[test]
fn the_longest_log_leads_and_of_equal_ones_the_greatest_number() {
    let (short, long) = (last(3, 7), last(3, 8));
    assert!(is_next((short, 2), &[]));
    assert!(is_next((short, 3), &[(short, 2)]) && !is_next((short, 2), &[(short, 3)]));
    assert!(is_next((long, 2), &[(short, 3)]) && !is_next((short, 3), &[(long, 2)]));
    assert!(!is_next((long, 2), &[(short, 3), (long, 4)]));
    // What a later leader put there makes a log newer than what makes it longer.
    assert!(is_next((last(4, 1), 2), &[(long, 3)]));
    assert!(is_next((short, 2), &[(None, 3)]) && !is_next((None, 3), &[(short, 2)]));
    // Of those that say the same of one another, one is the next, whoever looks.
    let all = [(long, 1), (short, 5), (long, 4), (long, 2)];
    let next: Vec<Place> = all
        .into_iter()
        .filter(|me| {
            let others: Vec<Place> = all.into_iter().filter(|other| other != me).collect();
            is_next(*me, &others)
        })
        .collect();
    assert_eq!(next, [(long, 4)]);
}

#[test]
fn one_that_does_not_answer_is_gone_only_when_nobody_is_there_or_after_a_long_silence() {
    let short = SILENCE_MAX.checked_sub(Duration::from_millis(1)).unwrap();
    let cases: [(&[Probe], Duration, Option<bool>); 9] = [
        (&[Probe::Leads], SILENCE_MAX, Some(false)),
        (&[Probe::LeadsNoMore], Duration::ZERO, Some(true)),
        (&[Probe::Broken], SILENCE_MAX, None),
        (&[Probe::Broken, Probe::Broken], Duration::ZERO, Some(true)),
        (&[Probe::Broken, Probe::Leads], SILENCE_MAX, Some(false)),
        // Only this connection broke, and the leader is starved.
        (&[Probe::Broken, Probe::Silent, Probe::Silent, Probe::Silent], short, None),
        (&[Probe::Silent], SILENCE_MAX, None),
        (&[Probe::Silent, Probe::Silent, Probe::Silent], short, None),
        (&[Probe::Silent, Probe::Silent], SILENCE_MAX, Some(true)),
    ];
    for (said, silence, expected) in cases {
        let mut doubt = Doubt::default();
        let mut has_left = None;
        for probe in said {
            assert_eq!(has_left, None, "{said:?} is decided before its end");
            has_left = doubt.after(*probe, silence);
        }
        assert_eq!(has_left, expected, "{said:?} after {silence:?}");
    }
}

#[test]
fn silence_is_counted_for_each_leader_from_when_it_was_first_followed() {
    let heard = Heard::default();
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    assert_eq!(heard.since(leader(1, 1), at(0)), at(0));
    assert_eq!(heard.since(leader(1, 1), at(5)), at(0));
    heard.note(leader(1, 1), at(6));
    assert_eq!(heard.since(leader(1, 1), at(9)), at(6));
    assert_eq!(heard.since(leader(2, 1), at(10)), at(10), "as the next one it has said nothing yet");
    assert_eq!(heard.since(leader(2, 1), at(11)), at(10));
    assert_eq!(heard.since(leader(1, 1), at(12)), at(6), "the next one says nothing for the one before");
    for term in 3..100 {
        heard.note(leader(term, 1), at(term));
    }
    assert_eq!(heard.0.lock().len(), LEADERS_MAX);
    assert_eq!(heard.since(leader(99, 1), at(200)), at(99));
}

/// What openraft tells of coordinator 1.
fn told(vote: Vote, state: ServerState) -> Metrics {
    let current_leader = vote.committed.then_some(vote.leader_id.node_id);
    Metrics { id: 1, vote, state, current_leader, ..Metrics::default() }
}

#[test]
fn one_leads_no_more_when_it_says_so_and_not_while_it_tells_of_a_time_before() {
    let (asked, committed) = (Vote::new(5, 1), Vote::new_committed(5, 1));
    for (vote, state, expected) in [
        (committed, ServerState::Leader, false),
        // It was elected, and has not told yet.
        (Vote::new_committed(4, 2), ServerState::Follower, false),
        (asked, ServerState::Candidate, false),
        (asked, ServerState::Leader, false),
        // It was started anew.
        (asked, ServerState::Follower, true),
        // It was removed.
        (committed, ServerState::Learner, true),
        (Vote::new(5, 2), ServerState::Follower, true),
        (Vote::new_committed(6, 1), ServerState::Leader, true),
    ] {
        assert_eq!(leads_no_more(&told(vote, state), leader(5, 1)), expected, "{vote} {state:?}");
    }
}

#[test]
fn another_one_is_followed_when_it_is_elected() {
    let followed = |vote: Vote, state| followed(&told(vote, state));
    assert_eq!(followed(Vote::new_committed(5, 2), ServerState::Follower), Some(leader(5, 2)));
    assert_eq!(followed(Vote::new(5, 2), ServerState::Follower), None);
    assert_eq!(followed(Vote::new_committed(5, 1), ServerState::Leader), None);
    // What is told of the vote is behind what is told of the leader.
    let behind =
        Metrics { current_leader: Some(3), ..told(Vote::new_committed(5, 2), ServerState::Follower) };
    assert_eq!(super::followed(&behind), None);
}

/// What a probe says, on a machine that may be too busy for the first ones.
async fn said(peers: &Peers, address: &str) -> Probe {
    loop {
        match probe(peers, address, leader(1, 1)).await {
            Probe::Silent => {}
            said => return said,
        }
    }
}

#[tokio::test]
async fn a_probe_tells_one_that_is_gone_from_one_that_is_silent_or_older() {
    let peers = Peers::new(Channels::new(tokio::runtime::Handle::current()), "c");
    let (_slow, _serving, older) = Slow::serve().await;
    assert_eq!(said(&peers, &older).await, Probe::Leads);
    // Connections come up, and nobody answers.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    assert_eq!(probe(&peers, &address, leader(1, 1)).await, Probe::Silent);
    drop(listener);
    assert_eq!(said(&peers, &address).await, Probe::Broken);
}
