//! Lookups of single rows by shard key, by so many clients for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use arrow::array::{ArrayRef, Int64Array};
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::client::PreparedStatement;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use shoal_data::sample::TpchTable;
use tonic::transport::Channel;

use super::PointArgs;
use crate::client::Client;
use crate::report::percentile;

/// Lookups of each client before they are timed.
const WARM_UP: usize = 20;

/// How a lookup is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asking {
    /// As a statement of its own, in two calls.
    Statement,
    /// Through one that was prepared, in three: its value is bound first.
    Prepared,
}

impl Asking {
    /// What the keys of the last line begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Statement => "",
            Self::Prepared => "prepared_",
        }
    }
}

/// What so many clients got.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Level {
    pub(super) clients: usize,
    pub(super) asking: Asking,
    pub(super) lookups: usize,
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
}

/// So many clients that look up random orders for a while.
///
/// # Errors
/// When a lookup fails or does not give its one row.
pub(super) async fn level(url: &str, clients: usize, asking: Asking, args: &PointArgs) -> Result<Level> {
    let orders = TpchTable::Orders.rows(args.scale);
    let mut askers = Vec::new();
    for number in 0..clients {
        let keys = Keys::new(args.seed.wrapping_add(number as u64), orders);
        let mut asker = Asker::connect(url, asking, keys).await?;
        for _ in 0..WARM_UP {
            asker.look_up().await?;
        }
        askers.push(asker);
    }
    let started = Instant::now();
    let deadline = started + Duration::from_secs_f64(args.seconds);
    let tasks: Vec<_> = askers
        .into_iter()
        .map(|mut asker| {
            tokio::spawn(async move {
                let mut ms = Vec::new();
                while Instant::now() < deadline {
                    let asked = Instant::now();
                    asker.look_up().await?;
                    ms.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                anyhow::Ok(ms)
            })
        })
        .collect();
    let mut ms = Vec::new();
    for task in tasks {
        ms.extend(task.await??);
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Level {
        clients,
        asking,
        lookups: ms.len(),
        per_second: ms.len() as f64 / seconds,
        p50_ms: percentile(&ms, 0.5),
        p90_ms: percentile(&ms, 0.9),
        p99_ms: percentile(&ms, 0.99),
    })
}

/// One client.
struct Asker {
    client: Client,
    prepared: Option<PreparedStatement<Channel>>,
    keys: Keys,
}

impl Asker {
    async fn connect(url: &str, asking: Asking, keys: Keys) -> Result<Self> {
        let mut client = Client::connect(url).await?;
        let prepared = match asking {
            Asking::Statement => None,
            Asking::Prepared => Some(client.prepare("SELECT * FROM orders WHERE o_orderkey = $1").await?),
        };
        Ok(Self { client, prepared, keys })
    }

    async fn look_up(&mut self) -> Result<()> {
        let key = self.keys.next();
        let batches = match &mut self.prepared {
            None => self.client.query(&format!("SELECT * FROM orders WHERE o_orderkey = {key}")).await?,
            Some(prepared) => {
                let value: ArrayRef = Arc::new(Int64Array::from(vec![i64::try_from(key)?]));
                prepared.set_parameters(RecordBatch::try_from_iter([("$1", value)])?)?;
                let flight = prepared.execute().await?;
                self.client.fetch(flight).await?.1
            }
        };
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        ensure!(rows == 1, "{rows} rows for order {key}");
        Ok(())
    }
}

/// Keys of orders that exist.
pub(super) struct Keys {
    random: StdRng,
    orders: u64,
}

impl Keys {
    pub(super) fn new(seed: u64, orders: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), orders }
    }

    /// The generator numbers orders from 1 and uses 8 of each 32 keys.
    pub(super) fn next(&mut self) -> u64 {
        let order = self.random.random_range(1..=self.orders);
        order / 8 * 32 + order % 8
    }
}
