//! COPY FROM: the rows of many files.

use std::collections::VecDeque;

use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use futures::stream::{StreamExt, TryStreamExt};
use shoal_data::ImportRoots;
use shoal_data::load::{FilePiece, SourceFile, read_pieces};
use shoal_proto::Failure;
use tokio::runtime::Handle;
use url::Url;

use super::location::listing_url;
use super::{FileFormat, Location, expand, resolve};
use crate::Error;

/// Objects that one statement may name.
const OBJECTS_MAX: usize = 10_000;

/// Files whose columns were checked, as far as their heads and footers say.
pub struct Opened {
    pieces: VecDeque<FilePiece>,
    columns: SchemaRef,
    format: FileFormat,
}

/// Opens the files at `location`, to read exactly these columns. Every file must
/// have every column, by name (by position for CSV without header), and no other;
/// types are those of the columns or such as can be cast without a change of
/// meaning.
///
/// # Errors
/// `NotFound` and `Invalid`, naming the file.
pub async fn open_files(
    state: &SessionState,
    roots: &ImportRoots,
    location: &str,
    format: &FileFormat,
    columns: SchemaRef,
) -> Result<Opened, Error> {
    let files = find(state, roots, location).await?;
    let checked = {
        let (format, columns) = (format.clone(), columns.clone());
        tokio::task::spawn_blocking(move || pieces(files, &format, &columns))
    };
    let pieces = checked.await.map_err(|error| Error::Internal(format!("opening files: {error}")))??;
    Ok(Opened { pieces, columns, format: format.clone() })
}

impl Opened {
    /// All row groups and whole text files, in their order.
    pub fn pieces(&self) -> impl Iterator<Item = &FilePiece> {
        self.pieces.iter()
    }

    /// What the files are.
    pub fn format(&self) -> &FileFormat {
        &self.format
    }

    /// The columns.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// The rows of all files, in no particular order. Errors come in the stream:
    /// `Invalid`, naming the file and, where there is one, the line, row or column.
    pub fn into_rows(self) -> SendableRecordBatchStream {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        read_pieces(self.pieces, threads, self.columns)
    }
}

/// Checks the files and cuts them into what threads read.
fn pieces(
    files: Vec<SourceFile>,
    format: &FileFormat,
    columns: &SchemaRef,
) -> Result<VecDeque<FilePiece>, Error> {
    let mut pieces = VecDeque::new();
    for file in files {
        pieces.extend(FilePiece::open(file, format, columns)?);
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
                let opened = files.iter().map(|file| SourceFile::local(&roots, file));
                opened.collect::<Result<Vec<_>, Failure>>().map_err(Error::from)
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
    let files = found
        .into_iter()
        .map(|object| SourceFile::remote(base.as_str(), store.clone(), object, handle.clone()));
    files.collect::<Result<Vec<_>, Failure>>().map_err(Error::from)
}
