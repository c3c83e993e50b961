//! What the front doors call: sessions, statements, writes and queries, with
//! nothing of any protocol in it.

mod availability;
mod compaction;
mod copy;
mod create_table;
mod create_view;
mod ddl;
mod head_start;
mod kept_plans;
mod lookup;
mod many_rows;
mod names;
mod own_thread;
mod planned;
mod prepared;
mod rebalance;
mod results;
mod runtime;
mod select;
mod write;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::CatalogProviderList;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use futures::FutureExt;
use parking_lot::Mutex;
use serde::Serialize;
use shoal_data::ImportRoots;
use shoal_proto::exchange::{QueryOptions, panic_failure};
use shoal_proto::{Channels, Failure, QueryId, WriteId};
use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::Uuid;

use crate::catalog::{Coordinator, CoordinatorId, State};
use crate::cluster::{Cluster, PinGuard, Pinned};
use crate::query::{
    Admission, Attempts, Certificate, Planning, Registry, ResultCache, StateTemplate, TIME_ZONE,
};
use crate::session::Settings;
use crate::sql::{LookedUp, ShoalConfig, SnapshotCatalogs, SystemTables, with_hint};
use crate::write::WriteContext;
use crate::{CoordinatorConfig, Error, Session};

pub use head_start::HeadStart;
use head_start::HeadStarts;
use kept_plans::KeptPlans;
pub use prepared::Prepared;
use runtime::coordinator_runtime;

/// A session that nobody used for so long is forgotten.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a stopping coordinator looks whether something still runs.
const DRAIN_CHECK: Duration = Duration::from_millis(20);
/// Sessions that one coordinator remembers.
const SESSIONS_MAX: usize = 10_000;

/// One coordinator's engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    cluster: Arc<Cluster>,
    template: Arc<StateTemplate>,
    attempts: Attempts,
    admission: Admission,
    registry: Registry,
    results: ResultCache,
    plans: KeptPlans,
    head_starts: HeadStarts,
    /// Statements that change something, for as long as each runs.
    changes: TaskTracker,
    system: SystemTables,
    writes: WriteContext,
    /// One compaction at a time.
    compacting: Arc<tokio::sync::Mutex<()>>,
    imports: ImportRoots,
    object_stores: Arc<[String]>,
    compute: Handle,
    query_memory_bytes: u64,
    sessions: Arc<Mutex<HashMap<String, Arc<Session>>>>,
}

/// A query that runs: its rows come as the stream is polled. Dropping the
/// stream cancels the query everywhere.
pub struct QueryOutput {
    /// For `KILL QUERY`, progress and `system.queries`.
    pub query: QueryId,
    /// Columns of each batch.
    pub schema: SchemaRef,
    /// The rows.
    pub stream: SendableRecordBatchStream,
}

/// What a bulk ingest does with its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngestMode {
    /// The table must not exist; it is created from the rows' columns.
    Create,
    /// The table must exist.
    Append,
    /// The table is created where it does not exist.
    CreateAppend,
    /// The table's rows and columns are replaced, in one commit.
    Replace,
}

/// A bulk ingest.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// None: the session's current schema.
    pub schema_name: Option<String>,
    /// The table.
    pub table: String,
    /// What to do with it.
    pub mode: IngestMode,
    /// The client's id for this write, if it has one.
    pub write_id: Option<WriteId>,
}

/// Where a query is, for progress lines.
#[derive(Clone, Debug, Serialize)]
pub struct QueryProgress {
    /// `queued`, `running`, `finished`, `failed` or `cancelled`.
    pub state: String,
    /// Place in the queue, from 1, while queued.
    pub queue_position: Option<usize>,
    /// Segments opened so far.
    pub segments_done: u64,
    /// Segments that the plan reads.
    pub segments_total: u64,
    /// Rows read from segments so far, over all workers.
    pub rows: u64,
    /// Bytes read from segments so far, over all workers.
    pub bytes: u64,
    /// Workers that run something of it.
    pub workers_busy: usize,
    /// Since it was submitted.
    pub elapsed_ms: u64,
}

