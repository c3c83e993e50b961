//! `shoal-benches load`: how many answers a second a cluster gives to 1 to 1,000
//! clients that ask lookups, small aggregates and TPC-H at the same time, against
//! single-process DataFusion behind the same Flight code; whether short queries
//! are starved by long ones; and what connections cost that do nothing.

mod class;
mod deal;
mod idle;
mod level;
mod questions;
mod session;
mod step;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_coordinator::CoordinatorConfig;

use self::class::Class;
use self::level::{Level, rate_kept, short_over_long, verdicts};
use self::questions::Questions;
use self::step::Step;
use crate::cluster::{Cluster, ClusterOptions};
use crate::load::{load_tables, settle};
use crate::peers::FlightPeer;
use crate::process::{cores, open_many_files};
use crate::report::{Bar, Summary, missed, say, write_json};
use crate::tpch::plain_files;
use crate::tpch_data::{TpchData, data_root};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Threads of each worker
    #[arg(long, default_value_t = cores())]
    pub threads: usize,
    /// Shards of each large table
    #[arg(long, default_value_t = 8)]
    pub shards: u32,
    /// Clients that ask at once; with several numbers, one step after the other
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1000")]
    pub clients: Vec<usize>,
    /// For so long the clients of a step begin decks of 440 questions; it ends with the last answer
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Connections that do nothing, which are weighed before anything is measured
    #[arg(long, default_value_t = 1_000)]
    pub idle: usize,
    /// Fail where idle_mib is more than this
    #[arg(long, value_name = "MIB", default_value_t = 100.0)]
    pub idle_mib_max: f64,
    /// Seed of the questions
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    scale: f64,
    workers: usize,
    threads: usize,
    seed: u64,
    /// `max_queries`: so many run at once at the peer, and of Shoal so many short ones.
    queries_max: usize,
    idle_connections: usize,
    /// By which the coordinator grew for them.
    idle_mib: f64,
    shoal: Vec<Level>,
    datafusion: Vec<Level>,
}

impl Report {
    fn wrong(&self) -> usize {
        self.shoal.iter().map(|level| level.wrong).sum()
    }

    fn failed(&self) -> usize {
        self.shoal.iter().map(|level| level.failed).sum()
    }

    fn summary(&self) -> Summary {
        let all = |get: fn(&Level) -> f64| self.shoal.iter().map(get).collect::<Vec<f64>>();
        let mut summary = Summary::new("load")
            .with("scale", self.scale)
            .with("workers", self.workers)
            .with_list("clients", all(|level| level.clients as f64), 0)
            .with_list("rate", all(|level| level.rate), 0);
        for class in Class::ALL {
            let of = |get: fn(&level::Times) -> f64| -> Vec<f64> {
                self.shoal.iter().map(|level| get(&level.times(class))).collect()
            };
            summary = summary
                .with_list(&format!("p50_ms_{}", class.name()), of(|times| times.p50_ms), 1)
                .with_list(&format!("p99_ms_{}", class.name()), of(|times| times.p99_ms), 1)
                .with_list(&format!("p999_ms_{}", class.name()), of(|times| times.p999_ms), 1);
        }
        for (shoal, datafusion) in self.shoal.iter().zip(&self.datafusion) {
            let key = format!("ratio_rate_{}", shoal.clients);
            summary = summary.with_number(&key, shoal.rate / datafusion.rate);
        }
        summary
            .with_number("rate_kept", rate_kept(&self.shoal))
            .with_number("short_over_long", short_over_long(&self.shoal))
            .with_number("idle_mib", self.idle_mib)
            .with("wrong", self.wrong())
            .with("failed", self.failed())
    }
}

/// Refuses a run that would measure nothing.
fn check(args: &LoadArgs) -> Result<()> {
    ensure!(!args.clients.is_empty() && !args.clients.contains(&0), "--clients are numbers from 1");
    ensure!(args.seconds > 0.0 && args.seconds <= 3_600.0, "--seconds is more than 0, and 3600 at most");
    ensure!(args.idle > 0, "--idle 0 measures nothing");
    Ok(())
}

