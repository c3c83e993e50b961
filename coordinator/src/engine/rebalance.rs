//! REBALANCE: the shards that go elsewhere, as rows.

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use shoal_proto::WorkerId;

use super::Engine;
use crate::cluster::Rebalanced;
use crate::{Error, Session};

/// The columns of the answer.
pub(super) fn moved_columns() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        text("table"),
        Field::new("shard", DataType::UInt32, false),
        text("from"),
        text("to"),
    ]))
}

impl Engine {
    /// One row for each shard that goes elsewhere; a notice where none does.
    pub(super) async fn rebalance(&self, session: &Session) -> Result<RecordBatch, Error> {
        let Rebalanced { moved, why_not } = self.cluster.rebalance().await?;
        if moved.is_empty() {
            session.notice(format!("nothing to move: {why_not}"));
        }
        let names = |workers: &[WorkerId]| {
            let names: Vec<&str> = workers.iter().map(WorkerId::as_str).collect();
            names.join(", ")
        };
        let tables: StringArray = moved.iter().map(|moved| Some(moved.table.as_str())).collect();
        let shards: UInt32Array = moved.iter().map(|moved| Some(moved.shard)).collect();
        let from: StringArray = moved.iter().map(|moved| Some(names(&moved.from))).collect();
        let to: StringArray = moved.iter().map(|moved| Some(names(&moved.to))).collect();
        RecordBatch::try_new(
            moved_columns(),
            vec![Arc::new(tables), Arc::new(shards), Arc::new(from), Arc::new(to)],
        )
        .map_err(|error| Error::Internal(error.to_string()))
    }
}
