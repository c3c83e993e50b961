//! What an order of joins costs, by estimate: the rows that each join hands on, and the bytes
//! that go through exchanges for it.
//!
//! Both are counted in bytes. What a scan reads is the same in each order, and not counted.

use std::cell::RefCell;
use std::collections::HashMap;

use arrow::datatypes::DataType;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::estimate::Facts;
use super::tree::{Leaves, Shape, Tree};

/// What a row costs whatever is in it: it is hashed, looked up and put together.
const ROW_BYTES: f64 = 16.0;
/// What text is taken to have in each row, and what is of no known size.
const TEXT_BYTES: f64 = 24.0;
/// A byte that is sent is encoded and decoded, too.
const SENT_FACTOR: f64 = 2.0;
/// A side of so many bytes is sent to all tasks, and the other one stays: DataFusion's limit.
const SMALL_BYTES: f64 = (1 << 20) as f64;
/// To so many tasks. It is not known here how many there will be.
const TASKS: f64 = 4.0;
/// What a condition beside the equalities leaves of the rows of a join; DataFusion takes the same.
const RESIDUAL: f64 = 0.2;
/// The filter by the keys of a built side leaves out rows before they are sent, if there are not
/// more keys than these (`query::runtime_filters`).
const FILTERING_ROWS: f64 = 700_000.0;

/// By which classes rows are dealt, in order of their numbers, and to how many shards; to 0
/// where an exchange deals them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ByClasses {
    classes: Vec<usize>,
    shards: u32,
}

impl ByClasses {
    fn meets(&self, other: &Self) -> bool {
        let same_shards = self.shards == other.shards || self.shards == 0 || other.shards == 0;
        self.classes == other.classes && same_shards
    }
}

/// Some leaves, joined.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) leaves: Leaves,
    /// In bytes.
    pub(super) cost: f64,
    dealt: Option<ByClasses>,
    pub(super) shape: Shape,
}

/// A tree with what is known of its leaves.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) facts: Vec<Facts>,
    widths: Vec<f64>,
    dealt: Vec<Option<ByClasses>>,
    /// The leaves of each class, and how many values there are of it.
    classes: Vec<(Leaves, f64)>,
    residuals: Vec<Leaves>,
    rows: RefCell<HashMap<Leaves, f64>>,
}

impl Graph {
    /// Where a filter of which nothing is known leaves this share. None where the rows of a leaf,
    /// or the values of a key, are not known.
    pub(super) fn of(tree: &Tree, unknown: f64) -> Option<Self> {
        let facts: Vec<Facts> =
            tree.leaves.iter().map(|leaf| Facts::of(leaf, unknown)).collect::<Option<_>>()?;
        let classes = tree.classes.iter().map(|class| {
            let known = class.members.iter().filter_map(|(leaf, expr)| match expr {
                Expr::Column(column) => facts[*leaf].known(&tree.leaves[*leaf], column),
                _ => None,
            });
            let known: Vec<_> = known.collect();
            let counted = known.iter().filter_map(|column| column.distinct).reduce(f64::max);
            // What only bounds them may be far too much on the side with more rows.
            let bound = || known.iter().filter_map(|column| column.distinct_max).reduce(f64::min);
            Some((class.leaves(), counted.or_else(bound)?))
        });
        let classes = classes.collect::<Option<Vec<_>>>()?;
        let dealt = (0..facts.len()).map(|leaf| by_classes(tree, leaf, &facts[leaf])).collect();
        let widths = tree.leaves.iter().map(|leaf| width_of(leaf)).collect();
        let residuals = tree.residuals.iter().map(|residual| residual.leaves).collect();
        Some(Self { facts, widths, dealt, classes, residuals, rows: RefCell::default() })
    }

    pub(super) fn leaf(&self, leaf: usize) -> Planned {
        Planned { leaves: 1 << leaf, cost: 0.0, dealt: self.dealt[leaf].clone(), shape: Shape::Leaf(leaf) }
    }

    /// Whether two sides have something that is equal in both.
    pub(super) fn are_joined(&self, left: Leaves, right: Leaves) -> bool {
        self.classes.iter().any(|(leaves, _)| leaves & left != 0 && leaves & right != 0)
    }

    /// The join of two sides, of which the smaller one is hashed.
    pub(super) fn join(&self, left: &Planned, right: &Planned) -> Planned {
        let (cost, dealt, is_turned) = self.cost_of_join(left, right);
        let (built, probed) = if is_turned { (right, left) } else { (left, right) };
        let shape = Shape::join(built.shape.clone(), probed.shape.clone());
        Planned { leaves: left.leaves | right.leaves, cost, dealt, shape }
    }

    /// What such a join costs with all below it; how its rows are dealt; and whether the right
    /// side is the one to be hashed.
    pub(super) fn cost_of_join(&self, left: &Planned, right: &Planned) -> (f64, Option<ByClasses>, bool) {
        let is_turned = self.bytes_of(right.leaves) < self.bytes_of(left.leaves);
        let (built, probed) = if is_turned { (right, left) } else { (left, right) };
        let all = left.leaves | right.leaves;
        let rows = self.rows_of(all);
        let (sent, dealt) = self.sent(built, probed, rows);
        let own = rows * (self.width_of(all) + ROW_BYTES) + sent * SENT_FACTOR;
        (left.cost + right.cost + own, dealt, is_turned)
    }

