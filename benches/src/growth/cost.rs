//! What a query costs with so many workers, and how long it would take if each of
//! them had a machine of its own. Pure: from what was counted.

use serde::Serialize;

use crate::report::median;

/// What one run of a query took.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// On this machine, where all processes share its cores.
    pub(super) wall_s: f64,
    /// CPU seconds of the coordinator.
    pub(super) coordinator_s: f64,
    /// CPU seconds of each worker.
    pub(super) workers_s: Vec<f64>,
}

impl Run {
    fn workers_s(&self) -> f64 {
        self.workers_s.iter().sum()
    }

    fn slowest_s(&self) -> f64 {
        self.workers_s.iter().copied().fold(0.0, f64::max)
    }
}

/// A query with so many workers; times are medians of its runs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct QueryCost {
    pub(super) query: usize,
    pub(super) wall_s: f64,
    /// CPU seconds of the coordinator.
    pub(super) coordinator_s: f64,
    /// CPU seconds of all workers.
    pub(super) workers_s: f64,
    /// CPU seconds of the worker that took most.
    pub(super) slowest_s: f64,
    /// Bytes that went from one process to another.
    pub(super) bytes: u64,
    /// What it would take on separate machines, each with a link of its own.
    pub(super) predicted_s: f64,
    /// The same if all bytes went over one link.
    pub(super) one_link_s: f64,
    /// The same but for the coordinator's part: the slowest worker and the exchange.
    pub(super) without_coordinator_s: f64,
}

/// Bytes that went from one process to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    /// All of them.
    pub(super) bytes: u64,
    /// Those that came to the process to which most came.
    pub(super) most_bytes: u64,
}

impl QueryCost {
    /// Of these runs, which each moved so many bytes. On separate machines the
    /// coordinator's part, the slowest worker's and the way of the bytes to the machine
    /// to which most come are taken one after the other: they overlap, so that it is rather less.
    pub(super) fn new(query: usize, runs: &[Run], moved: Moved, link_bits_per_s: f64) -> Self {
        let of = |get: fn(&Run) -> f64| median(&runs.iter().map(get).collect::<Vec<f64>>());
        let (coordinator_s, slowest_s) = (of(|run| run.coordinator_s), of(Run::slowest_s));
        let with_link = |bytes: u64| slowest_s + bytes as f64 * 8.0 / link_bits_per_s;
        Self {
            query,
            wall_s: of(|run| run.wall_s),
            coordinator_s,
            workers_s: of(Run::workers_s),
            slowest_s,
            bytes: moved.bytes,
            predicted_s: coordinator_s + with_link(moved.most_bytes),
            one_link_s: coordinator_s + with_link(moved.bytes),
            without_coordinator_s: with_link(moved.most_bytes),
        }
    }
}

/// All queries with so many workers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    pub(super) workers: usize,
    /// Queries whose answer was right.
    pub(super) right: usize,
    /// Sums over all queries.
    pub(super) wall_s: f64,
    pub(super) cpu_s: f64,
    pub(super) bytes: u64,
    pub(super) predicted_s: f64,
    pub(super) one_link_s: f64,
    pub(super) without_coordinator_s: f64,
    /// What the slowest worker of each query takes of the CPU seconds of all workers:
    /// with n workers 1/n where all take as much.
    pub(super) share: f64,
    pub(super) queries: Vec<QueryCost>,
}

impl Step {
    /// The queries together.
    pub(super) fn new(workers: usize, right: usize, queries: Vec<QueryCost>) -> Self {
        let sum = |get: fn(&QueryCost) -> f64| queries.iter().map(get).sum::<f64>();
        let workers_s = sum(|query| query.workers_s);
        Self {
            workers,
            right,
            wall_s: sum(|query| query.wall_s),
            cpu_s: sum(|query| query.coordinator_s) + workers_s,
            bytes: queries.iter().map(|query| query.bytes).sum(),
            predicted_s: sum(|query| query.predicted_s),
            one_link_s: sum(|query| query.one_link_s),
            without_coordinator_s: sum(|query| query.without_coordinator_s),
            share: sum(|query| query.slowest_s) / workers_s,
            queries,
        }
    }

    /// How many times as fast as `base` all queries together would be.
    pub(super) fn speedup(&self, base: &Self) -> f64 {
        base.predicted_s / self.predicted_s
    }

    /// The same of the query at this place.
    pub(super) fn speedup_of(&self, base: &Self, place: usize) -> f64 {
        let predicted_s = |step: &Self| step.queries.get(place).map_or(f64::NAN, |query| query.predicted_s);
        predicted_s(base) / predicted_s(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(coordinator_s: f64, workers_s: &[f64]) -> Run {
        Run { wall_s: 1.0, coordinator_s, workers_s: workers_s.to_vec() }
    }

    fn moved(bytes: u64, most_bytes: u64) -> Moved {
        Moved { bytes, most_bytes }
    }

    #[test]
    fn the_slowest_worker_is_that_of_each_run() {
        // Each time another one has all of the work.
        let runs = [run(0.5, &[2.0, 0.0]), run(0.5, &[0.0, 2.0]), run(0.5, &[2.0, 0.0])];
        let cost = QueryCost::new(7, &runs, moved(0, 0), 1e10);
        assert_eq!((cost.query, cost.slowest_s, cost.workers_s, cost.predicted_s), (7, 2.0, 2.0, 2.5));
    }

    #[test]
    fn bytes_take_as_long_as_the_link_needs() {
        // Two gigabytes, of which half comes to one machine, over ten gigabits a second.
        let moved = moved(2_000_000_000, 1_000_000_000);
        let cost = QueryCost::new(1, &[run(0.25, &[1.0, 0.5])], moved, 1e10);
        assert_eq!(cost.predicted_s, 0.25 + 1.0 + 0.8);
        assert_eq!(cost.without_coordinator_s, 1.0 + 0.8);
        assert_eq!(cost.one_link_s, 0.25 + 1.0 + 1.6);
    }

    #[test]
    fn a_step_is_the_sum_of_its_queries_and_is_faster_by_what_is_predicted() {
        let step = |workers: usize, costs: [&[f64]; 2]| {
            let queries = [1, 2].into_iter().zip(costs);
            let cost = |(query, workers_s)| {
                QueryCost::new(query, &[run(0.5, workers_s)], moved(10, 5), f64::INFINITY)
            };
            Step::new(workers, 2, queries.map(cost).collect())
        };
        let one = step(1, [&[3.5], &[1.5]]);
        let two = step(2, [&[1.5, 2.0], &[0.5, 0.5]]);
        assert_eq!((one.predicted_s, one.cpu_s, one.share, one.bytes), (6.0, 6.0, 1.0, 20));
        assert_eq!((two.predicted_s, two.cpu_s), (3.5, 5.5));
        assert_eq!(two.share, 2.5 / 4.5);
        assert_eq!(two.speedup(&one), 6.0 / 3.5);
        assert_eq!((two.speedup_of(&one, 1), one.speedup_of(&one, 0)), (2.0, 1.0));
        assert!(two.speedup_of(&one, 2).is_nan());
    }
}
