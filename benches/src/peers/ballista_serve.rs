//! What runs inside the processes of Ballista. Settings are its own but for those that say
//! where it listens, how much it runs at once, and how long a message may be.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ballista_core::extension::{SessionConfigExt, SessionStateExt};
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_executor::health::ExecutorHealth;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use clap::Subcommand;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::net::TcpStream;

use super::child::Reply;
use super::serve::{answer_queries, say, wait_for_end_of_stdin};

/// Bytes of a message between any two of its processes. Its own limit is 16 MiB, with which q10 of
/// TPC-H fails. It is set wherever there is a setting for it: `ballista.client.grpc_max_message_size` of
/// a session, which clients and executors fetch rows with; and those of the servers of scheduler and
/// executors, and of the scheduler's calls to executors.
const MESSAGE_BYTES_MAX: u32 = 1 << 30;
/// After this a query is taken to have failed: with two partitions q10 of TPC-H at scale 1 does not end, with all
/// processes idle.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tasks that an executor runs at once.
const SLOTS: usize = 1;
/// Of each thread, as in Ballista's own scheduler: plans are walked recursively.
const STACK_BYTES: usize = 32 << 20;
/// How often it is looked whether a process is ready.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
const LOOPBACK: &str = "127.0.0.1";

/// The hidden `peer` subcommands of Ballista.
#[derive(Debug, Subcommand)]
pub enum BallistaCommand {
    /// A client of Ballista.
    Ballista {
        /// Threads of this process.
        #[arg(long)]
        threads: usize,
        /// Partitions of a query.
        #[arg(long)]
        partitions: usize,
        /// Where the scheduler listens, on loopback.
        #[arg(long)]
        scheduler_port: u16,
        /// The list of tables.
        #[arg(long)]
        tables: PathBuf,
    },
    /// The scheduler of Ballista.
    BallistaScheduler {
        /// Where it listens, on loopback.
        #[arg(long)]
        port: u16,
    },
    /// An executor of Ballista.
    BallistaExecutor {
        /// Where it listens for those who fetch rows, on loopback.
        #[arg(long)]
        port: u16,
        /// Where it listens for tasks, on loopback.
        #[arg(long)]
        grpc_port: u16,
        /// Where the scheduler listens, on loopback.
        #[arg(long)]
        scheduler_port: u16,
        /// Where it keeps rows for the next stages.
        #[arg(long)]
        work_dir: PathBuf,
    },
}

/// Runs a process of Ballista until its standard input closes.
///
/// # Errors
/// When it cannot start, or ends by itself.
pub(super) fn run(command: &BallistaCommand) -> Result<()> {
    match command {
        BallistaCommand::Ballista { threads, partitions, scheduler_port, tables } => {
            answer_queries(*threads, client(*partitions, *scheduler_port)?, tables, PATIENCE)
        }
        BallistaCommand::BallistaScheduler { port } => {
            let address = loopback(*port);
            until_end_of_stdin(serve_scheduler(*port, address), listens(address))
        }
        BallistaCommand::BallistaExecutor { port, grpc_port, scheduler_port, work_dir } => {
            let config = executor(*port, *grpc_port, *scheduler_port, work_dir)?;
            let is_ready = has_joined(config.health.clone(), loopback(*port));
            let serving = async { Ok(start_executor_process(Arc::new(config)).await?) };
            until_end_of_stdin(serving, is_ready)
        }
    }
}

/// What a session is set to where it begins: in the client, the scheduler and the executors.
fn session_config() -> SessionConfig {
    SessionConfig::new_with_ballista().with_ballista_grpc_client_max_message_size(MESSAGE_BYTES_MAX as usize)
}

fn client(partitions: usize, scheduler_port: u16) -> Result<SessionContext> {
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(session_config().with_target_partitions(partitions))
        .build()
        .upgrade_for_ballista(format!("http://{LOOPBACK}:{scheduler_port}"))?;
    Ok(SessionContext::new_with_state(state))
}

async fn serve_scheduler(port: u16, address: SocketAddr) -> Result<()> {
    let config = SchedulerConfig::default()
        .with_hostname(LOOPBACK)
        .with_port(port)
        .with_grpc_server_max_decoding_message_size(MESSAGE_BYTES_MAX)
        .with_grpc_server_max_encoding_message_size(MESSAGE_BYTES_MAX)
        .with_grpc_client_max_message_size(MESSAGE_BYTES_MAX)
        .with_override_config_producer(Arc::new(session_config));
    let cluster = BallistaCluster::new_from_config(&config).await?;
    Ok(start_server(cluster, address, Arc::new(config)).await?)
}

fn executor(
    port: u16,
    grpc_port: u16,
    scheduler_port: u16,
    work_dir: &Path,
) -> Result<ExecutorProcessConfig> {
    let work_dir = work_dir.to_str().context("a directory whose name is no text")?;
    Ok(ExecutorProcessConfig {
        bind_host: LOOPBACK.to_owned(),
        external_host: Some(LOOPBACK.to_owned()),
        port,
        grpc_port,
        scheduler_host: LOOPBACK.to_owned(),
        scheduler_port,
        vcores: SLOTS,
        work_dir: Some(work_dir.to_owned()),
        grpc_max_decoding_message_size: MESSAGE_BYTES_MAX,
        grpc_max_encoding_message_size: MESSAGE_BYTES_MAX,
        override_config_producer: Some(Arc::new(session_config)),
        ..ExecutorProcessConfig::default()
    })
}

/// Serves, says when it is ready, and ends with the parent.
fn until_end_of_stdin(
    serving: impl Future<Output = Result<()>>,
    is_ready: impl Future<Output = ()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("start threads")?;
    let told = runtime.block_on(async {
        let parent = async {
            is_ready.await;
            say(&Reply::default())?;
            tokio::task::spawn_blocking(wait_for_end_of_stdin).await?;
            Ok(())
        };
        tokio::select! {
            served = serving => {
                served?;
                bail!("it ended by itself")
            }
            told = parent => told,
        }
    });
    // Who reads standard input may still wait for its end.
    runtime.shutdown_background();
    told
}

async fn listens(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Returns when the scheduler knows an executor, and others reach it.
async fn has_joined(health: ExecutorHealth, address: SocketAddr) {
    while !health.is_ready() {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    listens(address).await;
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
