//! `shoal-benches tpch`: all 22 queries on a real cluster and on its peers,
//! interleaved in one run, every answer checked.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use shoal_data::parse_bytes;
use shoal_data::sample::{QUERIES, TpchTable};

use crate::answer::{Answer, FLOAT_TOLERANCE, Numbers};
use crate::cluster::{Cluster, ClusterOptions};
use crate::load::load_tables;
use crate::oracle::Oracle;
use crate::peers::{
    BALLISTA, BALLISTA_16, ChildPeer, Execution, Peer, ShoalPeer, TableFiles, ensure_ballista, shard_files,
    start_ballista, start_duckdb,
};
use crate::process::{MemoryWatch, cores, cpu_seconds};
use crate::report::{Series, Summary, median, say, write_bars, write_json};
use crate::tpch_data::{TpchData, data_root};
use crate::tpch_memory::{MemoryLimits, MemoryReport, limit_each};

mod ratio;
mod split;

use ratio::Ratio;

/// How far DuckDB's numbers may differ: its averages are floats, DataFusion's
/// of decimals are decimals of limited scale.
const OTHER_DATABASE_TOLERANCE: f64 = 1e-4;
/// The peer whose answers are taken for right.
const ORACLE: &str = "datafusion";
/// The cluster among the peers.
const SHOAL: &str = "shoal";

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct TpchArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster, and of dfd
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Threads of each worker
    #[arg(long, default_value_t = cores())]
    pub threads: usize,
    /// Shards of each large table
    #[arg(long, default_value_t = 8)]
    pub shards: u32,
    /// Copies of each shard [default: as many as a table gets]
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Memory of each process of the cluster: half of it beyond 256 MiB is for queries, which spill what does not fit. What each
    /// took for each query is measured, and counted where it was more
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory_per_worker: Option<u64>,
    /// Memory for queries of the datafusion whose answers are the right ones [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub oracle_memory: Option<u64>,
    /// Peers: datafusion (always run: its answers are the right ones), datafusion_same_files, shoal_no_failover, dfd, duckdb,
    /// ballista and ballista_16 (with a partition for each core, and with its own 16; in builds with `--features ballista`), and
    /// Shoal with another setting, as in shoal.task_bytes=8MiB
    #[arg(long, value_delimiter = ',', default_value = "datafusion,datafusion_same_files,dfd,duckdb")]
    pub against: Vec<String>,
    /// Timed passes after the one that checks
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Only these queries, by number
    #[arg(long, value_delimiter = ',')]
    pub queries: Vec<usize>,
    /// Show where the time of each query goes, beside DataFusion's where that is among the peers
    #[arg(long)]
    pub split: bool,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw a chart here
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// One engine's measurements.
#[derive(Debug, Serialize)]
struct Measured {
    name: String,
    /// Answers that equal the oracle's.
    right: usize,
    /// Medians by query, in milliseconds; not a number where it failed.
    ms: Vec<f64>,
    total_ms: f64,
    /// Of one pass.
    cpu_s: f64,
    peak_mb: f64,
    /// Queries that gave an error.
    failed: BTreeSet<usize>,
    /// Queries with another answer than the oracle's.
    wrong: BTreeSet<usize>,
    /// What failed or was wrong.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    scale: f64,
    workers: usize,
    threads: usize,
    shards: u32,
    runs: usize,
    cores: usize,
    load_s: f64,
    queries: Vec<usize>,
    engines: Vec<Measured>,
    /// Where there is a limit.
    memory: Option<MemoryReport>,
}

struct Lane {
    peer: Box<dyn Peer>,
    seconds: Vec<Vec<f64>>,
    right: usize,
    cpu_s: f64,
    peak_bytes: u64,
    failed: BTreeSet<usize>,
    wrong: BTreeSet<usize>,
    problems: Vec<String>,
}

impl Lane {
    /// Runs a query; where this is the cluster and it has a limit, its memory is noted.
    async fn run(
        &mut self,
        number: usize,
        sql: &str,
        answer: bool,
        limits: Option<&mut MemoryLimits>,
    ) -> Result<Execution> {
        let execution = match limits.filter(|_| self.peer.name() == SHOAL) {
            Some(limits) => limits.around(&format!("q{number}"), self.peer.run(sql, answer)).await,
            None => self.peer.run(sql, answer).await,
        };
        if execution.is_err() {
            self.failed.insert(number);
        }
        execution
    }
}

