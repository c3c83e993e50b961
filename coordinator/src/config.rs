//! What a coordinator must be told. Plain values: flags, environment and files
//! are the shell's business.

use std::path::PathBuf;
use std::time::Duration;

/// All settings of a coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Where the catalog and the spool are; made where it is missing.
    pub data_dir: PathBuf,
    /// The URL at which workers and clients reach this node; empty: as it
    /// listens.
    pub advertise: String,
    /// URLs of coordinators whose cluster it joins at its first start; none: it
    /// starts a cluster of its own then. Later starts do not look at it.
    pub join: Vec<String>,
    /// Makes it the only coordinator of its cluster, with all that it has: the
    /// way back where a majority is lost for good.
    pub force_new_cluster: bool,
    /// Directories whose files statements may read and write.
    pub import_roots: Vec<PathBuf>,
    /// Object store prefixes that external tables may use, like
    /// `s3://bucket/path`.
    pub object_stores: Vec<String>,
    /// The zone that it stands in; queries read from workers of it first.
    pub zone: String,
    /// Queries that run at once.
    pub queries_max: usize,
    /// Queries that may wait for their turn; more are refused.
    pub queue_max: usize,
    /// How long a query may wait for its turn.
    pub queue_timeout: Duration,
    /// Memory for queries and writes in this process.
    pub memory_limit_bytes: u64,
    /// Memory of one query on each node.
    pub query_memory_bytes: u64,
    /// Memory that the rows of one write may take before they become segments.
    pub write_buffer_bytes: usize,
    /// Memory for results that are kept; 0: none are.
    pub result_cache_bytes: usize,
    /// A worker that is away for so long is given up: its shards get others.
    pub dead_after: Duration,
    /// Bytes in a second that one worker may copy of what only moves; 0: no limit.
    pub move_bytes_per_second: u64,
    /// The same of what has too few copies.
    pub repair_bytes_per_second: u64,
    /// Whether small segments are compacted in the background while it leads.
    pub compaction: bool,
    /// How long running queries may take to finish when the node stops.
    pub grace: Duration,
}

/// Memory for results that are kept, by default.
pub const RESULT_CACHE_BYTES: usize = 64 << 20;
/// How long a worker may be away by default before it is given up.
pub const DEAD_AFTER: Duration = Duration::from_secs(300);
/// What one worker copies by default in a second of what only moves.
pub const MOVE_BYTES_PER_SECOND: u64 = 64 << 20;
/// The same of what has too few copies.
pub const REPAIR_BYTES_PER_SECOND: u64 = 1 << 30;

impl CoordinatorConfig {
    /// The defaults, for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            data_dir: data_dir.into(),
            advertise: String::new(),
            join: Vec::new(),
            force_new_cluster: false,
            import_roots: Vec::new(),
            object_stores: Vec::new(),
            zone: String::new(),
            queries_max: (2 * cores).max(4),
            queue_max: 1_000,
            queue_timeout: Duration::from_secs(60),
            memory_limit_bytes: 2 << 30,
            query_memory_bytes: 1 << 30,
            write_buffer_bytes: 384 << 20,
            result_cache_bytes: RESULT_CACHE_BYTES,
            dead_after: DEAD_AFTER,
            move_bytes_per_second: MOVE_BYTES_PER_SECOND,
            repair_bytes_per_second: REPAIR_BYTES_PER_SECOND,
            compaction: true,
            grace: Duration::from_secs(10),
        }
    }
}
