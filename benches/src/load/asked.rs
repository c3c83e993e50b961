//! What clients asked, when, and what they got.

use std::time::{Duration, Instant};

use crate::report::percentile;

/// How an answer compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Equal to the first answer.
    Right,
    /// Another answer.
    Wrong,
    /// An error.
    Failed,
}

/// One question that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// When.
    pub at: Instant,
    /// How long the answer took.
    pub ms: f64,
    /// How it compared.
    pub verdict: Verdict,
    /// Whether its client had to go on at another coordinator meanwhile.
    pub is_detour: bool,
}

impl Asked {
    fn answered(&self) -> Instant {
        self.at + Duration::from_secs_f64(self.ms.max(0.0) / 1e3)
    }
}

/// All that was asked in some time.
#[derive(Clone, Debug, Default)]
pub struct Tally(Vec<Asked>);

impl Tally {
    /// Of these.
    pub fn new(asked: Vec<Asked>) -> Self {
        Self(asked)
    }

    /// What was asked at moments of which that is true.
    pub fn when(&self, is_so: impl Fn(Instant) -> bool) -> Self {
        Self(self.0.iter().filter(|asked| is_so(asked.at)).copied().collect())
    }

    /// What was asked from one moment on and before another.
    pub fn between(&self, from: Instant, to: Instant) -> Self {
        self.when(|at| (from..to).contains(&at))
    }

    /// What was on its way at some moment of that time: asked before it ended, and answered after it began.
    pub fn meanwhile(&self, from: Instant, to: Instant) -> Self {
        let is_of = |asked: &&Asked| asked.at < to && asked.answered() > from;
        Self(self.0.iter().filter(is_of).copied().collect())
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How many answers were right.
    pub fn right(&self) -> usize {
        self.of(Verdict::Right)
    }

    /// How many answers were wrong.
    pub fn wrong(&self) -> usize {
        self.of(Verdict::Wrong)
    }

    /// How many there was an error in place of.
    pub fn failed(&self) -> usize {
        self.of(Verdict::Failed)
    }

    fn of(&self, wanted: Verdict) -> usize {
        self.0.iter().filter(|asked| asked.verdict == wanted).count()
    }

    /// The time below which `share` (0 to 1) of the right answers came that one
    /// coordinator gave; not a number where there are none.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let counts = |asked: &&Asked| asked.verdict == Verdict::Right && !asked.is_detour;
        let ms: Vec<f64> = self.0.iter().filter(counts).map(|asked| asked.ms).collect();
        percentile(&ms, share)
    }

    /// The time below which 99 of 100 such answers came.
    pub fn p99_ms(&self) -> f64 {
        self.percentile_ms(0.99)
    }

    /// For a person.
    pub fn describe(&self) -> String {
        format!(
            "{} queries, {} wrong, {} failed, p50 {:.1}, p99 {:.1}, worst {:.1} ms",
            self.count(),
            self.wrong(),
            self.failed(),
            self.percentile_ms(0.5),
            self.p99_ms(),
            self.percentile_ms(1.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_right_answers_and_of_their_own_time() {
        let began = Instant::now();
        let asked = |second: u64, ms: f64, verdict: Verdict, is_detour: bool| Asked {
            at: began + Duration::from_secs(second),
            ms,
            verdict,
            is_detour,
        };
        let tally = Tally::new(vec![
            asked(0, 1.0, Verdict::Right, false),
            asked(1, 2.0, Verdict::Right, false),
            asked(1, 700.0, Verdict::Right, true),
            asked(1, 800.0, Verdict::Wrong, false),
            asked(2, 900.0, Verdict::Failed, false),
        ]);
        assert_eq!((tally.count(), tally.right(), tally.wrong(), tally.failed()), (5, 3, 1, 1));
        assert_eq!((tally.percentile_ms(0.5), tally.p99_ms()), (1.0, 2.0));
        let first = tally.between(began, began + Duration::from_secs(1));
        assert_eq!((first.count(), first.p99_ms()), (1, 1.0));
        let last = tally.when(|at| at > began + Duration::from_secs(1));
        assert_eq!((last.count(), last.failed()), (1, 1));
        assert!(last.p99_ms().is_nan());
        let long = Tally::new(vec![asked(0, 5_000.0, Verdict::Right, false)]);
        let second = |number: u64| began + Duration::from_secs(number);
        assert_eq!(long.between(second(1), second(4)).count(), 0);
        assert_eq!(long.meanwhile(second(1), second(4)).count(), 1);
        assert_eq!(long.meanwhile(second(5), second(9)).count(), 0);
    }
}
