//! The control plane in a made-up world: stories of a cluster in which messages
//! are late, lost and out of order, links are cut, processes are paused and
//! crash, and disks are lost, told from a seed.
//!
//! The pure parts are the real ones: `catalog::State` and the machine that
//! applies each change once, `cluster::{membership, given_up, placement, moves,
//! repair, going, pins}`. Round them is made up what does I/O otherwise:
//!
//! - `coordinator` is the likeness of the adapters, function by function;
//! - `worker` is a worker with a disk on which only what is fsynced outlives a crash;
//! - `agreement` is the log, which is as the consensus promises it, and `leadership`
//!   who leads and what is committed;
//! - `network` and `context` are the time, the links and what is on its way, and
//!   `delivery` how that arrives;
//! - `client` and `faults` are what happens; `checks` is what must be so after
//!   every step, and `rest` what must be so when nothing goes wrong any more.
//!
//! `consensus` is another world, round the real consensus.
//!
//! A seed tells the same story bit for bit: nothing looks at a clock or at how a
//! hash map is ordered. `trace` makes a digest of each line of it.
//!
//! ```sh
//! cargo test --release -p shoal-coordinator simulation    # 500 stories
//! SHOAL_SIM_SEEDS=20000 SHOAL_SIM_STEPS=20000 cargo test --release -p shoal-coordinator simulation
//! # One of them, line by line:
//! SHOAL_SIM_SEED=17 cargo test --release -p shoal-coordinator simulation -- --nocapture
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use world::World;

mod agreement;
mod chance;
mod checks;
mod client;
mod consensus;
mod context;
mod coordinator;
mod delivery;
mod faults;
mod leadership;
mod network;
mod rest;
mod trace;
mod worker;
mod world;

/// Stories that are told; fewer where nothing is optimised.
const SEEDS: u64 = if cfg!(debug_assertions) { 25 } else { 500 };
/// Steps of each, before it comes to its end.
const STEPS: u64 = 5_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Tells a story; its digest.
fn tell(seed: u64, is_told: bool) -> u32 {
    let mut world = World::new(seed, is_told);
    for _ in 0..number("SHOAL_SIM_STEPS").unwrap_or(STEPS) {
        world.step();
    }
    world.come_to_rest();
    world.context.trace.digest()
}

/// Whether somebody's story has ended badly: nobody begins another one then.
struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Tells the stories of so many seeds, or of the one that somebody asks for.
fn tell_all(seeds: u64, tell: impl Fn(u64) + Sync) {
    if let Some(seed) = number("SHOAL_SIM_SEED") {
        tell(seed);
        return;
    }
    let (next, has_failed) = (AtomicU64::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let _watch = Watch(&has_failed);
                while !has_failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        return;
                    }
                    tell(seed);
                }
            });
        }
    });
}

#[test]
fn every_story_ends_well() {
    let is_told = number("SHOAL_SIM_SEED").is_some();
    tell_all(number("SHOAL_SIM_SEEDS").unwrap_or(SEEDS), |seed| {
        tell(seed, is_told);
    });
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for seed in 1..=5 {
        assert_eq!(tell(seed, false), tell(seed, false), "seed {seed}");
    }
}
