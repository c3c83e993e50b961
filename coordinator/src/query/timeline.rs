//! Where the time of one query goes by the clock, for who asks: each moment belongs
//! to one part.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use parking_lot::Mutex;
use shoal_proto::exchange::FirstTask;

/// Time by the clock; the parts add up to the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elapsed {
    /// To prepare the query, and from when it was to be run until its last row was handed
    /// on.
    pub total: Duration,
    /// Reading the text, bringing the catalog up to date, and making plans: of all attempts.
    pub plan: Duration,
    /// From when the plan of the last attempt began to run until a worker had taken
    /// the first of its tasks. Nothing where no worker gets any.
    pub dispatch: Duration,
    /// All the rest: for the query's turn, for rows of workers and of what the
    /// coordinator computes, and attempts that came to nothing.
    pub wait: Duration,
    /// Rows that are here put into the spool, taken out of it and handed on.
    pub result: Duration,
}

/// What happens to a query, as it happens. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Timeline(Arc<Mutex<Clock>>);

impl Timeline {
    /// Of a query that was prepared in so long, came to be run at `asked`, and is planned
    /// since.
    pub fn new(prepared: Duration, asked: Instant) -> Self {
        Self(Arc::new(Mutex::new(Clock::new(prepared, asked))))
    }

    /// It is planned from now on.
    pub(crate) fn plans(&self) {
        self.0.lock().plans(Instant::now());
    }

    /// It is not planned any more, or not for now.
    pub(crate) fn planned(&self) {
        self.0.lock().planned(Instant::now());
    }

    /// The plan of an attempt begins to run, the tasks of which `first_task` sees.
    pub(super) fn runs(&self, first_task: FirstTask) {
        self.0.lock().runs(Instant::now(), first_task);
    }

    /// The same rows; when they are asked for and come is seen.
    pub(super) fn watched(&self, mut rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let schema = rows.schema();
        let timeline = self.clone();
        let rows = futures::stream::poll_fn(move |cx| {
            timeline.0.lock().asks(Instant::now());
            let polled = rows.poll_next_unpin(cx);
            if polled.is_ready() {
                timeline.0.lock().has(Instant::now());
            }
            polled
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    /// Where the time went, once the last row was handed on.
    pub fn elapsed(&self) -> Elapsed {
        self.0.lock().elapsed(Instant::now())
    }
}

/// The same, given the time.
#[derive(Debug)]
struct Clock {
    prepared: Duration,
    asked: Instant,
    plan: Duration,
    planning_since: Option<Instant>,
    /// When the last attempt began to run.
    ran_at: Option<Instant>,
    first_task: FirstTask,
    result: Duration,
    /// Since when rows, or their end, are here and no more are asked for.
    has_since: Option<Instant>,
}

impl Clock {
    fn new(prepared: Duration, asked: Instant) -> Self {
        Self {
            prepared,
            asked,
            plan: prepared,
            planning_since: Some(asked),
            ran_at: None,
            first_task: FirstTask::default(),
            result: Duration::ZERO,
            has_since: None,
        }
    }

    fn plans(&mut self, now: Instant) {
        self.planned(now);
        self.planning_since = Some(now);
    }

    fn planned(&mut self, now: Instant) {
        if let Some(since) = self.planning_since.take() {
            self.plan += now.saturating_duration_since(since);
        }
    }

    fn runs(&mut self, now: Instant, first_task: FirstTask) {
        self.planned(now);
        (self.ran_at, self.first_task) = (Some(now), first_task);
        (self.result, self.has_since) = (Duration::ZERO, None);
    }

    fn asks(&mut self, now: Instant) {
        if let Some(since) = self.has_since.take() {
            self.result += now.saturating_duration_since(since);
        }
    }

    fn has(&mut self, now: Instant) {
        self.has_since = Some(now);
    }

    fn elapsed(&mut self, now: Instant) -> Elapsed {
        self.planned(now);
        self.asks(now);
        let total = self.prepared + now.saturating_duration_since(self.asked);
        let dispatch = self
            .ran_at
            .zip(self.first_task.taken_at())
            .map_or(Duration::ZERO, |(ran, taken)| taken.saturating_duration_since(ran));
        let (plan, result) = (self.plan, self.result);
        let wait = total.saturating_sub(plan + dispatch + result);
        Elapsed { total, plan, dispatch, wait, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_moment_belongs_to_one_part() {
        let start = Instant::now();
        let at = |millis| start + ms(millis);
        let mut clock = Clock::new(ms(100), start);
        clock.planned(at(3));
        // Its turn.
        clock.plans(at(10));
        clock.planned(at(12));
        clock.plans(at(13));
        let first_task = FirstTask::default();
        clock.runs(at(20), first_task.clone());
        clock.asks(at(20));
        first_task.taken(at(24));
        clock.has(at(40));
        // Into the spool.
        clock.asks(at(41));
        clock.has(at(60));
        clock.asks(at(62));
        // The end; then out of the spool.
        clock.has(at(70));
        let expected = Elapsed {
            total: ms(175),
            plan: ms(100 + 3 + 2 + 7),
            dispatch: ms(4),
            wait: ms(51),
            result: ms(8),
        };
        assert_eq!(clock.elapsed(at(75)), expected);
        assert_eq!(expected.plan + expected.dispatch + expected.wait + expected.result, expected.total);
    }

    #[test]
    fn what_an_attempt_had_that_came_to_nothing_is_waited_for() {
        let start = Instant::now();
        let at = |millis| start + ms(millis);
        let mut clock = Clock::new(ms(0), start);
        let lost = FirstTask::default();
        clock.runs(at(5), lost.clone());
        lost.taken(at(6));
        clock.asks(at(6));
        clock.has(at(10));
        clock.asks(at(30));
        // The worker is lost.
        clock.plans(at(50));
        clock.runs(at(55), FirstTask::default());
        clock.asks(at(55));
        clock.has(at(80));
        let expected = Elapsed { total: ms(80), plan: ms(10), dispatch: ms(0), wait: ms(70), result: ms(0) };
        assert_eq!(clock.elapsed(at(80)), expected);
    }
}
