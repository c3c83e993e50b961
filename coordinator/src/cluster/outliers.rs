//! Workers that are slower than the others, over all queries: pure, `now` is
//! passed in. How often work may be done a second time because of them, and
//! for how long they get none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_proto::WorkerId;

/// Second runs that each first run allows: a tenth of all work at most.
const SECOND_RUNS_PER_RUN: f64 = 0.1;
/// Second runs that may have been saved up.
const SECOND_RUNS_MAX: f64 = 16.0;
/// How long a worker gets no work after it was overtaken, each time longer.
const EJECTED_FOR: Duration = Duration::from_secs(10);
/// The longest that it can become.
const EJECTED_FOR_MAX: Duration = Duration::from_secs(300);
/// After so long without being overtaken, what was before is forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(120);
/// Two shards of one query say the same of their worker.
const ONCE_WITHIN: Duration = Duration::from_secs(1);

/// What is known of slow workers.
#[derive(Clone, Debug)]
pub struct Outliers {
    second_runs: f64,
    overtaken: BTreeMap<WorkerId, Overtaken>,
}

#[derive(Clone, Copy, Debug)]
struct Overtaken {
    last: Instant,
    times: u32,
}

impl Overtaken {
    fn until(&self) -> Instant {
        self.last + EJECTED_FOR.saturating_mul(self.times).min(EJECTED_FOR_MAX)
    }
}

impl Default for Outliers {
    fn default() -> Self {
        Self { second_runs: SECOND_RUNS_MAX, overtaken: BTreeMap::new() }
    }
}

impl Outliers {
    /// A part of a query begins for the first time.
    pub fn begun(&mut self) {
        self.second_runs = (self.second_runs + SECOND_RUNS_PER_RUN).min(SECOND_RUNS_MAX);
    }

    /// Whether one may begin a second time; if so it counts.
    pub fn may_run_again(&mut self) -> bool {
        let may = self.second_runs >= 1.0;
        if may {
            self.second_runs -= 1.0;
        }
        may
    }

    /// A second run that began later ended before the worker's own.
    pub fn overtook(&mut self, worker: &WorkerId, now: Instant) {
        let known = self.overtaken.get(worker).copied();
        let times = match known {
            Some(known) if now.saturating_duration_since(known.last) < ONCE_WITHIN => known.times,
            Some(known) if now.saturating_duration_since(known.until()) < FORGIVEN_AFTER => known.times + 1,
            _ => 1,
        };
        self.overtaken.insert(worker.clone(), Overtaken { last: now, times });
    }

    /// For how long yet a worker that was overtaken gets no work, if there are
    /// enough others.
    pub fn remaining(&self, worker: &WorkerId, now: Instant) -> Option<Duration> {
        let left = self.overtaken.get(worker)?.until().saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Those of `workers` that get no work now: at most half of them, those
    /// that were overtaken last.
    pub fn ejected<'a>(
        &self,
        workers: impl Iterator<Item = &'a WorkerId>,
        now: Instant,
    ) -> BTreeSet<WorkerId> {
        let mut count = 0;
        let mut slow: Vec<_> = workers
            .inspect(|_| count += 1)
            .filter(|worker| self.remaining(worker, now).is_some())
            .filter_map(|worker| Some((self.overtaken.get(worker)?, worker)))
            .map(|(overtaken, worker)| (overtaken.last, worker.clone()))
            .collect();
        slow.sort();
        slow.into_iter().rev().take(count / 2).map(|(_, worker)| worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<WorkerId> {
        names.iter().map(|name| WorkerId::from(*name)).collect()
    }

    #[test]
    fn a_small_share_of_all_work_may_run_twice() {
        let mut outliers = Outliers::default();
        let mut again = 0;
        for _ in 0..1_000 {
            outliers.begun();
            again += u32::from(outliers.may_run_again());
        }
        assert!((100..=117).contains(&again), "{again}");
    }

    #[test]
    fn an_overtaken_worker_gets_no_work_for_longer_each_time() {
        let start = Instant::now();
        let workers = names(&["w1", "w2", "w3", "w4"]);
        let slow = &workers[1];
        let mut outliers = Outliers::default();
        let is_ejected =
            |outliers: &Outliers, now: Instant| outliers.ejected(workers.iter(), now).contains(slow);
        outliers.overtook(slow, start);
        // The other shard of the same query.
        outliers.overtook(slow, start + Duration::from_millis(5));
        assert!(is_ejected(&outliers, start + EJECTED_FOR));
        assert_eq!(
            outliers.remaining(slow, start + ONCE_WITHIN),
            Some(EJECTED_FOR - ONCE_WITHIN + Duration::from_millis(5))
        );
        assert_eq!(outliers.remaining(&workers[0], start), None);
        let back = start + EJECTED_FOR + ONCE_WITHIN;
        assert!(!is_ejected(&outliers, back));
        outliers.overtook(slow, back);
        assert!(is_ejected(&outliers, back + EJECTED_FOR + ONCE_WITHIN));
        assert!(!is_ejected(&outliers, back + EJECTED_FOR * 2));
        let later = back + EJECTED_FOR * 2 + FORGIVEN_AFTER;
        outliers.overtook(slow, later);
        assert!(!is_ejected(&outliers, later + EJECTED_FOR));
    }

    #[test]
    fn never_more_than_half_of_them() {
        let now = Instant::now();
        let mut outliers = Outliers::default();
        let all = names(&["w1", "w2", "w3"]);
        for (turn, worker) in all.iter().enumerate() {
            outliers.overtook(worker, now + Duration::from_millis(turn as u64));
        }
        let later = now + Duration::from_secs(1);
        assert_eq!(outliers.ejected(all.iter(), later), BTreeSet::from([WorkerId::from("w3")]));
        assert!(outliers.ejected(all[..1].iter(), later).is_empty());
    }
}