    /// The bytes that are sent for a join that gives so many rows, and how these are dealt.
    fn sent(&self, built: &Planned, probed: &Planned, rows: f64) -> (f64, Option<ByClasses>) {
        let keys: Vec<usize> = (0..self.classes.len())
            .filter(|&class| {
                let (leaves, _) = self.classes[class];
                leaves & built.leaves != 0 && leaves & probed.leaves != 0
            })
            .collect();
        let built_bytes = self.bytes_of(built.leaves);
        if keys.is_empty() || built_bytes <= SMALL_BYTES {
            return (built_bytes * TASKS, probed.dealt.clone());
        }
        let is_there = |side: &Planned| side.dealt.clone().filter(|dealt| dealt.classes == keys);
        let filtered = match self.rows_of(built.leaves) <= FILTERING_ROWS {
            true => self.rows_of(probed.leaves).min(rows),
            false => self.rows_of(probed.leaves),
        };
        let probed_bytes = filtered * self.width_of(probed.leaves);
        match (is_there(built), is_there(probed)) {
            (Some(one), Some(other)) if one.meets(&other) => (0.0, Some(other)),
            (_, Some(dealt)) => (built_bytes, Some(dealt)),
            (Some(dealt), None) => (probed_bytes, Some(dealt)),
            (None, None) => (built_bytes + probed_bytes, Some(ByClasses { classes: keys, shards: 0 })),
        }
    }

    /// What an order costs, in bytes; none where that is no number.
    pub(super) fn cost_of(&self, shape: &Shape) -> Option<f64> {
        Some(self.planned(shape).cost).filter(|cost| cost.is_finite())
    }

    fn planned(&self, shape: &Shape) -> Planned {
        match shape {
            Shape::Leaf(leaf) => self.leaf(*leaf),
            Shape::Join(left, right) => self.join(&self.planned(left), &self.planned(right)),
        }
    }

    /// The rows of all leaves joined; none where that is no number.
    pub(super) fn rows_of_all(&self) -> Option<f64> {
        let all = (0..self.facts.len()).fold(0, |all, leaf| all | (1 << leaf));
        Some(self.rows_of(all)).filter(|rows| rows.is_finite())
    }

    fn width_of(&self, leaves: Leaves) -> f64 {
        each(leaves).map(|leaf| self.widths[leaf]).sum()
    }

    fn bytes_of(&self, leaves: Leaves) -> f64 {
        self.rows_of(leaves) * self.width_of(leaves)
    }

    /// The rows of these joined, in whatever order: they are put together one by one, always the
    /// first one that has a key in common with those before.
    fn rows_of(&self, leaves: Leaves) -> f64 {
        if let Some(rows) = self.rows.borrow().get(&leaves) {
            return *rows;
        }
        let (mut joined, mut rows) = (0, 1.0);
        let mut left = leaves;
        while left != 0 {
            let connected = each(left).find(|leaf| self.are_joined(1 << leaf, joined));
            let next = connected.unwrap_or(left.trailing_zeros() as usize);
            rows *= self.facts[next].rows / self.values_between(next, joined);
            joined |= 1 << next;
            left &= !(1 << next);
        }
        let asked = self.residuals.iter().filter(|residual| **residual & !leaves == 0).count();
        rows *= RESIDUAL.powi(asked as i32);
        let rows = rows.max(1.0);
        self.rows.borrow_mut().insert(leaves, rows);
        rows
    }

    /// How many values there are of all keys by which a leaf is joined with these together.
    fn values_between(&self, leaf: usize, joined: Leaves) -> f64 {
        let between =
            self.classes.iter().filter(|(leaves, _)| leaves & (1 << leaf) != 0 && leaves & joined != 0);
        let (mut values, mut count, mut with_all) = (1.0, 0, joined);
        for (leaves, of_class) in between {
            values *= of_class;
            count += 1;
            with_all &= leaves;
        }
        if count < 2 || with_all == 0 {
            return values;
        }
        // Keys of one table on both sides: there are not more pairs of them than rows.
        let rows = each(with_all).map(|other| self.facts[other].base_rows).fold(f64::INFINITY, f64::min);
        values.min(rows).min(self.facts[leaf].base_rows).max(1.0)
    }
}

/// The numbers of these leaves.
fn each(leaves: Leaves) -> impl Iterator<Item = usize> {
    (0..Leaves::BITS as usize).filter(move |leaf| leaves & (1 << leaf) != 0)
}

/// How a leaf is dealt, where all columns of its shard key are keys of joins.
fn by_classes(tree: &Tree, leaf: usize, facts: &Facts) -> Option<ByClasses> {
    let dealt = facts.dealt.as_ref()?;
    let schema = tree.leaves[leaf].schema();
    let classes = dealt.by.iter().map(|&key| {
        let is_key = |(of, expr): &(usize, Expr)| {
            *of == leaf
                && matches!(expr, Expr::Column(column) if schema.maybe_index_of_column(column) == Some(key))
        };
        tree.classes.iter().position(|class| class.members.iter().any(is_key))
    });
    let mut classes = classes.collect::<Option<Vec<_>>>()?;
    classes.sort_unstable();
    Some(ByClasses { classes, shards: dealt.shards })
}

/// The bytes of a row of a plan, by the types of its columns.
fn width_of(plan: &LogicalPlan) -> f64 {
    let of_type = |data_type: &DataType| match (data_type, data_type.primitive_width()) {
        (_, Some(bytes)) => bytes as f64,
        (DataType::Boolean, _) => 1.0,
        _ => TEXT_BYTES,
    };
    plan.schema().fields().iter().map(|field| of_type(field.data_type())).sum()
}
