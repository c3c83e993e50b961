//! `shoal-benches failover`: what the death of a worker in the middle of each
//! TPC-H query costs, what its silence costs, what a steady load feels of a
//! death, what one slow worker costs, and what failover costs when nothing
//! happens.

mod straggler;
mod struck;
mod window;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use shoal_data::sample::QUERIES;

use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::load::load_tables;
use crate::oracle::{Expectation, Oracle};
use crate::report::{Bar, Summary, missed, say, write_json};
use crate::tpch_data::{TpchData, data_root};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct FailoverArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Undisturbed passes, each with failover on and off
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Strike nobody: only what failover costs when nothing happens
    #[arg(long)]
    pub no_faults: bool,
    /// Only these queries, by number
    #[arg(long, value_delimiter = ',')]
    pub queries: Vec<usize>,
    /// Fail where ratio_idle is more than this
    #[arg(long, value_name = "RATIO")]
    pub ratio_idle_max: Option<f64>,
    /// Fail where worst_extra_s_kill is more than this
    #[arg(long, value_name = "SECONDS")]
    pub extra_kill_max: Option<f64>,
    /// Fail where worst_extra_s_cut is more than this
    #[arg(long, value_name = "SECONDS")]
    pub extra_cut_max: Option<f64>,
    /// Fail where straggler_ratio is more than this
    #[arg(long, value_name = "RATIO")]
    pub straggler_max: Option<f64>,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    queries: Vec<struck::Measured>,
    window: Option<window::Measured>,
    straggler: Option<straggler::Measured>,
}

impl Measured {
    fn ratio_idle(&self) -> f64 {
        let total = |get: fn(&struck::Measured) -> f64| self.queries.iter().map(get).sum::<f64>();
        total(|one| one.on_s) / total(|one| one.off_s)
    }

    /// What a fault costs the worst query, beyond its normal time once again;
    /// no number where nobody was struck.
    fn worst_extra_s(&self, get: fn(&struck::Struck) -> f64) -> f64 {
        let extra = self.queries.iter().filter_map(|one| Some(get(one.struck.as_ref()?) - 2.0 * one.on_s));
        extra.fold(f64::NAN, f64::max)
    }

    fn bars(&self, args: &FailoverArgs) -> [Bar; 4] {
        let straggler = self.straggler.as_ref().map_or(f64::NAN, straggler::Measured::ratio);
        [
            Bar::new("ratio_idle", self.ratio_idle(), args.ratio_idle_max),
            Bar::new("worst_extra_s_kill", self.worst_extra_s(|struck| struck.killed_s), args.extra_kill_max),
            Bar::new("worst_extra_s_cut", self.worst_extra_s(|struck| struck.cut_s), args.extra_cut_max),
            Bar::new("straggler_ratio", straggler, args.straggler_max),
        ]
    }
}

/// The cluster, its tables, and what is right.
struct Bench {
    cluster: Arc<Cluster>,
    oracle: Oracle,
    workers: usize,
    runs: usize,
    has_faults: bool,
}

/// Refuses a run that could not measure what it has a bar for.
fn check(args: &FailoverArgs) -> Result<()> {
    ensure!(args.runs > 0, "--runs 0 measures nothing");
    let of_faults = [
        ("--extra-kill-max", args.extra_kill_max),
        ("--extra-cut-max", args.extra_cut_max),
        ("--straggler-max", args.straggler_max),
    ];
    for (flag, max) in of_faults {
        ensure!(max.is_none() || !args.no_faults, "{flag} needs faults, and with --no-faults there are none");
    }
    Ok(())
}

