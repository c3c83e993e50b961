//! Clusters that tests share, one for each number of workers; they end with
//! this process.

use std::sync::OnceLock;

use shoal_benches::{Cluster, ClusterOptions, Program};

static ONE: OnceLock<Cluster> = OnceLock::new();
static TWO: OnceLock<Cluster> = OnceLock::new();
static FOUR: OnceLock<Cluster> = OnceLock::new();

/// The binary under test.
pub(crate) fn program() -> Program {
    Program::shoal(env!("CARGO_BIN_EXE_shoal"))
}

/// Options of a cluster that a test has for itself.
pub(crate) fn options(workers: usize) -> ClusterOptions {
    ClusterOptions::new(program(), workers)
}

/// A cluster that a test has for itself.
pub(crate) fn own(workers: usize) -> Cluster {
    Cluster::start(&options(workers)).unwrap()
}

/// The cluster of 1, 2 or 4 workers that tests share. Whoever uses it leaves
/// its nodes running, and drops the tables that it makes.
pub(crate) fn shared(workers: usize) -> &'static Cluster {
    let cell = match workers {
        1 => &ONE,
        2 => &TWO,
        4 => &FOUR,
        other => panic!("no shared cluster has {other} workers"),
    };
    cell.get_or_init(|| own(workers))
}

/// Whether a plan has a stage of two tasks or more.
pub(crate) fn is_distributed(explained: &str) -> bool {
    explained
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.strip_prefix("┌─ Stage ")?.split_once(" ── ")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
        })
        .any(|tasks| tasks >= 2)
}
