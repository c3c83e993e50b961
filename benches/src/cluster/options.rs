//! What a cluster is made of.

use std::path::PathBuf;

use anyhow::Result;

use crate::node::Program;
use crate::tpch_data::{TpchData, data_root};

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How to start a node.
    pub program: Program,
    /// Coordinators, named `coordinator`, `coordinator-2` and so on.
    pub coordinators: usize,
    /// Workers, named `worker-1` and so on.
    pub workers: usize,
    /// Threads of each worker for queries.
    pub threads: usize,
    /// Directories on the server that COPY may use, besides
    /// [`Cluster::import_dir`](super::Cluster::import_dir).
    pub import_roots: Vec<PathBuf>,
    /// More arguments for each coordinator.
    pub coordinator_args: Vec<String>,
    /// More arguments for each worker.
    pub worker_args: Vec<String>,
    /// Zones of the coordinators, and of the workers, in turn; none: they have
    /// none.
    pub zones: Vec<String>,
    /// The zone of every coordinator, where it is none of those.
    pub coordinator_zone: Option<String>,
    /// Environment of every node.
    pub env: Vec<(String, String)>,
    /// Where the cluster's directory is made; None: the system's directory
    /// for temporary files.
    pub parent_dir: Option<PathBuf>,
    /// Where workers keep their data; None: in the cluster's directory. It is
    /// not removed.
    pub worker_dir: Option<PathBuf>,
    /// Whether all nodes reach one another through links, so that they can be
    /// cut off.
    pub links: bool,
    /// The size of the disk that each worker has for itself, below the
    /// cluster's directory; None: no such disk. Only root can mount one.
    pub disk_bytes: Option<u64>,
}

impl ClusterOptions {
    /// One coordinator, and `workers` workers of one thread each.
    pub fn new(program: Program, workers: usize) -> Self {
        Self {
            program,
            coordinators: 1,
            workers,
            threads: 1,
            import_roots: Vec::new(),
            coordinator_args: Vec::new(),
            worker_args: Vec::new(),
            zones: Vec::new(),
            coordinator_zone: None,
            env: Vec::new(),
            parent_dir: None,
            worker_dir: None,
            links: false,
            disk_bytes: None,
        }
    }

    /// What a benchmark measures: `workers` workers of this build, which may load
    /// these files, with their directory beside them.
    ///
    /// # Errors
    /// When the path of this executable cannot be found.
    pub fn for_bench(workers: usize, data: &TpchData) -> Result<Self> {
        let mut options = Self::new(Program::this_executable()?, workers);
        options.import_roots = vec![data.dir().to_owned()];
        options.parent_dir = Some(data_root());
        Ok(options)
    }

    /// What places a coordinator, before which there are so many.
    pub(super) fn coordinator_zone_args(&self, before: usize) -> Vec<String> {
        match &self.coordinator_zone {
            Some(zone) => vec!["--zone".to_owned(), zone.clone()],
            None => self.zone_args(before),
        }
    }

    /// What places a node, before which there are so many of its kind.
    pub(super) fn zone_args(&self, before: usize) -> Vec<String> {
        let zone = self.zones.iter().cycle().nth(before);
        zone.map(|zone| vec!["--zone".to_owned(), zone.clone()]).unwrap_or_default()
    }
}
