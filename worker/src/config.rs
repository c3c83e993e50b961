//! What a worker must be told. Plain values: flags, environment and files are
//! the shell's business.

use std::path::PathBuf;
use std::time::Duration;

/// What a worker reads of its segments in a second, to find rot, unless it is
/// configured.
pub const SCRUB_BYTES_PER_SECOND_DEFAULT: u64 = 8 << 20;

/// All settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where its identity and its segments are; made where it is missing.
    pub data_dir: PathBuf,
    /// The URL at which others reach it; empty: as it listens.
    pub advertise: String,
    /// URLs of coordinators, at least one: they tell it of the others.
    pub coordinators: Vec<String>,
    /// Its name; none: the one in its data directory, or a new one.
    pub name: Option<String>,
    /// Where it stands; may be empty.
    pub zone: String,
    /// Memory for queries; what needs more spills to disk or fails.
    pub memory_limit_bytes: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Object stores that plans may read, such as `s3://bucket/path`.
    pub object_stores: Vec<String>,
    /// Directories whose files it may load itself, where a coordinator has the
    /// same files under the same paths.
    pub import_roots: Vec<PathBuf>,
    /// Bytes in a second that it reads of its segments to find rot; 0 for none.
    pub scrub_bytes_per_second: u64,
    /// How long running tasks may take to finish when it stops.
    pub grace: Duration,
}

impl WorkerConfig {
    /// The defaults, for a data directory and a coordinator.
    pub fn new(data_dir: impl Into<PathBuf>, coordinator: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            advertise: String::new(),
            coordinators: vec![coordinator.into()],
            name: None,
            zone: String::new(),
            memory_limit_bytes: 4 << 30,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            object_stores: Vec::new(),
            import_roots: Vec::new(),
            scrub_bytes_per_second: SCRUB_BYTES_PER_SECOND_DEFAULT,
            grace: Duration::from_secs(10),
        }
    }
}
