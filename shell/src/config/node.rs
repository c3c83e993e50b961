//! The settings of a coordinator and of a worker, with their defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use shoal_coordinator::config::{
    DEAD_AFTER, MOVE_BYTES_PER_SECOND, REPAIR_BYTES_PER_SECOND, RESULT_CACHE_BYTES,
};
use shoal_worker::config::SCRUB_BYTES_PER_SECOND_DEFAULT;

use super::value::quoted;
use super::{ByteSize, ConfigError, Layers, Value};

/// Memory that a node plans with where nobody can say how much there is.
const MEMORY_UNKNOWN_BYTES: u64 = 4 << 30;
/// What a worker's process takes at most whatever it does: its program, footers that it keeps,
/// connections.
const PROCESS_BYTES: u64 = 256 << 20;

/// Memory that the rows of one write may take where nobody says.
const WRITE_BUFFER_BYTES: u64 = 384 << 20;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// A filter as `tracing` has it, checked.
#[derive(Clone, Debug)]
pub struct LogFilter(pub String);

/// What is logged and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged: a level or a filter.
    pub filter: LogFilter,
}

/// What coordinators and workers have in common.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Where it listens; port 0 means any free one.
    pub listen: SocketAddr,
    /// The URL at which others reach it; none: as it listens.
    pub advertise: Option<String>,
    /// Whether it may listen on a network.
    pub insecure: bool,
    /// How long running work may take to finish when it is asked to stop.
    pub grace: Duration,
    /// Its log.
    pub log: LogSettings,
}

/// All settings of a coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorSettings {
    /// The common ones.
    pub node: NodeSettings,
    /// The coordinators whose cluster it joins at its first start; none: it
    /// starts a cluster of its own.
    pub join: Vec<String>,
    /// Folders whose files statements may use.
    pub import_roots: Vec<PathBuf>,
    /// Object store prefixes that statements may use.
    pub object_stores: Vec<String>,
    /// Where it stands; empty: nowhere in particular.
    pub zone: String,
    /// Queries that run at once.
    pub max_queries: usize,
    /// Queries that may wait.
    pub queue_limit: usize,
    /// How long a query may wait.
    pub queue_timeout: Duration,
    /// How long a worker may be away before its shards get others.
    pub dead_after: Duration,
    /// Bytes in a second that one worker may copy of what only moves; 0: no
    /// limit.
    pub move_rate: ByteSize,
    /// The same of what has too few copies.
    pub repair_rate: ByteSize,
    /// Whether small segments become few in the background.
    pub compaction: bool,
    /// Memory for queries and writes in this process.
    pub memory_limit: ByteSize,
    /// Memory of one query on each node.
    pub query_memory_limit: ByteSize,
    /// Memory that the rows of one write may take before they become
    /// segments.
    pub write_buffer: ByteSize,
    /// Memory for results that are kept; 0: none are.
    pub result_cache: ByteSize,
}

/// All settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The common ones.
    pub node: NodeSettings,
    /// The coordinators to join.
    pub coordinators: Vec<String>,
    /// Its name; none: the one in its data directory, or a new one.
    pub name: Option<String>,
    /// Where it stands; empty: nowhere in particular.
    pub zone: String,
    /// Object store prefixes that plans may read.
    pub object_stores: Vec<String>,
    /// Folders whose files it may load itself.
    pub import_roots: Vec<PathBuf>,
    /// Memory for queries.
    pub memory_limit: ByteSize,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes in a second that it reads of its segments to find rot; 0 for
    /// none.
    pub scrub_rate: ByteSize,
    /// Whether its shards go to others before it stops.
    pub drain: bool,
}

