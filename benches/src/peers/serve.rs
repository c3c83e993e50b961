//! What runs inside the child processes of peers: DataFusion in one process,
//! and plain datafusion-distributed. Ballista's is in `ballista_serve.rs`.

use std::fs::File;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use clap::Subcommand;
use datafusion::common::{DataFusionError, not_impl_err};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_distributed::{
    DistributedExec, DistributedExt, SessionStateBuilderExt, Worker, WorkerResolver,
};
use shoal_coordinator::query::{Elapsed, TimeSplit, Work};
use shoal_proto::exchange::compact;
use tonic::transport::Server;
use url::Url;

use super::TableFiles;
use super::child::{Reply, Request};

/// After this a query is taken to have failed: some take an engine hours for which others take a second.
const PATIENCE: Duration = Duration::from_secs(600);

/// The hidden `peer` subcommands of `shoal-benches`.
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Single-process DataFusion.
    Datafusion {
        /// Threads and partitions.
        #[arg(long)]
        threads: usize,
        /// Bytes of memory for queries, which spill what they can; not given: no limit.
        #[arg(long)]
        memory: Option<usize>,
        /// The list of tables.
        #[arg(long)]
        tables: PathBuf,
    },
    /// The coordinator of plain datafusion-distributed.
    Dfd {
        /// Threads of this process.
        #[arg(long)]
        threads: usize,
        /// Partitions of a task.
        #[arg(long)]
        partitions: usize,
        /// Ports of its workers on loopback.
        #[arg(long, value_delimiter = ',')]
        workers: Vec<u16>,
        /// The list of tables.
        #[arg(long)]
        tables: PathBuf,
    },
    /// A worker of plain datafusion-distributed.
    DfdWorker {
        /// Threads of this process.
        #[arg(long)]
        threads: usize,
        /// Where it listens, on loopback.
        #[arg(long)]
        port: u16,
    },
    /// Single-process DataFusion behind Shoal's Flight encoding.
    Flight {
        /// Threads and partitions.
        #[arg(long)]
        threads: usize,
        /// Queries that run at once; the others wait. Not given: all run.
        #[arg(long)]
        queries: Option<usize>,
        /// The list of tables.
        #[arg(long)]
        tables: PathBuf,
    },
    /// Processes of Ballista.
    #[cfg(feature = "ballista")]
    #[command(flatten)]
    Ballista(super::ballista_serve::BallistaCommand),
}

/// Runs a peer until its standard input closes.
///
/// # Errors
/// When it cannot start.
pub fn run(command: &PeerCommand) -> Result<()> {
    match command {
        PeerCommand::Datafusion { threads, memory, tables } => {
            let config = SessionConfig::new().with_target_partitions(*threads);
            let mut runtime = RuntimeEnvBuilder::new();
            if let Some(bytes) = memory {
                runtime = runtime.with_memory_pool(Arc::new(FairSpillPool::new(*bytes)));
            }
            let context = SessionContext::new_with_config_rt(config, runtime.build_arc()?);
            answer_queries(*threads, context, tables, PATIENCE)
        }
        PeerCommand::Dfd { threads, partitions, workers, tables } => {
            let state = SessionStateBuilder::new()
                .with_default_features()
                .with_config(SessionConfig::new().with_target_partitions(*partitions))
                .with_distributed_worker_resolver(LoopbackWorkers { ports: workers.clone() })
                .with_distributed_planner()
                .build();
            answer_queries(*threads, SessionContext::from(state), tables, PATIENCE)
        }
        PeerCommand::DfdWorker { threads, port } => serve_worker(*threads, *port),
        PeerCommand::Flight { threads, queries, tables } => {
            crate::flight_peer::serve(*threads, *queries, tables)
        }
        #[cfg(feature = "ballista")]
        PeerCommand::Ballista(command) => super::ballista_serve::run(command),
    }
}

/// A runtime with so many threads.
///
/// # Errors
/// When threads cannot be started.
pub(crate) fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_stack_size(8 << 20)
        .enable_all()
        .build()
        .context("start threads")
}

/// Answers what is asked on standard input, until that closes.
///
/// # Errors
/// When a table cannot be read, or the parent does not listen.
pub(super) fn answer_queries(
    threads: usize,
    context: SessionContext,
    tables: &Path,
    patience: Duration,
) -> Result<()> {
    let runtime = runtime(threads)?;
    runtime.block_on(register(&context, tables))?;
    say(&Reply::default())?;
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let context = context.clone();
        let reply = async move {
            match request.split {
                true => split(&context, &request.sql).await,
                false => answer(context, request, patience).await,
            }
        };
        let reply = runtime.block_on(async move { tokio::spawn(reply).await })?;
        say(&reply)?;
    }
    Ok(())
}

