//! The course of a demo: start, load, show, prompt, end.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use tokio::runtime::Builder;

use super::DemoArgs;
use super::bars::Bars;
use super::cluster::DemoCluster;
use super::ending::Ending;
use super::files::{self, UserFile};
use super::kept::Kept;
use super::welcome::{self, grouped};
use super::{commands, tpch};
use crate::client::{Address, Client};

/// How long the workers may take to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the coordinator is asked whether they have.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Who the demo's own session says that it is.
const USER: &str = "demo";

/// `shoal demo`.
pub fn run(args: DemoArgs) -> ExitCode {
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(demo(&args));
    // Threads that wait for a key would keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let ending = Ending::listen()?;
    let files = files::plan(&args.load)?;
    let mut kept = Kept::decide(args, args.keep.as_deref())?;

    if let Some(folder) = &args.keep {
        // First of all: a folder without it is not taken for a demo's.
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        kept.write(folder)?;
    }
    let started = Instant::now();
    eprintln!("Starting a coordinator and {} workers", kept.workers);
    let cluster = Arc::new(DemoCluster::start(args.keep.as_deref(), kept.workers, args.threads)?);
    ending.watch(&cluster);
    let ended = at_cluster(args, &mut kept, &files, &cluster, &ending, started).await;
    // Also after an error: what was started is gone before this process is.
    cluster.stop();
    let code = ended?;
    if let Some(folder) = &args.keep {
        eprintln!("The data is kept: shoal demo --keep {}", folder.display());
    }
    Ok(code)
}

async fn at_cluster(
    args: &DemoArgs,
    kept: &mut Kept,
    files: &[UserFile],
    cluster: &Arc<DemoCluster>,
    ending: &Ending,
    started: Instant,
) -> Result<ExitCode> {
    let address = Address::parse(&cluster.coordinator().to_string())?;
    let client = Client::connect(&address, USER).await?;
    wait_until_joined(&client, kept.workers).await?;
    load(args, kept, files, cluster, &client).await?;
    eprintln!("Ready after {:.1} s", started.elapsed().as_secs_f64());

    ending.leave_interrupts_to_shell();
    if !args.commands.is_empty() {
        return Ok(commands::execute(client, cluster, args).await);
    }
    // Nobody may be reading; then the prompt finds out, too.
    let _closed = std::io::stdout().write_all(welcome::text(cluster, kept, files).as_bytes());
    Ok(commands::prompt(client, cluster, args).await)
}

/// Makes and fills what is not there yet.
async fn load(
    args: &DemoArgs,
    kept: &mut Kept,
    files: &[UserFile],
    cluster: &DemoCluster,
    client: &Client,
) -> Result<()> {
    let started = Instant::now();
    let bars = Bars::new();
    let (mut rows, mut tables) = (0, 0);
    if let Some(scale) = kept.scale.filter(|_| !kept.complete) {
        eprintln!("Loading TPC-H at scale {scale}, {} of every shard", copies(kept.replicas));
        rows += tpch::load(client, scale, kept.workers, kept.replicas, &bars).await?;
        tables += 8;
    }
    kept.complete = true;
    if args.keep.is_some() {
        kept.write(cluster.dir())?;
    }
    let names = client.collect("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'").await?;
    for file in files {
        let is_there = names.iter().any(|batch| {
            let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8);
            column.is_ok_and(|column| column.as_string::<i32>().iter().flatten().any(|name| name == file.table()))
        });
        if is_there && args.keep.is_some() {
            eprintln!("The table {} is there already and stays as it is", file.table());
            continue;
        }
        rows += file.load(client, &bars).await?;
        tables += 1;
    }
    bars.clear();
    if tables > 0 {
        let noun = if tables == 1 { "table" } else { "tables" };
        eprintln!("Loaded {} rows into {tables} {noun} in {:.1} s", grouped(rows), started.elapsed().as_secs_f64());
    }
    Ok(())
}

fn copies(replicas: u32) -> String {
    match replicas {
        1 => "one copy".to_owned(),
        2 => "two copies".to_owned(),
        3 => "three copies".to_owned(),
        more => format!("{more} copies"),
    }
}

async fn wait_until_joined(client: &Client, workers: u32) -> Result<()> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    loop {
        let batches = client.collect("SELECT count(*) FROM system.workers WHERE state = 'live'").await?;
        let live = batches.first().context("no answer about the workers")?;
        let live = live.column(0).as_primitive::<Int64Type>().value(0);
        if live >= i64::from(workers) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("after {JOIN_TIMEOUT:?} only {live} of {workers} workers have joined");
        }
        tokio::time::sleep(JOIN_POLL_INTERVAL).await;
    }
}
