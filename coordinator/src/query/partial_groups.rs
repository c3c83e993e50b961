//! Groups that are made before rows are dealt: of much fewer groups than rows they save most of what would be
//! sent, of nearly as many they are done for nothing. DataFusion gives them up for a partition of which 100,000
//! rows were nearly as many groups. Of several workers, with two partitions each, none sees so many
//! rows of what is a million: where distinct values say what to expect, fewer rows tell.

use std::borrow::Cow;

use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use shoal_proto::exchange::QueryOptions;

use super::join_order::rows_and_groups;

/// After how many rows of a partition it is asked whether they were nearly as many groups.
const SETTING: &str = "datafusion.execution.skip_partial_aggregation_probe_rows_threshold";
/// Where nearly as many groups as rows are expected. Of fewer than twice as many groups as these are, they may
/// seem to be all different and not be: where so few are expected the rows are not asked so early.
const EARLY_ROWS: usize = 4096;

/// What a query is run with: the same, or with early questions where each of its groupings is expected to have
/// as many groups as rows, by the distinct values of all that it groups by.
///
/// # Errors
/// None in practice; those of walking a plan.
pub(super) fn with_early_question<'a>(
    query: &'a QueryOptions,
    plan: &LogicalPlan,
) -> Result<Cow<'a, QueryOptions>> {
    if query.settings.iter().any(|(name, _)| name == SETTING) || !all_groups_are_many(plan)? {
        return Ok(Cow::Borrowed(query));
    }
    let mut query = query.clone();
    query.settings.push((SETTING.to_owned(), EARLY_ROWS.to_string()));
    Ok(Cow::Owned(query))
}

fn all_groups_are_many(plan: &LogicalPlan) -> Result<bool> {
    let mut groupings = 0;
    let mut are_many = true;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Aggregate(node) if !node.group_expr.is_empty() => {
                groupings += 1;
                are_many &= rows_and_groups(node).is_some_and(|(rows, groups)| groups >= rows);
            }
            LogicalPlan::Distinct(_) => are_many = false,
            _ => {}
        }
        Ok(if are_many { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(are_many && groupings > 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::common::stats::Precision;
    use datafusion::datasource::MemTable;
    use datafusion::prelude::SessionContext;
    use shoal_proto::QueryId;
    use shoal_proto::exchange::ExchangeCompression;

    use super::*;
    use crate::query::told::Told;

    /// What a query over 1,000 rows is asked after how many rows, in a session with these settings, where each
    /// column is said to have 30 distinct values.
    async fn question(sql: &str, settings: &[(&str, &str)]) -> Vec<(String, String)> {
        let fields = ["a", "b", "x"].map(|name| Field::new(name, DataType::Int64, false));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let column = || Arc::new((0..1000).collect::<Int64Array>()) as _;
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column(), column(), column()]).unwrap();
        let rows = MemTable::try_new(schema, vec![vec![batch]]).unwrap();
        let context = SessionContext::new();
        let told = Told { rows, count: 1000, distinct: Precision::Inexact(30) };
        context.register_table("t", Arc::new(told)).unwrap();
        let plan = context.sql(sql).await.unwrap().into_optimized_plan().unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let query = QueryOptions {
            query: QueryId::random(),
            attempt: 1,
            memory_limit_bytes: 1 << 30,
            is_short: false,
            compression: ExchangeCompression::default(),
            settings: settings.iter().map(own).collect(),
        };
        with_early_question(&query, &plan).unwrap().settings.clone()
    }

    #[tokio::test]
    async fn groups_that_may_be_as_many_as_rows_are_asked_early() {
        let early = [(SETTING.to_owned(), EARLY_ROWS.to_string())];
        for sql in [
            "SELECT a, b, x, count(*) FROM t GROUP BY a, b, x",
            "SELECT DISTINCT a, b, x FROM t",
            // A sixth of the rows, by a filter, and 900 groups.
            "SELECT a, b, sum(x) FROM t WHERE x IN (1, 2, 3, 4, 5) GROUP BY a, b",
        ] {
            assert_eq!(question(sql, &[]).await, early, "{sql}");
        }
    }

    #[tokio::test]
    async fn all_others_are_asked_as_late_as_ever() {
        for sql in [
            "SELECT a, b, x FROM t",
            "SELECT count(*) FROM t",
            "SELECT a, b, count(*) FROM t GROUP BY a, b",
            // One of the groupings has few groups, or nobody knows how many.
            "SELECT a, count(*) FROM (SELECT a, b, x FROM t GROUP BY a, b, x) GROUP BY a",
            "SELECT a, b, x % 7, count(*) FROM t GROUP BY a, b, x % 7",
            "SELECT a, b, x, count(*) FROM t GROUP BY CUBE (a, b, x)",
        ] {
            assert_eq!(question(sql, &[]).await, [], "{sql}");
        }
        let own = (SETTING, "7");
        let sql = "SELECT a, b, x, count(*) FROM t GROUP BY a, b, x";
        assert_eq!(question(sql, &[own]).await, [(SETTING.to_owned(), "7".to_owned())]);
    }
}
