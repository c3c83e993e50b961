//! Which joins by equality are made by merging sorted sides, because a hash table of
//! one side is not expected to fit in memory: DataFusion's hash joins cannot spill, its sorts and
//! sort-merge joins can.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{JoinSide, JoinType, Result, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{HashJoinExec, JoinOn, SortMergeJoinExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;

use self::build_size::build_bytes;
use super::join_room::{JoinRoom, Joins};
use super::planner_rules::Rule;

mod build_size;
#[cfg(test)]
mod tests;

/// DataFusion's rule that settles which side of a join is hashed. What follows it puts the
/// exchanges and sorts in that a merge needs.
const AFTER: &str = "join_selection";

/// Turns the hash joins that are too large for the plan's [`JoinRoom`] into sort-merge joins.
#[derive(Debug, Default)]
pub(super) struct MergeLargeJoins;

impl MergeLargeJoins {
    /// The rules with this one at its place.
    pub(super) fn among(mut rules: Vec<Rule>) -> Vec<Rule> {
        let place = rules.iter().position(|rule| rule.name() == AFTER);
        rules.insert(place.map_or(0, |place| place + 1), Arc::new(Self));
        rules
    }
}

impl PhysicalOptimizerRule for MergeLargeJoins {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(room) = JoinRoom::of(config) else { return Ok(plan) };
        // What a recursion joins comes again and again; nobody knows how often.
        if room.joins == Joins::Hashed || plan.exists(|node| Ok(node.is::<RecursiveQueryExec>()))? {
            return Ok(plan);
        }
        let mut sizes = Vec::new();
        let plan = plan
            .transform_up(|node| {
                if let Some(join) = node.downcast_ref::<HashJoinExec>() {
                    let bytes = build_bytes(join, room, config)?;
                    sizes.push(Size { bytes, can_merge: can_merge(join)? && node.fetch().is_none() });
                }
                Ok(Transformed::no(node))
            })
            .data()?;
        let chosen = match room.joins {
            Joins::Merged => (0..sizes.len()).filter(|&place| sizes[place].can_merge).collect(),
            Joins::ByRoom | Joins::Hashed => outgrown(&sizes, room.bytes),
        };
        if chosen.is_empty() {
            return Ok(plan);
        }
        tracing::debug!(?sizes, ?chosen, room_bytes = room.bytes, "joins are merged");
        let mut place = 0;
        plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
            place += 1;
            if !chosen.contains(&(place - 1)) {
                return Ok(Transformed::no(node));
            }
            let merged = merged(join)?;
            // Whoever is above knows its columns by place, name and type.
            match merged.schema() == node.schema() {
                true => Ok(Transformed::yes(merged)),
                false => Ok(Transformed::no(node)),
            }
        })
        .data()
    }

    fn name(&self) -> &str {
        "merge_large_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether a plan that can run has a hash join that could be a merge instead.
///
/// # Errors
/// Where a key has no type; none in practice.
pub(super) fn has_mergeable(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    plan.exists(|node| node.downcast_ref::<HashJoinExec>().map_or(Ok(false), can_merge))
}

/// A hash join, as far as the choice goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// That its hashed side is expected to take on a worker.
    bytes: u64,
    can_merge: bool,
}

/// Which of the joins are merged, by their places: the largest first, until the others fit in
/// the room together. They may all be there at once.
fn outgrown(sizes: &[Size], room_bytes: u64) -> BTreeSet<usize> {
    let mut left = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(size.bytes));
    let mut by_size: Vec<usize> = (0..sizes.len()).filter(|&place| sizes[place].can_merge).collect();
    by_size.sort_by_key(|&place| std::cmp::Reverse(sizes[place].bytes));
    let mut chosen = BTreeSet::new();
    for place in by_size {
        if left <= room_bytes {
            break;
        }
        left = sizes
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != place && !chosen.contains(other))
            .fold(0, |sum, (_, size)| sum.saturating_add(size.bytes));
        chosen.insert(place);
    }
    chosen
}

