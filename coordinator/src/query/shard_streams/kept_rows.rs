//! The rows of one run over a shard that wait until the run is whole.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::memory_pool::MemoryReservation;

/// Rows of one run, with the memory that they take: both go with the run when it is lost
/// or overtaken.
pub(super) struct KeptRows {
    batches: VecDeque<RecordBatch>,
    reservation: MemoryReservation,
}

impl KeptRows {
    /// None yet; their memory is booked as that of `of`, beside it.
    pub(super) fn new(of: &MemoryReservation) -> Self {
        Self { batches: VecDeque::new(), reservation: of.new_empty() }
    }

    /// Keeps these behind the others.
    ///
    /// # Errors
    /// Where there is no memory for them.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        self.reservation.try_grow(batch.get_array_memory_size())?;
        self.batches.push_back(batch);
        Ok(())
    }

    /// The rows in order, and their memory, which is booked for as long as that is held.
    pub(super) fn into_parts(self) -> (VecDeque<RecordBatch>, MemoryReservation) {
        (self.batches, self.reservation)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer, MemoryPool};

    use super::*;

    #[test]
    fn rows_of_lost_runs_leave_their_memory_to_others() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
        let batch = RecordBatch::try_from_iter([("a", numbers)]).unwrap();
        let bytes = batch.get_array_memory_size();
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(2 * bytes));
        let of_shard = MemoryConsumer::new("rows of a shard").register(&pool);
        for _ in 0..3 {
            let mut lost = KeptRows::new(&of_shard);
            lost.push(batch.clone()).unwrap();
            lost.push(batch.clone()).unwrap();
            assert!(lost.push(batch.clone()).is_err(), "more than there is memory for");
            assert_eq!(pool.reserved(), 2 * bytes);
        }
        assert_eq!(pool.reserved(), 0);
        let mut whole = KeptRows::new(&of_shard);
        whole.push(batch.clone()).unwrap();
        let (rows, booked) = whole.into_parts();
        assert_eq!((rows.len(), pool.reserved()), (1, bytes));
        drop(booked);
        assert_eq!(pool.reserved(), 0);
    }
}
