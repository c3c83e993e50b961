//! The settings of ours that a session can SET and SHOW: `shoal.*`.

use std::any::Any;

use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use shoal_data::parse_bytes;
use shoal_proto::exchange::ExchangeCompression;

use crate::query::Priority;

/// The setting that switches the result cache, in full.
pub const RESULT_CACHE_SETTING: &str = "shoal.result_cache";

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

/// Settings of Shoal, for each session. Sizes are set and shown as people
/// write them, such as `24MiB`.
#[derive(Clone, Debug)]
pub struct ShoalConfig {
    /// Bytes that a thread of a task reads, decoded, of the columns that are needed.
    pub task_bytes: usize,
    /// Bytes of files to be loaded per task, and those that a query reads at least whose rows are
    /// loaded where they are.
    pub load_task_bytes: usize,
    /// Whether shards join and group where they are.
    pub colocate: bool,
    /// Whether the keys of a join's smaller side leave out rows of the other one
    /// where these are read on other workers.
    pub runtime_filters: bool,
    /// Whether scans evaluate their filters before they decode other columns.
    pub late_materialization: bool,
    /// Whether little tables that are on all workers are read by each task of a join.
    pub read_in_each_task: bool,
    /// Whether rows of groups of groups, as of `count(DISTINCT ...)`, are dealt by the outer groups at once.
    pub group_once: bool,
    /// Whether rows that are nearly all in groups of their own are dealt as they are, and grouped once.
    pub group_late: bool,
    /// Whether inner joins are made in the order that is estimated to cost least.
    pub join_order: bool,
    /// How rows are compressed that go from node to node.
    pub exchange_compression: ExchangeCompression,
    /// Memory that one query may hold on one node; empty: the
    /// coordinator's `query_memory_limit`.
    pub query_memory: String,
    /// Whether a query survives the loss of a worker after its first rows.
    pub failover: bool,
    /// Bytes of memory that the rows of one query may wait in.
    pub spool_memory: usize,
    /// Bytes of disk that they may wait on after that.
    pub spool_disk: usize,
    /// Whether clients are told of all coordinators at which they can fetch rows.
    pub locations: bool,
    /// Whether queries are answered from the coordinator's result cache, and their
    /// results kept there. Off by default: a query that is sent to see whether the
    /// cluster still answers, or how fast it is, must be run.
    pub result_cache: bool,
    /// How large a share of the turns the session has while others wait, too.
    pub priority: Priority,
    /// Id of the next write of this session; used once, then empty again.
    pub write_id: String,
}

impl Default for ShoalConfig {
    fn default() -> Self {
        Self {
            task_bytes: 20 * MIB,
            load_task_bytes: 64 * MIB,
            colocate: true,
            runtime_filters: true,
            late_materialization: false,
            read_in_each_task: true,
            group_once: true,
            group_late: true,
            join_order: true,
            exchange_compression: ExchangeCompression::default(),
            query_memory: String::new(),
            failover: true,
            spool_memory: 64 * MIB,
            spool_disk: 2 * GIB,
            locations: false,
            result_cache: false,
            priority: Priority::default(),
            write_id: String::new(),
        }
    }
}

impl ConfigExtension for ShoalConfig {
    const PREFIX: &'static str = "shoal";
}

