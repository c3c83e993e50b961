//! From a session's settings and a pinned snapshot to a DataFusion session,
//! and from there to plans.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::catalog::CatalogProviderList;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::{ExecutionPlanProperties, displayable};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{DistributedExec, DistributedExt, MaybeEncoded, SessionStateBuilderExt};
use shoal_data::operators::OperatorCodec;
use shoal_data::{ImportRoots, ShardStore, Table};
use shoal_proto::exchange::{ExchangeResolver, FirstTask, QueryOptions, ReadLog};
use shoal_proto::query_pool::sort_kept_bytes;
use shoal_proto::runtime_filter::RuntimeFilterRelay;
use shoal_proto::{Channels, QueryPool, datafusion_defaults};

use self::way::Way;
use super::compact_sorts::CompactSorts;
use super::each_task::read_in_each_task;
use super::filter_share::FilterShare;
use super::group_late::GroupLate;
use super::group_once::GroupOnce;
use super::guard;
use super::in_place::JoinInPlace;
use super::join_order::JoinOrder;
use super::join_room::{JoinRoom, Joins};
use super::late_materialization::LateMaterialization;
use super::leaves::{only_leaf, restricts_one_shard, shards_of};
use super::limited_side::LimitOnce;
use super::merge_joins::{MergeLargeJoins, has_mergeable};
use super::plain_text::with_plain_text;
use super::registry::QueryRecord;
use super::rewrite::must_stay;
use super::row_by_row::{self, RowByRow};
use super::runtime_filters::with_runtime_filters;
use super::safe_pushdown::SafePushdown;
use super::scan_tasks::{add_handlers, scan_bytes, shard_scan, tasks_of_scan};
use super::shard_streams::{Giving, ShardStreamsExec, StreamContext, giving, over_one_file, with_streams};
use super::shard_table::as_shard_table;
use super::view::{View, ViewResolver};
use super::weight::reads_one_key;
use super::whole_plan::{KeptWhole, SMALL_BYTES, WholePlanExec, World, is_small, reads_segments_or_files};
use super::yielding::YieldInJoins;
use crate::catalog::TableFacts;
use crate::cluster::{Cluster, TASK_PARTITIONS};
use crate::sql::ShoalConfig;

mod way;

/// Partitions of each task. With one, an operator would take the rows of its
/// task for all rows.
pub(crate) const PARTITIONS: usize = TASK_PARTITIONS;

/// The time zone of sessions that set none.
pub const TIME_ZONE: &str = "+00:00";
/// Segments of one key that are read on the thread that the request comes to.
const AT_ONCE_SEGMENTS_MAX: usize = 4;
/// What each sort keeps for merging; by default it follows from the query's memory.
const SORT_KEPT_SETTING: &str = "datafusion.execution.sort_spill_reservation_bytes";

/// What every session starts from, made once: functions, rules, resources.
#[derive(Clone)]
pub struct StateTemplate {
    state: SessionState,
    /// The same for what [`row_by_row`] is about.
    row_by_row: Arc<SessionState>,
    channels: Channels,
}

