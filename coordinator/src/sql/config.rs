//! The settings of ours that a session can SET and SHOW: `shoal.*`.

use datafusion::common::extensions_options;
use datafusion::config::{ConfigExtension, ConfigOptions};

extensions_options! {
    /// Settings of Shoal.
    pub struct ShoalConfig {
        /// Bytes to be read per task: a scan of fewer runs in fewer tasks. Small
        /// queries pay most for being distributed.
        pub task_bytes: usize, default = 24 * 1024 * 1024
        /// Whether tables that are sharded alike join, and shards group, where
        /// they are. Off, every join and grouping goes through an exchange.
        pub colocate: bool, default = true
        /// Memory that one query may hold on one node, such as '2GiB'; empty: the
        /// node's limit.
        pub query_memory: String, default = String::new()
        /// Whether a query survives the loss of a worker after its first rows: they
        /// wait in a spool until all are there, unless they can be resumed. Off,
        /// rows are handed out as they come, and a worker lost after the first
        /// fails the query.
        pub failover: bool, default = true
        /// Memory of the coordinator that the rows of one query may wait in.
        pub spool_memory: usize, default = 64 * 1024 * 1024
        /// Disk of the coordinator that they may wait on after that. A result that
        /// is larger is handed out as it comes from there on.
        pub spool_disk: usize, default = 16 * 1024 * 1024 * 1024
        /// Id of the next write of this session. A write that is sent twice under
        /// one id happens once. Used once, then empty again.
        pub write_id: String, default = String::new()
    }
}

impl ConfigExtension for ShoalConfig {
    const PREFIX: &'static str = "shoal";
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
        parse_bytes(&self.query_memory).map(Some)
    }
}

/// A size such as `512MiB`, `4GB` or `1048576`.
///
/// # Errors
/// A message that names the value and the way out.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => {
            return Err(format!(
                "`{text}` is not a size: write a number and KiB, MiB, GiB or TiB, such as 512MiB"
            ));
        }
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size such as 512MiB"))?;
    let bytes = number * factor as f64;
    if !(1.0..=9.0e18).contains(&bytes) {
        return Err(format!("`{text}` is out of range for a size"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("512MiB", 512 << 20), ("4 GiB", 4 << 30), ("1048576", 1 << 20), ("1.5k", 1536)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "lots", "5 parsecs", "-1", "0", "1e400GiB"] {
            assert!(parse_bytes(text).is_err(), "{text} was taken");
        }
    }
}