async fn answer(context: SessionContext, request: Request, patience: Duration) -> Reply {
    let started = Instant::now();
    let executed = tokio::time::timeout(patience, execute(&context, &request.sql)).await;
    let seconds = started.elapsed().as_secs_f64();
    let failed = |error: String| Reply { seconds, error: Some(error), ..Reply::default() };
    match executed {
        Err(_elapsed) => failed(format!("no answer after {} s", patience.as_secs())),
        Ok(Err(error)) => failed(error.strip_backtrace()),
        Ok(Ok((schema, batches))) => {
            if let Some(path) = &request.answer
                && let Err(error) = write_rows(path, &schema, &batches)
            {
                return failed(format!("{error:#}"));
            }
            let rows = batches.iter().map(RecordBatch::num_rows).sum();
            Reply { seconds, rows, ..Reply::default() }
        }
    }
}

/// Where the time of a query goes that runs in this process.
async fn split(context: &SessionContext, sql: &str) -> Reply {
    match measured(context, sql).await {
        Ok(split) => Reply { split: Some(split.to_string()), ..Reply::default() },
        Err(error) => Reply { error: Some(error.strip_backtrace()), ..Reply::default() },
    }
}

async fn measured(context: &SessionContext, sql: &str) -> Result<TimeSplit, DataFusionError> {
    let started = Instant::now();
    let frame = context.sql(sql).await?;
    let task = Arc::new(frame.task_ctx());
    let physical = frame.create_physical_plan().await?;
    if physical.is::<DistributedExec>() {
        // What its workers do is not in it.
        return not_impl_err!("where the time of a distributed plan goes");
    }
    let plan = started.elapsed();
    collect(Arc::clone(&physical), task).await?;
    let total = started.elapsed();
    let elapsed = Elapsed { total, plan, wait: total.saturating_sub(plan), ..Elapsed::default() };
    Ok(TimeSplit { elapsed, work: Work::of(&physical)? })
}

async fn execute(
    context: &SessionContext,
    sql: &str,
) -> Result<(SchemaRef, Vec<RecordBatch>), DataFusionError> {
    let frame = context.sql(sql).await?;
    let schema = frame.schema().inner().clone();
    let batches = frame.collect().await?;
    Ok((batches.first().map_or(schema, RecordBatch::schema), batches))
}

fn write_rows(path: &Path, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<()> {
    let mut writer = FileWriter::try_new(File::create(path)?, schema)?;
    for batch in batches {
        // Sorted batches share their text, and each would be written with all of it.
        writer.write(&compact(batch.clone())?)?;
    }
    writer.finish()?;
    Ok(())
}

/// Registers the tables that a file lists.
///
/// # Errors
/// When one cannot be read.
pub(crate) async fn register(context: &SessionContext, tables: &Path) -> Result<()> {
    let tables: Vec<TableFiles> = serde_json::from_slice(&std::fs::read(tables).context("list of tables")?)?;
    for TableFiles { table, paths } in tables {
        let urls = paths
            .iter()
            .map(|path| {
                let slash = if path.is_dir() { "/" } else { "" };
                ListingTableUrl::parse(format!("{}{slash}", path.display()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        // As the session says: Ballista's reads no text as views, with which its messages get far too long.
        let parquet = context.state().default_table_options().parquet;
        let format = ParquetFormat::default().with_options(parquet);
        let options = ListingOptions::new(Arc::new(format)).with_file_extension(".parquet");
        let config = ListingTableConfig::new_with_multi_paths(urls)
            .with_listing_options(options)
            .infer_schema(&context.state())
            .await
            .with_context(|| format!("table {table}"))?;
        context.register_table(table, Arc::new(ListingTable::try_new(config)?))?;
    }
    Ok(())
}

fn serve_worker(threads: usize, port: u16) -> Result<()> {
    let runtime = runtime(threads)?;
    let service = Worker::default().into_worker_server();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let serving = runtime.spawn(async move { Server::builder().add_service(service).serve(address).await });
    while std::net::TcpStream::connect(address).is_err() {
        anyhow::ensure!(!serving.is_finished(), "the worker cannot listen on {address}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    say(&Reply::default())?;
    wait_for_end_of_stdin();
    Ok(())
}

/// Returns when the parent has closed our standard input, or has ended.
pub(crate) fn wait_for_end_of_stdin() {
    let mut ignored = String::new();
    while std::io::stdin().lock().read_line(&mut ignored).is_ok_and(|bytes| bytes > 0) {
        ignored.clear();
    }
}

/// Tells the parent one line.
pub(super) fn say(reply: &Reply) -> Result<()> {
    say_line(&serde_json::to_string(reply)?)
}

pub(crate) fn say_line(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    Ok(())
}

#[derive(Clone)]
struct LoopbackWorkers {
    ports: Vec<u16>,
}

#[async_trait::async_trait]
impl WorkerResolver for LoopbackWorkers {
    fn get_urls(&self) -> Result<Vec<Url>, DataFusionError> {
        self.ports
            .iter()
            .map(|port| {
                Url::parse(&format!("http://127.0.0.1:{port}"))
                    .map_err(|error| DataFusionError::External(Box::new(error)))
            })
            .collect()
    }
}
