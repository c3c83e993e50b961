//! `shoal-benches scale`: what a coordinator needs for a large catalog and many
//! workers, and what breaks first. The coordinator is a real process; the workers
//! join and beat as real ones do, and hold no rows.

mod fill;
mod measure;
mod stub;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Serialize;

use self::fill::{Filled, Wanted, fill, table_name};
use self::stub::{Counts, Running, Stub};
use crate::client::Client;
use crate::node::{Node, Program};
use crate::process::{cpu_seconds, open_many_files, peak_bytes, resident_bytes};
use crate::report::{Bar, Summary, median, missed, percentile, say, write_json};
use crate::tpch_data::data_root;

/// What planning, starting and memory may cost.
const PLAN_MS_MAX: f64 = 100.0;
const START_S_MAX: f64 = 5.0;
const MEMORY_MB_MAX: f64 = 2_048.0;
/// How long all workers may take to join.
const JOINED_WITHIN: Duration = Duration::from_secs(120);
/// How long all moves and copies may take, once workers are given up.
const MOVED_WITHIN: Duration = Duration::from_secs(300);
/// How often each query is planned.
const PLANS: usize = 9;
/// Schemas that are made and dropped.
const SCHEMAS: usize = 100;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct ScaleArgs {
    /// Workers that join and beat
    #[arg(long, default_value_t = 1_000)]
    pub workers: usize,
    /// Segments of all tables; with several numbers, one after the other until one is too many
    #[arg(long, value_delimiter = ',', default_value = "1000000")]
    pub segments: Vec<usize>,
    /// Tables; a tenth of the segments, 100000 at most, is in the first, on which queries are planned
    #[arg(long, default_value_t = 100)]
    pub tables: usize,
    /// Copies of each shard
    #[arg(long, default_value_t = 3)]
    pub replicas: u32,
    /// Workers that die at once
    #[arg(long, default_value_t = 50)]
    pub dead: usize,
    /// Seconds after which the coordinator gives a dead worker up
    #[arg(long, default_value_t = 20)]
    pub dead_after: u64,
    /// Seconds for which the coordinator is watched at rest
    #[arg(long, default_value_t = 20)]
    pub rest: u64,
    /// Seed of the statistics, and of who dies
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What was measured at one size; what could not be is no number.
#[derive(Clone, Debug, Serialize)]
struct Level {
    workers: usize,
    shards: u64,
    segments: usize,
    snapshot_mb: f64,
    file_mb: f64,
    /// The longest of the starts.
    start_s: f64,
    joined_s: f64,
    rejoined_s: f64,
    memory_mb: f64,
    memory_peak_mb: f64,
    /// CPU seconds in a second, at rest.
    cpu: f64,
    /// The longest that a beat waited for its answer, at rest.
    beat_ms: f64,
    /// Of a query whose filter leaves few segments.
    plan_ms: f64,
    /// Of a query that reads all segments.
    plan_all_ms: f64,
    command_ms: f64,
    command_p99_ms: f64,
    moves_ms: f64,
    copied_s: f64,
    /// The longest round of looking after the workers.
    round_ms: f64,
    /// Streams of workers that broke where nobody did anything to them.
    breaks: u64,
    /// What took too long or failed.
    troubles: Vec<String>,
}

impl Level {
    fn new(workers: usize, segments: usize) -> Self {
        let unknown = f64::NAN;
        Self {
            workers,
            shards: 0,
            segments,
            snapshot_mb: unknown,
            file_mb: unknown,
            start_s: unknown,
            joined_s: unknown,
            rejoined_s: unknown,
            memory_mb: unknown,
            memory_peak_mb: unknown,
            cpu: unknown,
            beat_ms: unknown,
            plan_ms: unknown,
            plan_all_ms: unknown,
            command_ms: unknown,
            command_p99_ms: unknown,
            moves_ms: unknown,
            copied_s: unknown,
            round_ms: unknown,
            breaks: 0,
            troubles: Vec::new(),
        }
    }

    /// What is more than it may be, and what failed.
    fn broken(&self) -> Vec<String> {
        let bars = [
            Bar::new("plan_ms", self.plan_ms, Some(PLAN_MS_MAX)),
            Bar::new("start_s", self.start_s, Some(START_S_MAX)),
            Bar::new("memory_mb", self.memory_mb, Some(MEMORY_MB_MAX)),
        ];
        let mut broken = self.troubles.clone();
        broken.extend(missed(&bars));
        if self.breaks > 0 {
            broken.push(format!("{} times a worker lost its connection, or did not get one", self.breaks));
        }
        broken
    }

    fn trouble(&mut self, what: &str, error: &anyhow::Error) {
        let trouble = format!("{what}: {error:#}");
        say(format!("  {trouble}"));
        self.troubles.push(trouble);
    }
}

/// Runs it; false where something was more than it may be, or failed.
///
/// # Errors
/// When the catalog cannot be made.
pub async fn run(args: &ScaleArgs) -> Result<bool> {
    ensure!(args.workers >= 3, "--workers {}: with fewer than 3 nobody can die", args.workers);
    ensure!(args.segments.iter().all(|segments| *segments > 0), "--segments 0 measures nothing");
    ensure!(args.tables > 0 && args.replicas > 0, "--tables and --replicas are 1 at least");
    open_many_files(args.workers as u64);
    let mut levels: Vec<Level> = Vec::new();
    let mut broken = Vec::new();
    for segments in &args.segments {
        let level = measure_level(args, *segments).await?;
        broken = level.broken();
        levels.push(level);
        if !broken.is_empty() {
            break;
        }
    }
    if let Some(path) = &args.json {
        write_json(path, &levels)?;
    }
    let Some(last) = levels.last() else { return Ok(false) };
    match levels.iter().rev().nth(1) {
        _ if broken.is_empty() => {
            say(format!("nothing breaks at {} workers and {} segments", last.workers, last.segments));
        }
        Some(before) => {
            say(format!("all is well at {} segments; at {} these break:", before.segments, last.segments));
        }
        None => say(format!("at {} workers and {} segments these break:", last.workers, last.segments)),
    }
    for line in &broken {
        say(format!("  {line}"));
    }
    Summary::new("scale")
        .with("workers", last.workers)
        .with("shards", last.shards)
        .with("segments", last.segments)
        .with_number("plan_ms", last.plan_ms)
        .with_number("command_ms", last.command_ms)
        .with_number("moves_ms", last.moves_ms)
        .with("memory_mb", format!("{:.0}", last.memory_mb))
        .with_number("start_s", last.start_s)
        .print();
    Ok(broken.is_empty())
}

async fn measure_level(args: &ScaleArgs, segments: usize) -> Result<Level> {
    let wanted = Wanted {
        workers: args.workers,
        tables: args.tables,
        segments,
        replicas: args.replicas,
        seed: args.seed,
    };
    std::fs::create_dir_all(data_root()).context("make the benchmark's directory")?;
    let dir = tempfile::Builder::new().prefix("shoal-scale-").tempdir_in(data_root())?;
    let node_args =
        ["coordinator", "--dead-after", &format!("{}s", args.dead_after)].map(str::to_owned).to_vec();
    let program = Program::this_executable()?;
    let mut node = Node::new("coordinator", dir.path(), program, node_args, Vec::new());

    let began = Instant::now();
    let filled = fill(node.data_dir(), &wanted).await?;
    let mut level = Level::new(args.workers, segments);
    level.shards = filled.shards();
    level.file_mb = file_mb(&node);
    say(format!(
        "{} workers, {} tables, {} shards, {segments} segments: made in {:.1} s, {:.0} MB on disk",
        args.workers,
        filled.shapes.len(),
        level.shards,
        began.elapsed().as_secs_f64(),
        level.file_mb
    ));
    measure_node(args, filled, &mut node, &mut level).await;
    let log = node.log_text();
    level.snapshot_mb = measure::largest(&log, "snapshot_bytes").map_or(f64::NAN, |bytes| bytes / 1e6);
    level.round_ms = measure::largest(&log, "round_ms").unwrap_or(f64::NAN);
    level.file_mb = file_mb(&node);
    if let Some(pid) = node.pid() {
        level.memory_peak_mb = level.memory_peak_mb.max(peak_bytes(pid) as f64 / 1e6);
    }
    node.kill();
    show(&level);
    Ok(level)
}

fn file_mb(node: &Node) -> f64 {
    let file = node.data_dir().join("catalog.redb").metadata();
    file.map_or(f64::NAN, |file| file.len() as f64 / 1e6)
}

fn show(level: &Level) {
    say(format!("  snapshot {:.0} MB, file {:.0} MB", level.snapshot_mb, level.file_mb));
    say(format!(
        "  starts in {:.2} s, all workers joined {:.1} s after that, and {:.1} s after another start",
        level.start_s, level.joined_s, level.rejoined_s
    ));
    say(format!(
        "  at rest {:.0} MB (at most {:.0} MB), {:.2} cores, a beat waits {:.0} ms at most",
        level.memory_mb, level.memory_peak_mb, level.cpu, level.beat_ms
    ));
    say(format!(
        "  a plan of few segments {:.1} ms, of all {:.1} ms; a command {:.1} ms, p99 {:.1} ms",
        level.plan_ms, level.plan_all_ms, level.command_ms, level.command_p99_ms
    ));
    say(format!(
        "  all moves decided in {:.0} ms, all copies made after {:.1} s; longest round {:.0} ms",
        level.moves_ms, level.copied_s, level.round_ms
    ));
}

/// Measures one thing after the other, and goes on where one of them fails.
async fn measure_node(args: &ScaleArgs, filled: Filled, node: &mut Node, level: &mut Level) {
    let mut client = match measure::start(node).await {
        Ok((client, seconds)) => {
            level.start_s = seconds;
            client
        }
        Err(error) => return level.trouble("the coordinator does not start", &error),
    };
    let (Some(url), Some(pid)) = (node.url(), node.pid()) else { return };
    let counts = Arc::new(Counts::default());
    let Filled { cluster, holders, .. } = filled;
    let mut stubs: Vec<Running> =
        holders.into_iter().map(|holder| Stub::start(holder, &cluster, &url, &counts)).collect();
    match measure::all_heard(&stubs, JOINED_WITHIN).await {
        Ok(seconds) => level.joined_s = seconds,
        Err(heard) => level.troubles.push(format!(
            "only {heard} of {} workers had joined {JOINED_WITHIN:?} after the start",
            stubs.len()
        )),
    }
    at_rest(args, pid, &counts, level).await;
    plans(&mut client, level).await;
    match measure::commands_ms(&mut client, SCHEMAS).await {
        Ok(ms) => (level.command_ms, level.command_p99_ms) = (median(&ms), percentile(&ms, 0.99)),
        Err(error) => level.trouble("commands", &error),
    }
    level.breaks = counts.breaks.load(Ordering::Relaxed);
    deaths(args, &mut client, &mut stubs, &counts, level).await;
    level.memory_peak_mb = peak_bytes(pid) as f64 / 1e6;

    node.kill();
    match measure::start(node).await {
        Ok((_, seconds)) => level.start_s = level.start_s.max(seconds),
        Err(error) => return level.trouble("the coordinator does not start again", &error),
    }
    match measure::all_heard(&stubs, JOINED_WITHIN).await {
        Ok(seconds) => level.rejoined_s = seconds,
        Err(heard) => level.troubles.push(format!(
            "only {heard} of {} workers were back {JOINED_WITHIN:?} after a restart",
            stubs.len()
        )),
    }
}

async fn at_rest(args: &ScaleArgs, pid: u32, counts: &Counts, level: &mut Level) {
    // What joining left to be done is over by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    counts.reset();
    let (began, before) = (Instant::now(), cpu_seconds(pid));
    tokio::time::sleep(Duration::from_secs(args.rest)).await;
    level.cpu = (cpu_seconds(pid) - before) / began.elapsed().as_secs_f64();
    level.memory_mb = resident_bytes(pid) as f64 / 1e6;
    level.beat_ms = counts.slowest_ms();
}

async fn plans(client: &mut Client, level: &mut Level) {
    let table = table_name(0);
    let few = format!(
        "EXPLAIN SELECT count(*) FROM {table} \
         WHERE l_shipdate BETWEEN DATE '1995-06-01' AND DATE '1995-06-07' AND l_quantity < 24"
    );
    match measure::queries_ms(client, &few, PLANS).await {
        Ok(ms) => level.plan_ms = median(&ms),
        Err(error) => level.trouble("planning a query on few segments", &error),
    }
    let all = format!("EXPLAIN SELECT count(*) FROM {table} WHERE l_quantity < 24");
    match measure::queries_ms(client, &all, PLANS).await {
        Ok(ms) => level.plan_all_ms = median(&ms),
        Err(error) => level.trouble("planning a query on all segments", &error),
    }
}

/// Kills some of the workers at once.
async fn deaths(
    args: &ScaleArgs,
    client: &mut Client,
    stubs: &mut Vec<Running>,
    counts: &Counts,
    level: &mut Level,
) {
    // While more than half are away nobody is given up.
    let dead = args.dead.min(stubs.len() / 3);
    if dead == 0 {
        return;
    }
    stubs.shuffle(&mut StdRng::seed_from_u64(args.seed));
    let victims = stubs.split_off(stubs.len() - dead);
    let names: Vec<String> = victims.iter().map(|running| running.stub.name().to_owned()).collect();
    let limit = Duration::from_secs(args.dead_after) + MOVED_WITHIN;
    drop(victims);
    match measure::moved(client, &names, limit).await {
        Ok(moved) => {
            level.moves_ms = moved.moves_ms;
            match moved.copied_s {
                Some(seconds) => level.copied_s = seconds,
                None => level.troubles.push(format!("not all copies were made within {limit:?}")),
            }
        }
        Err(error) => level.trouble("the death of workers", &error),
    }
    say(format!(
        "  {dead} workers died: {} copies were ordered, {} taken away",
        counts.fetches.load(Ordering::Relaxed),
        counts.discards.load(Ordering::Relaxed)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_measured_breaks_and_what_is_within_its_bar_does_not() {
        let mut level = Level::new(20, 10_000);
        assert_eq!(level.broken().len(), 3, "{:?}", level.broken());
        (level.plan_ms, level.start_s, level.memory_mb) = (100.0, 5.0, 2_048.0);
        assert_eq!(level.broken(), Vec::<String>::new());
        level.plan_ms = 101.0;
        level.breaks = 2;
        level.troubles.push("commands: refused".to_owned());
        let broken = level.broken();
        assert_eq!(broken.len(), 3, "{broken:?}");
        assert_eq!(broken[0], "commands: refused");
        assert!(broken[1].contains("plan_ms") && broken[2].contains("2 times"), "{broken:?}");
    }
}
