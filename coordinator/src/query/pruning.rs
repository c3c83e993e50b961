//! Which shards and segments a scan can leave out, from its filters and what
//! the catalog knows. Leaving out too little costs time; too much would be a
//! wrong answer, so whatever is not understood is kept.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, DFSchema, Result, ScalarValue, Statistics};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use shoal_data::{PackedStatistics, Segment, StatValue, Table};

use crate::catalog::{ColumnBounds, TableFacts};

/// Segments whose statistics are in memory at once while they are merged.
const MERGED_AT_ONCE: usize = 1_024;

/// The shards that can hold rows for which all `filters` are true; none where
/// every shard can.
pub(crate) fn shards_for(table: &Table, filters: &[Expr]) -> Option<BTreeSet<u32>> {
    let key = &table.layout.shard_key;
    if key.is_empty() {
        return None;
    }
    let mut values: Vec<Option<Vec<ScalarValue>>> = vec![None; key.len()];
    for filter in filters.iter().flat_map(split_conjunction) {
        let Some((column, literals)) = equals_one_of(filter) else { continue };
        let Some(index) = key.iter().position(|name| *name == column) else { continue };
        if values[index].as_ref().is_none_or(|known| literals.len() < known.len()) {
            values[index] = Some(literals);
        }
    }
    let values: Option<Vec<Vec<ScalarValue>>> = values.into_iter().collect();
    let values = values?;
    let types: Option<Vec<DataType>> = key
        .iter()
        .map(|name| table.columns.field_with_name(name).ok().map(|field| field.data_type().clone()))
        .collect();
    let types = types?;
    // Every combination of the key's values; a huge IN list is not worth it.
    const COMBINATIONS_MAX: usize = 4096;
    if values.iter().map(Vec::len).product::<usize>() > COMBINATIONS_MAX {
        return None;
    }
    let mut keys: Vec<Vec<ScalarValue>> = vec![Vec::new()];
    for column in values {
        keys = keys
            .into_iter()
            .flat_map(|key| {
                column.iter().map(move |value| key.iter().cloned().chain([value.clone()]).collect::<Vec<_>>())
            })
            .collect();
    }
    let mut shards = BTreeSet::new();
    for key in keys.into_iter().filter(|key| !key.iter().any(ScalarValue::is_null)) {
        // A value that is not exactly one of the column's says nothing.
        shards.insert(table.layout.hash.shard_of_scalars(&key, &types, table.layout.shards).ok()??);
    }
    Some(shards)
}

/// `column = literal`, `column IN (literals)` or an OR of such on one column.
fn equals_one_of(filter: &Expr) -> Option<(String, Vec<ScalarValue>)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            match (left.as_ref(), right.as_ref()) {
                (Expr::Column(column), Expr::Literal(value, _))
                | (Expr::Literal(value, _), Expr::Column(column)) => {
                    Some((column.name.clone(), vec![value.clone()]))
                }
                _ => None,
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (column, mut values) = equals_one_of(left)?;
            let (other, more) = equals_one_of(right)?;
            (column == other).then(|| {
                values.extend(more);
                (column, values)
            })
        }
        Expr::InList(list) if !list.negated => {
            let Expr::Column(column) = list.expr.as_ref() else { return None };
            let values = list.list.iter().map(|value| match value {
                Expr::Literal(value, _) => Some(value.clone()),
                _ => None,
            });
            Some((column.name.clone(), values.collect::<Option<_>>()?))
        }
        _ => None,
    }
}

/// Of these segments, those in which a row can pass all `filters`.
///
/// # Errors
/// None in practice: a filter that cannot be used is not used.
pub(crate) fn segments_for(
    segments: Vec<Arc<Segment>>,
    schema: &SchemaRef,
    filters: &[Expr],
    session: &dyn Session,
) -> Result<Vec<Arc<Segment>>> {
    let kept = kept(&KnownSegments { segments: &segments, schema }, schema, filters, session)?;
    let Some(kept) = kept else { return Ok(segments) };
    Ok(segments.into_iter().zip(kept).filter_map(|(segment, kept)| kept.then_some(segment)).collect())
}

