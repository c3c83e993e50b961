//! The most memory that each process of a cluster held during each query, against the
//! limit that each has.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use crate::cluster::{Cluster, ClusterOptions};
use crate::process::{peak_bytes, reset_peak};
use crate::report::say;

/// Of what a process may take, so many hundredths are for what queries are counted for: as much as
/// a worker takes of a machine where nothing is said.
const QUERIES_PERCENT: u64 = 60;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct MemoryReport {
    /// That each process may take.
    limit_mb: f64,
    /// Each query, and the load of the tables, with the most that each process held, in MB.
    peaks_mb: BTreeMap<String, BTreeMap<String, f64>>,
    /// Moments of those at which a process held more than it may.
    pub over_limit: usize,
}

/// Looks at a cluster's processes while it does one thing after the other.
pub struct MemoryLimits {
    cluster: Arc<Cluster>,
    limit_bytes: u64,
    peaks: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Has each process of a cluster take no more than so many bytes, most of them for queries. One
/// query may take all of that on each.
pub fn limit_each(options: &mut ClusterOptions, limit_bytes: u64) {
    let for_queries = limit_bytes / 100 * QUERIES_PERCENT;
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
        let mut limits = Self { cluster, limit_bytes, peaks: BTreeMap::new() };
        limits.end("load")?;
        Ok(limits)
    }

    /// Forgets what was held until now.
    ///
    /// # Errors
    /// When a node does not run.
    pub fn begin(&self) -> Result<()> {
        for name in self.cluster.node_names() {
            reset_peak(self.cluster.pid(&name)?)?;
        }
        Ok(())
    }

    /// Notes what was held since then, for `what`.
    ///
    /// # Errors
    /// When a node does not run.
    pub fn end(&mut self, what: &str) -> Result<()> {
        for name in self.cluster.node_names() {
            let held = peak_bytes(self.cluster.pid(&name)?);
            if held > self.limit_bytes {
                say(format!(
                    "{what}: {name} held {:.0} MB, and may hold {:.0}",
                    held as f64 / 1e6,
                    self.limit_bytes as f64 / 1e6
                ));
            }
            let most = self.peaks.entry(what.to_owned()).or_default().entry(name).or_default();
            *most = held.max(*most);
        }
        Ok(())
    }

    /// All that was noted.
    pub fn report(&self) -> MemoryReport {
        let over_limit =
            self.peaks.values().flat_map(BTreeMap::values).filter(|held| **held > self.limit_bytes);
        let in_mb = |held: &BTreeMap<String, u64>| {
            held.iter().map(|(name, bytes)| (name.clone(), *bytes as f64 / 1e6)).collect()
        };
        MemoryReport {
            limit_mb: self.limit_bytes as f64 / 1e6,
            over_limit: over_limit.count(),
            peaks_mb: self.peaks.iter().map(|(what, held)| (what.clone(), in_mb(held))).collect(),
        }
    }
}
