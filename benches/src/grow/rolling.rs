//! A rolling restart: every process is stopped with SIGTERM and started again,
//! and the next one waits until it is back.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::load::Doors;
use crate::report::say;

/// How long a process may take to end: its grace and a little more.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Restarts all workers, then all coordinators, the leader last; how many.
///
/// # Errors
/// When one does not end or come back.
pub(super) fn restart_all(cluster: &Cluster, doors: &Doors) -> Result<usize> {
    let workers = cluster.worker_names();
    for worker in &workers {
        restart(cluster, worker, workers.len())?;
    }
    let leader = cluster.leader()?;
    let mut coordinators = cluster.coordinator_names();
    // By whether it leads: those that do not come first.
    coordinators.sort_by_key(|name| *name == leader);
    for coordinator in &coordinators {
        doors.close(coordinator)?;
        restart(cluster, coordinator, workers.len())?;
        doors.open(coordinator)?;
    }
    Ok(workers.len() + coordinators.len())
}

/// Restarts one process, and waits until all is as before.
fn restart(cluster: &Cluster, name: &str, workers: usize) -> Result<()> {
    let status = cluster.terminate(name, ENDS_WITHIN)?;
    ensure!(status.success(), "{name} ended with {status}");
    cluster.restart(name)?;
    cluster.wait_until_voting(cluster.coordinator_names().len())?;
    cluster.wait_until_joined(workers)?;
    cluster.wait_until_caught_up("region")?;
    cluster.wait_until_complete()?;
    say(format!("{name} is back"));
    Ok(())
}