impl StateTemplate {
    /// A template over this coordinator's resources.
    pub fn new(
        runtime: Arc<RuntimeEnv>,
        shards: Arc<ShardStore>,
        channels: Channels,
        imports: ImportRoots,
    ) -> Self {
        let mut config = SessionConfig::new();
        datafusion_defaults::set(config.options_mut());
        let config = config
            .with_information_schema(true)
            .with_default_catalog_and_schema("shoal", "public")
            .with_create_default_catalog_and_schema(false)
            .with_option_extension(ShoalConfig::default())
            .with_distributed_user_codec(OperatorCodec)
            .with_target_partitions(PARTITIONS)
            // Without one, TIMESTAMP WITH TIME ZONE would be one without.
            .set_str("datafusion.execution.time_zone", TIME_ZONE)
            // External tables find it here.
            .with_extension(Arc::new(imports))
            // And scans that stay here read through this.
            .with_extension(shards);
        let config = add_handlers(config);
        let mut builder = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_physical_optimizer_rule(Arc::new(LimitOnce))
            .with_physical_optimizer_rule(Arc::new(YieldInJoins))
            .with_physical_optimizer_rule(Arc::new(CompactSorts))
            .with_distributed_planner();
        shoal_data::functions::register(&mut builder);
        let state = builder.build();
        let rules = FilterShare::among(SafePushdown::in_all(state.physical_optimizers()));
        let rules = MergeLargeJoins::among(rules);
        // The outer groups first: what is dealt once for them may still be dealt as it is.
        let mut rules = GroupOnce::among(GroupLate::among(JoinInPlace::among(rules)));
        // The last one: see there.
        rules.push(Arc::new(LateMaterialization));
        let ordering = JoinOrder::among(state.optimizers());
        let state = SessionStateBuilder::new_from_existing(state)
            .with_optimizer_rules(ordering)
            .with_physical_optimizer_rules(rules)
            .build();
        let row_by_row = row_by_row::session(&state);
        Self { state, row_by_row: Arc::new(row_by_row), channels }
    }

    /// The session that all others are made of.
    pub(super) fn state(&self) -> &SessionState {
        &self.state
    }

    /// The settings that a new session starts with.
    pub fn options(&self) -> ConfigOptions {
        self.state.config_options().as_ref().clone()
    }

    /// A session state for planning names and types: settings and catalog,
    /// no workers yet.
    pub fn planning(&self, options: &ConfigOptions, catalogs: Arc<dyn CatalogProviderList>) -> Planning {
        let mut config = self.state.config().clone();
        *config.options_mut() = options.clone();
        let mut state = self.state.clone();
        if options.execution != self.state.config_options().execution {
            // Functions are made for a time zone: made anew, which takes long.
            state = SessionStateBuilder::new_from_existing(state).with_config(config.clone()).build();
        }
        *state.config_mut() = config;
        state.register_catalog_list(catalogs);
        // The one moment that `now()` means in this statement.
        state.execution_props_mut().mark_start_execution(Arc::new(options.clone()));
        Planning { state, row_by_row: Arc::clone(&self.row_by_row), channels: self.channels.clone() }
    }
}

/// One statement's session: names resolve in one snapshot.
#[derive(Clone)]
pub struct Planning {
    state: SessionState,
    row_by_row: Arc<SessionState>,
    channels: Channels,
}

impl Planning {
    /// The DataFusion session, for parsing and logical planning.
    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Bytes of a scan that a task is worth.
    fn task_bytes(&self, view: &View) -> u64 {
        view.task_bytes(ShoalConfig::of(self.state.config_options()).task_bytes)
    }

