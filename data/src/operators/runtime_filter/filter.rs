//! Leaves out rows whose key is not on the other side of a join.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, DynamicFilterPhysicalExpr, lit};
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time,
};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::StreamExt;
use shoal_proto::runtime_filter::{Asker, Bounds, FilterId, KeyFilter, RuntimeFilters};
use tokio::sync::watch;

use super::FilterKeys;

/// Rows that were left out.
pub const ROWS_PRUNED_METRIC: &str = "runtime_filter_rows_pruned";
/// Time that the first row waited.
pub const WAIT_METRIC: &str = "runtime_filter_wait";

/// Of so many rows at least a sixteenth must be left out, or the rest is handed
/// on without a look.
const TRIAL_ROWS: usize = 128 * 1024;

/// Leaves out rows that have no partner in a join, once it is known what there
/// is. The first row waits for that until it is [due](RuntimeFilters::due). Rows that go by
/// before it comes are handed on, and all are where it never does.
#[derive(Debug)]
pub struct RuntimeFilterExec {
    input: Arc<dyn ExecutionPlan>,
    keys: FilterKeys,
    in_scan: Option<InScan>,
    metrics: ExecutionPlanMetricsSet,
}

/// The filter in the scan below, which rules out files, row groups and pages.
#[derive(Clone, Debug)]
pub(super) struct InScan {
    filter: Arc<DynamicFilterPhysicalExpr>,
    is_set: Arc<AtomicBool>,
}

impl InScan {
    pub(super) fn new(filter: Arc<DynamicFilterPhysicalExpr>) -> Self {
        Self { filter, is_set: Arc::default() }
    }

    /// Tells the scan between which values the keys are: all that is known of
    /// them, once.
    fn set(&self, known: &KeyFilter) -> Result<()> {
        if self.is_set.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let columns = self.filter.children().into_iter().zip(known.bounds());
        let between = columns.filter_map(|(column, bounds)| {
            let Bounds { min, max } = bounds.as_ref()?;
            let is = |operator, value| Arc::new(BinaryExpr::new(Arc::clone(column), operator, lit(value)));
            Some(and(is(Operator::GtEq, min.clone()), is(Operator::LtEq, max.clone())))
        });
        if let Some(all) = between.reduce(and) {
            self.filter.update(all)?;
        }
        self.filter.mark_complete();
        Ok(())
    }
}

fn and(left: Arc<dyn PhysicalExpr>, right: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, Operator::And, right))
}

impl RuntimeFilterExec {
    pub(in crate::operators) const NAME: &str = "RuntimeFilterExec";

    /// Leaves out rows of `input` whose `keys` the filter does not have.
    pub fn new(input: Arc<dyn ExecutionPlan>, keys: FilterKeys) -> Self {
        Self { input, keys, in_scan: None, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// What it looks at.
    pub fn keys(&self) -> &FilterKeys {
        &self.keys
    }

    pub(super) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// The filters of those below of which a partition is asked for its first row as soon as that
    /// of this one has waited: as far as there is one way down, and the partitions are the same.
    fn below(&self) -> Vec<FilterId> {
        let (mut ids, mut node) = (Vec::new(), &self.input);
        let partitions = |node: &Arc<dyn ExecutionPlan>| node.output_partitioning().partition_count();
        let own = partitions(node);
        loop {
            ids.extend(node.downcast_ref::<Self>().map(|filter| filter.keys.id));
            match node.children().as_slice() {
                [input] if partitions(input) == own => node = input,
                _ => return ids,
            }
        }
    }

    /// Over an input in whose scan the filter is too.
    pub(super) fn over_scan(&self, input: Arc<dyn ExecutionPlan>, in_scan: InScan) -> Self {
        Self { in_scan: Some(in_scan), ..Self::new(input, self.keys.clone()) }
    }
}

impl DisplayAs for RuntimeFilterExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt_with(Self::NAME, &self.schema(), f)
    }
}

