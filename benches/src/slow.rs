//! A worker that is ten times as slow as the others.

use std::time::Duration;

use anyhow::Result;

use crate::cluster::Cluster;

/// How a slowed worker runs: so long, then stopped for so long.
const RUN: Duration = Duration::from_millis(10);
const STOP: Duration = Duration::from_millis(90);

/// Stops a worker nine tenths of the time, for as long as `goes_on` says.
///
/// # Errors
/// When it does not run.
pub(crate) fn slow_while(cluster: &Cluster, worker: &str, mut goes_on: impl FnMut() -> bool) -> Result<()> {
    while goes_on() {
        cluster.pause(worker)?;
        std::thread::sleep(STOP);
        cluster.resume(worker)?;
        std::thread::sleep(RUN);
    }
    Ok(())
}
