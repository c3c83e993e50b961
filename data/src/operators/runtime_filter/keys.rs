//! Gathers the keys of a join's built side as its rows go by.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use shoal_proto::runtime_filter::{COLLECTOR_BYTES, FilterId, KeyCollector, KeyFilter, RuntimeFilters};

use super::FilterKeys;

/// Hands its input's rows on, and tells of their keys when all partitions of the
/// task have come to their end. Where one does not, it is told that they may be any.
#[derive(Debug)]
pub struct JoinKeysExec {
    input: Arc<dyn ExecutionPlan>,
    keys: FilterKeys,
    gathered: Arc<Mutex<Gathered>>,
    metrics: ExecutionPlanMetricsSet,
}

/// What the partitions of a task have told.
#[derive(Debug)]
struct Gathered {
    has_begun: Vec<bool>,
    ended: usize,
    filter: Option<KeyFilter>,
    /// What they have was told.
    is_told: bool,
}

impl Gathered {
    /// Whether a partition is to be gathered: once, and where that makes a difference.
    fn begin(&mut self, partition: usize) -> bool {
        !self.is_told
            && self.has_begun.get_mut(partition).is_some_and(|begun| !std::mem::replace(begun, true))
    }

    /// Takes in a partition that is at its end; what all have, as soon as the others make no
    /// difference: once.
    fn end(&mut self, filter: KeyFilter) -> Option<KeyFilter> {
        self.ended += 1;
        if self.is_told {
            return None;
        }
        let so_far = match self.filter.take() {
            Some(so_far) => so_far.union(filter),
            None => filter,
        };
        if self.ended == self.has_begun.len() || so_far.is_of_any() {
            self.is_told = true;
            return Some(so_far);
        }
        self.filter = Some(so_far);
        None
    }
}

impl JoinKeysExec {
    pub(in crate::operators) const NAME: &str = "JoinKeysExec";

    /// Gathers `keys` of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, keys: FilterKeys) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let gathered =
            Gathered { has_begun: vec![false; partitions], ended: 0, filter: None, is_told: false };
        let gathered = Arc::new(Mutex::new(gathered));
        Self { input, keys, gathered, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// What it gathers.
    pub fn keys(&self) -> &FilterKeys {
        &self.keys
    }

    /// The types of its keys; none where it has no such columns.
    fn types(&self) -> Option<Vec<DataType>> {
        let schema = self.input.schema();
        let types = self.keys.columns.iter().map(|&column| {
            let data_type = schema.fields().get(column)?.data_type();
            KeyFilter::takes(data_type).then(|| data_type.clone())
        });
        types.collect::<Option<Vec<_>>>().filter(|types| !types.is_empty())
    }

    /// What gathers a partition. None where its keys are not asked for, were
    /// gathered before, make no difference, or find no memory.
    fn collecting(&self, partition: usize, context: &Arc<TaskContext>) -> Option<Collecting> {
        let filters = RuntimeFilters::of(context)?;
        let types = self.types()?;
        if !self.gathered.lock().begin(partition) {
            return None;
        }
        let word = Word {
            id: self.keys.id,
            types: types.clone(),
            gathered: Arc::clone(&self.gathered),
            filters,
            context: Arc::clone(context),
            is_given: false,
        };
        let memory =
            MemoryConsumer::new(format!("{}[{partition}]", Self::NAME)).register(context.memory_pool());
        memory.try_grow(COLLECTOR_BYTES).ok()?;
        let collector = KeyCollector::new(types).ok()?;
        Some(Collecting { collector, columns: self.keys.columns.clone(), word, _memory: memory })
    }
}

impl DisplayAs for JoinKeysExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt_with(Self::NAME, &self.schema(), f)
    }
}

impl ExecutionPlan for JoinKeysExec {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.keys.clone()))),
            _ => internal_err!("a {} has one input", Self::NAME),
        }
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        match inputs {
            [input] => Ok(Arc::clone(input)),
            _ => internal_err!("a {} has one input", Self::NAME),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let collecting = self.collecting(partition, &context);
        let input = self.input.execute(partition, context)?;
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        Ok(Box::pin(Keys { input, collecting, metrics }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// A partition whose keys are gathered.
struct Collecting {
    collector: KeyCollector,
    columns: Vec<usize>,
    word: Word,
    _memory: MemoryReservation,
}

impl Collecting {
    /// Whether others have said already that keys may be any.
    fn is_in_vain(&self) -> bool {
        self.word.gathered.lock().is_told
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let keys: Vec<_> = self.columns.iter().map(|&column| Arc::clone(batch.column(column))).collect();
        self.collector.add(&keys)
    }

    fn end(mut self) -> Result<()> {
        self.word.give(self.collector.finish()?)
    }
}

/// What a partition has to say of its keys. That they may be any, where it is dropped: it
/// was not read to its end, as when the other side of a join above it is empty, or its keys
/// were not gathered. Others would wait for them.
struct Word {
    id: FilterId,
    types: Vec<DataType>,
    gathered: Arc<Mutex<Gathered>>,
    filters: Arc<RuntimeFilters>,
    context: Arc<TaskContext>,
    is_given: bool,
}

impl Word {
    fn give(&mut self, filter: KeyFilter) -> Result<()> {
        self.is_given = true;
        let whole = self.gathered.lock().end(filter);
        whole.map_or(Ok(()), |whole| self.filters.publish(self.id, &self.context, whole))
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        if !self.is_given {
            let any = KeyFilter::of_any(std::mem::take(&mut self.types));
            if let Err(error) = self.give(any) {
                tracing::debug!(%error, "no word of a run-time filter");
            }
        }
    }
}

struct Keys {
    input: SendableRecordBatchStream,
    /// None where the partition is not gathered, or has ended.
    collecting: Option<Collecting>,
    metrics: BaselineMetrics,
}

impl Keys {
    /// A filter is never worth an error: it is then one of any key.
    fn gather(&mut self, batch: Option<&RecordBatch>) {
        let _timer = self.metrics.elapsed_compute().timer();
        let Some(mut collecting) = self.collecting.take() else { return };
        let gathered = match batch {
            Some(_) if collecting.is_in_vain() => Ok(()),
            Some(batch) => collecting.add(batch).map(|()| self.collecting = Some(collecting)),
            None => collecting.end(),
        };
        if let Err(error) = gathered {
            tracing::debug!(%error, "keys for a run-time filter not gathered");
        }
    }
}

impl Stream for Keys {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.input.poll_next_unpin(cx));
        match &next {
            Some(Ok(batch)) => self.gather(Some(batch)),
            Some(Err(_)) => self.collecting = None,
            None => self.gather(None),
        }
        self.metrics.record_poll(Poll::Ready(next))
    }
}

impl RecordBatchStream for Keys {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}
