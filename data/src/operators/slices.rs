//! Batches in slices that stay small as plain text.

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};

use super::hand_on::HandOn;
use crate::plain_rows::in_pieces;

/// Bytes of a slice as it is in plain text; one row may have more.
const SLICE_BYTES: usize = 8 << 20;

/// Gives rows in slices of a bounded size. Rows may share text, as views and as
/// values of a dictionary: what makes a copy for each of them could need
/// gigabytes for one batch.
#[derive(Debug)]
pub struct InSlices;

impl HandOn for InSlices {
    const NAME: &'static str = "SlicesExec";

    fn of(_partitions: usize) -> Self {
        Self
    }

    fn hand_on(
        &self,
        _partition: usize,
        open: impl FnOnce() -> Result<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream> {
        let input = open()?;
        let schema = input.schema();
        let slices = |batch: RecordBatch| stream::iter(in_pieces(batch, SLICE_BYTES)).map(Ok);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, input.map_ok(slices).try_flatten())))
    }
}