/// Runs it; false where a bar was missed.
///
/// # Errors
/// When something cannot be started, an answer is wrong or missing, or there is
/// a bar for what is not measured.
pub async fn run(args: &FailoverArgs) -> Result<bool> {
    check(args)?;
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.links = true;
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    load_tables(&mut client, &data, 8, Some(3)).await?;
    let oracle = Oracle::of_tables(2, &data).await?;
    let bench =
        Bench { cluster, oracle, workers: args.workers, runs: args.runs, has_faults: !args.no_faults };

    let queries: Vec<usize> =
        if args.queries.is_empty() { (1..=QUERIES.len()).collect() } else { args.queries.clone() };
    let queries = struck::measure(&bench, &queries).await?;
    ensure!(!queries.is_empty(), "no query was run");
    let (mut window, mut straggler) = (None, None);
    if bench.has_faults {
        say(window.insert(window::measure(&bench).await?));
        say(straggler.insert(straggler::measure(&bench).await?));
    }
    let measured = Measured { queries, window, straggler };
    if let Some(path) = &args.json {
        write_json(path, &measured)?;
    }
    let missed = missed(&measured.bars(args));
    for line in &missed {
        say(line);
    }
    let mut summary = Summary::new("failover")
        .with("scale", args.scale)
        .with("workers", args.workers)
        .with("ratio_idle", format!("{:.3}", measured.ratio_idle()));
    if let (Some(window), Some(straggler)) = (&measured.window, &measured.straggler) {
        summary = summary
            .with_number("worst_extra_s_kill", measured.worst_extra_s(|struck| struck.killed_s))
            .with_number("worst_extra_s_cut", measured.worst_extra_s(|struck| struck.cut_s))
            .with_number("worst_extra_s_freeze", measured.worst_extra_s(|struck| struck.frozen_s))
            .with_number("p99_ratio_window", window.p99_ratio())
            .with_number("straggler_ratio", straggler.ratio());
    }
    summary.print();
    Ok(missed.is_empty())
}

/// Seconds of one run, whose answer must be right.
async fn timed(client: &mut Client, sql: &str, expected: &Expectation) -> Result<f64> {
    let began = Instant::now();
    let (schema, batches) = client.query_with_schema(sql).await?;
    let seconds = began.elapsed().as_secs_f64();
    expected.check(&schema, &batches)?;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::struck::Struck;
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        failover: FailoverArgs,
    }

    fn args(flags: &[&str]) -> FailoverArgs {
        Line::parse_from(["failover"].iter().chain(flags)).failover
    }

    /// Twice as slow with failover on; 0.5 s extra after a kill, 2 s after a
    /// cut, and half as long again with a straggler.
    fn measured() -> Measured {
        let one = |query: usize, on_s: f64, [killed_s, cut_s, frozen_s]: [f64; 3]| struck::Measured {
            query,
            on_s,
            off_s: on_s / 2.0,
            struck: Some(Struck { killed_s, cut_s, frozen_s }),
        };
        Measured {
            queries: vec![one(1, 1.0, [2.5, 4.0, 9.0]), one(2, 2.0, [4.25, 4.5, 4.0])],
            window: None,
            straggler: Some(straggler::Measured { undisturbed_s: vec![2.0], slowed_s: vec![3.0] }),
        }
    }

    #[test]
    fn each_bar_is_missed_by_its_own_number_alone() {
        assert_eq!(missed(&measured().bars(&args(&[]))), Vec::<String>::new());
        for (flag, key, reached, beyond) in [
            ("--ratio-idle-max", "ratio_idle is 2.000,", "2", "1.99"),
            ("--extra-kill-max", "worst_extra_s_kill is 0.500,", "0.5", "0.49"),
            ("--extra-cut-max", "worst_extra_s_cut is 2.000,", "2", "1.99"),
            ("--straggler-max", "straggler_ratio is 1.500,", "1.5", "1.49"),
        ] {
            let lines = |max: &str| missed(&measured().bars(&args(&[flag, max])));
            assert_eq!(lines(reached), Vec::<String>::new(), "{flag}");
            let lines = lines(beyond);
            assert_eq!(lines.len(), 1, "{flag}: {lines:?}");
            assert!(lines[0].contains(key), "{flag}: {lines:?}");
        }
    }

    #[test]
    fn what_was_not_measured_misses_its_bar() {
        let mut quiet = measured();
        quiet.queries.iter_mut().for_each(|one| one.struck = None);
        quiet.straggler = None;
        let all = ["--ratio-idle-max=9", "--extra-kill-max=9", "--extra-cut-max=9", "--straggler-max=9"];
        let lines = missed(&quiet.bars(&args(&all)));
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines.iter().all(|line| line.contains(" is NaN,")), "{lines:?}");
    }

    #[test]
    fn a_bar_for_what_is_not_measured_is_refused_at_the_start() {
        for flag in ["--extra-kill-max", "--extra-cut-max", "--straggler-max"] {
            let refusal = check(&args(&["--no-faults", flag, "9"])).unwrap_err().to_string();
            assert!(refusal.starts_with(flag) && refusal.contains("--no-faults"), "{refusal}");
            check(&args(&[flag, "9"])).unwrap();
        }
        check(&args(&["--no-faults", "--ratio-idle-max", "9"])).unwrap();
        assert!(check(&args(&["--runs", "0"])).is_err());
    }
}
