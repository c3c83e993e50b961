//! `shoal-benches point`: what is short. Rows by shard key, at 1, 16 and 64 clients,
//! each as a statement of its own and through one that was prepared; queries that read
//! few bytes or one shard; both against single-process DataFusion behind the same Flight
//! encoding. And a query that is answered with a kept result.

mod cached;
mod lookup;
mod small;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_data::sample::TpchTable;

use self::cached::Cached;
use self::lookup::{Asking, Keys, Level};
use self::small::SmallQuery;
use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::load::settle;
use crate::oracle::Oracle;
use crate::peers::FlightPeer;
use crate::process::cores;
use crate::report::{Bar, Summary, missed, say, write_json};
use crate::tpch::plain_files;
use crate::tpch_data::{TpchData, data_root};

/// How many clients at once.
const CLIENTS: [usize; 3] = [1, 16, 64];

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct PointArgs {
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
    /// How long each number of clients asks, how long each small query is asked, and how long at most the one whose result is
    /// kept
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seed of the keys
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Fail where small_p50_over_ms is more than this
    #[arg(long, value_name = "MS", default_value_t = 2.0)]
    pub small_over_max: f64,
    /// Fail where cached_coordinator_p50_ms is more than this
    #[arg(long, value_name = "MS", default_value_t = 1.0)]
    pub cached_max: f64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    scale: f64,
    workers: usize,
    seed: u64,
    shoal: Vec<Level>,
    datafusion: Vec<Level>,
    small: Vec<SmallQuery>,
    cached: Cached,
}

impl Report {
    /// The small query that is most over DataFusion's time, and by how much.
    fn small_worst(&self) -> (&'static str, f64) {
        small::worst(&self.small).map_or(("none", f64::NAN), |query| (query.name, query.over_ms))
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::new("point").with("scale", self.scale).with("workers", self.workers);
        for (shoal, datafusion) in self.shoal.iter().zip(&self.datafusion) {
            let (prefix, clients) = (shoal.asking.prefix(), shoal.clients);
            let ratio_rate = shoal.per_second / datafusion.per_second;
            summary = summary
                .with_number(&format!("{prefix}p50_ms_{clients}"), shoal.p50_ms)
                .with_number(&format!("{prefix}p99_ms_{clients}"), shoal.p99_ms)
                .with(&format!("{prefix}rate_{clients}"), format!("{:.0}", shoal.per_second))
                .with_number(&format!("{prefix}ratio_rate_{clients}"), ratio_rate);
        }
        let (worst, over_ms) = self.small_worst();
        summary
            .with_number("small_p50_over_ms", over_ms)
            .with("small_worst", worst)
            .with_number("cached_p50_ms", self.cached.p50_ms)
            .with("cached_coordinator_p50_ms", format!("{:.3}", self.cached.coordinator_p50_ms))
            .with("cached_coordinator_cpu_ms", format!("{:.3}", self.cached.coordinator_cpu_ms))
            .with_number("uncached_p50_ms", self.cached.uncached_p50_ms)
    }

    fn bars(&self, args: &PointArgs) -> [Bar; 2] {
        [
            Bar::new("small_p50_over_ms", self.small_worst().1, Some(args.small_over_max)),
            Bar::new("cached_coordinator_p50_ms", self.cached.coordinator_p50_ms, Some(args.cached_max)),
        ]
    }
}

/// Refuses a run that would measure nothing.
fn check(args: &PointArgs) -> Result<()> {
    ensure!(args.seconds > 0.0 && args.seconds <= 3_600.0, "--seconds is more than 0, and 3600 at most");
    Ok(())
}

/// Runs it; false where a bar was missed.
///
/// # Errors
/// When something cannot be started, a query fails or is answered wrongly, a lookup does
/// not give its one row, or a result that was kept is not the answer.
pub async fn run(args: &PointArgs) -> Result<bool> {
    check(args)?;
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.threads = args.threads;
    // It would take cores while queries are timed, and a kept result is no answer after it.
    options.coordinator_args.push("--compaction=off".to_owned());
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    load(&mut client, &data, TpchTable::Orders, args.shards).await?;

    let cores = cores();
    let peer = FlightPeer::start(cores, &plain_files(&data))?;
    let (shoal, datafusion) = lookups(args, &cluster.url(), peer.url()).await?;

    // Only now: lookups are measured beside nothing else, as ever.
    for table in TpchTable::ALL.into_iter().filter(|table| *table != TpchTable::Orders) {
        load(&mut client, &data, table, args.shards).await?;
    }
    settle(&mut client).await?;
    let oracle = Oracle::of_tables(cores, &data).await?;
    let order = Keys::new(args.seed, TpchTable::Orders.rows(args.scale)).next();
    let small = small::measure(&cluster.url(), peer.url(), &oracle, order, args.seconds).await?;
    say("small queries, of one client:");
    for query in &small {
        say(query.line());
    }
    let cached = cached::measure(&cluster, &oracle, args.seconds).await.context("a kept result")?;
    say(cached.line());

    let (scale, workers, seed) = (args.scale, args.workers, args.seed);
    publish(args, &Report { scale, workers, seed, shoal, datafusion, small, cached })
}

