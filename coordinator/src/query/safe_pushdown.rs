//! DataFusion 55.2 pushes a filter through a projection by the names of its
//! columns. A projection may have one name twice (both sides of a join that
//! was turned round), and then the filter lands on the wrong column and rows
//! are lost. What is above such a projection keeps its filters where they are.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
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
        if !has_doubled_names(&plan)? {
            return self.0.optimize(plan, config);
        }
        // Each part below is a plan of its own, into which nothing comes from above.
        let parts = plan.children().into_iter().map(|part| self.optimize(Arc::clone(part), config));
        let parts = parts.collect::<Result<_>>()?;
        replace_children_if_necessary(plan, parts)
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

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
    use datafusion::datasource::source::DataSourceExec;
    use datafusion::execution::object_store::ObjectStoreUrl;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::PhysicalExpr;
    use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
    use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
    use datafusion::physical_plan::displayable;
    use datafusion::physical_plan::filter::FilterExec;
    use datafusion::physical_plan::union::UnionExec;

    use super::*;

    type Plan = Arc<dyn ExecutionPlan>;

    fn column(name: &str, index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(name, index))
    }

    /// A filter by the second of two columns, `a` and `b` of a scan, that are given these names.
    fn filtered(names: [&str; 2]) -> Plan {
        let columns = ["a", "b"].map(|name| Field::new(name, DataType::Int64, true));
        let source = ParquetSource::new(Arc::new(Schema::new(columns.to_vec())));
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source)).build();
        let named = [(column("a", 0), names[0].to_owned()), (column("b", 1), names[1].to_owned())];
        let projected = ProjectionExec::try_new(named, DataSourceExec::from_data_source(scan)).unwrap();
        let predicate = BinaryExpr::new(column(names[1], 1), Operator::Gt, lit(5_i64));
        Arc::new(FilterExec::try_new(Arc::new(predicate), Arc::new(projected)).unwrap())
    }

    /// What the rules that push filters down make of a plan.
    fn pushed(plan: &Plan) -> Plan {
        let rules = SafePushdown::in_all(&PhysicalOptimizer::new().rules);
        let pushing: Vec<_> =
            rules.into_iter().filter(|rule| rule.name().starts_with("FilterPushdown")).collect();
        assert_eq!(pushing.len(), 2, "DataFusion pushes filters down by other rules now");
        let optimize = |plan, rule: &Arc<dyn PhysicalOptimizerRule + Send + Sync>| {
            rule.optimize(plan, &ConfigOptions::new()).unwrap()
        };
        pushing.iter().fold(Arc::clone(plan), optimize)
    }

    fn text(plan: &Plan) -> String {
        displayable(plan.as_ref()).indent(false).to_string()
    }

    #[test]
    fn a_filter_goes_down_to_its_column_where_each_has_a_name() {
        let plan = text(&pushed(&filtered(["x", "y"])));
        assert!(plan.contains("predicate=b@1 > 5"), "{plan}");
        // Also where one has the name that another one had.
        let plan = text(&pushed(&filtered(["b", "a"])));
        assert!(plan.contains("predicate=b@1 > 5"), "{plan}");
    }

    #[test]
    fn a_filter_above_a_name_that_is_there_twice_stays() {
        let plan = filtered(["x", "x"]);
        assert_eq!(text(&pushed(&plan)), text(&plan));
        assert!(!text(&plan).contains("predicate="));
    }

    #[test]
    fn filters_beside_and_below_such_a_projection_go_down() {
        let both = UnionExec::try_new(vec![filtered(["x", "x"]), filtered(["x", "y"])]).unwrap();
        let plan = text(&pushed(&both));
        assert_eq!(plan.matches("predicate=b@1 > 5").count(), 1, "{plan}");
        let below = filtered(["x", "y"]);
        let named = [(column("x", 0), "z".to_owned()), (column("y", 1), "z".to_owned())];
        let projected: Plan = Arc::new(ProjectionExec::try_new(named, below).unwrap());
        let predicate = BinaryExpr::new(column("z", 1), Operator::Lt, lit(7_i64));
        let above: Plan = Arc::new(FilterExec::try_new(Arc::new(predicate), projected).unwrap());
        let plan = text(&pushed(&above));
        assert!(plan.contains("predicate=b@1 > 5") && plan.contains("FilterExec: z@1 < 7"), "{plan}");
    }

    #[test]
    fn other_rules_are_as_they_were() {
        let rules = PhysicalOptimizer::new().rules;
        let safe = SafePushdown::in_all(&rules);
        assert_eq!(rules.len(), safe.len());
        for (before, after) in rules.iter().zip(&safe) {
            let is_same = Arc::ptr_eq(before, after);
            assert_eq!(is_same, !before.name().starts_with("FilterPushdown"), "{}", before.name());
            assert_eq!(before.name(), after.name());
        }
    }
}
