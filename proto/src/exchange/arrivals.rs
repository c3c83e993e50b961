//! What is counted where rows arrive from another process: how many, their bytes on
//! the wire, and the time that it took to encode and decode them. And when a worker
//! took the first task.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricValue, Time};

/// The metric for rows that came from another process.
pub const WIRE_ROWS: &str = "wire_rows";
/// The metric for their bytes, encoded.
pub const WIRE_BYTES: &str = "wire_bytes";
/// The metric for the time that their sender took to encode them.
pub const ENCODE_TIME: &str = "encode_time";
/// The metric for the time that their reader took to decode them.
pub const DECODE_TIME: &str = "decode_time";

/// Counts what arrives. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    rows: Count,
    bytes: Count,
    encode: Time,
    decode: Time,
}

impl Arrivals {
    /// Counts among the metrics of an operator.
    pub fn among(metrics: &ExecutionPlanMetricsSet) -> Self {
        let count = |name: &'static str| MetricBuilder::new(metrics).global_counter(name);
        let time = |name: &'static str| {
            let time = Time::new();
            let value = MetricValue::Time { name: name.into(), time: time.clone() };
            MetricBuilder::new(metrics).build(value);
            time
        };
        Self {
            rows: count(WIRE_ROWS),
            bytes: count(WIRE_BYTES),
            encode: time(ENCODE_TIME),
            decode: time(DECODE_TIME),
        }
    }

    /// A message came that its sender took so long to encode.
    pub(super) fn message(&self, bytes: usize, encode_ns: u64) {
        self.bytes.add(bytes);
        // Time that is added counts as a nanosecond at least.
        if encode_ns > 0 {
            self.encode.add_duration(Duration::from_nanos(encode_ns));
        }
    }

    /// Rows came out of such messages after so long.
    pub(super) fn decoded(&self, rows: usize, took: Duration) {
        self.rows.add(rows);
        self.decode.add_duration(took);
    }
}

/// When a worker took the first task of an attempt. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct FirstTask(Arc<OnceLock<Instant>>);

impl FirstTask {
    /// That of the attempt that a plan runs in; one that nobody looks at where the
    /// context has none.
    pub fn of(context: &TaskContext) -> Self {
        context
            .session_config()
            .get_extension::<Self>()
            .map(|first| first.as_ref().clone())
            .unwrap_or_default()
    }

    /// A task was taken.
    pub fn taken(&self, now: Instant) {
        let _not_the_first = self.0.set(now);
    }

    /// When the first was.
    pub fn taken_at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_task_stays_the_first() {
        let first = FirstTask::default();
        assert_eq!(first.taken_at(), None);
        let start = Instant::now();
        first.clone().taken(start);
        first.taken(start + Duration::from_secs(1));
        assert_eq!(first.taken_at(), Some(start));
    }

    #[test]
    fn what_arrives_is_among_the_metrics_of_its_operator() {
        let metrics = ExecutionPlanMetricsSet::new();
        let arrivals = Arrivals::among(&metrics);
        arrivals.message(100, 0);
        arrivals.clone().message(20, 70);
        arrivals.decoded(5, Duration::from_nanos(30));
        let counted = metrics.clone_inner();
        let value = |name| counted.sum_by_name(name).map(|value| value.as_usize());
        assert_eq!(
            [WIRE_ROWS, WIRE_BYTES, ENCODE_TIME, DECODE_TIME].map(value),
            [Some(5), Some(120), Some(70), Some(30)]
        );
    }
}
