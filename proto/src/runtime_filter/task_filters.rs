//! The worker's part, for one attempt: what its tasks have gathered waits here
//! for a stream to the coordinator, and what has come for them is found here.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion_distributed::DistributedTaskContext;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::key_filter::{FilterId, KeyFilter};
use crate::query::RuntimeFilter;

/// Parts that wait to be sent. Of more it is only sent that they are not there: these are
/// as many as the attempt's tasks here have joins.
const PARTS_WAITING_MAX: usize = 256;

/// How long a filter is waited for at least. What asks for it is mostly a join that has
/// built one of its partitions, and the others are mostly built at the same time:
/// what is missing then is two messages.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// And at most.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A filter as it is known here.
#[derive(Default)]
struct Slot {
    /// What has come of it: nothing, or the whole.
    come: watch::Sender<Option<Arc<KeyFilter>>>,
    /// Until when it is waited for; none before somebody asks.
    due: Option<Instant>,
}

/// Of one attempt on one worker: in the context of its tasks.
pub struct RuntimeFilters {
    began: Instant,
    slots: Mutex<HashMap<FilterId, Slot>>,
    parts: Mutex<VecDeque<RuntimeFilter>>,
    news: Notify,
}

impl fmt::Debug for RuntimeFilters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeFilters")
    }
}

impl Default for RuntimeFilters {
    fn default() -> Self {
        Self { began: Instant::now(), slots: Mutex::default(), parts: Mutex::default(), news: Notify::new() }
    }
}

impl RuntimeFilters {
    /// Nothing gathered, and nothing come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Until when to wait for these filters. For each it is, whoever asks and how often, as
    /// long again after the first time as the attempt had had tasks here then: other partitions of
    /// the join are seldom built later.
    pub fn due(&self, ids: &[FilterId]) -> Instant {
        let now = Instant::now();
        let due = now + (now - self.began).clamp(WAIT_MIN, WAIT_MAX);
        let mut slots = self.slots.lock();
        let of_each = ids.iter().map(|id| *slots.entry(*id).or_default().due.get_or_insert(due));
        of_each.max().unwrap_or(now)
    }

    /// Those of the attempt that a plan runs in; none where it does not run as
    /// tasks on workers.
    pub fn of(context: &TaskContext) -> Option<Arc<Self>> {
        context.session_config().get_extension::<Self>()
    }

    /// What a task has as keys, all of them.
    ///
    /// # Errors
    /// Those of encoding it; it is then not sent.
    pub fn publish(&self, id: FilterId, context: &Arc<TaskContext>, filter: KeyFilter) -> Result<()> {
        let task = DistributedTaskContext::from_ctx(context);
        let (index, count) = (task.task_index as u32, task.task_count as u32);
        let filter = match self.parts.lock().len() < PARTS_WAITING_MAX {
            true => filter.folded(task.task_count),
            false => filter.forgotten(),
        };
        let part = filter.to_wire(id, index, count)?;
        if count == 1 || filter.is_of_any() {
            // The whole already; other workers get it by way of the coordinator.
            self.put(id, filter);
        }
        self.parts.lock().push_back(part);
        self.news.notify_one();
        Ok(())
    }

    /// The next part to be sent. Several streams may ask; each part goes to one.
    pub async fn next_part(&self) -> RuntimeFilter {
        loop {
            let news = self.news.notified();
            if let Some(part) = self.parts.lock().pop_front() {
                return part;
            }
            news.await;
        }
    }

    /// Takes in a filter that the coordinator has put together.
    pub fn deliver(&self, whole: &RuntimeFilter) {
        match KeyFilter::from_wire(whole) {
            Ok((id, filter)) => self.put(id, filter),
            Err(error) => tracing::debug!(%error, "run-time filter refused"),
        }
    }

    fn put(&self, id: FilterId, filter: KeyFilter) {
        self.slots.lock().entry(id).or_default().come.send_replace(Some(Arc::new(filter)));
    }

    /// Where a filter is found when it has come.
    pub fn slot(&self, id: FilterId) -> watch::Receiver<Option<Arc<KeyFilter>>> {
        self.slots.lock().entry(id).or_default().come.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::DataType;
    use datafusion::prelude::SessionConfig;

    use super::*;
    use crate::runtime_filter::KeyCollector;

    fn filter(key: i64) -> KeyFilter {
        let mut collector = KeyCollector::new(vec![DataType::Int64]).unwrap();
        collector.add(&[Arc::new(Int64Array::from(vec![key]))]).unwrap();
        collector.finish().unwrap()
    }

    fn context(task_index: usize, task_count: usize) -> Arc<TaskContext> {
        let task = Arc::new(DistributedTaskContext { task_index, task_count });
        Arc::new(TaskContext::default().with_session_config(SessionConfig::new().with_extension(task)))
    }

    #[tokio::test]
    async fn the_part_of_one_task_is_not_taken_for_the_whole() {
        let (filters, id) = (RuntimeFilters::new(), FilterId { plan: 1, join: 0 });
        filters.publish(id, &context(1, 2), filter(5)).unwrap();
        assert!(filters.slot(id).borrow().is_none());
        let part = filters.next_part().await;
        assert_eq!((part.task, part.tasks), (1, 2));
        filters.deliver(&filter(6).to_wire(id, 0, 1).unwrap());
        assert_eq!(filters.slot(id).borrow().as_ref().unwrap().rows(), 1);
        assert!(filters.slot(FilterId { plan: 2, join: 0 }).borrow().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_filter_is_waited_for_from_the_first_time_that_it_is_asked_for() {
        let ms = Duration::from_millis;
        for (age, wait) in [(0, 20), (5, 20), (300, 300), (5000, 1000)] {
            let (filters, id) = (RuntimeFilters::new(), FilterId { plan: 1, join: 0 });
            tokio::time::advance(ms(age)).await;
            let due = filters.due(&[id]);
            assert_eq!(due - Instant::now(), ms(wait), "after {age} ms");
            tokio::time::advance(ms(30)).await;
            assert_eq!(filters.due(&[id]), due);
            let other = FilterId { join: 1, ..id };
            assert!(filters.due(&[id, other]) > due && filters.due(&[other]) > due);
        }
    }

    #[tokio::test]
    async fn of_parts_that_cannot_wait_it_is_told_that_they_are_not_there() {
        let (filters, id) = (RuntimeFilters::new(), FilterId { plan: 1, join: 0 });
        for _ in 0..=PARTS_WAITING_MAX {
            filters.publish(id, &context(1, 2), filter(5)).unwrap();
        }
        for number in 0..=PARTS_WAITING_MAX {
            let (_, part) = KeyFilter::from_wire(&filters.next_part().await).unwrap();
            assert_eq!(part.is_of_any(), number == PARTS_WAITING_MAX, "part {number}");
        }
        assert!(filters.slot(id).borrow().as_ref().unwrap().is_of_any(), "nobody waits for it here");
    }

    #[tokio::test]
    async fn what_one_task_alone_has_is_the_whole() {
        let (filters, id) = (RuntimeFilters::new(), FilterId { plan: 1, join: 0 });
        let mut slot = filters.slot(id);
        filters.publish(id, &context(0, 1), filter(5)).unwrap();
        assert!(slot.wait_for(Option::is_some).await.is_ok());
        assert_eq!(filters.next_part().await.tasks, 1);
    }
}
