//! COPY FROM: the rows of many files as one stream, read on blocking threads.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use shoal_data::ImportRoots;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use url::Url;

use super::location::listing_url;
use super::source::SourceFile;
use super::{FileFormat, FileKind, Location, csv_file, expand, json_file, parquet_file, resolve};
use crate::Error;

/// Batches that wait for whoever takes the rows.
const WAITING_BATCHES: usize = 4;
/// Rows of a batch.
pub(super) const BATCH_ROWS: usize = 8192;
/// A batch ends early when it has so many bytes.
pub(super) const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Objects that one statement may name.
const OBJECTS_MAX: usize = 10_000;

/// What one thread reads at a time.
pub(super) enum Piece {
    /// Row groups of a Parquet file.
    Parquet(parquet_file::RowGroups),
    /// A whole text file.
    Csv(csv_file::CsvFile),
    /// A whole file of JSON lines.
    Json(json_file::JsonFile),
}

/// Takes a batch; false where nobody wants more.
pub(super) type Sink<'a> = &'a mut dyn FnMut(RecordBatch) -> bool;

impl Piece {
    fn read(self, sink: Sink<'_>) -> Result<(), Error> {
        match self {
            Self::Parquet(piece) => piece.read(sink),
            Self::Csv(piece) => piece.read(sink),
            Self::Json(piece) => piece.read(sink),
        }
    }
}

/// The rows of all files at `location`, with exactly these columns, in no
/// particular order. Every file must have every column, by name (by position
/// for CSV without header), and no other; types are those of the columns or
/// such as can be cast without a change of meaning. Files are checked, as far
/// as their heads and footers say, before the first row.
///
/// # Errors
/// Here and in the stream: `NotFound` and `Invalid`, naming the file and, where
/// there is one, the line, row or column.
pub async fn read_files(
    state: &SessionState,
    roots: &ImportRoots,
    location: &str,
    format: &FileFormat,
    columns: SchemaRef,
) -> Result<SendableRecordBatchStream, Error> {
    let files = find(state, roots, location).await?;
    let checked = {
        let (format, columns) = (format.clone(), columns.clone());
        tokio::task::spawn_blocking(move || pieces(files, &format, &columns))
    };
    let pieces = checked.await.map_err(|error| Error::Internal(format!("opening files: {error}")))??;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pieces.len());
    let pieces = Arc::new(Mutex::new(pieces));
    let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
    for _ in 0..threads.max(1) {
        let (pieces, sender) = (pieces.clone(), sender.clone());
        // Ends by itself when the stream is dropped.
        tokio::task::spawn_blocking(move || {
            while let Some(piece) = next(&pieces) {
                let mut is_wanted = true;
                let outcome = piece.read(&mut |batch| {
                    is_wanted = sender.blocking_send(Ok(batch)).is_ok();
                    is_wanted
                });
                if let Err(error) = outcome {
                    let _nobody_listens = sender.blocking_send(Err(error));
                    return;
                }
                if !is_wanted {
                    return;
                }
            }
        });
    }
    drop(sender);
    let rows = ReceiverStream::new(receiver).map_err(DataFusionError::from);
    Ok(Box::pin(RecordBatchStreamAdapter::new(columns, rows)))
}

fn next(pieces: &Mutex<VecDeque<Piece>>) -> Option<Piece> {
    pieces.lock().pop_front()
}

/// Checks the files and cuts them into what threads read.
fn pieces(
    files: Vec<SourceFile>,
    format: &FileFormat,
    columns: &SchemaRef,
) -> Result<VecDeque<Piece>, Error> {
    let mut pieces = VecDeque::new();
    for file in files {
        match format.kind {
            FileKind::Parquet => {
                pieces.extend(parquet_file::open(file, columns)?.into_iter().map(Piece::Parquet))
            }
            FileKind::Csv => pieces.push_back(Piece::Csv(csv_file::CsvFile::open(file, format, columns)?)),
            FileKind::Json => {
                pieces.push_back(Piece::Json(json_file::JsonFile::open(file, format, columns)?))
            }
        }
    }
    Ok(pieces)
}

/// The files at a location, opened or measured.
pub(super) async fn find(
    state: &SessionState,
    roots: &ImportRoots,
    location: &str,
) -> Result<Vec<SourceFile>, Error> {
    match resolve(roots, location)? {
        Location::Local(path) => {
            let roots = roots.clone();
            let found = tokio::task::spawn_blocking(move || {
                let files = expand(&roots, &path)?;
                files.iter().map(|file| SourceFile::local(&roots, file)).collect()
            });
            found.await.map_err(|error| Error::Internal(format!("finding files: {error}")))?
        }
        Location::Remote(url) => objects(state, &url).await,
    }
}

/// The objects below a URL whose path may end in a pattern.
async fn objects(state: &SessionState, url: &Url) -> Result<Vec<SourceFile>, Error> {
    let unknown = |error: DataFusionError| {
        Error::Invalid(format!("`{url}` cannot be read: {}", error.strip_backtrace()))
    };
    let table = listing_url(url).map_err(unknown)?;
    let base: ObjectStoreUrl = table.object_store();
    let store = state.runtime_env().object_store(&base).map_err(unknown)?;
    let listed = table.list_prefixed_files(state, store.as_ref(), None, "").await.map_err(unknown)?;
    let found: Vec<_> = listed.take(OBJECTS_MAX + 1).try_collect().await.map_err(unknown)?;
    if found.is_empty() {
        return Err(Error::NotFound(format!("no object matches `{url}`")));
    }
    if found.len() > OBJECTS_MAX {
        return Err(Error::Exhausted(format!("`{url}` stands for more than {OBJECTS_MAX} objects")));
    }
    let handle = Handle::current();
    let files = found.into_iter().map(|object| {
        let name = format!("{}{}", base.as_str(), object.location);
        SourceFile::remote(name, store.clone(), object.location, object.size, handle.clone())
    });
    files.collect()
}
