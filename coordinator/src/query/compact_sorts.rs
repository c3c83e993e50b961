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
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use shoal_data::operators::CompactExec;

/// Puts a [`CompactExec`] below each sort of groups, also below one that keeps the first of
/// them only: it cannot spill, and copies these only when it holds many others.
#[derive(Debug, Default)]
pub(crate) struct CompactSorts;

impl PhysicalOptimizerRule for CompactSorts {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let compact = plan.transform_up(|node| match node.downcast_ref::<SortExec>() {
            Some(sort) if is_of_groups(sort.input()) => {
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

/// Whether rows may be slices of groups: a filter hands on a batch of which it keeps all. Other
/// operators copy what they give, or give batches as they were decoded.
fn is_of_groups(node: &Arc<dyn ExecutionPlan>) -> bool {
    match node.children().as_slice() {
        [input] if node.is::<ProjectionExec>() || node.is::<FilterExec>() => is_of_groups(input),
        _ => node.is::<AggregateExec>(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{Display, Formatter};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use arrow::array::RecordBatch;
    use datafusion::execution::memory_pool::{MemoryPool, MemoryReservation};
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::execution::{SessionState, SessionStateBuilder};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::query::told::run;

    /// A session with the rule.
    fn state() -> SessionState {
        SessionStateBuilder::new()
            .with_default_features()
            .with_config(SessionConfig::new().with_target_partitions(2))
            .with_physical_optimizer_rule(Arc::new(CompactSorts))
            .build()
    }

    async fn plan_of(sql: &str) -> String {
        let context = SessionContext::new_with_state(state());
        context.sql("CREATE TABLE t AS VALUES (1, 'a', 2.5), (2, 'b', 3.5), (1, 'c', 4.5)").await.unwrap();
        let (plan, rows) = run(&context, sql).await;
        assert_eq!(rows, run(&SessionContext::new_with_state(plain(context.state())), sql).await.1);
        plan
    }

    /// The same session without the rule.
    fn plain(state: SessionState) -> SessionState {
        let rules = SessionStateBuilder::new().with_default_features().build().physical_optimizers().to_vec();
        SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules).build()
    }

    /// Has room for everything, and knows the most that one keeper of first rows asked for.
    #[derive(Debug, Default)]
    struct Watched {
        most_bytes: AtomicUsize,
    }

    impl Display for Watched {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.name())
        }
    }

    impl MemoryPool for Watched {
        fn name(&self) -> &str {
            "watched"
        }

        fn grow(&self, reservation: &MemoryReservation, additional: usize) {
            if reservation.consumer().name().starts_with("TopK") {
                self.most_bytes.fetch_max(reservation.size() + additional, Ordering::Relaxed);
            }
        }

        fn shrink(&self, _reservation: &MemoryReservation, _shrink: usize) {}

        fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
            self.grow(reservation, additional);
            Ok(())
        }

        fn reserved(&self) -> usize {
            0
        }
    }

    async fn most_bytes(state: SessionState, sql: &str) -> usize {
        let pool = Arc::new(Watched::default());
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&pool) as _).build_arc().unwrap();
        let state = SessionStateBuilder::new_from_existing(state).with_runtime_env(runtime).build();
        let first = SessionContext::new_with_state(state).sql(sql).await.unwrap().collect().await.unwrap();
        assert_eq!(first.iter().map(RecordBatch::num_rows).sum::<usize>(), 20_000);
        pool.most_bytes.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn groups_are_compact_below_a_sort() {
        for sql in [
            "SELECT column1, sum(column3) AS s FROM t GROUP BY column1 ORDER BY s, column1",
            "SELECT column1, -s FROM (SELECT column1, sum(column3) AS s FROM t GROUP BY column1) ORDER BY -s",
            "SELECT column1, sum(column3) AS s FROM t GROUP BY column1 HAVING sum(column3) > 0 ORDER BY s, column1",
            "SELECT column1, sum(column3) AS s FROM t GROUP BY column1 ORDER BY s, column1 LIMIT 1",
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
            "SELECT column1, column2 FROM t ORDER BY column2 LIMIT 1",
            "SELECT a.column2, b.column2 FROM t a JOIN t b ON a.column1 = b.column1 ORDER BY a.column2, b.column2",
        ] {
            let plan = plan_of(sql).await;
            assert!(plan.contains("SortExec") && !plan.contains("CompactExec"), "{plan}");
        }
    }

    #[tokio::test]
    async fn the_first_of_many_groups_are_not_kept_with_all_of_them() {
        let sql = "SELECT value % 200000 AS k, sum(value) AS s, count(*) AS c, max(value) AS m \
                   FROM generate_series(1, 200000) GROUP BY value % 200000 ORDER BY sum(value) % 1009, k LIMIT 20000";
        let (with, without) = (most_bytes(state(), sql).await, most_bytes(plain(state()), sql).await);
        assert!(with > 0 && with * 2 < without, "{with} bytes with the rule, {without} without it");
    }
}
