//! A coordinator as a process: its parts, put together, served on one port,
//! and stopped in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use shoal_data::{DataDir, ImportRoots};
use shoal_proto::Channels;
use shoal_proto::server::{Incoming, builder};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{Catalog, CatalogOptions};
use crate::cluster::repair::CopyRates;
use crate::cluster::{Cluster, ClusterService, ConsensusService, ImportService};
use crate::flight::{FlightDoor, connections};
use crate::{CoordinatorConfig, Engine, Error};

/// How long connections may take to close once nothing runs any more.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Room for a statement as nested as the parser lets through.
const STACK_BYTES: usize = 32 << 20;

/// Priority of the threads for queries, as `nice` has it: those that talk to clients,
/// among which kept lookups run, come first. As at a worker for short queries.
const QUERY_NICE: i32 = 2;

/// Where statements are planned and run, apart from the network.
struct QueryRuntime(Option<Runtime>);

impl QueryRuntime {
    fn start() -> Result<Self, Error> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.max(2))
            .on_thread_start(|| {
                // A wish. Whoever started it may have made it less urgent than that.
                let before = rustix::process::getpriority_process(None).unwrap_or_default();
                let _refused = rustix::process::setpriority_process(None, before.max(QUERY_NICE));
            })
            .thread_name("shoal-query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot start the threads for queries", error))?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for QueryRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // What still runs was given its grace.
            runtime.shutdown_background();
        }
    }
}

/// Runs a coordinator on `listener` until `stop`; then has another one lead,
/// accepts nothing new, lets what runs finish within the grace period, and
/// returns.
///
/// # Errors
/// `Invalid` where the data directory is in use or was written by a newer
/// version; `Io` and `Store` where it cannot be used.
pub async fn run(
    config: CoordinatorConfig,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), Error> {
    let address =
        listener.local_addr().map_err(|error| Error::io("cannot tell the address listened on", error))?;
    let data_dir = DataDir::lock(&config.data_dir)?;
    let spool = data_dir.emptied("spool")?;
    let own_url =
        if config.advertise.is_empty() { format!("http://{address}") } else { config.advertise.clone() };
    let catalog = Catalog::open(CatalogOptions {
        dir: data_dir.path().to_owned(),
        address: own_url,
        listening: address.ip(),
        join: config.join.clone(),
        force_new_cluster: config.force_new_cluster,
    })
    .await?;
    let cluster_id = catalog.snapshot().cluster.clone();
    let rates = CopyRates {
        move_bytes_per_second: config.move_bytes_per_second,
        repair_bytes_per_second: config.repair_bytes_per_second,
    };
    let cluster = Arc::new(Cluster::new(catalog, config.dead_after).with_rates(rates));
    let channels = Channels::new(tokio::runtime::Handle::current());
    let channels = channels.from_loopback(address.ip()).in_zone(&config.zone);
    let import_roots = ImportRoots::new(&config.import_roots);

    // Ends what outlives the last query: heartbeats and loops.
    let end = CancellationToken::new();
    let tasks = TaskTracker::new();
    let watched = Arc::clone(&cluster);
    let ended = end.clone();
    tasks.spawn(async move { watched.run(ended).await });

    let queries = QueryRuntime::start()?;
    let compute = queries.handle();
    let roots = import_roots.clone();
    let engine = Engine::new(&config, Arc::clone(&cluster), channels.clone(), roots, spool, compute)?;

    if config.compaction {
        let (compacting, stop) = (engine.clone(), stop.clone());
        tasks.spawn(async move { compacting.compact_in_background(stop).await });
    }

    let (forgetting, stopping) = (engine.clone(), stop.clone());
    tasks.spawn(async move { forgetting.forget_results_in_background(stopping).await });

    let server = builder()
        .add_service(ClusterService::new(Arc::clone(&cluster), end.clone()).into_server())
        .add_service(ConsensusService::new(Arc::clone(&cluster)).into_server())
        .add_service(ImportService::new(import_roots).into_server());
    let server = server.add_service(FlightDoor::server(engine.clone(), channels));
    let close = CancellationToken::new();
    let incoming =
        Incoming::new(listener).take_until(close.clone().cancelled_owned()).chain(stream::pending());
    let served = server.serve_with_incoming_shutdown(connections(incoming), end.clone().cancelled_owned());
    let served = tasks.spawn(served);

    let counted = Arc::clone(&cluster);
    let ended = end.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = counted.catalog().enlist() => {}
            () = ended.cancelled() => {}
        }
    });
    data_dir.write_address(&address.to_string())?;
    tracing::info!(%address, cluster = %cluster_id, data_dir = %config.data_dir.display(), "coordinator is ready");
    stop.cancelled().await;
    let stopping = Instant::now();
    // Whoever is to lead next may have to connect here for its vote.
    cluster.catalog().hand_over().await;
    close.cancel();

    tracing::info!(grace = ?config.grace, "coordinator stops: waiting for running queries");
    let drained = async {
        engine.drain().await;
    };
    let left = config.grace.saturating_sub(stopping.elapsed());
    if tokio::time::timeout(left, drained).await.is_err() {
        tracing::warn!("queries still run at the end of the grace period and are given up");
    }
    end.cancel();
    tasks.close();
    match tokio::time::timeout(CLOSE_MAX, served).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            return Err(Error::Unavailable(format!("the server on {address} failed: {error}")));
        }
        Ok(Err(panic)) => return Err(Error::Internal(format!("the server panicked: {panic}"))),
        Err(_) => tracing::debug!("connections are cut"),
    }
    tracing::info!("coordinator is stopped");
    Ok(())
}
