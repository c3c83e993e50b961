//! A plan as text: each stage with its workers and, once it has run, what its
//! operators did.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion_distributed::{
    DISTRIBUTED_DATAFUSION_TASK_ID_LABEL, DistributedExec, DistributedLeafExec, DistributedMetricsFormat,
    NetworkBoundaryExt, Stage, rewrite_distributed_plan_with_metrics,
};

use shoal_data::SegmentName;
use shoal_data::operators::{ROWS_PRUNED_METRIC, WAIT_METRIC};
use shoal_proto::{TableId, WorkerId};

use super::split::{TimeSplit, count};
use super::work::{Part, Work, longest_of, sum_of, times};
use crate::query::shard_streams::{ShardStreamsExec, streams_of};
use crate::query::timeline::Elapsed;
use crate::query::view::View;
use crate::query::whole_plan::WholePlanExec;

/// A plan, as text.
pub fn explain(plan: &Arc<dyn ExecutionPlan>, view: &View, is_verbose: bool) -> String {
    let mut report = Report { text: String::new(), work: Work::default(), view, is_verbose, has_run: false };
    report.whole(plan, Vec::new());
    report.text
}

/// A plan that has run to its end, as text, with a table of where its time went.
///
/// # Errors
/// Where metrics cannot be put together; the query itself was well.
pub async fn explain_analyze(
    plan: &Arc<dyn ExecutionPlan>,
    view: &View,
    is_verbose: bool,
    elapsed: Elapsed,
) -> Result<String> {
    let mut report = Report { text: String::new(), work: Work::default(), view, is_verbose, has_run: true };
    if let Some(whole) = plan.downcast_ref::<WholePlanExec>() {
        report.whole(plan, whole.node_metrics().unwrap_or_default());
    } else if let Some(streams) = streams_of(plan) {
        report.whole(plan, streams.node_metrics());
    } else if plan.is::<DistributedExec>() {
        // Per task, so that the slowest one can be told.
        let format = DistributedMetricsFormat::PerTask;
        let plan = rewrite_distributed_plan_with_metrics(Arc::clone(plan), format).await?;
        report.whole(&plan, Vec::new());
    } else {
        report.whole(plan, Vec::new());
    }
    let split = TimeSplit { elapsed, work: report.work };
    Ok(format!("{}{split}", report.text))
}

/// Shorter waits for a run-time filter are not told: they are the way of a message.
const WAIT_TOLD: Duration = Duration::from_millis(1);

struct Report<'a> {
    text: String,
    /// Of all operators that are in the text.
    work: Work,
    view: &'a View,
    is_verbose: bool,
    has_run: bool,
}

/// One stage while it is put together.
#[derive(Default)]
struct StageText {
    lines: String,
    /// Time of its operators, by task.
    compute: BTreeMap<usize, Duration>,
    spilled_bytes: usize,
    work: Work,
    /// Whether the coordinator runs it.
    is_here: bool,
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

impl Report<'_> {
    /// The whole plan; `measured` are metrics that are not in the plan itself.
    fn whole(&mut self, plan: &Arc<dyn ExecutionPlan>, measured: Vec<MetricsSet>) {
        let mut stage = StageText::default();
        if let Some(whole) = plan.downcast_ref::<WholePlanExec>() {
            self.work.add(Part::Collect, &whole.arrived());
            self.operators_in_order(whole.plan(), 0, &measured, &mut 0, &mut stage);
            self.section(&format!("Whole plan ── on {}", whole.worker()), &stage, None);
        } else if let Some(streams) = streams_of(plan) {
            self.work.add(Part::Collect, &streams.arrived());
            if !plan.is::<ShardStreamsExec>() {
                let mut result = StageText::default();
                self.operators(plan, 0, &mut result);
                self.section("Result ── on the coordinator", &result, None);
            }
            self.operators_in_order(streams.plan(), 0, &measured, &mut 0, &mut stage);
            let workers: Vec<&str> = streams.workers().into_iter().map(WorkerId::as_str).collect();
            let tasks = counted(streams.shards(), "task");
            let title = format!("Stage 1 ── {tasks}, one per shard, streamed from {}", workers.join(", "));
            self.section(&title, &stage, None);
        } else if plan.is::<DistributedExec>()
            && let [root] = plan.children().as_slice()
        {
            self.stage("Result ── on the coordinator", root, None);
        } else {
            self.operators(plan, 0, &mut stage);
            self.section("Whole plan ── on the coordinator", &stage, None);
        }
    }

    /// A stage and those that it reads; the coordinator's own has sent nothing.
    fn stage(&mut self, title: &str, root: &Arc<dyn ExecutionPlan>, sent: Option<Sent>) {
        let mut stage = StageText { is_here: sent.is_none(), ..StageText::default() };
        self.operators(root, 0, &mut stage);
        self.section(title, &stage, sent);
        for input in stage.inputs {
            let workers = self.view.task_workers(input.tasks);
            let workers: Vec<&str> =
                workers.iter().map(|&worker| self.view.workers()[worker].id.as_str()).collect();
            let tasks = counted(input.tasks, "task");
            let title = format!("Stage {} ── {tasks} on {}", input.number, workers.join(", "));
            self.stage(&title, &input.plan, Some(input.sent));
        }
    }