    /// The physical plan of an optimised logical plan, for one attempt that joins
    /// like `joins`.
    ///
    /// # Errors
    /// Those of planning; `Internal` where a guard refuses the plan even
    /// undistributed.
    pub async fn physical(
        &self,
        plan: &LogicalPlan,
        view: &Arc<View>,
        query: &QueryOptions,
        collect_metrics: bool,
        failover: Option<Failover>,
        joins: Joins,
    ) -> Result<PhysicalPlan> {
        if must_stay(plan) || view.workers().is_empty() {
            return self.physical_with(plan, view, query, collect_metrics, Way::Here, joins).await;
        }
        let streaming = match &failover {
            Some(_) => giving(plan)?,
            None => None,
        };
        let task_bytes = self.task_bytes(view);
        // Rows as they come have a way with fewer rules yet.
        if streaming != Some(Giving::AsTheyCome) && is_small(plan, task_bytes)? {
            match self.physical_with(plan, view, query, collect_metrics, Way::Whole, joins).await {
                Ok(planned) => return Ok(planned),
                Err(error) => tracing::debug!(query_id = %query.query, %error, "no plan for one worker"),
            }
        }
        if let Some((failover, giving)) = failover.zip(streaming)
            && let Some(planned) = self.streamed(plan, giving, view, query, collect_metrics, failover).await?
        {
            return Ok(planned);
        }
        let ways: &[Way] = match ShoalConfig::of(self.state.config_options()).colocate {
            true => &[Way::Colocated, Way::Paired, Way::Exchanged, Way::OneTask],
            false => &[Way::Exchanged, Way::OneTask],
        };
        let mut refusal = None;
        // A merge whose sides cannot be told to be sorted is none; a hash join may yet fit.
        for joins in [joins, Joins::Hashed] {
            for &way in ways {
                let planned = match self.physical_with(plan, view, query, collect_metrics, way, joins).await {
                    Ok(planned) => guard::check(&planned.plan, view).map(|()| planned),
                    Err(error) => Err(error),
                };
                match planned {
                    Ok(planned) => return Ok(planned),
                    Err(error) => {
                        tracing::debug!(query_id = %query.query, ?way, ?joins, %error, "plan refused");
                        refusal.get_or_insert(error);
                    }
                }
            }
        }
        // The first one says it best: it is about what was asked.
        Err(refusal.unwrap_or_else(|| datafusion::common::internal_datafusion_err!("no way to plan")))
    }

