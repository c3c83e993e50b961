//! Claims about which coordinators are joined.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn urls<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn known<const N: usize>(now: Instant, seeds: [&str; N]) -> Known {
    Known::new(now, urls(seeds))
}

#[test]
fn the_seeds_are_tried_until_a_list_comes() {
    let start = Instant::now();
    let mut known = known(start, ["b", "a", "b"]);
    assert_eq!(known.in_order(), ["b", "a"]);
    known.set_link(start, "a", Link::Connected);
    known.listed(start, &[]);
    known.settle(start + 1_000 * SECOND);
    assert_eq!(known.in_order(), ["a", "b"], "the one that is connected comes first");
    assert!(known.kept().is_empty(), "{known:?}");
}

#[test]
fn a_list_takes_the_place_of_the_seeds_once_it_has_proved_itself() {
    let start = Instant::now();
    let mut known = known(start, ["a", "gone"]);
    known.set_link(start, "a", Link::Connected);
    known.listed(start + SECOND, &urls(["a", "c"]));
    assert_eq!(known.in_order(), ["a", "gone", "c"]);
    known.settle(start + SECOND + ABSENT_MAX);
    assert_eq!(known.in_order(), ["a", "gone", "c"], "it is not absent for long");
    known.settle(start + 2 * SECOND + ABSENT_MAX);
    assert_eq!(known.in_order(), ["a", "c"]);
    assert_eq!(known.kept(), ["a", "c"]);
}

#[test]
fn lists_that_differ_end_no_stream() {
    let start = Instant::now();
    let mut known = known(start, ["a"]);
    known.set_link(start, "a", Link::Connected);
    for turn in 0..100_u32 {
        let list = if turn % 2 == 0 { urls(["a", "b"]) } else { urls(["a"]) };
        known.listed(start + turn * SECOND, &list);
        assert_eq!(known.kept(), ["a", "b"], "{turn}");
        assert_eq!(known.in_order(), ["a", "b"], "{turn}");
    }
    // The last one was without it.
    known.listed(start + 105 * SECOND, &urls(["a"]));
    assert_eq!(known.in_order(), ["a", "b"]);
    known.listed(start + 110 * SECOND, &urls(["a"]));
    assert_eq!(known.in_order(), ["a"]);
}

#[test]
fn nobody_is_left_for_a_list_of_which_nobody_is_connected() {
    let start = Instant::now();
    let mut known = known(start, ["by-a-detour"]);
    known.set_link(start, "by-a-detour", Link::Connected);
    known.listed(start, &urls(["a"]));
    known.settle(start + 2 * ABSENT_MAX);
    known.forgotten(start + 2 * ABSENT_MAX, "by-a-detour");
    assert_eq!(known.in_order(), ["by-a-detour", "a"]);
    known.set_link(start + 2 * ABSENT_MAX, "a", Link::Connected);
    assert_eq!(known.in_order(), ["a"]);
}

#[test]
fn the_seeds_are_tried_again_when_all_others_are_away() {
    let start = Instant::now();
    let mut known = known(start, ["seed"]);
    known.listed(start, &urls(["a"]));
    known.set_link(start, "a", Link::Connected);
    known.settle(start + 20 * SECOND);
    assert_eq!(known.in_order(), ["a"]);
    let lost = start + 100 * SECOND;
    known.set_link(lost, "a", Link::Apart);
    known.settle(lost + APART_MAX - SECOND);
    assert_eq!(known.in_order(), ["a"]);
    known.settle(lost + APART_MAX);
    assert_eq!(known.in_order(), ["a", "seed"]);
    assert_eq!(known.kept(), ["a"]);
    // It brings the others.
    let back = lost + 2 * APART_MAX;
    known.listed(back, &urls(["b"]));
    known.set_link(back, "b", Link::Connected);
    known.settle(back + ABSENT_MAX + SECOND);
    assert_eq!(known.in_order(), ["b"]);
}

#[test]
fn a_second_url_of_one_coordinator_is_left_when_that_is_joined() {
    let start = Instant::now();
    let mut known = known(start, ["localhost", "b"]);
    known.set_link(start, "localhost", Link::Connected);
    known.listed(start, &urls(["127.0.0.1", "b"]));
    known.set_link(start, "127.0.0.1", Link::Connected);
    // One that is listed is joined again.
    known.forgotten(start, "b");
    known.forgotten(start, "localhost");
    assert_eq!(known.in_order(), ["127.0.0.1", "b"]);
    // What comes late from there changes nothing.
    known.set_link(start, "localhost", Link::Connected);
    assert_eq!(known.in_order(), ["127.0.0.1", "b"]);
}

#[test]
fn all_are_told_when_those_that_are_connected_know() {
    let start = Instant::now();
    let mut known = known(start, ["a", "b", "c"]);
    assert!(known.is_told());
    known.set_link(start, "a", Link::Connected);
    known.set_link(start, "b", Link::Connected);
    known.set_link(start, "a", Link::Told);
    assert!(!known.is_told());
    known.set_link(start, "b", Link::Apart);
    assert!(known.is_told());
}

#[test]
fn whoever_is_connected_says_how_far_a_drain_is() {
    let start = Instant::now();
    let mut known = known(start, ["a", "b"]);
    let word = |is_done, lacks: &str| DrainWord { is_done, lacks: lacks.to_owned(), closing: 0 };
    assert_eq!(known.drain_word(), word(false, "no coordinator is connected"));
    for url in ["a", "b"] {
        known.set_link(start, url, Link::Connected);
    }
    assert_eq!(known.drain_word(), DrainWord::default());
    known.say("b", word(false, "a worker"));
    assert_eq!(known.drain_word(), word(false, "a worker"));
    known.say("b", word(true, ""));
    assert_eq!(known.drain_word(), word(true, ""));
    known.say("b", DrainWord::default());
    assert_eq!(known.drain_word(), DrainWord::default(), "it takes its word back");
    known.say("b", word(true, ""));
    known.set_link(start, "b", Link::Apart);
    assert_eq!(known.drain_word(), DrainWord::default(), "it is not connected any more");
}

#[test]
fn a_worker_is_let_go_only_by_a_word_from_after_it_took_no_more() {
    let start = Instant::now();
    let mut known = known(start, ["a", "b"]);
    let word = |is_done, closing| DrainWord { is_done, lacks: String::new(), closing };
    for url in ["a", "b"] {
        known.set_link(start, url, Link::Connected);
    }
    known.say("a", word(true, 1));
    // It follows, and knows nothing.
    known.say("b", word(false, 2));
    assert!(known.lets_go(1) && !known.lets_go(2));
    assert_eq!(known.drain_word(), word(true, 1));
    known.say("a", word(true, 2));
    assert!(known.lets_go(2));
    known.say("a", word(false, 2));
    assert!(!known.lets_go(2), "something came in between");
    known.say("a", word(true, 2));
    known.set_link(start, "a", Link::Apart);
    assert!(!known.lets_go(2), "who said so is not connected any more");
}