impl ExecutionPlan for RuntimeFilterExec {
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

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::LowerEqual
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
            (Some(input), true) => {
                let new = Self::new(input, self.keys.clone());
                Ok(Arc::new(Self { in_scan: self.in_scan.clone(), ..new }))
            }
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
            [input] => Ok(Arc::new(input.as_ref().clone().to_inexact())),
            _ => internal_err!("a {} has one input", Self::NAME),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(filters) = RuntimeFilters::of(&context) else {
            return self.input.execute(partition, context);
        };
        let schema = self.schema();
        let filtering = Filtering {
            coalescer: BatchCoalescer::new(Arc::clone(&schema), context.session_config().batch_size()),
            keys: self.keys.clone(),
            slot: filters.slot(self.keys.id),
            waits: Some(Waits { asker: Asker::new(&context, partition), filters, below: self.below() }),
            input: Some(self.input.execute(partition, context)?),
            known: Known::NotYet,
            in_scan: self.in_scan.clone(),
            looked_at: 0,
            left_out: 0,
            rows_pruned: MetricBuilder::new(&self.metrics).counter(ROWS_PRUNED_METRIC, partition),
            waited: MetricBuilder::new(&self.metrics).subset_time(WAIT_METRIC, partition),
            metrics: BaselineMetrics::new(&self.metrics, partition),
        };
        let rows = futures::stream::try_unfold(filtering, |mut filtering| async move {
            let next = filtering.next().await?;
            Ok(next.map(|batch| (batch, filtering)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// What is known of the keys on the other side.
enum Known {
    NotYet,
    Keys(Arc<KeyFilter>),
    /// Nothing that is worth a look.
    Nothing,
}

/// The first row, which is still to wait.
struct Waits {
    asker: Asker,
    filters: Arc<RuntimeFilters>,
    /// Those that are waited for at the same time.
    below: Vec<FilterId>,
}

/// The rows of a partition.
struct Filtering {
    /// None at its end.
    input: Option<SendableRecordBatchStream>,
    keys: FilterKeys,
    slot: watch::Receiver<Option<Arc<KeyFilter>>>,
    /// None once the first row has waited.
    waits: Option<Waits>,
    known: Known,
    in_scan: Option<InScan>,
    /// Few rows of each batch are put together.
    coalescer: BatchCoalescer,
    looked_at: usize,
    left_out: usize,
    rows_pruned: Count,
    waited: Time,
    metrics: BaselineMetrics,
}

impl Filtering {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.coalescer.next_completed_batch() {
                self.metrics.record_output(batch.num_rows());
                return Ok(Some(batch));
            }
            if self.input.is_none() {
                return Ok(None);
            }
            if let Some(Waits { asker, filters, below }) = self.waits.take() {
                let _timer = self.waited.timer();
                let due = filters.due(self.keys.id, &below, asker);
                // Its time may be over: then rows go by without a look.
                let _in_time = tokio::time::timeout_at(due, self.slot.wait_for(Option::is_some)).await;
            }
            self.learn();
            let Some(input) = &mut self.input else { continue };
            match input.next().await.transpose()? {
                Some(batch) => {
                    self.give_up_in_vain();
                    if let Some(batch) = self.look_at(batch)? {
                        self.metrics.record_output(batch.num_rows());
                        return Ok(Some(batch));
                    }
                }
                None => {
                    self.input = None;
                    self.coalescer.finish_buffered_batch()?;
                }
            }
        }
    }

    /// Looks whether the filter has come.
    fn learn(&mut self) {
        if !matches!(self.known, Known::NotYet) {
            return;
        }
        let Some(filter) = self.slot.borrow().clone() else { return };
        let schema = self.coalescer.schema();
        let types = self.keys.columns.iter().filter_map(|&column| schema.fields().get(column));
        let types: Vec<_> = types.map(|field| field.data_type()).collect();
        self.known = match filter.fits(types.into_iter()) && !filter.is_of_any() {
            true => Known::Keys(filter),
            false => Known::Nothing,
        };
        if let (Known::Keys(filter), Some(in_scan)) = (&self.known, &self.in_scan) {
            // What goes wrong here leaves all rows in.
            if in_scan.set(filter).is_err() {
                self.known = Known::Nothing;
            }
        }
    }

    /// Looks no more where few rows are left out.
    fn give_up_in_vain(&mut self) {
        if self.looked_at >= TRIAL_ROWS && self.left_out * 16 < self.looked_at {
            self.known = Known::Nothing;
        }
    }

    /// Takes what has a partner of a batch; gives it back where all of it goes on
    /// and nothing waits before it.
    fn look_at(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>> {
        let Known::Keys(filter) = &self.known else {
            if self.coalescer.is_empty() {
                return Ok(Some(batch));
            }
            self.coalescer.push_batch(batch)?;
            self.coalescer.finish_buffered_batch()?;
            return Ok(None);
        };
        let timer = self.metrics.elapsed_compute().timer();
        let keys: Vec<_> = self.keys.columns.iter().map(|&column| Arc::clone(batch.column(column))).collect();
        let Ok(keep) = filter.may_have(&keys) else {
            self.known = Known::Nothing;
            self.coalescer.push_batch(batch)?;
            self.coalescer.finish_buffered_batch()?;
            return Ok(None);
        };
        let rows = batch.num_rows();
        let left_out = rows - keep.true_count();
        self.rows_pruned.add(left_out);
        self.looked_at += rows;
        self.left_out += left_out;
        match left_out {
            0 if self.coalescer.is_empty() => return Ok(Some(batch)),
            0 => self.coalescer.push_batch(batch)?,
            _ if left_out == rows => {}
            _ => self.coalescer.push_batch_with_filter(batch, &keep)?,
        }
        timer.done();
        Ok(None)
    }
}
