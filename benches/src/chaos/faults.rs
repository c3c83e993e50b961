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
use crate::cluster::Cluster;

/// How a slowed worker runs: so long, then stopped for so long.
const SLOW_RUN: Duration = Duration::from_millis(10);
const SLOW_STOP: Duration = Duration::from_millis(90);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL; started again afterwards.
    Kill,
    /// SIGSTOP, for longer than it takes to be noticed, or shorter.
    Freeze,
    /// Stopped nine tenths of the time.
    Slow,
    /// Bytes of its segments are changed on its disk.
    Corrupt,
}

const FAULTS: [Fault; 6] =
    [Fault::Kill, Fault::Kill, Fault::Freeze, Fault::Freeze, Fault::Slow, Fault::Corrupt];

/// Strikes workers until then, and heals each; how often.
///
/// # Errors
/// When a worker does not come back.
pub(super) fn strike_until(
    until: Instant,
    seed: u64,
    workers: usize,
    cluster: &Cluster,
    log: &Log,
) -> Result<u64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = 0;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(200..2500)));
        let worker = format!("worker-{}", random.random_range(1..=workers));
        let fault = *FAULTS.choose(&mut random).unwrap_or(&Fault::Kill);
        let lasting = Duration::from_millis(random.random_range(100..5000));
        faults += 1;
        log.fault(&worker, &format!("{fault:?}"), lasting);
        match fault {
            Fault::Kill => {
                cluster.kill(&worker)?;
                std::thread::sleep(lasting);
                cluster.restart(&worker)?;
            }
            Fault::Freeze => {
                cluster.pause(&worker)?;
                std::thread::sleep(lasting);
                cluster.resume(&worker)?;
            }
            Fault::Corrupt => {
                for _ in 0..3 {
                    // A table may be dropped meanwhile.
                    let flipped = flip(&cluster.data_dir(&worker)?.join("segments"), &mut random);
                    log.fault(&worker, &format!("{flipped:?}"), Duration::ZERO);
                }
                std::thread::sleep(lasting);
            }
            Fault::Slow => {
                let end = Instant::now() + lasting;
                while Instant::now() < end {
                    cluster.pause(&worker)?;
                    std::thread::sleep(SLOW_STOP);
                    cluster.resume(&worker)?;
                    std::thread::sleep(SLOW_RUN);
                }
            }
        }
        // The next one must not be the last that holds what this one missed.
        cluster.wait_until_joined(workers)?;
        log.fault(&worker, "healed", Duration::ZERO);
    }
    Ok(faults)
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
