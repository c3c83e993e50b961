//! The coordinator's part, for one attempt: it puts together what tasks have,
//! and hands the whole on to each worker once.

use std::collections::{HashMap, HashSet};
use std::fmt;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::key_filter::{FilterId, KeyFilter};
use super::union::Union;
use crate::query::RuntimeFilter;

/// Filters of an attempt that are put together. Of one more only some bytes are kept: that its
/// keys may be any.
const FILTERS_MAX: usize = 256;

/// Of one attempt: in the context of its plan.
#[derive(Default)]
pub struct RuntimeFilterRelay(Mutex<Relayed>);

#[derive(Default)]
struct Relayed {
    unions: HashMap<FilterId, Union>,
    /// For workers that come later.
    whole: Vec<RuntimeFilter>,
    known: HashSet<String>,
    /// Without a bound of their own: what waits in them is of `whole`, whose bytes it shares.
    workers: Vec<mpsc::UnboundedSender<RuntimeFilter>>,
}

impl fmt::Debug for RuntimeFilterRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeFilterRelay")
    }
}

impl RuntimeFilterRelay {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The filters for a worker; none where they go there already, by the stream
    /// of another task.
    pub fn join(&self, worker: &str) -> Option<mpsc::UnboundedReceiver<RuntimeFilter>> {
        let mut relayed = self.0.lock();
        if !relayed.known.insert(worker.to_owned()) {
            return None;
        }
        let (sender, filters) = mpsc::unbounded_channel();
        for filter in &relayed.whole {
            let _gone = sender.send(filter.clone());
        }
        relayed.workers.push(sender);
        Some(filters)
    }

    /// Takes in what a task has, and sends the filter if that makes it whole.
    pub fn take_in(&self, part: &RuntimeFilter) {
        let (id, filter) = match KeyFilter::from_wire(part) {
            Ok(known) => known,
            Err(error) => return tracing::debug!(%error, "run-time filter refused"),
        };
        let mut relayed = self.0.lock();
        let is_one_more = relayed.unions.len() >= FILTERS_MAX && !relayed.unions.contains_key(&id);
        let filter = if is_one_more { filter.forgotten() } else { filter };
        let Some(whole) = relayed.unions.entry(id).or_default().add(part.task, part.tasks, filter) else {
            return;
        };
        match whole.folded(1).to_wire(id, 0, 1) {
            Ok(whole) => {
                for worker in &relayed.workers {
                    let _gone = worker.send(whole.clone());
                }
                relayed.whole.push(whole);
            }
            Err(error) => tracing::debug!(%error, "run-time filter not sent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use arrow::datatypes::DataType;

    use super::*;
    use crate::runtime_filter::KeyCollector;

    fn part(plan: u64, task: u32, key: i64) -> RuntimeFilter {
        let mut collector = KeyCollector::new(vec![DataType::Int64]).unwrap();
        collector.add(&[Arc::new(Int64Array::from(vec![key]))]).unwrap();
        collector.finish().unwrap().folded(1).to_wire(FilterId { plan, join: 0 }, task, 2).unwrap()
    }

    #[test]
    fn each_worker_gets_the_whole_once_also_one_that_comes_later() {
        let relay = RuntimeFilterRelay::new();
        let mut first = relay.join("a").unwrap();
        assert!(relay.join("a").is_none());
        relay.take_in(&part(1, 0, 10));
        // Of another plan: not the missing one.
        relay.take_in(&part(2, 1, 11));
        assert!(first.try_recv().is_err());
        relay.take_in(&part(1, 1, 12));
        let mut second = relay.join("b").unwrap();
        for filters in [&mut first, &mut second] {
            let (id, filter) = KeyFilter::from_wire(&filters.try_recv().unwrap()).unwrap();
            assert_eq!((id.plan, filter.rows()), (1, 2));
            assert!(filters.try_recv().is_err());
        }
    }

    #[test]
    fn of_more_filters_than_are_put_together_it_is_told_that_they_do_not_come() {
        let relay = RuntimeFilterRelay::new();
        let mut filters = relay.join("a").unwrap();
        for plan in 0..FILTERS_MAX as u64 {
            relay.take_in(&part(plan, 0, 10));
        }
        assert!(filters.try_recv().is_err());
        relay.take_in(&part(1000, 0, 10));
        let (id, filter) = KeyFilter::from_wire(&filters.try_recv().unwrap()).unwrap();
        assert!((id.plan, filter.is_of_any()) == (1000, true));
        // Those before come still, however many wait for the worker.
        for plan in 0..FILTERS_MAX as u64 {
            relay.take_in(&part(plan, 1, 10));
        }
        for plan in 0..FILTERS_MAX as u64 {
            let (id, filter) = KeyFilter::from_wire(&filters.try_recv().unwrap()).unwrap();
            assert!((id.plan, filter.is_of_any()) == (plan, false));
        }
    }

    #[test]
    fn what_is_malformed_is_left_out() {
        let relay = RuntimeFilterRelay::new();
        let mut filters = relay.join("a").unwrap();
        relay.take_in(&RuntimeFilter { bounds: vec![1, 2, 3].into(), ..part(1, 0, 10) });
        relay.take_in(&part(1, 1, 12));
        assert!(filters.try_recv().is_err());
    }
}
