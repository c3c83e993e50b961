//! The names that completion offers: schemas, relations, columns, functions
//! and settings, read from `information_schema`.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;

use super::{Client, ClientError};

/// A table, view, external or system table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// What can be named in a statement, as it was when it was last read.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Relations and their columns, in order.
    pub relations: BTreeMap<Relation, Vec<String>>,
    /// Functions.
    pub functions: BTreeSet<String>,
    /// Names that `SET` takes.
    pub settings: BTreeSet<String>,
}

impl Names {
    /// Reads all names. A part that the coordinator does not have stays
    /// empty.
    ///
    /// # Errors
    /// When columns cannot be read.
    pub async fn load(client: &Client) -> Result<Self, ClientError> {
        let mut names = Self::default();
        let columns = client
            .collect(
                "SELECT table_schema, table_name, column_name FROM information_schema.columns \
                 ORDER BY table_schema, table_name, ordinal_position",
            )
            .await?;
        for row in text_rows(&columns) {
            let [Some(schema), Some(name), Some(column)] = row.as_slice() else {
                continue;
            };
            let relation = Relation { schema: schema.clone(), name: name.clone() };
            names.relations.entry(relation).or_default().push(column.clone());
        }
        if let Ok(batches) =
            client.collect("SELECT DISTINCT routine_name FROM information_schema.routines").await
        {
            names.functions.extend(text_rows(&batches).into_iter().flatten().flatten());
        }
        if let Ok(batches) = client.collect("SELECT name FROM information_schema.df_settings").await {
            names.settings.extend(text_rows(&batches).into_iter().flatten().flatten());
        }
        Ok(names)
    }

    /// All schemas that have a relation.
    pub fn schemas(&self) -> BTreeSet<&str> {
        self.relations.keys().map(|relation| relation.schema.as_str()).collect()
    }
}

/// The rows of a small result as text; NULL is none.
pub(crate) fn text_rows(batches: &[RecordBatch]) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<Option<ArrayRef>> =
            batch.columns().iter().map(|column| cast(column, &DataType::Utf8).ok()).collect();
        for row in 0..batch.num_rows() {
            let cell = |column: &Option<ArrayRef>| {
                let texts = column.as_ref()?.as_string_opt::<i32>()?;
                texts.is_valid(row).then(|| texts.value(row).to_owned())
            };
            rows.push(columns.iter().map(cell).collect());
        }
    }
    rows
}
