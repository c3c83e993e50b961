//! `shoal-benches ingest`: COPY of `lineitem` into three replicas, against
//! single-process DataFusion that writes one Parquet copy with the same
//! settings, and with its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use shoal_data::sample::TpchTable;

use crate::cluster::{Cluster, ClusterOptions};
use crate::peers::{ChildPeer, Peer};
use crate::process::{cores, peak_bytes, reset_peak};
use crate::report::{Summary, median, say, write_json};
use crate::tpch::plain_files;
use crate::tpch_data::{TpchData, data_root};

/// What segments are written with (`shoal_data::segment_writer`), as options
/// of DataFusion's COPY.
const PARQUET_OPTIONS: &str = "'format.compression' 'lz4_raw', 'format.max_row_group_size' '131072', \
     'format.data_page_row_count_limit' '8192', 'format.statistics_enabled' 'page', \
     'format.bloom_filter_on_write' 'false', \
     'format.dictionary_enabled::l_comment' 'false', 'format.encoding::l_comment' 'delta_length_byte_array'";
/// Columns whose values segments have as packed differences, not compressed.
const PACKED_COLUMNS: [&str; 9] = [
    "l_orderkey",
    "l_partkey",
    "l_suppkey",
    "l_extendedprice",
    "l_discount",
    "l_tax",
    "l_shipdate",
    "l_commitdate",
    "l_receiptdate",
];

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct IngestArgs {
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
    /// Copies of each shard
    #[arg(long, default_value_t = 3)]
    pub replicas: u32,
    /// Loads of each side, one after the other
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: i64,
    shoal_s: Vec<f64>,
    datafusion_s: Vec<f64>,
    /// The same, but sorted by the table's sort key before it is written.
    datafusion_sorted_s: Vec<f64>,
    /// As they come, written as DataFusion does where nobody says how.
    datafusion_defaults_s: Vec<f64>,
    cpu_s: f64,
    /// Of the node that held most.
    peak_process_mb: f64,
}

/// Runs it.
///
/// # Errors
/// When a load fails or rows are missing.
pub async fn run(args: &IngestArgs) -> Result<bool> {
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.threads = args.threads;
    // As DataFusion does, workers read the files themselves.
    options.worker_args.push(format!("--import-root={}", data.dir().display()));
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;

    let cores = cores();
    let mut peer = ChildPeer::datafusion("datafusion", cores, &plain_files(&data))?;
    let table = TpchTable::Lineitem;
    let expected = checksum_of(&mut peer, table).await?;
    let output = tempfile::tempdir_in(data_root())?;
    let file = output.path().join("copy.parquet");
    let copy = |source: &str, options: &str| {
        format!("COPY ({source}) TO '{}' STORED AS PARQUET {options}", file.display())
    };
    let packed = PACKED_COLUMNS.map(|column| {
        format!(
            ", 'format.dictionary_enabled::{column}' 'false', \
             'format.encoding::{column}' 'delta_binary_packed', \
             'format.compression::{column}' 'uncompressed'"
        )
    });
    let same_options = format!("OPTIONS ({PARQUET_OPTIONS}{})", packed.concat());
    let as_they_come = "SELECT * FROM lineitem";

    let mut report = Report {
        rows: expected.0,
        shoal_s: Vec::new(),
        datafusion_s: Vec::new(),
        datafusion_sorted_s: Vec::new(),
        datafusion_defaults_s: Vec::new(),
        cpu_s: 0.0,
        peak_process_mb: 0.0,
    };
    for run in 1..=args.runs {
        for (source, options, seconds) in [
            (as_they_come, same_options.as_str(), &mut report.datafusion_s),
            (
                "SELECT * FROM lineitem ORDER BY l_shipdate",
                same_options.as_str(),
                &mut report.datafusion_sorted_s,
            ),
            (as_they_come, "", &mut report.datafusion_defaults_s),
        ] {
            seconds.push(peer.run(&copy(source, options), false).await?.seconds);
            std::fs::remove_file(&file)?;
        }
        client.update(&table.create_statement(args.shards, Some(args.replicas))).await?;
        for pid in cluster.pids() {
            reset_peak(pid)?;
        }
        let cpu_before = cluster.cpu_seconds();
        let started = Instant::now();
        let rows = client.update(&data.copy_statement(table)).await?;
        report.shoal_s.push(started.elapsed().as_secs_f64());
        report.cpu_s += (cluster.cpu_seconds() - cpu_before) / args.runs as f64;
        let peak = cluster.pids().into_iter().map(peak_bytes).max().unwrap_or(0);
        report.peak_process_mb = report.peak_process_mb.max(peak as f64 / 1e6);
        ensure!(rows == expected.0, "COPY says {rows} rows, the files have {}", expected.0);
        let loaded = (
            client.number("SELECT count(*) FROM lineitem").await?,
            client.number("SELECT sum(l_partkey) FROM lineitem").await?,
        );
        ensure!(loaded == expected, "count and sum are {loaded:?} and should be {expected:?}");
        client.update("DROP TABLE lineitem").await?;
        let last = |seconds: &[f64]| seconds.last().copied().unwrap_or(f64::NAN);
        say(format!(
            "run {run}: shoal {:.2} s, datafusion {:.2} s, sorted {:.2} s, with its defaults {:.2} s",
            last(&report.shoal_s),
            last(&report.datafusion_s),
            last(&report.datafusion_sorted_s),
            last(&report.datafusion_defaults_s)
        ));
    }
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let shoal = median(&report.shoal_s);
    Summary::new("ingest")
        .with("scale", args.scale)
        .with("workers", args.workers)
        .with("replicas", args.replicas)
        .with_number("seconds", shoal)
        .with("rows_per_s", format!("{:.0}", report.rows as f64 / shoal))
        .with_number("cpu_s", report.cpu_s)
        .with("peak_process_mb", format!("{:.0}", report.peak_process_mb))
        .with_number("ratio_datafusion", shoal / median(&report.datafusion_s))
        .with_number("ratio_datafusion_sorted", shoal / median(&report.datafusion_sorted_s))
        .with_number("ratio_datafusion_defaults", shoal / median(&report.datafusion_defaults_s))
        .print();
    Ok(true)
}

/// Rows and a sum over all of them, as the plain files have them.
async fn checksum_of(peer: &mut ChildPeer, table: TpchTable) -> Result<(i64, i64)> {
    let mut numbers = Vec::new();
    for expression in ["count(*)", "sum(l_partkey)"] {
        let execution = peer.run(&format!("SELECT {expression} FROM {table}"), true).await?;
        let number = execution.answer.and_then(|answer| answer.single_value()?.parse().ok());
        numbers.push(number.ok_or_else(|| anyhow::anyhow!("no number for {expression}"))?);
    }
    Ok((numbers[0], numbers[1]))
}