impl NodeSettings {
    fn read(layers: &mut Layers, port: u16) -> Result<Self, ConfigError> {
        Ok(Self {
            data_dir: layers.required("data_dir")?,
            listen: layers.value("listen", || SocketAddr::from(([127, 0, 0, 1], port)))?,
            advertise: layers.optional::<NodeUrl>("advertise")?.map(|url| url.0),
            insecure: layers.value("insecure", || false)?,
            grace: layers.value("grace", || Duration::from_secs(10))?,
            log: LogSettings {
                format: layers.value("log_format", || LogFormat::Text)?,
                filter: layers.value("log_level", || LogFilter("info".to_owned()))?,
            },
        })
    }

    /// Whether the address may be listened on and says where the node is.
    ///
    /// # Errors
    /// `Exposed` or `Unreachable`.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.is_exposed() && !self.insecure {
            return Err(ConfigError::Exposed(self.listen));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(ConfigError::Unreachable(self.listen));
        }
        Ok(())
    }

    /// Whether others than this machine can connect.
    pub fn is_exposed(&self) -> bool {
        !self.listen.ip().to_canonical().is_loopback()
    }
}

impl CoordinatorSettings {
    /// Looks every setting up.
    ///
    /// # Errors
    /// `Invalid` for the first value that does not parse.
    pub fn read(layers: &mut Layers) -> Result<Self, ConfigError> {
        let node = NodeSettings::read(layers, 7400)?;
        let join = layers.list::<NodeUrl>("join")?.into_iter().map(|url| url.0).collect();
        let import_roots = layers.list("import_root")?;
        let object_stores = layers.list("object_store")?;
        let zone = layers.optional::<String>("zone")?.unwrap_or_default();
        let max_queries = layers.value("max_queries", || (2 * cores()).max(4))?;
        let queue_limit = layers.value("queue_limit", || 1000)?;
        let queue_timeout = layers.value("queue_timeout", || Duration::from_secs(60))?;
        let dead_after = layers.value("dead_after", || DEAD_AFTER)?;
        let move_rate = layers.value("move_rate", || ByteSize(MOVE_BYTES_PER_SECOND))?;
        let repair_rate = layers.value("repair_rate", || ByteSize(REPAIR_BYTES_PER_SECOND))?;
        let compaction = layers.value("compaction", || true)?;
        let memory_limit = layers.value("memory_limit", || share_of_memory(25))?;
        let query_memory_limit = layers.value("query_memory_limit", || ByteSize(memory_limit.0 / 2))?;
        let write_buffer = layers.value("write_buffer", || ByteSize(WRITE_BUFFER_BYTES))?;
        let result_cache = layers.value("result_cache", || ByteSize(RESULT_CACHE_BYTES as u64))?;
        Ok(Self {
            node,
            join,
            import_roots,
            object_stores,
            zone,
            max_queries,
            queue_limit,
            queue_timeout,
            dead_after,
            move_rate,
            repair_rate,
            compaction,
            memory_limit,
            query_memory_limit,
            write_buffer,
            result_cache,
        })
    }
}

impl WorkerSettings {
    /// Looks every setting up.
    ///
    /// # Errors
    /// `Invalid` for the first value that does not parse.
    pub fn read(layers: &mut Layers) -> Result<Self, ConfigError> {
        let coordinators = layers.required_list::<NodeUrl>("coordinator")?;
        Ok(Self {
            node: NodeSettings::read(layers, 7401)?,
            coordinators: coordinators.into_iter().map(|url| url.0).collect(),
            name: layers.optional::<WorkerName>("name")?.map(|name| name.0),
            zone: layers.optional::<String>("zone")?.unwrap_or_default(),
            object_stores: layers.list("object_store")?,
            import_roots: layers.list("import_root")?,
            memory_limit: layers.value("memory_limit", || ByteSize(memory_for_queries(memory())))?,
            threads: layers.value("threads", cores)?,
            scrub_rate: layers.value("scrub_rate", || ByteSize(SCRUB_BYTES_PER_SECOND_DEFAULT))?,
            drain: layers.value("drain", || false)?,
        })
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(2, usize::from)
}

/// A share of the machine's memory, or of this container's, in whole MiB.
pub fn share_of_memory(percent: u64) -> ByteSize {
    ByteSize((memory() / 100 * percent) >> 20 << 20)
}

/// What queries are counted for, in whole MiB, where a worker's process may take so many
/// bytes: half of what is left beside the process itself. The other half is for what they
/// take and nobody counts: what was read and is not decoded yet, rows between operators,
/// copies while something grows.
pub fn memory_for_queries(process_bytes: u64) -> u64 {
    let beside = process_bytes.saturating_sub(PROCESS_BYTES).max(process_bytes / 2);
    (beside / 2) >> 20 << 20
}

/// The memory of this machine, or of this container.
fn memory() -> u64 {
    memory_bytes().unwrap_or(MEMORY_UNKNOWN_BYTES)
}

fn memory_bytes() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        let kib = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
        Some(kib * 1024)
    });
    match (limit, machine) {
        (Some(limit), Some(machine)) => Some(limit.min(machine)),
        (limit, machine) => limit.or(machine),
    }
}

