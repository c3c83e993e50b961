//! How many rows a leaf of a tree of joins gives, and what is known of its columns.
//!
//! Nothing is taken for granted: where a table does not know how many rows it has, or a plan
//! does something whose outcome cannot be told from statistics, nothing is known of the leaf.

use arrow::datatypes::DataType;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ScalarValue, Statistics};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Aggregate, Expr, JoinType, LogicalPlan, TableScan};

use super::cost::Graph;
use super::selectivity::share_of;
use super::tree::Tree;
use crate::query::shard_table::as_shard_table;

/// What is known of a column.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Its distinct values: counted, or as many as there are numbers from its least to its
    /// greatest where it has as many rows at least.
    pub(super) distinct: Option<f64>,
    /// As many distinct values as it can have; none where nothing but its rows bound it.
    pub(super) distinct_max: Option<f64>,
    /// Its least and its greatest value, of numbers, dates and times.
    pub(super) range: Option<(f64, f64)>,
    /// The share of its rows that are NULL.
    pub(super) nulls: f64,
}

/// How the rows of a leaf are dealt to shards.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dealt {
    /// The columns, by their place in the leaf's schema.
    pub(super) by: Vec<usize>,
    pub(super) shards: u32,
}

/// What is known of a leaf.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) rows: f64,
    /// Rows before any filter: what the distinct values of its columns go with.
    pub(super) base_rows: f64,
    /// Of each column of its schema.
    pub(super) columns: Vec<Known>,
    pub(super) dealt: Option<Dealt>,
}

impl Facts {
    /// What is known of a plan, where a filter of which nothing is known leaves this share; none
    /// where its rows are not known.
    pub(super) fn of(plan: &LogicalPlan, unknown: f64) -> Option<Self> {
        match plan {
            LogicalPlan::TableScan(scan) => of_scan(scan, &[], unknown),
            LogicalPlan::SubqueryAlias(node) => Self::of(&node.input, unknown),
            LogicalPlan::Filter(node) => {
                let filters: Vec<&Expr> = split_conjunction(&node.predicate);
                // A scan is asked what stands above it, too, if it cannot answer exactly.
                if let LogicalPlan::TableScan(scan) = node.input.as_ref() {
                    return of_scan(scan, &filters, unknown);
                }
                let input = Self::of(&node.input, unknown)?;
                let known = |column: &Column| input.known(&node.input, column);
                let share = share_of(&filters, &known, input.base_rows, unknown);
                Some(input.with_share(share))
            }
            LogicalPlan::Projection(node) => {
                let input = Self::of(&node.input, unknown)?;
                let places = node.expr.iter().map(|expr| place_of(expr, &node.input));
                Some(input.projected(&places.collect::<Vec<_>>()))
            }
            LogicalPlan::Aggregate(node) => of_groups(node, unknown),
            LogicalPlan::Distinct(_) => None,
            LogicalPlan::Sort(node) if node.fetch.is_none() => Self::of(&node.input, unknown),
            LogicalPlan::Join(join) => match join.join_type {
                JoinType::Inner => of_joins(plan, unknown),
                JoinType::LeftSemi => of_semi(&join.left, &join.right, &join.on, unknown),
                // Not more than all.
                JoinType::LeftAnti => Self::of(&join.left, unknown),
                JoinType::RightSemi | JoinType::RightAnti => Self::of(&join.right, unknown),
                _ => None,
            },
            _ => None,
        }
    }

    /// What is known of a column of `plan`, which these facts are of.
    pub(super) fn known(&self, plan: &LogicalPlan, column: &Column) -> Option<&Known> {
        self.columns.get(plan.schema().maybe_index_of_column(column)?)
    }

    fn with_share(self, share: f64) -> Self {
        Self { rows: (self.rows * share).max(1.0), ..self }
    }

    /// The same with these columns: each has the place of one, or is a new one.
    fn projected(self, places: &[Option<usize>]) -> Self {
        let column = |place: &Option<usize>| place.and_then(|place| self.columns.get(place)).cloned();
        let columns = places.iter().map(|place| column(place).unwrap_or_default()).collect();
        let dealt = self.dealt.as_ref().and_then(|dealt| {
            let by = dealt.by.iter().map(|key| places.iter().position(|place| *place == Some(*key)));
            Some(Dealt { by: by.collect::<Option<_>>()?, shards: dealt.shards })
        });
        Self { columns, dealt, ..self }
    }
}

/// The place of a column in the schema of a plan; none of what is computed.
fn place_of(expr: &Expr, plan: &LogicalPlan) -> Option<usize> {
    match expr {
        Expr::Column(column) => plan.schema().maybe_index_of_column(column),
        Expr::Alias(alias) => place_of(&alias.expr, plan),
        _ => None,
    }
}

