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
/// How often in a row a worker is overtaken before it gets no work: once may be what its machine did just then.
const OVERTAKEN_MAX: u32 = 2;
/// How long a slow worker gets no work, each time longer.
const EJECTED_FOR: Duration = Duration::from_secs(10);
/// The longest that it can become.
const EJECTED_FOR_MAX: Duration = Duration::from_secs(300);
/// After so long in which a worker was not slow, what was before is forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(120);
/// Two tasks of one query say the same of their worker.
const ONCE_WITHIN: Duration = Duration::from_secs(1);

/// What is known of slow workers.
#[derive(Clone, Debug)]
pub struct Outliers {
    second_runs: f64,
    overtaken: BTreeMap<WorkerId, Overtaken>,
    ejected: BTreeMap<WorkerId, Ejected>,
}

/// A worker that has not kept up since it was overtaken first.
#[derive(Clone, Copy, Debug)]
struct Overtaken {
    last: Instant,
    times: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ejected {
    last: Instant,
    times: u32,
}

impl Ejected {
    fn until(&self) -> Instant {
        self.last + EJECTED_FOR.saturating_mul(self.times).min(EJECTED_FOR_MAX)
    }
}

impl Default for Outliers {
    fn default() -> Self {
        Self { second_runs: SECOND_RUNS_MAX, overtaken: BTreeMap::new(), ejected: BTreeMap::new() }
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

    /// A second run that began later ended before the worker's own, which `began` then. What began before the worker
    /// was overtaken the last time, in the same query or beside it, says nothing new.
    pub fn overtook(&mut self, worker: &WorkerId, began: Instant, now: Instant) {
        let known = self.overtaken.get(worker).copied();
        let times = match known {
            Some(known) if began < known.last => return,
            Some(known) if now.saturating_duration_since(known.last) < FORGIVEN_AFTER => known.times + 1,
            _ => 1,
        };
        if times < OVERTAKEN_MAX {
            self.overtaken.insert(worker.clone(), Overtaken { last: now, times });
        } else {
            self.overtaken.remove(worker);
            self.eject(worker, now);
        }
    }

    /// The worker was as quick as the others with what `began` then.
    pub fn kept_up(&mut self, worker: &WorkerId, began: Instant) {
        if self.overtaken.get(worker).is_some_and(|known| known.last <= began) {
            self.overtaken.remove(worker);
        }
    }

    /// The worker gets no work for a while.
    pub fn eject(&mut self, worker: &WorkerId, now: Instant) {
        let known = self.ejected.get(worker).copied();
        let times = match known {
            Some(known) if now.saturating_duration_since(known.last) < ONCE_WITHIN => known.times,
            Some(known) if now.saturating_duration_since(known.until()) < FORGIVEN_AFTER => known.times + 1,
            _ => 1,
        };
        self.ejected.insert(worker.clone(), Ejected { last: now, times });
    }

    /// For how long yet a slow worker gets no work, if there are enough others.
    pub fn remaining(&self, worker: &WorkerId, now: Instant) -> Option<Duration> {
        let left = self.ejected.get(worker)?.until().saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Those of `workers` that get no work now: at most half of them, those
    /// that were slow last.
    pub fn ejected<'a>(
        &self,
        workers: impl Iterator<Item = &'a WorkerId>,
        now: Instant,
    ) -> BTreeSet<WorkerId> {
        let mut count = 0;
        let mut slow: Vec<_> = workers
            .inspect(|_| count += 1)
            .filter(|worker| self.remaining(worker, now).is_some())
            .filter_map(|worker| Some((self.ejected.get(worker)?.last, worker.clone())))
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
    fn who_is_overtaken_time_after_time_gets_no_work() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let workers = names(&["w1", "w2"]);
        let slow = &workers[1];
        let mut outliers = Outliers::default();
        let is_ejected = |outliers: &Outliers, now| !outliers.ejected(workers.iter(), now).is_empty();
        outliers.overtook(slow, at(0), at(2));
        // Another shard of the same query, and queries beside it.
        for began in [0, 0, 1] {
            outliers.overtook(slow, at(began), at(3));
        }
        assert!(!is_ejected(&outliers, at(3)));
        // It kept up, before that and after.
        outliers.kept_up(slow, at(1));
        outliers.kept_up(slow, at(4));
        outliers.overtook(slow, at(5), at(6));
        assert!(!is_ejected(&outliers, at(6)));
        outliers.kept_up(slow, at(5));
        outliers.kept_up(&workers[0], at(7));
        outliers.overtook(slow, at(7), at(8));
        assert!(is_ejected(&outliers, at(8)));
        // It begins anew afterwards, and what is long ago does not count.
        let mut now = at(8) + EJECTED_FOR;
        for _ in 0..3 {
            now += FORGIVEN_AFTER;
            outliers.overtook(slow, now, now);
            assert!(!is_ejected(&outliers, now));
        }
    }

    #[test]
    fn a_slow_worker_gets_no_work_for_longer_each_time() {
        let start = Instant::now();
        let workers = names(&["w1", "w2", "w3", "w4"]);
        let slow = &workers[1];
        let mut outliers = Outliers::default();
        let is_ejected =
            |outliers: &Outliers, now: Instant| outliers.ejected(workers.iter(), now).contains(slow);
        outliers.eject(slow, start);
        // Another task of the same query.
        outliers.eject(slow, start + Duration::from_millis(5));
        assert!(is_ejected(&outliers, start + EJECTED_FOR));
        assert_eq!(
            outliers.remaining(slow, start + ONCE_WITHIN),
            Some(EJECTED_FOR - ONCE_WITHIN + Duration::from_millis(5))
        );
        assert_eq!(outliers.remaining(&workers[0], start), None);
        let back = start + EJECTED_FOR + ONCE_WITHIN;
        assert!(!is_ejected(&outliers, back));
        outliers.eject(slow, back);
        assert!(is_ejected(&outliers, back + EJECTED_FOR + ONCE_WITHIN));
        assert!(!is_ejected(&outliers, back + EJECTED_FOR * 2));
        let later = back + EJECTED_FOR * 2 + FORGIVEN_AFTER;
        outliers.eject(slow, later);
        assert!(!is_ejected(&outliers, later + EJECTED_FOR));
    }

    #[test]
    fn never_more_than_half_of_them() {
        let now = Instant::now();
        let mut outliers = Outliers::default();
        let all = names(&["w1", "w2", "w3"]);
        for (turn, worker) in all.iter().enumerate() {
            outliers.eject(worker, now + Duration::from_millis(turn as u64));
        }
        let later = now + Duration::from_secs(1);
        assert_eq!(outliers.ejected(all.iter(), later), BTreeSet::from([WorkerId::from("w3")]));
        assert!(outliers.ejected(all[..1].iter(), later).is_empty());
    }
}
