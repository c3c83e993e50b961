//! Runs one node in this process: settings, log, runtimes, signals.
//!
//! What a node does is not here but in `shoal-coordinator` and
//! `shoal-worker`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ArgMatches;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shoal_coordinator::CoordinatorConfig;
use shoal_worker::WorkerConfig;
use shoal_worker::lanes::ComputeThreads;
use shoal_worker::node::Stop;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::EXIT_USAGE;
use crate::config::{
    ConfigError, CoordinatorSettings, Layers, NodeSettings, WorkerSettings, cores, start_logging,
};

/// Threads of a worker that talk to the network; one at a time may compute for a lookup.
const IO_THREADS: usize = 2;
/// With a lower limit of open files a node says so.
const FILES_WANTED: u64 = 16_384;
/// Threads of the smallest coordinator.
const COORDINATOR_THREADS_MIN: usize = 2;
/// Stack of each thread: planning is recursive, and statements can be deep.
const STACK_BYTES: usize = 8 << 20;
/// Polls after which timers and sockets are looked at: one poll of a query may
/// take a tenth of a second.
const EVENT_INTERVAL: u32 = 7;
/// How long after the grace period a node that does not end is ended.
const OVERTIME: Duration = Duration::from_secs(3);
/// How long threads that still run may hold up the end of the process.
const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_millis(200);

/// `shoal coordinator`.
pub fn coordinator(matches: &ArgMatches) -> ExitCode {
    // On the command line only: a setting would be there at the next start, too.
    let force_new_cluster = matches.get_flag("force_new_cluster");
    let serve = |settings| serve_coordinator(settings, force_new_cluster);
    run_node("coordinator", matches, CoordinatorSettings::read, |settings| &settings.node, serve)
}

/// `shoal worker`.
pub fn worker(matches: &ArgMatches) -> ExitCode {
    run_node("worker", matches, WorkerSettings::read, |settings| &settings.node, serve_worker)
}

fn run_node<S>(
    command: &'static str,
    matches: &ArgMatches,
    read: impl FnOnce(&mut Layers) -> Result<S, ConfigError>,
    common: impl Fn(&S) -> &NodeSettings,
    serve: impl FnOnce(S) -> Result<()>,
) -> ExitCode {
    let decided = decide(command, matches, read, &common);
    let (settings, warnings) = match decided {
        Ok(Some(decided)) => decided,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    start_logging(&common(&settings).log);
    open_many_files();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if common(&settings).is_exposed() {
        tracing::warn!(
            listen = %common(&settings).listen,
            "INSECURE: this node is open to the network, without TLS and without passwords; \
             whoever reaches it can read and change everything"
        );
    }
    if matches.get_flag("stop_with_stdin") {
        stop_with_stdin(matches.get_one::<PathBuf>("remove_with_stdin").cloned());
    }
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{command} ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Looks the settings up; none where they were only to be printed.
fn decide<S>(
    command: &'static str,
    matches: &ArgMatches,
    read: impl FnOnce(&mut Layers) -> Result<S, ConfigError>,
    common: impl Fn(&S) -> &NodeSettings,
) -> Result<Option<(S, Vec<String>)>, ConfigError> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    let mut layers = Layers::new(command, matches, environment)?;
    let settings = read(&mut layers)?;
    if matches.get_flag("print_config") {
        // Whoever reads it may have had enough, such as `head`.
        let _closed = std::io::stdout().write_all(layers.document()?.as_bytes());
        return Ok(None);
    }
    let warnings = layers.finish()?;
    common(&settings).check()?;
    Ok(Some((settings, warnings)))
}

fn serve_coordinator(settings: CoordinatorSettings, force_new_cluster: bool) -> Result<()> {
    let runtime = runtime("coordinator", cores().max(COORDINATOR_THREADS_MIN), 0)?;
    let ended = runtime.block_on(async {
        let listener = listen(&settings.node).await?;
        let stop = stop_on_signals(settings.node.grace, None)?;
        let config = CoordinatorConfig {
            data_dir: settings.node.data_dir,
            advertise: settings.node.advertise.unwrap_or_default(),
            join: settings.join,
            force_new_cluster,
            import_roots: settings.import_roots,
            object_stores: settings.object_stores,
            zone: settings.zone,
            queries_max: settings.max_queries,
            queue_max: settings.queue_limit,
            queue_timeout: settings.queue_timeout,
            memory_limit_bytes: settings.memory_limit.0,
            query_memory_bytes: settings.query_memory_limit.0,
            write_buffer_bytes: usize::try_from(settings.write_buffer.0).unwrap_or(usize::MAX),
            result_cache_bytes: usize::try_from(settings.result_cache.0).unwrap_or(usize::MAX),
            dead_after: settings.dead_after,
            move_bytes_per_second: settings.move_rate.0,
            repair_bytes_per_second: settings.repair_rate.0,
            compaction: settings.compaction,
            grace: settings.node.grace,
        };
        shoal_coordinator::node::run(config, listener, stop).await.map_err(anyhow::Error::from)
    });
    runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    ended
}

/// The priority of the threads that compute, as `nice` has it: those that move bytes come
/// first. Other nodes wait for them, and copies of what has too few.
const COMPUTE_NICE: i32 = 5;
/// The same of those that compute for short queries, between the two: who asks little is
/// not to wait for those who ask much.
const SHORT_NICE: i32 = 2;

fn serve_worker(settings: WorkerSettings) -> Result<()> {
    let io = runtime("io", IO_THREADS, 0)?;
    let compute = runtime("compute", settings.threads, COMPUTE_NICE)?;
    let short = runtime("short", settings.threads, SHORT_NICE)?;
    let ended = io.block_on(async {
        let listener = listen(&settings.node).await?;
        let drain = CancellationToken::new();
        let now = stop_on_signals(settings.node.grace, settings.drain.then(|| drain.clone()))?;
        let stop = Stop { drain, now };
        let config = WorkerConfig {
            data_dir: settings.node.data_dir,
            advertise: settings.node.advertise.unwrap_or_default(),
            coordinators: settings.coordinators,
            name: settings.name,
            zone: settings.zone,
            object_stores: settings.object_stores,
            import_roots: settings.import_roots,
            memory_limit_bytes: settings.memory_limit.0,
            threads: settings.threads,
            scrub_bytes_per_second: settings.scrub_rate.0,
            grace: settings.node.grace,
        };
        let threads = ComputeThreads { long: compute.handle().clone(), short: short.handle().clone() };
        shoal_worker::node::run(config, listener, threads, stop).await.map_err(anyhow::Error::from)
    });
    short.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    compute.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    io.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    ended
}

/// Raises this process' limit of open files to what the system grants it. It begins with fewer, for programs
/// that use `select`; here each connection is one, and each batch of a query that waits on disk.
fn open_many_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(?current, ?maximum, "the limit of open files stays as it is: {error}");
    }
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < FILES_WANTED) {
        tracing::warn!(
            files,
            "few files may be open at once: a large query that spills may fail; \
             {FILES_WANTED} are enough for most (`ulimit -Hn`, LimitNOFILE of systemd)"
        );
    }
}

