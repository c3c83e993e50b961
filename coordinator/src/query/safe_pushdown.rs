//! DataFusion 55.2 pushes a filter through a projection by the names of its
//! columns. A projection may have one name twice (both sides of a join that
//! was turned round), and then the filter lands on the wrong column and rows
//! are lost. Such plans keep their filters where they are.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;

/// A rule that pushes filters down, for the plans that it is right for.
#[derive(Debug)]
pub(crate) struct SafePushdown(Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl SafePushdown {
    /// The rules with those that push filters down made safe.
    pub(crate) fn in_all(
        rules: &[Arc<dyn PhysicalOptimizerRule + Send + Sync>],
    ) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
        let safe = |rule: &Arc<dyn PhysicalOptimizerRule + Send + Sync>| {
            if rule.name().starts_with("FilterPushdown") {
                Arc::new(Self(Arc::clone(rule))) as Arc<dyn PhysicalOptimizerRule + Send + Sync>
            } else {
                Arc::clone(rule)
            }
        };
        rules.iter().map(safe).collect()
    }
}

impl PhysicalOptimizerRule for SafePushdown {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if has_doubled_names(&plan)? { Ok(plan) } else { self.0.optimize(plan, config) }
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

fn has_doubled_names(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut is_doubled = false;
    plan.apply(|node| {
        if node.is::<ProjectionExec>() {
            let schema = node.schema();
            let fields = schema.fields();
            is_doubled |= (1..fields.len())
                .any(|index| fields[..index].iter().any(|earlier| earlier.name() == fields[index].name()));
        }
        Ok(if is_doubled { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(is_doubled)
}
