//! What the operators of a plan did, all tasks and threads together, as they
//! counted it.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{Metric, MetricValue, MetricsSet};
use shoal_proto::exchange::{DECODE_TIME, ENCODE_TIME, WIRE_BYTES, WIRE_ROWS};

/// How a scan calls the time that it is at work. What it calls the time that it
/// computes is a part of that.
const SCAN_TIME: &str = "time_elapsed_processing";
/// How an operator that deals rows out calls its time.
const DEAL_TIME: &str = "repartition_time";

/// Sums over operators, and over all their tasks and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Of those that read tables, files or the like.
    pub scan: Scanned,
    /// Time that all others were at work.
    pub compute: Duration,
    /// Rows that went from task to task; none where no operator reads from another
    /// stage, but for the coordinator's.
    pub exchange: Option<Moved>,
    /// Rows that came to the coordinator from workers; none where none are to come.
    pub collected: Option<Moved>,
}

/// What scans did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// That they were at work.
    pub time: Duration,
    /// That they gave.
    pub rows: u64,
    /// That they read.
    pub bytes: u64,
}

/// Rows that went somewhere, and what that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// All of them, also those that stayed in their process.
    pub rows: u64,
    /// Of those that went to another process, encoded.
    pub bytes: u64,
    /// To encode those.
    pub encode: Duration,
    /// To decode them.
    pub decode: Duration,
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.encode += other.encode;
        self.decode += other.decode;
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.scan.time += other.scan.time;
        self.scan.rows += other.scan.rows;
        self.scan.bytes += other.scan.bytes;
        self.compute += other.compute;
        for (mine, others) in [(&mut self.exchange, other.exchange), (&mut self.collected, other.collected)] {
            if let Some(moved) = others {
                *mine.get_or_insert_default() += moved;
            }
        }
    }
}

/// What an operator is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Reads what no other operator gives.
    Scan,
    /// Makes rows of rows.
    Compute,
    /// Reads what tasks of another stage give.
    Exchange,
    /// The same on the coordinator.
    Collect,
}

impl Part {
    /// The part of an operator that is in the same stage as its inputs.
    pub(super) fn of(node: &Arc<dyn ExecutionPlan>) -> Self {
        if node.children().is_empty() { Self::Scan } else { Self::Compute }
    }
}

