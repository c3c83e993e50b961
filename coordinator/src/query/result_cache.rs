//! Results that are kept in memory, so that the same query over the same rows is
//! answered without being run again. They are never stale: a result is an answer
//! only where each name of its query means what it meant, and each table has the
//! segments that were read.
//!
//! What is read of a snapshot is said by who asks: nothing here knows which one is
//! the newest.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use parking_lot::Mutex;

use self::copied::copied;
use self::kept::{Charge, Kept};
use super::attempt::stopped;
use super::certificate::Certificate;
use super::registry::Running;
use crate::catalog::State;

mod copied;
mod grounds;
mod kept;

pub use grounds::Grounds;
pub use kept::{CacheUsage, ResultKey};

/// The part of the memory that one result may take: a sixteenth.
const RESULT_PART: usize = 16;
/// The part of the memory for results whose rows are still coming: a quarter.
const FILLING_PART: usize = 4;

/// The results that one coordinator keeps. Cheap to clone.
#[derive(Clone)]
pub struct ResultCache(Arc<Inner>);

struct Inner {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

/// A result, whole, and what it rests on.
pub struct KeptResult {
    grounds: Grounds,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    certificate: Option<Arc<Certificate>>,
    _charge: Charge,
}

impl ResultCache {
    /// Keeps results in so much memory: those that are still coming, too. None in 0.
    pub fn new(bytes_max: usize) -> Self {
        let kept = Kept::new(bytes_max - bytes_max / FILLING_PART, bytes_max / FILLING_PART);
        Self(Arc::new(Inner { bytes_max, kept: Mutex::new(kept) }))
    }

    /// Whether anything is ever kept.
    pub fn is_on(&self) -> bool {
        self.0.bytes_max > 0
    }

    /// The kept result of a query, where it is right in this state. One that is not
    /// is forgotten.
    pub fn find(&self, key: &ResultKey, state: &State) -> Option<Arc<KeptResult>> {
        let found = self.0.kept.lock().find(key)?;
        // Outside of the lock: it may be the first to ask about a large table.
        if found.grounds.hold_in(state) {
            return Some(found);
        }
        self.0.kept.lock().forget(key, &found);
        None
    }

    /// A query was answered with a kept result.
    pub fn hit(&self) {
        self.0.kept.lock().hit();
    }

    /// Begins to keep the result of a query that was not there.
    pub fn fill(&self, key: ResultKey, grounds: Grounds) -> Filling {
        self.0.kept.lock().miss();
        Filling { cache: self.clone(), key: Arc::new(key), grounds, batches: Vec::new(), bytes: 0 }
    }

    /// Forgets what cannot be an answer in this state or any later one.
    pub fn forget_outdated(&self, state: &State) {
        let all = self.0.kept.lock().all();
        for (key, result) in all {
            let Some(result) = result.upgrade() else { continue };
            if !result.grounds.hold_in(state) {
                self.0.kept.lock().forget(&key, &result);
            }
        }
    }

    /// What it holds, and what it was good for.
    pub fn usage(&self) -> CacheUsage {
        let usage = self.0.kept.lock().usage();
        CacheUsage { bytes_max: self.0.bytes_max, ..usage }
    }

    fn result_bytes_max(&self) -> usize {
        self.0.bytes_max / RESULT_PART
    }
}

/// A result whose rows are still coming. Dropped before its end, it leaves nothing.
pub struct Filling {
    cache: ResultCache,
    key: Arc<ResultKey>,
    grounds: Grounds,
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl Filling {
    /// The same with these rows; none where that is too much.
    pub fn with(mut self, batch: &RecordBatch) -> Option<Self> {
        let room = self.cache.result_bytes_max().saturating_sub(self.bytes);
        let batch = copied(batch, room)?;
        // What its columns share counts for each of them.
        let bytes = batch.get_array_memory_size();
        if bytes > room || !self.cache.0.kept.lock().take_for_filling(bytes) {
            return None;
        }
        self.bytes += bytes;
        self.batches.push(batch);
        Some(self)
    }

    /// All rows have come, and `certificate` says what they rest on. Kept where they are
    /// still an answer in the `newest` state.
    pub fn finish(mut self, schema: SchemaRef, certificate: Option<Arc<Certificate>>, newest: &State) {
        if !self.grounds.hold_in(newest) {
            return;
        }
        let grounds = std::mem::take(&mut self.grounds);
        let batches = std::mem::take(&mut self.batches);
        let certified = certificate.as_ref().map_or(0, |certificate| certificate.bytes());
        let bytes = self.bytes + grounds.bytes() + schema.fields().size() + certified;
        let result = |charge| KeptResult { grounds, schema, batches, certificate, _charge: charge };
        self.cache.0.kept.lock().keep(Arc::clone(&self.key), bytes, result);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.cache.0.kept.lock().give_back(self.bytes);
    }
}

impl KeptResult {
    /// The columns of its rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Its rows once more, for the query that is `running`.
    pub fn rows(self: Arc<Self>, running: Running) -> SendableRecordBatchStream {
        running.answered_from_cache();
        let schema = Arc::clone(&self.schema);
        let rows = futures::stream::unfold(Some((running, 0)), move |state| {
            let next = state.and_then(|(running, place)| self.next(running, place));
            std::future::ready(next)
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    fn next(&self, running: Running, place: usize) -> Option<Given> {
        if running.cancelled().is_cancelled() {
            let error = stopped();
            running.failed(&error.to_string());
            return Some((Err(error.into()), None));
        }
        let Some(batch) = self.batches.get(place) else {
            if let Some(certificate) = &self.certificate {
                let certificate = certificate.as_ref().clone();
                running.record().certify(Certificate { from_cache: true, ..certificate });
            }
            running.finished();
            return None;
        };
        running.count(batch.num_rows(), batch.get_array_memory_size());
        Some((Ok(batch.clone()), Some((running, place + 1))))
    }
}

/// Rows, and which come after them.
type Given = (Result<RecordBatch, DataFusionError>, Option<(Running, usize)>);

#[cfg(test)]
mod tests;
