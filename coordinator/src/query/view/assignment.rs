//! Which worker each task of a stage goes to, so that together they read as much as
//! can be from their own disks.

/// Gives each task a worker of its own, so that the sum of `scores[task][worker]` is the
/// largest that there is: the Hungarian method, with potentials, in
/// O(tasks² · workers). There must be as many workers as tasks.
pub(super) fn best(scores: &[Vec<i64>]) -> Vec<usize> {
    let workers = scores.first().map_or(0, Vec::len);
    // Numbered from 1: 0 is "none yet", of tasks and of workers.
    let mut of_task = vec![0_i64; scores.len() + 1];
    let mut of_worker = vec![0_i64; workers + 1];
    let mut task_of = vec![0_usize; workers + 1];
    for task in 1..=scores.len() {
        // The cheapest way to give a worker to one task more: others may have to change.
        task_of[0] = task;
        let mut last = 0;
        let mut least = vec![i64::MAX; workers + 1];
        let mut before = vec![0_usize; workers + 1];
        let mut is_done = vec![false; workers + 1];
        while task_of[last] != 0 {
            is_done[last] = true;
            let from = task_of[last];
            let (mut step, mut next) = (i64::MAX, 0);
            for worker in (1..=workers).filter(|&worker| !is_done[worker]) {
                let cost = -scores[from - 1][worker - 1] - of_task[from] - of_worker[worker];
                if cost < least[worker] {
                    (least[worker], before[worker]) = (cost, last);
                }
                if least[worker] < step {
                    (step, next) = (least[worker], worker);
                }
            }
            for worker in 0..=workers {
                if is_done[worker] {
                    of_task[task_of[worker]] += step;
                    of_worker[worker] -= step;
                } else {
                    least[worker] -= step;
                }
            }
            last = next;
        }
        while last != 0 {
            task_of[last] = task_of[before[last]];
            last = before[last];
        }
    }
    let mut assigned = vec![0; scores.len()];
    for (worker, task) in task_of.iter().enumerate().skip(1) {
        if *task > 0 {
            assigned[task - 1] = worker - 1;
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn sum(scores: &[Vec<i64>], assigned: &[usize]) -> i64 {
        assigned.iter().enumerate().map(|(task, worker)| scores[task][*worker]).sum()
    }

    /// The largest sum, by trying all.
    fn largest(scores: &[Vec<i64>], taken: &mut BTreeSet<usize>) -> i64 {
        let Some((first, rest)) = scores.split_first() else { return 0 };
        let mut most = i64::MIN;
        for (worker, score) in first.iter().enumerate() {
            if taken.insert(worker) {
                most = most.max(score + largest(rest, taken));
                taken.remove(&worker);
            }
        }
        most
    }

    proptest! {
        #[test]
        fn no_other_assignment_is_better(
            scores in (1..5_usize, 0..3_usize).prop_flat_map(|(tasks, more)| {
                prop::collection::vec(prop::collection::vec(0..9_i64, tasks + more), tasks)
            })
        ) {
            let assigned = best(&scores);
            let distinct: BTreeSet<_> = assigned.iter().collect();
            prop_assert_eq!(distinct.len(), scores.len());
            prop_assert_eq!(sum(&scores, &assigned), largest(&scores, &mut BTreeSet::new()));
        }
    }

    #[test]
    fn what_swapping_two_does_not_find_is_found() {
        // Each task has one worker that has all of it, in a ring of sixteen.
        const TASKS: usize = 16;
        let scores: Vec<Vec<i64>> = (0..TASKS)
            .map(|task| {
                (0..TASKS).map(|worker| i64::from((worker + TASKS - 3 * task % TASKS) % TASKS < 3)).collect()
            })
            .collect();
        assert_eq!(sum(&scores, &best(&scores)), TASKS as i64);
    }

    #[test]
    fn no_tasks_need_no_workers() {
        assert!(best(&[]).is_empty());
    }
}