const TIME_ZONE_SETTING: &str = "datafusion.execution.time_zone";

/// One statement's hold on the world: a pinned snapshot and the settings.
struct Scope {
    snapshot: Arc<State>,
    /// Whether the catalog had caught up: a majority said that there is no newer one.
    is_caught_up: bool,
    pin: PinGuard,
    settings: Settings,
    planning: Planning,
    /// The names that were looked up for it so far.
    looked_up: LookedUp,
}

impl Engine {
    /// An engine over a cluster; `spill_dir` takes what does not fit in
    /// memory. Statements are planned and run on `compute`: however long one
    /// takes to plan, heartbeats and other clients are heard.
    ///
    /// # Errors
    /// Where the spill directory cannot be used.
    pub fn new(
        config: &CoordinatorConfig,
        cluster: Arc<Cluster>,
        channels: Channels,
        imports: ImportRoots,
        spill_dir: PathBuf,
        compute: Handle,
    ) -> Result<Self, Error> {
        let attempts = Attempts::new(Arc::clone(&cluster), &config.zone, &spill_dir);
        let (runtime, shards) = coordinator_runtime(config, &cluster, &channels, &imports, spill_dir)?;
        let registry = Registry::default();
        let results = ResultCache::new(config.result_cache_bytes);
        let admission = Admission::new(config.queries_max, config.queue_max, config.queue_timeout);
        Ok(Self {
            template: Arc::new(StateTemplate::new(runtime, shards, channels.clone(), imports.clone())),
            attempts,
            system: SystemTables::new(
                Arc::clone(&cluster),
                registry.clone(),
                admission.clone(),
                results.clone(),
            ),
            writes: WriteContext::new(Arc::clone(&cluster), channels, config.write_buffer_bytes),
            compacting: Arc::default(),
            query_memory_bytes: config.query_memory_bytes,
            sessions: Arc::default(),
            changes: TaskTracker::new(),
            cluster,
            admission,
            registry,
            results,
            plans: KeptPlans::default(),
            head_starts: HeadStarts::new(),
            imports,
            compute,
            object_stores: config.object_stores.clone().into(),
        })
    }

    /// The number of this coordinator.
    pub fn coordinator(&self) -> CoordinatorId {
        self.cluster.catalog().consensus().me
    }

    /// The id of the cluster.
    pub fn cluster_id(&self) -> &str {
        &self.cluster.catalog().consensus().cluster
    }

    /// The coordinators of the cluster, by number.
    pub fn coordinators(&self) -> Vec<Coordinator> {
        self.cluster.catalog().coordinators()
    }

    /// A new session for `user`; find it again with [`Engine::session`]. Its id
    /// begins with the number of this coordinator, which alone knows it.
    pub fn open_session(&self, user: &str) -> Arc<Session> {
        let id = format!("{}-{}", self.coordinator(), Uuid::new_v4().simple());
        let session = Arc::new(Session::new(id.clone(), user, Arc::new(self.template.options())));
        let mut sessions = self.sessions.lock();
        if sessions.len() >= SESSIONS_MAX {
            let idle = |session: &Arc<Session>| session.used_at().elapsed() > SESSION_IDLE_MAX;
            sessions.retain(|_, session| !idle(session));
            if sessions.len() >= SESSIONS_MAX
                && let Some(oldest) =
                    sessions.iter().min_by_key(|(_, session)| session.used_at()).map(|(id, _)| id.clone())
            {
                sessions.remove(&oldest);
            }
        }
        sessions.insert(id, Arc::clone(&session));
        session
    }

    /// A session for one statement, with these settings. It has no id by which
    /// [`Engine::session`] would find it.
    ///
    /// # Errors
    /// `Invalid`, naming the setting that cannot be as it is told.
    pub fn passing_session(&self, user: &str, settings: &[(String, String)]) -> Result<Arc<Session>, Error> {
        let id = Uuid::new_v4().simple().to_string();
        let session = Session::new(id, user, Arc::new(self.template.options())).passing();
        for (name, value) in settings {
            session.set(name, Some(value))?;
        }
        Ok(Arc::new(session))
    }

