//! Rows as clients get them: types that every client can read, the columns
//! that were announced, and messages of a bounded size where rows allow it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightData, IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use datafusion::common::DataFusionError;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use shoal_data::plain_rows::{conformed, in_pieces, plain_field};
use shoal_proto::Failure;
use tonic::Status;

use super::status::{internal, panicked, status};

/// What `DoGet` answers with.
pub type FlightStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// Bytes of rows in one message, unless a single row has more. Many clients
/// refuse messages over 4 MiB.
const MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// The columns of a query's result as they are announced and sent. Views and
/// dictionaries become plain columns, as JDBC reads neither; every column
/// may hold nulls, as a planner's guess must not fail a right answer.
pub fn result_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> =
        schema.fields().iter().map(|field| plain_field(field).as_ref().clone().with_nullable(true)).collect();
    Arc::new(Schema::new(fields))
}

/// The columns of a table as they are announced: like [`result_schema`], but
/// columns that hold no nulls say so.
pub(super) fn table_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(plain_field).collect::<Vec<_>>()))
}

/// A schema in the form that Flight's messages hold it in.
///
/// # Errors
/// `Internal`.
pub(super) fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let message: IpcMessage = SchemaAsIpc::new(schema, &options).try_into().map_err(internal)?;
    Ok(message.0)
}

/// Encodes batches under the columns `schema`. An empty stream still tells
/// its schema. Dropping the result drops `batches`.
pub fn encoded(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, DataFusionError>> + Send + 'static,
) -> FlightStream {
    let announced = Arc::clone(&schema);
    let pieces = batches
        .map_err(|error| to_flight_error(&error))
        .map_ok(messages_of)
        .try_flatten()
        .map(move |piece| conformed(&announced, &piece?).map_err(FlightError::from))
        .map_ok(messages_of)
        .try_flatten();
    let encoder = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_max_flight_data_size(usize::MAX)
        .build(pieces);
    let guarded = AssertUnwindSafe(encoder).catch_unwind().map(|polled| match polled {
        Ok(Ok(data)) => Ok(data),
        Ok(Err(FlightError::Tonic(status))) => Err(*status),
        Ok(Err(error)) => Err(internal(error)),
        Err(panic) => Err(panicked(panic.as_ref())),
    });
    Box::pin(guarded)
}

/// Puts behind the last row a batch of none that carries what `metadata` gives
/// then. Clients that ask for no metadata see an empty batch, as they may
/// anywhere in a stream; a message without a batch would end some of them.
pub(super) fn with_last_word(
    rows: FlightStream,
    schema: SchemaRef,
    metadata: impl FnOnce() -> Option<Bytes> + Send + 'static,
) -> FlightStream {
    let is_whole = Arc::new(AtomicBool::new(true));
    let watched = {
        let is_whole = Arc::clone(&is_whole);
        rows.inspect(move |message| {
            if message.is_err() {
                is_whole.store(false, Ordering::Relaxed);
            }
        })
    };
    let last = stream::once(async move {
        let metadata = if is_whole.load(Ordering::Relaxed) { metadata() } else { None };
        metadata.map(|metadata| Ok(empty_batch(&schema)?.with_app_metadata(metadata)))
    });
    Box::pin(watched.chain(last.filter_map(std::future::ready)))
}

fn empty_batch(schema: &SchemaRef) -> Result<FlightData, Status> {
    let rows = RecordBatch::new_empty(Arc::clone(schema));
    let messages = batches_to_flight_data(schema, vec![rows]).map_err(internal)?;
    messages.into_iter().last().ok_or_else(|| internal("a batch without a message"))
}

/// Encodes one batch as it is.
pub(super) fn encoded_batch(batch: RecordBatch) -> FlightStream {
    encoded(batch.schema(), stream::once(async move { Ok(batch) }))
}

/// Pieces that fit one message each.
fn messages_of(batch: RecordBatch) -> impl Stream<Item = Result<RecordBatch, FlightError>> {
    stream::iter(in_pieces(batch, MESSAGE_BYTES)).map(Ok)
}

