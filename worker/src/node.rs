//! A worker as a process: its parts, put together, served on one port, and
//! stopped in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use shoal_data::import_store::IMPORT_STORE_URL;
use shoal_data::object_stores::register_object_stores;
use shoal_data::shard_store::{LocalSegments, SHARD_STORE_URL};
use shoal_data::{DataDir, ImportRoots, ImportStore, ShardStore};
use shoal_proto::Channels;
use shoal_proto::cluster::QueryProgress;
use shoal_proto::server::{Incoming, builder};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::coordinators::Coordinators;
use crate::drain::until_drained;
use crate::execute::ExecutionService;
use crate::heartbeat::{ExecutionStatus, Heartbeat, HeartbeatParts, Introduction};
use crate::identity::{Identity, KeptIdentity};
use crate::lanes::ComputeThreads;
use crate::loads::{Files, LoadParts, LoadService};
use crate::locate::CoordinatorLocate;
use crate::replicate::Replicator;
use crate::scrub::Scrub;
use crate::segment_dir::SegmentDir;
use crate::segments::{SegmentService, blocking};
use crate::{Error, WorkerConfig};

/// How long the coordinators may take to hear that this worker stops.
const LEAVE_MAX: Duration = Duration::from_millis(1_500);
/// The part of the memory limit that footers and page indexes may take, besides it.
const FOOTERS_SHARE: usize = 32;
/// What they may take at least.
const FOOTERS_BYTES_MIN: usize = 64 << 20;
/// The part of the memory limit that pieces of segments of other workers may take, besides it.
const KEPT_READS_SHARE: usize = 64;
/// What they may take at most.
const KEPT_READS_BYTES_MAX: usize = 64 << 20;
/// How long nothing must run before a stopping worker takes itself for idle:
/// between two stages of a query nothing runs either.
const IDLE_MIN: Duration = Duration::from_millis(300);
/// How often that is looked at.
const IDLE_CHECK: Duration = Duration::from_millis(20);
/// How long connections may take to close once nothing runs any more.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// How a worker is told to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Its shards go to others first, however long that takes. Then it cancels
    /// `now` itself.
    pub drain: CancellationToken,
    /// It takes no new work and ends within the grace period.
    pub now: CancellationToken,
}

