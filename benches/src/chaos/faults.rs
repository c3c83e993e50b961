//! What nodes suffer. Workers do one at a time, so that each shard keeps a
//! replica.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::log::Log;
use super::run::Run;
use crate::cluster::{Cluster, Direction};
use crate::slow::slow_while;

/// How many bytes of a disk one fault changes.
const FLIPS: u64 = 3;

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL; started again afterwards.
    Kill,
    /// SIGSTOP, for longer than it takes to be noticed, or shorter.
    Freeze,
    /// Stopped nine tenths of the time.
    Slow,
    /// Bytes of its segments are changed on its disk.
    Corrupt,
    /// Nothing reaches it, and nothing from it reaches others.
    Cut,
    /// Nothing reaches it.
    CutIn,
    /// Nothing from it reaches others.
    CutOut,
    /// Its disk is full.
    DiskFull,
}

impl Fault {
    /// As the log and the chart have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Slow => "slow",
            Self::Corrupt => "corrupt",
            Self::Cut => "cut",
            Self::CutIn => "cut in",
            Self::CutOut => "cut out",
            Self::DiskFull => "disk full",
        }
    }

    /// Whether coordinators suffer it too.
    pub(super) fn befalls_coordinators(self) -> bool {
        match self {
            Self::Kill | Self::Freeze | Self::Cut | Self::CutIn | Self::CutOut => true,
            Self::Slow | Self::Corrupt | Self::DiskFull => false,
        }
    }

    /// All of them, the worst more than once.
    pub(super) fn all() -> Vec<Self> {
        use Fault::{Corrupt, Cut, CutIn, CutOut, DiskFull, Freeze, Kill, Slow};
        vec![Kill, Kill, Freeze, Freeze, Cut, Cut, CutIn, CutOut, Slow, Corrupt, DiskFull]
    }
}

/// What nodes suffered in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Struck {
    /// A fault that changed nothing is none.
    pub(super) faults: u64,
    /// Bytes on disks that were to be changed.
    pub(super) flips_tried: u64,
    /// Those that were.
    pub(super) flips_done: u64,
}

impl Struck {
    /// Counts a fault, and how many bytes it changed if it is one that does.
    pub(super) fn add(&mut self, flips: Option<u64>) {
        self.faults += u64::from(flips != Some(0));
        if let Some(flips) = flips {
            self.flips_tried += FLIPS;
            self.flips_done += flips;
        }
    }

    /// Counts what others were struck with.
    pub(super) fn add_all(&mut self, others: Self) {
        self.faults += others.faults;
        self.flips_tried += others.flips_tried;
        self.flips_done += others.flips_done;
    }

    /// What a run should say of a fault that never came about.
    pub(super) fn remark(&self) -> Option<String> {
        (self.flips_tried > 0 && self.flips_done == 0).then(|| {
            format!("nothing on a disk was changed: {} bytes were to be, and not one was", self.flips_tried)
        })
    }
}

/// Strikes one worker at a time while the run goes on, and heals each.
///
/// # Errors
/// When a worker does not come back.
pub(super) fn strike_workers(run: &Run, seed: u64, faults: &[Fault]) -> Result<Struck> {
    let (cluster, log) = (&*run.cluster, &*run.log);
    let mut random = StdRng::seed_from_u64(seed);
    let mut struck = Struck::default();
    while run.goes_on() {
        std::thread::sleep(Duration::from_millis(random.random_range(200..2500)));
        let _turn = run.workers.turn();
        let workers = run.workers.names();
        let worker = &workers[random.random_range(0..workers.len())];
        let Some(&fault) = faults.choose(&mut random) else { continue };
        let lasting = Duration::from_millis(random.random_range(100..5000));
        log.fault(worker, fault, lasting);
        struck.add(strike(cluster, worker, fault, lasting, &mut random, log)?);
        // The next one must not be the last that holds what this one missed.
        cluster.wait_until_joined(workers.len())?;
        log.healed(worker);
    }
    Ok(struck)
}