    /// Writes a stage: what it did as a whole, then its operators.
    fn section(&mut self, title: &str, stage: &StageText, sent: Option<Sent>) {
        self.work += stage.work;
        if !self.has_run {
            let _written = write!(self.text, "┌─ {title}\n{}└─\n", stage.lines);
            return;
        }
        let total: Duration = stage.compute.values().sum();
        let mut summary = format!("time {}", time(total));
        if stage.compute.len() > 1 {
            let slowest = stage.compute.values().max().copied().unwrap_or_default();
            let _written = write!(summary, " (slowest task {})", time(slowest));
        }
        if let Some(sent) = sent {
            let _written = write!(summary, ", sent {} rows, {}", count(sent.rows as u64), bytes(sent.bytes));
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
            let part = if stage.is_here { Part::Collect } else { Part::Exchange };
            self.line(&head, part, depth, &metrics, stage);
            stage.inputs.push(Input {
                number: input.num,
                tasks: input.tasks,
                plan: Arc::clone(&input.plan),
                sent,
            });
            return;
        }
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            self.line(&self.head(leaf.original()), Part::Scan, depth, &metrics, stage);
            return;
        }
        if node.is::<ShardStreamsExec>() {
            // What came through it is counted with the stage.
            self.line("ShardStreamsExec from stage 1", Part::Compute, depth, &metrics, stage);
            return;
        }
        self.line(&self.head(node), Part::of(node), depth, &metrics, stage);
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
        self.line(&self.head(node), Part::of(node), depth, &metrics, stage);
        for child in node.children() {
            self.operators_in_order(child, depth + 1, measured, index, stage);
        }
    }

    fn head(&self, node: &Arc<dyn ExecutionPlan>) -> String {
        let line = displayable(node.as_ref()).one_line().to_string();
        if self.is_verbose {
            return line.trim_end().to_owned();
        }
        shortened(line.trim_end(), |table| self.view.table_name(table))
    }

    fn line(&self, head: &str, part: Part, depth: usize, metrics: &MetricsSet, stage: &mut StageText) {
        stage.work.add(part, metrics);
        for (metric, time) in times(metrics) {
            let task =
                metric.labels().iter().find(|label| label.name() == DISTRIBUTED_DATAFUSION_TASK_ID_LABEL);
            let task = task.and_then(|label| label.value().parse().ok()).unwrap_or(0);
            *stage.compute.entry(task).or_default() += time;
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
                notes.push(format!("rows={}", count(rows as u64)));
            }
            let times: Vec<Duration> = times(metrics).map(|(_, time)| time).collect();
            if !times.is_empty() {
                notes.push(format!("time={}", time(times.iter().sum())));
            }
            let pruned = sum_of(metrics, ROWS_PRUNED_METRIC);
            if pruned > 0 {
                notes.push(format!("pruned={}", count(pruned as u64)));
            }
            let waited = Duration::from_nanos(longest_of(metrics, WAIT_METRIC) as u64);
            if waited >= WAIT_TOLD {
                notes.push(format!("waited={}", time(waited)));
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

/// An operator's line with the files that it reads counted instead of named,
/// and their table told: their names say nothing to a reader and fill a
/// screen.
fn shortened(line: &str, table_name: impl Fn(TableId) -> Option<String>) -> String {
    let Some((before, files)) = line.split_once("file_groups={") else {
        return line.to_owned();
    };
    let Some((files, after)) = files.split_once("]}") else {
        return line.to_owned();
    };
    let mut names = files.split([',', '[', ']', ' ']).filter(|word| word.contains('.')).peekable();
    let table = names.peek().and_then(|name| name.parse::<SegmentName>().ok());
    let table = table.and_then(|name| table_name(name.table)).map(|name| format!("table={name}, "));
    format!("{before}{}files={}{after}", table.unwrap_or_default(), names.count())
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

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_and_their_table_is_told() {
        let line = "DataSourceExec: file_groups={2 groups: [[7/0/01a2023ed9f672dbac1a920dbd843635.parquet, \
                    7/2/01a2023ed9d1738090f96a125a759258.parquet], [7/1/01a2023ed9d1738090f96a101b2a8b1a.parquet]]}, \
                    projection=[a]";
        let name = |table: TableId| (table == TableId(7)).then(|| "trips".to_owned());
        assert_eq!(shortened(line, name), "DataSourceExec: table=trips, files=3, projection=[a]");
        assert_eq!(shortened("FilterExec: a@0 = 1", |_| None), "FilterExec: a@0 = 1");
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!([7, 1_500, 2_500_000, 3_210_000_000].map(bytes), ["7 B", "1.5 kB", "2.5 MB", "3.21 GB"]);
        assert_eq!(
            [40, 1_500, 2_500_000].map(|micros| time(Duration::from_micros(micros))),
            ["40 µs", "1.5 ms", "2.50 s"]
        );
    }
}
