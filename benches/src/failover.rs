//! `shoal-benches failover`: what the death of a worker in the middle of each
//! TPC-H query costs, what its silence costs, and what failover costs when
//! nothing happens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_data::sample::{QUERIES, TpchTable, query};

use crate::answer::{Answer, FLOAT_TOLERANCE, Numbers};
use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions, Program};
use crate::oracle::{Expectation, Oracle};
use crate::report::{Summary, median, say, write_json};
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
    /// Only these queries, by number
    #[arg(long, value_delimiter = ',')]
    pub queries: Vec<usize>,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    query: usize,
    /// Medians of undisturbed runs, in seconds.
    on_s: f64,
    off_s: f64,
    /// With a worker killed, and frozen, half way.
    killed_s: f64,
    frozen_s: f64,
}

/// Runs it; false where an answer was wrong or missing.
///
/// # Errors
/// When something cannot be started, or an answer is wrong.
pub async fn run(args: &FailoverArgs) -> Result<bool> {
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::new(Program::this_executable()?, args.workers);
    options.import_roots = vec![data.dir().to_owned()];
    options.parent_dir = Some(data_root());
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut on = cluster.connect().await?;
    for table in TpchTable::ALL {
        on.update(&table.create_statement(8, Some(3))).await?;
        on.update(&data.copy_statement(table)).await.with_context(|| format!("load {table}"))?;
    }
    let mut off = cluster.connect().await?;
    off.update("SET shoal.failover = false").await?;
    let oracle = Oracle::new(2);
    for table in TpchTable::ALL {
        oracle.register_parquet(table.name(), &data.table_dir(table)).await?;
    }

    let queries: Vec<usize> =
        if args.queries.is_empty() { (1..=QUERIES.len()).collect() } else { args.queries.clone() };
    say(format!("{:>5}{:>10}{:>10}{:>12}{:>12}", "", "on, s", "off, s", "killed, s", "frozen, s"));
    let mut measured = Vec::new();
    for (turn, number) in queries.into_iter().enumerate() {
        let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
        let expected = oracle.expect(sql, Numbers::Exact).await?;
        let (mut on_s, mut off_s) = (Vec::new(), Vec::new());
        timed(&mut on, sql, &expected).await?;
        for _ in 0..args.runs {
            on_s.push(timed(&mut on, sql, &expected).await?);
            off_s.push(timed(&mut off, sql, &expected).await?);
        }
        let half = Duration::from_secs_f64(median(&on_s) / 2.0);
        let worker = format!("worker-{}", turn % args.workers + 1);
        let mut struck = Vec::new();
        for is_kill in [true, false] {
            let striking = tokio::spawn({
                let (cluster, worker) = (Arc::clone(&cluster), worker.clone());
                async move {
                    tokio::time::sleep(half).await;
                    if is_kill { cluster.kill(&worker) } else { cluster.pause(&worker) }
                }
            });
            struck.push(
                timed(&mut on, sql, &expected)
                    .await
                    .with_context(|| format!("q{number} without {worker}"))?,
            );
            striking.await.context("the fault did not strike")??;
            if is_kill {
                cluster.restart(&worker)?
            } else {
                cluster.resume(&worker)?
            }
            cluster.wait_until_joined(args.workers)?;
        }
        let one = Measured {
            query: number,
            on_s: median(&on_s),
            off_s: median(&off_s),
            killed_s: struck[0],
            frozen_s: struck[1],
        };
        say(format!(
            "{:>5}{:>10.3}{:>10.3}{:>12.3}{:>12.3}",
            format!("q{number}"),
            one.on_s,
            one.off_s,
            one.killed_s,
            one.frozen_s
        ));
        measured.push(one);
    }
    ensure!(!measured.is_empty(), "no query was run");
    if let Some(path) = &args.json {
        write_json(path, &measured)?;
    }
    let total = |get: fn(&Measured) -> f64| measured.iter().map(get).sum::<f64>();
    let worst = |get: fn(&Measured) -> f64| {
        // Beyond its normal time once again.
        measured.iter().map(|one| get(one) - 2.0 * one.on_s).fold(f64::MIN, f64::max)
    };
    Summary::new("failover")
        .with("scale", args.scale)
        .with("workers", args.workers)
        .with("ratio_idle", format!("{:.3}", total(|one| one.on_s) / total(|one| one.off_s)))
        .with_number("worst_extra_s_kill", worst(|one| one.killed_s))
        .with_number("worst_extra_s_freeze", worst(|one| one.frozen_s))
        .print();
    Ok(true)
}

/// Seconds of one run, whose answer must be right.
async fn timed(client: &mut Client, sql: &str, expected: &Expectation) -> Result<f64> {
    let began = Instant::now();
    let (schema, batches) = client.query_with_schema(sql).await?;
    let seconds = began.elapsed().as_secs_f64();
    let answer = Answer::new(&schema, &batches, Numbers::Exact)?;
    expected.answer.compare(&answer, expected.order.as_deref(), FLOAT_TOLERANCE)?;
    Ok(seconds)
}
