//! What a task runs in: the node's resources, narrowed to its query. Tasks of
//! one query share one memory limit and one set of counters on this worker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    DistributedExt, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse, WorkerQueryContext,
    WorkerSessionBuilder,
};
use http::HeaderMap;
use parking_lot::Mutex;
use shoal_data::operators::OperatorCodec;
use shoal_proto::exchange::{ExchangeResolver, QueryOptions};
use shoal_proto::{Channels, QueryId, QueryPool, WorkerId};

use crate::scan_counter::CountedReaders;

/// Makes sessions for tasks. Cheap to clone.
#[derive(Clone)]
pub struct TaskSessions {
    worker: WorkerId,
    node: Arc<RuntimeEnv>,
    channels: Channels,
    partitions: usize,
    /// Functions of a plain session, made once.
    plain: Arc<SessionState>,
    scopes: Arc<Mutex<HashMap<QueryId, Weak<QueryScope>>>>,
}

/// What all tasks of one query on this worker share.
#[derive(Debug)]
pub struct QueryScope {
    runtime: Arc<RuntimeEnv>,
    /// What was read from segments.
    pub scanned: Arc<Scanned>,
}

/// Counts what a query read from segments.
#[derive(Debug, Default)]
pub struct Scanned {
    rows: AtomicU64,
    bytes: AtomicU64,
    segments: AtomicU64,
}

impl Scanned {
    /// Rows in the segments opened, bytes read, segments opened.
    pub fn totals(&self) -> (u64, u64, u64) {
        (
            self.rows.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
            self.segments.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn add_segment(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.segments.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl TaskSessions {
    /// Sessions on the node's runtime; each plan runs with `partitions` or
    /// more, never with one: see the traps of the design.
    pub fn new(worker: WorkerId, node: Arc<RuntimeEnv>, channels: Channels, threads: usize) -> Self {
        let mut plain = SessionStateBuilder::new().with_default_features();
        shoal_data::functions::register(&mut plain);
        Self {
            worker,
            node,
            channels,
            partitions: threads.max(2),
            plain: Arc::new(plain.build()),
            scopes: Arc::default(),
        }
    }

    /// The scope of a query on this worker, made when its first task comes.
    fn scope(&self, options: &QueryOptions) -> Arc<QueryScope> {
        let mut scopes = self.scopes.lock();
        if let Some(scope) = scopes.get(&options.query).and_then(Weak::upgrade) {
            return scope;
        }
        scopes.retain(|_, scope| scope.strong_count() > 0);
        let pool = QueryPool::new(
            Arc::clone(&self.node.memory_pool),
            self.worker.as_str(),
            options.memory_limit_bytes,
        );
        let runtime = RuntimeEnv { memory_pool: Arc::new(pool), ..self.node.as_ref().clone() };
        let scope = Arc::new(QueryScope { runtime: Arc::new(runtime), scanned: Arc::default() });
        scopes.insert(options.query, Arc::downgrade(&scope));
        scope
    }

    /// What each query that has tasks here has read so far.
    pub fn progress(&self) -> Vec<(QueryId, (u64, u64, u64))> {
        let scopes = self.scopes.lock();
        let live = scopes.iter().filter_map(|(query, scope)| Some((*query, scope.upgrade()?)));
        live.map(|(query, scope)| (query, scope.scanned.totals())).collect()
    }

    /// Bytes that all queries hold here.
    pub fn memory_used_bytes(&self) -> u64 {
        self.node.memory_pool.reserved() as u64
    }

    fn configure(
        &self,
        mut config: SessionConfig,
        options: &QueryOptions,
        scope: Arc<QueryScope>,
    ) -> Result<SessionConfig> {
        for (name, value) in &options.settings {
            config.options_mut().set(name, value)?;
        }
        let config = config.with_target_partitions(self.partitions).with_extension(Arc::clone(&scope));
        Ok(config
            .with_distributed_user_codec(OperatorCodec)
            .with_distributed_passthrough_headers(options.to_headers()?)?
            .with_distributed_channel_resolver(ExchangeResolver::new(self.channels.clone()))
            .with_distributed_worker_plan_rewrite_handler(move |event: WorkerPlanRewriteEvent| {
                let plan = with_counted_readers(event.plan, &scope)?;
                Ok(WorkerPlanRewriteEventResponse::new(plan))
            }))
    }

    /// A context for a plan that runs here as a whole, without the machinery
    /// of stages.
    ///
    /// # Errors
    /// Where the headers or a setting are not understood.
    pub fn whole_plan_context(&self, headers: &HeaderMap) -> Result<(Arc<TaskContext>, Arc<QueryScope>)> {
        let options = QueryOptions::from_headers(headers)?;
        let scope = self.scope(&options);
        let config = self.configure(SessionConfig::new(), &options, Arc::clone(&scope))?;
        let plain = self.plain.as_ref();
        let context = TaskContext::new(
            None,
            options.query.to_string(),
            config,
            plain.scalar_functions().clone(),
            plain.higher_order_functions().clone(),
            plain.aggregate_functions().clone(),
            plain.window_functions().clone(),
            Arc::clone(&scope.runtime),
        );
        Ok((Arc::new(context), scope))
    }
}

#[async_trait]
impl WorkerSessionBuilder for TaskSessions {
    async fn build_session_state(
        &self,
        context: WorkerQueryContext,
    ) -> Result<SessionState, DataFusionError> {
        let options = QueryOptions::from_headers(&context.headers)?;
        let scope = self.scope(&options);
        let mut builder = context.builder.with_runtime_env(Arc::clone(&scope.runtime));
        let config = builder.config().take().unwrap_or_default();
        let config = self.configure(config, &options, scope)?;
        shoal_data::functions::register(&mut builder);
        Ok(builder.with_config(config).build())
    }
}

/// Gives every Parquet scan readers that keep footers and count what they
/// read: a decoded plan comes with plain ones.
///
/// # Errors
/// None in practice; those of rebuilding a plan.
pub fn with_counted_readers(
    plan: Arc<dyn ExecutionPlan>,
    scope: &Arc<QueryScope>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let rewritten = plan.transform_down(|node| {
        let Some(scan) = node.downcast_ref::<DataSourceExec>() else {
            return Ok(Transformed::no(node));
        };
        let Some(config) = scan.data_source().downcast_ref::<FileScanConfig>() else {
            return Ok(Transformed::no(node));
        };
        let Some(source) = config.file_source().downcast_ref::<ParquetSource>() else {
            return Ok(Transformed::no(node));
        };
        let store = scope.runtime.object_store_registry.get_store(config.object_store_url.as_ref())?;
        let cache = scope.runtime.cache_manager.get_file_metadata_cache();
        let cached = CachedParquetFileReaderFactory::new(store, cache);
        let readers = CountedReaders::new(Arc::new(cached), Arc::clone(&scope.scanned));
        let source = source.clone().with_parquet_file_reader_factory(Arc::new(readers));
        let config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
        Ok(Transformed::yes(DataSourceExec::from_data_source(config) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(rewritten.data)
}
