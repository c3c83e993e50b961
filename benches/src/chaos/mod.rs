//! `shoal-benches chaos`: a mixed load on a real cluster while its workers are
//! killed, frozen, slowed and cut off, bytes on their disks changed, and the
//! disks filled up. Where there are several coordinators, a minority of them is
//! killed, frozen and cut off, too. Every answer is compared with the oracle's,
//! and every acknowledged row is counted at the end. Without faults, no worker
//! may be taken for lost, however busy all are.

mod asker;
mod chart;
mod coordinators;
mod faults;
mod load;
mod log;
mod outcome;
mod run;
mod steps;
mod victims;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, ClusterOptions};
use crate::load::load_tables;
use crate::report::{Summary, say};
use crate::small_disk::SmallDisk;
use crate::tpch_data::{TpchData, data_root};
use coordinators::Coordinators;
use faults::{Fault, Struck};
use load::Load;
use log::Log;
use outcome::Outcome;
use run::Run;

/// The disk that each worker has for itself: so much, and more for each unit
/// of scale. Nothing but a fault should fill it.
const DISK_BYTES_MIN: u64 = 256 << 20;
const DISK_BYTES_PER_SCALE: f64 = 4e9;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct ChaosArgs {
    /// Chooses the faults, their moments and the load: the same seed, the same choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long
    #[arg(long, default_value_t = 3.0)]
    pub minutes: f64,
    /// Workers of the cluster
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Coordinators of the cluster; of three and more, a minority at a time suffers, too
    #[arg(long, default_value_t = 1)]
    pub coordinators: usize,
    /// Copies of each shard
    #[arg(long, default_value_t = 3)]
    pub replicas: u32,
    /// TPC-H scale factor of the tables that are queried
    #[arg(long, default_value_t = 0.1)]
    pub scale: f64,
    /// Clients that ask at once, beside those that write and scan
    #[arg(long, default_value_t = 2)]
    pub clients: usize,
    /// The kinds of faults; all of them if none is named
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "no_faults")]
    pub faults: Vec<Fault>,
    /// Strike nobody: then no worker may be taken for lost
    #[arg(long)]
    pub no_faults: bool,
    /// Have one more worker join, and one be drained, about once a minute
    #[arg(long)]
    pub joins: bool,
    /// Drain one worker after the other for some seconds, and take that back
    #[arg(long)]
    pub drains: bool,
    /// Have shards evened out every few seconds
    #[arg(long)]
    pub rebalances: bool,
    /// Give workers up that are away for so long, so that shards move all the time
    #[arg(long, value_name = "DURATION")]
    pub dead_after: Option<String>,
    /// Write each fault and each answer here, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Draw the time of each answer, and the faults, into this SVG file
    #[arg(long, value_name = "FILE")]
    pub chart: Option<PathBuf>,
}

