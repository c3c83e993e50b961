//! Which joins of a distributed plan get a run-time filter, and where. What the
//! built side has as keys is gathered beside the join; rows of the other side that
//! have no partner are left out as far below it as they can be, where that is in
//! another stage, or on the built side of another join: what that one has as keys
//! is less then. Joins whose other side is read in their own tasks otherwise have
//! DataFusion's filters.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::{JoinType, NullEquality, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion_distributed::{BroadcastExec, NetworkBoundaryExt, NetworkBroadcastExec};
use shoal_data::operators::{CompactExec, FilterKeys, JoinKeysExec, RuntimeFilterExec, passage};
use shoal_proto::runtime_filter::{FilterId, KeyFilter};
use uuid::Uuid;

use super::guard::ISOLATED_UNION;

mod magnitude;

use magnitude::magnitude;

/// The plan with run-time filters. Only for a plan that is run once.
///
/// # Errors
/// None in practice; those of rebuilding a plan.
pub(crate) fn with_runtime_filters(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut next = FilterId { plan: Uuid::new_v4().as_u64_pair().1, join: 0 };
    with_filters(&plan, false, &mut next)
}

/// The same for a part of a plan. What the coordinator runs itself, above the
/// first stage, has nobody to tell.
fn with_filters(
    node: &Arc<dyn ExecutionPlan>,
    is_of_workers: bool,
    next: &mut FilterId,
) -> Result<Arc<dyn ExecutionPlan>> {
    // Its children run in tasks that are counted anew.
    if node.name() == ISOLATED_UNION {
        return Ok(Arc::clone(node));
    }
    let below = is_of_workers || node.is_network_boundary();
    let children = node.children().into_iter().map(|child| with_filters(child, below, next));
    let node = replace_children_if_necessary(Arc::clone(node), children.collect::<Result<_>>()?)?;
    let Some(join) = node.downcast_ref::<HashJoinExec>().filter(|_| is_of_workers) else { return Ok(node) };
    let Some((left, right)) = keys_of(join) else { return Ok(node) };
    let keys = |columns| FilterKeys { id: *next, columns };
    let way = Way { is_worth_it: false, is_computed: false };
    let Some(probe) = filtered(join.right(), &keys(right), way)? else { return Ok(node) };
    let built = gathered(join.left(), keys(left))?;
    next.join += 1;
    replace_children_if_necessary(Arc::clone(&node), vec![built, probe])
}

/// The columns of the keys on the left and on the right of a join to whose result
/// rows of the right side without a partner make no difference. None for other joins,
/// and for keys that cannot be told.
fn keys_of(join: &HashJoinExec) -> Option<(Vec<usize>, Vec<usize>)> {
    let can_leave_out = match join.join_type() {
        JoinType::Inner | JoinType::RightSemi => true,
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => true,
        JoinType::Right | JoinType::RightAnti | JoinType::RightMark | JoinType::Full => false,
    };
    let nulls_meet = join.null_equality() == NullEquality::NullEqualsNull;
    if !can_leave_out || nulls_meet || join.null_aware || join.on().is_empty() {
        return None;
    }
    let (left_schema, right_schema) = (join.left().schema(), join.right().schema());
    let pairs = join.on().iter().map(|(left, right)| {
        let (left, right) = (column(left)?, column(right)?);
        let data_type = left_schema.fields().get(left)?.data_type();
        let is_one = data_type == right_schema.fields().get(right)?.data_type();
        (is_one && KeyFilter::takes(data_type)).then_some((left, right))
    });
    Some(pairs.collect::<Option<Vec<_>>>()?.into_iter().unzip())
}

fn column(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    Some(expr.downcast_ref::<Column>()?.index())
}

/// A built side whose keys are gathered, each row once: where all tasks of the
/// join get all rows, before they are sent.
fn gathered(built: &Arc<dyn ExecutionPlan>, keys: FilterKeys) -> Result<Arc<dyn ExecutionPlan>> {
    let is_on_the_way = (built.is::<CoalescePartitionsExec>() && built.fetch().is_none())
        || built.is::<NetworkBroadcastExec>()
        || built.is::<BroadcastExec>();
    match built.children().as_slice() {
        [below] if is_on_the_way => {
            let below = gathered(below, keys)?;
            replace_children_if_necessary(Arc::clone(built), vec![below])
        }
        _ => Ok(Arc::new(JoinKeysExec::new(Arc::clone(built), keys))),
    }
}

/// What is between a join and a node of its probe side.
#[derive(Clone, Copy)]
struct Way {
    /// Rows that are left out here are not sent, or are not built of and not among the keys of
    /// another filter.
    is_worth_it: bool,
    /// Something is computed of rows, which may be an error.
    is_computed: bool,
}