fn to_flight_error(error: &DataFusionError) -> FlightError {
    FlightError::Tonic(Box::new(status(Failure::from_datafusion(error))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, DictionaryArray, Int64Array, StringArray, StringViewArray};
    use arrow::datatypes::{DataType, Int32Type};
    use arrow_flight::decode::FlightRecordBatchStream;

    async fn sent(schema: SchemaRef, batches: Vec<Result<RecordBatch, DataFusionError>>) -> Vec<FlightData> {
        encoded(schema, stream::iter(batches)).try_collect().await.unwrap()
    }

    async fn received(data: Vec<FlightData>) -> Vec<RecordBatch> {
        FlightRecordBatchStream::new_from_flight_data(stream::iter(data.into_iter().map(Ok)))
            .try_collect()
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn views_and_dictionaries_arrive_as_plain_text() {
        let views: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a longer text than twelve"), None]));
        let dictionary: DictionaryArray<Int32Type> = vec!["x", "x"].into_iter().collect();
        let batch =
            RecordBatch::try_from_iter([("v", views), ("d", Arc::new(dictionary) as ArrayRef)]).unwrap();
        let schema = result_schema(&batch.schema());
        assert!(
            schema.fields().iter().all(|field| *field.data_type() == DataType::Utf8 && field.is_nullable())
        );

        let batches = received(sent(Arc::clone(&schema), vec![Ok(batch)]).await).await;
        assert_eq!(batches[0].schema(), schema);
        assert_eq!(
            batches[0].column(0).as_string::<i32>(),
            &StringArray::from(vec![Some("a longer text than twelve"), None])
        );
    }

    #[tokio::test]
    async fn one_wide_row_travels_alone_and_the_others_together() {
        let mut texts = vec!["small".to_owned(); 1000];
        texts[500] = "w".repeat(20 * 1024 * 1024);
        let column: ArrayRef = Arc::new(StringViewArray::from_iter_values(&texts));
        let batch = RecordBatch::try_from_iter([("t", column)]).unwrap();
        let data = sent(result_schema(&batch.schema()), vec![Ok(batch)]).await;
        let wide = data.iter().filter(|message| message.data_body.len() > MESSAGE_BYTES).count();
        assert_eq!(wide, 1);
        assert!(data.len() < 20, "{} messages", data.len());
        let rows: usize = received(data).await.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, 1000);
    }

    #[tokio::test]
    async fn a_slice_of_a_large_batch_is_one_message() {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..4_000_000));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap().slice(3_000_000, 8192);
        let data = sent(result_schema(&batch.schema()), vec![Ok(batch)]).await;
        assert_eq!(data.len(), 2, "the schema and one batch");
    }

    #[tokio::test]
    async fn no_rows_still_tell_their_columns() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let data = sent(Arc::clone(&schema), vec![]).await;
        assert_eq!(Schema::try_from(&data[0]).unwrap(), *schema);
    }

    #[tokio::test]
    async fn an_error_after_rows_reaches_the_client() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let failure = Failure::new(shoal_proto::ErrorCode::Exhausted, "too much").at("w1");
        let schema = result_schema(&batch.schema());
        let results: Vec<_> =
            encoded(schema, stream::iter([Ok(batch), Err(failure.into())])).collect::<Vec<_>>().await;
        let error = results.last().unwrap().as_ref().unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert_eq!(error.message(), "worker w1: too much");
    }

    #[tokio::test]
    async fn the_last_word_is_behind_the_rows_and_only_behind_all_of_them() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let schema = result_schema(&batch.schema());
        let told = |rows: Vec<Result<RecordBatch, DataFusionError>>| {
            let rows = encoded(Arc::clone(&schema), stream::iter(rows));
            with_last_word(rows, Arc::clone(&schema), || Some(Bytes::from_static(b"so it is")))
        };
        let data: Vec<FlightData> = told(vec![Ok(batch.clone())]).try_collect().await.unwrap();
        let words: Vec<_> = data.iter().map(|message| message.app_metadata.as_ref()).collect();
        assert_eq!(words, [b"".as_slice(), b"", b"so it is"]);
        let rows: Vec<usize> = received(data).await.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(rows, [2, 0]);

        let failure = Failure::new(shoal_proto::ErrorCode::Internal, "no");
        let messages: Vec<_> = told(vec![Ok(batch), Err(failure.into())]).collect().await;
        assert!(messages.last().unwrap().is_err(), "an error has the last word");
    }

    #[tokio::test]
    async fn a_panic_below_reaches_the_client() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let batches = stream::iter([1]).map(|_| -> Result<RecordBatch, DataFusionError> { panic!("boom") });
        let results: Vec<_> = encoded(schema, batches).collect().await;
        assert!(results.last().unwrap().as_ref().unwrap_err().message().contains("boom"));
    }
}
