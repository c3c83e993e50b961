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
use super::cluster::DemoCluster;
use super::ending::Ending;
use super::files::{self, UserFile};
use super::kept::Kept;
use super::roles::Roles;
use super::{commands, load, welcome};
use crate::client::Client;

/// How long the nodes may take to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often is asked whether they have.
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
    let coordinators = match kept.coordinators {
        1 => "a coordinator".to_owned(),
        more => format!("{more} coordinators"),
    };
    eprintln!("Starting {coordinators} and {} workers", kept.workers);
    let cluster = Arc::new(DemoCluster::start(args.keep.as_deref(), &kept, args.threads)?);
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
    let client = Client::connect(&cluster.addresses()?, USER).await?;
    let voters = "SELECT count(*) FROM system.coordinators WHERE role IN ('leader', 'follower')";
    wait_until_joined(&client, "coordinators", voters, kept.coordinators).await?;
    let live = "SELECT count(*) FROM system.workers WHERE state = 'live'";
    wait_until_joined(&client, "workers", live, kept.workers).await?;
    load::load(&client, args, kept, files).await?;
    eprintln!("Ready after {:.1} s", started.elapsed().as_secs_f64());

    ending.leave_interrupts_to_shell();
    if !args.commands.is_empty() {
        return Ok(commands::execute(client, cluster, kept, args).await);
    }
    // Nobody may be reading; then the prompt finds out, too.
    let welcome = welcome::text(cluster, kept, files, &Roles::ask(cluster).await)?;
    let _closed = std::io::stdout().write_all(welcome.as_bytes());
    Ok(commands::prompt(client, cluster, kept, args).await)
}

/// Waits until a query counts so many nodes.
async fn wait_until_joined(client: &Client, nodes: &str, count: &str, wanted: u32) -> Result<()> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    loop {
        match number(client, count).await {
            Ok(joined) if joined >= i64::from(wanted) => return Ok(()),
            _ if Instant::now() < deadline => tokio::time::sleep(JOIN_POLL_INTERVAL).await,
            Ok(joined) => bail!("after {JOIN_TIMEOUT:?} only {joined} of {wanted} {nodes} have joined"),
            Err(error) => return Err(error).with_context(|| format!("cannot ask which {nodes} have joined")),
        }
    }
}

async fn number(client: &Client, sql: &str) -> Result<i64> {
    let batches = client.collect(sql).await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).context("no answer about the nodes")?;
    Ok(batch.column(0).as_primitive::<Int64Type>().value(0))
}