    /// The session with this id, unless it was closed or expired.
    pub fn session(&self, id: &str) -> Option<Arc<Session>> {
        let session = self.sessions.lock().get(id).cloned()?;
        session.touch();
        Some(session)
    }

    /// Ends a session and what it prepared.
    pub fn close_session(&self, id: &str) {
        self.sessions.lock().remove(id);
    }

    /// Stops a query; whether it was there to be stopped.
    pub fn cancel(&self, query: QueryId) -> bool {
        self.registry.cancel(query)
    }

    /// Waits until nothing runs; new statements are refused from now on, but
    /// for those that an operator needs: system tables and `KILL QUERY`.
    pub async fn drain(&self) {
        self.admission.close();
        self.changes.close();
        self.changes.wait().await;
        while self.registry.live_count() > 0 {
            tokio::time::sleep(DRAIN_CHECK).await;
        }
    }

    /// Counts a statement that changes something, until this is dropped.
    ///
    /// # Errors
    /// `Stopping`.
    fn begin_change(&self) -> Result<TaskTrackerToken, Error> {
        let change = self.changes.token();
        // Looked at with the token in hand: whoever closes waits for that.
        if self.changes.is_closed() { Err(Error::Stopping) } else { Ok(change) }
    }

    /// Where a running or recent query is.
    pub fn progress(&self, query: QueryId) -> Option<QueryProgress> {
        let record = self.registry.find(query)?;
        let read = self.cluster.progress(record.on_workers);
        let total = record.segments_total.load(std::sync::atomic::Ordering::Relaxed);
        Some(QueryProgress {
            state: record.state().name().to_owned(),
            queue_position: record.ticket().map(|ticket| self.admission.place(ticket)),
            segments_done: read.segments.min(total),
            segments_total: total,
            rows: read.rows,
            bytes: read.bytes,
            workers_busy: read.workers,
            elapsed_ms: u64::try_from(record.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// What the result of a recent query rests on; none before its last row
    /// came, or where it did not come to that.
    pub fn certificate(&self, query: QueryId) -> Option<Arc<Certificate>> {
        self.registry.find(query)?.certificate()
    }

    /// Waits until [`Self::catalog`] is at least as new as whatever any
    /// coordinator acknowledged before.
    ///
    /// # Errors
    /// `Unavailable` where no majority of the coordinators answers.
    pub async fn catch_up(&self) -> Result<(), Error> {
        self.cluster.catalog().catch_up().await
    }

    /// The catalog as it is here.
    pub fn catalog(&self) -> Arc<State> {
        self.cluster.catalog().snapshot()
    }

    /// Columns of a table, view, external or system table.
    ///
    /// # Errors
    /// `NotFound`, with a hint.
    pub async fn columns_of(
        &self,
        session: &Arc<Session>,
        schema: &str,
        table: &str,
    ) -> Result<SchemaRef, Error> {
        let scope = self.scope_to_read(session).await;
        let catalogs = scope.planning.state().catalog_list();
        let found = match catalogs.catalog("shoal").and_then(|catalog| catalog.schema(schema)) {
            Some(provider) => provider.table(table).await?,
            None => None,
        };
        found
            .map(|provider| provider.schema())
            .ok_or_else(|| self.unknown_table(&scope.snapshot, schema, table))
    }

    fn unknown_table(&self, snapshot: &State, schema: &str, table: &str) -> Error {
        let failure =
            Failure::new(shoal_proto::ErrorCode::NotFound, format!("table '{schema}.{table}' not found"));
        with_hint(failure, table_names(snapshot)).into()
    }

    /// Pins the newest snapshot and takes the session's settings.
    ///
    /// # Errors
    /// `Unavailable` where no majority of the coordinators says which that is.
    async fn scope(&self, session: &Session) -> Result<Scope, Error> {
        self.cluster.catalog().catch_up().await?;
        Ok(self.scope_of(session.settings(), &Ok(()), |names| names))
    }

    /// As [`Self::scope`], for planning a write.
    ///
    /// # Errors
    /// The same.
    async fn scope_to_write(&self, session: &Session) -> Result<Scope, Error> {
        self.cluster.catalog().catch_up().await?;
        Ok(self.scope_of(session.settings(), &Ok(()), SnapshotCatalogs::for_writing))
    }

    /// As [`Self::scope`]; where no majority answers, the system tables can still
    /// be read, and nothing else.
    async fn scope_to_read(&self, session: &Session) -> Scope {
        let caught_up = self.cluster.catalog().catch_up().await;
        self.scope_of(session.settings(), &caught_up, |names| names)
    }

    /// Pins the newest snapshot for these settings. Where the catalog has not
    /// `caught_up`, the system tables alone can be read.
    fn scope_of(
        &self,
        settings: Settings,
        caught_up: &Result<(), Error>,
        finish: impl FnOnce(SnapshotCatalogs) -> SnapshotCatalogs,
    ) -> Scope {
        self.scope_at(self.cluster.pin(), settings, caught_up, finish)
    }

    /// As [`Self::scope_of`], in a snapshot that is pinned already: after the catalog has
    /// caught up, or could not.
    fn scope_at(
        &self,
        pinned: Pinned,
        settings: Settings,
        caught_up: &Result<(), Error>,
        finish: impl FnOnce(SnapshotCatalogs) -> SnapshotCatalogs,
    ) -> Scope {
        let looked_up = LookedUp::default();
        let (snapshot, pin) = pinned.into_parts();
        let names = SnapshotCatalogs::new(
            Arc::clone(&snapshot),
            self.system.clone(),
            Arc::clone(&self.template),
            Arc::clone(&settings.options),
            looked_up.clone(),
        );
        let names = match caught_up {
            Ok(()) => finish(names),
            Err(error) => names.stale(error),
        };
        let names: Arc<dyn CatalogProviderList> = Arc::new(names);
        let planning = self.template.planning(&settings.options, names);
        Scope { snapshot, is_caught_up: caught_up.is_ok(), pin, settings, planning, looked_up }
    }

    fn query_options(&self, query: QueryId, settings: &Settings) -> Result<QueryOptions, Error> {
        let shoal = ShoalConfig::of(&settings.options);
        let memory = shoal.query_memory_bytes().map_err(Error::Invalid)?;
        // Workers start from plain settings: what differs there is told.
        let mut changed = settings.changed.clone();
        if !changed.iter().any(|(name, _)| name == TIME_ZONE_SETTING) {
            changed.push((TIME_ZONE_SETTING.to_owned(), TIME_ZONE.to_owned()));
        }
        Ok(QueryOptions {
            query,
            attempt: 1,
            memory_limit_bytes: memory.unwrap_or(self.query_memory_bytes),
            is_short: false,
            compression: shoal.exchange_compression,
            settings: changed,
        })
    }

    /// Runs a statement's work on the compute runtime; dropping the result
    /// stops it.
    async fn on_compute<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match AbortOnDropHandle::new(self.compute.spawn(work)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(panic_failure(panic.as_ref()).into()),
                Err(error) => Err(Error::Cancelled(format!("the statement was stopped: {error}"))),
            },
        }
    }

    /// An error of planning, with a hint where a name is misspelt.
    fn hinted(&self, snapshot: &State, error: impl Into<Failure>) -> Error {
        with_hint(error.into(), table_names(snapshot)).into()
    }
}

/// Runs a statement's work on the thread that asks, which may be one that talks
/// to clients: for what takes no longer than threads take to wake one another.
/// Dropping the result stops it.
async fn here<T>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    match AssertUnwindSafe(work.boxed()).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(panic_failure(panic.as_ref()).into()),
    }
}

fn table_names(snapshot: &State) -> Vec<String> {
    let tables = snapshot.tables().map(|table| table.full_name());
    let views = snapshot.views().map(|view| format!("{}.{}", view.schema_name, view.name));
    let externals = snapshot.externals().map(|table| format!("{}.{}", table.schema_name, table.name));
    let system = SystemTables::names().map(|name| format!("system.{name}"));
    tables.chain(views).chain(externals).chain(system).collect()
}

/// Parameters in the order of their numbers.
type Parameters = Vec<ScalarValue>;