fn of_scan(scan: &TableScan, above: &[&Expr], unknown: f64) -> Option<Facts> {
    let provider = source_as_provider(&scan.source).ok()?;
    let schema = provider.schema();
    let all = match as_shard_table(&provider) {
        // The shards of a table with many columns and segments are asked for few of them.
        Some(table) => {
            let asked = scan.filters.iter().flat_map(Expr::column_refs).map(|column| column.name.as_str());
            let read = scan.projected_schema.fields().iter().map(|field| field.name().as_str());
            let mut columns: Vec<usize> =
                asked.chain(read).filter_map(|name| schema.index_of(name).ok()).collect();
            columns.sort_unstable();
            columns.dedup();
            table.known(&columns)?
        }
        None => provider.statistics()?,
    };
    let rows = *all.num_rows.get_value()? as f64;
    let columns: Vec<Known> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| of_column(&all, at, field.data_type(), rows))
        .collect();
    let mut filters: Vec<&Expr> = above.to_vec();
    for filter in scan.filters.iter().flat_map(split_conjunction) {
        if !filters.contains(&filter) {
            filters.push(filter);
        }
    }
    let known = |column: &Column| columns.get(schema.index_of(&column.name).ok()?);
    let share = share_of(&filters, &known, rows, unknown);
    let dealt = as_shard_table(&provider).and_then(|table| {
        let layout = &table.table().layout;
        let by =
            layout.shard_key.iter().map(|name| schema.index_of(name).ok()).collect::<Option<Vec<_>>>()?;
        let is_usable = !by.is_empty() && layout.hash.is_of_this_engine();
        is_usable.then_some(Dealt { by, shards: layout.shards })
    });
    let places: Vec<Option<usize>> = match &scan.projection {
        Some(projection) => projection.iter().copied().map(Some).collect(),
        None => (0..columns.len()).map(Some).collect(),
    };
    let facts = Facts { rows, base_rows: rows, columns, dealt }.with_share(share).projected(&places);
    let rows = scan.fetch.map_or(facts.rows, |fetch| facts.rows.min(fetch as f64));
    Some(Facts { rows, ..facts })
}

/// What the statistics of a table say of a column.
fn of_column(all: &Statistics, at: usize, data_type: &DataType, rows: f64) -> Known {
    let Some(column) = all.column_statistics.get(at) else { return Known::default() };
    let bound = |value: &Precision<ScalarValue>| value.get_value().and_then(number_of);
    let range = bound(&column.min_value).zip(bound(&column.max_value)).filter(|(min, max)| min <= max);
    let values = range.zip(step_of(data_type)).map(|((min, max), step)| ((max - min) / step).round() + 1.0);
    let counted = column.distinct_count.get_value().map(|count| (*count as f64).min(rows));
    Known {
        distinct: counted.or(values.filter(|values| *values <= rows)).map(|count| count.max(1.0)),
        distinct_max: values.map(|values| values.min(rows).max(1.0)),
        range,
        nulls: column.null_count.get_value().map_or(0.0, |nulls| *nulls as f64 / rows.max(1.0)),
    }
}

/// The number that a bound is; none for text and others.
pub(super) fn number_of(value: &ScalarValue) -> Option<f64> {
    if let ScalarValue::Decimal128(value, _, scale) = value {
        return Some((*value)? as f64 / 10_f64.powi(i32::from(*scale)));
    }
    let is_number = value.data_type().is_numeric() || value.data_type().is_temporal();
    let as_wide = match value.data_type() {
        DataType::Date32 => value.cast_to(&DataType::Int32).ok()?,
        _ if is_number => value.clone(),
        _ => return None,
    };
    let number = match as_wide.cast_to(&DataType::Float64) {
        Ok(number) => number,
        Err(_) => as_wide.cast_to(&DataType::Int64).ok()?.cast_to(&DataType::Float64).ok()?,
    };
    match number {
        ScalarValue::Float64(number) => number.filter(|number| number.is_finite()),
        _ => None,
    }
}

/// How far two values of a type are apart at least; none where that says nothing.
fn step_of(data_type: &DataType) -> Option<f64> {
    match data_type {
        DataType::Date32 => Some(1.0),
        DataType::Decimal128(_, scale) => Some(10_f64.powi(-i32::from(*scale))),
        integer if integer.is_integer() => Some(1.0),
        _ => None,
    }
}

/// Of groups there are as many as their keys have values together, and not more than rows.
fn of_groups(node: &Aggregate, unknown: f64) -> Option<Facts> {
    let input = Facts::of(&node.input, unknown)?;
    // Several groupings give each row several times.
    if node.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
        return None;
    }
    let places: Vec<Option<usize>> = node.group_expr.iter().map(|expr| place_of(expr, &node.input)).collect();
    let values =
        places.iter().try_fold(1.0, |all: f64, place| Some(all * input.columns.get((*place)?)?.distinct?));
    let rows = values.map_or(input.rows, |values| values.min(input.rows)).max(1.0);
    let width = node.schema.fields().len();
    let places: Vec<Option<usize>> = places.into_iter().chain(std::iter::repeat(None)).take(width).collect();
    let mut facts = input.projected(&places);
    // Of these they are all there are, if nothing was left out before.
    facts.base_rows = values.map_or(facts.base_rows, |values| values.min(facts.base_rows));
    Some(Facts { rows, ..facts })
}

/// Rows with a partner: the share of a key's values that the partners can have, if each of their rows has another
/// one. All rows where that is not known.
fn of_semi(kept: &LogicalPlan, partners: &LogicalPlan, on: &[(Expr, Expr)], unknown: f64) -> Option<Facts> {
    let facts = Facts::of(kept, unknown)?;
    let Some(partners) = Facts::of(partners, unknown) else { return Some(facts) };
    let shares = on.iter().filter_map(|(key, _)| {
        let column = facts.columns.get(place_of(key, kept)?)?;
        Some(partners.rows / column.distinct?)
    });
    let share = shares.fold(1.0, f64::min);
    Some(facts.with_share(share))
}

/// Of joins that are a part of a leaf.
fn of_joins(plan: &LogicalPlan, unknown: f64) -> Option<Facts> {
    let tree = Tree::of(plan)?;
    let graph = Graph::of(&tree, unknown)?;
    let rows = graph.rows_of_all()?;
    let columns = plan.schema().columns().into_iter().map(|column| {
        let leaf = tree.leaf_of(&column)?;
        graph.facts[leaf].known(&tree.leaves[leaf], &column).cloned()
    });
    let columns = columns.map(Option::unwrap_or_default).collect();
    Some(Facts { rows, base_rows: rows, columns, dealt: None })
}
