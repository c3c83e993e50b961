//! How far it is with copies of what has too few.

use std::fmt;
use std::time::{Duration, Instant};

/// So long after it was ordered a copy keeps others waiting, and as long as the last one
/// of any was made no longer ago: large ones take their time, and one that cannot be made
/// is ordered again and again.
const GETS_ON_MAX: Duration = Duration::from_secs(10);

/// The copies that are being made of what has too few. Pure.
#[derive(Debug, Default)]
pub struct Repairing {
    under_way: Option<Repaired>,
    /// When the last one was made.
    made_at: Option<Instant>,
}

/// What was made since there was too little of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    since: Instant,
    copies: u64,
    bytes: u64,
    took: Duration,
}

impl Repairing {
    /// Copies are ordered.
    pub fn ordered(&mut self, now: Instant) {
        self.under_way.get_or_insert(Repaired { since: now, copies: 0, bytes: 0, took: Duration::ZERO });
    }

    /// A copy of so many bytes is made.
    pub fn made(&mut self, now: Instant, bytes: u64) {
        self.made_at = Some(now);
        if let Some(repaired) = &mut self.under_way {
            repaired.copies += 1;
            repaired.bytes += bytes;
        }
    }

    /// Whether copies that were ordered at these times keep others waiting.
    pub fn gets_on(&self, now: Instant, mut ordered: impl Iterator<Item = Instant>) -> bool {
        let is_new = |at: Instant| now.saturating_duration_since(at) < GETS_ON_MAX;
        let was_one_made = self.made_at.is_some_and(is_new);
        ordered.any(|at| was_one_made || is_new(at))
    }

    /// Whether nothing was made for so long: what is left cannot be made for now.
    pub fn stands_still(&self, now: Instant, limit: Duration) -> bool {
        let since = self.under_way.as_ref().map(|repaired| repaired.since);
        self.made_at.max(since).is_some_and(|at| now.saturating_duration_since(at) >= limit)
    }

    /// None is left that can be made; what was made, where that is news.
    pub fn ended(&mut self) -> Option<Repaired> {
        let repaired = self.under_way.take()?;
        let took = self.made_at?.saturating_duration_since(repaired.since);
        (repaired.copies > 0).then_some(Repaired { took, ..repaired })
    }
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, what) = (self.copies, if self.copies == 1 { "copy" } else { "copies" });
        let (megabytes, seconds) = (self.bytes as f64 / 1e6, self.took.as_secs_f64());
        write!(f, "{count} {what} of what had too few were made, {megabytes:.1} MB in {seconds:.2} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_told_once_when_none_is_left() {
        let mut repairing = Repairing::default();
        let began = Instant::now();
        assert_eq!(repairing.ended(), None, "nothing was to be made");
        repairing.ordered(began);
        repairing.made(began + Duration::from_secs(1), 1_200_000);
        repairing.ordered(began + Duration::from_secs(2));
        repairing.made(began + Duration::from_secs(3), 300_000);
        let repaired = repairing.ended().unwrap();
        assert_eq!(repaired.to_string(), "2 copies of what had too few were made, 1.5 MB in 3.00 s");
        assert_eq!(repairing.ended(), None, "it is told twice");
        repairing.ordered(began + Duration::from_secs(5));
        assert_eq!(repairing.ended(), None, "nothing was made");
    }

    #[test]
    fn what_cannot_be_made_does_not_keep_the_rest_from_being_told() {
        let (began, limit) = (Instant::now(), Duration::from_secs(60));
        let mut repairing = Repairing::default();
        assert!(!repairing.stands_still(began, limit));
        repairing.ordered(began);
        assert!(!repairing.stands_still(began + Duration::from_secs(59), limit));
        assert!(repairing.stands_still(began + limit, limit));
        repairing.made(began + Duration::from_secs(59), 1);
        assert!(!repairing.stands_still(began + limit, limit));
        assert!(repairing.stands_still(began + 2 * limit, limit));
    }

    #[test]
    fn what_was_just_ordered_or_gets_on_keeps_others_waiting() {
        let mut repairing = Repairing::default();
        let began = Instant::now();
        let late = began + Duration::from_secs(11);
        assert!(!repairing.gets_on(began, [].into_iter()));
        assert!(repairing.gets_on(began, [began].into_iter()));
        assert!(!repairing.gets_on(late, [began].into_iter()));
        assert!(repairing.gets_on(late, [began, late].into_iter()));
        repairing.made(began + Duration::from_secs(2), 1);
        assert!(repairing.gets_on(late, [began].into_iter()));
        assert!(!repairing.gets_on(late + Duration::from_secs(1), [began].into_iter()));
    }
}