impl ExtensionOptions for ShoalConfig {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> DfResult<()> {
        let refuse = DataFusionError::Configuration;
        let size = || match value.trim() {
            "0" => Ok(0),
            value => {
                parse_size(value).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)).map_err(refuse)
            }
        };
        let switch = || match value.trim().to_ascii_lowercase().as_str() {
            "true" | "on" | "1" => Ok(true),
            "false" | "off" | "0" => Ok(false),
            _ => Err(refuse(format!("`{value}` is neither true nor false"))),
        };
        match key {
            "task_bytes" => self.task_bytes = size()?.max(1),
            "load_task_bytes" => self.load_task_bytes = size()?.max(1),
            "colocate" => self.colocate = switch()?,
            "runtime_filters" => self.runtime_filters = switch()?,
            "late_materialization" => self.late_materialization = switch()?,
            "read_in_each_task" => self.read_in_each_task = switch()?,
            "group_once" => self.group_once = switch()?,
            "group_late" => self.group_late = switch()?,
            "join_order" => self.join_order = switch()?,
            "exchange_compression" => self.exchange_compression = value.parse().map_err(refuse)?,
            "query_memory" => {
                if !value.is_empty() {
                    parse_size(value).map_err(refuse)?;
                }
                value.clone_into(&mut self.query_memory);
            }
            "failover" => self.failover = switch()?,
            "spool_memory" => self.spool_memory = size()?,
            "spool_disk" => self.spool_disk = size()?,
            "locations" => self.locations = switch()?,
            "result_cache" => self.result_cache = switch()?,
            "priority" => self.priority = value.parse().map_err(refuse)?,
            "write_id" => value.clone_into(&mut self.write_id),
            _ => {
                let names: Vec<String> = self.entries().into_iter().map(|entry| entry.key).collect();
                return Err(refuse(format!("there is no such setting; there are {}", names.join(", "))));
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let entry = |name: &str, value: String, description| ConfigEntry {
            key: format!("{}.{name}", Self::PREFIX),
            value: Some(value),
            description,
        };
        vec![
            entry(
                "task_bytes",
                size_text(self.task_bytes),
                "Bytes that one thread of a task reads, decoded, of the columns that are needed. Small queries pay most for being distributed.",
            ),
            entry(
                "load_task_bytes",
                size_text(self.load_task_bytes),
                "Bytes of Parquet files to be loaded per task, uncompressed: COPY of fewer than two such tasks reads and \
                 encodes on the coordinator, more on the workers. Rows of CREATE TABLE AS and INSERT ... SELECT are \
                 encoded on the workers where the query reads as much, compressed.",
            ),
            entry(
                "colocate",
                self.colocate.to_string(),
                "Whether tables that are sharded alike join, and shards group, where they are. Off, every join and \
                 grouping goes through an exchange.",
            ),
            entry(
                "runtime_filters",
                self.runtime_filters.to_string(),
                "Whether rows that have no partner in a join are left out where they are read on other workers, as soon \
                 as the join's smaller side is known.",
            ),
            entry(
                "late_materialization",
                self.late_materialization.to_string(),
                "Whether scans decode the columns of their filter first, and of the others only the rows that are \
                 left.",
            ),
            entry(
                "read_in_each_task",
                self.read_in_each_task.to_string(),
                "Whether a little table that every worker of a join has on its disk is read there by each task, as the \
                 join's smaller side, instead of by one task that sends it to all. Only with shoal.colocate.",
            ),
            entry(
                "group_once",
                self.group_once.to_string(),
                "Whether rows of COUNT(DISTINCT ...) with many groups are sent once, by the groups, and not twice.",
            ),
            entry(
                "group_late",
                self.group_late.to_string(),
                "Whether rows of little tables that are nearly all in groups of their own are sent as they are, and \
                 grouped once.",
            ),
            entry(
                "join_order",
                self.join_order.to_string(),
                "Whether three or more inner joins are made in another order than written, where that is estimated to \
                 cost clearly less. Off, they are made as written.",
            ),
            entry(
                "exchange_compression",
                self.exchange_compression.to_string(),
                "How rows are compressed that go from node to node: none, lz4, zstd, or auto: lz4 between zones, \
                 none within one.",
            ),
            entry(
                "query_memory",
                self.query_memory.clone(),
                "Memory that one query may hold on one node, such as '2GiB'; empty: the coordinator's \
                 query_memory_limit.",
            ),
            entry(
                "failover",
                self.failover.to_string(),
                "Whether a query survives the loss of a worker after its first rows: they wait in a spool until all \
                 are there, unless they can be resumed. Off, rows are handed out as they come, and a worker lost \
                 after the first fails the query.",
            ),
            entry(
                "spool_memory",
                size_text(self.spool_memory),
                "Memory of the coordinator that the rows of one query may wait in.",
            ),
            entry(
                "spool_disk",
                size_text(self.spool_disk),
                "Disk of the coordinator that they may wait on after that. A result that is larger is handed out as \
                 it comes from there on.",
            ),
            entry(
                "locations",
                self.locations.to_string(),
                "Whether a FlightInfo names all coordinators as places to fetch the rows from. Drivers then connect \
                 to the first of them for that, and go on to the next where no answer begins there.",
            ),
            entry(
                "result_cache",
                self.result_cache.to_string(),
                "Whether a query may be answered with the kept result of the same query over the same rows, and its \
                 own result is kept for that. The coordinator's result_cache says how much memory they may take.",
            ),
            entry(
                "priority",
                self.priority.to_string(),
                "How large a share of the turns queries of this session have while others wait, too: low, normal \
                 (four times as many) or high (four times as many again).",
            ),
            entry(
                "write_id",
                self.write_id.clone(),
                "Id of the next write of this session. A write that is sent twice under one id happens once. Used \
                 once, then empty again.",
            ),
        ]
    }
}

