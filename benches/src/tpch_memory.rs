//! The most memory that each process of a cluster held during each query, against the
//! limit that each has.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::Serialize;
use shoal::config::memory_for_queries;

use crate::cluster::{Cluster, ClusterOptions};
use crate::process::{peak_bytes, reset_peak};
use crate::report::say;

/// What was held until the tables were there.
const LOAD: &str = "load";
/// What was held while no query of the cluster ran.
const BETWEEN: &str = "between";

/// What was measured.
#[derive(Debug, Serialize)]
pub struct MemoryReport {
    /// That each process may take.
    limit_mb: f64,
    /// Each query, the load of the tables, and the time between queries, with the most that each
    /// process held, in MB.
    peaks_mb: BTreeMap<String, BTreeMap<String, f64>>,
    /// Those of them in which a process held more than it may, once for each such process.
    pub over_limit: usize,
}

/// Looks at a cluster's processes while it does one thing after the other: at all times since they
/// began.
pub struct MemoryLimits {
    cluster: Arc<Cluster>,
    peaks: Peaks,
}

/// What was held, by what was done and by process.
struct Peaks {
    limit_bytes: u64,
    bytes: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Has each process of a cluster take no more than so many bytes: as many of them are for queries as
/// on a machine with so much memory where nothing is said. One query may take all of those on each.
pub fn limit_each(options: &mut ClusterOptions, limit_bytes: u64) {
    let for_queries = memory_for_queries(limit_bytes);
    options.worker_args.push(format!("--memory-limit={for_queries}"));
    options.coordinator_args.push(format!("--memory-limit={for_queries}"));
    options.coordinator_args.push(format!("--query-memory-limit={for_queries}"));
}

impl MemoryLimits {
    /// Of the processes of a cluster, each of which may take so many bytes. What they held until
    /// now was for loading.
    ///
    /// # Errors
    /// When a node does not run.
    pub fn after_load(cluster: Arc<Cluster>, limit_bytes: u64) -> Result<Self> {
        let mut limits = Self { cluster, peaks: Peaks { limit_bytes, bytes: BTreeMap::new() } };
        limits.note(LOAD)?;
        Ok(limits)
    }

    /// Does something, and notes what is held meanwhile.
    ///
    /// # Errors
    /// What comes of it; and when a node does not run, before or after, which others may have made
    /// up for: it may have run out of memory.
    pub async fn around<T>(&mut self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.note(BETWEEN)?;
        let done = work.await;
        let noted = self.note(what);
        let done = done?;
        noted?;
        Ok(done)
    }

    /// Notes what was held since the last time, for `what`.
    fn note(&mut self, what: &str) -> Result<()> {
        // Nothing is known any more of what they held.
        let ended = self.cluster.crashed();
        ensure!(ended.is_empty(), "{} ended by itself, until the end of {what}", ended.join(", "));
        for name in self.cluster.node_names() {
            let pid = self.cluster.pid(&name)?;
            let held = peak_bytes(pid);
            reset_peak(pid)?;
            if let Some(line) = self.peaks.note(what, name, held) {
                say(line);
            }
        }
        Ok(())
    }

    /// All that was noted.
    pub fn report(&self) -> MemoryReport {
        self.peaks.report()
    }
}

impl Peaks {
    /// Notes what a process held; a line where that is more than it may.
    fn note(&mut self, what: &str, name: String, held: u64) -> Option<String> {
        let line = (held > self.limit_bytes).then(|| {
            let limit_mb = self.limit_bytes as f64 / 1e6;
            format!("{what}: {name} held {:.0} MB, and may hold {limit_mb:.0}", held as f64 / 1e6)
        });
        let most = self.bytes.entry(what.to_owned()).or_default().entry(name).or_default();
        *most = held.max(*most);
        line
    }

    fn report(&self) -> MemoryReport {
        let over_limit =
            self.bytes.values().flat_map(BTreeMap::values).filter(|held| **held > self.limit_bytes);
        let in_mb = |held: &BTreeMap<String, u64>| {
            held.iter().map(|(name, bytes)| (name.clone(), *bytes as f64 / 1e6)).collect()
        };
        MemoryReport {
            limit_mb: self.limit_bytes as f64 / 1e6,
            over_limit: over_limit.count(),
            peaks_mb: self.bytes.iter().map(|(what, held)| (what.clone(), in_mb(held))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Program;

    #[test]
    fn each_process_counts_once_for_each_query_in_which_it_held_too_much() {
        let mut peaks = Peaks { limit_bytes: 100_000_000, bytes: BTreeMap::new() };
        let mut note = |what: &str, name: &str, mb: u64| peaks.note(what, name.to_owned(), mb * 1_000_000);
        assert_eq!(note(LOAD, "worker-1", 100), None);
        assert_eq!(note("q1", "worker-1", 99), None);
        let line = note("q1", "worker-1", 130);
        assert_eq!(line.as_deref(), Some("q1: worker-1 held 130 MB, and may hold 100"));
        // In the next pass it is less.
        assert!(note("q1", "worker-1", 120).is_some());
        assert_eq!(note("q1", "worker-1", 50), None);
        assert!(note("q1", "worker-2", 101).is_some() && note(BETWEEN, "worker-1", 101).is_some());
        let report = peaks.report();
        assert_eq!((report.over_limit, report.limit_mb), (3, 100.0));
        assert_eq!(report.peaks_mb["q1"]["worker-1"], 130.0);
        assert_eq!(report.peaks_mb[LOAD]["worker-1"], 100.0);
    }

    #[test]
    fn what_is_not_for_queries_is_left_to_each_process() {
        let mut options = ClusterOptions::new(Program::this_executable().unwrap(), 1);
        limit_each(&mut options, 1 << 30);
        let bytes = 384 << 20;
        assert_eq!(options.worker_args, [format!("--memory-limit={bytes}")]);
        let coordinator = [format!("--memory-limit={bytes}"), format!("--query-memory-limit={bytes}")];
        assert_eq!(options.coordinator_args, coordinator);
    }
}
