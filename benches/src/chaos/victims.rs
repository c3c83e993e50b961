//! Which coordinators suffer, which may be struck next, and whether that is why
//! a statement failed. Pure: the time is given.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tonic::Code;

/// The coordinators of a run, by the order in which they were started.
#[derive(Clone, Debug)]
pub(super) struct Victims(Vec<Victim>);

#[derive(Clone, Copy, Debug, Default)]
struct Victim {
    /// How often it was struck.
    strikes: u64,
    /// Since when it suffers; None: it is whole.
    since: Option<Instant>,
}

/// A client's place at a coordinator, and how often that had been struck when
/// the client took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) coordinator: usize,
    strikes: u64,
}

impl Victims {
    /// So many, all of them whole.
    pub(super) fn new(coordinators: usize) -> Self {
        Self(vec![Victim::default(); coordinators])
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    /// How many may suffer at a time: a majority of all is whole meanwhile.
    pub(super) fn minority(&self) -> usize {
        self.count().saturating_sub(1) / 2
    }

    /// Strikes one that may be struck: this one, if it is among them. None
    /// where no majority would be left.
    pub(super) fn strike(
        &mut self,
        preferred: Option<usize>,
        now: Instant,
        random: &mut StdRng,
    ) -> Option<usize> {
        let may_be_struck = self.may_be_struck();
        let struck = match preferred.filter(|preferred| may_be_struck.contains(preferred)) {
            Some(preferred) => preferred,
            None => *may_be_struck.choose(random)?,
        };
        let victim = &mut self.0[struck];
        victim.strikes += 1;
        victim.since = Some(now);
        Some(struck)
    }

    fn may_be_struck(&self) -> Vec<usize> {
        let whole: Vec<usize> = (0..self.count()).filter(|index| self.is_whole(*index)).collect();
        let suffering = self.count() - whole.len();
        if suffering < self.minority() { whole } else { Vec::new() }
    }

    fn is_whole(&self, coordinator: usize) -> bool {
        self.0[coordinator].since.is_none()
    }

    /// It answers again.
    pub(super) fn heal(&mut self, coordinator: usize) {
        self.0[coordinator].since = None;
    }

    /// A seat at the first that is whole, from this one on.
    pub(super) fn seat(&self, first: usize) -> Seat {
        let mut in_turn = (first..first + self.count()).map(|number| number % self.count());
        let whole = in_turn.find(|coordinator| self.is_whole(*coordinator));
        let coordinator = whole.unwrap_or(first % self.count());
        Seat { coordinator, strikes: self.0[coordinator].strikes }
    }

    /// Whether what a coordinator suffered, since a client took its seat there,
    /// explains that a statement failed with this code. That a statement is
    /// refused is nothing that faults explain.
    pub(super) fn explain(&self, seat: Seat, code: Code) -> bool {
        let is_refused = matches!(code, Code::InvalidArgument | Code::NotFound | Code::AlreadyExists);
        let is_struck = !self.is_whole(seat.coordinator) || self.0[seat.coordinator].strikes != seat.strikes;
        is_struck && !is_refused
    }

    /// For how long the coordinator has suffered by now; nothing where it is
    /// whole.
    pub(super) fn suffers_for(&self, seat: Seat, now: Instant) -> Duration {
        let since = self.0[seat.coordinator].since;
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// How many of so many are struck when nobody is healed.
    fn check(coordinators: usize, expected: usize) {
        let mut random = StdRng::seed_from_u64(1);
        let mut victims = Victims::new(coordinators);
        let mut struck = Vec::new();
        while let Some(next) = victims.strike(None, Instant::now(), &mut random) {
            assert!(!struck.contains(&next), "{next} suffers already, of {coordinators}");
            struck.push(next);
        }
        assert_eq!(struck.len(), expected, "of {coordinators}");
        assert_eq!(victims.minority(), expected, "of {coordinators}");
    }

    #[test]
    fn a_majority_is_whole_at_any_time() {
        for (coordinators, minority) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)] {
            check(coordinators, minority);
        }
    }

    #[test]
    fn who_is_healed_may_be_struck_again() {
        let mut random = StdRng::seed_from_u64(1);
        let mut victims = Victims::new(3);
        let mut strike =
            |victims: &mut Victims, preferred| victims.strike(Some(preferred), Instant::now(), &mut random);
        assert_eq!(strike(&mut victims, 2), Some(2));
        assert_eq!(strike(&mut victims, 0), None);
        victims.heal(2);
        assert_eq!(strike(&mut victims, 2), Some(2));
    }

    #[test]
    fn the_leader_is_struck_unless_it_suffers_already() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..20 {
            let mut victims = Victims::new(5);
            let mut strike = |leader| victims.strike(Some(leader), Instant::now(), &mut random);
            assert_eq!(strike(3), Some(3));
            let other = strike(3);
            assert!(other.is_some_and(|other| other != 3), "{other:?}");
        }
    }

    #[test]
    fn a_client_takes_the_next_seat_while_its_own_coordinator_suffers() {
        let mut random = StdRng::seed_from_u64(1);
        let mut victims = Victims::new(3);
        let taken = |victims: &Victims| [0, 1, 2, 3, 4].map(|first| victims.seat(first).coordinator);
        assert_eq!(taken(&victims), [0, 1, 2, 0, 1]);
        victims.strike(Some(2), Instant::now(), &mut random);
        assert_eq!(taken(&victims), [0, 1, 0, 0, 1]);
        victims.heal(2);
        assert_eq!(taken(&victims), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn only_what_a_coordinator_suffered_meanwhile_explains_that_a_statement_failed() {
        let mut random = StdRng::seed_from_u64(1);
        let mut victims = Victims::new(3);
        let (struck, other) = (victims.seat(1), victims.seat(2));
        assert!(!victims.explain(struck, Code::Unavailable));
        victims.strike(Some(1), Instant::now(), &mut random);
        assert!(victims.explain(struck, Code::Unavailable));
        // An election of a new leader is no excuse elsewhere.
        assert!(!victims.explain(other, Code::Unavailable));
        // It was struck meanwhile, also where it is whole again.
        victims.heal(1);
        assert!(victims.explain(struck, Code::Unknown));
        assert!(!victims.explain(victims.seat(1), Code::Unknown));
    }

    #[test]
    fn no_fault_explains_that_a_statement_is_refused() {
        let mut random = StdRng::seed_from_u64(1);
        let mut victims = Victims::new(3);
        let seat = victims.seat(0);
        victims.strike(Some(0), Instant::now(), &mut random);
        for code in [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists] {
            assert!(!victims.explain(seat, code), "{code:?}");
        }
        for code in [Code::Unavailable, Code::Unauthenticated, Code::DeadlineExceeded, Code::Unknown] {
            assert!(victims.explain(seat, code), "{code:?}");
        }
    }

    #[test]
    fn who_is_whole_has_suffered_for_no_time() {
        let mut random = StdRng::seed_from_u64(1);
        let mut victims = Victims::new(3);
        let (seat, now) = (victims.seat(0), Instant::now());
        let later = now + Duration::from_secs(3);
        assert_eq!(victims.suffers_for(seat, later), Duration::ZERO);
        victims.strike(Some(0), now, &mut random);
        assert_eq!(victims.suffers_for(seat, later), Duration::from_secs(3));
        victims.heal(0);
        assert_eq!(victims.suffers_for(seat, later), Duration::ZERO);
    }
}
