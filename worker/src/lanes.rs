//! The threads that tasks run on: short queries have some of their own, so that they
//! wait for no task that does not give way for a while. Which is which is said by the
//! coordinator, and the same for all tasks of a query.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use shoal_proto::exchange::QueryOptions;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::pulse::{Attempt, Pulses, Still, Watched};

/// Where a worker computes.
#[derive(Clone, Debug)]
pub struct ComputeThreads {
    /// For tasks of most queries, for loads, and for all else that takes long.
    pub long: Handle,
    /// For tasks of short queries.
    pub short: Handle,
}

/// Threads, and whether what they run moves.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    threads: Handle,
    pulses: Pulses,
    /// For what runs on a thread that is not of this lane: one at a time, so that what else that
    /// thread is for goes on.
    elsewhere: Arc<Semaphore>,
}

impl Lane {
    fn new(threads: Handle) -> Self {
        Self { threads, pulses: Pulses::new(), elsewhere: Arc::new(Semaphore::new(1)) }
    }

    /// Runs a task of this query.
    pub(crate) fn spawn<F>(&self, options: &QueryOptions, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.threads.spawn(self.watched(options, task))
    }

    /// Runs a task of this query on the thread that calls this, as far as it comes without a
    /// wait, and what is left of it then like [`Self::spawn`]: all of it where another one is
    /// being run so. None where it is over.
    pub(crate) fn begin<F>(&self, options: &QueryOptions, task: F) -> Option<JoinHandle<F::Output>>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let Ok(_turn) = self.elsewhere.try_acquire() else { return Some(self.spawn(options, task)) };
        let mut task = self.watched(options, task);
        match (&mut task).now_or_never() {
            Some(_over) => None,
            None => Some(self.threads.spawn(task)),
        }
    }

    fn watched<F: Future>(&self, options: &QueryOptions, task: F) -> Watched<F> {
        self.pulses.watch(Attempt { query: options.query, number: options.attempt }, task)
    }

    /// Runs `beat` each `interval` for as long as the threads live: that it does says
    /// that they compute.
    fn beat<F>(&self, interval: Duration, beat: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let pulses = self.pulses.clone();
        self.threads.spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                pulses.runtime_beats();
                beat().await;
            }
        });
    }
}

/// Both. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    long: Lane,
    short: Lane,
    beat_interval: Duration,
}

impl Lanes {
    /// Over these threads; among those for long tasks something else is done each
    /// `interval`.
    pub(crate) fn new<F>(
        threads: ComputeThreads,
        interval: Duration,
        also: impl Fn() -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let lanes =
            Self { long: Lane::new(threads.long), short: Lane::new(threads.short), beat_interval: interval };
        lanes.long.beat(interval, also);
        lanes.short.beat(interval, || std::future::ready(()));
        lanes
    }

    /// Where the tasks of this query run.
    pub(crate) fn of(&self, options: &QueryOptions) -> &Lane {
        if options.is_short { &self.short } else { &self.long }
    }

