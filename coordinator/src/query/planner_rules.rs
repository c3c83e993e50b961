//! Where rules of ours stand among those of the planner.

use std::sync::Arc;

use datafusion::physical_optimizer::PhysicalOptimizerRule;

/// A rule of the planner.
pub(super) type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// The rules with this one behind each that has the name `after`.
pub(super) fn behind(rules: Vec<Rule>, after: &str, this: &Rule) -> Vec<Rule> {
    let with_this = |rule: Rule| {
        let this = (rule.name() == after).then(|| Arc::clone(this));
        [rule].into_iter().chain(this)
    };
    rules.into_iter().flat_map(with_this).collect()
}

/// The same before it.
pub(super) fn before(rules: Vec<Rule>, before: &str, this: &Rule) -> Vec<Rule> {
    let with_this = |rule: Rule| {
        let this = (rule.name() == before).then(|| Arc::clone(this));
        this.into_iter().chain([rule])
    };
    rules.into_iter().flat_map(with_this).collect()
}