async fn load(client: &mut Client, data: &TpchData, table: TpchTable, shards: u32) -> Result<()> {
    client.update(&table.create_statement(shards, None)).await?;
    client.update(&data.copy_statement(table)).await.with_context(|| format!("load {table}"))?;
    Ok(())
}

/// Lookups of each number of clients, asked in both ways: Shoal's and DataFusion's.
async fn lookups(
    args: &PointArgs,
    shoal_url: &str,
    datafusion_url: &str,
) -> Result<(Vec<Level>, Vec<Level>)> {
    let mut levels = (Vec::new(), Vec::new());
    for clients in CLIENTS {
        for asking in [Asking::Statement, Asking::Prepared] {
            let shoal = lookup::level(shoal_url, clients, asking, args).await.context("shoal")?;
            let datafusion =
                lookup::level(datafusion_url, clients, asking, args).await.context("datafusion")?;
            for (name, level) in [("shoal", shoal), ("datafusion", datafusion)] {
                say(format!(
                    "{clients:>3} clients {name:>10} {asking:?}: {:>8.0} lookups/s, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms",
                    level.per_second, level.p50_ms, level.p90_ms, level.p99_ms
                ));
            }
            levels.0.push(shoal);
            levels.1.push(datafusion);
        }
    }
    Ok(levels)
}

/// Shows and writes the report; whether no bar was missed.
fn publish(args: &PointArgs, report: &Report) -> Result<bool> {
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    let missed = missed(&report.bars(args));
    for line in &missed {
        say(line);
    }
    report.summary().print();
    Ok(missed.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        point: PointArgs,
    }

    fn args(flags: &[&str]) -> PointArgs {
        Line::parse_from(["point"].iter().chain(flags)).point
    }

    fn level(asking: Asking, per_second: f64) -> Level {
        Level { clients: 1, asking, lookups: 10, per_second, p50_ms: 1.5, p90_ms: 2.0, p99_ms: 2.5 }
    }

    fn report(over_ms: f64, coordinator_p50_ms: f64) -> Report {
        Report {
            scale: 1.0,
            workers: 4,
            seed: 1,
            shoal: vec![level(Asking::Statement, 600.0), level(Asking::Prepared, 800.0)],
            datafusion: vec![level(Asking::Statement, 300.0), level(Asking::Prepared, 200.0)],
            small: vec![
                SmallQuery::new("one", &[40.0], &[50.0]),
                SmallQuery::new("two", &[1.0 + over_ms], &[1.0]),
            ],
            cached: Cached {
                hits: 10,
                p50_ms: 0.75,
                coordinator_p50_ms,
                coordinator_cpu_ms: 0.25,
                runs: 5,
                uncached_p50_ms: 45.0,
            },
        }
    }

    #[test]
    fn what_measures_nothing_is_refused() {
        check(&args(&[])).unwrap();
        for seconds in ["0", "NaN", "inf"] {
            let refusal = check(&args(&["--seconds", seconds])).unwrap_err().to_string();
            assert!(refusal.starts_with("--seconds"), "{refusal}");
        }
    }

    #[test]
    fn the_last_line_has_lookups_the_worst_small_query_and_kept_results() {
        assert_eq!(
            report(1.5, 0.125).summary().as_str(),
            "point scale=1 workers=4 p50_ms_1=1.50 p99_ms_1=2.50 rate_1=600 ratio_rate_1=2.00 \
             prepared_p50_ms_1=1.50 prepared_p99_ms_1=2.50 prepared_rate_1=800 prepared_ratio_rate_1=4.00 \
             small_p50_over_ms=1.50 small_worst=two cached_p50_ms=0.75 cached_coordinator_p50_ms=0.125 \
             cached_coordinator_cpu_ms=0.250 uncached_p50_ms=45.00"
        );
    }

    #[test]
    fn both_bars_stand_where_nobody_says_otherwise() {
        let lines = |over_ms, coordinator_ms, flags: &[&str]| {
            missed(&report(over_ms, coordinator_ms).bars(&args(flags))).len()
        };
        assert_eq!(lines(2.0, 1.0, &[]), 0);
        assert_eq!((lines(2.25, 1.0, &[]), lines(2.0, 1.001, &[])), (1, 1));
        assert_eq!(lines(f64::NAN, f64::NAN, &[]), 2);
        assert_eq!(lines(9.0, 9.0, &["--small-over-max", "9", "--cached-max", "9"]), 0);
    }
}
