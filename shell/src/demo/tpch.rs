//! The tables of TPC-H: made with SQL, filled by bulk ingest, like anybody's.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow};
use arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt, stream};
use shoal_data::sample::{TpchTable, tpch_batches};
use shoal_data::table::SHARDS_DEFAULT;
use shoal_proto::WriteId;
use tokio::sync::mpsc;

use super::bars::Bars;
use super::kept::Kept;
use crate::client::{Client, ClientError, IngestTarget};

/// Tables that are sent at once.
const TABLES_AT_ONCE: usize = 2;
/// Batches that are generated ahead of what was sent.
const BATCHES_AHEAD: usize = 4;

/// Makes all eight tables anew and fills them; how many rows they have.
/// `there` are the tables that an earlier run left half-way.
pub(super) async fn load(
    client: &Client,
    scale: f64,
    kept: &Kept,
    there: &BTreeSet<String>,
    bars: &Bars,
) -> Result<u64> {
    // Every worker gets as many shards as every other.
    let shards = SHARDS_DEFAULT.div_ceil(kept.workers) * kept.workers;
    for table in TpchTable::ALL {
        let making = || format!("cannot make the table {table}");
        if there.contains(table.name()) {
            client.update(&format!("DROP TABLE {table}")).await.with_context(making)?;
        }
        client.update(&table.create_statement(shards, Some(kept.replicas))).await.with_context(making)?;
    }
    // The largest first: it decides when all are done.
    stream::iter(TpchTable::ALL.into_iter().rev())
        .map(|table| async move {
            fill(client, table, scale, bars).await.with_context(|| format!("cannot load the table {table}"))
        })
        .buffer_unordered(TABLES_AT_ONCE)
        .try_fold(0, |total, rows| async move { Ok(total + rows) })
        .await
}

async fn fill(client: &Client, table: TpchTable, scale: f64, bars: &Bars) -> Result<u64> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    let generator = tokio::task::spawn_blocking(move || {
        let batches = tpch_batches(table, scale, 0, 1).map(Some);
        for batch in batches.chain([None]) {
            if sender.blocking_send(batch).is_err() {
                // The ingest failed and says so itself.
                return;
            }
        }
    });
    let bar = bars.table(table.name(), Some(table.rows(scale)));
    let sent = bar.clone();
    let batches = stream::try_unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Some(batch)) => Ok(Some((batch?, receiver))),
            Some(None) => Ok(None),
            // Without its mark the end is none: what came so far must not be committed.
            None => Err(ClientError::Content("the generator stopped half-way".to_owned())),
        }
    })
    .inspect_ok(move |batch: &RecordBatch| sent.inc(batch.num_rows() as u64));
    let target = IngestTarget { table: table.name().to_owned(), ..IngestTarget::default() };
    let rows = client.ingest(&target, &WriteId::random(), batches).await?;
    bar.finish();
    generator.await.map_err(|error| anyhow!("the generator of {table} failed: {error}"))?;
    Ok(u64::try_from(rows).unwrap_or_default())
}
