//! Which worker does which task of a load, and what becomes of those that fail.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use shoal_proto::WorkerId;

/// A task that failed on so many workers is done by the coordinator.
const TASK_FAILURES_MAX: usize = 3;
/// A worker on which so many tasks failed, and none was done between them, gets no more
/// of this load.
const WORKER_FAILURES_MAX: usize = 2;

/// Where a task is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On this worker.
    At(WorkerId),
    /// On the coordinator: what it says of the task is the last word.
    Here,
}

/// The tasks of one load, by number. Each worker does one at a time, and so does
/// the coordinator.
#[derive(Debug)]
pub(super) struct Deals {
    /// Those that nobody does.
    waiting: BTreeSet<usize>,
    /// Those of them that only the coordinator does.
    only_here: BTreeSet<usize>,
    busy: BTreeSet<WorkerId>,
    is_busy_here: bool,
    /// On which workers each task failed: none of them gets it again.
    failed: BTreeMap<usize, BTreeSet<WorkerId>>,
    /// How many tasks failed on each worker since it has done one.
    failures: BTreeMap<WorkerId, usize>,
    /// Tasks that are not done.
    left: usize,
}

impl Deals {
    pub(super) fn new(tasks: usize) -> Self {
        Self {
            waiting: (0..tasks).collect(),
            only_here: BTreeSet::new(),
            busy: BTreeSet::new(),
            is_busy_here: false,
            failed: BTreeMap::new(),
            failures: BTreeMap::new(),
            left: tasks,
        }
    }

    /// Whether all tasks are done.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// A task that is to begin now, given the workers that can be given work;
    /// none where all that can be done is under way.
    pub(super) fn next(&mut self, able: &[WorkerId]) -> Option<(usize, Place)> {
        for task in self.waiting.iter().copied().collect::<Vec<_>>() {
            let mut may: Vec<&WorkerId> = Vec::new();
            if !self.only_here.contains(&task) {
                may = able.iter().filter(|worker| self.may_do(worker, task)).collect();
            }
            let place = match may.iter().find(|worker| !self.busy.contains(**worker)) {
                Some(free) => Place::At((*free).clone()),
                None if may.is_empty() && !self.is_busy_here => Place::Here,
                None => continue,
            };
            self.waiting.remove(&task);
            match &place {
                Place::At(worker) => _ = self.busy.insert(worker.clone()),
                Place::Here => self.is_busy_here = true,
            }
            return Some((task, place));
        }
        None
    }

    /// The task is done there, by a worker that can do it after all.
    pub(super) fn done(&mut self, place: &Place) {
        self.free(place);
        self.left -= 1;
        if let Place::At(worker) = place {
            self.failures.remove(worker);
        }
    }

    /// The task failed on that worker; whether another one may do better.
    pub(super) fn failed(&mut self, task: usize, worker: &WorkerId, is_worth_another: bool) {
        self.free(&Place::At(worker.clone()));
        *self.failures.entry(worker.clone()).or_default() += 1;
        let failed = self.failed.entry(task).or_default();
        failed.insert(worker.clone());
        if !is_worth_another || failed.len() >= TASK_FAILURES_MAX {
            self.only_here.insert(task);
        }
        self.waiting.insert(task);
    }

    fn free(&mut self, place: &Place) {
        match place {
            Place::At(worker) => _ = self.busy.remove(worker),
            Place::Here => self.is_busy_here = false,
        }
    }

