//! One worker that is gone for good, from its death until all copies are there
//! again, and the same files copied plainly.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_data::sample::TpchTable;

use super::plain_copy;
use super::warm_memory::WarmMemory;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::disk::files_below;
use crate::report::say;
use crate::tpch_data::data_root;

/// Copies of each shard of the large tables.
const REPLICAS: usize = 3;
/// Copies that each worker makes at a time.
const COPIES_AT_A_TIME: usize = 2;
/// How long the death may take to be found out, and the repair to be made.
const REPAIRED_WITHIN: Duration = Duration::from_secs(600);
/// So long before the repair begins memory is given back for it: what that takes is over
/// then, and the host has not taken it yet.
const FREED_BEFORE: Duration = Duration::from_millis(500);
/// How often it is looked whether it begins.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// And whether it has ended: to look takes some of what there is to copy with, and the
/// cluster itself says when it was.
const END_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A worker that dies, and how many are left then.
pub(super) struct Phase {
    pub(super) cluster: Arc<Cluster>,
    pub(super) dead: String,
    pub(super) workers_left: usize,
    /// After so long a worker that is lost is given up.
    pub(super) dead_after: Duration,
}

/// What a repair came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Repaired {
    /// When the worker was given up, and when the last copy counted.
    #[serde(skip)]
    pub(super) began: Instant,
    #[serde(skip)]
    pub(super) ended: Instant,
    bytes: u64,
    seconds: f64,
    /// Of plain copying; not a number before [`Phase::compare`].
    pub(super) copy_mb_per_s: f64,
}

impl Repaired {
    pub(super) fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6
    }

    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    pub(super) fn mb_per_s(&self) -> f64 {
        self.megabytes() / self.seconds
    }

    pub(super) fn ratio_copy(&self) -> f64 {
        self.mb_per_s() / self.copy_mb_per_s
    }
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (megabytes, rate) = (self.megabytes(), self.mb_per_s());
        write!(f, "{megabytes:.0} MB copied in {:.2} s, {rate:.0} MB/s", self.seconds)
    }
}

/// A condition on rows of `system.segments`: not of a table that is everywhere.
fn is_sharded() -> String {
    let everywhere = TpchTable::ALL.into_iter().filter(|table| table.keys().is_none());
    let names: Vec<String> = everywhere.map(|table| format!("'{table}'")).collect();
    format!("\"table\" NOT IN ({})", names.join(", "))
}

impl Phase {
    /// Kills the worker, and waits until all copies are there again.
    ///
    /// # Errors
    /// When that does not come to pass.
    pub(super) async fn repair(&self, client: &mut Client) -> Result<Repaired> {
        let (dead, is_sharded) = (&self.dead, is_sharded());
        let bytes = client
            .number(&format!(
                "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM system.segments \
                 WHERE array_has(replicas, '{dead}') AND {is_sharded}"
            ))
            .await?;
        ensure!(bytes > 0, "{dead} holds nothing");
        let warm = WarmMemory::for_copies_of(u64::try_from(bytes)?).await?;
        let killing = tokio::task::spawn_blocking({
            let (cluster, dead) = (Arc::clone(&self.cluster), dead.clone());
            move || cluster.kill(&dead)
        });
        killing.await.context("the worker was not killed")??;

        let lost =
            event_after(client, 0, &format!("kind = 'lost' AND worker = '{dead}'"), LOOK_INTERVAL).await?;
        let since = instant_of(lost)?.elapsed();
        tokio::time::sleep(self.dead_after.saturating_sub(FREED_BEFORE).saturating_sub(since)).await;
        drop(warm);
        // Shards get other workers from here on.
        let given_up = format!("kind = 'dead' AND worker = '{dead}'");
        let began = event_after(client, 0, &given_up, LOOK_INTERVAL).await?;
        let missing = format!(
            "SELECT count(*) FROM system.segments \
             WHERE array_length(array_remove(replicas, '{dead}')) < {REPLICAS} AND {is_sharded}"
        );
        let mut ended = began;
        loop {
            ended = event_after(client, ended, "kind = 'repaired'", END_LOOK_INTERVAL).await?;
            if client.number(&missing).await? == 0 {
                // Since it was seen another one may have come, and be the last.
                ended = client
                    .number("SELECT CAST(max(at) AS BIGINT) FROM system.events WHERE kind = 'repaired'")
                    .await?;
                break;
            }
        }
        Ok(Repaired {
            began: instant_of(began)?,
            ended: instant_of(ended)?,
            bytes: u64::try_from(bytes)?,
            seconds: (ended - began) as f64 / 1e6,
            copy_mb_per_s: f64::NAN,
        })
    }

    /// Copies the files of the dead worker plainly, as many at a time as the
    /// workers that are left made copies.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(super) async fn compare(&self, repaired: Repaired) -> Result<Repaired> {
        let mut files = files_below(&self.cluster.data_dir(&self.dead)?.join("segments"));
        files.retain(|path| path.extension().is_some_and(|end| end == "parquet"));
        let at_a_time = COPIES_AT_A_TIME * self.workers_left;
        drop(WarmMemory::for_copies_of(repaired.bytes).await?);
        let copying = tokio::task::spawn_blocking(move || copy_away(&files, at_a_time));
        let copied = copying.await.context("the files were not copied")??;
        let megabytes = copied.bytes as f64 / 1e6;
        let rate = megabytes / copied.took.as_secs_f64();
        let took = copied.took.as_secs_f64();
        say(format!("plainly: {megabytes:.0} MB copied in {took:.2} s, {rate:.0} MB/s"));
        Ok(Repaired { copy_mb_per_s: rate, ..repaired })
    }
}

/// Copies files to the disk where the workers have theirs, and removes the
/// copies.
fn copy_away(files: &[PathBuf], at_a_time: usize) -> Result<plain_copy::Copied> {
    let into = tempfile::tempdir_in(data_root()).context("make a directory for copies")?;
    plain_copy::copy(files, into.path(), at_a_time)
}

/// Waits for an event of the cluster that is newer than another one; when it was, in
/// microseconds since 1970.
async fn event_after(client: &mut Client, after: i64, which: &str, interval: Duration) -> Result<i64> {
    let sql = format!(
        "SELECT coalesce(min(at), 0) FROM (SELECT CAST(at AS BIGINT) AS at FROM system.events WHERE {which}) \
         WHERE at > {after}"
    );
    let since = Instant::now();
    loop {
        let at = client.number(&sql).await?;
        if at > 0 {
            return Ok(at);
        }
        ensure!(since.elapsed() < REPAIRED_WITHIN, "after {REPAIRED_WITHIN:?} still no event with {which}");
        tokio::time::sleep(interval).await;
    }
}

/// The same on the clock by which queries are counted.
fn instant_of(unix_micros: i64) -> Result<Instant> {
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(unix_micros)?);
    let ago = at.elapsed().context("the clock was set back")?;
    Instant::now().checked_sub(ago).context("the clock was set")
}
