//! Whether tasks still move: how long each has been busy without giving way,
//! and how late the threads are that should run it. A worker can beat, and answer pings,
//! while nothing that it computes comes any further.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_proto::QueryId;

/// What a task or the runtime said last, in milliseconds since the start of
/// the worker; 0 for a task that waits.
type Moment = AtomicU64;

/// The tasks that live.
type Tasks = Vec<(Attempt, Arc<Moment>)>;

/// What a task belongs to. What is left of an earlier attempt says nothing of
/// the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) query: QueryId,
    /// From 1 on.
    pub(crate) number: u32,
}

/// For how long a task of the newest attempt at a query has stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Still {
    pub(crate) attempt: Attempt,
    pub(crate) time: Duration,
}

/// The pulses of all tasks of one lane. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pulses {
    began: Instant,
    tasks: Arc<Mutex<Tasks>>,
    /// When the compute runtime ran something of its own.
    runtime: Arc<Moment>,
}

impl Pulses {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), tasks: Arc::default(), runtime: Arc::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// The compute runtime runs. Call it there, each `interval`.
    pub(crate) fn runtime_beats(&self) {
        self.runtime.store(self.now(), Ordering::Relaxed);
    }

    /// Watches a task for as long as it lives.
    pub(crate) fn watch<F: Future>(&self, attempt: Attempt, task: F) -> Watched<F> {
        let since = Arc::new(Moment::default());
        self.tasks.lock().push((attempt, Arc::clone(&since)));
        Watched { task: Box::pin(task), since, pulses: self.clone() }
    }

    /// For how long tasks of each query's newest attempt have stood still, given
    /// how often the runtime should beat.
    pub(crate) fn still(&self, beat_interval: Duration) -> Vec<Still> {
        let now = self.now();
        let lag = now.saturating_sub(self.runtime.load(Ordering::Relaxed));
        let late = Duration::from_millis(lag).saturating_sub(beat_interval);
        let tasks = self.tasks.lock();
        let mut still: Vec<Still> = Vec::new();
        for (attempt, since) in tasks.iter() {
            let busy = match since.load(Ordering::Relaxed) {
                0 => late,
                since => late.max(Duration::from_millis(now.saturating_sub(since))),
            };
            let said = Still { attempt: *attempt, time: busy };
            match still.iter_mut().find(|other| other.attempt.query == attempt.query) {
                Some(other) if other.attempt == *attempt => other.time = other.time.max(busy),
                Some(other) if other.attempt.number < attempt.number => *other = said,
                Some(_) => {}
                None => still.push(said),
            }
        }
        still
    }
}

/// A task whose polls are timed.
pub(crate) struct Watched<F> {
    task: Pin<Box<F>>,
    since: Arc<Moment>,
    pulses: Pulses,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.since.store(self.pulses.now(), Ordering::Relaxed);
        let polled = self.task.as_mut().poll(cx);
        self.since.store(0, Ordering::Relaxed);
        polled
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.pulses.tasks.lock().retain(|(_, since)| !Arc::ptr_eq(since, &self.since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFTEN: Duration = Duration::from_millis(10);

    fn longest(pulses: &Pulses) -> Option<Duration> {
        pulses.still(OFTEN).into_iter().map(|still| still.time).max()
    }

    #[test]
    fn a_task_that_does_not_give_way_stands_still_and_one_that_waits_does_not() {
        let pulses = Pulses::new();
        let first = Attempt { query: QueryId::random(), number: 1 };
        let busy = pulses.clone();
        let seen = futures::executor::block_on(pulses.watch(first, async move {
            std::thread::sleep(Duration::from_millis(60));
            busy.runtime_beats();
            busy.still(OFTEN)
        }));
        assert!(
            matches!(seen.as_slice(), [still] if still.attempt == first && still.time >= OFTEN * 4),
            "{seen:?}"
        );
        assert_eq!(pulses.still(OFTEN), [], "it is over");

        let waiting = pulses.watch(first, std::future::pending::<()>());
        std::thread::sleep(Duration::from_millis(30));
        pulses.runtime_beats();
        assert!(longest(&pulses).is_some_and(|still| still < OFTEN * 2));
        // Nothing of it is run any more.
        std::thread::sleep(Duration::from_millis(60));
        assert!(longest(&pulses).is_some_and(|still| still >= OFTEN * 4));
        drop(waiting);
    }

    #[test]
    fn what_an_earlier_attempt_left_does_not_count() {
        let pulses = Pulses::new();
        let query = QueryId::random();
        let (first, second) = (Attempt { query, number: 1 }, Attempt { query, number: 2 });
        let other = pulses.clone();
        let seen = futures::executor::block_on(pulses.watch(first, async move {
            std::thread::sleep(Duration::from_millis(60));
            other.runtime_beats();
            let next = other.watch(second, std::future::pending::<()>());
            let seen = other.still(OFTEN);
            drop(next);
            (seen, other.still(OFTEN))
        }));
        let (with_both, with_first) = seen;
        assert!(
            matches!(with_both.as_slice(), [still] if still.attempt == second && still.time < OFTEN * 4),
            "{with_both:?}"
        );
        assert!(
            matches!(with_first.as_slice(), [still] if still.attempt == first && still.time >= OFTEN * 4),
            "{with_first:?}"
        );
    }
}
