//! What the leaves of a plan read.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use shoal_data::SegmentName;
use shoal_proto::TableId;

use super::scan_tasks::{segment_of, shard_scan};

/// The one leaf of a plan; none where there are more.
pub(super) fn only_leaf(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let mut leaf = None;
    let mut leaves = 0;
    plan.apply(|node| {
        if node.children().is_empty() {
            leaves += 1;
            leaf = Some(Arc::clone(node));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(leaf.filter(|_| leaves == 1))
}

/// Whether a plan restricts the rows of one shard: by the shard key, mostly, so
/// that few of its pages are read. One worker is as good as many for that.
pub(super) fn restricts_one_shard(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let is_restricted = plan.exists(|node| Ok(node.is::<FilterExec>()))?;
    Ok(is_restricted && is_of_one_shard(plan)?)
}

/// Whether a plan reads one shard at most.
fn is_of_one_shard(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut only = None;
    let has_other = plan.exists(|node| {
        for file in shard_scan(node).into_iter().flat_map(|scan| &scan.file_groups).flat_map(FileGroup::files)
        {
            let SegmentName { table, shard, .. } = segment_of(file)?;
            if *only.get_or_insert((table, shard)) != (table, shard) {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    Ok(!has_other)
}

/// The shards that a plan reads, and the bytes of each.
pub(super) fn shards_of(plan: &Arc<dyn ExecutionPlan>) -> Result<BTreeMap<(TableId, u32), u64>> {
    let mut shards = BTreeMap::new();
    plan.apply(|node| {
        let groups = shard_scan(node).into_iter().flat_map(|scan| &scan.file_groups);
        for file in groups.flat_map(FileGroup::files) {
            let segment = segment_of(file)?;
            *shards.entry((segment.table, segment.shard)).or_default() += file.effective_size();
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(shards)
}
