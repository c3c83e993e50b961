//! How a load is cut into tasks, each done by one worker. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use shoal_proto::WriteId;

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

/// The shard that a task of so many fills first where rows belong to none: one task
/// knows nothing of the others. They begin as far apart as can be, and each load
/// somewhere else.
pub(super) fn first_shard(write_id: &WriteId, task: usize, tasks: usize, shards: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    write_id.hash(&mut hasher);
    let shards = u64::from(shards.max(1));
    let behind = (task as u64).saturating_mul(shards) / (tasks as u64).max(1);
    ((hasher.finish() % shards + behind) % shards) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    #[test]
    fn tasks_begin_at_shards_that_are_far_apart() {
        let firsts = |write: &str, tasks: usize, shards: u32| -> Vec<u32> {
            (0..tasks).map(|task| first_shard(&WriteId::from(write), task, tasks, shards)).collect()
        };
        for (tasks, shards) in [(1, 1), (4, 4), (4, 12), (7, 100), (16, 4), (3, 1)] {
            let firsts = firsts("w", tasks, shards);
            assert!(firsts.iter().all(|first| *first < shards), "{firsts:?}");
            let distinct: BTreeSet<u32> = firsts.iter().copied().collect();
            assert_eq!(distinct.len(), tasks.min(shards as usize), "{firsts:?}");
            for pair in firsts.windows(2) {
                let apart = (pair[1] + shards - pair[0]) % shards;
                assert!(tasks > shards as usize || apart >= shards / tasks as u32, "{firsts:?}");
            }
        }
        assert_eq!(firsts("w", 4, 12), firsts("w", 4, 12), "a task that is done anew");
        let loads: BTreeSet<u32> = (0..64).map(|load| firsts(&format!("w{load}"), 1, 8)[0]).collect();
        assert!(loads.len() > 1, "loads of one task begin at other shards");
    }
}