/// Runs a worker on `listener` until `stop`; plans run on the threads of `compute`,
/// all else on the runtime that calls. When stopped it takes no new work, lets running
/// tasks finish within the grace period, and returns.
///
/// # Errors
/// `Invalid` where the data directory is in use or belongs to another worker;
/// `Io` where it cannot be used.
pub async fn run(
    config: WorkerConfig,
    listener: TcpListener,
    compute: ComputeThreads,
    stop: Stop,
) -> Result<(), Error> {
    let listening =
        listener.local_addr().map_err(|error| Error::io("cannot tell the address listened on", error))?;
    let address =
        if config.advertise.is_empty() { format!("http://{listening}") } else { config.advertise.clone() };
    if config.coordinators.is_empty() {
        return Err(Error::Invalid("no coordinator is configured; add --coordinator URL".to_owned()));
    }
    let data_dir = DataDir::lock(&config.data_dir)?;
    let identity = Identity::load(data_dir.path(), config.name.as_deref())?;
    let worker = identity.name.clone();
    let seeds = config.coordinators.iter().chain(&identity.coordinators).cloned();
    let coordinators = Arc::new(Coordinators::new(seeds));
    let identity = Arc::new(KeptIdentity::new(identity, data_dir.path()));
    let spill = data_dir.emptied("spill")?;
    let (data_dir, dir) = blocking(move || {
        let dir = SegmentDir::open(&data_dir)?;
        Ok((data_dir, Arc::new(dir)))
    })
    .await?;

    let channels = Channels::new(Handle::current()).from_loopback(listening.ip()).in_zone(&config.zone);
    let locate = Arc::new(CoordinatorLocate::new(Arc::clone(&coordinators), channels.clone()));
    let replicator = Replicator::new(Arc::clone(&dir), channels.clone(), Handle::current());
    let local = Arc::new(LocalSegments::new(dir.path().to_owned(), Arc::new(replicator.clone())));
    let memory = usize::try_from(config.memory_limit_bytes).unwrap_or(usize::MAX);
    let kept = (memory / KEPT_READS_SHARE).min(KEPT_READS_BYTES_MAX);
    let shards = ShardStore::new(Some(Arc::clone(&local)), locate, channels.clone()).keeping(kept as u64);
    let shards = Arc::new(shards);
    let imports = Arc::new(ImportStore::through(coordinators.in_order(), channels.clone()));

    let footers = (memory / FOOTERS_SHARE).max(FOOTERS_BYTES_MIN);
    let spills = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![spill]));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
        .with_disk_manager_builder(spills)
        .with_metadata_cache_limit(footers)
        .build_arc()?;
    register(&runtime, SHARD_STORE_URL, Arc::clone(&shards) as Arc<dyn object_store::ObjectStore>)?;
    register(&runtime, IMPORT_STORE_URL, imports)?;
    register_object_stores(&runtime, &config.object_stores)?;

    let execution = ExecutionService::new(
        worker.clone(),
        Arc::clone(&runtime),
        shards,
        channels.clone(),
        compute.clone(),
        config.threads,
    );
    let roots = ImportRoots::new(&config.import_roots);
    let loads = LoadService::new(LoadParts {
        worker: worker.clone(),
        dir: Arc::clone(&dir),
        replicator: replicator.clone(),
        files: Files::new(roots, runtime, channels.clone()),
        execution: execution.clone(),
        channels: channels.clone(),
        compute: compute.long,
        threads: config.threads,
        memory_bytes: memory,
    });
    let rows_loaded = loads.rows_loaded();

    let scrub = Scrub::new(Arc::clone(&dir), Arc::clone(&local), config.scrub_bytes_per_second);
    let _scrubbing = AbortOnDropHandle::new(tokio::spawn(scrub.clone().run()));
    let segments = SegmentService::new(worker.clone(), Arc::clone(&dir), local, replicator.clone());
    let end = CancellationToken::new();
    let served = builder()
        .add_service(execution.clone().into_server())
        .add_service(segments.segments_server())
        .add_service(segments.files_server())
        .add_service(loads.into_server())
        .serve_with_incoming_shutdown(Incoming::new(listener), end.clone().cancelled_owned());
    let served = tokio::spawn(served);

    let heartbeat = Heartbeat::start(HeartbeatParts {
        coordinators,
        identity,
        listening: listening.ip(),
        introduction: Introduction {
            address: address.clone(),
            zone: config.zone.clone(),
            memory_bytes: config.memory_limit_bytes,
            threads: u32::try_from(config.threads).unwrap_or(u32::MAX),
        },
        dir: Arc::clone(&dir),
        replicator,
        scrub,
        status: Arc::new(execution.clone()),
        rows_loaded,
    })?;
    data_dir.write_address(&listening.to_string())?;
    tracing::info!(%worker, %address, data_dir = %config.data_dir.display(), "worker is ready");
    let drained = async {
        stop.drain.cancelled().await;
        tracing::info!(%worker, "worker drains: its shards go to others before it stops");
        until_drained(&heartbeat, &dir).await
    };
    tokio::select! {
        () = stop.now.cancelled() => {}
        drained = drained => {
            drained?;
            tracing::info!(%worker, "nothing is left on this worker");
            stop.now.cancel();
        }
    }

    tracing::info!(%worker, grace = ?config.grace, "worker stops: waiting for running tasks");
    heartbeat.leave(LEAVE_MAX.min(config.grace)).await;
    if tokio::time::timeout(config.grace, idle(&execution)).await.is_err() {
        tracing::warn!(%worker, "tasks still run at the end of the grace period and are given up");
    }
    end.cancel();
    let closed = tokio::time::timeout(CLOSE_MAX, served).await;
    blocking(move || {
        drop(heartbeat);
        Ok(())
    })
    .await?;
    match closed {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            return Err(Error::Invalid(format!("the server on {listening} failed: {error}")));
        }
        Ok(Err(panic)) => return Err(Error::Internal(format!("the server panicked: {panic}"))),
        Err(_) => tracing::debug!("connections are cut"),
    }
    tracing::info!(%worker, "worker is stopped");
    Ok(())
}

/// Returns when nothing has run for a while.
async fn idle(execution: &ExecutionService) {
    let mut since = Instant::now();
    while since.elapsed() < IDLE_MIN {
        tokio::time::sleep(IDLE_CHECK).await;
        if execution.tasks_running() > 0 {
            since = Instant::now();
        }
    }
}

fn register(runtime: &RuntimeEnv, url: &str, store: Arc<dyn object_store::ObjectStore>) -> Result<(), Error> {
    let url = Url::parse(url).map_err(|error| Error::Internal(format!("{url}: {error}")))?;
    runtime.register_object_store(&url, store);
    Ok(())
}

impl ExecutionStatus for ExecutionService {
    fn progress(&self) -> Vec<QueryProgress> {
        let still = self.still();
        let mut progress = self.sessions().progress();
        // Where nothing is computed, what comes is not begun, and yet it waits.
        let waiting = still.iter().map(|still| still.attempt.query);
        let waiting: Vec<_> =
            waiting.filter(|query| !progress.iter().any(|(begun, _)| begun == query)).collect();
        progress.extend(waiting.into_iter().map(|query| (query, (0, 0, 0))));
        progress
            .into_iter()
            .map(|(query, (rows, bytes, segments))| {
                let still = still.iter().find(|still| still.attempt.query == query);
                QueryProgress {
                    query: query.to_string(),
                    rows,
                    bytes,
                    segments,
                    still_ms: still
                        .map_or(0, |still| u64::try_from(still.time.as_millis()).unwrap_or(u64::MAX)),
                    attempt: still.map_or(0, |still| still.attempt.number),
                }
            })
            .collect()
    }

    fn tasks_running(&self) -> u32 {
        Self::tasks_running(self)
    }

    fn memory_used_bytes(&self) -> u64 {
        self.sessions().memory_used_bytes()
    }
}