impl Work {
    /// That of a plan that ran in this process.
    ///
    /// # Errors
    /// None in practice; those of walking a plan.
    pub fn of(plan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let mut work = Self::default();
        plan.apply(|node| {
            work.add(Part::of(node), &node.metrics().unwrap_or_default());
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(work)
    }

    /// Adds that of one operator.
    pub(super) fn add(&mut self, part: Part, metrics: &MetricsSet) {
        let time: Duration = times(metrics).map(|(_, time)| time).sum();
        match part {
            Part::Scan => {
                self.scan.time += time;
                self.scan.rows += metrics.output_rows().unwrap_or(0) as u64;
                self.scan.bytes += sum_of(metrics, "bytes_scanned") as u64;
            }
            Part::Compute => self.compute += time,
            Part::Exchange => *self.exchange.get_or_insert_default() += moved(metrics),
            Part::Collect => *self.collected.get_or_insert_default() += moved(metrics),
        }
    }
}

/// Rows that an operator got from elsewhere.
fn moved(metrics: &MetricsSet) -> Moved {
    let time = |name| Duration::from_nanos(sum_of(metrics, name) as u64);
    let rows = metrics.output_rows().unwrap_or_else(|| sum_of(metrics, WIRE_ROWS));
    Moved {
        rows: rows as u64,
        bytes: sum_of(metrics, WIRE_BYTES) as u64,
        encode: time(ENCODE_TIME),
        decode: time(DECODE_TIME),
    }
}

/// Time that an operator was at work, with the metrics that say so: no moment in
/// two of them.
pub(super) fn times(metrics: &MetricsSet) -> impl Iterator<Item = (&Metric, Duration)> {
    let is_scan = metrics.iter().any(|metric| metric.value().name() == SCAN_TIME);
    metrics.iter().filter_map(move |metric| {
        let nanos = match metric.value() {
            MetricValue::ElapsedCompute(time) if !is_scan => time.value(),
            MetricValue::Time { name, time } if name == SCAN_TIME || name == DEAL_TIME => time.value(),
            _ => return None,
        };
        Some((metric.as_ref(), Duration::from_nanos(nanos as u64)))
    })
}

/// The largest value of a metric in any partition and task.
pub(super) fn longest_of(metrics: &MetricsSet, name: &str) -> usize {
    let values = metrics.iter().map(|metric| metric.value()).filter(|value| value.name() == name);
    values.map(MetricValue::as_usize).max().unwrap_or(0)
}

/// The sum of a metric over partitions and tasks.
pub(super) fn sum_of(metrics: &MetricsSet, name: &str) -> usize {
    metrics
        .iter()
        .map(|metric| metric.value())
        .filter(|value| value.name() == name)
        .map(MetricValue::as_usize)
        .sum()
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, Time};

    use super::*;

    fn nanos(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    /// Metrics of two tasks with these values each.
    fn metrics(times: &[(&'static str, u64)], counts: &[(&'static str, usize)]) -> MetricsSet {
        let set = ExecutionPlanMetricsSet::new();
        for task in 0..2 {
            for (name, amount) in times {
                let time = Time::new();
                time.add_duration(nanos(*amount));
                let value = match *name {
                    "elapsed_compute" => MetricValue::ElapsedCompute(time),
                    name => MetricValue::Time { name: name.into(), time },
                };
                MetricBuilder::new(&set).with_partition(task).build(value);
            }
            for (name, amount) in counts {
                let count = Count::new();
                count.add(*amount);
                let value = match *name {
                    "output_rows" => MetricValue::OutputRows(count),
                    name => MetricValue::Count { name: name.into(), count },
                };
                MetricBuilder::new(&set).with_partition(task).build(value);
            }
        }
        set.clone_inner()
    }

    #[test]
    fn a_scan_counts_the_time_that_it_is_at_work_once() {
        let mut work = Work::default();
        let times =
            [("time_elapsed_processing", 50), ("time_elapsed_scanning_total", 900), ("elapsed_compute", 7)];
        work.add(Part::Scan, &metrics(&times, &[("output_rows", 3), ("bytes_scanned", 40)]));
        // One that has no files.
        work.add(Part::Scan, &metrics(&[("elapsed_compute", 5)], &[]));
        assert_eq!(work.scan, Scanned { time: nanos(110), rows: 6, bytes: 80 });
        assert_eq!(Work { scan: Scanned::default(), ..work }, Work::default());
    }

    #[test]
    fn other_operators_compute() {
        let mut work = Work::default();
        work.add(
            Part::Compute,
            &metrics(&[("elapsed_compute", 5), ("fetch_time", 100)], &[("output_rows", 3)]),
        );
        work.add(Part::Compute, &metrics(&[("repartition_time", 2), ("send_time", 100)], &[]));
        assert_eq!(work, Work { compute: nanos(14), ..Work::default() });
    }

    #[test]
    fn rows_that_go_between_tasks_and_those_that_come_here_are_apart() {
        let times = [(ENCODE_TIME, 20), (DECODE_TIME, 10)];
        let between = metrics(&times, &[("output_rows", 8), (WIRE_ROWS, 5), (WIRE_BYTES, 100)]);
        let here = metrics(&times, &[(WIRE_ROWS, 5), (WIRE_BYTES, 100)]);
        let mut work = Work::default();
        work.add(Part::Exchange, &between);
        work.add(Part::Collect, &here);
        let moved = |rows| Moved { rows, bytes: 200, encode: nanos(40), decode: nanos(20) };
        let expected = Work { exchange: Some(moved(16)), collected: Some(moved(10)), ..Work::default() };
        assert_eq!(work, expected);
        let mut both = Work { exchange: Some(moved(1)), compute: nanos(3), ..Work::default() };
        both += work;
        let twice = Moved { rows: 17, bytes: 400, encode: nanos(80), decode: nanos(40) };
        assert_eq!(both, Work { exchange: Some(twice), compute: nanos(3), ..expected });
    }

    #[test]
    fn a_plan_that_exchanges_nothing_says_none() {
        let mut work = Work::default();
        work += Work { compute: nanos(1), ..Work::default() };
        assert_eq!((work.exchange, work.collected), (None, None));
        // One whose exchange had no rows has one.
        work.add(Part::Exchange, &MetricsSet::new());
        assert_eq!(work.exchange, Some(Moved::default()));
    }
}
