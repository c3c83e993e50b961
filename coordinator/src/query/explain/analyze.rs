//! EXPLAIN ANALYZE: each stage with its workers, and what its operators did.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::physical_plan::metrics::{MetricValue, MetricsSet};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion_distributed::{
    DISTRIBUTED_DATAFUSION_TASK_ID_LABEL, DistributedExec, DistributedLeafExec, DistributedMetricsFormat,
    NetworkBoundaryExt, Stage, rewrite_distributed_plan_with_metrics,
};

use shoal_proto::WorkerId;

use super::shortened;
use crate::query::shard_streams::ShardStreamsExec;
use crate::query::view::View;
use crate::query::whole_plan::WholePlanExec;

/// A plan that has run to its end, as text.
///
/// # Errors
/// Where metrics cannot be put together; the query itself was well.
pub async fn explain_analyze(plan: &Arc<dyn ExecutionPlan>, view: &View, is_verbose: bool) -> Result<String> {
    let mut report = Report { text: String::new(), is_verbose };
    if let Some(whole) = plan.downcast_ref::<WholePlanExec>() {
        let measured = whole.node_metrics().unwrap_or_default();
        let mut stage = StageText::default();
        let mut index = 0;
        report.operators_in_order(whole.plan(), 0, &measured, &mut index, &mut stage);
        report.section(&format!("Whole plan ── worker {}", whole.worker()), &stage, None);
    } else if let Some(streams) = plan.downcast_ref::<ShardStreamsExec>() {
        let measured = streams.node_metrics();
        let mut stage = StageText::default();
        let mut index = 0;
        report.operators_in_order(streams.plan(), 0, &measured, &mut index, &mut stage);
        let workers: Vec<&str> = streams.workers().into_iter().map(WorkerId::as_str).collect();
        let title =
            format!("Stage 1 ── {} streams, one per shard, on {}", streams.shards(), workers.join(", "));
        report.section(&title, &stage, None);
    } else if plan.is::<DistributedExec>() {
        // Per task, so that the slowest one can be told.
        let format = DistributedMetricsFormat::PerTask;
        let plan = rewrite_distributed_plan_with_metrics(Arc::clone(plan), format).await?;
        if let [root] = plan.children().as_slice() {
            report.stage("Result ── on the coordinator", root, None, view);
        }
    } else {
        let mut stage = StageText::default();
        report.operators(plan, 0, &mut stage);
        report.section("Whole plan ── on the coordinator", &stage, None);
    }
    Ok(report.text)
}

struct Report {
    text: String,
    is_verbose: bool,
}

/// One stage while it is put together.
#[derive(Default)]
struct StageText {
    lines: String,
    /// Time of its operators, by task.
    compute: BTreeMap<usize, Duration>,
    spilled_bytes: usize,
    inputs: Vec<Input>,
}

/// What a stage reads from another stage.
struct Input {
    number: usize,
    tasks: usize,
    plan: Arc<dyn ExecutionPlan>,
    sent: Sent,
}

/// What went from a stage to those that read it.
#[derive(Clone, Copy)]
struct Sent {
    rows: usize,
    bytes: usize,
}

impl Report {
    fn stage(&mut self, title: &str, root: &Arc<dyn ExecutionPlan>, sent: Option<Sent>, view: &View) {
        let mut stage = StageText::default();
        self.operators(root, 0, &mut stage);
        self.section(title, &stage, sent);
        for input in stage.inputs {
            let workers: Vec<&str> = view
                .task_workers(input.tasks)
                .iter()
                .map(|&worker| view.workers()[worker].id.as_str())
                .collect();
            let tasks = if input.tasks == 1 { "1 task".into() } else { format!("{} tasks", input.tasks) };
            let title = format!("Stage {} ── {tasks} on {}", input.number, workers.join(", "));
            self.stage(&title, &input.plan, Some(input.sent), view);
        }
    }

    /// Writes a stage: what it did as a whole, then its operators.
    fn section(&mut self, title: &str, stage: &StageText, sent: Option<Sent>) {
        let total: Duration = stage.compute.values().sum();
        let mut summary = format!("time {}", time(total));
        if stage.compute.len() > 1 {
            let slowest = stage.compute.values().max().copied().unwrap_or_default();
            let _written = write!(summary, " (slowest task {})", time(slowest));
        }
        if let Some(sent) = sent {
            let _written = write!(summary, ", sent {} rows, {}", count(sent.rows), bytes(sent.bytes));
        }
        if stage.spilled_bytes > 0 {
            let _written = write!(summary, ", spilled {}", bytes(stage.spilled_bytes));
        }
        let _written = write!(self.text, "┌─ {title} ── {summary}\n{}└─\n", stage.lines);
    }

