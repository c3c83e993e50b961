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

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_data::sample::{QUERIES, TpchTable};

use crate::answer::{Answer, FLOAT_TOLERANCE, Numbers};
use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions, Program};
use crate::oracle::{Expectation, Oracle};
use crate::report::{Summary, say, write_json};
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
    queries: Vec<struck::Measured>,
    window: window::Measured,
    straggler: straggler::Measured,
}

/// The cluster, its tables, and what is right.
struct Bench {
    cluster: Arc<Cluster>,
    oracle: Oracle,
    workers: usize,
    runs: usize,
}

/// Runs it.
///
/// # Errors
/// When something cannot be started, or an answer is wrong or missing.
pub async fn run(args: &FailoverArgs) -> Result<bool> {
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::new(Program::this_executable()?, args.workers);
    options.import_roots = vec![data.dir().to_owned()];
    options.parent_dir = Some(data_root());
    options.links = true;
    let cluster = Arc::new(Cluster::start(&options)?);
    let mut client = cluster.connect().await?;
    let oracle = Oracle::new(2);
    for table in TpchTable::ALL {
        client.update(&table.create_statement(8, Some(3))).await?;
        client.update(&data.copy_statement(table)).await.with_context(|| format!("load {table}"))?;
        oracle.register_parquet(table.name(), &data.table_dir(table)).await?;
    }
    let bench = Bench { cluster, oracle, workers: args.workers, runs: args.runs };

    let queries: Vec<usize> =
        if args.queries.is_empty() { (1..=QUERIES.len()).collect() } else { args.queries.clone() };
    let queries = struck::measure(&bench, &queries).await?;
    ensure!(!queries.is_empty(), "no query was run");
    let window = window::measure(&bench).await?;
    say(&window);
    let straggler = straggler::measure(&bench).await?;
    say(&straggler);
    let measured = Measured { queries, window, straggler };
    if let Some(path) = &args.json {
        write_json(path, &measured)?;
    }
    let queries = &measured.queries;
    let total = |get: fn(&struck::Measured) -> f64| queries.iter().map(get).sum::<f64>();
    let worst = |get: fn(&struck::Measured) -> f64| {
        // Beyond its normal time once again.
        queries.iter().map(|one| get(one) - 2.0 * one.on_s).fold(f64::MIN, f64::max)
    };
    Summary::new("failover")
        .with("scale", args.scale)
        .with("workers", args.workers)
        .with("ratio_idle", format!("{:.3}", total(|one| one.on_s) / total(|one| one.off_s)))
        .with_number("worst_extra_s_kill", worst(|one| one.killed_s))
        .with_number("worst_extra_s_cut", worst(|one| one.cut_s))
        .with_number("worst_extra_s_freeze", worst(|one| one.frozen_s))
        .with_number("p99_ratio_window", measured.window.p99_ratio())
        .with_number("straggler_ratio", measured.straggler.ratio())
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