/// Threads of which others on the same cores come first, where `nice` is more than 0.
fn runtime(name: &str, threads: usize, nice: i32) -> Result<Runtime> {
    Builder::new_multi_thread()
        .on_thread_start(move || {
            // It is a wish: where it is refused they are as quick as the others.
            if nice > 0 {
                // Whoever started it may have made it less urgent than that.
                let before = rustix::process::getpriority_process(None).unwrap_or_default();
                let _refused = rustix::process::setpriority_process(None, before.max(nice));
            }
        })
        .worker_threads(threads)
        .thread_name(name)
        .thread_stack_size(STACK_BYTES)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .context("cannot start threads")
}

async fn listen(node: &NodeSettings) -> Result<TcpListener> {
    let (listener, _address) = shoal_proto::server::bind(node.listen).await?;
    Ok(listener)
}

/// A token that the first SIGTERM or SIGINT cancels. Where there is `drain`, the
/// first one cancels that, and the node cancels the token itself when it is
/// drained, or else the second one does. One more ends the process, as does a
/// node that takes much longer than its grace period.
fn stop_on_signals(grace: Duration, drain: Option<CancellationToken>) -> Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        if let Some(drain) = drain {
            let (name, _) = signals.next().await;
            tracing::info!(signal = name, "draining; another signal stops without that");
            drain.cancel();
        }
        tokio::select! {
            (name, _) = signals.next() => {
                tracing::info!(signal = name, ?grace, "stopping; another signal stops at once");
                cancelled.cancel();
            }
            () = cancelled.cancelled() => {}
        }
        let status = tokio::select! {
            (_, kind) = signals.next() => 128 + kind.as_raw_value(),
            () = tokio::time::sleep(grace + OVERTIME) => 1,
        };
        tracing::warn!("stopping at once");
        std::process::exit(status);
    });
    Ok(stop)
}

/// The signals that ask a node to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// The next one, with its name.
    async fn next(&mut self) -> (&'static str, SignalKind) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
        }
    }
}

/// Ends the process when standard input ends: then whoever started it is
/// gone, in whatever way.
fn stop_with_stdin(remove: Option<PathBuf>) {
    let watch = move || {
        let mut input = std::io::stdin().lock();
        let mut buffer = [0; 256];
        while input.read(&mut buffer).is_ok_and(|read| read > 0) {}
        if let Some(folder) = remove {
            remove_folder(&folder);
        }
        std::process::exit(0);
    };
    let started = std::thread::Builder::new().name("stdin".to_owned()).spawn(watch);
    if let Err(error) = started {
        tracing::warn!(%error, "cannot watch standard input");
    }
}

/// Removes a folder in which other nodes, about to end like this one, may
/// still be writing.
fn remove_folder(folder: &Path) {
    for _attempt in 0..20 {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Ok(()) | Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_as_many_files_open_as_it_may() {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let fewer = current.map(|current| current - 1).or(Some(10_000));
        setrlimit(Resource::Nofile, Rlimit { current: fewer, maximum }).unwrap();
        open_many_files();
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: maximum, maximum });
    }
}
