//! Physical planning of a scan that gives its rows one by one: most rules have
//! nothing to do there, and to try them takes longer than the rest of planning.

use std::sync::Arc;

use datafusion::physical_optimizer::PhysicalOptimizerRule;

use super::late_materialization::LateMaterialization;

/// A rule of the planner.
type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// The rules that change a projection of a filter of one scan in one partition, or
/// look at it. Others are about joins, aggregates, orders, limits and partitions.
const RULES: [&str; 6] = [
    "FilterPushdown",
    "ProjectionPushdown",
    "EnsureCooperative",
    "FilterPushdown(Post)",
    "SanityCheckPlan",
    LateMaterialization::NAME,
];

/// Put into a session: it plans a scan that gives its rows one by one.
///
/// Of a single segment nothing is told then of what is in it, nor in which order: it was
/// read by the catalog's statistics already, no rule makes anything of them, and a plan
/// that is to be planned, sent and run within a millisecond is a third smaller without.
#[derive(Debug)]
pub(super) struct RowByRow;

/// Of all rules, those that such a plan needs, in their order.
pub(super) fn rules(all: &[Rule]) -> Vec<Rule> {
    all.iter().filter(|rule| RULES.contains(&rule.name())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::execution::SessionStateBuilder;
    use datafusion::physical_plan::displayable;
    use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
    use datafusion::prelude::{SessionConfig, SessionContext};
    use shoal_data::Table;
    use shoal_proto::TableId;

    use super::*;
    use crate::catalog::TableFacts;
    use crate::catalog::state::tests::{segment, table};
    use crate::query::ShardTable;
    use crate::query::safe_pushdown::SafePushdown;
    use crate::query::shard_streams::{Giving, giving};
    use crate::query::yielding::YieldInJoins;

    fn context() -> SessionContext {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let id = TableId(1);
        let columns = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Utf8, true),
            Field::new("c", DataType::Int64, true),
        ]));
        let mut made = Table { columns, ..table(id, "t") };
        made.layout.sort_key = vec!["a".to_owned()];
        made.segments = (0..4).map(|number| Arc::new(segment(id, number % 2, "w1"))).collect();
        let provider = ShardTable::new(Arc::new(TableFacts::new(Arc::new(made))));
        context.register_table("t", Arc::new(provider)).unwrap();
        context
    }

    #[tokio::test]
    async fn few_rules_make_the_plan_that_all_rules_make() {
        let state = context().state();
        let mut all = SafePushdown::in_all(state.physical_optimizers());
        all.push(Arc::new(YieldInJoins));
        all.push(Arc::new(LateMaterialization));
        let few = rules(&all);
        let names: Vec<&str> = few.iter().map(|rule| rule.name()).collect();
        for rule in RULES {
            assert!(names.contains(&rule), "there is no rule `{rule}` any more: {names:?}");
        }
        let with = |rules: &[Rule]| {
            SessionStateBuilder::new_from_existing(state.clone())
                .with_physical_optimizer_rules(rules.to_vec())
                .build()
        };
        let (with_all, with_few) = (with(&all), with(&few));
        for sql in [
            "SELECT * FROM t",
            "SELECT 1 AS one FROM t",
            "SELECT b, a + 1 AS d FROM t WHERE a > 5 AND c < 3",
            "SELECT c FROM (SELECT a, c FROM t WHERE b = 'x') AS s WHERE a = 5",
            "SELECT upper(b) AS u, b FROM t WHERE upper(b) <> 'X' OR a IS NULL",
            "SELECT a, a AS again, c FROM t WHERE a IN (1, 2, 3, 4, 5) AND b LIKE 'x%'",
            "SELECT c, a FROM t WHERE a = 7",
            "SELECT a FROM t WHERE a = 7 AND a = 8",
        ] {
            let logical = with_all.create_logical_plan(sql).await.unwrap();
            let logical = with_all.optimize(&logical).unwrap();
            let mut plans = Vec::new();
            for state in [&with_all, &with_few] {
                let plan = DefaultPhysicalPlanner::default().create_physical_plan(&logical, state).await;
                plans.push(displayable(plan.unwrap().as_ref()).indent(true).to_string());
            }
            assert_eq!(plans[0], plans[1], "{sql}");
            let is_row_by_row = giving(&logical).unwrap() == Some(Giving::AsTheyCome);
            assert!(is_row_by_row || plans[0].contains("EmptyExec"), "{sql}\n{}", plans[0]);
        }
    }
}
