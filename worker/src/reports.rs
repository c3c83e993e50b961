//! What each coordinator must still be told of the segments here. Every stream
//! to one has reports of its own, and whoever is not connected holds nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use shoal_data::SegmentName;
use tokio::sync::Notify;

/// All who have reports to give.
#[derive(Debug, Default)]
pub(crate) struct Reporters(Mutex<Vec<Weak<Untold>>>);

/// What one coordinator was not told yet; nothing is gathered any more once
/// this is dropped. What comes after [`Reports::skip`] is in it, or in what is
/// read of the segments after that.
#[derive(Debug)]
pub struct Reports(Arc<Untold>);

#[derive(Debug, Default)]
struct Untold {
    fetched: Mutex<Vec<SegmentName>>,
    /// Whether segments were lost, or came late.
    is_to_tell_anew: AtomicBool,
    news: Notify,
}

impl Reporters {
    pub(crate) fn subscribe(&self) -> Reports {
        let reports = Reports(Arc::default());
        let mut reporters = self.0.lock();
        reporters.retain(|untold| untold.strong_count() > 0);
        reporters.push(Arc::downgrade(&reports.0));
        reports
    }

    /// A copy was made.
    pub(crate) fn fetched(&self, name: SegmentName) {
        self.tell(|untold| untold.fetched.lock().push(name));
    }

    /// Every coordinator must be told anew what is here.
    pub(crate) fn tell_anew(&self) {
        self.tell(|untold| untold.is_to_tell_anew.store(true, Ordering::Relaxed));
    }

    fn tell(&self, tell: impl Fn(&Untold)) {
        for untold in self.0.lock().iter().filter_map(Weak::upgrade) {
            tell(&untold);
            untold.news.notify_one();
        }
    }
}

impl Reports {
    /// Copies made since the last call.
    pub fn take_fetched(&self) -> Vec<SegmentName> {
        std::mem::take(&mut self.0.fetched.lock())
    }

    /// Whether segments were lost or came late since the last call: the
    /// coordinator must be told anew what is here.
    pub fn take_lost(&self) -> bool {
        self.0.is_to_tell_anew.swap(false, Ordering::Relaxed)
    }

    /// Passes over what there is: all that is here is about to be told.
    pub fn skip(&self) {
        let _in_what_is_told = (self.take_fetched(), self.take_lost());
    }

    /// Waits until there is something to report.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use shoal_proto::{SegmentId, TableId};

    use super::*;

    fn name(shard: u32) -> SegmentName {
        SegmentName { table: TableId(3), shard, segment: SegmentId::random() }
    }

    #[test]
    fn everybody_is_told_everything_once() {
        let reporters = Reporters::default();
        let first = reporters.subscribe();
        let [early, late] = [0, 1].map(name);
        reporters.fetched(early);
        let second = reporters.subscribe();
        reporters.fetched(late);
        reporters.tell_anew();
        for (reports, fetched) in [(&first, vec![early, late]), (&second, vec![late])] {
            assert!(reports.news().now_or_never().is_some());
            assert_eq!(reports.take_fetched(), fetched);
            assert!(reports.take_lost());
            assert!(reports.take_fetched().is_empty() && !reports.take_lost());
            assert!(reports.news().now_or_never().is_none());
        }
    }

    #[test]
    fn what_is_told_with_all_that_is_here_is_passed_over() {
        let reporters = Reporters::default();
        let (reports, other) = (reporters.subscribe(), reporters.subscribe());
        reporters.fetched(name(0));
        reporters.tell_anew();
        reports.skip();
        assert!(reports.take_fetched().is_empty() && !reports.take_lost());
        assert!(!other.take_fetched().is_empty() && other.take_lost());
    }

    #[test]
    fn whoever_is_gone_holds_nothing() {
        let reporters = Reporters::default();
        for _ in 0..3 {
            drop(reporters.subscribe());
        }
        let _one = reporters.subscribe();
        assert_eq!(reporters.0.lock().len(), 1);
    }
}