/// The same of all segments of a table, whose bounds are kept for the next query.
///
/// # Errors
/// The same.
pub(crate) fn segments_of(
    facts: &TableFacts,
    schema: &SchemaRef,
    filters: &[Expr],
    session: &dyn Session,
) -> Result<Vec<Arc<Segment>>> {
    let segments = &facts.table().segments;
    let Some(kept) = kept(&KnownTable { facts, schema }, schema, filters, session)? else {
        return Ok(segments.clone());
    };
    let kept = segments.iter().zip(kept).filter(|(_, kept)| *kept);
    Ok(kept.map(|(segment, _)| Arc::clone(segment)).collect())
}

/// Which of some segments are kept; none where all are.
fn kept(
    known: &impl PruningStatistics,
    schema: &SchemaRef,
    filters: &[Expr],
    session: &dyn Session,
) -> Result<Option<Vec<bool>>> {
    let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(None) };
    if known.num_containers() == 0 {
        return Ok(None);
    }
    let df_schema = DFSchema::try_from(Arc::clone(schema))?;
    if filter.get_type(&df_schema).is_err() {
        return Ok(None);
    }
    let Ok(physical) = session.create_physical_expr(filter, &df_schema) else { return Ok(None) };
    let Ok(predicate) =
        PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(physical)
    else {
        return Ok(None);
    };
    if predicate.always_true() {
        return Ok(None);
    }
    Ok(predicate.prune(known).ok())
}

/// What is known of all segments of a table.
struct KnownTable<'a> {
    facts: &'a TableFacts,
    schema: &'a SchemaRef,
}

impl KnownTable<'_> {
    fn bounds(&self, column: &Column) -> Option<Arc<ColumnBounds>> {
        let index = self.schema.index_of(column.name()).ok()?;
        Some(self.facts.bounds(index, |segments| {
            let known = KnownSegments { segments, schema: self.schema };
            ColumnBounds {
                min: known.min_values(column),
                max: known.max_values(column),
                nulls: known.null_counts(column),
            }
        }))
    }
}

impl PruningStatistics for KnownTable<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column)?.min.clone()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column)?.max.clone()
    }

    fn num_containers(&self) -> usize {
        self.facts.table().segments.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column)?.nulls.clone()
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::clone(self.facts.rows()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// What is known of segments, looked up for the columns that a filter asks about
/// and no others.
struct KnownSegments<'a> {
    segments: &'a [Arc<Segment>],
    schema: &'a SchemaRef,
}

impl KnownSegments<'_> {
    /// A bound of one column in each segment; none where no segment has one.
    fn bounds(
        &self,
        column: &Column,
        bound: impl Fn(&PackedStatistics, usize) -> Option<StatValue>,
    ) -> Option<ArrayRef> {
        let index = self.schema.index_of(column.name()).ok()?;
        let data_type = self.schema.field(index).data_type();
        let unknown = ScalarValue::try_from(data_type).ok()?;
        let mut is_known = false;
        let values = self.segments.iter().map(|segment| {
            let value = bound(&segment.columns, index).and_then(|value| value.to_scalar(data_type));
            is_known |= value.is_some();
            value.unwrap_or_else(|| unknown.clone())
        });
        let bounds = ScalarValue::iter_to_array(values).ok()?;
        is_known.then_some(bounds)
    }
}

