//! Local files, read and written with the coordinator's own readers and
//! writers, so that `\copy` and `COPY` understand the same files alike.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use shoal_coordinator::files::{ImportRoots, open_files, write_file};
use shoal_proto::Failure;

use super::Copy;
use crate::client::{ClientError, Rows};

/// A file that is being read.
pub(in crate::repl) struct Source<S> {
    /// Its rows, with the table's columns.
    pub(in crate::repl) batches: S,
    /// Rows read so far.
    pub(in crate::repl) rows: Arc<AtomicU64>,
}

/// Opens the file or files of `copy` for a table with these columns.
///
/// # Errors
/// `Content`, naming the file and what is wrong with it.
pub(in crate::repl) async fn open(
    copy: &Copy,
    columns: SchemaRef,
) -> Result<Source<impl Stream<Item = Result<RecordBatch, ClientError>> + Send + 'static>, ClientError> {
    let state = SessionContext::new().state();
    let opened = open_files(&state, &everywhere(), &location(&copy.file)?, &copy.format, columns).await;
    let opened = opened.map_err(|error| ClientError::Content(Failure::from(error).to_string()))?;
    let rows = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&rows);
    let batches = opened.into_rows().map(move |batch| {
        let batch =
            batch.map_err(|error| ClientError::Content(Failure::from_datafusion(&error).to_string()))?;
        counter.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        Ok(batch)
    });
    Ok(Source { batches, rows })
}

/// Writes rows into the file of `copy`, which appears when it is complete;
/// how many.
///
/// # Errors
/// Those of the rows, and `Content` for those of the file.
pub(in crate::repl) async fn write(copy: &Copy, rows: Rows) -> Result<u64, ClientError> {
    let location = location(&copy.file)?;
    let schema = rows.schema().clone();
    // The writer takes errors of its own kind; the one that matters is kept
    // here as it is.
    let failed: Arc<Mutex<Option<ClientError>>> = Arc::default();
    let keep = Arc::clone(&failed);
    let batches = futures::stream::unfold(rows, move |mut rows| {
        let keep = Arc::clone(&keep);
        async move {
            match rows.next().await {
                Ok(Some(batch)) => Some((Ok(batch), rows)),
                Ok(None) => None,
                Err(error) => {
                    *keep.lock() = Some(error);
                    Some((Err(DataFusionError::Execution("the rows ended early".to_owned())), rows))
                }
            }
        }
    });
    let stream = RecordBatchStreamAdapter::new(schema, batches);
    let state = SessionContext::new().state();
    let written = write_file(&state, &everywhere(), &location, &copy.format, Box::pin(stream)).await;
    written.map_err(|error| {
        let cause = failed.lock().take();
        cause.unwrap_or_else(|| ClientError::Content(Failure::from(error).to_string()))
    })
}

/// What the person may touch is for the operating system to say.
fn everywhere() -> ImportRoots {
    ImportRoots::new(&[PathBuf::from("/")])
}

/// The file's path from the root, without `..`.
fn location(file: &Path) -> Result<String, ClientError> {
    let unreadable = |error| ClientError::file(format!("cannot find {}", file.display()), error);
    let absolute = std::path::absolute(file).map_err(unreadable)?;
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        if part == Component::ParentDir {
            // What a symlink's parent is, only the disk knows.
            plain = plain.canonicalize().unwrap_or(plain);
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    let text = plain
        .to_str()
        .ok_or_else(|| ClientError::Usage(format!("the name of {} is not text", file.display())))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use futures::TryStreamExt;

    use super::*;

    async fn keys(name: &str, content: &[u8]) -> Result<Vec<i64>, ClientError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("below")).unwrap();
        std::fs::write(folder.path().join(name), content).unwrap();
        let file = folder.path().join("below").join("..").join(name);
        let copy = Copy::parse(&format!("t from '{}'", file.display())).unwrap();
        let columns = Schema::new(vec![Field::new("k", DataType::Int64, false)]);
        let source = open(&copy, Arc::new(columns)).await?;
        let batches: Vec<RecordBatch> = source.batches.try_collect().await?;
        let keys: Vec<i64> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert_eq!(keys.len() as u64, source.rows.load(Ordering::Relaxed));
        Ok(keys)
    }

    #[tokio::test]
    async fn local_files_are_read() {
        assert_eq!(keys("a.csv", b"k\n1\n2\n").await.unwrap(), [1, 2]);
        assert_eq!(keys("a.json", b"{\"k\":1}\n").await.unwrap(), [1]);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said_with_its_name() {
        for (name, content, why) in [
            ("a.csv", &b"k\n1\nz\n"[..], "line 3"),
            ("a.csv", b"k,j\n1,2\n", "j"),
            ("a.parquet", b"oops", "a.parquet"),
        ] {
            let error = keys(name, content).await.unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, ClientError::Content(_)) && text.contains(why) && text.contains(name),
                "{text}"
            );
        }
    }
}
