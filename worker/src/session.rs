//! What a task runs in: the node's resources, narrowed to its query. Tasks of
//! one query share one memory limit and one set of counters on this worker.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result};
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::ScalarUDF;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    DistributedExt, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse, WorkerQueryContext,
    WorkerSessionBuilder,
};
use object_store::ObjectStore;
use parking_lot::Mutex;
use shoal_data::operators::{OperatorCodec, into_scans};
use shoal_data::shard_store::SHARD_STORE_URL;
use shoal_data::{CountedReaders, Scanned, ShardStore, scan_fault};
use shoal_proto::exchange::{ExchangeResolver, QueryOptions, ReadLog};
use shoal_proto::query_pool::sort_kept_bytes;
use shoal_proto::runtime_filter::RuntimeFilters;
use shoal_proto::{Channels, QueryId, QueryPool, WorkerId, datafusion_defaults};

type ScalarFunctions = HashMap<String, Arc<ScalarUDF>>;

/// Time zones whose functions are kept.
const TIME_ZONES_MAX: usize = 64;

/// Makes sessions for tasks. Cheap to clone.
#[derive(Clone)]
pub struct TaskSessions {
    worker: WorkerId,
    node: Arc<RuntimeEnv>,
    shards: Arc<ShardStore>,
    channels: Channels,
    partitions: usize,
    /// Functions of a plain session, made once.
    plain: Arc<SessionState>,
    /// Its scalar functions as they are for each time zone.
    zoned: Arc<Mutex<HashMap<Option<String>, Arc<ScalarFunctions>>>>,
    scopes: Arc<Mutex<HashMap<QueryId, Weak<QueryScope>>>>,
}

/// What all tasks of one query on this worker share.
#[derive(Debug)]
pub struct QueryScope {
    runtime: Arc<RuntimeEnv>,
    /// Where segments are read.
    shards: Arc<ShardStore>,
    /// What was read from segments.
    pub scanned: Arc<Scanned>,
    /// What each attempt read. Held by its tasks, which stay until it is over.
    attempts: Mutex<HashMap<u32, Weak<ReadLog>>>,
    /// Run-time filters of each attempt, held in the same way.
    filters: Mutex<HashMap<u32, Weak<RuntimeFilters>>>,
}

impl QueryScope {
    /// Run-time filters of an attempt, for all its tasks here.
    fn filters(&self, attempt: u32) -> Arc<RuntimeFilters> {
        let mut attempts = self.filters.lock();
        if let Some(filters) = attempts.get(&attempt).and_then(Weak::upgrade) {
            return filters;
        }
        attempts.retain(|_, filters| filters.strong_count() > 0);
        let filters = Arc::new(RuntimeFilters::new());
        attempts.insert(attempt, Arc::downgrade(&filters));
        filters
    }

    /// The log of what an attempt reads here. Tasks that are next to each other
    /// hand rows over without a stream that could tell, so they share one.
    fn reads(&self, attempt: u32) -> Arc<ReadLog> {
        let mut attempts = self.attempts.lock();
        if let Some(reads) = attempts.get(&attempt).and_then(Weak::upgrade) {
            return reads;
        }
        attempts.retain(|_, reads| reads.strong_count() > 0);
        let reads = Arc::new(ReadLog::new());
        attempts.insert(attempt, Arc::downgrade(&reads));
        reads
    }
}

