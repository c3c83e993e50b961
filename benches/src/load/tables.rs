//! A cluster with the tables of TPC-H in it, and the wait until its shards lie
//! still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_data::sample::TpchTable;

use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::tpch_data::TpchData;

/// Copies of each shard.
const REPLICAS: u32 = 3;
/// Counts the copies that are still to come.
pub const MOVES: &str = "SELECT count(*) FROM system.moves";
/// Shards lie still when none has moved for so long: they are looked after once
/// in a second.
const STILL_FOR: Duration = Duration::from_secs(3);
/// How long that may take.
const SETTLED_WITHIN: Duration = Duration::from_secs(600);
/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Makes all tables and loads them; the seconds that it took. Where `replicas` is
/// none, the cluster says how many copies there are.
///
/// # Errors
/// When a table cannot be loaded.
pub async fn load_tables(
    client: &mut Client,
    data: &TpchData,
    shards: u32,
    replicas: Option<u32>,
) -> Result<f64> {
    let began = Instant::now();
    for table in TpchTable::ALL {
        client.update(&table.create_statement(shards, replicas)).await?;
        client.update(&data.copy_statement(table)).await.with_context(|| format!("load {table}"))?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Starts a cluster and loads all tables into it, three copies of each shard;
/// a session with its first coordinator.
///
/// # Errors
/// When a node does not come up, or a table cannot be loaded.
pub async fn start_loaded(
    options: &ClusterOptions,
    data: &TpchData,
    shards: u32,
) -> Result<(Arc<Cluster>, Client)> {
    let cluster = Arc::new(Cluster::start(options)?);
    let mut client = cluster.connect().await?;
    load_tables(&mut client, data, shards, Some(REPLICAS)).await?;
    settle(&mut client).await?;
    Ok((cluster, client))
}

/// Waits until shards lie still.
///
/// # Errors
/// When they still move after ten minutes.
pub async fn settle(client: &mut Client) -> Result<()> {
    let began = Instant::now();
    let mut still_since = began;
    while still_since.elapsed() < STILL_FOR {
        ensure!(began.elapsed() < SETTLED_WITHIN, "shards still move after {SETTLED_WITHIN:?}");
        if client.number(MOVES).await? > 0 {
            still_since = Instant::now();
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Bytes of all copies on each of these workers.
///
/// # Errors
/// When the coordinator does not say.
pub async fn bytes_on_each(client: &mut Client, workers: &[String]) -> Result<Vec<i64>> {
    let mut bytes = Vec::new();
    for worker in workers {
        let sum = format!(
            "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM system.segments \
             WHERE array_has(replicas, '{worker}')"
        );
        bytes.push(client.number(&sum).await?);
    }
    Ok(bytes)
}
