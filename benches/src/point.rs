//! `shoal-benches point`: rows by shard key, at 1, 16 and 64 clients, each as a
//! statement of its own and through one that was prepared, against single-process
//! DataFusion behind the same Flight encoding.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Int64Array};
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::client::PreparedStatement;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use shoal_data::sample::TpchTable;
use tonic::transport::Channel;

use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::peers::FlightPeer;
use crate::report::{Summary, percentile, say, write_json};
use crate::tpch::plain_files;
use crate::tpch_data::{TpchData, data_root};

/// How many clients at once.
const CLIENTS: [usize; 3] = [1, 16, 64];
/// Lookups of each client before they are timed.
const WARM_UP: usize = 20;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct PointArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Threads of each worker
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Shards of the table
    #[arg(long, default_value_t = 8)]
    pub shards: u32,
    /// How long each number of clients asks
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seed of the keys
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How a lookup is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Asking {
    /// As a statement of its own, in two calls.
    Statement,
    /// Through one that was prepared, in three: its value is bound first.
    Prepared,
}

impl Asking {
    /// What the keys of the last line begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Statement => "",
            Self::Prepared => "prepared_",
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Level {
    clients: usize,
    asking: Asking,
    lookups: usize,
    per_second: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    scale: f64,
    seed: u64,
    shoal: Vec<Level>,
    datafusion: Vec<Level>,
}

/// Runs it.
///
/// # Errors
/// When a lookup fails or does not give its one row.
pub async fn run(args: &PointArgs) -> Result<bool> {
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.threads = args.threads;
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    client.update(&TpchTable::Orders.create_statement(args.shards, None)).await?;
    client.update(&data.copy_statement(TpchTable::Orders)).await?;

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let peer = FlightPeer::start(cores, &plain_files(&data))?;
    let mut report = Report { scale: args.scale, seed: args.seed, shoal: Vec::new(), datafusion: Vec::new() };
    for clients in CLIENTS {
        for asking in [Asking::Statement, Asking::Prepared] {
            let shoal = level(&cluster.url(), clients, asking, args).await.context("shoal")?;
            let datafusion = level(peer.url(), clients, asking, args).await.context("datafusion")?;
            for (name, level) in [("shoal", shoal), ("datafusion", datafusion)] {
                say(format!(
                    "{clients:>3} clients {name:>10} {asking:?}: {:>8.0} lookups/s, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms",
                    level.per_second, level.p50_ms, level.p90_ms, level.p99_ms
                ));
            }
            report.shoal.push(shoal);
            report.datafusion.push(datafusion);
        }
    }
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let mut summary = Summary::new("point").with("scale", args.scale).with("workers", args.workers);
    for (shoal, datafusion) in report.shoal.iter().zip(&report.datafusion) {
        let (prefix, clients) = (shoal.asking.prefix(), shoal.clients);
        let ratio_rate = shoal.per_second / datafusion.per_second;
        summary = summary
            .with_number(&format!("{prefix}p50_ms_{clients}"), shoal.p50_ms)
            .with_number(&format!("{prefix}p99_ms_{clients}"), shoal.p99_ms)
            .with(&format!("{prefix}rate_{clients}"), format!("{:.0}", shoal.per_second))
            .with_number(&format!("{prefix}ratio_rate_{clients}"), ratio_rate);
    }
    summary.print();
    Ok(true)
}

/// So many clients that look up random orders for a while.
async fn level(url: &str, clients: usize, asking: Asking, args: &PointArgs) -> Result<Level> {
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
struct Keys {
    random: StdRng,
    orders: u64,
}

impl Keys {
    fn new(seed: u64, orders: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), orders }
    }

    /// The generator numbers orders from 1 and uses 8 of each 32 keys.
    fn next(&mut self) -> u64 {
        let order = self.random.random_range(1..=self.orders);
        order / 8 * 32 + order % 8
    }
}
