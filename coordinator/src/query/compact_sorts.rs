//! Groups that are sorted come to the sort in batches that hold no more than their own
//! rows: see [`CompactExec`].

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use shoal_data::operators::CompactExec;

/// Puts a [`CompactExec`] below each sort of groups that keeps all its rows. One that keeps
/// the first of them only copies those itself.
#[derive(Debug, Default)]
pub(crate) struct CompactSorts;

impl PhysicalOptimizerRule for CompactSorts {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let compact = plan.transform_up(|node| match node.downcast_ref::<SortExec>() {
            Some(sort) if sort.fetch().is_none() && is_of_groups(sort.input()) => {
                let input = Arc::new(CompactExec::new(Arc::clone(sort.input())));
                Ok(Transformed::yes(replace_children_if_necessary(Arc::clone(&node), vec![input])?))
            }
            _ => Ok(Transformed::no(node)),
        })?;
        Ok(compact.data)
    }

    fn name(&self) -> &str {
        "compact_sorts"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether rows are slices of groups. Other operators copy what they give, or give batches as
/// they were decoded.
fn is_of_groups(node: &Arc<dyn ExecutionPlan>) -> bool {
    match node.downcast_ref::<ProjectionExec>() {
        Some(projection) => is_of_groups(projection.input()),
        None => node.is::<AggregateExec>(),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::query::told::run;

    async fn plan_of(sql: &str) -> String {
        let config = SessionConfig::new().with_target_partitions(2);
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_physical_optimizer_rule(Arc::new(CompactSorts))
            .build();
        let context = SessionContext::new_with_state(state);
        context.sql("CREATE TABLE t AS VALUES (1, 'a', 2.5), (2, 'b', 3.5), (1, 'c', 4.5)").await.unwrap();
        let (plan, rows) = run(&context, sql).await;
        assert_eq!(rows, run(&SessionContext::new_with_state(plain(&context)), sql).await.1);
        plan
    }

    /// The same tables without the rule.
    fn plain(context: &SessionContext) -> datafusion::execution::SessionState {
        let rules = SessionStateBuilder::new().with_default_features().build().physical_optimizers().to_vec();
        SessionStateBuilder::new_from_existing(context.state()).with_physical_optimizer_rules(rules).build()
    }

    #[tokio::test]
    async fn groups_are_compact_below_a_sort() {
        for sql in [
            "SELECT column1, sum(column3) AS s FROM t GROUP BY column1 ORDER BY s, column1",
            "SELECT column1, -s FROM (SELECT column1, sum(column3) AS s FROM t GROUP BY column1) ORDER BY -s",
        ] {
            let plan = plan_of(sql).await;
            let lines: Vec<_> = plan.lines().map(str::trim).collect();
            let sort = lines.iter().position(|line| line.starts_with("SortExec")).expect(&plan);
            assert_eq!(lines[sort + 1], "CompactExec", "{plan}");
        }
    }

    #[tokio::test]
    async fn other_sorts_stay_as_they_are() {
        for sql in [
            "SELECT column1, column2 FROM t ORDER BY column2",
            "SELECT column1, sum(column3) AS s FROM t GROUP BY column1 ORDER BY s, column1 LIMIT 1",
            "SELECT a.column2, b.column2 FROM t a JOIN t b ON a.column1 = b.column1 ORDER BY a.column2, b.column2",
        ] {
            let plan = plan_of(sql).await;
            assert!(plan.contains("SortExec") && !plan.contains("CompactExec"), "{plan}");
        }
    }
}
