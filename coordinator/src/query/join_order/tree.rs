//! Inner joins as a set: what is joined, by which equalities and filters. And back from an
//! order to a plan.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, DFSchema, JoinConstraint, NullEquality, Result, TableReference};
use datafusion::logical_expr::expr::{Alias, Between, Cast, InList};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Join, JoinType, LogicalPlan, Operator};

/// Leaves of a tree, at most: more are joined as written.
const LEAVES_MAX: usize = 24;

/// Some leaves of a tree, one bit each.
pub(super) type Leaves = u64;

/// An order of joins.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// The leaf with this number.
    Leaf(usize),
    /// A join; the left side is the one to be hashed.
    Join(Box<Shape>, Box<Shape>),
}

impl Shape {
    pub(super) fn join(left: Self, right: Self) -> Self {
        Self::Join(Box::new(left), Box::new(right))
    }
}

/// Values that are equal in each row of the whole tree: one of a leaf, of two leaves at least.
/// Whatever order is chosen, each join makes those of its two sides equal.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) members: Vec<(usize, Expr)>,
    /// Whether more can be equal to these than what stands in one condition.
    is_open: bool,
}

impl Class {
    pub(super) fn leaves(&self) -> Leaves {
        self.members.iter().fold(0, |all, (leaf, _)| all | (1 << leaf))
    }

    fn member(&self, of: Leaves) -> Option<&Expr> {
        self.members.iter().find(|(leaf, _)| of & (1 << leaf) != 0).map(|(_, expr)| expr)
    }
}

/// A condition that is no equality of two leaves.
#[derive(Debug)]
pub(super) struct Residual {
    pub(super) leaves: Leaves,
    filter: Expr,
}

impl Residual {
    /// Whether it can be asked of these together, and not of either before.
    pub(super) fn belongs_to(&self, left: Leaves, right: Leaves) -> bool {
        let is_in = |leaves: Leaves| self.leaves & !leaves == 0;
        is_in(left | right) && !is_in(left) && !is_in(right)
    }
}

/// A tree of inner joins.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) leaves: Vec<Arc<LogicalPlan>>,
    pub(super) classes: Vec<Class>,
    pub(super) residuals: Vec<Residual>,
    pub(super) written: Shape,
    /// As they were written.
    conditions: Vec<Expr>,
}

impl Tree {
    /// The joins below and with this one, as far as they are inner ones; none where they
    /// cannot be told apart.
    pub(super) fn of(plan: &LogicalPlan) -> Option<Self> {
        let mut gathered = Gathered::default();
        let written = gathered.add(&Arc::new(plan.clone()))?;
        let Gathered { leaves, on, filters } = gathered;
        // A name that two leaves have could mean another column in another order.
        let first = leaves.first()?.schema().as_ref().clone();
        leaves.iter().skip(1).try_fold(first, |all: DFSchema, leaf| all.join(leaf.schema()).ok())?;
        let mut tree =
            Self { leaves, classes: Vec::new(), residuals: Vec::new(), written, conditions: Vec::new() };
        for (left, right) in on {
            let (of_left, of_right) = (tree.leaves_of(&left)?, tree.leaves_of(&right)?);
            tree.conditions.push(left.clone());
            tree.conditions.push(right.clone());
            let is_of_two = of_left.count_ones() == 1 && of_right.count_ones() == 1 && of_left != of_right;
            match is_of_two {
                true => tree.equate(
                    (of_left.trailing_zeros() as usize, left),
                    (of_right.trailing_zeros() as usize, right),
                ),
                false => tree.add_residual(left.eq(right))?,
            }
        }
        for filter in filters {
            tree.conditions.push(filter.clone());
            tree.add_residual(filter)?;
        }
        Some(tree)
    }

    /// The leaves whose columns it reads; none where one is of no leaf, or there are none.
    fn leaves_of(&self, expr: &Expr) -> Option<Leaves> {
        let mut all = 0;
        for column in expr.column_refs() {
            all |= 1 << self.leaf_of(column)?;
        }
        (all != 0).then_some(all)
    }

    /// The leaf that has a column under just this name.
    pub(super) fn leaf_of(&self, column: &Column) -> Option<usize> {
        let is_same = |(qualifier, field): (Option<&TableReference>, &FieldRef)| {
            qualifier == column.relation.as_ref() && *field.name() == column.name
        };
        self.leaves.iter().position(|leaf| leaf.schema().iter().any(is_same))
    }

