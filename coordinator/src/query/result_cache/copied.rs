//! Rows that share no memory with others. A slice of a batch keeps all of it, and
//! what came over the wire keeps its whole message: kept results would hold many
//! times what they count.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take;
use shoal_data::plain_rows::encoded_bytes;

/// A copy of a batch; none where it would take more than `room` bytes.
pub(super) fn copied(batch: &RecordBatch, room: usize) -> Option<RecordBatch> {
    if encoded_bytes(batch) > room {
        return None;
    }
    let rows = UInt32Array::from_iter_values(0..u32::try_from(batch.num_rows()).ok()?);
    let columns = batch.columns().iter().map(|column| copied_column(column, &rows));
    let columns = columns.collect::<Option<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options).ok()
}

fn copied_column(column: &ArrayRef, rows: &UInt32Array) -> Option<ArrayRef> {
    let taken = take(column.as_ref(), rows, None).ok()?;
    // Of views only the views were copied, and not the text.
    if let Some(text) = taken.as_string_view_opt() {
        return Some(Arc::new(text.gc()));
    }
    if let Some(binary) = taken.as_binary_view_opt() {
        return Some(Arc::new(binary.gc()));
    }
    Some(taken)
}
