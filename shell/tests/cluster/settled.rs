//! Waits until the disks of all workers hold what the catalog says, and
//! nothing else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shoal_benches::disk::files_below;
use shoal_benches::{Client, Cluster};

/// How long repair and removal may take, on a machine that does other things.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until every worker has every segment, whole, as tables with a replica
/// on each want it, and nothing is left behind on any.
pub(crate) async fn wait_until_settled(cluster: &Cluster, workers: usize) {
    let since = Instant::now();
    loop {
        let Some(what) = unsettled(cluster, workers).await else { return };
        assert!(since.elapsed() < SETTLED_WITHIN, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is not as it should be.
async fn unsettled(cluster: &Cluster, workers: usize) -> Option<String> {
    let mut client = match cluster.connect().await {
        Ok(client) => client,
        Err(error) => return Some(error.to_string()),
    };
    let (named, missing) = match named(&mut client, workers).await {
        Ok(named) => named,
        Err(error) => return Some(error.to_string()),
    };
    if missing > 0 {
        return Some(format!("{missing} shards have fewer than {workers} live replicas"));
    }
    for number in 1..=workers {
        let dir = cluster.data_dir(&format!("worker-{number}")).unwrap();
        let ending = |ending: &str| -> BTreeSet<String> {
            let files = files_below(&dir.join("segments"));
            let names = files.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(ending));
            names.map(str::to_owned).collect()
        };
        let (segments, sums) = (ending(".parquet"), ending(".parquet.sums"));
        if segments != named || sums != named {
            return Some(format!(
                "worker-{number} has {segments:?} with checksums of {sums:?}; the catalog names {named:?}"
            ));
        }
        for leftover in ["staging", "damaged"] {
            let files = files_below(&dir.join(leftover));
            if !files.is_empty() {
                return Some(format!("worker-{number} has {files:?}"));
            }
        }
    }
    None
}

/// The segments of all tables, and how many shards lack a replica.
async fn named(
    client: &mut Client,
    workers: usize,
) -> Result<(BTreeSet<String>, i64), shoal_benches::ClientError> {
    let names = client.text("SELECT segment FROM system.segments").await?;
    let missing =
        client.number(&format!("SELECT count(*) FROM system.shards WHERE replicas_live < {workers}")).await?;
    Ok((names.lines().map(str::to_owned).collect(), missing))
}