    fn add_residual(&mut self, filter: Expr) -> Option<()> {
        let leaves = self.leaves_of(&filter)?;
        // One of a single leaf belongs below, and comes there.
        (leaves.count_ones() > 1).then(|| self.residuals.push(Residual { leaves, filter }))
    }

    /// Notes that two values are equal. Those that are equal to the same value come together
    /// where no leaf has two of them, so that each pair of sides can be joined by one.
    fn equate(&mut self, left: (usize, Expr), right: (usize, Expr)) {
        let is_open = self.can_be_carried_on(&left, &right);
        let class_of = |member: &(usize, Expr)| {
            self.classes.iter().position(|class| class.is_open && class.members.contains(member))
        };
        let places = if is_open { (class_of(&left), class_of(&right)) } else { (None, None) };
        let fits = |place: usize, leaves: Leaves| self.classes[place].leaves() & leaves == 0;
        match places {
            (Some(one), Some(other)) if one == other => {}
            (Some(one), Some(other)) if fits(one, self.classes[other].leaves()) => {
                let members = std::mem::take(&mut self.classes[other].members);
                self.classes[one].members.extend(members);
                self.classes.remove(other);
            }
            (Some(place), None) if fits(place, 1 << right.0) => self.classes[place].members.push(right),
            (None, Some(place)) if fits(place, 1 << left.0) => self.classes[place].members.push(left),
            (None, None) => self.classes.push(Class { members: vec![left, right], is_open }),
            _ => self.classes.push(Class { members: vec![left, right], is_open: false }),
        }
    }

    /// Whether what is equal to the one is equal to the other, too, for every engine: columns
    /// of one type whose values are equal in one way only.
    fn can_be_carried_on(&self, left: &(usize, Expr), right: &(usize, Expr)) -> bool {
        let type_of = |(leaf, expr): &(usize, Expr)| match expr {
            Expr::Column(_) => expr.get_type(self.leaves[*leaf].schema()).ok(),
            _ => None,
        };
        let (Some(left), Some(right)) = (type_of(left), type_of(right)) else { return false };
        let is_plain = left.is_integer()
            || matches!(
                left,
                DataType::Utf8View
                    | DataType::Utf8
                    | DataType::Date32
                    | DataType::Date64
                    | DataType::Decimal128(_, _)
            );
        left == right && is_plain
    }

    /// Whether no row can come out otherwise, and no new error, in another order: nothing is
    /// computed anew each time it is asked for, nothing belongs to an outer query, and no
    /// condition can fail for a row that it did not see before.
    pub(super) fn may_be_moved(&self) -> bool {
        let are_leaves_still = self.leaves.iter().all(|leaf| is_still(leaf));
        self.leaves.len() <= LEAVES_MAX
            && are_leaves_still
            && self.conditions.iter().all(|of| self.cannot_fail(of))
    }