    /// The same for the first attempt at a query whose plan may be `kept`. One that ran whole
    /// on a worker is not planned again.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn physical_or_kept(
        &self,
        kept: &KeptWhole,
        plan: &LogicalPlan,
        view: &Arc<View>,
        query: &QueryOptions,
        failover: Option<Failover>,
    ) -> Result<PhysicalPlan> {
        let world = World::of(view, self.task_bytes(view), query, failover.is_some());
        if let Some((plan, can_merge)) = kept.find(&world, view, query, &self.channels) {
            let (_, context) = self.state_for(view, query, false, Way::Whole, Joins::ByRoom)?;
            return Ok(PhysicalPlan { plan, context, can_merge });
        }
        let planned = self.physical(plan, view, query, false, failover, Joins::ByRoom).await?;
        if let Err(error) = kept.keep(world, &planned.plan, planned.can_merge) {
            tracing::debug!(query_id = %query.query, %error, "the plan is not kept");
        }
        Ok(planned)
    }

    /// The plan of a scan that reads shard by shard. None where another plan is
    /// better.
    async fn streamed(
        &self,
        logical: &LogicalPlan,
        giving: Giving,
        view: &Arc<View>,
        query: &QueryOptions,
        collect_metrics: bool,
        failover: Failover,
    ) -> Result<Option<PhysicalPlan>> {
        let way = match giving {
            Giving::AsTheyCome => Way::Streamed,
            Giving::WhenWhole => Way::Merged,
        };
        let (state, context) = self.state_for(view, query, collect_metrics, way, Joins::Hashed)?;
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(logical, &state).await?;
        let Some(leaf) = only_leaf(&plan)? else { return Ok(None) };
        let Some(scan) = shard_scan(&leaf) else { return Ok(None) };
        let task_bytes = self.task_bytes(view);
        let is_one_task = tasks_of_scan(scan, task_bytes)? == 1;
        if scan_bytes(scan) <= SMALL_BYTES.min(task_bytes) || (is_one_task && restricts_one_shard(&plan)?) {
            let is_of_one_key = giving == Giving::AsTheyCome
                && scan.file_groups.iter().map(FileGroup::len).sum::<usize>() <= AT_ONCE_SEGMENTS_MAX
                && reads_one_key(logical)?;
            let plan = self.whole(plan, &context, view, query, collect_metrics, is_of_one_key)?;
            return Ok(Some(PhysicalPlan { plan, context, can_merge: false }));
        }
        let can_be_sent = || {
            Ok::<_, DataFusionError>(MaybeEncoded::Decoded(over_one_file(&plan)?).encode(&context).is_ok())
        };
        if is_one_task || !can_be_sent()? {
            return Ok(None);
        }
        let streams = StreamContext {
            cluster: failover.cluster,
            record: failover.record,
            channels: self.channels.clone(),
            zone: view.zone().to_owned(),
            query: query.clone(),
            collect_metrics,
        };
        let plan = match giving {
            Giving::AsTheyCome => ShardStreamsExec::new(&with_plain_text(plan)?, view, streams, giving)?
                .map(|streams| Arc::new(streams) as Arc<dyn ExecutionPlan>),
            Giving::WhenWhole => with_streams(&plan, view, &streams)?,
        };
        Ok(plan.map(|plan| PhysicalPlan { plan, context, can_merge: false }))
    }

    /// What a plan is made with, and what it runs in: the query's memory limit.
    fn state_for(
        &self,
        view: &Arc<View>,
        query: &QueryOptions,
        collect_metrics: bool,
        way: Way,
        joins: Joins,
    ) -> Result<(SessionState, Arc<TaskContext>)> {
        let mut config = self
            .state
            .config()
            .clone()
            .with_extension(Arc::clone(view))
            .with_extension(Arc::new(ReadLog::new()))
            .with_extension(Arc::new(FirstTask::default()))
            .with_distributed_worker_resolver(ViewResolver(Arc::clone(view)))
            .with_distributed_channel_resolver(ExchangeResolver::new(self.channels.clone()))
            .with_distributed_passthrough_headers(query.to_headers()?)?
            .with_distributed_metrics_collection(collect_metrics)?
            .with_distributed_max_tasks_per_stage(usize::from(way == Way::OneTask))?
            .with_distributed_dynamic_task_count(false)?;
        if ShoalConfig::of(config.options()).runtime_filters {
            config = config.with_extension(Arc::new(RuntimeFilterRelay::new()));
        }
        let options = config.options_mut();
        options.execution.collect_statistics = true;
        options.optimizer.prefer_existing_union = true;
        // Rows that are hashed by some of the columns that they are grouped by stay where
        // they are: by default that takes more partitions than a task has.
        options.optimizer.subset_repartition_threshold = 1;
        // DataFusion's own choice of merges includes those that give wrong rows: see `can_merge`.
        let joins = match joins {
            Joins::ByRoom if !options.optimizer.prefer_hash_join => Joins::Merged,
            joins => joins,
        };
        options.optimizer.prefer_hash_join = true;
        let tasks_max =
            if matches!(way, Way::OneTask | Way::Whole | Way::Here) { 1 } else { view.workers().len() };
        let (limit, task_bytes) = (query.memory_limit_bytes, self.task_bytes(view));
        options.extensions.insert(JoinRoom::new(joins, limit, view, tasks_max, task_bytes));
        if !query.settings.iter().any(|(name, _)| name == SORT_KEPT_SETTING) {
            options.execution.sort_spill_reservation_bytes = sort_kept_bytes(query.memory_limit_bytes);
        }
        way.tell(options);
        if way == Way::Streamed {
            config = config.with_extension(Arc::new(RowByRow));
        }
        let node = self.state.runtime_env();
        let pool = QueryPool::new(Arc::clone(&node.memory_pool), "the coordinator", query.memory_limit_bytes);
        let runtime = RuntimeEnv { memory_pool: Arc::new(pool), ..node.as_ref().clone() };
        let mut state = match way {
            Way::Streamed => self.row_by_row.as_ref().clone(),
            _ => self.state.clone(),
        };
        *state.execution_props_mut() = self.state.execution_props().clone();
        *state.config_mut() = config;
        let context = TaskContext::from(&state).with_runtime(Arc::new(runtime));
        Ok((state, Arc::new(context)))
    }

    async fn physical_with(
        &self,
        logical: &LogicalPlan,
        view: &Arc<View>,
        query: &QueryOptions,
        collect_metrics: bool,
        way: Way,
        joins: Joins,
    ) -> Result<PhysicalPlan> {
        let (state, context) = self.state_for(view, query, collect_metrics, way, joins)?;
        let plan = match way {
            Way::Whole | Way::Here => {
                DefaultPhysicalPlanner::default().create_physical_plan(logical, &state).await?
            }
            _ => state.query_planner().create_physical_plan(logical, &state).await?,
        };
        let shoal = ShoalConfig::of(state.config_options());
        let plan = match plan.is::<DistributedExec>() {
            // Where that is refused, no other way has it.
            true if shoal.read_in_each_task && way == Way::Colocated => read_in_each_task(&plan, view)?,
            _ => plan,
        };
        let plan = match plan.is::<DistributedExec>() && shoal.runtime_filters {
            true => with_runtime_filters(plan)?,
            false => plan,
        };
        let plan = match way {
            _ if plan.is::<DistributedExec>() || way == Way::Here || !reads_segments_or_files(&plan)? => plan,
            // Small enough for one worker, or impossible to cut: sent whole.
            _ => self.whole(plan, &context, view, query, collect_metrics, false)?,
        };
        tracing::debug!(query_id = %query.query, "physical plan:\n{}", displayable(plan.as_ref()).indent(false));
        let can_merge = has_mergeable(&plan)?;
        Ok(PhysicalPlan { plan, context, can_merge })
    }
}

