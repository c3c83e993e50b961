//! `shoal-benches point`: rows by shard key, at 1, 16 and 64 clients, against
//! single-process DataFusion behind the same Flight encoding.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arrow::record_batch::RecordBatch;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use shoal_data::sample::TpchTable;

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

#[derive(Clone, Copy, Debug, Serialize)]
struct Level {
    clients: usize,
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
        let shoal = level(&cluster.url(), clients, args).await.context("shoal")?;
        let datafusion = level(peer.url(), clients, args).await.context("datafusion")?;
        for (name, level) in [("shoal", shoal), ("datafusion", datafusion)] {
            say(format!(
                "{clients:>3} clients {name:>10}: {:>8.0} lookups/s, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms",
                level.per_second, level.p50_ms, level.p90_ms, level.p99_ms
            ));
        }
        report.shoal.push(shoal);
        report.datafusion.push(datafusion);
    }
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let mut summary = Summary::new("point").with("scale", args.scale).with("workers", args.workers);
    for (shoal, datafusion) in report.shoal.iter().zip(&report.datafusion) {
        let clients = shoal.clients;
        summary = summary
            .with_number(&format!("p50_ms_{clients}"), shoal.p50_ms)
            .with_number(&format!("p99_ms_{clients}"), shoal.p99_ms)
            .with(&format!("rate_{clients}"), format!("{:.0}", shoal.per_second))
            .with_number(&format!("ratio_rate_{clients}"), shoal.per_second / datafusion.per_second);
    }
    summary.print();
    Ok(true)
}

/// So many clients that look up random orders for a while.
async fn level(url: &str, clients: usize, args: &PointArgs) -> Result<Level> {
    let orders = TpchTable::Orders.rows(args.scale);
    let mut sessions = Vec::new();
    for number in 0..clients {
        let mut client = Client::connect(url).await?;
        let mut keys = Keys::new(args.seed.wrapping_add(number as u64), orders);
        for _ in 0..WARM_UP {
            look_up(&mut client, keys.next()).await?;
        }
        sessions.push((client, keys));
    }
    let started = Instant::now();
    let deadline = started + Duration::from_secs_f64(args.seconds);
    let tasks: Vec<_> = sessions
        .into_iter()
        .map(|(mut client, mut keys)| {
            tokio::spawn(async move {
                let mut ms = Vec::new();
                while Instant::now() < deadline {
                    let asked = Instant::now();
                    look_up(&mut client, keys.next()).await?;
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
        lookups: ms.len(),
        per_second: ms.len() as f64 / seconds,
        p50_ms: percentile(&ms, 0.5),
        p90_ms: percentile(&ms, 0.9),
        p99_ms: percentile(&ms, 0.99),
    })
}

async fn look_up(client: &mut Client, key: u64) -> Result<()> {
    let batches = client.query(&format!("SELECT * FROM orders WHERE o_orderkey = {key}")).await?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    ensure!(rows == 1, "{rows} rows for order {key}");
    Ok(())
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
