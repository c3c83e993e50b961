//! Rows that a query gives on this worker become segments here. What is wrong with the
//! query is told apart from rows that cannot be written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use http::HeaderMap;
use parking_lot::Mutex;
use prost::Message;
use shoal_data::Table;
use shoal_data::load::{from_wire, write};
use shoal_proto::cluster::load_news::News;
use shoal_proto::cluster::{LoadDone, LoadRefused, LoadRows};
use shoal_proto::exchange::ReadLog;
use shoal_proto::query::Frame;
use shoal_proto::{ErrorCode, Failure, WriteId};

use super::holders::{Announced, LoadHolders};
use super::{LoadParts, LoadService};
use crate::execute::OwnRows;

impl LoadService {
    /// Makes segments of the rows of a query whose header is among `headers`.
    ///
    /// # Errors
    /// Those of the query. That rows cannot be written is no error, but what is told.
    pub(super) async fn load_query_rows(
        &self,
        order: LoadRows,
        headers: HeaderMap,
        holders: LoadHolders,
        announced: Arc<Announced>,
    ) -> Result<News, Failure> {
        let LoadParts { execution, .. } = self.parts.as_ref();
        // Also while all rows are there and are being written.
        let _running = execution.running();
        let table: Table = from_wire(&order.table)?;
        let Some(source) = order.source else {
            return Err(Failure::new(ErrorCode::Unsupported, "rows of a kind that is not known here"));
        };
        let OwnRows { rows, reads } = execution.own_rows(headers, source).await?;
        let columns = renamed(&rows.schema(), &order.columns)?;
        let given = Arc::new(AtomicU64::new(0));
        let of_query = Arc::new(Mutex::new(None));
        let watched = {
            let (given, of_query) = (Arc::clone(&given), Arc::clone(&of_query));
            rows.inspect(move |batch| match batch {
                Ok(batch) => _ = given.fetch_add(batch.num_rows() as u64, Ordering::Relaxed),
                Err(error) => *of_query.lock() = Some(Failure::from_datafusion(error)),
            })
        };
        let rows = Box::pin(RecordBatchStreamAdapter::new(columns, watched));
        let context = self.writes(holders);
        let write_id = WriteId::new(order.write_id);
        let first = order.first_shard;
        let written = write(&context, &table, &write_id, first, rows, announced, Arc::default()).await;
        let written = match written {
            Ok(written) => written,
            Err(failure) => return of_query.lock().take().map_or_else(|| Ok(refused(failure)), Err),
        };
        let done = self.loaded(&write_id, &written)?;
        let (rows, read) = (given.load(Ordering::Relaxed), told(&reads).encode_to_vec().into());
        Ok(News::Done(LoadDone { rows, read, ..done }))
    }
}

fn refused(failure: Failure) -> News {
    tracing::warn!(%failure, "rows of a query were not loaded");
    News::Refused(LoadRefused { code: failure.code as u32, message: failure.message })
}

/// All that was read, as it travels with rows otherwise.
fn told(reads: &ReadLog) -> Frame {
    Frame { part: None, reads: reads.news(&mut 0), crossed: reads.crossed_news(&mut 0) }
}

/// The same columns, named as the coordinator's plan names them.
fn renamed(columns: &SchemaRef, names: &[String]) -> Result<SchemaRef, Failure> {
    if columns.fields().len() != names.len() {
        let message =
            format!("rows of {} columns where {} were planned", columns.fields().len(), names.len());
        return Err(Failure::new(ErrorCode::Internal, message));
    }
    let fields = columns.fields().iter().zip(names);
    let fields: Vec<_> = fields.map(|(field, name)| field.as_ref().clone().with_name(name)).collect();
    Ok(Arc::new(Schema::new(fields)))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};
    use shoal_proto::TableId;

    use super::*;

    #[test]
    fn columns_are_called_as_planned_and_are_as_many() {
        let fields =
            vec![Field::new("a + 1", DataType::Int64, true), Field::new("s", DataType::Utf8View, false)];
        let columns = Arc::new(Schema::new(fields));
        let names = ["k".to_owned(), "s".to_owned()];
        let named = renamed(&columns, &names).unwrap();
        assert_eq!(named.field(0), &Field::new("k", DataType::Int64, true));
        assert_eq!(named.field(1), columns.field(1));
        assert_eq!(renamed(&columns, &names[..1]).unwrap_err().code, ErrorCode::Internal);
    }

    #[test]
    fn what_was_read_comes_out_as_it_went_in() {
        let reads = ReadLog::new();
        reads.add_segment(TableId(3), 7);
        reads.add_rows(TableId(3), 50);
        reads.add_crossed(11);
        let frame = Frame::decode(told(&reads).encode_to_vec().as_slice()).unwrap();
        let read = ReadLog::new();
        read.take_in(frame.reads);
        read.take_in_crossed(frame.crossed);
        assert_eq!((read.by_table(), read.crossed_bytes()), (reads.by_table(), 11));
    }
}
