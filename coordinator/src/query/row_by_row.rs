//! Physical planning of a scan that gives its rows one by one: most rules have
//! nothing to do there, and to try them takes longer than the rest of planning.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::execution::{SessionState, SessionStateBuilder};
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

/// The same session with those rules that such a plan needs, in their order, and without
/// functions: those of a logical plan are in it, and to copy the names of all of them takes
/// longer than some of the rules.
pub(super) fn session(state: &SessionState) -> SessionState {
    let needed = |rule: &&Rule| RULES.contains(&rule.name());
    SessionStateBuilder::new_from_existing(state.clone())
        .with_physical_optimizer_rules(state.physical_optimizers().iter().filter(needed).cloned().collect())
        .with_scalar_functions(Vec::new())
        .with_higher_order_functions(Vec::new())
        .with_aggregate_functions(Vec::new())
        .with_window_functions(Vec::new())
        .with_table_functions(HashMap::new())
        .build()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
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
        let with_all =
            SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(all).build();
        let with_few = session(&with_all);
        let names: Vec<&str> = with_few.physical_optimizers().iter().map(|rule| rule.name()).collect();
        for rule in RULES {
            assert!(names.contains(&rule), "there is no rule `{rule}` any more: {names:?}");
        }
        assert!(with_few.scalar_functions().is_empty() && !with_all.scalar_functions().is_empty());
        for sql in [
            "SELECT * FROM t",
            "SELECT 1 AS one FROM t",
            "SELECT b, a + 1 AS d FROM t WHERE a > 5 AND c < 3",
            "SELECT c FROM (SELECT a, c FROM t WHERE b = 'x') AS s WHERE a = 5",
            "SELECT upper(b) AS u, b FROM t WHERE upper(b) <> 'X' OR a IS NULL",
            "SELECT a, a AS again, c FROM t WHERE a IN (1, 2, 3, 4, 5) AND b LIKE 'x%'",
            "SELECT c, a FROM t WHERE a = 7",
            "SELECT concat(b, 'x') AS s, round(a / 2.0) AS r, l[1] AS f FROM (SELECT a, b, make_array(a) AS l FROM t) WHERE a = 7",
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
