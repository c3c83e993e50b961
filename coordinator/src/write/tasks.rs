//! How a load is cut into tasks, each done by one worker. Pure.

use std::ops::Range;

/// A task has at most about so many bytes, where there are several row groups:
/// what is done anew when its worker is lost.
const TASK_BYTES_MAX: u64 = 1 << 30;

/// Cuts row groups of these sizes, in their order, into tasks for so many workers,
/// of about the same size. Each has at least about `task_bytes`, so that small
/// loads do not become many small segments; none where there are not enough
/// bytes for two such tasks: then it is not worth it.
pub(super) fn cut(row_groups: &[u64], workers: usize, task_bytes: u64) -> Vec<Range<usize>> {
    let total: u64 = row_groups.iter().fold(0_u64, |total, bytes| total.saturating_add(*bytes));
    let worthwhile = total / task_bytes.max(1);
    let workers = workers as u64;
    if worthwhile < 2 || workers == 0 {
        return Vec::new();
    }
    // As many for each worker: all end at about the same time.
    let rounds = total.div_ceil(TASK_BYTES_MAX.saturating_mul(workers)).max(1);
    let count = rounds.saturating_mul(workers).min(worthwhile);
    let mut tasks: Vec<Range<usize>> = Vec::new();
    let (mut before, mut last) = (0_u64, None);
    for (index, bytes) in row_groups.iter().enumerate() {
        // The task in whose part of all bytes its middle lies.
        let middle = u128::from(before) + u128::from(*bytes) / 2;
        let task = middle * u128::from(count) / u128::from(total);
        if last == Some(task)
            && let Some(range) = tasks.last_mut()
        {
            range.end = index + 1;
        } else {
            tasks.push(index..index + 1);
        }
        last = Some(task);
        before = before.saturating_add(*bytes);
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sizes(row_groups: &[u64], tasks: &[Range<usize>]) -> Vec<u64> {
        tasks.iter().map(|task| row_groups[task.clone()].iter().sum()).collect()
    }

    #[test]
    fn every_row_group_is_in_one_task_and_in_order() {
        for (count, workers, task_bytes) in [(1, 4, 1), (7, 4, 1), (100, 3, 30 * MIB), (1_000, 16, 64 * MIB)]
        {
            let row_groups: Vec<u64> = (0..count).map(|index| 20 * MIB + index * 7_919).collect();
            let tasks = cut(&row_groups, workers, task_bytes);
            let all: Vec<usize> = tasks.iter().flat_map(Clone::clone).collect();
            assert_eq!(all, (0..row_groups.len()).collect::<Vec<_>>());
            assert!(tasks.iter().all(|task| !task.is_empty()), "{tasks:?}");
        }
    }

    #[test]
    fn each_worker_gets_about_as_much() {
        let row_groups = vec![32 * MIB; 96];
        let tasks = cut(&row_groups, 4, 64 * MIB);
        assert_eq!(sizes(&row_groups, &tasks), [768 * MIB; 4]);
        // More than a task may have: two rounds.
        let row_groups = vec![32 * MIB; 200];
        let tasks = cut(&row_groups, 4, 64 * MIB);
        assert_eq!(sizes(&row_groups, &tasks), [800 * MIB; 8]);
    }

    #[test]
    fn little_is_not_spread() {
        assert!(cut(&[20 * MIB; 4], 4, 64 * MIB).is_empty());
        assert_eq!(cut(&[20 * MIB; 8], 4, 64 * MIB).len(), 2);
        assert!(cut(&[20 * MIB; 8], 0, 1).is_empty());
        assert!(cut(&[], 4, 1).is_empty());
        assert!(cut(&[0, 0], 4, 1).is_empty());
    }

    #[test]
    fn large_row_groups_are_tasks_of_their_own() {
        let row_groups = [4_000 * MIB, 10 * MIB, 4_000 * MIB];
        let tasks = cut(&row_groups, 2, 64 * MIB);
        assert_eq!(tasks.first(), Some(&(0..1)));
        assert_eq!(tasks.last().map(|task| task.end), Some(3));
        assert!(tasks.len() <= row_groups.len());
    }
}