    /// Whether a condition has a value for each row there can be: comparisons of columns and
    /// constants. A division, a cast of text or a function may be an error for a row that
    /// another join would have left out before.
    fn cannot_fail(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Column(_) | Expr::Literal(..) => true,
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let is_comparison = matches!(
                    op,
                    Operator::Eq
                        | Operator::NotEq
                        | Operator::Lt
                        | Operator::LtEq
                        | Operator::Gt
                        | Operator::GtEq
                        | Operator::And
                        | Operator::Or
                        | Operator::IsDistinctFrom
                        | Operator::IsNotDistinctFrom
                );
                is_comparison && self.cannot_fail(left) && self.cannot_fail(right)
            }
            Expr::Not(of) | Expr::IsNull(of) | Expr::IsNotNull(of) => self.cannot_fail(of),
            Expr::Alias(Alias { expr, .. }) => self.cannot_fail(expr),
            Expr::Between(Between { expr, low, high, .. }) => {
                self.cannot_fail(expr) && self.cannot_fail(low) && self.cannot_fail(high)
            }
            Expr::InList(InList { expr, list, .. }) => {
                self.cannot_fail(expr) && list.iter().all(|of| self.cannot_fail(of))
            }
            Expr::Like(like) => {
                self.cannot_fail(&like.expr) && matches!(like.pattern.as_ref(), Expr::Literal(..))
            }
            Expr::Cast(Cast { expr, field }) => self.is_widened(expr, field.data_type()),
            _ => false,
        }
    }

    /// Whether it is a column, cast to a type that has all its values.
    fn is_widened(&self, expr: &Expr, to: &DataType) -> bool {
        let Expr::Column(column) = expr else { return false };
        let Some(leaf) = self.leaf_of(column) else { return false };
        let Ok(from) = expr.get_type(self.leaves[leaf].schema()) else { return false };
        let is_text = |of: &DataType| matches!(of, DataType::Utf8 | DataType::Utf8View);
        match to {
            DataType::Int64 => from.is_integer() && from != DataType::UInt64,
            DataType::Int32 => matches!(from, DataType::Int8 | DataType::Int16),
            DataType::Utf8 | DataType::Utf8View => is_text(&from),
            _ => false,
        }
    }

    /// The plan of an order. The order of its columns follows from that.
    ///
    /// # Errors
    /// Those of making joins.
    pub(super) fn joined(&self, shape: &Shape) -> Result<Arc<LogicalPlan>> {
        Ok(self.joined_with_leaves(shape)?.0)
    }

    fn joined_with_leaves(&self, shape: &Shape) -> Result<(Arc<LogicalPlan>, Leaves)> {
        let (left, right) = match shape {
            Shape::Leaf(leaf) => return Ok((Arc::clone(&self.leaves[*leaf]), 1 << leaf)),
            Shape::Join(left, right) => (self.joined_with_leaves(left)?, self.joined_with_leaves(right)?),
        };
        let ((left, of_left), (right, of_right)) = (left, right);
        let on = self
            .classes
            .iter()
            .filter_map(|class| Some((class.member(of_left)?.clone(), class.member(of_right)?.clone())));
        let filters = self.residuals.iter().filter(|residual| residual.belongs_to(of_left, of_right));
        let join = Join::try_new(
            left,
            right,
            on.collect(),
            conjunction(filters.map(|residual| residual.filter.clone())),
            JoinType::Inner,
            JoinConstraint::On,
            NullEquality::NullEqualsNothing,
            false,
        )?;
        Ok((Arc::new(LogicalPlan::Join(join)), of_left | of_right))
    }
}

/// What a walk down finds.
#[derive(Default)]
struct Gathered {
    leaves: Vec<Arc<LogicalPlan>>,
    on: Vec<(Expr, Expr)>,
    filters: Vec<Expr>,
}

impl Gathered {
    fn add(&mut self, plan: &Arc<LogicalPlan>) -> Option<Shape> {
        let Some(join) = inner_join(plan) else {
            // One bit is each leaf's.
            if self.leaves.len() >= Leaves::BITS as usize {
                return None;
            }
            self.leaves.push(Arc::clone(plan));
            return Some(Shape::Leaf(self.leaves.len() - 1));
        };
        let (left, right) = (self.add(&join.left)?, self.add(&join.right)?);
        self.on.extend(join.on.iter().cloned());
        self.filters.extend(join.filter.iter().flat_map(split_conjunction).cloned());
        Some(Shape::join(left, right))
    }
}

/// The joins of trees that were looked at: those below the topmost one are not looked at again.
#[derive(Default)]
pub(super) struct Seen(HashSet<*const DFSchema>);

impl Seen {
    /// Notes all joins of the tree that a plan is, if it is one.
    pub(super) fn add(&mut self, plan: &LogicalPlan) {
        if let Some(join) = inner_join(plan) {
            self.0.insert(Arc::as_ptr(&join.schema));
            self.add(&join.left);
            self.add(&join.right);
        }
    }

    pub(super) fn has(&self, plan: &LogicalPlan) -> bool {
        matches!(plan, LogicalPlan::Join(join) if self.0.contains(&Arc::as_ptr(&join.schema)))
    }
}

/// The inner join that a plan is, maybe with fewer of its columns.
pub(super) fn inner_join(plan: &LogicalPlan) -> Option<&Join> {
    match plan {
        LogicalPlan::Join(join) => {
            let is_inner =
                join.join_type == JoinType::Inner && join.null_equality == NullEquality::NullEqualsNothing;
            is_inner.then_some(join)
        }
        LogicalPlan::Projection(node) => {
            let is_as_named = node
                .expr
                .iter()
                .zip(node.schema.columns())
                .all(|(expr, column)| matches!(expr, Expr::Column(of) if *of == column));
            is_as_named.then(|| inner_join(&node.input)).flatten()
        }
        _ => None,
    }
}

/// Whether a plan has nothing that is computed anew each time, and nothing of an outer query.
fn is_still(plan: &LogicalPlan) -> bool {
    let mut is_still = true;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            is_still &= !expr.is_volatile() && !expr.contains_outer();
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if is_still { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    is_still && walked.is_ok()
}