/// `node` without rows that have no partner, left out as far below as can be.
/// None where that spares nothing: the join looks for their partners in the same task.
fn filtered(
    node: &Arc<dyn ExecutionPlan>,
    keys: &FilterKeys,
    way: Way,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let is_worth_it = way.is_worth_it;
    let below = match below(node, &keys.columns) {
        // A group that lost some of its rows has values that no query asked for: harmless, unless
        // they are computed with.
        Some(_) if way.is_computed && node.is::<AggregateExec>() => None,
        Some((index, columns)) if !(is_worth_it && is_filter_of_scan(node)) => {
            let is_built = index == 0 && node.is::<HashJoinExec>();
            let way = Way {
                is_worth_it: is_worth_it || node.is_network_boundary() || is_built,
                is_computed: way.is_computed || computes(node),
            };
            let children = node.children();
            let Some(child) = children.get(index) else { return Ok(None) };
            let child = filtered(child, &FilterKeys { id: keys.id, columns }, way)?;
            child.map(|child| (index, child))
        }
        _ => None,
    };
    if let Some((index, child)) = below {
        let mut children: Vec<_> = node.children().into_iter().cloned().collect();
        children[index] = child;
        return replace_children_if_necessary(Arc::clone(node), children).map(Some);
    }
    if !is_worth_it || is_head(node) {
        return Ok(None);
    }
    Ok(Some(Arc::new(RuntimeFilterExec::new(Arc::clone(node), keys.clone()))))
}

/// Whether a node computes something of its rows which may be an error.
fn computes(node: &Arc<dyn ExecutionPlan>) -> bool {
    // The filter of a join and the like.
    if node.is::<FilterExec>() || node.is::<HashJoinExec>() {
        return true;
    }
    let schema = |input: &Arc<dyn ExecutionPlan>| input.schema();
    let may_fail = |expr: &Arc<dyn PhysicalExpr>, schema: &Schema| {
        !expr.is::<Column>() && magnitude(expr, schema).is_none()
    };
    if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
        let schema = schema(projection.input());
        return projection.expr().iter().any(|projected| may_fail(&projected.expr, &schema));
    }
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        return computes_groups(aggregate, |expr| may_fail(expr, &aggregate.input_schema()));
    }
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        let schema = schema(sort.input());
        return sort.expr().iter().any(|key| may_fail(&key.expr, &schema));
    }
    if let Some(dealt) = node.downcast_ref::<RepartitionExec>()
        && let Partitioning::Hash(keys, _) = dealt.partitioning()
    {
        let schema = schema(dealt.input());
        return keys.iter().any(|key| may_fail(key, &schema));
    }
    false
}

/// Whether something may fail of what is computed of rows before they are grouped and aggregated: one that
/// puts groups together takes them as they come.
fn computes_groups(aggregate: &AggregateExec, may_fail: impl Fn(&Arc<dyn PhysicalExpr>) -> bool) -> bool {
    match aggregate.mode() {
        AggregateMode::Final | AggregateMode::FinalPartitioned | AggregateMode::PartialReduce => {
            return false;
        }
        AggregateMode::Partial | AggregateMode::Single | AggregateMode::SinglePartitioned => {}
    }
    let functions = aggregate.aggr_expr().iter();
    let mut taken = functions.flat_map(|function| {
        function.expressions().into_iter().chain(function.order_bys().iter().map(|key| Arc::clone(&key.expr)))
    });
    aggregate.group_expr().expr().iter().any(|(group, _)| may_fail(group))
        || aggregate.filter_expr().iter().flatten().any(&may_fail)
        || taken.any(|expr| may_fail(&expr))
}

/// What deals a stage's rows to those that read them, and stays on top of it.
fn is_head(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<RepartitionExec>() || node.is::<BroadcastExec>()
}

/// A row is cheaper refused by the filter over a scan than looked for among keys.
fn is_filter_of_scan(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<FilterExec>().is_some_and(|filter| filter.input().children().is_empty())
}

/// The input of a node, and where these columns are in it, if to leave out rows
/// of that input by these columns is to leave out the same rows of the node.
fn below(node: &Arc<dyn ExecutionPlan>, columns: &[usize]) -> Option<(usize, Vec<usize>)> {
    if node.name() == ISOLATED_UNION || node.fetch().is_some() {
        return None;
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        return below_join(join, columns);
    }
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        let groups = aggregate.group_expr();
        if groups.has_grouping_set() || !groups.null_expr().is_empty() || aggregate.limit_options().is_some()
        {
            return None;
        }
        let columns = columns.iter().map(|&group| column(&groups.expr().get(group)?.0));
        return Some((0, columns.collect::<Option<_>>()?));
    }
    let hands_on = node.is_network_boundary()
        || node.is::<RepartitionExec>()
        || node.is::<BroadcastExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<SortExec>()
        || node.is::<CompactExec>();
    if hands_on && node.children().len() == 1 {
        return Some((0, columns.to_vec()));
    }
    Some((0, passage(node, columns)?))
}

/// The side of a join that has all these columns, if each row of the result is
/// made of one of that side, and rows of that side are never kept for what others
/// of it are.
fn below_join(join: &HashJoinExec, columns: &[usize]) -> Option<(usize, Vec<usize>)> {
    let columns = columns.iter().map(|&column| match &join.projection {
        Some(kept) => kept.get(column).copied(),
        None => Some(column),
    });
    let columns = columns.collect::<Option<Vec<_>>>()?;
    let left_columns = join.left().schema().fields().len();
    let is_left = columns.iter().all(|&column| column < left_columns);
    let is_right = columns.iter().all(|&column| column >= left_columns);
    match join.join_type() {
        _ if join.null_aware => None,
        JoinType::Inner | JoinType::Left if is_left => Some((0, columns)),
        JoinType::Inner | JoinType::Right if is_right => {
            Some((1, columns.into_iter().map(|column| column - left_columns).collect()))
        }
        JoinType::LeftSemi => Some((0, columns)),
        JoinType::RightSemi => Some((1, columns)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
