//! What came of one number of clients, and what several of them say together.

use serde::Serialize;

use super::class::Class;
use crate::load::{Asked, Tally};

/// A rate that is so much of the best one, or more, is as good.
const KEPT_MIN: f64 = 0.9;

/// The answers of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Times {
    /// Right ones.
    pub(super) answers: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
}

impl Times {
    fn of(tally: &Tally) -> Self {
        Self {
            answers: tally.right(),
            p50_ms: tally.percentile_ms(0.5),
            p99_ms: tally.p99_ms(),
            p999_ms: tally.percentile_ms(0.999),
        }
    }
}

/// What came of so many clients.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Level {
    pub(super) clients: usize,
    /// From the first question until the last answer.
    pub(super) seconds: f64,
    /// Of these, since the last question was asked: fewer and fewer clients wait, in the
    /// end only for long queries.
    pub(super) drain_seconds: f64,
    /// Right answers in a second.
    pub(super) rate: f64,
    pub(super) wrong: usize,
    pub(super) failed: usize,
    pub(super) point: Times,
    pub(super) aggregate: Times,
    pub(super) tpch: Times,
}

impl Level {
    /// What so many clients asked in that time.
    pub(super) fn new(clients: usize, seconds: f64, asked: &[(Class, Asked)]) -> Self {
        let all = Tally::new(asked.iter().map(|(_, asked)| *asked).collect());
        let of = |wanted: Class| {
            let its = asked.iter().filter(|(class, _)| *class == wanted);
            Times::of(&Tally::new(its.map(|(_, asked)| *asked).collect()))
        };
        let began = asked.iter().map(|(_, asked)| asked.at).min();
        let last = asked.iter().map(|(_, asked)| asked.at).max();
        let asking = last.zip(began).map_or(0.0, |(last, began)| (last - began).as_secs_f64());
        Self {
            clients,
            seconds,
            drain_seconds: (seconds - asking).max(0.0),
            rate: all.right() as f64 / seconds,
            wrong: all.wrong(),
            failed: all.failed(),
            point: of(Class::Point),
            aggregate: of(Class::Aggregate),
            tpch: of(Class::Tpch),
        }
    }

    /// The answers of one kind.
    pub(super) fn times(&self, class: Class) -> Times {
        match class {
            Class::Point => self.point,
            Class::Aggregate => self.aggregate,
            Class::Tpch => self.tpch,
        }
    }

    /// How long the slowest lookup of a hundred takes, over a usual query of TPC-H:
    /// above 1 short queries wait for long ones. Not a number where one of the two
    /// was not asked.
    pub(super) fn short_over_long(&self) -> f64 {
        self.point.p99_ms / self.tpch.p50_ms
    }

    /// A line for the whole, and one for each kind.
    pub(super) fn lines(&self, name: &str) -> Vec<String> {
        let mut lines = vec![format!(
            "{:>5} clients {name:>10}: {:>7.0} answers/s in {:.1} s ({:.1} since the last was asked), {} wrong, \
             {} failed",
            self.clients, self.rate, self.seconds, self.drain_seconds, self.wrong, self.failed
        )];
        lines.extend(Class::ALL.map(|class| {
            let times = self.times(class);
            format!(
                "{:>24}: {:>7} answers, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                class.name(),
                times.answers,
                times.p50_ms,
                times.p99_ms,
                times.p999_ms
            )
        }));
        lines
    }
}

/// The level with the best rate.
pub(super) fn peak(levels: &[Level]) -> Option<&Level> {
    levels.iter().max_by(|a, b| a.rate.total_cmp(&b.rate))
}

/// The rate with most clients over the best one: 1 where it does not fall off past
/// its peak.
pub(super) fn rate_kept(levels: &[Level]) -> f64 {
    let last = levels.iter().max_by_key(|level| level.clients);
    match (last, peak(levels)) {
        (Some(last), Some(peak)) => last.rate / peak.rate,
        _ => f64::NAN,
    }
}

/// The worst [`Level::short_over_long`].
pub(super) fn short_over_long(levels: &[Level]) -> f64 {
    levels.iter().map(Level::short_over_long).fold(f64::NAN, f64::max)
}