/// The URL of a node.
struct NodeUrl(String);

impl Value for NodeUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "not the address of a node; write it like http://10.0.0.1:7400".to_owned();
        let text = text.trim();
        // `shoal://` is how the shell's connection strings look.
        let text =
            text.strip_prefix("shoal://").map_or_else(|| text.to_owned(), |rest| format!("http://{rest}"));
        let text = if text.contains("://") { text } else { format!("http://{text}") };
        let url = url::Url::parse(&text).map_err(|_| wrong())?;
        if url.scheme() != "http"
            || url.host_str().is_none_or(str::is_empty)
            || url.port_or_known_default().is_none()
        {
            return Err(wrong());
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }

    fn show(&self) -> String {
        quoted(&self.0)
    }
}

/// The name of a worker: it appears in file names, headers and SQL.
struct WorkerName(String);

impl Value for WorkerName {
    fn parse(text: &str) -> Result<Self, String> {
        let right = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.is_empty() || text.len() > 63 || !text.chars().all(right) {
            return Err("not a name; use 1 to 63 letters, digits, `-`, `_` and `.`".to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        quoted(&self.0)
    }
}

impl Value for LogFormat {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("not a log format; write text or json".to_owned()),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl Value for LogFilter {
    fn parse(text: &str) -> Result<Self, String> {
        tracing_subscriber::EnvFilter::from_str(text).map(|_| Self(text.to_owned())).map_err(|_| {
            "not a level; write error, warn, info, debug, trace or a filter like info,h2=warn".to_owned()
        })
    }

    fn show(&self) -> String {
        quoted(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_take_half_of_what_is_left_beside_the_process() {
        for (process_mib, queries_mib) in [(24 << 10, 12_160), (1024, 384), (512, 128), (300, 75), (1, 0)] {
            assert_eq!(memory_for_queries(process_mib << 20), queries_mib << 20, "{process_mib} MiB");
        }
    }

    #[test]
    fn node_urls_are_forgiving_about_the_scheme() {
        for (text, expected) in [
            ("http://10.0.0.1:7400", Some("http://10.0.0.1:7400")),
            ("http://10.0.0.1:7400/", Some("http://10.0.0.1:7400")),
            ("shoal://db1:7400", Some("http://db1:7400")),
            ("db1:7400", Some("http://db1:7400")),
            ("https://db1:7400", None),
            ("http://:7400", None),
            ("", None),
        ] {
            assert_eq!(NodeUrl::parse(text).ok().map(|url| url.0).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn worker_names_fit_into_headers_and_files() {
        assert!(WorkerName::parse("worker-1.rack_b").is_ok());
        for wrong in ["", "a b", "a/b", "wörker", &"x".repeat(64)] {
            assert!(WorkerName::parse(wrong).is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn a_share_of_memory_is_whole_mebibytes() {
        let share = share_of_memory(50);
        assert!(share.0 > 0 && share.0.is_multiple_of(1 << 20));
    }
}
