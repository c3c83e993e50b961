//! How much a query is, as far as its optimised plan and the catalog tell: whether it
//! is done with soon, and how much memory it may take. An estimate: to be wrong costs
//! others time, and never an answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::catalog::Session;
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::expr_rewriter::unnormalize_cols;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, TableScan};
use shoal_data::Segment;

use super::admission::Class;
use super::pruning::shards_for;
use super::shard_table::{ShardTable, as_shard_table};

/// What a short query reads, compressed, at most: some 20 ms of one thread.
const SHORT_BYTES_MAX: u64 = 8 << 20;
/// The same in rows: those of a column that is nearly constant take no bytes.
const SHORT_ROWS_MAX: u64 = 1_000_000;
/// Whoever asks for so many first rows, in no order, reads few more.
const FIRST_ROWS_MAX: usize = 10_000;
/// Of a table of more segments it is not looked at which of them are read.
const SEGMENTS_MAX: usize = 10_000;
/// What a long query may take, whatever it reads.
const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Bytes that operators may hold for each byte that is read, compressed.
const MEMORY_FOR_BYTE: u64 = 8;

/// How much a query is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Whether it is done with soon.
    pub class: Class,
    /// Bytes that it may take on all nodes together, without regard to its limit; 0 for a
    /// short one.
    pub memory_bytes: u64,
}

/// Weighs an optimised plan. What is not known to be short is long.
pub fn weigh(plan: &LogicalPlan, session: &dyn Session) -> Weight {
    match is_short(plan, session) {
        Ok(true) => Weight { class: Class::Short, memory_bytes: 0 },
        Ok(false) | Err(_) => Weight { class: Class::Long, memory_bytes: memory_bytes(plan, session) },
    }
}

/// Whether a plan reads little, and does with each row what takes little time: joins,
/// windows, subqueries and recursion can take any time over the smallest tables.
fn is_short(plan: &LogicalPlan, session: &dyn Session) -> Result<bool> {
    let Some(scans) = plain_scans(plan)? else { return Ok(false) };
    let mut all = Size::default();
    for scan in scans {
        let provider = source_as_provider(&scan.source)?;
        let Some(table) = as_shard_table(&provider) else { return Ok(false) };
        let Some(size) = size_of(table, scan, session)? else { return Ok(false) };
        all = all.and(size);
    }
    Ok(all.is_small() || counts_all_rows(plan))
}

/// Whether a plan is `SELECT count(*)` of a table: the catalog knows that number.
fn counts_all_rows(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(node) if !node.expr.iter().any(Expr::is_volatile) => {
            counts_all_rows(&node.input)
        }
        LogicalPlan::SubqueryAlias(node) => counts_all_rows(&node.input),
        LogicalPlan::Aggregate(node) => {
            let is_scan = |scan: &TableScan| scan.filters.is_empty() && scan.fetch.is_none();
            node.group_expr.is_empty()
                && node.aggr_expr.iter().all(is_count_of_rows)
                && matches!(node.input.as_ref(), LogicalPlan::TableScan(scan) if is_scan(scan))
        }
        _ => false,
    }
}

fn is_count_of_rows(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_count_of_rows(&alias.expr),
        Expr::AggregateFunction(function) => {
            function.func.name() == "count"
                && !function.params.distinct
                && function.params.filter.is_none()
                && function.params.args.iter().all(|arg| matches!(arg, Expr::Literal(..)))
        }
        _ => false,
    }
}

/// The scans of a plan that only filters, computes, groups and sorts rows; none of
/// another plan.
fn plain_scans(plan: &LogicalPlan) -> Result<Option<Vec<&TableScan>>> {
    let mut scans = Vec::new();
    let mut is_plain = true;
    plan.apply(|node| {
        is_plain &= match node {
            LogicalPlan::TableScan(scan) => {
                scans.push(scan);
                true
            }
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::EmptyRelation(_) => true,
            _ => false,
        };
        node.apply_expressions(|expr| {
            is_plain &= !expr.exists(|part| Ok(is_subquery(part)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_plain.then_some(scans))
}

fn is_subquery(expr: &Expr) -> bool {
    matches!(expr, Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_))
}

/// What is read of tables.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    bytes: u64,
    rows: u64,
}

impl Size {
    fn of<'a>(segments: impl Iterator<Item = &'a Arc<Segment>>) -> Self {
        segments
            .fold(Self::default(), |all, segment| all.and(Self { bytes: segment.bytes, rows: segment.rows }))
    }

    fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), rows: self.rows.saturating_add(other.rows) }
    }

    fn is_small(self) -> bool {
        self.bytes <= SHORT_BYTES_MAX && self.rows <= SHORT_ROWS_MAX
    }
}

