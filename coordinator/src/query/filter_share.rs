//! How many rows a filter leaves, by what is known of its columns: DataFusion takes a fifth for all
//! that it has no ranges for, one value of a text of which there are a thousand as well as a `LIKE`,
//! and chooses by it which side of a join is hashed, and so which rows tell others what to leave out.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, Statistics};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{
    BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
};
use datafusion::physical_expr::intervals::utils::check_support;
use datafusion::physical_expr::{AnalysisContext, PhysicalExpr, analyze, conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};

use super::planner_rules::{Rule, before};

/// The rule of DataFusion that chooses sides.
const BEFORE: &str = "join_selection";

/// Tells each filter of a table's rows which share of them it leaves, in whole percent and one at least:
/// columns may depend on each other.
#[derive(Debug, Default)]
pub(crate) struct FilterShare;

impl FilterShare {
    /// The rules with this one in its place.
    pub(crate) fn among(rules: Vec<Rule>) -> Vec<Rule> {
        before(rules, BEFORE, &(Arc::new(Self) as Rule))
    }
}

impl PhysicalOptimizerRule for FilterShare {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let told = plan.transform_up(|node| {
            let Some(filter) = node.downcast_ref::<FilterExec>() else { return Ok(Transformed::no(node)) };
            match percent_of(filter)? {
                Some(percent) => {
                    let told = filter.clone().with_default_selectivity(percent)?;
                    Ok(Transformed::yes(Arc::new(told) as Arc<dyn ExecutionPlan>))
                }
                None => Ok(Transformed::no(node)),
            }
        })?;
        Ok(told.data)
    }

    fn name(&self) -> &str {
        "filter_share"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The share that a filter leaves; none where DataFusion finds it by itself, or where not the rows of
/// a table are filtered, of whose columns less is known.
fn percent_of(filter: &FilterExec) -> Result<Option<u8>> {
    let input = filter.input();
    let schema = input.schema();
    if !input.children().is_empty() || check_support(filter.predicate(), &schema) {
        return Ok(None);
    }
    let statistics = StatisticsContext::new().compute(input.as_ref(), &StatisticsArgs::new())?;
    let unknown = f64::from(filter.default_selectivity()) / 100.0;
    let share = Known { schema, statistics, unknown }.share_of(filter.predicate());
    // From 1 to 100, whatever the share is.
    Ok(Some((share * 100.0).round().clamp(1.0, 100.0) as u8))
}

/// What is known of the rows that are filtered.
struct Known {
    schema: SchemaRef,
    statistics: Arc<Statistics>,
    /// The share for all else.
    unknown: f64,
}

impl Known {
    /// The share of rows for which a condition is true, as if its parts had nothing to do with each other; those
    /// of which nothing is known leave together what one of them leaves.
    fn share_of(&self, condition: &Arc<dyn PhysicalExpr>) -> f64 {
        let (ranges, others): (Vec<_>, Vec<_>) =
            split_conjunction(condition).into_iter().partition(|part| check_support(part, &self.schema));
        let mut shares: Vec<Option<f64>> = others.into_iter().map(|part| self.of_part(part)).collect();
        if !ranges.is_empty() {
            shares.push(self.of_ranges(ranges));
        }
        let known: f64 = shares.iter().flatten().product();
        if shares.contains(&None) { known * self.unknown } else { known }
    }

    /// The share that is within ranges of numbers, dates and times, by DataFusion.
    fn of_ranges(&self, ranges: Vec<&Arc<dyn PhysicalExpr>>) -> Option<f64> {
        let within = conjunction(ranges.into_iter().map(Arc::clone));
        AnalysisContext::try_from_statistics(&self.schema, &self.statistics.column_statistics)
            .and_then(|context| analyze(&within, context, &self.schema))
            .ok()?
            .selectivity
    }

    /// The share for which a part of a conjunction is true; none where nothing is known of it.
    fn of_part(&self, part: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        if let Some(part) = part.downcast_ref::<BinaryExpr>() {
            return match part.op() {
                Operator::Or => {
                    let (one, other) = (self.share_of(part.left()), self.share_of(part.right()));
                    Some(one + other - one * other)
                }
                Operator::Eq => self.of_values(part.left(), part.right()),
                Operator::NotEq => Some(1.0 - self.of_values(part.left(), part.right())?),
                _ => None,
            };
        }
        if let Some(part) = part.downcast_ref::<InListExpr>() {
            let share = (self.one_of(part.expr())? * part.list().len() as f64).min(1.0);
            return Some(if part.negated() { 1.0 - share } else { share });
        }
        if let Some(part) = part.downcast_ref::<NotExpr>() {
            return Some(1.0 - self.share_of(part.arg()));
        }
        if let Some(part) = part.downcast_ref::<IsNullExpr>() {
            return self.nulls_of(part.arg());
        }
        if let Some(part) = part.downcast_ref::<IsNotNullExpr>() {
            return Some(1.0 - self.nulls_of(part.arg())?);
        }
        let is_negated_like = part.downcast_ref::<LikeExpr>().is_some_and(LikeExpr::negated);
        is_negated_like.then_some(1.0 - self.unknown)
    }

    /// The share of rows in which a column is one value.
    fn of_values(&self, left: &Arc<dyn PhysicalExpr>, right: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        match (left.is::<Literal>(), right.is::<Literal>()) {
            (false, true) => self.one_of(left),
            (true, false) => self.one_of(right),
            _ => None,
        }
    }

    /// The share of rows in which a column is NULL.
    fn nulls_of(&self, column: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        let column = column.downcast_ref::<Column>()?;
        let nulls = self.statistics.column_statistics.get(column.index())?.null_count;
        let rows = *self.statistics.num_rows.get_value()?;
        Some((*nulls.get_value()? as f64 / rows.max(1) as f64).min(1.0))
    }

    /// What one of the distinct values of a column has of the rows; none where these are not counted.
    fn one_of(&self, column: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        let column = column.downcast_ref::<Column>()?;
        let distinct = self.statistics.column_statistics.get(column.index())?.distinct_count;
        Some(1.0 / (*distinct.get_value()?).max(1) as f64)
    }
}

#[cfg(test)]
mod tests;