impl PruningStatistics for KnownSegments<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, PackedStatistics::min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, PackedStatistics::max)
    }

    fn num_containers(&self) -> usize {
        self.segments.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let index = self.schema.index_of(column.name()).ok()?;
        let counts: UInt64Array = self.segments.iter().map(|segment| segment.columns.nulls(index)).collect();
        (counts.null_count() < counts.len()).then(|| Arc::new(counts) as ArrayRef)
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let counts = UInt64Array::from_iter_values(self.segments.iter().map(|segment| segment.rows));
        Some(Arc::new(counts))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// A segment's statistics in the form that DataFusion plans with: of these columns,
/// in this order.
pub(crate) fn segment_statistics(segment: &Segment, schema: &SchemaRef, columns: &[usize]) -> Statistics {
    let rows = usize::try_from(segment.rows).unwrap_or(usize::MAX);
    let column_statistics = columns.iter().map(|&index| {
        let Some(known) = segment.columns.get(index) else { return ColumnStatistics::new_unknown() };
        let data_type = schema.field(index).data_type();
        let bound = |value: Option<StatValue>| {
            value.and_then(|value| value.to_scalar(data_type)).map_or(Precision::Absent, Precision::Exact)
        };
        ColumnStatistics {
            null_count: Precision::Exact(usize::try_from(known.nulls).unwrap_or(usize::MAX)),
            min_value: bound(known.min),
            max_value: bound(known.max),
            ..ColumnStatistics::new_unknown()
        }
    });
    Statistics {
        num_rows: Precision::Exact(rows),
        total_byte_size: Precision::Inexact(usize::try_from(segment.bytes).unwrap_or(usize::MAX)),
        column_statistics: column_statistics.collect(),
    }
}

/// The same for all columns of the schema; nothing is known of others than these.
pub(crate) fn widened(statistics: Statistics, schema: &SchemaRef, columns: &[usize]) -> Statistics {
    let mut all = Statistics::new_unknown(schema);
    for (index, known) in columns.iter().zip(statistics.column_statistics) {
        if let Some(column) = all.column_statistics.get_mut(*index) {
            *column = known;
        }
    }
    Statistics { column_statistics: all.column_statistics, ..statistics }
}

/// What is known of all segments together, of these columns. At least one segment.
///
/// # Errors
/// None in practice; those of merging.
pub(crate) fn merged_statistics(
    segments: &[Arc<Segment>],
    schema: &SchemaRef,
    columns: &[usize],
) -> Result<Statistics> {
    let merged = segments.chunks(MERGED_AT_ONCE).map(|segments| {
        let each: Vec<Statistics> =
            segments.iter().map(|segment| segment_statistics(segment, schema, columns)).collect();
        Statistics::try_merge_iter(&each, schema)
    });
    let merged: Vec<Statistics> = merged.collect::<Result<_>>()?;
    Statistics::try_merge_iter(&merged, schema)
}

/// With about how many distinct values the table has in these columns: no more than there are rows
/// in the segments that are left. An estimate, and never told as more than that.
pub(crate) fn with_distinct(mut statistics: Statistics, table: &Table, columns: &[usize]) -> Statistics {
    let Some(sketches) = &table.sketches else { return statistics };
    let rows = statistics.num_rows.get_value().copied().unwrap_or(usize::MAX);
    for (column, known) in columns.iter().zip(&mut statistics.column_statistics) {
        let nulls = known.null_count.get_value().copied().unwrap_or(0);
        let distinct = sketches.distinct(*column).and_then(|distinct| usize::try_from(distinct).ok());
        let distinct = distinct.map(|distinct| distinct.min(rows.saturating_sub(nulls)));
        // None at all is nothing that joins are reckoned with.
        known.distinct_count =
            distinct.filter(|distinct| *distinct > 0).map_or(Precision::Absent, Precision::Inexact);
    }
    statistics
}

/// What is known of all segments of a table, of which there is one at least, and of the table
/// itself; what is of the segments is kept for the next query.
///
/// # Errors
/// The same.
pub(crate) fn table_statistics(
    facts: &TableFacts,
    schema: &SchemaRef,
    columns: &[usize],
) -> Result<Statistics> {
    let segments = &facts.table().segments;
    let known = columns.iter().map(|&column| {
        facts.merged(column, |segments| {
            let merged = merged_statistics(segments, schema, &[column])?;
            Ok(merged.column_statistics.into_iter().next().unwrap_or_else(ColumnStatistics::new_unknown))
        })
    });
    let column_statistics = known.collect::<Result<_>>()?;
    let sum = |of: fn(&Segment) -> u64| {
        let sum: u64 = segments.iter().map(|segment| of(segment)).sum();
        usize::try_from(sum).unwrap_or(usize::MAX)
    };
    let all = Statistics {
        num_rows: Precision::Exact(sum(|segment| segment.rows)),
        total_byte_size: Precision::Inexact(sum(|segment| segment.bytes)),
        column_statistics,
    };
    Ok(with_distinct(all, facts.table(), columns))
}

#[cfg(test)]
mod tests;