/// Whether a sort-merge join gives the rows that this join gives. DataFusion 55.2 has none
/// that knows of nulls what `NOT IN` must; it may put a projection below a join and leave the
/// join's filter as it was (datafusion 24414), which can befall joins that give columns of both
/// sides, and takes columns of a filter in another order than the filter has them (25489). So
/// only semi and anti joins, whose rows are those of one side, keep a filter; that of an inner join
/// comes after it.
fn can_merge(join: &HashJoinExec) -> Result<bool> {
    let is_filter_kept = match join.join_type() {
        JoinType::Inner
        | JoinType::LeftSemi
        | JoinType::RightSemi
        | JoinType::LeftAnti
        | JoinType::RightAnti => true,
        JoinType::Left | JoinType::Right | JoinType::Full | JoinType::LeftMark | JoinType::RightMark => {
            join.filter().is_none()
        }
    };
    if !is_filter_kept || join.null_aware {
        return Ok(false);
    }
    let (left, right) = (join.left().schema(), join.right().schema());
    for (left_key, right_key) in join.on() {
        let key = left_key.data_type(&left)?;
        if key != right_key.data_type(&right)? || !is_ordered_as_compared(&key) {
            return Ok(false);
        }
    }
    Ok(!join.on().is_empty())
}

/// Whether a sort-merge join compares values of this type as a sort orders them. Not floats: a
/// sort has two zeros, a join one. Of others not listed it says that it cannot compare them.
fn is_ordered_as_compared(key: &DataType) -> bool {
    match key {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Date32
        | DataType::Date64
        | DataType::Decimal128(..)
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View => true,
        DataType::Timestamp(_, zone) => zone.is_none(),
        _ => false,
    }
}

/// The sort-merge join that gives what this hash join gives, on the same keys.
fn merged(join: &HashJoinExec) -> Result<Arc<dyn ExecutionPlan>> {
    let on = || join.on().to_vec();
    let turned = || on().into_iter().map(|(left, right)| (right, left)).collect::<JoinOn>();
    let (left, right) = (Arc::clone(join.left()), Arc::clone(join.right()));
    let is_inner = *join.join_type() == JoinType::Inner;
    let filter = join.filter().filter(|_| !is_inner).cloned();
    // Where a projection meets a join that gives rows of its right side, it is put to the
    // left one where it has fewer columns. Those of the left are told apart.
    let (left, right, on, filter, join_type) = match join.join_type() {
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            (right, left, turned(), filter.as_ref().map(JoinFilter::swap), join.join_type().swap())
        }
        join_type => (left, right, on(), filter, *join_type),
    };
    let left_columns = left.schema().fields().len();
    // As segments are sorted; no scan of them says so of its rows as a whole, yet.
    let order = vec![SortOptions { descending: false, nulls_first: false }; on.len()];
    let merge = SortMergeJoinExec::try_new(left, right, on, filter, join_type, order, join.null_equality())?;
    let mut plan: Arc<dyn ExecutionPlan> = Arc::new(merge);
    if let Some(filter) = join.filter().filter(|_| is_inner) {
        plan = Arc::new(FilterExec::try_new(over_both(filter, left_columns)?, plan)?);
    }
    let Some(projection) = &join.projection else { return Ok(plan) };
    let schema = plan.schema();
    let columns = projection.iter().map(|&index| {
        let name = schema.field(index).name();
        (Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>, name.clone())
    });
    Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), plan)?))
}

/// A join's filter over the columns of its left side, of which there are so many, and then those
/// of its right side.
fn over_both(filter: &JoinFilter, left_columns: usize) -> Result<Arc<dyn PhysicalExpr>> {
    Arc::clone(filter.expression())
        .transform(|expr| {
            let Some(column) = expr.downcast_ref::<Column>() else { return Ok(Transformed::no(expr)) };
            let Some(of_side) = filter.column_indices().get(column.index()) else {
                return internal_err!("the filter of a join has no column {}", column.index());
            };
            let index = match of_side.side {
                JoinSide::Left => of_side.index,
                JoinSide::Right => left_columns + of_side.index,
                JoinSide::None => return internal_err!("the filter of a join asks for a mark"),
            };
            Ok(Transformed::yes(Arc::new(Column::new(column.name(), index)) as Arc<dyn PhysicalExpr>))
        })
        .data()
}
