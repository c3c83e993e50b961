//! COPY FROM: the rows of many files.

use std::collections::VecDeque;

use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use futures::stream::{StreamExt, TryStreamExt};
use shoal_data::ImportRoots;
use shoal_data::load::{self, RowGroup, Sink, SourceFile, read_pieces, row_groups};
use shoal_proto::Failure;
use tokio::runtime::Handle;
use url::Url;

use super::location::listing_url;
use super::{FileFormat, FileKind, Location, csv_file, expand, json_file, resolve};
use crate::Error;

/// Objects that one statement may name.
const OBJECTS_MAX: usize = 10_000;

/// What one thread reads at a time.
enum Piece {
    /// A row group of a Parquet file.
    Parquet(RowGroup),
    /// A whole text file.
    Csv(csv_file::CsvFile),
    /// A whole file of JSON lines.
    Json(json_file::JsonFile),
}

impl load::Piece for Piece {
    fn read(self, sink: Sink<'_>) -> Result<(), Failure> {
        match self {
            Self::Parquet(piece) => load::Piece::read(piece, sink),
            Self::Csv(piece) => piece.read(sink).map_err(Failure::from),
            Self::Json(piece) => piece.read(sink).map_err(Failure::from),
        }
    }
}

/// Files whose columns were checked, as far as their heads and footers say.
pub struct Opened {
    pieces: VecDeque<Piece>,
    columns: SchemaRef,
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
    Ok(Opened { pieces, columns })
}

impl Opened {
    /// All row groups, in the order of their files; none where the files are not
    /// Parquet.
    pub fn row_groups(&self) -> Option<Vec<RowGroup>> {
        let row_group = |piece: &Piece| match piece {
            Piece::Parquet(row_group) => Some(row_group.clone()),
            Piece::Csv(_) | Piece::Json(_) => None,
        };
        self.pieces.iter().map(row_group).collect()
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
) -> Result<VecDeque<Piece>, Error> {
    let mut pieces = VecDeque::new();
    for file in files {
        match format.kind {
            FileKind::Parquet => {
                pieces.extend(row_groups(&file, columns)?.into_iter().map(Piece::Parquet));
            }
            FileKind::Csv => pieces.push_back(Piece::Csv(csv_file::CsvFile::open(file, format, columns)?)),
            FileKind::Json => {
                pieces.push_back(Piece::Json(json_file::JsonFile::open(file, format, columns)?));
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
