//! What a write needs to know of the cluster, and to tell it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use shoal_data::SegmentName;
use shoal_proto::{WorkerId, WriteId};

use crate::cluster::membership::BEAT_INTERVAL;
use crate::cluster::{Cluster, LiveWorkers};

/// A worker that has not been live for so long is not about to be.
const LOST_AFTER: Duration = BEAT_INTERVAL.saturating_mul(2);

/// The workers, as seen by a write.
pub trait SegmentHolders: Send + Sync {
    /// Where a worker is reached that is live, or only suspected.
    fn address(&self, worker: &WorkerId) -> Option<String>;

    /// Returns when the worker can be reached.
    fn joined<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()>;

    /// Returns when the worker is not live and does not become so soon: it is
    /// silent, gone, or not to be reached.
    fn lost<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()>;

    /// A call to this worker failed.
    fn suspect(&self, worker: &WorkerId, why: &str);

    /// This segment is being written to these workers: do not collect it,
    /// although no table names it.
    fn protect(&self, write: &WriteId, name: SegmentName, workers: &[WorkerId]);

    /// The write is over, committed or not.
    fn unprotect(&self, write: &WriteId);

    /// Nobody needs these segments; they may or may not be on these workers.
    fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>);
}

impl SegmentHolders for Cluster {
    fn address(&self, worker: &WorkerId) -> Option<String> {
        let live = self.live();
        let suspected = || live.suspected.iter().find(|suspected| suspected.id == *worker);
        live.get(worker).or_else(suspected).map(|worker| worker.address.clone())
    }

    fn joined<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut live = self.watch();
            let is_there = |live: &Arc<LiveWorkers>| {
                live.get(worker).is_some() || live.suspected.iter().any(|suspected| suspected.id == *worker)
            };
            if live.wait_for(is_there).await.is_err() {
                // The cluster is going away, and nobody joins any more.
                std::future::pending().await
            }
        })
    }

    fn lost<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut live = self.watch();
            loop {
                if live.wait_for(|live| live.get(worker).is_none()).await.is_err() {
                    return;
                }
                // A worker that is only suspected beats again soon.
                let is_back = live.wait_for(|live| live.get(worker).is_some());
                let is_back = matches!(tokio::time::timeout(LOST_AFTER, is_back).await, Ok(Ok(_)));
                if !is_back {
                    return;
                }
            }
        })
    }

    fn suspect(&self, worker: &WorkerId, why: &str) {
        Self::suspect(self, worker, why);
    }

    fn protect(&self, write: &WriteId, name: SegmentName, workers: &[WorkerId]) {
        Self::protect(self, write, name, workers);
    }

    fn unprotect(&self, write: &WriteId) {
        Self::unprotect(self, write);
    }

    fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        Self::discard(self, names);
    }
}
