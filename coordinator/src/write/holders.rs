//! What a write needs to know of the cluster, and to tell it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use shoal_data::SegmentName;
use shoal_data::load::Holders;
use shoal_proto::{WorkerId, WriteId};

use crate::cluster::membership::BEAT_INTERVAL;
use crate::cluster::{Cluster, LiveWorkers};

/// A worker that has not been live for so long is not about to be.
const LOST_AFTER: Duration = BEAT_INTERVAL.saturating_mul(2);

/// The workers, as seen by a write of this coordinator.
pub trait SegmentHolders: Holders {
    /// Whether a worker is live, and not only suspected.
    fn is_live(&self, worker: &WorkerId) -> bool;

    /// Those that can be given work, in order.
    fn able(&self) -> Vec<WorkerId>;

    /// This segment is being written to these workers: do not collect it,
    /// although no table names it.
    fn protect(&self, write: &WriteId, name: SegmentName, workers: &[WorkerId]);

    /// The write is over, committed or not.
    fn unprotect(&self, write: &WriteId);

    /// Nobody needs these segments; they may or may not be on these workers.
    fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>);
}

impl Holders for Cluster {
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
}

impl SegmentHolders for Cluster {
    fn is_live(&self, worker: &WorkerId) -> bool {
        self.live().get(worker).is_some()
    }

    fn able(&self) -> Vec<WorkerId> {
        let drained = self.drained();
        let live = self.live();
        let able = live.workers.iter().filter(|worker| !worker.wants_drain && !drained.contains(&worker.id));
        able.map(|worker| worker.id.clone()).collect()
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