    fn may_do(&self, worker: &WorkerId, task: usize) -> bool {
        self.failures.get(worker).is_none_or(|failures| *failures < WORKER_FAILURES_MAX)
            && !self.failed.get(&task).is_some_and(|workers| workers.contains(worker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(names: &[&str]) -> Vec<WorkerId> {
        names.iter().map(|name| WorkerId::from(*name)).collect()
    }

    fn at(worker: &str) -> Place {
        Place::At(worker.into())
    }

    /// All that begins now.
    fn begun(deals: &mut Deals, able: &[WorkerId]) -> Vec<(usize, Place)> {
        std::iter::from_fn(|| deals.next(able)).collect()
    }

    #[test]
    fn each_worker_does_one_task_at_a_time() {
        let able = workers(&["w1", "w2"]);
        let mut deals = Deals::new(3);
        assert_eq!(begun(&mut deals, &able), [(0, at("w1")), (1, at("w2"))]);
        deals.done(&at("w2"));
        assert_eq!(begun(&mut deals, &able), [(2, at("w2"))]);
        deals.done(&at("w1"));
        assert!(!deals.is_over());
        assert!(begun(&mut deals, &able).is_empty());
        deals.done(&at("w2"));
        assert!(deals.is_over());
    }

    #[test]
    fn a_lost_workers_task_goes_to_another_one_and_waits_for_that() {
        let able = workers(&["w1", "w2"]);
        let mut deals = Deals::new(2);
        begun(&mut deals, &able);
        deals.failed(0, &"w1".into(), true);
        assert!(begun(&mut deals, &able).is_empty(), "w2 is busy, and able");
        deals.done(&at("w2"));
        assert_eq!(begun(&mut deals, &able), [(0, at("w2"))]);
    }

    #[test]
    fn what_no_worker_can_cure_is_done_here() {
        let able = workers(&["w1", "w2"]);
        let mut deals = Deals::new(3);
        begun(&mut deals, &able);
        deals.failed(0, &"w1".into(), false);
        assert_eq!(begun(&mut deals, &able), [(0, Place::Here), (2, at("w1"))]);
        deals.failed(1, &"w2".into(), false);
        assert!(begun(&mut deals, &able).is_empty(), "one at a time here, too");
        deals.done(&Place::Here);
        assert_eq!(begun(&mut deals, &able), [(1, Place::Here)]);
    }

    #[test]
    fn without_workers_all_is_done_here() {
        let mut deals = Deals::new(2);
        assert_eq!(begun(&mut deals, &[]), [(0, Place::Here)]);
        deals.done(&Place::Here);
        assert_eq!(begun(&mut deals, &workers(&["w1"])), [(1, at("w1"))]);
    }

    #[test]
    fn a_worker_on_which_tasks_fail_is_left_alone() {
        let able = workers(&["w1", "w2"]);
        let mut deals = Deals::new(9);
        begun(&mut deals, &able);
        deals.failed(0, &"w1".into(), true);
        assert_eq!(begun(&mut deals, &able), [(2, at("w1"))], "not the same one again");
        deals.failed(2, &"w1".into(), true);
        assert!(begun(&mut deals, &able).is_empty());
        deals.done(&at("w2"));
        assert_eq!(begun(&mut deals, &able), [(0, at("w2"))]);
    }

    #[test]
    fn a_task_that_is_done_forgives_a_worker_what_failed_on_it() {
        let able = workers(&["w1", "w2"]);
        let mut deals = Deals::new(9);
        assert_eq!(begun(&mut deals, &able), [(0, at("w1")), (1, at("w2"))]);
        deals.failed(0, &"w1".into(), true);
        assert_eq!(begun(&mut deals, &able), [(2, at("w1"))]);
        deals.done(&at("w1"));
        assert_eq!(begun(&mut deals, &able), [(3, at("w1"))], "and 0 waits for w2");
        deals.failed(3, &"w1".into(), true);
        assert_eq!(begun(&mut deals, &able), [(4, at("w1"))], "one failure since it has done a task");
        deals.failed(4, &"w1".into(), true);
        assert!(begun(&mut deals, &able).is_empty());
    }

    #[test]
    fn every_story_ends_also_where_workers_are_forgiven() {
        let able = workers(&["w1", "w2", "w3", "w4", "w5"]);
        // Never does a worker do its task, or every third time.
        for does in [0, 1] {
            let mut deals = Deals::new(20);
            let mut steps = 0;
            while !deals.is_over() {
                for (task, place) in begun(&mut deals, &able) {
                    steps += 1;
                    match place {
                        Place::At(worker) if steps % 3 >= does => deals.failed(task, &worker, true),
                        place => deals.done(&place),
                    }
                }
            }
            assert!(steps <= 20 * (1 + TASK_FAILURES_MAX), "{steps} steps");
        }
    }
}
