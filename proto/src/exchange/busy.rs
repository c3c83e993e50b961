//! How long an encoder or decoder is at work that is a stream round a stream: from
//! when something goes in until something comes out or the next is asked for.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use parking_lot::Mutex;

/// Time at work, told by who feeds the work and who takes what comes of it.
#[derive(Debug, Default)]
pub(super) struct Busy {
    since: Option<Instant>,
    total: Duration,
}

impl Busy {
    /// Something went in.
    fn begin(&mut self, now: Instant) {
        self.end(now);
        self.since = Some(now);
    }

    /// Nothing is worked at any more.
    fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.total += now.saturating_duration_since(since);
        }
    }

    /// Something came out: the time at work since the last that did.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        self.end(now);
        std::mem::take(&mut self.total)
    }
}

/// The same stream; what takes its items is at work from each item until it asks
/// for the next.
pub(super) fn feeding<S>(mut items: S, busy: Arc<Mutex<Busy>>) -> impl Stream<Item = S::Item>
where
    S: Stream + Unpin,
{
    futures::stream::poll_fn(move |cx| {
        busy.lock().end(Instant::now());
        let polled = items.poll_next_unpin(cx);
        if matches!(polled, Poll::Ready(Some(_))) {
            busy.lock().begin(Instant::now());
        }
        polled
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_between_in_and_out_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut busy = Busy::default();
        assert_eq!(busy.take(at(5)), Duration::ZERO);
        busy.begin(at(10));
        assert_eq!(busy.take(at(13)), Duration::from_millis(3));
        // Nothing came of the first one: what came of both took this long.
        busy.begin(at(20));
        busy.end(at(21));
        busy.begin(at(30));
        assert_eq!(busy.take(at(32)), Duration::from_millis(3));
        // Waiting for the next, and more that comes of the last.
        busy.end(at(50));
        assert_eq!(busy.take(at(60)), Duration::ZERO);
    }

    #[tokio::test]
    async fn who_is_fed_is_at_work_until_the_next_is_asked_for() {
        let busy = Arc::new(Mutex::new(Busy::default()));
        let mut fed = feeding(futures::stream::iter([1, 2]), Arc::clone(&busy));
        assert_eq!(fed.next().await, Some(1));
        assert!(busy.lock().since.is_some());
        assert_eq!(fed.next().await, Some(2));
        assert_eq!(fed.next().await, None);
        assert!(busy.lock().since.is_none());
    }
}