/// Strikes and heals a node; how many bytes of its disk that changed, for a
/// fault that should change some.
///
/// # Errors
/// When it does not come back.
pub(super) fn strike(
    cluster: &Cluster,
    node: &str,
    fault: Fault,
    lasting: Duration,
    random: &mut StdRng,
    log: &Log,
) -> Result<Option<u64>> {
    let mut flips = None;
    let cut = |direction| -> Result<()> {
        cluster.cut(node, direction)?;
        std::thread::sleep(lasting);
        cluster.heal(node)
    };
    match fault {
        Fault::Kill => {
            cluster.kill(node)?;
            std::thread::sleep(lasting);
            cluster.restart(node)?;
        }
        Fault::Freeze => {
            cluster.pause(node)?;
            std::thread::sleep(lasting);
            cluster.resume(node)?;
        }
        Fault::Slow => {
            let end = Instant::now() + lasting;
            slow_while(cluster, node, || Instant::now() < end)?;
        }
        Fault::Corrupt => {
            flips = Some(corrupt(&cluster.data_dir(node)?.join("segments"), node, random, log));
            std::thread::sleep(lasting);
        }
        Fault::Cut => cut(Direction::Both)?,
        Fault::CutIn => cut(Direction::Inbound)?,
        Fault::CutOut => cut(Direction::Outbound)?,
        Fault::DiskFull => {
            let taken = cluster.disk(node)?.fill()?;
            log.note(&format!("{node}: the last {taken} bytes of its disk are taken"));
            std::thread::sleep(lasting);
            cluster.disk(node)?.empty()?;
        }
    }
    Ok(flips)
}

/// Changes bytes of a worker's segments; how many.
fn corrupt(segments: &Path, worker: &str, random: &mut StdRng, log: &Log) -> u64 {
    let mut flips = 0;
    for _ in 0..FLIPS {
        match flip(segments, random) {
            Ok(path) => {
                flips += 1;
                log.note(&format!("{worker}: a byte of {}", path.display()));
            }
            // A table may be dropped meanwhile.
            Err(error) => log.note(&format!("{worker}: nothing changed: {error}")),
        }
    }
    flips
}

/// Changes one byte of one segment below `segments`.
fn flip(segments: &Path, random: &mut StdRng) -> io::Result<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![segments.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                files.push(path);
            }
        }
    }
    files.sort();
    let path = files.choose(random).ok_or(io::ErrorKind::NotFound)?.clone();
    let file = File::options().read(true).write(true).open(&path)?;
    let at = random.random_range(0..file.metadata()?.len().max(1));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x55], at)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_changes_one_byte_of_one_segment() {
        let dir = tempfile::tempdir().unwrap();
        let shard = dir.path().join("7").join("0");
        std::fs::create_dir_all(&shard).unwrap();
        let (segment, sums) = (shard.join("a.parquet"), shard.join("a.sums"));
        for path in [&segment, &sums] {
            std::fs::write(path, [7_u8; 100]).unwrap();
        }
        let mut random = StdRng::seed_from_u64(1);
        assert_eq!(flip(dir.path(), &mut random).unwrap(), segment);
        let bytes = std::fs::read(&segment).unwrap();
        assert_eq!(bytes.len(), 100);
        assert_eq!(bytes.iter().filter(|byte| **byte != 7).count(), 1);
        assert_eq!(std::fs::read(&sums).unwrap(), vec![7_u8; 100]);
    }

    #[test]
    fn only_bytes_that_changed_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(None).unwrap();
        let mut random = StdRng::seed_from_u64(1);
        assert_eq!(corrupt(&dir.path().join("gone"), "worker-1", &mut random, &log), 0);
        assert_eq!(corrupt(dir.path(), "worker-1", &mut random, &log), 0);
        std::fs::write(dir.path().join("a.parquet"), [7_u8; 100]).unwrap();
        assert_eq!(corrupt(dir.path(), "worker-1", &mut random, &log), FLIPS);
    }

    #[test]
    fn a_fault_that_changed_nothing_is_none_and_is_told() {
        let mut struck = Struck::default();
        assert_eq!(struck.remark(), None);
        struck.add(Some(0));
        assert_eq!(struck.faults, 0);
        let remark = struck.remark().unwrap();
        assert!(remark.contains("3 bytes were to be, and not one was"), "{remark}");
        // Another fault says nothing about disks.
        struck.add(None);
        assert_eq!(struck.faults, 1);
        assert_eq!(struck.remark(), Some(remark));
        struck.add(Some(2));
        assert_eq!(struck, Struck { faults: 2, flips_tried: 2 * FLIPS, flips_done: 2 });
        assert_eq!(struck.remark(), None);
    }
}