/// Runs it; false when an answer of Shoal's was wrong or missing, or a process of it took more
/// memory than it may.
///
/// # Errors
/// When something cannot be started.
pub async fn run(args: &TpchArgs) -> Result<bool> {
    if args.against.iter().any(|name| is_ballista(name)) {
        // Before anything takes long.
        ensure_ballista()?;
    }
    let cores = cores();
    let queries: Vec<usize> =
        if args.queries.is_empty() { (1..=QUERIES.len()).collect() } else { args.queries.clone() };
    let root = data_root();
    say(format!("TPC-H scale {}: files below {}", args.scale, root.display()));
    let data = TpchData::ensure(&root, args.scale)?;
    let (cluster, load_s) = start_loaded(args, &data).await?;
    say(format!("{} workers x {} threads, loaded in {load_s:.1} s", args.workers, args.threads));

    let mut lanes = Vec::new();
    for peer in start_peers(args, &data, &cluster, cores).await? {
        lanes.push(Lane {
            peer,
            seconds: vec![Vec::new(); queries.len()],
            right: 0,
            cpu_s: 0.0,
            peak_bytes: 0,
            failed: BTreeSet::new(),
            wrong: BTreeSet::new(),
            problems: Vec::new(),
        });
    }
    let limits = |bytes| MemoryLimits::after_load(Arc::clone(&cluster), bytes);
    let mut limits = args.memory_per_worker.map(limits).transpose()?;
    check_answers(&mut lanes, &queries, &data, limits.as_mut()).await?;
    for pass in 1..=args.runs {
        say(format!("pass {pass} of {}", args.runs));
        for (index, number) in queries.iter().enumerate() {
            for lane in &mut lanes {
                time_query(lane, index, *number, limits.as_mut()).await;
            }
        }
    }
    if args.split {
        split::show(&mut lanes, &queries, args.against.iter().any(|name| name == ORACLE)).await;
    }
    let engines = lanes.into_iter().map(|lane| measured(lane, args.runs)).collect();
    let report = Report {
        scale: args.scale,
        workers: args.workers,
        threads: args.threads,
        shards: args.shards,
        runs: args.runs,
        cores,
        load_s,
        queries,
        engines,
        memory: limits.as_ref().map(MemoryLimits::report),
    };
    publish(args, &report)
}

/// A cluster with the eight tables in it, and the seconds that loading took.
///
/// # Errors
/// When a node does not start or a table cannot be loaded.
pub async fn start_loaded(args: &TpchArgs, data: &TpchData) -> Result<(Arc<Cluster>, f64)> {
    let mut options = ClusterOptions::for_bench(args.workers, data)?;
    options.threads = args.threads;
    if let Some(bytes) = args.memory_per_worker {
        limit_each(&mut options, bytes);
    }
    // Peers read the same files, which stay.
    options.coordinator_args.push("--compaction=off".to_owned());
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    let loaded = load_tables(&mut client, data, args.shards, args.replicas).await;
    let load_s = loaded.with_context(|| cluster.log_tails())?;
    Ok((cluster, load_s))
}

/// The generator's files of every table.
pub fn plain_files(data: &TpchData) -> Vec<TableFiles> {
    TpchTable::ALL
        .into_iter()
        .map(|table| TableFiles { table: table.name().to_owned(), paths: vec![data.table_dir(table)] })
        .collect()
}