    /// The operators below `node`, down to where other stages begin.
    fn operators(&self, node: &Arc<dyn ExecutionPlan>, depth: usize, stage: &mut StageText) {
        let metrics = node.metrics().unwrap_or_default();
        if let Some(boundary) = node.as_network_boundary()
            && let Stage::Local(input) = boundary.input_stage()
        {
            let sent =
                Sent { rows: metrics.output_rows().unwrap_or(0), bytes: sum_of(&metrics, "output_bytes") };
            let head = format!("{} from stage {}", node.name(), input.num);
            self.line(&head, depth, &metrics, stage);
            stage.inputs.push(Input {
                number: input.num,
                tasks: input.tasks,
                plan: Arc::clone(&input.plan),
                sent,
            });
            return;
        }
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            self.line(&self.head(leaf.original()), depth, &metrics, stage);
            return;
        }
        self.line(&self.head(node), depth, &metrics, stage);
        for child in node.children() {
            self.operators(child, depth + 1, stage);
        }
    }

    /// The same with metrics that come in pre-order beside the plan.
    fn operators_in_order(
        &self,
        node: &Arc<dyn ExecutionPlan>,
        depth: usize,
        measured: &[MetricsSet],
        index: &mut usize,
        stage: &mut StageText,
    ) {
        let metrics = measured.get(*index).cloned().unwrap_or_default();
        *index += 1;
        self.line(&self.head(node), depth, &metrics, stage);
        for child in node.children() {
            self.operators_in_order(child, depth + 1, measured, index, stage);
        }
    }

    fn head(&self, node: &Arc<dyn ExecutionPlan>) -> String {
        let line = displayable(node.as_ref()).one_line().to_string();
        if self.is_verbose { line.trim_end().to_owned() } else { shortened(line.trim_end()) }
    }

    fn line(&self, head: &str, depth: usize, metrics: &MetricsSet, stage: &mut StageText) {
        for metric in metrics.iter() {
            if let MetricValue::ElapsedCompute(elapsed) = metric.value() {
                let task =
                    metric.labels().iter().find(|label| label.name() == DISTRIBUTED_DATAFUSION_TASK_ID_LABEL);
                let task = task.and_then(|label| label.value().parse().ok()).unwrap_or(0);
                *stage.compute.entry(task).or_default() += Duration::from_nanos(elapsed.value() as u64);
            }
        }
        let spilled_bytes = metrics.spilled_bytes().unwrap_or(0);
        stage.spilled_bytes += spilled_bytes;
        let mut notes = Vec::new();
        if self.is_verbose {
            let all = metrics.aggregate_by_name().sorted_for_display().timestamps_removed().to_string();
            if !all.is_empty() {
                notes.push(all);
            }
        } else {
            if let Some(rows) = metrics.output_rows() {
                notes.push(format!("rows={}", count(rows)));
            }
            if let Some(nanos) = metrics.elapsed_compute() {
                notes.push(format!("time={}", time(Duration::from_nanos(nanos as u64))));
            }
            for (label, name) in [("read", "bytes_scanned"), ("spilled", "spilled_bytes")] {
                let amount = sum_of(metrics, name);
                if amount > 0 {
                    notes.push(format!("{label}={}", bytes(amount)));
                }
            }
        }
        let notes = if notes.is_empty() { String::new() } else { format!("  [{}]", notes.join(", ")) };
        let _written = writeln!(stage.lines, "│ {}{head}{notes}", "  ".repeat(depth));
    }
}

/// The sum of a metric over partitions and tasks.
fn sum_of(metrics: &MetricsSet, name: &str) -> usize {
    metrics
        .iter()
        .map(|metric| metric.value())
        .filter(|value| value.name() == name)
        .map(MetricValue::as_usize)
        .sum()
}

fn time(elapsed: Duration) -> String {
    let micros = elapsed.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", elapsed.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", elapsed.as_secs_f64()),
    }
}

fn bytes(amount: usize) -> String {
    match amount {
        0..1_000 => format!("{amount} B"),
        1_000..1_000_000 => format!("{:.1} kB", amount as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", amount as f64 / 1e6),
        _ => format!("{:.2} GB", amount as f64 / 1e9),
    }
}

/// A number with its thousands apart.
fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7, 1_500, 2_500_000, 3_210_000_000].map(bytes), ["7 B", "1.5 kB", "2.5 MB", "3.21 GB"]);
        assert_eq!(
            [40, 1_500, 2_500_000].map(|micros| time(Duration::from_micros(micros))),
            ["40 µs", "1.5 ms", "2.50 s"]
        );
    }
}
