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

/// Parts that wait to be sent. Of one more only that is sent that its keys may be any: at most
/// one for each join of each task here, of some bytes.
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
    first_asked: Option<Instant>,
    /// Until when whoever asked waits.
    due: HashMap<Asker, Instant>,
}

/// Who reads rows that a filter is to leave out: one partition of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    task: usize,
    partition: usize,
}

impl Asker {
    /// A partition of the task that runs in this context.
    pub fn new(context: &Arc<TaskContext>, partition: usize) -> Self {
        Self { task: DistributedTaskContext::from_ctx(context).task_index, partition }
    }
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

    /// Until when `asker` waits for a filter. The same time holds for those `below`, which it
    /// comes to only after that. It is as long again as the attempt has had tasks here, as other
    /// partitions of the join are seldom built later: at least 20 ms, and at most a second after
    /// anybody first asked.
    pub fn due(&self, id: FilterId, below: &[FilterId], asker: Asker) -> Instant {
        let now = Instant::now();
        let due = now + (now - self.began).clamp(WAIT_MIN, WAIT_MAX);
        let mut slots = self.slots.lock();
        let mut due_of = |id| {
            let slot: &mut Slot = slots.entry(id).or_default();
            let last = *slot.first_asked.get_or_insert(now) + WAIT_MAX;
            *slot.due.entry(asker).or_insert(due.min(last))
        };
        for &id in below {
            due_of(id);
        }
        due_of(id)
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
        let has_room = self.parts.lock().len() < PARTS_WAITING_MAX;
        let filter = if has_room { filter.folded(task.task_count) } else { filter.forgotten() };
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
    async fn a_partition_waits_from_when_it_first_asks_and_not_long_after_others_did() {
        let ms = Duration::from_millis;
        for (age, wait, another) in [(0, 20, 30), (5, 20, 30), (300, 300, 320), (5000, 1000, 1000)] {
            let (filters, id) = (RuntimeFilters::new(), FilterId { plan: 1, join: 0 });
            tokio::time::advance(ms(age)).await;
            let (asker, below) = (Asker::new(&context(0, 2), 0), FilterId { join: 1, ..id });
            let began = Instant::now();
            let due = filters.due(id, &[below], asker);
            assert_eq!(due - began, ms(wait), "after {age} ms");
            tokio::time::advance(ms(10)).await;
            assert_eq!(filters.due(id, &[], asker), due);
            assert_eq!(filters.due(below, &[], asker), due, "they are waited for at the same time");
            // Another waits by itself; one that comes late not at all.
            assert_eq!(filters.due(id, &[], Asker::new(&context(0, 2), 1)) - began, ms(another));
            tokio::time::advance(ms(1500)).await;
            assert!(filters.due(id, &[], Asker::new(&context(1, 2), 0)) < Instant::now());
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
