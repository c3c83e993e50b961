//! Batches that hold no more than their own rows.

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, MutableArrayData, RecordBatch, RecordBatchOptions, make_array,
};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use shoal_proto::exchange;

use super::hand_on::HandOn;

/// Gives rows in batches that hold little beyond them. Groups leave their operator as
/// slices of one batch of all of them, and a sort counts for each slice what it shares
/// with the others: it would spill after every few, or not begin where memory is little.
#[derive(Debug, Default)]
pub struct Compact {
    metrics: ExecutionPlanMetricsSet,
}

impl HandOn for Compact {
    const NAME: &'static str = "CompactExec";

    fn of(_partitions: usize) -> Self {
        Self::default()
    }

    fn hand_on(
        &self,
        partition: usize,
        open: impl FnOnce() -> Result<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream> {
        let input = open()?;
        let schema = input.schema();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let own = input.and_then(move |batch| {
            let took = metrics.elapsed_compute().timer();
            let own = own_rows(batch);
            took.done();
            std::future::ready(own.inspect(|own| metrics.record_output(own.num_rows())))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, own)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The batch, with columns copied that hold much more than its rows, or may do so.
fn own_rows(batch: RecordBatch) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let columns = batch.columns().iter().map(own_values).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    // Of views only what points to text is copied above; this copies the text.
    exchange::compact(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

fn own_values(column: &ArrayRef) -> Result<ArrayRef> {
    let data = column.to_data();
    let (held_bytes, own_bytes) = match column.data_type() {
        // The text of views is seen to after this, and values of a dictionary are shared on purpose.
        DataType::Utf8View | DataType::BinaryView | DataType::Dictionary(_, _) => {
            data.buffers().first().map_or((0, 0), |fixed| (fixed.capacity(), fixed.len()))
        }
        // Of lists that says nothing of how much of their values is their own: they are copied always.
        nested if nested.is_nested() => (data.get_buffer_memory_size(), 0),
        _ => match data.get_slice_memory_size() {
            Ok(own_bytes) => (data.get_buffer_memory_size(), own_bytes),
            // What cannot be told stays as it is.
            Err(_) => (0, 0),
        },
    };
    if held_bytes <= own_bytes + own_bytes / 4 {
        return Ok(ArrayRef::clone(column));
    }
    let mut own = MutableArrayData::new(vec![&data], false, column.len());
    own.try_extend(0, 0, column.len())?;
    let mut own = make_array(own_text(own.freeze())?);
    own.shrink_to_fit();
    Ok(own)
}

/// The same with text of its own: as views it is shared with all that it was copied from.
fn own_text(data: ArrayData) -> Result<ArrayData> {
    if !has_views(&data) {
        return Ok(data);
    }
    match data.data_type() {
        DataType::Utf8View => Ok(make_array(data).as_string_view().gc().into_data()),
        DataType::BinaryView => Ok(make_array(data).as_binary_view().gc().into_data()),
        _ => {
            let children = data.child_data().iter().cloned().map(own_text).collect::<Result<Vec<_>>>()?;
            Ok(data.into_builder().child_data(children).build()?)
        }
    }
}

fn has_views(data: &ArrayData) -> bool {
    match data.data_type() {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::Dictionary(_, _) => false,
        _ => data.child_data().iter().any(has_views),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BooleanArray, Decimal128Array, DictionaryArray, Int64Array, ListArray, ListBuilder, StringArray,
        StringViewArray, StringViewBuilder, StructArray,
    };
    use arrow::datatypes::{Field, Int32Type};
    use datafusion::common::utils::memory::get_record_batch_memory_size;

    use super::*;

    const ROWS: usize = 100_000;

    fn of_all_types() -> RecordBatch {
        let numbers = (0..ROWS as i64).map(|n| (n % 7 != 0).then_some(n));
        let texts = |n: i64| (n % 5 != 0).then(|| format!("{n} is longer than what a view has room for"));
        let lists = (0..ROWS as i32).map(|n| (n % 3 != 0).then(|| vec![Some(n), None]));
        let mut text_lists = ListBuilder::new(StringViewBuilder::new());
        for n in 0..ROWS as i64 {
            (0..n % 4).for_each(|of| text_lists.values().append_option(texts(n + of)));
            text_lists.append(n % 3 != 0);
        }
        let text_lists: ArrayRef = Arc::new(text_lists.finish());
        let within = Arc::new(Field::new("texts", text_lists.data_type().clone(), true));
        let dictionary = (0..ROWS).map(|n| if n % 2 == 0 { "even" } else { "odd" });
        let columns: [(&str, ArrayRef); 9] = [
            ("number", Arc::new(numbers.collect::<Int64Array>())),
            ("decimal", Arc::new((0..ROWS as i128).map(Some).collect::<Decimal128Array>())),
            ("is", Arc::new((0..ROWS).map(|n| Some(n % 3 == 0)).collect::<BooleanArray>())),
            ("text", Arc::new((0..ROWS as i64).map(texts).collect::<StringArray>())),
            ("view", Arc::new((0..ROWS as i64).map(texts).collect::<StringViewArray>())),
            ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))),
            ("texts", Arc::clone(&text_lists)),
            ("struct", Arc::new(StructArray::from(vec![(within, text_lists)]))),
            ("name", Arc::new(dictionary.collect::<DictionaryArray<Int32Type>>())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap()
    }

    #[test]
    fn slices_hold_their_own_rows_only() {
        let all = of_all_types();
        for (first, rows) in [(0, 1000), (51_111, 1000), (ROWS - 3, 3), (7, 0)] {
            let slice = all.slice(first, rows);
            let own = own_rows(slice.clone()).unwrap();
            assert_eq!(own, slice);
            let (held_bytes, before) =
                (get_record_batch_memory_size(&own), get_record_batch_memory_size(&slice));
            let share = before * rows.max(100) / ROWS;
            assert!(held_bytes < share * 2, "{held_bytes} of {before} bytes for {rows} rows");
        }
    }

    #[test]
    fn what_holds_no_more_is_not_copied() {
        // What builders have room for is left to them.
        let all = own_rows(of_all_types()).unwrap();
        let own = own_rows(all.clone()).unwrap();
        let flat = all.columns().iter().filter(|all| !all.data_type().is_nested());
        let flat_own = own.columns().iter().filter(|own| !own.data_type().is_nested());
        for (own, all) in flat_own.zip(flat) {
            assert!(own.to_data().ptr_eq(&all.to_data()), "{}", all.data_type());
        }
    }
}
