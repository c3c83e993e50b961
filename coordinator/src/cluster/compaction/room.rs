//! Whether workers have room for a compaction: old and new segments are on their
//! disks together until no query reads the old ones.

use std::collections::BTreeMap;

use shoal_data::Table;
use shoal_proto::WorkerId;

use super::size;
use crate::Error;
use crate::cluster::disk::Disk;
use crate::cluster::membership::LiveWorkers;

/// A worker keeps free so many times what is compacted: it may become larger than
/// it was, and there are other writes.
const FREE_FACTOR: u64 = 4;

/// Bytes on each worker of segments that no table has any more, and that wait to
/// be removed.
pub type Leaving = BTreeMap<WorkerId, u64>;

/// Looks whether most workers of a shard are live, and those have room for what is
/// made of `bytes` of it. What waits to be removed counts once more: where queries
/// keep what was compacted before, as much stays free as that takes.
///
/// # Errors
/// `Unavailable` where too few are live; `Exhausted`, with the worker and the bytes.
pub fn check_room(
    table: &Table,
    shard: u32,
    bytes: u64,
    live: &LiveWorkers,
    leaving: &Leaving,
) -> Result<(), Error> {
    let placed = table.placement.get(shard as usize).map(Vec::as_slice).unwrap_or_default();
    let there: Vec<_> = placed.iter().filter_map(|id| live.get(id)).collect();
    if 2 * there.len() <= placed.len() {
        return Err(Error::Unavailable(format!(
            "{} of the {} workers of shard {shard} of {} are live: too few to compact it",
            there.len(),
            placed.len(),
            table.full_name()
        )));
    }
    for worker in there {
        let disk = Disk { free_bytes: worker.disk_free_bytes, total_bytes: worker.disk_total_bytes };
        let free_bytes = disk.free_bytes.saturating_sub(disk.kept_bytes());
        let leaving_bytes = leaving.get(&worker.id).copied().unwrap_or_default();
        let needed_bytes = bytes.saturating_mul(FREE_FACTOR).saturating_add(leaving_bytes);
        if free_bytes < needed_bytes {
            return Err(Error::Exhausted(format!(
                "no room on worker {} to compact {} of shard {shard} of {}: {needed_bytes} bytes must be free there \
                 ({leaving_bytes} of them for segments that wait to be removed), and {free_bytes} are",
                worker.id,
                size(bytes),
                table.full_name()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shoal_proto::{ErrorCode, TableId};

    use super::*;
    use crate::catalog::state::tests::table;
    use crate::cluster::membership::LiveWorker;

    const MIB: u64 = 1 << 20;

    fn live(disks: &[(&str, u64, u64)]) -> LiveWorkers {
        let worker = |(id, free, total): &(&str, u64, u64)| LiveWorker {
            disk_free_bytes: *free,
            disk_total_bytes: *total,
            ..LiveWorker::named(*id)
        };
        LiveWorkers { workers: disks.iter().map(worker).collect(), ..LiveWorkers::default() }
    }

    #[test]
    fn each_live_worker_needs_room_beside_all_that_is_there() {
        let mut table = table(TableId(1), "t");
        table.placement[0] = vec!["w1".into(), "w2".into(), "w3".into()];
        let check =
            |disks: &[(&str, u64, u64)], leaving: &Leaving| check_room(&table, 0, MIB, &live(disks), leaving);
        let none = Leaving::new();
        let enough = FREE_FACTOR * MIB;
        assert!(check(&[("w1", enough, 0), ("w2", enough, 0)], &none).is_ok());
        let refused = check(&[("w1", enough, 0), ("w2", enough - 1, 0)], &none).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Exhausted);
        let message = refused.to_string();
        for part in ["worker w2", "shard 0 of public.t", "4194304 bytes must be free there", "4194303 are"] {
            assert!(message.contains(part), "{message}");
        }
        // What is always kept free, as for everything else that comes.
        let large = 1 << 40;
        let kept = Disk { free_bytes: 0, total_bytes: large }.kept_bytes();
        assert!(check(&[("w1", enough + kept, large), ("w2", enough, 0)], &none).is_ok());
        assert!(check(&[("w1", enough + kept - 1, large), ("w2", enough, 0)], &none).is_err());
    }

    #[test]
    fn what_waits_to_be_removed_counts_once_more() {
        let table = table(TableId(1), "t");
        let free = FREE_FACTOR * MIB + 10;
        let check = |leaving_bytes: u64| {
            let leaving = Leaving::from([("w1".into(), leaving_bytes), ("w2".into(), 1 << 40)]);
            check_room(&table, 0, MIB, &live(&[("w1", free, 0)]), &leaving)
        };
        assert!(check(10).is_ok());
        let message = check(11).unwrap_err().to_string();
        assert!(message.contains("(11 of them for segments that wait"), "{message}");
    }

    #[test]
    fn without_most_of_its_workers_a_shard_waits() {
        let mut table = table(TableId(1), "t");
        table.placement[0] = vec!["w1".into(), "w2".into()];
        let refused = check_room(&table, 0, 1, &live(&[("w1", 1 << 40, 0)]), &Leaving::new()).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unavailable);
        assert!(refused.to_string().contains("1 of the 2 workers of shard 0"), "{refused}");
    }
}
