//! What workers suffer: one at a time, so that each shard keeps a replica.

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
use crate::cluster::{Cluster, Direction};
use crate::slow::slow_while;

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
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
    pub(super) fn name(self) -> &'static str {
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

    /// All of them, the worst more than once.
    fn all() -> Vec<Self> {
        use Fault::{Corrupt, Cut, CutIn, CutOut, DiskFull, Freeze, Kill, Slow};
        vec![Kill, Kill, Freeze, Freeze, Cut, Cut, CutIn, CutOut, Slow, Corrupt, DiskFull]
    }
}

/// Strikes workers until then, and heals each; how often.
///
/// # Errors
/// When a worker does not come back.
pub(super) fn strike_until(
    until: Instant,
    seed: u64,
    workers: usize,
    has_disks: bool,
    cluster: &Cluster,
    log: &Log,
) -> Result<u64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Fault::all();
    faults.retain(|fault| has_disks || *fault != Fault::DiskFull);
    let mut struck = 0;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(200..2500)));
        let worker = format!("worker-{}", random.random_range(1..=workers));
        let fault = *faults.choose(&mut random).unwrap_or(&Fault::Kill);
        let lasting = Duration::from_millis(random.random_range(100..5000));
        struck += 1;
        log.fault(&worker, fault, lasting);
        strike(cluster, &worker, fault, lasting, &mut random, log)?;
        // The next one must not be the last that holds what this one missed.
        cluster.wait_until_joined(workers)?;
        log.healed(&worker);
    }
    Ok(struck)
}

fn strike(
    cluster: &Cluster,
    worker: &str,
    fault: Fault,
    lasting: Duration,
    random: &mut StdRng,
    log: &Log,
) -> Result<()> {
    let cut = |direction| -> Result<()> {
        cluster.cut(worker, direction)?;
        std::thread::sleep(lasting);
        cluster.heal(worker)
    };
    match fault {
        Fault::Kill => {
            cluster.kill(worker)?;
            std::thread::sleep(lasting);
            cluster.restart(worker)?;
        }
        Fault::Freeze => {
            cluster.pause(worker)?;
            std::thread::sleep(lasting);
            cluster.resume(worker)?;
        }
        Fault::Slow => {
            let end = Instant::now() + lasting;
            slow_while(cluster, worker, || Instant::now() < end)?;
        }
        Fault::Corrupt => {
            for _ in 0..3 {
                // A table may be dropped meanwhile.
                let flipped = flip(&cluster.data_dir(worker)?.join("segments"), random);
                log.note(&format!("{worker}: a byte of {flipped:?}"));
            }
            std::thread::sleep(lasting);
        }
        Fault::Cut => cut(Direction::Both)?,
        Fault::CutIn => cut(Direction::Inbound)?,
        Fault::CutOut => cut(Direction::Outbound)?,
        Fault::DiskFull => {
            let taken = cluster.disk(worker)?.fill()?;
            log.note(&format!("{worker}: the last {taken} bytes of its disk are taken"));
            std::thread::sleep(lasting);
            cluster.disk(worker)?.empty()?;
        }
    }
    Ok(())
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