    /// For how long tasks of each query have not moved.
    pub(crate) fn still(&self) -> Vec<Still> {
        let lanes = [&self.long, &self.short];
        lanes.iter().flat_map(|lane| lane.pulses.still(self.beat_interval)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use shoal_proto::QueryId;
    use shoal_proto::exchange::ExchangeCompression;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);
    const HAPPENS_WITHIN: Duration = Duration::from_secs(20);

    fn one_thread(name: &str) -> Runtime {
        Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
    }

    fn options(is_short: bool) -> QueryOptions {
        let settings = Vec::new();
        QueryOptions {
            query: QueryId::random(),
            attempt: 1,
            memory_limit_bytes: 1,
            is_short,
            compression: ExchangeCompression::default(),
            settings,
        }
    }

    /// Holds up the only thread of a lane; which query that is, and what lets it go on.
    fn block(lanes: &Lanes, is_short: bool) -> (QueryOptions, mpsc::Sender<()>) {
        let options = options(is_short);
        let (go_on, stands_still) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        lanes.of(&options).spawn(&options, async move {
            begun.send(()).unwrap();
            assert!(stands_still.recv().is_err());
        });
        has_begun.recv_timeout(HAPPENS_WITHIN).unwrap();
        (options, go_on)
    }

    #[test]
    fn what_begins_on_the_caller_s_thread_stays_there_until_it_waits() {
        let (long, short) = (one_thread("long"), one_thread("short"));
        let threads = ComputeThreads { long: long.handle().clone(), short: short.handle().clone() };
        let lanes = Lanes::new(threads, INTERVAL, || std::future::ready(()));
        let options = options(true);
        let name = || std::thread::current().name().map(str::to_owned);
        let (sender, ran) = mpsc::channel();
        let over = sender.clone();
        assert!(lanes.of(&options).begin(&options, async move { over.send(name()).unwrap() }).is_none());
        assert_eq!(ran.try_recv().unwrap(), name(), "it is over, and was here");

        let (go_on, waits) = tokio::sync::oneshot::channel::<()>();
        let rest = lanes.of(&options).begin(&options, async move {
            sender.send(name()).unwrap();
            waits.await.unwrap();
            sender.send(name()).unwrap();
        });
        assert_eq!(ran.try_recv().unwrap(), name());
        let rest = rest.expect("it waits");
        assert!(lanes.still().iter().any(|still| still.attempt.query == options.query), "it is watched");
        go_on.send(()).unwrap();
        assert_eq!(ran.recv_timeout(HAPPENS_WITHIN).unwrap().as_deref(), Some("short"));
        short.block_on(rest).unwrap();
        assert!(!lanes.still().iter().any(|still| still.attempt.query == options.query));
    }

    #[test]
    fn one_task_at_a_time_begins_on_the_caller_s_thread() {
        let (long, short) = (one_thread("long"), one_thread("short"));
        let threads = ComputeThreads { long: long.handle().clone(), short: short.handle().clone() };
        let lanes = Lanes::new(threads, INTERVAL, || std::future::ready(()));
        let name = || std::thread::current().name().map(str::to_owned);
        let begin = |second: &QueryOptions| {
            let (sender, ran) = mpsc::channel();
            let rest = lanes.of(second).begin(second, async move { sender.send(name()).unwrap() });
            (rest.is_some(), ran.recv_timeout(HAPPENS_WITHIN).unwrap())
        };
        let (first, second) = (options(true), options(true));
        // One that waits is out of the way, on the lane.
        let waits = lanes.of(&first).begin(&first, std::future::pending::<()>()).unwrap();
        assert_eq!(begin(&second), (false, name()));
        waits.abort();

        // The second comes while the first is here, as from another thread of the network.
        let beside = std::thread::scope(|scope| {
            let (here, is_here) = mpsc::channel();
            let (done, is_done) = mpsc::channel();
            let lane = lanes.of(&first).clone();
            let first = &first;
            scope.spawn(move || {
                let over = lane.begin(first, async move {
                    here.send(()).unwrap();
                    is_done.recv_timeout(HAPPENS_WITHIN).unwrap();
                });
                assert!(over.is_none());
            });
            is_here.recv_timeout(HAPPENS_WITHIN).unwrap();
            let beside = begin(&second);
            done.send(()).unwrap();
            beside
        });
        assert_eq!(beside, (true, Some("short".to_owned())));
        assert_eq!(begin(&second), (false, name()), "and it is free again");
    }

    #[test]
    fn a_short_task_runs_while_a_long_one_does_not_give_way_and_the_other_way_round() {
        let (long, short) = (one_thread("long"), one_thread("short"));
        let threads = ComputeThreads { long: long.handle().clone(), short: short.handle().clone() };
        let beats = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&beats);
        let lanes = Lanes::new(threads, INTERVAL, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(())
        });
        for is_blocked_short in [false, true] {
            let (blocking, go_on) = block(&lanes, is_blocked_short);
            let other = options(!is_blocked_short);
            let (sender, ran) = mpsc::channel();
            lanes.of(&other).spawn(&other, async move {
                sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
            });
            let thread = ran.recv_timeout(HAPPENS_WITHIN).unwrap();
            assert_eq!(thread.as_deref(), Some(if is_blocked_short { "long" } else { "short" }));

            // One that comes in the same lane stands still like the one that blocks it,
            // and one in the other lane does not.
            let waiting = options(is_blocked_short);
            let held = lanes.of(&waiting).spawn(&waiting, std::future::pending::<()>());
            let beside = lanes.of(&other).spawn(&other, std::future::pending::<()>());
            let time = |of: &QueryOptions| {
                let still = lanes.still().into_iter().find(|still| still.attempt.query == of.query);
                still.map(|still| still.time).unwrap_or_default()
            };
            let both_stand_still =
                || [&blocking, &waiting].into_iter().all(|of| time(of) > time(&other) + INTERVAL);
            let since = std::time::Instant::now();
            while !both_stand_still() {
                assert!(since.elapsed() < HAPPENS_WITHIN, "{:?}", lanes.still());
                std::thread::sleep(INTERVAL);
            }
            drop(go_on);
            held.abort();
            beside.abort();
        }
        assert!(beats.load(Ordering::Relaxed) > 0);
    }
}
