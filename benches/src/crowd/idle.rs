//! What connections cost on which nothing is asked.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::session::many;
use crate::client::Client;
use crate::process::resident_bytes;

/// How long the connections are left alone before they are weighed.
const IDLE_FOR: Duration = Duration::from_secs(3);
const MIB: f64 = 1_048_576.0;

/// MiB by which a process grows for so many connections, each with its session.
///
/// # Errors
/// When one cannot be made, and where the process is gone.
pub(super) async fn grown_mib(url: &str, pid: u32, connections: usize) -> Result<f64> {
    let before = resident_bytes(pid);
    let clients = many(connections, || Client::connect(url)).await?;
    tokio::time::sleep(IDLE_FOR).await;
    let after = resident_bytes(pid);
    drop(clients);
    ensure!(before > 0 && after > 0, "process {pid}, which has the connections, is gone");
    Ok(mib(before, after))
}

/// From `before` to `after`; nothing where memory was given back meanwhile.
fn mib(before: u64, after: u64) -> f64 {
    after.saturating_sub(before) as f64 / MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_counts_as_nothing() {
        assert_eq!(mib(10 << 20, 45 << 20), 35.0);
        assert_eq!(mib(45 << 20, 10 << 20), 0.0);
    }
}