/// What a scan reads, by the share of the columns that it keeps; none where that is
/// much, or takes long to tell.
fn size_of(table: &ShardTable, scan: &TableScan, session: &dyn Session) -> Result<Option<Size>> {
    if scan.fetch.is_some_and(|rows| rows <= FIRST_ROWS_MAX) {
        return Ok(Some(Size::default()));
    }
    let of_columns = |size: Size| Size { bytes: share(size.bytes, table, scan), ..size };
    let facts = table.facts();
    // As a scan is given them: no column says of which table it is.
    let filters = unnormalize_cols(scan.filters.iter().cloned());
    let shards = shards_for(table.table(), &filters);
    if is_one_key(table, shards.as_ref()) {
        return Ok(Some(Size::default()));
    }
    let segments: usize = match &shards {
        Some(shards) => shards.iter().map(|shard| facts.places_of_shard(*shard).len()).sum(),
        None => table.table().segments.len(),
    };
    if segments > SEGMENTS_MAX {
        return Ok(None);
    }
    let of_shards = of_columns(match &shards {
        Some(shards) => Size::of(shards.iter().flat_map(|shard| facts.of_shard(*shard))),
        None => Size::of(table.table().segments.iter()),
    });
    if of_shards.is_small() || filters.is_empty() {
        return Ok(Some(of_shards));
    }
    Ok(Some(of_columns(Size::of(table.segments(&filters, session)?.iter()))))
}

/// Whether what is read of these shards is the rows of one key, which lie together, wherever in
/// a large segment.
fn is_one_key(table: &ShardTable, shards: Option<&BTreeSet<u32>>) -> bool {
    let layout = &table.table().layout;
    let is_sorted = layout.sort_key.first().is_some_and(|first| layout.shard_key.contains(first));
    // Of one shard alone all keys are.
    is_sorted && layout.shards > 1 && shards.is_some_and(|shards| shards.len() <= 1)
}

/// Whether all that a plan reads is the rows of one key of one table.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(super) fn reads_one_key(plan: &LogicalPlan) -> Result<bool> {
    let Some(scans) = plain_scans(plan)? else { return Ok(false) };
    let [scan] = scans.as_slice() else { return Ok(false) };
    let provider = source_as_provider(&scan.source)?;
    let Some(table) = as_shard_table(&provider) else { return Ok(false) };
    let filters = unnormalize_cols(scan.filters.iter().cloned());
    // Several keys may be in one shard.
    let is_given = |column: &String| filters.iter().any(|filter| gives_value(filter, column));
    let are_given = table.table().layout.shard_key.iter().all(is_given);
    Ok(are_given && is_one_key(table, shards_for(table.table(), &filters).as_ref()))
}

/// Whether a filter is that a column is a value.
fn gives_value(filter: &Expr, name: &str) -> bool {
    split_conjunction(filter).into_iter().any(|part| match part {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let sides = (left.as_ref(), right.as_ref());
            matches!(sides, (Expr::Column(column), Expr::Literal(..)) | (Expr::Literal(..), Expr::Column(column))
                if column.name == name)
        }
        _ => false,
    })
}

/// Of so many bytes of a table, those of the columns that a scan keeps.
pub(super) fn share(bytes: u64, table: &ShardTable, scan: &TableScan) -> u64 {
    let all = table.table().columns.fields().len().max(1) as u64;
    let kept = scan.projection.as_ref().map_or(all, |projection| projection.len() as u64);
    bytes.saturating_mul(kept.min(all)) / all
}

/// What a plan may take on all nodes together, by what it reads of its tables. Nothing is
/// known of others: it may take whatever it wants.
fn memory_bytes(plan: &LogicalPlan, session: &dyn Session) -> u64 {
    let mut bytes = Some(0_u64);
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            let read = match as_shard_table(&provider) {
                Some(table) => Some(match size_of(table, scan, session)? {
                    Some(size) => size.bytes,
                    None => share(table.facts().shard_bytes().iter().sum(), table, scan),
                }),
                None => None,
            };
            bytes = bytes.zip(read).map(|(all, more)| all.saturating_add(more));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    match bytes.filter(|_| walked.is_ok()) {
        Some(bytes) => bytes.saturating_mul(MEMORY_FOR_BYTE).saturating_add(MEMORY_BYTES_MIN),
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests;