async fn start_peers(
    args: &TpchArgs,
    data: &TpchData,
    cluster: &Arc<Cluster>,
    cores: usize,
) -> Result<Vec<Box<dyn Peer>>> {
    let plain = plain_files(data);
    // The oracle comes first: the others are compared with it.
    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(ChildPeer::datafusion_within(ORACLE, cores, args.oracle_memory, &plain)?),
        Box::new(ShoalPeer::connect(Arc::clone(cluster)).await?),
    ];
    for name in &args.against {
        match name.as_str() {
            ORACLE => {}
            "datafusion_same_files" => {
                peers.push(Box::new(ChildPeer::datafusion(name, cores, &shard_files(cluster).await?)?));
            }
            "shoal_no_failover" => {
                peers.push(Box::new(ShoalPeer::without_failover(Arc::clone(cluster)).await?));
            }
            "dfd" => {
                peers.push(Box::new(ChildPeer::datafusion_distributed(
                    args.workers,
                    args.threads,
                    cores,
                    &plain,
                )?));
            }
            "duckdb" => match start_duckdb(&data_root(), cores, &plain) {
                Ok(peer) => peers.push(Box::new(peer)),
                Err(error) => say(format!("notice: duckdb is left out: {error:#}")),
            },
            ballista if is_ballista(ballista) => {
                peers.push(Box::new(start_ballista(ballista, cores, &plain)?));
            }
            setting if setting.contains('=') => {
                peers.push(Box::new(ShoalPeer::with_setting(Arc::clone(cluster), setting).await?));
            }
            other => bail!(
                "no peer `{other}`: datafusion, datafusion_same_files, shoal_no_failover, dfd, duckdb, ballista, ballista_16, \
                 shoal.SETTING=VALUE"
            ),
        }
    }
    Ok(peers)
}

fn is_ballista(peer: &str) -> bool {
    [BALLISTA, BALLISTA_16].contains(&peer)
}