impl ShoalConfig {
    /// The settings in these options; the defaults where there are none.
    pub fn of(options: &ConfigOptions) -> Self {
        options.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// [`ShoalConfig::query_memory`] in bytes; none where it is empty.
    ///
    /// # Errors
    /// A message where it is not a size.
    pub fn query_memory_bytes(&self) -> Result<Option<u64>, String> {
        if self.query_memory.is_empty() {
            return Ok(None);
        }
        parse_size(&self.query_memory).map(Some)
    }
}

/// A size exactly, in the largest unit that divides it.
fn size_text(bytes: usize) -> String {
    match bytes {
        bytes if bytes == 0 || bytes % KIB != 0 => bytes.to_string(),
        bytes if bytes % GIB == 0 => format!("{}GiB", bytes / GIB),
        bytes if bytes % MIB == 0 => format!("{}MiB", bytes / MIB),
        bytes => format!("{}KiB", bytes / KIB),
    }
}

/// A size that is not nothing.
///
/// # Errors
/// A message that names the value and the way out.
fn parse_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Ok(0) => Err(format!("`{text}`: a size must be at least one byte")),
        Ok(bytes) => Ok(bytes),
        Err(why) => Err(format!("`{text}` is {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_shown_as_they_can_be_set_again() {
        let mut config = ShoalConfig::default();
        config.set("task_bytes", "1.5 MiB").unwrap();
        config.set("failover", "off").unwrap();
        config.set("query_memory", "2GiB").unwrap();
        let shown = config.entries();
        assert_eq!(shown[0].key, "shoal.task_bytes");
        assert_eq!(shown[0].value.as_deref(), Some("1536KiB"));
        let mut again = ShoalConfig::default();
        for entry in &shown {
            let name = entry.key.strip_prefix("shoal.").unwrap();
            again.set(name, entry.value.as_deref().unwrap_or_default()).unwrap();
        }
        assert_eq!(format!("{config:?}"), format!("{again:?}"));
        let message = again.set("task_byte", "1").unwrap_err().to_string();
        assert!(message.contains("shoal.task_bytes"), "{message}");
        assert!(again.set("colocate", "perhaps").is_err());
    }

    #[test]
    fn results_are_kept_only_where_a_session_asks_for_it() {
        let mut config = ShoalConfig::default();
        // Tests and benchmarks rest on it.
        assert!(!config.result_cache);
        let name = RESULT_CACHE_SETTING.strip_prefix("shoal.").unwrap();
        config.set(name, "on").unwrap();
        assert!(config.result_cache);
        config.set(name, "off").unwrap();
        assert!(!config.result_cache);
    }

    #[test]
    fn there_are_three_priorities() {
        let mut config = ShoalConfig::default();
        assert_eq!(config.priority, Priority::Normal);
        for (text, priority) in
            [("low", Priority::Low), (" High ", Priority::High), ("NORMAL", Priority::Normal)]
        {
            config.set("priority", text).unwrap();
            assert_eq!(config.priority, priority);
            assert_eq!(priority.to_string(), text.trim().to_lowercase());
        }
        let message = config.set("priority", "urgent").unwrap_err().to_string();
        assert!(message.contains("`urgent`") && message.contains("low, normal and high"), "{message}");
        assert_eq!(config.priority, Priority::Normal);
    }

    #[test]
    fn a_compression_that_is_none_is_named() {
        let mut config = ShoalConfig::default();
        assert_eq!(config.exchange_compression, ExchangeCompression::Auto);
        config.set("exchange_compression", "ZSTD").unwrap();
        let message = config.set("exchange_compression", "gzip").unwrap_err().to_string();
        assert!(message.contains("`gzip`"), "{message}");
        assert_eq!(config.exchange_compression, ExchangeCompression::Zstd);
    }

    #[test]
    fn a_size_that_is_none_is_named() {
        assert_eq!(parse_size("4 GiB"), Ok(4 << 30));
        for text in ["lots", "0"] {
            let message = parse_size(text).unwrap_err();
            assert!(message.contains(&format!("`{text}`")), "{message}");
        }
    }
}
