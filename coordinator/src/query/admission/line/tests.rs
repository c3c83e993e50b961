use std::collections::VecDeque;

use super::*;

/// Sessions by their names; tokens are what a test calls the queries.
const ADA: u64 = 1;
const BOB: u64 = 2;
const CLEO: u64 = 3;

fn line<T>(running_max: usize, waiting_max: usize) -> Line<T> {
    Line::new(Class::Long, Limits { running_max, waiting_max })
}

fn need(session: u64, priority: Priority, memory_bytes: u64) -> Need {
    Need { class: Class::Long, memory_bytes, session, priority }
}

fn wait<T>(line: &mut Line<T>, need: Need, token: T) -> Ticket {
    match line.enter(need, None, token) {
        Entered::Waits(ticket) => ticket,
        Entered::Runs(_) => panic!("it runs"),
        Entered::Full(_) => panic!("the line is full"),
    }
}

/// A line that is busy, with these waiting in the order in which they came.
fn busy(waiting: &[(u64, Priority, &'static str)]) -> Line<&'static str> {
    let mut line = line(1, 1_000);
    assert_eq!(line.enter(need(ADA, Priority::Normal, 0), None, "first"), Entered::Runs("first"));
    for &(session, priority, token) in waiting {
        wait(&mut line, need(session, priority, 0), token);
    }
    line
}

/// The order in which all that wait get their turns, one after the other.
fn turns<T>(line: &mut Line<T>) -> Vec<T> {
    let mut turns = Vec::new();
    while line.waiting() > 0 {
        line.end(0);
        turns.push(line.next(None).expect("there is room").0);
        assert!(line.next(None).is_none(), "two at once");
    }
    turns
}

#[test]
fn of_one_session_and_of_alike_ones_those_that_came_first_are_first() {
    use Priority::{High, Low, Normal};
    for priority in [Low, Normal, High] {
        let of_one = [(ADA, priority, "1"), (ADA, priority, "2"), (ADA, priority, "3")];
        assert_eq!(turns(&mut busy(&of_one)), ["1", "2", "3"]);
        let of_three = [(BOB, priority, "b"), (ADA, priority, "a"), (CLEO, priority, "c")];
        assert_eq!(turns(&mut busy(&of_three)), ["b", "a", "c"]);
    }
}

#[test]
fn a_session_with_many_queries_does_not_starve_another_one() {
    let mut line = line(1, 1_000);
    line.enter(need(ADA, Priority::Normal, 0), None, 0);
    for number in 1..=100 {
        wait(&mut line, need(ADA, Priority::Normal, 0), number);
    }
    for number in 1_001..=1_003 {
        wait(&mut line, need(BOB, Priority::Normal, 0), number);
    }
    let order = turns(&mut line);
    assert_eq!(order[..7], [1, 1_001, 2, 1_002, 3, 1_003, 4]);
    assert_eq!(order.len(), 103);
}

#[test]
fn a_session_that_was_away_does_not_catch_up() {
    let mut line = busy(&[]);
    for _ in 0..50 {
        wait(&mut line, need(ADA, Priority::Normal, 0), "a");
        assert_eq!(turns(&mut line), ["a"]);
    }
    // As if none had run before.
    for (session, token) in [(ADA, "a1"), (BOB, "b1"), (ADA, "a2"), (BOB, "b2")] {
        wait(&mut line, need(session, Priority::Normal, 0), token);
    }
    assert_eq!(turns(&mut line), ["a1", "b1", "a2", "b2"]);
}

#[test]
fn who_is_more_urgent_comes_first_and_has_four_times_the_turns() {
    use Priority::{High, Low, Normal};
    let waiting = [(ADA, Low, "low"), (BOB, Normal, "normal"), (CLEO, High, "high")];
    assert_eq!(turns(&mut busy(&waiting)), ["high", "normal", "low"]);

    // Each sends its next one as soon as the last one has its turn.
    let mut line = busy(&waiting);
    let mut counts = [0; 3];
    for _ in 0..2_100 {
        line.end(0);
        let (token, _) = line.next(None).unwrap();
        let index = waiting.iter().position(|(.., name)| *name == token).unwrap();
        counts[index] += 1;
        let (session, priority, name) = waiting[index];
        wait(&mut line, need(session, priority, 0), name);
    }
    assert_eq!(counts, [100, 400, 1_600]);
}

#[test]
fn nobody_is_passed_for_ever() {
    // Twenty sessions that are as urgent as can be, new ones all the time, and one that
    // is not urgent at all.
    let mut line = line(1, 1_000);
    line.enter(need(0, Priority::High, 0), None, 0);
    for session in 1..=20 {
        wait(&mut line, need(session, Priority::High, 0), session);
    }
    let mut next = 21;
    wait(&mut line, need(10_000, Priority::Low, 0), 10_000);
    let mut passed_by = 0;
    loop {
        line.end(0);
        let (session, _) = line.next(None).unwrap();
        if session == 10_000 {
            break;
        }
        passed_by += 1;
        assert!(passed_by <= 16 * 20, "it waits for ever");
        wait(&mut line, need(next, Priority::High, 0), next);
        next += 1;
    }
    assert!(passed_by >= 20, "the others are more urgent");
}

#[test]
fn who_goes_away_frees_the_place() {
    let mut line = line(1, 2);
    line.enter(need(ADA, Priority::Normal, 0), None, "runs");
    let first = wait(&mut line, need(ADA, Priority::Normal, 0), "1");
    let second = wait(&mut line, need(ADA, Priority::Normal, 0), "2");
    assert_eq!((line.place(first), line.place(second)), (1, 2));
    assert_eq!(line.enter(need(BOB, Priority::High, 0), None, "3"), Entered::Full("3"));
    assert!(line.leave(first));
    assert!(!line.leave(first), "it has left");
    assert_eq!((line.waiting(), line.place(second)), (1, 1));
    let third = wait(&mut line, need(BOB, Priority::High, 0), "3");
    assert_eq!(line.places().collect::<Vec<_>>(), [(third, 1), (second, 2)]);
    assert_eq!(turns(&mut line), ["3", "2"]);
    // Nothing is remembered of sessions none of whose queries wait.
    assert!(line.sessions.is_empty());
}

#[test]
fn nobody_is_let_in_past_those_that_wait() {
    let mut line = line(2, 10);
    line.enter(need(ADA, Priority::Normal, 60), Some(100), "a");
    // There is a place, and no memory.
    let Entered::Waits(large) = line.enter(need(ADA, Priority::Normal, 60), Some(100), "large") else {
        panic!("it runs")
    };
    let small = line.enter(need(BOB, Priority::Normal, 1), Some(100), "small");
    assert!(matches!(small, Entered::Waits(_)), "{small:?}");
    assert_eq!(line.next(Some(100)), None);
    // Without the large one there is room for the small one.
    assert!(line.leave(large));
    assert_eq!(line.next(Some(100)), Some(("small", 1)));
    assert_eq!(line.next(Some(100)), None);
}

#[test]
fn those_that_run_fit_in_memory_together_and_any_runs_alone() {
    let mut line = line(4, 10);
    assert_eq!(line.enter(need(ADA, Priority::Normal, 900), Some(100), "huge"), Entered::Runs("huge"));
    for (token, bytes) in [("a", 50), ("b", 50), ("c", 1)] {
        let entered = line.enter(need(ADA, Priority::Normal, bytes), Some(100), token);
        assert!(matches!(entered, Entered::Waits(_)), "{entered:?}");
    }
    assert_eq!(line.next(Some(100)), None);
    line.end(900);
    assert_eq!(line.next(Some(100)), Some(("a", 50)));
    assert_eq!(line.next(Some(100)), Some(("b", 50)));
    assert_eq!(line.next(Some(100)), None);
    line.end(50);
    assert_eq!(line.next(Some(100)), Some(("c", 1)));
    // More memory than is known of: as many as there are places.
    for token in ["d", "e"] {
        assert_eq!(line.enter(need(ADA, Priority::Normal, 900), None, token), Entered::Runs(token));
    }
    assert!(matches!(line.enter(need(ADA, Priority::Normal, 0), None, "f"), Entered::Waits(_)));
}

#[test]
fn whatever_comes_and_goes_places_are_kept_and_all_are_let_in() {
    // Numbers that are the same in each run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let priorities = [Priority::Low, Priority::Normal, Priority::High];
    let (running_max, waiting_max, memory_max) = (3, 20, Some(100));
    let mut line = line(running_max, waiting_max);
    let mut running: VecDeque<u64> = VecDeque::new();
    let mut tickets: Vec<(Ticket, u64)> = Vec::new();
    let mut began = 0;
    let mut left = 0;
    for number in 0..20_000 {
        match draw(5) {
            0 | 1 => {
                let need = need(draw(6), priorities[draw(3) as usize], draw(140));
                match line.enter(need, memory_max, number) {
                    Entered::Runs(_) => {
                        began += 1;
                        running.push_back(need.memory_bytes);
                    }
                    Entered::Waits(ticket) => tickets.push((ticket, number)),
                    Entered::Full(_) => assert_eq!(line.waiting(), waiting_max),
                }
            }
            2 if !tickets.is_empty() => {
                let (ticket, _) = tickets.swap_remove(draw(tickets.len() as u64) as usize);
                assert!(line.leave(ticket));
                left += 1;
            }
            _ => {
                if let Some(bytes) = running.pop_front() {
                    line.end(bytes);
                }
            }
        }
        while let Some((token, bytes)) = line.next(memory_max) {
            tickets.retain(|(_, number)| *number != token);
            began += 1;
            running.push_back(bytes);
        }
        assert_eq!(line.waiting(), tickets.len());
        assert_eq!(line.running, running.len());
        assert!(running.len() <= running_max);
        assert!(running.len() == 1 || running.iter().sum::<u64>() <= 100, "{running:?}");
        // Nobody waits where nobody runs.
        assert!(!running.is_empty() || tickets.is_empty());
        let waiting: usize = line.sessions.values().map(|session| session.waiting).sum();
        assert_eq!(waiting, tickets.len());
    }
    assert!(began > 2_000 && left > 500, "{began} began and {left} left");
    while let Some(bytes) = running.pop_front() {
        line.end(bytes);
        while let Some((_, bytes)) = line.next(memory_max) {
            running.push_back(bytes);
        }
    }
    assert_eq!(line.waiting(), 0);
}

#[test]
fn turns_of_those_that_went_away_are_their_sessions_still() {
    use Priority::Normal;
    let mut line = busy(&[(ADA, Normal, "a1")]);
    let gone: Vec<Ticket> = (0..50).map(|_| wait(&mut line, need(ADA, Normal, 0), "gone")).collect();
    for ticket in gone {
        assert!(line.leave(ticket));
    }
    for token in ["b1", "b2", "b3"] {
        wait(&mut line, need(BOB, Normal, 0), token);
    }
    for token in ["a2", "a3"] {
        wait(&mut line, need(ADA, Normal, 0), token);
    }
    assert_eq!(turns(&mut line), ["a1", "b1", "b2", "a2", "b3", "a3"]);
}

#[test]
fn a_turn_that_was_given_back_is_lost_when_others_have_passed_it() {
    use Priority::Normal;
    let mut line = busy(&[(ADA, Normal, "a1")]);
    let gone = wait(&mut line, need(ADA, Normal, 0), "gone");
    wait(&mut line, need(ADA, Normal, 0), "a3");
    for token in ["b1", "b2", "b3", "b4"] {
        wait(&mut line, need(BOB, Normal, 0), token);
    }
    assert!(line.leave(gone));
    let mut next = || {
        line.end(0);
        line.next(None).map(|(token, _)| token)
    };
    assert_eq!([next(), next(), next()], [Some("a1"), Some("b1"), Some("b2")]);
    // The number of the one that went is that of b2: with it, a4 would be before a3.
    wait(&mut line, need(ADA, Normal, 0), "a4");
    assert_eq!(turns(&mut line), ["a3", "b3", "b4", "a4"]);
}
