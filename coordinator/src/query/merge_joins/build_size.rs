//! What the hashed side of a join is expected to take in memory, from what the catalog knows
//! of its rows.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue, Statistics};
use datafusion::config::ConfigOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};

use crate::query::join_room::JoinRoom;
use crate::query::scan_tasks::{has_several_shards, shard_scan, tasks_of_scan};
use crate::query::session_state::PARTITIONS;

/// Of each row in a hash table, beside the row: its hash, its place, the next one with the same
/// hash, and room to grow.
const HASHED_ROW_BYTES: u64 = 32;
/// A text or binary value: 16 bytes of a view, and those that do not fit in it.
const TEXT_BYTES: u64 = 40;
/// A value of any other type without a width of its own.
const NESTED_BYTES: u64 = 100;
/// Of each number between the least and the greatest key of a join that looks them up in an array.
const ARRAY_PLACE_BYTES: u64 = 4;
/// Bytes in memory for each byte of a file, where nothing is known of its rows.
const EXPANSION: u64 = 4;

/// Bytes that the hashed side of a join is expected to take on one worker, in as many tasks as there is room for.
///
/// # Errors
/// Those of the plan's statistics.
pub(super) fn build_bytes(join: &HashJoinExec, room: JoinRoom, config: &ConfigOptions) -> Result<u64> {
    let statistics = StatisticsContext::new().compute(join.left().as_ref(), &StatisticsArgs::new())?;
    let bytes = bytes_of(join.left(), &statistics)?;
    let array_bytes = array_bytes(join, &statistics, config);
    match join.partition_mode() {
        PartitionMode::CollectLeft => Ok(bytes.saturating_add(array_bytes)),
        PartitionMode::Partitioned | PartitionMode::Auto => {
            let tasks = tasks_of(join.left(), room)?.max(tasks_of(join.right(), room)?);
            let of_task = bytes.div_ceil(tasks);
            Ok(of_task.saturating_add(array_bytes.saturating_mul(PARTITIONS as u64)))
        }
    }
}

/// Bytes of the array in which one partition of a join looks partners up, where its keys are not far apart: as many
/// however few rows it has.
fn array_bytes(join: &HashJoinExec, statistics: &Statistics, config: &ConfigOptions) -> u64 {
    let [(key, _)] = join.on() else { return 0 };
    let Some(key) = key.downcast_ref::<Column>() else { return 0 };
    let Some(known) = statistics.column_statistics.get(key.index()) else { return 0 };
    let whole = |value: &Precision<ScalarValue>| match value.get_value()?.cast_to(&DataType::Int64).ok()? {
        ScalarValue::Int64(value) => value,
        _ => None,
    };
    let is_whole = join.left().schema().field(key.index()).data_type().is_integer();
    let Some((least, greatest)) = whole(&known.min_value).zip(whole(&known.max_value)).filter(|_| is_whole)
    else {
        return 0;
    };
    let range = greatest.abs_diff(least);
    let is_array = range < config.execution.perfect_hash_join_small_build_threshold as u64;
    if is_array { (range + 1) * ARRAY_PLACE_BYTES } else { 0 }
}

/// Bytes of all rows of a plan, with a hash table over them.
fn bytes_of(plan: &Arc<dyn ExecutionPlan>, statistics: &Statistics) -> Result<u64> {
    let stored = statistics.total_byte_size.get_value().map(|bytes| *bytes as u64);
    let schema = plan.schema();
    let Some(rows) = statistics.num_rows.get_value() else {
        let stored = match stored {
            Some(stored) => stored,
            None => file_bytes(plan)?,
        };
        return Ok(stored.saturating_mul(EXPANSION));
    };
    let wide = (*rows as u64).saturating_mul(row_bytes(&schema) + HASHED_ROW_BYTES);
    // Text may be longer than it is here taken for.
    let has_text = schema.fields().iter().any(|field| field.data_type().primitive_width().is_none());
    Ok(if has_text { wide.max(stored.unwrap_or(0)) } else { wide })
}

/// Bytes of one row in memory.
fn row_bytes(schema: &Schema) -> u64 {
    let width = |data_type: &DataType| match data_type {
        DataType::Boolean | DataType::Null => 1,
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => TEXT_BYTES,
        other => other.primitive_width().map_or(NESTED_BYTES, |width| width as u64),
    };
    schema.fields().iter().map(|field| width(field.data_type())).sum()
}

/// Bytes of all files that a plan reads, shards and others.
fn file_bytes(plan: &Arc<dyn ExecutionPlan>) -> Result<u64> {
    let mut bytes = 0_u64;
    plan.apply(|node| {
        let scan = node
            .downcast_ref::<DataSourceExec>()
            .and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
        let files = scan.into_iter().flat_map(|scan| &scan.file_groups).flat_map(FileGroup::files);
        bytes = files.map(PartitionedFile::effective_size).fold(bytes, u64::saturating_add);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(bytes)
}

/// Tasks of the largest scan of a plan, at least one.
fn tasks_of(plan: &Arc<dyn ExecutionPlan>, room: JoinRoom) -> Result<u64> {
    let mut tasks = 1;
    plan.apply(|node| {
        if let Some(scan) = shard_scan(node)
            && has_several_shards(scan)?
        {
            tasks = tasks.max(tasks_of_scan(scan, room.task_bytes)?);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(tasks.min(room.tasks_max.max(1) as u64))
}
