//! `shoal-benches scan`: a whole table streamed out through Flight, against
//! single-process DataFusion behind the same Flight encoding.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use serde::Serialize;
use shoal_data::sample::TpchTable;

use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::peers::FlightPeer;
use crate::process::{cores, peak_bytes, reset_peak};
use crate::report::{Bar, Summary, median, missed, say, write_json};
use crate::tpch::plain_files;
use crate::tpch_data::{TpchData, data_root};

/// How often the first row is waited for, with failover on and off.
const FIRST_ROWS: usize = 21;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(300);

const SCAN: &str = "SELECT * FROM lineitem";

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct ScanArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Threads of each worker
    #[arg(long, default_value_t = cores())]
    pub threads: usize,
    /// Shards of the table
    #[arg(long, default_value_t = 8)]
    pub shards: u32,
    /// Scans of each side, one after the other, after one of each to warm up
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Fail where ratio_first_row is more than this
    #[arg(long, value_name = "RATIO")]
    pub ratio_first_row_max: Option<f64>,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: usize,
    shoal_rows_per_s: Vec<f64>,
    datafusion_rows_per_s: Vec<f64>,
    /// Milliseconds until the first rows, with failover on and off.
    first_row_ms_on: Vec<f64>,
    first_row_ms_off: Vec<f64>,
    coordinator_peak_mb: f64,
    peer_peak_mb: f64,
}

impl Report {
    fn ratio_first_row(&self) -> f64 {
        median(&self.first_row_ms_on) / median(&self.first_row_ms_off)
    }
}

fn bars(args: &ScanArgs, report: &Report) -> [Bar; 1] {
    [Bar::new("ratio_first_row", report.ratio_first_row(), args.ratio_first_row_max)]
}

/// Runs it; false where a bar was missed.
///
/// # Errors
/// When a scan fails or gives another number of rows.
pub async fn run(args: &ScanArgs) -> Result<bool> {
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.threads = args.threads;
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    client.update(&TpchTable::Lineitem.create_statement(args.shards, None)).await?;
    let loaded = client.update(&data.copy_statement(TpchTable::Lineitem)).await?;

    let cores = cores();
    let peer = FlightPeer::start(cores, &plain_files(&data))?;
    // A coordinator that has just loaded holds memory from that: only what
    // streaming takes is to be seen.
    cluster.restart("coordinator")?;
    cluster.wait_until_joined(args.workers)?;
    let coordinator = cluster.pid("coordinator")?;
    reset_peak(coordinator)?;
    let mut report = Report {
        rows: usize::try_from(loaded)?,
        shoal_rows_per_s: Vec::new(),
        datafusion_rows_per_s: Vec::new(),
        first_row_ms_on: Vec::new(),
        first_row_ms_off: Vec::new(),
        coordinator_peak_mb: 0.0,
        peer_peak_mb: 0.0,
    };
    for run in 0..=args.runs {
        let shoal = rows_per_second(&cluster.url(), report.rows).await.context("shoal")?;
        let datafusion = rows_per_second(peer.url(), report.rows).await.context("datafusion")?;
        say(format!("run {run}: shoal {shoal:.0} rows/s, datafusion {datafusion:.0} rows/s"));
        if run > 0 {
            report.shoal_rows_per_s.push(shoal);
            report.datafusion_rows_per_s.push(datafusion);
        }
    }
    for run in 0..FIRST_ROWS {
        // Which comes first would matter to what the caches hold.
        let order = if run % 2 == 0 { [true, false] } else { [false, true] };
        for failover in order {
            let ms = first_row_ms(&cluster.url(), failover).await?;
            if run > 0 {
                let all = if failover { &mut report.first_row_ms_on } else { &mut report.first_row_ms_off };
                all.push(ms);
            }
        }
    }
    report.coordinator_peak_mb = peak_bytes(coordinator) as f64 / 1e6;
    report.peer_peak_mb = peak_bytes(peer.pid()) as f64 / 1e6;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let missed = missed(&bars(args, &report));
    for line in &missed {
        say(line);
    }
    let shoal = median(&report.shoal_rows_per_s);
    Summary::new("scan")
        .with("scale", args.scale)
        .with("workers", args.workers)
        .with("rows", report.rows)
        .with("rows_per_s", format!("{shoal:.0}"))
        .with_number("ratio_rows_per_s", shoal / median(&report.datafusion_rows_per_s))
        .with_number("ratio_first_row", report.ratio_first_row())
        .with("coordinator_peak_mb", format!("{:.0}", report.coordinator_peak_mb))
        .with("datafusion_peak_mb", format!("{:.0}", report.peer_peak_mb))
        .print();
    Ok(missed.is_empty())
}

/// Until the first rows are there; then the client goes away.
async fn first_row_ms(url: &str, failover: bool) -> Result<f64> {
    let mut client = Client::connect(url).await?;
    client.update(&format!("SET shoal.failover = {failover}")).await?;
    let started = Instant::now();
    let mut stream = client.stream(SCAN).await?;
    while let Some(batch) = stream.try_next().await? {
        if batch.num_rows() > 0 {
            let elapsed = started.elapsed().as_secs_f64() * 1e3;
            drop(stream);
            // What is left of it on the workers must not slow the next one.
            tokio::time::sleep(PAUSE).await;
            return Ok(elapsed);
        }
    }
    anyhow::bail!("{SCAN} gave no rows")
}

async fn rows_per_second(url: &str, expected: usize) -> Result<f64> {
    let mut client = Client::connect(url).await?;
    let started = Instant::now();
    let mut stream = client.stream(SCAN).await?;
    let mut rows = 0;
    while let Some(batch) = stream.try_next().await? {
        rows += batch.num_rows();
    }
    let seconds = started.elapsed().as_secs_f64();
    ensure!(rows == expected, "{rows} rows instead of {expected}");
    Ok(rows as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        scan: ScanArgs,
    }

    #[test]
    fn the_first_row_may_be_so_late_and_no_later() {
        let report = Report {
            rows: 1,
            shoal_rows_per_s: Vec::new(),
            datafusion_rows_per_s: Vec::new(),
            first_row_ms_on: vec![30.0, 3.0, 31.0],
            first_row_ms_off: vec![20.0],
            coordinator_peak_mb: 0.0,
            peer_peak_mb: 0.0,
        };
        let lines = |flags: &[&str]| {
            let args = Line::parse_from(["scan"].iter().chain(flags)).scan;
            missed(&bars(&args, &report))
        };
        assert_eq!(lines(&[]), Vec::<String>::new());
        assert_eq!(lines(&["--ratio-first-row-max", "1.5"]), Vec::<String>::new());
        let beyond = lines(&["--ratio-first-row-max", "1.49"]);
        assert_eq!(beyond, ["missed: ratio_first_row is 1.500, and may be 1.49 at most"]);
    }
}
