//! EXPLAIN and EXPLAIN ANALYZE: stages, their workers and what they did.

use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion_distributed::{DistributedExec, NetworkBoundaryExt, Stage, display_plan_ascii};

use shoal_proto::WorkerId;

use super::shard_streams::ShardStreamsExec;
use super::view::View;
use super::whole_plan::WholePlanExec;

mod analyze;

pub use analyze::explain_analyze;

/// A plan as text, each stage with its workers.
pub fn explain(plan: &Arc<dyn ExecutionPlan>, view: &View) -> String {
    if let Some(whole) = plan.downcast_ref::<WholePlanExec>() {
        let plan = displayable(whole.plan().as_ref()).indent(false).to_string();
        return format!("on worker {}\n{plan}", whole.worker());
    }
    if let Some(streams) = plan.downcast_ref::<ShardStreamsExec>() {
        let plan = displayable(streams.plan().as_ref()).indent(false).to_string();
        let workers: Vec<&str> = streams.workers().into_iter().map(WorkerId::as_str).collect();
        return format!(
            "Stage 1 ── tasks={}, one per shard, streamed ── workers: {}\n{plan}",
            streams.shards(),
            workers.join(", ")
        );
    }
    if plan.is::<DistributedExec>() {
        return with_workers(&display_plan_ascii(plan.as_ref(), false), plan, view);
    }
    format!("on the coordinator\n{}", displayable(plan.as_ref()).indent(false))
}

/// An operator's line with the files that it reads counted instead of named:
/// their names say nothing to a reader and fill a screen.
fn shortened(line: &str) -> String {
    let Some((before, files)) = line.split_once("file_groups={") else {
        return line.to_owned();
    };
    let Some((files, after)) = files.split_once("]}") else {
        return line.to_owned();
    };
    let count =
        files.split([',', '[', ']', ' ']).filter(|word| word.contains('.') || word.contains('/')).count();
    format!("{before}files={count}{after}")
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

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn files_are_counted() {
        let line = "DataSourceExec: file_groups={2 groups: [[7/0/01a2.parquet, 7/2/01a3.parquet], [7/1/01a4.parquet]]}, \
                    projection=[a]";
        assert_eq!(shortened(line), "DataSourceExec: files=3, projection=[a]");
        assert_eq!(shortened("FilterExec: a@0 = 1"), "FilterExec: a@0 = 1");
    }
}
