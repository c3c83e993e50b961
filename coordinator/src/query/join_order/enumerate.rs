//! The cheapest order of a tree: all orders without a cross product where there are few leaves,
//! else by taking the cheapest next join.

use super::cost::{Graph, Planned};
use super::tree::{Leaves, Shape};

/// Of so many leaves all orders are looked at: some 30,000 pairs of sides.
const ALL_ORDERS_LEAVES_MAX: usize = 10;

/// The cheapest order that is found; none where a cross product would be needed.
pub(super) fn cheapest(graph: &Graph) -> Option<Shape> {
    let planned = match graph.facts.len() <= ALL_ORDERS_LEAVES_MAX {
        true => of_all(graph)?,
        false => step_by_step(graph)?,
    };
    planned.cost.is_finite().then_some(planned.shape)
}

/// The best of each set of leaves, from the best of its parts.
fn of_all(graph: &Graph) -> Option<Planned> {
    let count = graph.facts.len();
    let mut best: Vec<Option<Planned>> = vec![None; 1 << count];
    for leaf in 0..count {
        best[1 << leaf] = Some(graph.leaf(leaf));
    }
    for leaves in 1..1_usize << count {
        if leaves.is_power_of_two() {
            continue;
        }
        let mut cheapest: Option<(f64, usize)> = None;
        // Each pair of sides once: the first leaf is always in this one.
        let mut side = (leaves - 1) & leaves;
        while side != 0 {
            let other = leaves & !side;
            let is_new = side & (1 << leaves.trailing_zeros()) != 0;
            if is_new
                && let (Some(left), Some(right)) = (&best[side], &best[other])
                && graph.are_joined(side as Leaves, other as Leaves)
            {
                let (cost, ..) = graph.cost_of_join(left, right);
                if cheapest.is_none_or(|(least, _)| cost < least) {
                    cheapest = Some((cost, side));
                }
            }
            side = (side - 1) & leaves;
        }
        if let Some((_, side)) = cheapest
            && let (Some(left), Some(right)) = (&best[side], &best[leaves & !side])
        {
            best[leaves] = Some(graph.join(left, right));
        }
    }
    best.pop().flatten()
}

/// The pair whose join costs least is joined, until all are.
fn step_by_step(graph: &Graph) -> Option<Planned> {
    let mut parts: Vec<Planned> = (0..graph.facts.len()).map(|leaf| graph.leaf(leaf)).collect();
    while parts.len() > 1 {
        let mut cheapest: Option<(f64, usize, usize)> = None;
        for right in 1..parts.len() {
            for left in 0..right {
                let (one, other) = (&parts[left], &parts[right]);
                if !graph.are_joined(one.leaves, other.leaves) {
                    continue;
                }
                // What is below has been paid for.
                let cost = graph.cost_of_join(one, other).0 - one.cost - other.cost;
                if cheapest.is_none_or(|(least, ..)| cost < least) {
                    cheapest = Some((cost, left, right));
                }
            }
        }
        let (_, left, right) = cheapest?;
        let right = parts.swap_remove(right);
        parts[left] = graph.join(&parts[left], &right);
    }
    parts.pop()
}
