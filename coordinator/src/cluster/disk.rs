//! How large the disks of workers are, and on which of them nothing more should
//! go.
//!
//! Pure. Workers on one file system say the same of it, give or take what was
//! written between two beats: none of them is fuller than another then.

use std::collections::BTreeMap;

use shoal_proto::WorkerId;

use super::placement::Candidate;

/// What stays free on a disk, whatever goes there; on a small one this part.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_PART: u64 = 50;
/// A disk of which less is free, of a thousand, is tight where another one has
/// more by so much.
const TIGHT_PERMILLE: u64 = 100;
const TIGHT_GAP_PERMILLE: u64 = 20;

/// The disk on which a worker keeps its segments; of no bytes where that is not
/// known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disk {
    /// Free for the worker.
    pub free_bytes: u64,
    /// In all.
    pub total_bytes: u64,
}

impl Disk {
    /// Bytes that may still go there; no end to them where nothing is known.
    pub fn room_bytes(self) -> u64 {
        match self.total_bytes {
            0 => u64::MAX,
            total => self.free_bytes.saturating_sub(KEPT_BYTES.min(total / KEPT_PART)),
        }
    }

    /// The same with what is free in whole hundredths of its size: another one only
    /// where that makes a difference, and not with each beat.
    pub fn rounded(self) -> Self {
        let hundredth = (self.total_bytes / 100).max(1);
        Self { free_bytes: self.free_bytes / hundredth * hundredth, ..self }
    }

    fn free_permille(self) -> u64 {
        let free = u128::from(self.free_bytes) * 1000;
        let permille = free.checked_div(u128::from(self.total_bytes)).unwrap_or(1000);
        u64::try_from(permille).unwrap_or(1000)
    }
}

/// How much there is on a worker's disk already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fill {
    /// It takes whatever comes.
    Roomy,
    /// Others come first.
    Tight,
    /// It can take nothing.
    Full,
}

/// How full the disk of each of these workers is. Where all are full nobody is:
/// it shows when something is written there.
pub fn fills(workers: &[Candidate]) -> Vec<Fill> {
    let roomiest = workers.iter().map(|worker| worker.disk.free_permille()).max().unwrap_or_default();
    let fill = |disk: Disk| {
        let free = disk.free_permille();
        match free < TIGHT_PERMILLE && free + TIGHT_GAP_PERMILLE <= roomiest {
            _ if disk.room_bytes() == 0 => Fill::Full,
            true => Fill::Tight,
            false => Fill::Roomy,
        }
    };
    let fills: Vec<Fill> = workers.iter().map(|worker| fill(worker.disk)).collect();
    let are_all_full = fills.iter().all(|fill| *fill == Fill::Full);
    if are_all_full { vec![Fill::Roomy; fills.len()] } else { fills }
}

/// How much each worker should hold, against the others: by the sizes of their
/// disks. All the same where these are, or where one is not known.
pub fn weights(workers: &[Candidate]) -> BTreeMap<&WorkerId, u64> {
    let sizes = || workers.iter().map(|worker| worker.disk.total_bytes);
    let are_known = sizes().all(|bytes| bytes > 0);
    let are_alike = sizes().min() == sizes().max();
    let weight = |disk: Disk| match are_known && !are_alike {
        // In MiB, so that products with numbers of bytes fit.
        true => (disk.total_bytes >> 20).max(1),
        false => 1,
    };
    workers.iter().map(|worker| (&worker.id, weight(worker.disk))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Workers whose disks have so many GiB free of so many.
    fn workers(disks: &[(u64, u64)]) -> Vec<Candidate> {
        let worker = |(number, (free, total)): (usize, &(u64, u64))| Candidate {
            id: WorkerId::new(format!("w{number}")),
            zone: String::new(),
            disk: Disk { free_bytes: free * GIB, total_bytes: total * GIB },
        };
        disks.iter().enumerate().map(worker).collect()
    }

    #[test]
    fn a_disk_is_tight_where_others_have_room_and_full_where_nothing_fits() {
        use Fill::{Full, Roomy, Tight};
        for (disks, expected) in [
            (&[(50, 100), (50, 100)][..], &[Roomy, Roomy][..]),
            (&[(9, 100), (50, 100), (10, 100)], &[Tight, Roomy, Roomy]),
            // All on one file system, or all as full.
            (&[(9, 100), (9, 100)], &[Roomy, Roomy]),
            (&[(8, 100), (9, 100)], &[Roomy, Roomy]),
            (&[(3, 100), (9, 100)], &[Tight, Roomy]),
            (&[(0, 100), (9, 100), (50, 100)], &[Full, Tight, Roomy]),
            (&[(0, 100), (0, 100)], &[Roomy, Roomy]),
            // Nothing is known of the first.
            (&[(0, 0), (50, 100), (5, 100)], &[Roomy, Roomy, Tight]),
            (&[], &[]),
        ] {
            assert_eq!(fills(&workers(disks)), expected, "{disks:?}");
        }
    }

    #[test]
    fn something_stays_free_on_every_disk() {
        let room = |free_bytes: u64, total_bytes: u64| Disk { free_bytes, total_bytes }.room_bytes();
        assert_eq!(room(0, 0), u64::MAX);
        assert_eq!(room(10 * GIB, 100 * GIB), 10 * GIB - KEPT_BYTES);
        assert_eq!(room(KEPT_BYTES, 100 * GIB), 0);
        assert_eq!(room(40 << 20, 100 << 20), 38 << 20);
        assert_eq!(room(1 << 20, 100 << 20), 0);
    }

    #[test]
    fn a_rounded_disk_is_another_one_where_a_hundredth_of_it_is_free_or_taken() {
        let rounded =
            |free_bytes: u64, total_bytes: u64| Disk { free_bytes, total_bytes }.rounded().free_bytes;
        assert_eq!(rounded(10 * GIB + 7, 100 * GIB), 10 * GIB);
        assert_eq!(rounded(11 * GIB - 1, 100 * GIB), 10 * GIB);
        assert_eq!(rounded(11 * GIB, 100 * GIB), 11 * GIB);
        assert_eq!(rounded(7, 0), 7);
    }

    #[test]
    fn disks_weigh_only_where_they_differ() {
        let check = |disks: &[(u64, u64)], expected: &[u64]| {
            let workers = workers(disks);
            let found: Vec<u64> = weights(&workers).into_values().collect();
            assert_eq!(found, expected, "{disks:?}");
        };
        check(&[(10, 100), (90, 100)], &[1, 1]);
        check(&[(10, 100), (90, 400)], &[100 << 10, 400 << 10]);
        check(&[(10, 100), (0, 0)], &[1, 1]);
        check(&[], &[]);
    }
}
