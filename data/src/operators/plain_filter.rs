//! Which filters a scan may evaluate for each row while it decodes.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::TreeNode;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal,
    NegativeExpr, NotExpr, TryCastExpr,
};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_expr_common::physical_expr::is_volatile;

/// Whether a filter over the `columns` of a file means the same for each row wherever,
/// and however often, it is evaluated. What is not known to is not plain. Filters that
/// joins and first rows of an order push down while they run are not: one of a join of
/// partitions tells by DataFusion's hash which partition a row is of, and shards are not
/// always dealt to tasks in that way. Such filters rule out whole row groups only, which
/// asks for no hash.
pub fn is_plain_filter(filter: &Arc<dyn PhysicalExpr>, columns: &Schema) -> bool {
    let is_known = |node: &Arc<dyn PhysicalExpr>| match node.downcast_ref::<Column>() {
        // Filters over nested columns are not evaluated there, and those behind them, which
        // they may guard from an error, would be.
        Some(column) => {
            let field = columns.fields().get(column.index());
            field.is_some_and(|field| field.name() == column.name() && !field.data_type().is_nested())
        }
        None => {
            node.is::<Literal>()
                || node.is::<BinaryExpr>()
                || node.is::<InListExpr>()
                || node.is::<LikeExpr>()
                || node.is::<IsNullExpr>()
                || node.is::<IsNotNullExpr>()
                || node.is::<NotExpr>()
                || node.is::<NegativeExpr>()
                || node.is::<CaseExpr>()
                || node.is::<CastExpr>()
                || node.is::<TryCastExpr>()
                || node.is::<ScalarFunctionExpr>()
        }
    };
    !is_volatile(filter) && !filter.exists(|node| Ok(!is_known(node))).unwrap_or(true)
}
