//! What a write needs to know of the cluster, and to tell it.

use shoal_data::SegmentName;
use shoal_proto::{WorkerId, WriteId};

use crate::cluster::Cluster;

/// The workers, as seen by a write.
pub trait SegmentHolders: Send + Sync {
    /// Where a worker is reached; none while it is not live.
    fn address(&self, worker: &WorkerId) -> Option<String>;

    /// A call to this worker failed.
    fn suspect(&self, worker: &WorkerId, why: &str);

    /// These segments are being written: do not collect them, although no
    /// table names them.
    fn protect(&self, write: &WriteId, names: &[SegmentName]);

    /// The write is over, committed or not.
    fn unprotect(&self, write: &WriteId);

    /// Nobody needs these segments; they may or may not be on these workers.
    fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>);
}

impl SegmentHolders for Cluster {
    fn address(&self, worker: &WorkerId) -> Option<String> {
        self.live().get(worker).map(|worker| worker.address.clone())
    }

    fn suspect(&self, worker: &WorkerId, why: &str) {
        Self::suspect(self, worker, why);
    }

    fn protect(&self, write: &WriteId, names: &[SegmentName]) {
        Self::protect(self, write, names.iter().copied());
    }

    fn unprotect(&self, write: &WriteId) {
        Self::unprotect(self, write);
    }

    fn discard(&self, names: Vec<(SegmentName, Vec<WorkerId>)>) {
        Self::discard(self, names);
    }
}