impl Planning {
    /// The plan as one worker runs it whole, at once where it reads the rows of one key. What
    /// cannot be encoded runs here.
    fn whole(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        context: &Arc<TaskContext>,
        view: &View,
        query: &QueryOptions,
        collect_metrics: bool,
        is_of_one_key: bool,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let single: Arc<dyn ExecutionPlan> = match plan.output_partitioning().partition_count() {
            1 => plan,
            _ => Arc::new(CoalescePartitionsExec::new(plan)),
        };
        Ok(match MaybeEncoded::Decoded(Arc::clone(&single)).encode(context) {
            Ok(encoded) => {
                let url = view.assign_whole(&shards_of(&single)?).url.clone();
                let channels = self.channels.clone();
                let whole =
                    WholePlanExec::new(single, encoded.into(), url, query.clone(), channels, collect_metrics);
                Arc::new(if is_of_one_key { whole.at_once() } else { whole })
            }
            Err(error) => {
                tracing::debug!(query_id = %query.query, %error, "plan cannot be sent, runs on the coordinator");
                single
            }
        })
    }
}

/// What a plan that survives the loss of workers needs.
pub struct Failover {
    /// Who is alive, and whom to suspect.
    pub cluster: Arc<Cluster>,
    /// Where losses are told; none for a plan that is only explained.
    pub record: Option<Arc<QueryRecord>>,
}

/// A plan and the context that it runs in.
pub struct PhysicalPlan {
    /// Run once: another attempt needs another plan.
    pub plan: Arc<dyn ExecutionPlan>,
    /// Carries the view, the channels, the memory limit, the log of what is read, and when
    /// the first task is taken.
    pub context: Arc<TaskContext>,
    /// Whether it has hash joins that could be merges, which need less memory.
    pub can_merge: bool,
}

/// The tables of shards that a logical plan reads, each once.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(crate) fn tables_of(plan: &LogicalPlan) -> Result<Vec<Arc<Table>>> {
    Ok(facts_of(plan)?.iter().map(|facts| Arc::clone(facts.table())).collect())
}

/// The same with what follows from them.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(super) fn facts_of(plan: &LogicalPlan) -> Result<Vec<Arc<TableFacts>>> {
    let mut seen = BTreeSet::new();
    let mut tables = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = datafusion::datasource::source_as_provider(&scan.source)
            && let Some(shard_table) = as_shard_table(&provider)
            && seen.insert(shard_table.table().id)
        {
            tables.push(Arc::clone(shard_table.facts()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(tables)
}

#[cfg(test)]
mod tests;