/// Runs it; false after one wrong answer, lost row, failed query, crash or
/// false alarm, and where nothing was asked or nobody struck.
///
/// # Errors
/// When something cannot be started.
pub async fn run(args: &ChaosArgs) -> Result<bool> {
    ensure!(args.coordinators > 0, "--coordinators is 1 or more");
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.coordinators = args.coordinators;
    options.links = true;
    options.coordinator_args.push("--compaction=on".to_owned());
    if let Some(dead_after) = &args.dead_after {
        options.coordinator_args.extend(["--dead-after".to_owned(), dead_after.clone()]);
    }
    let mut faults = match (args.no_faults, args.faults.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => Fault::all(),
        (false, false) => args.faults.clone(),
    };
    if faults.contains(&Fault::DiskFull) {
        match SmallDisk::refusal() {
            None => options.disk_bytes = Some(DISK_BYTES_MIN + (args.scale * DISK_BYTES_PER_SCALE) as u64),
            Some(why) => {
                say(format!("no disk is filled up, because none can be mounted here: {why}"));
                faults.retain(|fault| *fault != Fault::DiskFull);
            }
        }
    }
    ensure!(args.no_faults || !faults.is_empty(), "none of the faults can strike here");
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    load_tables(&mut client, &data, 8, Some(args.replicas)).await?;
    let log = Arc::new(Log::new(args.log.as_deref())?);
    let coordinators = Arc::new(Coordinators::of(&cluster)?);
    let load = Arc::new(Load::new(&data, Arc::clone(&coordinators), Arc::clone(&log)).await?);
    say(format!(
        "seed {}: {} workers, {} replicas, {} clients, {} minutes",
        args.seed, args.workers, args.replicas, args.clients, args.minutes
    ));

    let lasting = Duration::from_secs_f64(args.minutes * 60.0);
    let run = Arc::new(Run::begin(Arc::clone(&cluster), coordinators, log, lasting));
    let mut tasks = load.start(args, &run);
    let struck = disturbed(&run, &load, args, &faults).await?;
    while let Some(done) = tasks.join_next().await {
        done.context("a client stopped")??;
    }
    let lost = load.count_rows().await?;
    let crashed = cluster.crashed();
    let totals = run.log.totals();
    let times_lost = "SELECT CAST(sum(times_lost) AS BIGINT) FROM system.workers";
    let times_lost = run.coordinators.sum(times_lost).await?;
    let moved = run.coordinators.sum("SELECT count(*) FROM system.events WHERE kind = 'moved'").await?;
    let outcome = Outcome {
        queries: totals.answers.len(),
        wrong: totals.wrong(),
        failed: totals.failed(),
        lost,
        crashed,
        struck,
        no_faults: args.no_faults,
        times_lost,
    };
    let causes = outcome.causes();
    if !causes.is_empty() {
        say(cluster.log_tails());
    }
    say(totals.table());
    for cause in &causes {
        say(format!("not well: {cause}"));
    }
    if let Some(remark) = struck.remark() {
        say(remark);
    }
    if let Some(path) = &args.chart {
        chart::write(path, &format!("chaos, seed {}", args.seed), &totals)?;
    }
    let mut summary = Summary::new("chaos")
        .with("seed", args.seed)
        .with("minutes", args.minutes)
        .with("faults", struck.faults)
        .with("queries", outcome.queries)
        .with("wrong", outcome.wrong)
        .with("lost", outcome.lost)
        .with("failed", outcome.failed)
        .with("worst_ms", format!("{:.0}", totals.worst_ms()));
    if args.dead_after.is_some() {
        // The newest events only are kept.
        summary = summary.with("moved_lately", moved);
    }
    if struck.faults == 0 {
        summary = summary.with("false_alarms", outcome.false_alarms());
    }
    if args.coordinators > 1 {
        summary = summary.with("coordinators", args.coordinators).with("on_struck", totals.on_struck);
    }
    summary.print();
    Ok(causes.is_empty())
}

/// Strikes nodes, and has workers come and go and shards move, until the run is
/// over; ends it early where that fails.
async fn disturbed(run: &Arc<Run>, load: &Load, args: &ChaosArgs, faults: &[Fault]) -> Result<Struck> {
    let seed = args.seed;
    let mut strikers: JoinSet<Result<Struck>> = JoinSet::new();
    strikers.spawn_blocking({
        let (run, faults) = (Arc::clone(run), faults.to_vec());
        move || faults::strike_workers(&run, seed, &faults)
    });
    let of_coordinators = faults.iter().copied().filter(|fault| fault.befalls_coordinators());
    let of_coordinators: Vec<Fault> = of_coordinators.collect();
    let at_a_time = if of_coordinators.is_empty() { 0 } else { run.coordinators.minority() };
    if args.coordinators > 1 && !args.no_faults {
        say(format!("{at_a_time} of {} coordinators suffer at a time", args.coordinators));
    }
    for number in 0..at_a_time as u64 {
        let (run, faults) = (Arc::clone(run), of_coordinators.clone());
        let seed = seed.wrapping_mul(1000).wrapping_add(2000 + number);
        strikers.spawn_blocking(move || run.coordinators.suffer(&run, seed, &faults));
    }
    if args.joins {
        let (run, asker) = (Arc::clone(run), load.asker(args.clients + 2));
        let seed = seed.wrapping_mul(1000).wrapping_add(3000);
        strikers.spawn_blocking(move || {
            workers::come_and_go(&run, seed, asker)?;
            Ok(Struck::default())
        });
    }
    if args.drains {
        let (run, asker) = (Arc::clone(run), load.asker(args.clients + 3));
        let seed = seed.wrapping_mul(1000).wrapping_add(4000);
        strikers.spawn_blocking(move || {
            steps::drain(&run, seed, asker);
            Ok(Struck::default())
        });
    }
    if args.rebalances {
        let (run, asker) = (Arc::clone(run), load.asker(args.clients + 4));
        let seed = seed.wrapping_mul(1000).wrapping_add(5000);
        strikers.spawn_blocking(move || {
            steps::rebalance(&run, seed, asker);
            Ok(Struck::default())
        });
    }
    let mut struck = Struck::default();
    let mut failure = None;
    while let Some(done) = strikers.join_next().await {
        match done.context("the faults stopped").flatten() {
            Ok(others) => struck.add_all(others),
            Err(error) => {
                run.end();
                failure = failure.or(Some(error));
            }
        }
    }
    run.end();
    failure.map_or(Ok(struck), Err)
}
