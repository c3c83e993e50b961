//! Which shards and segments a scan can leave out, from its filters and what
//! the catalog knows. Leaving out too little costs time; too much would be a
//! wrong answer, so whatever is not understood is kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::pruning::PrunableStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, Result, ScalarValue, Statistics};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use shoal_data::{Segment, Table};

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

/// The segments in which a row can pass all `filters`.
///
/// # Errors
/// None in practice: a filter that cannot be used is not used.
pub(crate) fn segments_for(
    segments: Vec<Arc<Segment>>,
    schema: &SchemaRef,
    filters: &[Expr],
    session: &dyn Session,
) -> Result<Vec<Arc<Segment>>> {
    let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(segments) };
    if segments.is_empty() {
        return Ok(segments);
    }
    let df_schema = DFSchema::try_from(Arc::clone(schema))?;
    if filter.get_type(&df_schema).is_err() {
        return Ok(segments);
    }
    let Ok(physical) = session.create_physical_expr(filter, &df_schema) else { return Ok(segments) };
    let Ok(predicate) =
        PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(physical)
    else {
        return Ok(segments);
    };
    if predicate.always_true() {
        return Ok(segments);
    }
    let statistics = segments.iter().map(|segment| Arc::new(segment_statistics(segment, schema))).collect();
    let containers = PrunableStatistics::new(statistics, Arc::clone(schema));
    let Ok(keep) = predicate.prune(&containers) else { return Ok(segments) };
    Ok(segments.into_iter().zip(keep).filter_map(|(segment, keep)| keep.then_some(segment)).collect())
}

/// A segment's statistics in the form that DataFusion plans with.
pub(crate) fn segment_statistics(segment: &Segment, schema: &SchemaRef) -> Statistics {
    let rows = usize::try_from(segment.rows).unwrap_or(usize::MAX);
    let column_statistics = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let Some(known) = segment.columns.get(index) else { return ColumnStatistics::new_unknown() };
            let bound = |value: &Option<shoal_data::StatValue>| {
                value
                    .as_ref()
                    .and_then(|value| value.to_scalar(field.data_type()))
                    .map_or(Precision::Absent, Precision::Exact)
            };
            ColumnStatistics {
                null_count: Precision::Exact(usize::try_from(known.nulls).unwrap_or(usize::MAX)),
                min_value: bound(&known.min),
                max_value: bound(&known.max),
                ..ColumnStatistics::new_unknown()
            }
        })
        .collect();
    Statistics {
        num_rows: Precision::Exact(rows),
        total_byte_size: Precision::Inexact(usize::try_from(segment.bytes).unwrap_or(usize::MAX)),
        column_statistics,
    }
}
