//! Compressed rows are the same rows in fewer bytes, and say of themselves that they are.

use arrow::array::{StringArray, StringViewArray};
use datafusion::common::Result;

use super::*;

/// Rows that come back often, some that do not, and none.
fn rows() -> Vec<RecordBatch> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("v", DataType::Utf8View, true),
    ]));
    [0_i64, 1, 5_000]
        .map(|rows| {
            let keys: ArrayRef =
                Arc::new(Int64Array::from_iter((0..rows).map(|row| (row % 7 > 0).then_some(row))));
            let text = |row: i64| (row % 11 > 0).then(|| format!("the same text {}", row % 13));
            let texts: ArrayRef = Arc::new(StringArray::from_iter((0..rows).map(text)));
            let views: ArrayRef = Arc::new(StringViewArray::from_iter((0..rows).map(text)));
            RecordBatch::try_new(Arc::clone(&schema), vec![keys, texts, views]).unwrap()
        })
        .to_vec()
}

async fn sent_with(compression: Compression) -> Vec<Frame> {
    let batches = rows();
    let schema = batches[0].schema();
    let stream = stream::iter(batches.into_iter().map(Ok));
    let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, stream));
    let (frames, mut sent) = mpsc::channel(64);
    let open = async move { Ok((stream, Arc::new(ReadLog::new()))) };
    drive_stream(open, WORKER, compression, Sending::AsTheyCome, frames, || None).await;
    let mut all = Vec::new();
    while let Some(frame) = sent.recv().await {
        all.push(frame.unwrap());
    }
    all
}

/// The rows that a reader gets, which is not told how they were sent, and their bytes on the wire.
async fn arrived(frames: Vec<Frame>) -> (Vec<RecordBatch>, usize) {
    let metrics = ExecutionPlanMetricsSet::new();
    let batches = decode_frames(
        stream::iter(frames.into_iter().map(Ok)),
        WORKER.to_owned(),
        Arc::new(ReadLog::new()),
        Arrivals::among(&metrics),
        |_metrics| Ok(()),
    );
    let batches: Result<Vec<RecordBatch>> = batches.try_collect().await;
    let bytes = metrics.clone_inner().sum_by_name(WIRE_BYTES).unwrap().as_usize();
    (batches.unwrap(), bytes)
}

#[tokio::test]
async fn compressed_rows_are_the_same_in_fewer_bytes() {
    let (plain, bytes) = arrived(sent_with(Compression::None).await).await;
    let joined =
        |batches: &[RecordBatch]| arrow::compute::concat_batches(&batches[0].schema(), batches).unwrap();
    assert_eq!(joined(&plain), joined(&rows()));
    for compression in [Compression::Lz4, Compression::Zstd] {
        let (rows, compressed_bytes) = arrived(sent_with(compression).await).await;
        assert_eq!(joined(&rows), joined(&plain), "{compression:?}");
        assert!(compressed_bytes * 2 < bytes, "{compression:?}: {compressed_bytes} of {bytes} bytes");
    }
}
