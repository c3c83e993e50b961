//! What a cluster is made of.

use std::path::PathBuf;

use crate::node::Program;

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
            env: Vec::new(),
            parent_dir: None,
            worker_dir: None,
            links: false,
            disk_bytes: None,
        }
    }

    /// What places a node, before which there are so many of its kind.
    pub(super) fn zone_args(&self, before: usize) -> Vec<String> {
        let zone = self.zones.iter().cycle().nth(before);
        zone.map(|zone| vec!["--zone".to_owned(), zone.clone()]).unwrap_or_default()
    }
}