/// What the levels of one side say, for a person.
pub(super) fn verdicts(name: &str, levels: &[Level]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(peak) = peak(levels) {
        let kept = rate_kept(levels);
        let falls = if kept < KEPT_MIN { "falls off" } else { "holds" };
        lines.push(format!(
            "{name}: throughput {falls} past its peak of {:.0} answers/s with {} clients: {kept:.2} of it with most",
            peak.rate, peak.clients
        ));
    }
    let starved = levels.iter().filter(|level| level.short_over_long() > 1.0);
    let starved: Vec<String> = starved.map(|level| level.clients.to_string()).collect();
    lines.push(if starved.is_empty() {
        format!("{name}: short queries are not starved: 99 of 100 lookups are faster than a usual query of TPC-H")
    } else {
        format!(
            "{name}: short queries are starved with {} clients: one lookup of 100 takes longer than a usual query of \
             TPC-H",
            starved.join(", ")
        )
    });
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::load::Verdict;

    fn asked(class: Class, ms: f64, verdict: Verdict) -> (Class, Asked) {
        (class, Asked { at: Instant::now(), ms, verdict, is_detour: false })
    }

    /// One lookup and one query of TPC-H.
    fn level(clients: usize, seconds: f64, point_ms: f64, tpch_ms: f64) -> Level {
        let both =
            [asked(Class::Point, point_ms, Verdict::Right), asked(Class::Tpch, tpch_ms, Verdict::Right)];
        Level::new(clients, seconds, &both)
    }

    #[test]
    fn kinds_are_told_apart_and_only_right_answers_have_times() {
        let level = Level::new(
            3,
            2.0,
            &[
                asked(Class::Point, 1.0, Verdict::Right),
                asked(Class::Point, 3.0, Verdict::Right),
                asked(Class::Point, 900.0, Verdict::Wrong),
                asked(Class::Aggregate, 800.0, Verdict::Failed),
                asked(Class::Tpch, 50.0, Verdict::Right),
            ],
        );
        assert_eq!((level.rate, level.wrong, level.failed), (1.5, 1, 1));
        assert_eq!((level.point.answers, level.point.p50_ms, level.point.p999_ms), (2, 1.0, 3.0));
        assert_eq!(level.aggregate.answers, 0);
        assert!(level.aggregate.p99_ms.is_nan());
        assert_eq!(level.times(Class::Tpch).p99_ms, 50.0);
        assert_eq!(level.short_over_long(), 0.06);
        assert_eq!(level.lines("shoal").len(), 4);
    }

    #[test]
    fn the_drain_begins_with_the_last_question() {
        let began = Instant::now();
        let at = |ms: u64| {
            let at = began + Duration::from_millis(ms);
            (Class::Point, Asked { at, ms: 1.0, verdict: Verdict::Right, is_detour: false })
        };
        assert_eq!(Level::new(2, 4.0, &[at(0), at(2_500), at(1_000)]).drain_seconds, 1.5);
        assert_eq!(Level::new(2, 4.0, &[]).drain_seconds, 4.0);
    }

    #[test]
    fn a_rate_falls_off_only_past_its_peak() {
        // Rates of 1, 4 and 2.
        let falling = [level(1, 2.0, 1.0, 9.0), level(16, 0.5, 1.0, 9.0), level(64, 1.0, 1.0, 9.0)];
        assert_eq!(peak(&falling).unwrap().clients, 16);
        assert_eq!(rate_kept(&falling), 0.5);
        assert!(verdicts("shoal", &falling)[0].contains("falls off past its peak of 4 answers/s with 16"));
        assert_eq!(rate_kept(&falling[..2]), 1.0);
        assert!(verdicts("shoal", &falling[..2])[0].contains("holds"));
        assert!(rate_kept(&[]).is_nan());
    }

    #[test]
    fn short_queries_are_starved_where_they_take_longer_than_long_ones() {
        let levels = [level(1, 1.0, 1.0, 100.0), level(64, 1.0, 300.0, 200.0), level(256, 1.0, 50.0, 100.0)];
        assert_eq!(short_over_long(&levels), 1.5);
        assert!(verdicts("shoal", &levels)[1].contains("starved with 64 clients:"));
        assert!(verdicts("shoal", &levels[..1])[1].contains("not starved"));
        // Nobody asked anything long.
        let short = [Level::new(1, 1.0, &[asked(Class::Point, 1.0, Verdict::Right)])];
        assert!(short_over_long(&short).is_nan());
    }
}
