//! EXPLAIN and EXPLAIN ANALYZE: stages, their workers and what they did.

use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion_distributed::{
    DistributedExec, DistributedMetricsFormat, NetworkBoundaryExt, Stage, display_plan_ascii,
};

use super::view::View;
use super::whole_plan::WholePlanExec;

/// A plan as text, each stage with its workers.
pub fn explain(plan: &Arc<dyn ExecutionPlan>, view: &View) -> String {
    if let Some(whole) = plan.downcast_ref::<WholePlanExec>() {
        return whole_plan_text(whole, None);
    }
    if plan.is::<DistributedExec>() {
        return with_workers(&display_plan_ascii(plan.as_ref(), false), plan, view);
    }
    format!("on the coordinator\n{}", displayable(plan.as_ref()).indent(false))
}

/// A plan that has run to its end, with what each operator did.
///
/// # Errors
/// Where metrics cannot be put together; the query itself was well.
pub async fn explain_analyze(plan: &Arc<dyn ExecutionPlan>, view: &View, is_verbose: bool) -> Result<String> {
    if let Some(whole) = plan.downcast_ref::<WholePlanExec>() {
        return Ok(whole_plan_text(whole, Some(whole.node_metrics().unwrap_or_default())));
    }
    if plan.is::<DistributedExec>() {
        let format =
            if is_verbose { DistributedMetricsFormat::PerTask } else { DistributedMetricsFormat::Aggregated };
        let text = datafusion_distributed::explain_analyze(Arc::clone(plan), format).await?;
        return Ok(with_workers(&text, plan, view));
    }
    let displayed = datafusion::physical_plan::display::DisplayableExecutionPlan::with_metrics(plan.as_ref());
    Ok(format!("on the coordinator\n{}", displayed.indent(is_verbose)))
}

fn whole_plan_text(whole: &WholePlanExec, metrics: Option<Vec<MetricsSet>>) -> String {
    let mut text = format!("┌───── Whole plan ── worker {}\n", whole.worker());
    let mut index = 0;
    whole_plan_lines(whole.plan(), 0, metrics.as_deref(), &mut index, &mut text);
    text.push_str("└──────────────────────────────────────────────────\n");
    text
}

fn whole_plan_lines(
    node: &Arc<dyn ExecutionPlan>,
    depth: usize,
    metrics: Option<&[MetricsSet]>,
    index: &mut usize,
    text: &mut String,
) {
    let line = displayable(node.as_ref()).one_line().to_string();
    let measured = metrics.and_then(|metrics| metrics.get(*index)).map(|metrics| {
        let metrics = metrics.aggregate_by_name().sorted_for_display().timestamps_removed();
        format!(", metrics=[{metrics}]")
    });
    *index += 1;
    // Writing to a string does not fail.
    let _written =
        writeln!(text, "│ {}{}{}", "  ".repeat(depth), line.trim_end(), measured.unwrap_or_default());
    for child in node.children() {
        whole_plan_lines(child, depth + 1, metrics, index, text);
    }
}

/// Adds to the head line of each stage the workers that its tasks run on.
fn with_workers(text: &str, plan: &Arc<dyn ExecutionPlan>, view: &View) -> String {
    let mut tasks_of_stage = std::collections::BTreeMap::new();
    let mut open = vec![Arc::clone(plan)];
    while let Some(root) = open.pop() {
        let walked = root.apply(|node| {
            if let Some(boundary) = node.as_network_boundary()
                && let Stage::Local(stage) = boundary.input_stage()
            {
                tasks_of_stage.insert(stage.num, stage.tasks);
                open.push(Arc::clone(&stage.plan));
                return Ok(TreeNodeRecursion::Jump);
            }
            Ok(TreeNodeRecursion::Continue)
        });
        debug_assert!(walked.is_ok(), "walking a plan does not fail");
    }
    let mut lines = String::with_capacity(text.len() + 256);
    for line in text.lines() {
        lines.push_str(line);
        let stage = line
            .split_once("Stage ")
            .filter(|(before, _)| before.contains('┌'))
            .and_then(|(_, after)| after.split(' ').next()?.parse::<usize>().ok());
        if let Some(&tasks) = stage.as_ref().and_then(|stage| tasks_of_stage.get(stage)) {
            let workers: Vec<_> =
                view.task_workers(tasks).iter().map(|&index| view.workers()[index].id.as_str()).collect();
            let _written = write!(lines, " ── workers: {}", workers.join(", "));
        }
        lines.push('\n');
    }
    lines
}
