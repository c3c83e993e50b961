//! `shoal-benches grow`: one more worker joins under a load of queries, and gets
//! its share; then every process is stopped and started again, one after the
//! other, under the same load.

mod rolling;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::client::Client;
use crate::cluster::ClusterOptions;
use crate::load::{Detours, Doors, Load, MOVES, Questions, bytes_on_each, settle, start_loaded};
use crate::report::{Summary, say, write_json};
use crate::tpch_data::{TpchData, data_root};

/// What is most and least on a worker may differ by this part of the mean.
const SPREAD_MAX: f64 = 0.1;
/// How long it may take until the workers hold about as much.
const EVEN_WITHIN: Duration = Duration::from_secs(900);
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct GrowArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster before one more joins
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Coordinators of the cluster
    #[arg(long, default_value_t = 3)]
    pub coordinators: usize,
    /// Shards of each large table: three copies of each should be even on all workers
    #[arg(long, default_value_t = 20)]
    pub shards: u32,
    /// Clients that ask queries, dealt to the coordinators
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// How long the queries are measured before
    #[arg(long, default_value_t = 15.0)]
    pub seconds: f64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    grow_s: f64,
    spread: f64,
    normal_p99_ms: f64,
    grow_p99_ms: f64,
    grow_failed: usize,
    grow_wrong: usize,
    rolling_processes: usize,
    rolling_s: f64,
    rolling_p99_ms: f64,
    rolling_failed: usize,
    rolling_wrong: usize,
    refused: u64,
    repeated: u64,
    /// Of the whole run.
    queries: usize,
}

/// Runs it; false after a query that failed or was wrong.
///
/// # Errors
/// When something cannot be started or stopped, or the workers do not come to
/// hold as much.
pub async fn run(args: &GrowArgs) -> Result<bool> {
    ensure!(args.workers >= 4 && args.clients > 0, "--workers is 4 or more, --clients 1 or more");
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.coordinators = args.coordinators;
    let (cluster, mut client) = start_loaded(&options, &data, args.shards).await?;
    let questions = Arc::new(Questions::ask_first(&mut client, args.scale).await?);
    let doors = Arc::new(Doors::of(&cluster)?);

    let (load, normal_from) = Load::begin_measured(&doors, &questions, args.clients, args.seconds).await;
    let grow_from = Instant::now();
    let joining = tokio::task::spawn_blocking({
        let cluster = Arc::clone(&cluster);
        move || cluster.add_worker()
    });
    joining.await.context("no worker was added")??;
    let workers = cluster.worker_names();
    let spread = wait_until_even(&mut client, &workers).await?;
    let grow_to = Instant::now();
    settle(&mut client).await?;

    let rolling_from = Instant::now();
    let rolled = tokio::task::spawn_blocking({
        let (cluster, doors) = (Arc::clone(&cluster), Arc::clone(&doors));
        move || rolling::restart_all(&cluster, &doors)
    });
    let processes = rolled.await.context("the nodes were not restarted")??;
    let rolling_to = Instant::now();
    let (tally, Detours { refused, repeated }) = load.end().await?;

    let normal = tally.between(normal_from, grow_from);
    let growing = tally.between(grow_from, rolling_from);
    let rolling = tally.when(|at| at >= rolling_from);
    for (what, tally) in [("before", &normal), ("growing", &growing), ("rolling", &rolling)] {
        say(format!("{what}: {}", tally.describe()));
    }
    let measured = Measured {
        grow_s: (grow_to - grow_from).as_secs_f64(),
        spread,
        normal_p99_ms: normal.p99_ms(),
        grow_p99_ms: tally.between(grow_from, grow_to).p99_ms(),
        grow_failed: growing.failed(),
        grow_wrong: growing.wrong(),
        rolling_processes: processes,
        rolling_s: (rolling_to - rolling_from).as_secs_f64(),
        rolling_p99_ms: rolling.p99_ms(),
        rolling_failed: rolling.failed(),
        rolling_wrong: rolling.wrong(),
        refused,
        repeated,
        queries: tally.count(),
    };
    if let Some(path) = &args.json {
        write_json(path, &measured)?;
    }
    report(args, &measured);
    Ok(tally.failed() == 0 && tally.wrong() == 0)
}

fn report(args: &GrowArgs, measured: &Measured) {
    Summary::new("grow")
        .with("scale", args.scale)
        .with("workers", format!("{}+1", args.workers))
        .with_number("seconds", measured.grow_s)
        .with_number("spread", measured.spread)
        .with("failed", measured.grow_failed)
        .with("wrong", measured.grow_wrong)
        .with_number("p99_ratio", measured.grow_p99_ms / measured.normal_p99_ms)
        .print();
    Summary::new("rolling")
        .with("processes", measured.rolling_processes)
        .with_number("seconds", measured.rolling_s)
        .with("queries", measured.queries)
        .with("failed", measured.rolling_failed)
        .with("wrong", measured.rolling_wrong)
        .with("refused", measured.refused)
        .with("repeated", measured.repeated)
        .with_number("p99_ratio", measured.rolling_p99_ms / measured.normal_p99_ms)
        .print();
}

/// Waits until nothing moves and all workers hold about as many bytes; by which
/// part of the mean they differ then.
async fn wait_until_even(client: &mut Client, workers: &[String]) -> Result<f64> {
    let began = Instant::now();
    loop {
        let moves = client.number(MOVES).await?;
        let bytes = bytes_on_each(client, workers).await?;
        let spread = spread(&bytes);
        if moves == 0 && spread <= SPREAD_MAX {
            return Ok(spread);
        }
        ensure!(
            began.elapsed() < EVEN_WITHIN,
            "after {EVEN_WITHIN:?} {moves} copies are to come, and the workers hold {bytes:?} bytes"
        );
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// By which part of the mean the most and the least differ.
fn spread(bytes: &[i64]) -> f64 {
    let (Some(most), Some(least)) = (bytes.iter().max(), bytes.iter().min()) else { return f64::NAN };
    let mean = bytes.iter().sum::<i64>() as f64 / bytes.len() as f64;
    (most - least) as f64 / mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_the_gap_as_a_part_of_the_mean() {
        assert_eq!(spread(&[100, 100, 100]), 0.0);
        assert_eq!(spread(&[90, 100, 110]), 0.2);
        assert_eq!(spread(&[0, 0, 300]), 3.0);
        assert!(spread(&[]).is_nan());
    }
}
