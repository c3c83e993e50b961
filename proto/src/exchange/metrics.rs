//! Operator metrics on the wire, for EXPLAIN ANALYZE and `system.queries`.
//! Kinds that have no form here are left out; a peer's unknown kind too.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use datafusion::physical_plan::metrics::{
    Count, Gauge, Label as DfLabel, Metric as DfMetric, MetricValue, MetricsSet as DfMetricsSet, Time,
};
use datafusion_distributed::TaskMetrics as DfTaskMetrics;

use crate::query::metric::Kind;
use crate::query::{Label, Metric, MetricsSet, TaskMetrics};

/// A task's metrics for the wire.
pub fn task_metrics_to_wire(metrics: &DfTaskMetrics) -> TaskMetrics {
    TaskMetrics {
        nodes: metrics.pre_order_plan_metrics.iter().map(metrics_to_wire).collect(),
        task: Some(metrics_to_wire(&metrics.task_metrics)),
    }
}

/// A task's metrics from the wire.
pub fn task_metrics_from_wire(metrics: TaskMetrics) -> DfTaskMetrics {
    DfTaskMetrics {
        pre_order_plan_metrics: metrics.nodes.into_iter().map(metrics_from_wire).collect(),
        task_metrics: metrics.task.map(metrics_from_wire).unwrap_or_default(),
    }
}

/// One operator's metrics for the wire.
pub fn metrics_to_wire(set: &DfMetricsSet) -> MetricsSet {
    MetricsSet { metrics: set.iter().filter_map(|metric| to_wire(metric)).collect() }
}

/// One operator's metrics from the wire.
pub fn metrics_from_wire(set: MetricsSet) -> DfMetricsSet {
    let mut metrics = DfMetricsSet::new();
    for metric in set.metrics {
        if let Some(metric) = from_wire(metric) {
            metrics.push(Arc::new(metric));
        }
    }
    metrics
}

fn to_wire(metric: &DfMetric) -> Option<Metric> {
    let (kind, value, value_2) = match metric.value() {
        MetricValue::OutputRows(count) => (Kind::OutputRows, count.value(), 0),
        MetricValue::ElapsedCompute(time) => (Kind::ElapsedCompute, time.value(), 0),
        MetricValue::SpillCount(count) => (Kind::SpillCount, count.value(), 0),
        MetricValue::SpilledBytes(count) => (Kind::SpilledBytes, count.value(), 0),
        MetricValue::SpilledRows(count) => (Kind::SpilledRows, count.value(), 0),
        MetricValue::OutputBytes(count) => (Kind::OutputBytes, count.value(), 0),
        MetricValue::OutputBatches(count) => (Kind::OutputBatches, count.value(), 0),
        MetricValue::CurrentMemoryUsage(gauge) => (Kind::CurrentMemory, gauge.value(), 0),
        MetricValue::Count { count, .. } => (Kind::Count, count.value(), 0),
        MetricValue::Gauge { gauge, .. } | MetricValue::PeakMemoryUsage { gauge, .. } => {
            (Kind::Gauge, gauge.value(), 0)
        }
        MetricValue::Time { time, .. } => (Kind::Time, time.value(), 0),
        MetricValue::PruningMetrics { pruning_metrics, .. } => {
            (Kind::Pruning, pruning_metrics.pruned(), pruning_metrics.matched())
        }
        MetricValue::StartTimestamp(_)
        | MetricValue::EndTimestamp(_)
        | MetricValue::Ratio { .. }
        | MetricValue::Custom { .. } => return None,
    };
    Some(Metric {
        name: metric.value().name().to_owned(),
        partition: metric.partition().map(|partition| partition as u64),
        labels: metric
            .labels()
            .iter()
            .map(|label| Label { name: label.name().to_owned(), value: label.value().to_owned() })
            .collect(),
        kind: kind.into(),
        value: i64::try_from(value).unwrap_or(i64::MAX),
        value_2: i64::try_from(value_2).unwrap_or(i64::MAX),
    })
}

fn from_wire(metric: Metric) -> Option<DfMetric> {
    let number = usize::try_from(metric.value).unwrap_or_default();
    let count = || {
        let count = Count::new();
        count.add(number);
        count
    };
    let time = || {
        let time = Time::new();
        // Zero is kept as it is: `add_duration` counts at least a nanosecond.
        if number > 0 {
            time.add_duration(Duration::from_nanos(number as u64));
        }
        time
    };
    let gauge = || {
        let gauge = Gauge::new();
        gauge.set(number);
        gauge
    };
    let kind = metric.kind();
    let name: Cow<'static, str> = Cow::Owned(metric.name);
    let value = match kind {
        Kind::OutputRows => MetricValue::OutputRows(count()),
        Kind::ElapsedCompute => MetricValue::ElapsedCompute(time()),
        Kind::SpillCount => MetricValue::SpillCount(count()),
        Kind::SpilledBytes => MetricValue::SpilledBytes(count()),
        Kind::SpilledRows => MetricValue::SpilledRows(count()),
        Kind::OutputBytes => MetricValue::OutputBytes(count()),
        Kind::OutputBatches => MetricValue::OutputBatches(count()),
        Kind::CurrentMemory => MetricValue::CurrentMemoryUsage(gauge()),
        Kind::Count => MetricValue::Count { name, count: count() },
        Kind::Gauge => MetricValue::Gauge { name, gauge: gauge() },
        Kind::Time => MetricValue::Time { name, time: time() },
        Kind::Pruning => {
            let pruning = datafusion::physical_plan::metrics::PruningMetrics::new();
            pruning.add_pruned(number);
            pruning.add_matched(usize::try_from(metric.value_2).unwrap_or_default());
            MetricValue::PruningMetrics { name, pruning_metrics: pruning }
        }
        Kind::Unknown | Kind::StartTimestamp | Kind::EndTimestamp | Kind::Ratio => return None,
    };
    let partition = metric.partition.and_then(|partition| usize::try_from(partition).ok());
    let labels = metric.labels.into_iter().map(|label| DfLabel::new(label.name, label.value)).collect();
    Some(DfMetric::new_with_labels(value, partition, labels))
}
