//! Columns of files that nobody declared.

use std::io::Read;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::reader::infer_json_schema;
use datafusion::execution::SessionState;
use shoal_data::ImportRoots;
use shoal_data::load::{SourceFile, arrow_format, read_footer, text};

use super::{FileFormat, FileKind, read};
use crate::Error;

/// Records that are looked at.
const RECORDS_MAX: usize = 10_000;
/// Bytes that are looked at.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The columns of the first file at `location`: as its footer says for
/// Parquet, and guessed from 10,000 records for CSV (whose first line are
/// names, unless HEADER says otherwise) and JSON.
///
/// # Errors
/// `NotFound` and `Invalid`, naming the file.
pub async fn infer_columns(
    state: &SessionState,
    roots: &ImportRoots,
    location: &str,
    format: &FileFormat,
) -> Result<SchemaRef, Error> {
    let files = read::find(state, roots, location).await?;
    let format = format.clone();
    let inferred = tokio::task::spawn_blocking(move || match files.first() {
        Some(first) => infer(first, &format),
        None => Err(Error::NotFound("there is no file to take columns from".into())),
    });
    inferred.await.map_err(|error| Error::Internal(format!("reading a file's columns: {error}")))?
}

fn infer(file: &SourceFile, format: &FileFormat) -> Result<SchemaRef, Error> {
    let wrong = |error: arrow::error::ArrowError| Error::Invalid(format!("`{}`: {error}", file.name()));
    let schema = match format.kind {
        FileKind::Parquet => {
            let footer = read_footer(file, None)?;
            Schema::new(footer.schema().fields().clone())
        }
        FileKind::Csv => {
            let has_header = format.csv.header.unwrap_or(true);
            let text = text(file, format)?.take(BYTES_MAX);
            let format = arrow_format(&format.csv)?.with_header(has_header);
            format.infer_schema(text, Some(RECORDS_MAX)).map_err(wrong)?.0
        }
        FileKind::Json => {
            let text = text(file, format)?.take(BYTES_MAX);
            infer_json_schema(text, Some(RECORDS_MAX)).map_err(wrong)?.0
        }
    };
    // A column of nulls alone is text until somebody says otherwise.
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Null => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
        _ => Arc::clone(field),
    });
    let schema = Schema::new(fields.collect::<Vec<_>>());
    if schema.fields().is_empty() {
        return Err(Error::Invalid(format!("`{}` has no columns", file.name())));
    }
    Ok(Arc::new(schema))
}
