//! Views and dictionaries go through frames as they are: no view becomes plain text and no
//! dictionary its values, and of a view only what it shows is sent.

use arrow::array::{BinaryViewArray, DictionaryArray, Int32Array, StringArray, StringViewArray};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int32Type;

use super::*;

/// Bytes of each text: more than fit in a view itself.
const TEXT_BYTES: usize = 20;
const ROWS: usize = 100;

fn text(row: usize) -> String {
    format!("{row:0TEXT_BYTES$}")
}

/// Text and the same as bytes, each in one buffer; now and then a NULL.
fn views() -> RecordBatch {
    let rows = || (0..ROWS).map(|row| (row % 10 != 7).then(|| text(row)));
    let texts: ArrayRef = Arc::new(rows().collect::<StringViewArray>());
    let bytes: ArrayRef = Arc::new(rows().collect::<BinaryViewArray>());
    RecordBatch::try_from_iter_with_nullable([("s", texts, true), ("b", bytes, true)]).unwrap()
}

/// Text and the same as bytes, no NULL.
fn full_views() -> RecordBatch {
    let texts: ArrayRef = Arc::new((0..ROWS).map(|row| Some(text(row))).collect::<StringViewArray>());
    let bytes: ArrayRef = Arc::new((0..ROWS).map(|row| Some(text(row))).collect::<BinaryViewArray>());
    RecordBatch::try_from_iter([("s", texts), ("b", bytes)]).unwrap()
}

/// The frames of these batches, and what a reader makes of them.
async fn through(batches: &[RecordBatch]) -> (Vec<Frame>, Vec<RecordBatch>) {
    let (schema, given) = (batches[0].schema(), stream::iter(batches.to_vec()).map(Ok));
    let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, given));
    let frames = sent_of(async move { Ok((rows, Arc::new(ReadLog::new()))) }).await;
    let arriving = stream::iter(frames.clone()).map(Ok);
    let reads = Arc::new(ReadLog::new());
    let read = decode_frames(arriving, WORKER.to_owned(), reads, Arrivals::default(), |_metrics| Ok(()));
    (frames, read.try_collect().await.unwrap())
}

/// The columns are of the same types, and hold the same.
fn check_same(read: &[RecordBatch], given: &[RecordBatch]) {
    assert_eq!(read.len(), given.len());
    for (read, given) in read.iter().zip(given) {
        let types =
            |batch: &RecordBatch| batch.columns().iter().map(|it| it.data_type().clone()).collect::<Vec<_>>();
        assert_eq!(types(read), types(given));
        assert_eq!(read.columns(), given.columns());
    }
}

/// Bytes of rows and dictionaries that are sent.
fn body_bytes(frames: &[Frame]) -> usize {
    let bodies = frames.iter().map(|frame| match &frame.part {
        Some(frame::Part::Message(message)) => message.body.len(),
        _ => 0,
    });
    bodies.sum()
}

/// Where the bytes of each view column are, and how many.
fn buffers(batch: &RecordBatch) -> Vec<(*const u8, usize)> {
    let of = |column: &ArrayRef| match column.as_string_view_opt() {
        Some(text) => text.data_buffers().to_vec(),
        None => column.as_binary_view().data_buffers().to_vec(),
    };
    let buffers = batch.columns().iter().flat_map(of);
    buffers.map(|buffer| (buffer.as_ptr(), buffer.len())).collect()
}

#[tokio::test]
async fn views_stay_views_and_come_out_equal() {
    let whole = views();
    let given = [whole.clone(), whole.slice(3, 2), whole.slice(0, 0), whole.slice(50, 50)];
    let (_, read) = through(&given).await;
    // Of a batch without rows there may be one, or none.
    let read: Vec<_> = read.into_iter().filter(|batch| batch.num_rows() > 0).collect();
    let given: Vec<_> = given.into_iter().filter(|batch| batch.num_rows() > 0).collect();
    check_same(&read, &given);
}

#[tokio::test]
async fn what_a_view_does_not_show_is_not_sent() {
    let whole = full_views();
    let few = take_record_batch(&whole, &arrow::array::UInt32Array::from(vec![3, 71, 40])).unwrap();
    let (all, _) = through(std::slice::from_ref(&whole)).await;
    let (frames, read) = through(std::slice::from_ref(&few)).await;
    check_same(&read, std::slice::from_ref(&few));
    let shown = 2 * 3 * TEXT_BYTES;
    let sent = body_bytes(&frames);
    // Beside the text: views of 16 bytes, and what aligns buffers.
    assert!((shown..shown + 800).contains(&sent), "{sent} bytes for {shown}");
    assert!(body_bytes(&all) >= 2 * ROWS * TEXT_BYTES);
}

#[test]
fn views_are_copied_only_where_they_hold_much_more_than_they_show() {
    let whole = full_views();
    let held = buffers(&whole);
    assert_eq!(held.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), [ROWS * TEXT_BYTES; 2]);
    // A quarter more than is shown is not much.
    for rows in [ROWS, 80] {
        let kept = compact(whole.slice(0, rows)).unwrap();
        assert_eq!(buffers(&kept), held, "{rows} rows were copied");
    }
    for rows in [79, 1] {
        let shown = whole.slice(ROWS - rows, rows);
        let copied = compact(shown.clone()).unwrap();
        assert_eq!(copied, shown);
        let bytes: Vec<usize> = buffers(&copied).iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!(bytes, [rows * TEXT_BYTES; 2]);
    }
}

#[test]
fn rows_without_views_are_not_looked_at() {
    let given = batch(1_000).slice(10, 3);
    let kept = compact(given.clone()).unwrap();
    assert!(Arc::ptr_eq(given.column(0), kept.column(0)));
    assert_eq!(kept, given);
    // Also those of no column, of which there are so many.
    let options = RecordBatchOptions::new().with_row_count(Some(7));
    let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
    assert_eq!(compact(none).unwrap().num_rows(), 7);
}

#[tokio::test]
async fn dictionaries_go_through_and_come_out_equal() {
    let dictionary = |keys: Vec<Option<i32>>, values: Vec<&str>| {
        let values = Arc::new(StringArray::from(values));
        let column = DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), values).unwrap();
        RecordBatch::try_from_iter_with_nullable([("d", Arc::new(column) as ArrayRef, true)]).unwrap()
    };
    let first = dictionary(vec![Some(0), Some(1), None, Some(0)], vec!["red", "green", "never"]);
    // Other values under the same keys, more of them, and the first ones again.
    let second = dictionary(vec![Some(1), Some(0)], vec!["blue", "white"]);
    let third = dictionary(vec![Some(3), None], vec!["a", "b", "c", "d"]);
    let given = [first.clone(), second, third, first.slice(1, 2), first];
    let (_, read) = through(&given).await;
    check_same(&read, &given);
    assert!(matches!(read[0].column(0).data_type(), DataType::Dictionary(_, _)));
}