/// The first pass: every engine's answers against DataFusion's.
async fn check_answers(
    lanes: &mut [Lane],
    queries: &[usize],
    data: &TpchData,
    mut limits: Option<&mut MemoryLimits>,
) -> Result<()> {
    let oracle = Oracle::of_tables(1, data).await?;
    for number in queries {
        let sql =
            shoal_data::sample::query(*number).with_context(|| format!("TPC-H has no query {number}"))?;
        let order = oracle.order(sql).await?;
        let started = Instant::now();
        let mut expected: Option<Answer> = None;
        let mut expected_as_floats: Option<Answer> = None;
        for lane in lanes.iter_mut() {
            let numbers = lane.peer.numbers();
            let right = match lane.run(*number, sql, true, limits.as_deref_mut()).await {
                Err(error) => Err(error),
                Ok(execution) => {
                    let answer = execution.answer.context("an answer without rows")?;
                    if lane.peer.name() == ORACLE {
                        expected_as_floats = Some(answer.as_floats());
                        expected = Some(answer);
                        Ok(())
                    } else if numbers == Numbers::AsFloats {
                        let expected =
                            expected_as_floats.as_ref().context("no right answer to compare with")?;
                        expected
                            .compare_rows(&answer, None, OTHER_DATABASE_TOLERANCE)
                            .map_err(anyhow::Error::from)
                    } else {
                        let expected = expected.as_ref().context("no right answer to compare with")?;
                        expected
                            .compare(&answer, order.as_deref(), FLOAT_TOLERANCE)
                            .map_err(anyhow::Error::from)
                    }
                }
            };
            match right {
                Ok(()) => lane.right += 1,
                Err(error) => {
                    if !lane.failed.contains(number) {
                        lane.wrong.insert(*number);
                    }
                    let problem = format!("q{number}: {error:#}");
                    say(format!("{} {problem}", lane.peer.name()));
                    lane.problems.push(problem);
                }
            }
        }
        let rows = expected.map_or(0, |answer| answer.row_count());
        say(format!(
            "q{number}: answers of {rows} rows compared after {:.1} s",
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(())
}

async fn time_query(lane: &mut Lane, index: usize, number: usize, limits: Option<&mut MemoryLimits>) {
    let Some(sql) = shoal_data::sample::query(number) else { return };
    if lane.peer.name() != SHOAL && lane.failed.contains(&number) {
        // It is in no ratio any more, and may take much before it fails again.
        return;
    }
    let pids = lane.peer.pids();
    let cpu = || pids.iter().copied().map(cpu_seconds).sum::<f64>();
    let before = cpu();
    let watch = MemoryWatch::start(pids.clone());
    let execution = lane.run(number, sql, false, limits).await;
    lane.peak_bytes = lane.peak_bytes.max(watch.finish());
    lane.cpu_s += cpu() - before;
    match execution {
        Ok(execution) => lane.seconds[index].push(execution.seconds),
        Err(error) => lane.problems.push(format!("q{number}: {error:#}")),
    }
}

fn measured(lane: Lane, runs: usize) -> Measured {
    let ms: Vec<f64> = lane.seconds.iter().map(|seconds| median(seconds) * 1e3).collect();
    Measured {
        name: lane.peer.name().to_owned(),
        right: lane.right,
        total_ms: ms.iter().sum(),
        ms,
        cpu_s: lane.cpu_s / runs.max(1) as f64,
        peak_mb: lane.peak_bytes as f64 / 1e6,
        failed: lane.failed,
        wrong: lane.wrong,
        problems: lane.problems,
    }
}

/// Shows and writes the report; whether all of Shoal's answers were right.
fn publish(args: &TpchArgs, report: &Report) -> Result<bool> {
    let engine = |name: &str| report.engines.iter().find(|engine| engine.name == name);
    let shoal = engine(SHOAL).context("shoal was not measured")?;
    let heading: String = report.engines.iter().map(|engine| format!("{:>22}", engine.name)).collect();
    say(format!("{:>6}{heading}{:>8}", "ms", "ratio"));
    let oracle = engine(ORACLE).context("datafusion was not measured")?;
    for (index, number) in report.queries.iter().enumerate() {
        let cells: String =
            report.engines.iter().map(|engine| format!("{:>22.1}", engine.ms[index])).collect();
        say(format!("{:>6}{cells}{:>8.2}", format!("q{number}"), shoal.ms[index] / oracle.ms[index]));
    }
    let row = |name: &str, digits: usize, get: fn(&Measured) -> f64| {
        let cells: String =
            report.engines.iter().map(|engine| format!("{:>22.digits$}", get(engine))).collect();
        say(format!("{name:>6}{cells}"));
    };
    row("total", 1, |engine| engine.total_ms);
    row("cpu s", 2, |engine| engine.cpu_s);
    row("MB", 0, |engine| engine.peak_mb);
    row("right", 0, |engine| engine.right as f64);
    for engine in &report.engines {
        for problem in &engine.problems {
            say(format!("problem: {} {problem}", engine.name));
        }
    }
    for engine in report.engines.iter().filter(|engine| engine.name != SHOAL) {
        if let Some(line) = Ratio::between(&report.queries, shoal, engine).what_is_left_out(&engine.name) {
            say(line);
        }
    }
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    if let Some(path) = &args.svg {
        let labels: Vec<String> = report.queries.iter().map(|number| format!("q{number}")).collect();
        let series: Vec<Series> = report
            .engines
            .iter()
            .map(|engine| Series { name: engine.name.clone(), values: engine.ms.clone() })
            .collect();
        let title =
            format!("TPC-H scale {}, {} workers x {} threads", report.scale, report.workers, report.threads);
        write_bars(path, &title, "ms, median of hot runs", &labels, &series)?;
    }
    let worst = report
        .queries
        .iter()
        .enumerate()
        .map(|(index, number)| (*number, shoal.ms[index] / oracle.ms[index]))
        .max_by(|left, right| left.1.total_cmp(&right.1));
    let mut summary = Summary::new("tpch")
        .with("scale", report.scale)
        .with("workers", report.workers)
        .with("threads", report.threads)
        .with("right", format!("{}/{}", shoal.right, report.queries.len()))
        .with("total_ms", format!("{:.0}", shoal.total_ms))
        .with_number("cpu_s", shoal.cpu_s)
        .with("peak_mb", format!("{:.0}", shoal.peak_mb))
        .with("failed", shoal.failed.len());
    if let Some(memory) = &report.memory {
        summary = summary.with("over_limit", memory.over_limit);
    }
    for engine in report.engines.iter().filter(|engine| engine.name != SHOAL) {
        summary = Ratio::between(&report.queries, shoal, engine).add_to(summary, &engine.name);
    }
    if let Some((number, ratio)) = worst {
        summary = summary.with("worst_query", format!("q{number}:{ratio:.2}"));
    }
    summary.print();
    let is_within = report.memory.as_ref().is_none_or(|memory| memory.over_limit == 0);
    Ok(shoal.right == report.queries.len() && shoal.problems.is_empty() && is_within)
}
