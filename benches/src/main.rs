//! `shoal-benches`: runs a benchmark against a real cluster of this build.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shoal_benches::peers::PeerCommand;
use shoal_benches::{
    chaos, crowd, failover, grow, growth, ingest, leader, peers, point, repair, rot, scale, scan, tpch,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Shoal side by side with its peers, on this machine, in one run.
///
/// The last line of each benchmark is `name key=value ...`, for scripts.
#[derive(Debug, Parser)]
#[command(name = "shoal-benches", version)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// All 22 queries of TPC-H, every answer checked
    Tpch(tpch::TpchArgs),
    /// COPY of lineitem with three replicas, against DataFusion writing one copy
    Ingest(ingest::IngestArgs),
    /// Lookups of single rows by shard key, at 1, 16 and 64 clients; small queries; and one that is answered with a kept result
    Point(point::PointArgs),
    /// Lookups, small aggregates and TPC-H at the same time, from 1 to 1,000 clients; and 1,000 connections that do nothing
    Load(crowd::LoadArgs),
    /// A whole table streamed out through Flight
    Scan(scan::ScanArgs),
    /// A mixed load while workers are killed, frozen, slowed, cut off, filled up and corrupted, and coordinators, too; every answer checked
    Chaos(chaos::ChaosArgs),
    /// Thousands of bytes changed on the workers' disks; every one must be noticed and mended
    Rot(rot::RotArgs),
    /// TPC-H with a worker killed, cut off or frozen half way, and what failover costs otherwise
    Failover(failover::FailoverArgs),
    /// The coordinator that leads killed again and again: how soon changes are accepted, and what queries at the others feel
    Leader(leader::LeaderArgs),
    /// A worker killed for good: how fast its shards are copied, beside plain copying, and what queries feel
    Repair(repair::RepairArgs),
    /// One more worker, until all hold as much; then every process restarted, one after the other; under queries
    Grow(grow::GrowArgs),
    /// CPU seconds and bytes moved for TPC-H with 1 to 16 workers, and what it would take on separate machines
    Growth(growth::GrowthArgs),
    /// What a coordinator needs for many workers and segments, and what breaks first
    Scale(scale::ScaleArgs),
    /// A process that a benchmark starts
    #[command(hide = true)]
    Peer {
        #[command(subcommand)]
        peer: PeerCommand,
    },
}

fn main() -> ExitCode {
    // Nodes of a benchmark's cluster are this executable again.
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|first| first == "shoal") {
        return shoal::main_with_args(args.into_iter().skip(1));
    }
    let args = Args::parse_from(args);
    match run(args.bench) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(bench: Bench) -> anyhow::Result<bool> {
    if let Bench::Peer { peer } = bench {
        return peers::serve(&peer).map(|()| true);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match bench {
            Bench::Tpch(args) => tpch::run(&args).await,
            Bench::Ingest(args) => ingest::run(&args).await,
            Bench::Point(args) => point::run(&args).await,
            Bench::Load(args) => crowd::run(&args).await,
            Bench::Scan(args) => scan::run(&args).await,
            Bench::Chaos(args) => chaos::run(&args).await,
            Bench::Rot(args) => rot::run(&args).await,
            Bench::Failover(args) => failover::run(&args).await,
            Bench::Leader(args) => leader::run(&args).await,
            Bench::Repair(args) => repair::run(&args).await,
            Bench::Grow(args) => grow::run(&args).await,
            Bench::Growth(args) => growth::run(&args).await,
            Bench::Scale(args) => scale::run(&args).await,
            Bench::Peer { .. } => Ok(true),
        }
    })
}