/// Runs it; false after an answer that was wrong or missing, and where the bar was
/// missed.
///
/// # Errors
/// When something cannot be started, or clients cannot connect.
pub async fn run(args: &LoadArgs) -> Result<bool> {
    check(args)?;
    let most = args.clients.iter().copied().max().unwrap_or_default();
    open_many_files(most.max(args.idle) as u64);
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let questions = Arc::new(Questions::answered(&data, args.seed).await?);
    let cluster = start_loaded(args, &data).await?;
    let cores = cores();
    // As many at once as a coordinator takes: else it is compared with what runs
    // out of memory.
    let queries_max = CoordinatorConfig::new("").queries_max;
    let peer = FlightPeer::with_queue(cores, queries_max, &plain_files(&data))?;
    let (shoal, datafusion) = (cluster.url(), peer.url());
    for (name, url) in [("shoal", shoal.as_str()), ("datafusion", datafusion)] {
        step::warm_up(url, &questions).await.context(name)?;
    }
    let idle_mib = idle::grown_mib(&shoal, cluster.pid("coordinator")?, args.idle).await?;
    say(format!("{} connections that do nothing: {idle_mib:.1} MiB in the coordinator", args.idle));

    let mut report = Report {
        scale: args.scale,
        workers: args.workers,
        threads: args.threads,
        seed: args.seed,
        queries_max,
        idle_connections: args.idle,
        idle_mib,
        shoal: Vec::new(),
        datafusion: Vec::new(),
    };
    for &clients in &args.clients {
        let sides = [
            ("shoal", shoal.as_str(), &mut report.shoal),
            ("datafusion", datafusion, &mut report.datafusion),
        ];
        for (name, url, levels) in sides {
            let step = Step { url, clients, seconds: args.seconds, seed: args.seed };
            let level = step::run(step, &questions).await;
            let level = level.with_context(|| format!("{clients} clients of {name}"))?;
            for line in level.lines(name) {
                say(line);
            }
            levels.push(level);
        }
    }
    for line in verdicts("shoal", &report.shoal).iter().chain(&verdicts("datafusion", &report.datafusion)) {
        say(line);
    }
    publish(args, &report)
}

/// A cluster with the tables in it, whose coordinator is as after a start: one that
/// has just loaded holds memory from that, which connections would take.
async fn start_loaded(args: &LoadArgs, data: &TpchData) -> Result<Cluster> {
    let mut options = ClusterOptions::for_bench(args.workers, data)?;
    options.threads = args.threads;
    let cluster = Cluster::start(&options)?;
    let mut client = cluster.connect().await?;
    load_tables(&mut client, data, args.shards, None).await?;
    settle(&mut client).await?;
    cluster.restart("coordinator")?;
    cluster.wait_until_joined(args.workers)?;
    Ok(cluster)
}

/// Shows and writes the report; whether all is well.
fn publish(args: &LoadArgs, report: &Report) -> Result<bool> {
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    let missed = missed(&[Bar::new("idle_mib", report.idle_mib, Some(args.idle_mib_max))]);
    for line in &missed {
        say(line);
    }
    report.summary().print();
    Ok(missed.is_empty() && report.wrong() == 0 && report.failed() == 0)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clap::Parser;

    use super::*;
    use crate::load::{Asked, Verdict};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn args(flags: &[&str]) -> LoadArgs {
        Line::parse_from(["load"].iter().chain(flags)).load
    }

    /// So many lookups, each as fast.
    fn level(clients: usize, lookups: usize, ms: f64) -> Level {
        let asked = Asked { at: Instant::now(), ms, verdict: Verdict::Right, is_detour: false };
        Level::new(clients, 1.0, &vec![(Class::Point, asked); lookups])
    }

    #[test]
    fn what_measures_nothing_is_refused() {
        check(&args(&[])).unwrap();
        assert_eq!(args(&[]).clients, [1, 16, 64, 256, 1000]);
        for flags in [["--clients", "1,0"], ["--seconds", "0"], ["--seconds", "NaN"], ["--idle", "0"]] {
            let refusal = check(&args(&flags)).unwrap_err().to_string();
            assert!(refusal.starts_with(flags[0]), "{refusal}");
        }
    }

    #[test]
    fn the_last_line_has_a_number_for_each_step() {
        let report = Report {
            scale: 0.1,
            workers: 4,
            threads: 1,
            seed: 1,
            queries_max: 4,
            idle_connections: 10,
            idle_mib: 1.5,
            shoal: vec![level(1, 200, 2.0), level(64, 100, 30.0)],
            datafusion: vec![level(1, 100, 2.0), level(64, 50, 30.0)],
        };
        let line = report.summary();
        let line = line.as_str();
        assert!(
            line.starts_with("load scale=0.1 workers=4 clients=1,64 rate=200,100 p50_ms_point=2.0,30.0 "),
            "{line}"
        );
        for field in ["p99_ms_tpch=NaN,NaN", "ratio_rate_1=2.00", "ratio_rate_64=2.00", "rate_kept=0.50"] {
            assert!(line.contains(field), "{line}");
        }
        assert!(line.ends_with(" short_over_long=NaN idle_mib=1.50 wrong=0 failed=0"), "{line}");
    }
}