impl TaskSessions {
    /// Sessions on the node's runtime; each plan runs with `partitions` or
    /// more, never with one: see the traps of the design.
    pub fn new(
        worker: WorkerId,
        node: Arc<RuntimeEnv>,
        shards: Arc<ShardStore>,
        channels: Channels,
        threads: usize,
    ) -> Self {
        let mut plain = SessionStateBuilder::new().with_default_features();
        shoal_data::functions::register(&mut plain);
        Self {
            worker,
            node,
            shards,
            channels,
            partitions: threads.max(2),
            plain: Arc::new(plain.build()),
            zoned: Arc::default(),
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
        let scope = Arc::new(QueryScope {
            runtime: Arc::new(runtime),
            shards: Arc::clone(&self.shards),
            scanned: Arc::default(),
            attempts: Mutex::default(),
            filters: Mutex::default(),
        });
        scopes.insert(options.query, Arc::downgrade(&scope));
        scope
    }

    /// Run-time filters of an attempt that has tasks here, and the scope that must
    /// be held for as long as its tasks should find the same ones.
    pub fn runtime_filters(&self, options: &QueryOptions) -> (Arc<QueryScope>, Arc<RuntimeFilters>) {
        let scope = self.scope(options);
        let filters = scope.filters(options.attempt);
        (scope, filters)
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
        reads: Arc<ReadLog>,
    ) -> Result<SessionConfig> {
        // Unless the session says otherwise.
        datafusion_defaults::set(config.options_mut());
        let sort_kept = sort_kept_bytes(options.memory_limit_bytes);
        config.options_mut().execution.sort_spill_reservation_bytes = sort_kept;
        for (name, value) in &options.settings {
            config.options_mut().set(name, value)?;
        }
        let config = config
            .with_target_partitions(self.partitions)
            .with_extension(Arc::clone(&scope))
            .with_extension(Arc::clone(&reads));
        Ok(config
            .with_distributed_user_codec(OperatorCodec)
            .with_distributed_passthrough_headers(options.to_headers()?)?
            .with_distributed_channel_resolver(ExchangeResolver::new(self.channels.clone()))
            .with_distributed_worker_plan_rewrite_handler(move |event: WorkerPlanRewriteEvent| {
                let plan = with_counted_readers(event.plan, &scope, &reads)?;
                Ok(WorkerPlanRewriteEventResponse::new(plan))
            }))
    }

    /// The scalar functions for a query's settings: some keep the time zone that
    /// they were made for.
    fn scalar_functions(&self, options: &ConfigOptions) -> Arc<ScalarFunctions> {
        let mut zoned = self.zoned.lock();
        if zoned.len() >= TIME_ZONES_MAX {
            zoned.clear();
        }
        let made = zoned.entry(options.execution.time_zone.clone()).or_insert_with(|| {
            let functions = self.plain.scalar_functions().iter();
            let functions = functions.map(|(name, function)| {
                let updated = function.inner().with_updated_config(options);
                (name.clone(), updated.map_or_else(|| Arc::clone(function), Arc::new))
            });
            Arc::new(functions.collect())
        });
        Arc::clone(made)
    }

    /// A context for a plan that runs here as a whole, without the machinery
    /// of stages. Without functions no plan that has some can be decoded.
    ///
    /// # Errors
    /// Where a setting is not understood.
    pub fn whole_plan_context(
        &self,
        options: &QueryOptions,
        has_functions: bool,
    ) -> Result<(Arc<TaskContext>, Arc<QueryScope>)> {
        let scope = self.scope(options);
        // Its rows go to one reader, which is told what was read for them alone.
        let reads = Arc::new(ReadLog::new());
        let config = self.configure(SessionConfig::new(), options, Arc::clone(&scope), reads)?;
        let plain = has_functions.then_some(self.plain.as_ref());
        let scalar_functions = plain.map(|_| self.scalar_functions(config.options()).as_ref().clone());
        let context = TaskContext::new(
            None,
            options.query.to_string(),
            config,
            scalar_functions.unwrap_or_default(),
            plain.map(|plain| plain.higher_order_functions().clone()).unwrap_or_default(),
            plain.map(|plain| plain.aggregate_functions().clone()).unwrap_or_default(),
            plain.map(|plain| plain.window_functions().clone()).unwrap_or_default(),
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
        let reads = scope.reads(options.attempt);
        let config = config.with_extension(scope.filters(options.attempt));
        let config = self.configure(config, &options, scope, reads)?;
        shoal_data::functions::register(&mut builder);
        Ok(builder.with_config(config).build())
    }
}

/// Gives every Parquet scan readers that keep footers and count what they
/// read, and what of that crossed zones: a decoded plan comes with plain ones.
/// Scans below run-time filters learn of their bounds.
///
/// # Errors
/// None in practice; those of rebuilding a plan.
pub fn with_counted_readers(
    plan: Arc<dyn ExecutionPlan>,
    scope: &Arc<QueryScope>,
    reads: &Arc<ReadLog>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let rewritten = into_scans(plan)?.transform_down(|node| {
        let Some(scan) = node.downcast_ref::<DataSourceExec>() else {
            return Ok(Transformed::no(node));
        };
        let Some(config) = scan.data_source().downcast_ref::<FileScanConfig>() else {
            return Ok(Transformed::no(node));
        };
        let Some(source) = config.file_source().downcast_ref::<ParquetSource>() else {
            return Ok(Transformed::no(node));
        };
        let is_of_segments = config.object_store_url.as_str().starts_with(SHARD_STORE_URL);
        let store: Arc<dyn ObjectStore> = match is_of_segments {
            true => Arc::new(scope.shards.counting(Arc::clone(reads))),
            false => scope.runtime.object_store_registry.get_store(config.object_store_url.as_ref())?,
        };
        let cache = scope.runtime.cache_manager.get_file_metadata_cache();
        let cached = CachedParquetFileReaderFactory::new(store, cache);
        let reads = is_of_segments.then(|| Arc::clone(reads));
        let mut readers = CountedReaders::new(Arc::new(cached), Arc::clone(&scope.scanned), reads);
        if source.filter().is_some() {
            readers = readers.with_page_index();
        }
        if source.table_parquet_options().global.bloom_filter_on_read {
            readers = readers.with_second_readers();
        }
        let source = source.clone().with_parquet_file_reader_factory(Arc::new(readers));
        let mut config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
        scan_fault::break_on_purpose(&mut config);
        Ok(Transformed::yes(DataSourceExec::from_data_source(config) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(rewritten.data)
}

#[cfg(test)]
mod tests;
