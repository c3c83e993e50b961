//! Shards that one task of a scan reads, together on the same workers.

use std::collections::BTreeSet;

use shoal_proto::WorkerId;

use super::Candidate;
use crate::cluster::disk::fills;

/// Copies of each shard on distinct workers, where all workers are alike and each can have a task
/// of its own: a scan by as many tasks as there are workers, each of `partitions`, finds the shards of each
/// task on one worker, and every worker has as many copies as the others. None where that is not so.
///
/// The copies of what one task reads are as far round the ring of workers as they can be, half of it
/// first: with half as many tasks, the two whose shards then are one task's are on one worker, too.
pub(super) fn ring(
    shards: usize,
    copies: usize,
    workers: &[Candidate],
    partitions: usize,
) -> Option<Vec<Vec<WorkerId>>> {
    let (zones, fills) = (workers.iter().map(|worker| worker.zone.as_str()), fills(workers));
    let (zones, at_once) = (zones.collect::<BTreeSet<_>>().len(), workers.len() * partitions);
    // On other workers they are in other zones, or there are none.
    let is_spread = zones == 1 || zones == workers.len();
    let are_alike = fills.iter().all(|fill| Some(fill) == fills.first());
    if !is_spread || !are_alike || !shards.is_multiple_of(at_once) {
        return None;
    }
    let steps = steps(workers.len(), copies);
    let of_shard = |shard: usize| {
        let task = shard % at_once / partitions;
        steps.iter().map(|step| workers[(task + step) % workers.len()].id.clone()).collect()
    };
    Some((0..shards).map(of_shard).collect())
}

/// How far round a ring of `count` each of so many copies is: 0, then a half of it, a quarter, three
/// quarters, an eighth and so on, each moved on to one that is free.
fn steps(count: usize, copies: usize) -> Vec<usize> {
    let mut steps = Vec::with_capacity(copies);
    for copy in 0..copies as u32 {
        let wanted = ((u64::from(copy.reverse_bits()) * count as u64) >> u32::BITS) as usize;
        let free = (0..count).map(|further| (wanted + further) % count).find(|step| !steps.contains(step));
        steps.extend(free);
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cluster::disk::Disk;

    fn workers(count: usize) -> Vec<Candidate> {
        let worker = |index| Candidate {
            id: WorkerId::new(format!("w{index:02}")),
            zone: String::new(),
            disk: Disk::default(),
        };
        (0..count).map(worker).collect()
    }

    /// The shards of each task, as scans are dealt.
    fn dealt(shards: usize, tasks: usize, partitions: usize) -> Vec<Vec<usize>> {
        let mut dealt = vec![Vec::new(); tasks];
        (0..shards).for_each(|shard| dealt[shard % (tasks * partitions) / partitions].push(shard));
        dealt
    }

    /// Workers that have all of these shards.
    fn with_all(shards: &[usize], placement: &[Vec<WorkerId>]) -> BTreeSet<WorkerId> {
        let of_shard = |shard: &usize| placement[*shard].iter().cloned().collect::<BTreeSet<_>>();
        let common = shards.iter().map(of_shard).reduce(|one, other| &one & &other);
        common.unwrap_or_default()
    }

    proptest! {
        #[test]
        fn each_task_finds_its_shards_on_as_many_workers_as_there_are_copies(
            count in 1_usize..20,
            partitions in 1_usize..4,
            times in 1_usize..4,
            copies in 1_usize..6,
        ) {
            let (workers, copies) = (workers(count), copies.min(count));
            let shards = count * partitions * times;
            let placement = ring(shards, copies, &workers, partitions).unwrap();
            for task in dealt(shards, count, partitions) {
                prop_assert_eq!(with_all(&task, &placement).len(), copies);
            }
            if count.is_multiple_of(2) && copies > 1 {
                for task in dealt(shards, count / 2, partitions) {
                    prop_assert!(!with_all(&task, &placement).is_empty());
                }
            }
            let mut load: BTreeMap<_, usize> = BTreeMap::new();
            for shard in &placement {
                prop_assert_eq!(shard.iter().collect::<BTreeSet<_>>().len(), copies);
                shard.iter().for_each(|worker| *load.entry(worker).or_default() += 1);
            }
            prop_assert_eq!(load.len(), count);
            prop_assert!(load.values().all(|shards| *shards == copies * partitions * times));
        }
    }

    #[test]
    fn copies_are_half_of_the_ring_away_first() {
        assert_eq!(steps(16, 4), [0, 8, 4, 12]);
        assert_eq!(steps(4, 3), [0, 2, 1]);
        assert_eq!(steps(3, 3), [0, 1, 2]);
        assert_eq!(steps(1, 1), [0]);
    }

    #[test]
    fn workers_that_are_not_alike_or_have_no_task_each_are_no_ring() {
        let four = workers(4);
        assert!(ring(8, 3, &four, 2).is_some());
        assert!(ring(4, 3, &four, 2).is_none());
        assert!(ring(9, 3, &four, 2).is_none());
        let mut zones = four.clone();
        zones[0].zone = "other".to_owned();
        assert!(ring(8, 3, &zones, 2).is_none());
        // Each in a zone of its own they are alike.
        zones.iter_mut().zip("abcd".chars()).for_each(|(worker, zone)| worker.zone = zone.to_string());
        assert_eq!(ring(8, 3, &zones, 2), ring(8, 3, &four, 2));
        assert!(ring(8, 3, &[], 2).is_none());
    }
}
