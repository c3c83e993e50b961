//! How many queries run at once. The rest wait in the order in which they
//! came; a full queue refuses at once, and nobody waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Error;

/// The gate before execution. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    running_max: usize,
    queue_max: usize,
    timeout: Duration,
    permits: Arc<Semaphore>,
    /// Tickets drawn and tickets that left the queue: their difference is its
    /// length, and a waiter's place is its ticket less those that left.
    drawn: Arc<AtomicU64>,
    left: Arc<AtomicU64>,
}

/// The right to run; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// Leaves the queue when dropped, however the wait ends.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// At most `running_max` at once and `queue_max` waiting, each for at most
    /// `timeout`.
    pub fn new(running_max: usize, queue_max: usize, timeout: Duration) -> Self {
        Self {
            running_max,
            queue_max,
            timeout,
            permits: Arc::new(Semaphore::new(running_max)),
            drawn: Arc::default(),
            left: Arc::default(),
        }
    }

    /// Queries that wait now.
    pub fn waiting(&self) -> usize {
        let waiting = self.drawn.load(Ordering::Relaxed).saturating_sub(self.left.load(Ordering::Relaxed));
        usize::try_from(waiting).unwrap_or(usize::MAX)
    }

    /// Waits for a turn. `at_place` is told the ticket, from which
    /// [`Admission::place`] computes the place in the queue.
    ///
    /// # Errors
    /// `Exhausted` where the queue is full, `Timeout` where the wait was too
    /// long; each says the limit and the setting. `Stopping` once it is closed.
    pub async fn admit(&self, at_place: impl FnOnce(u64)) -> Result<Permit, Error> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(Permit { _permit: permit });
        }
        if self.is_closed() {
            return Err(Error::Stopping);
        }
        if self.waiting() >= self.queue_max {
            return Err(Error::Exhausted(format!(
                "{} queries run and {} wait, which is all that this coordinator takes; try again later, or raise \
                 --max-queries or --queue-limit",
                self.running_max, self.queue_max
            )));
        }
        at_place(self.drawn.fetch_add(1, Ordering::Relaxed));
        let waiting = Waiting(&self.left);
        let permit = tokio::time::timeout(self.timeout, Arc::clone(&self.permits).acquire_owned()).await;
        drop(waiting);
        match permit {
            Ok(Ok(permit)) => Ok(Permit { _permit: permit }),
            Ok(Err(_closed)) => Err(Error::Stopping),
            Err(_) => Err(Error::Timeout(format!(
                "the query waited {:?} for one of {} places and got none; try again later, or raise --max-queries or \
                 --queue-timeout",
                self.timeout, self.running_max
            ))),
        }
    }

    /// Admits nobody from now on; those who wait are refused.
    pub fn close(&self) {
        self.permits.close();
    }

    /// Whether nobody is admitted any more.
    pub fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    /// The place in the queue of a ticket, from 1.
    pub fn place(&self, ticket: u64) -> usize {
        usize::try_from((ticket + 1).saturating_sub(self.left.load(Ordering::Relaxed)).max(1))
            .unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_is_in_order_and_bounded() {
        let admission = Admission::new(1, 1, Duration::from_secs(5));
        let running = admission.admit(|_| ()).await.unwrap();
        let (queued, is_queued) = tokio::sync::oneshot::channel();
        let second = {
            let admission = admission.clone();
            tokio::spawn(async move { admission.admit(|ticket| queued.send(ticket).unwrap()).await })
        };
        let ticket = is_queued.await.unwrap();
        assert_eq!((admission.waiting(), admission.place(ticket)), (1, 1));
        let full = admission.admit(|_| ()).await.unwrap_err().to_string();
        assert!(full.contains("--queue-limit"), "{full}");
        drop(running);
        drop(second.await.unwrap().unwrap());
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test]
    async fn who_waits_is_refused_when_it_closes_and_who_runs_goes_on() {
        let admission = Admission::new(1, 1, Duration::from_secs(5));
        let running = admission.admit(|_| ()).await.unwrap();
        let (queued, is_queued) = tokio::sync::oneshot::channel();
        let waiting = {
            let admission = admission.clone();
            tokio::spawn(async move { admission.admit(|ticket| queued.send(ticket).unwrap()).await })
        };
        is_queued.await.unwrap();
        assert!(!admission.is_closed());
        admission.close();
        assert!(admission.is_closed());
        let refused = waiting.await.unwrap().unwrap_err();
        assert!(matches!(refused, Error::Stopping), "{refused}");
        drop(running);
        let refused = admission.admit(|_| ()).await.unwrap_err();
        assert!(matches!(refused, Error::Stopping), "{refused}");
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let admission = Admission::new(1, 4, Duration::from_millis(50));
        let _running = admission.admit(|_| ()).await.unwrap();
        let error = admission.admit(|_| ()).await.unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        assert_eq!(admission.waiting(), 0);
    }
}
