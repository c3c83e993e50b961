//! `shoal-benches repair`: one worker is killed for good, and its shards are
//! copied to others. How fast that is beside plain copying of the same files,
//! what queries feel of it meanwhile, and both again with nothing else to do.

mod phase;
mod plain_copy;
mod warm_memory;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cluster::ClusterOptions;
use crate::load::{Doors, Load, Questions, settle, start_loaded};
use crate::report::{Bar, Summary, at_least, median, missed, say, write_json};
use crate::tpch_data::{TpchData, data_root};
use phase::{Phase, Repaired};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct RepairArgs {
    /// TPC-H scale factor; with 1 it is about how soon copies begin and end, with more about how fast they are
    #[arg(long, default_value_t = 5.0)]
    pub scale: f64,
    /// Workers of the cluster, of which two are killed: five or more
    #[arg(long, default_value_t = 5)]
    pub workers: usize,
    /// Shards of each large table
    #[arg(long, default_value_t = 20)]
    pub shards: u32,
    /// Clients that ask queries
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// How long the queries are measured before
    #[arg(long, default_value_t = 20.0)]
    pub seconds: f64,
    /// After so long a worker that is away is given up
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub dead_after: String,
    /// Let each worker copy so many bytes a second of what has too few copies; 0: as many as it can
    #[arg(long, value_name = "BYTES")]
    pub repair_rate: Option<String>,
    /// How often all of it, each time with a new cluster; the medians count
    #[arg(long, default_value_t = 1)]
    pub runs: usize,
    /// Fail where ratio_copy or ratio_copy_quiet is less than this
    #[arg(long, value_name = "RATIO", default_value_t = 0.6)]
    pub ratio_copy_min: f64,
    /// Fail where p99_ratio is more than this
    #[arg(long, value_name = "RATIO", default_value_t = 1.3)]
    pub p99_ratio_max: f64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    /// Beside queries.
    loaded: Repaired,
    /// With nothing else to do.
    quiet: Repaired,
    normal_p99_ms: f64,
    repair_p99_ms: f64,
    /// While files were copied plainly.
    copy_p99_ms: f64,
    failed: usize,
    wrong: usize,
}

/// Runs it; false after a query that failed or was wrong, and where a bar was
/// missed.
///
/// # Errors
/// When something cannot be started, or the repair does not end.
pub async fn run(args: &RepairArgs) -> Result<bool> {
    ensure!(args.workers >= 5, "--workers is 5 or more: two are killed, and each shard has three copies");
    ensure!(args.runs > 0 && args.clients > 0, "--runs and --clients are 1 or more");
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut all = Vec::new();
    for number in 1..=args.runs {
        let measured = measure(args, &data).await.with_context(|| format!("run {number}"))?;
        all.push(measured);
    }
    if let Some(path) = &args.json {
        write_json(path, &all)?;
    }
    Ok(report(args, &all))
}

async fn measure(args: &RepairArgs, data: &TpchData) -> Result<Measured> {
    let mut options = ClusterOptions::for_bench(args.workers, data)?;
    options.coordinator_args = vec!["--dead-after".to_owned(), args.dead_after.clone()];
    if let Some(rate) = &args.repair_rate {
        options.coordinator_args.extend(["--repair-rate".to_owned(), rate.clone()]);
    }
    let (cluster, mut client) = start_loaded(&options, data, args.shards).await?;
    let questions = Arc::new(Questions::ask_first(&mut client, args.scale).await?);
    let doors = Arc::new(Doors::of(&cluster)?);

    let (load, normal_from) = Load::begin_measured(&doors, &questions, args.clients, args.seconds).await;
    let normal_to = Instant::now();

    let dead_after = humantime::parse_duration(&args.dead_after).context("--dead-after")?;
    let dies = |dead: String, workers_left: usize| Phase {
        cluster: Arc::clone(&cluster),
        dead,
        workers_left,
        dead_after,
    };
    let phase = dies(format!("worker-{}", args.workers), args.workers - 1);
    let loaded = phase.repair(&mut client).await?;
    say(format!("beside queries: {loaded}"));
    settle(&mut client).await?;
    let copied_from = Instant::now();
    let loaded = phase.compare(loaded).await?;
    let copied_to = Instant::now();
    // Only now all that was on its way has been answered.
    let (tally, _detours) = load.end().await?;
    let normal = tally.meanwhile(normal_from, normal_to);
    let during = tally.meanwhile(loaded.began, loaded.ended);
    let beside_copy = tally.meanwhile(copied_from, copied_to);
    for (when, asked) in
        [("before", &normal), ("during the repair", &during), ("during the copying", &beside_copy)]
    {
        say(format!("{when}: {}", asked.describe()));
    }

    settle(&mut client).await?;
    let phase = dies(format!("worker-{}", args.workers - 1), args.workers - 2);
    let quiet = phase.repair(&mut client).await?;
    say(format!("with nothing else to do: {quiet}"));
    settle(&mut client).await?;
    let quiet = phase.compare(quiet).await?;
    Ok(Measured {
        loaded,
        quiet,
        normal_p99_ms: normal.p99_ms(),
        repair_p99_ms: during.p99_ms(),
        copy_p99_ms: beside_copy.p99_ms(),
        failed: tally.failed(),
        wrong: tally.wrong(),
    })
}

fn report(args: &RepairArgs, all: &[Measured]) -> bool {
    let of = |get: fn(&Measured) -> f64| median(&all.iter().map(get).collect::<Vec<_>>());
    let ratio_copy = of(|one| one.loaded.ratio_copy());
    let ratio_copy_quiet = of(|one| one.quiet.ratio_copy());
    let p99_ratio = of(|one| one.repair_p99_ms / one.normal_p99_ms);
    let failed: usize = all.iter().map(|one| one.failed).sum();
    let wrong: usize = all.iter().map(|one| one.wrong).sum();
    let mut lines = missed(&[Bar::new("p99_ratio", p99_ratio, Some(args.p99_ratio_max))]);
    lines.extend(at_least("ratio_copy", ratio_copy, args.ratio_copy_min));
    lines.extend(at_least("ratio_copy_quiet", ratio_copy_quiet, args.ratio_copy_min));
    for line in &lines {
        say(line);
    }
    Summary::new("repair")
        .with("scale", args.scale)
        .with("workers", args.workers)
        .with_number("bytes_mb", of(|one| one.loaded.megabytes()))
        .with_number("seconds", of(|one| one.loaded.seconds()))
        .with_number("mb_per_s", of(|one| one.loaded.mb_per_s()))
        .with_number("copy_mb_per_s", of(|one| one.loaded.copy_mb_per_s))
        .with_number("ratio_copy", ratio_copy)
        .with_number("p99_ratio", p99_ratio)
        .with_number("p99_ratio_copy", of(|one| one.copy_p99_ms / one.normal_p99_ms))
        .with_number("seconds_quiet", of(|one| one.quiet.seconds()))
        .with_number("mb_per_s_quiet", of(|one| one.quiet.mb_per_s()))
        .with_number("copy_mb_per_s_quiet", of(|one| one.quiet.copy_mb_per_s))
        .with_number("ratio_copy_quiet", ratio_copy_quiet)
        .with("failed", failed)
        .with("wrong", wrong)
        .print();
    lines.is_empty() && failed == 0 && wrong == 0
}
