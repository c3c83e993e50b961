//! What a write needs to know of the workers that will hold its segments, and
//! to tell.

use bytes::Bytes;
use futures::future::BoxFuture;
use shoal_proto::cluster::StageHeader;
use shoal_proto::{Failure, WorkerId};

use crate::SegmentName;

/// The workers, as seen by a write.
pub trait Holders: Send + Sync {
    /// Where a worker is reached that is live, or only suspected.
    fn address(&self, worker: &WorkerId) -> Option<String>;

    /// Returns when the worker can be reached.
    fn joined<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()>;

    /// Returns when the worker is not live and does not become so soon: it is
    /// silent, gone, or not to be reached.
    fn lost<'a>(&'a self, worker: &'a WorkerId) -> BoxFuture<'a, ()>;

    /// A call to this worker failed.
    fn suspect(&self, worker: &WorkerId, why: &str);

    /// Makes a segment durable here as its header says, where this process is that
    /// worker: the id of the disk on which it is then. None where it is another one.
    /// Who waits for it gives it up after a while.
    fn store_here<'a>(
        &'a self,
        _worker: &'a WorkerId,
        _header: &'a StageHeader,
        _bytes: &'a Bytes,
    ) -> Option<BoxFuture<'a, Result<String, Failure>>> {
        None
    }
}

/// Whoever keeps the segments of a write from being collected before a table
/// names them.
pub trait Announce: Send + Sync {
    /// A segment of this name is about to be written to these workers. Returns
    /// when it will not be collected.
    fn announce<'a>(
        &'a self,
        name: SegmentName,
        workers: &'a [WorkerId],
    ) -> BoxFuture<'a, Result<(), Failure>>;
}
