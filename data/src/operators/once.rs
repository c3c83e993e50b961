//! An input that can be read once only, and says so.

use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::{Result, internal_err, resources_err};
use datafusion::execution::SendableRecordBatchStream;

use super::hand_on::HandOn;

/// Refuses to begin again. A join without an equality that runs out of memory
/// reads its first side anew, and what comes then may be less: files that were
/// opened before are not opened again, and rows of an exchange are gone.
#[derive(Debug)]
pub struct Once {
    /// Of each partition.
    has_begun: Vec<AtomicBool>,
}

impl HandOn for Once {
    const NAME: &'static str = "OnceExec";

    fn of(partitions: usize) -> Self {
        Self { has_begun: (0..partitions).map(|_| AtomicBool::default()).collect() }
    }

    fn hand_on(
        &self,
        partition: usize,
        open: impl FnOnce() -> Result<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream> {
        let Some(has_begun) = self.has_begun.get(partition) else {
            return internal_err!("a {} has no partition {partition}", Self::NAME);
        };
        if has_begun.swap(true, Ordering::Relaxed) {
            return resources_err!(
                "a join without an equality needs more memory for its smaller side than the query may have: \
                 raise shoal.query_memory, or give the join an equality"
            );
        }
        open()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;
    use datafusion::execution::TaskContext;
    use datafusion::physical_plan::ExecutionPlan;
    use datafusion::physical_plan::empty::EmptyExec;

    use crate::operators::OnceExec;

    #[tokio::test]
    async fn what_was_begun_is_not_begun_again() {
        let input = Arc::new(EmptyExec::new(Arc::new(Schema::empty())));
        let once = OnceExec::new(input);
        let context = Arc::new(TaskContext::default());
        assert!(once.execute(0, Arc::clone(&context)).is_ok());
        let message = once.execute(0, context).err().unwrap().to_string();
        assert!(message.contains("shoal.query_memory"), "{message}");
    }
}
