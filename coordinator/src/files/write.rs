//! COPY TO: rows into one file below the import roots. The file is there as a
//! whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder;
use arrow::datatypes::SchemaRef;
use arrow::json::LineDelimitedWriter;
use datafusion::execution::SendableRecordBatchStream;
use flate2::write::GzEncoder;
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::file::properties::WriterProperties;
use shoal_data::ImportRoots;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Compression, FileFormat, FileKind, Location, resolve};
use crate::Error;

/// Batches that wait for the disk.
const WAITING_BATCHES: usize = 4;
/// Rows of a Parquet row group.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Writes all rows into one file, which takes the place of one that is there;
/// the number of rows. The directory must exist below an import root.
///
/// # Errors
/// `Invalid` for a location outside the roots, `Unsupported` for object
/// stores, `Exhausted` where the disk is full, and what the input says. Then
/// the file is what it was.
pub async fn write_file(
    roots: &ImportRoots,
    location: &str,
    format: &FileFormat,
    mut input: SendableRecordBatchStream,
) -> Result<u64, Error> {
    let path = match resolve(roots, location)? {
        Location::Local(path) => path,
        Location::Remote(url) => {
            return Err(Error::Unsupported(format!(
                "COPY TO `{url}`: files are written below the import roots only"
            )));
        }
    };
    let (sender, mut receiver) = mpsc::channel::<RecordBatch>(WAITING_BATCHES);
    let (finished_sender, finished) = tokio::sync::oneshot::channel::<()>();
    let (roots, format, schema) = (roots.clone(), format.clone(), input.schema());
    let writing = tokio::task::spawn_blocking(move || {
        let mut file = NewFile::create(&roots, &path)?;
        let what = format!("cannot write `{}`", path.display());
        let mut rows = 0;
        {
            let mut encoder = Encoder::new(file.file()?, &path, &format, &schema)?;
            while let Some(batch) = receiver.blocking_recv() {
                rows += batch.num_rows() as u64;
                encoder.write(&batch).map_err(|error| error.named(&what))?;
            }
            // The input may have failed or been dropped: nothing is kept then.
            if finished.blocking_recv().is_err() {
                return Err(Error::Cancelled(format!("{what}: the rows stopped before their end")));
            }
            encoder.finish().map_err(|error| error.named(&what))?;
        }
        file.keep().map_err(|error| Error::io(what, error))?;
        Ok(rows)
    });
    while let Some(batch) = input.next().await {
        // The writer is gone only if it failed; its own error says why.
        if sender.send(batch?).await.is_err() {
            break;
        }
    }
    let _writer_may_be_gone = finished_sender.send(());
    drop(sender);
    writing.await.map_err(|error| Error::Internal(format!("writing a file: {error}")))?
}

/// A file under another name until it is whole.
struct NewFile {
    temporary: PathBuf,
    target: PathBuf,
    file: File,
    is_kept: bool,
}

impl NewFile {
    fn create(roots: &ImportRoots, path: &Path) -> Result<Self, Error> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(Error::Invalid(format!("`{}` is not the path of a file", path.display())));
        };
        let directory = roots.resolve(directory)?;
        let target = directory.join(name);
        if target.is_dir() {
            return Err(Error::Invalid(format!("`{}` is a directory: add a file name", path.display())));
        }
        let temporary = directory.join(format!(".{name}.{}.tmp", Uuid::new_v4().simple()));
        let file = File::create_new(&temporary)
            .map_err(|error| Error::io(format!("cannot write in `{}`", directory.display()), error))?;
        Ok(Self { temporary, target, file, is_kept: false })
    }

    fn file(&self) -> Result<File, Error> {
        self.file
            .try_clone()
            .map_err(|error| Error::io(format!("cannot write `{}`", self.target.display()), error))
    }

    fn keep(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.target)?;
        self.is_kept = true;
        match self.target.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = std::fs::remove_file(&self.temporary)
        {
            tracing::warn!(path = %self.temporary.display(), %error, "temporary file not removed");
        }
    }
}

/// Rows into the bytes of a format.
enum Encoder {
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Csv(Box<arrow::csv::Writer<Box<dyn Finish>>>),
    Json(Box<LineDelimitedWriter<Box<dyn Finish>>>),
}

impl Encoder {
    fn new(file: File, path: &Path, format: &FileFormat, schema: &SchemaRef) -> Result<Self, Error> {
        let file = BufWriter::new(file);
        let compression = format.stream_compression(&path.to_string_lossy());
        let stream = |file: BufWriter<File>| -> Result<Box<dyn Finish>, Error> {
            Ok(match compression {
                Compression::Gzip => Box::new(GzEncoder::new(file, flate2::Compression::default())),
                Compression::Zstd => Box::new(
                    zstd::stream::write::Encoder::new(file, zstd::DEFAULT_COMPRESSION_LEVEL)
                        .map_err(|error| Error::io(format!("cannot write `{}`", path.display()), error))?,
                ),
                Compression::None | Compression::Snappy | Compression::Lz4 => Box::new(file),
            })
        };
        Ok(match format.kind {
            FileKind::Parquet => {
                let codec = match format.compression {
                    Some(Compression::None | Compression::Gzip) => Codec::UNCOMPRESSED,
                    Some(Compression::Snappy) => Codec::SNAPPY,
                    Some(Compression::Lz4) => Codec::LZ4_RAW,
                    Some(Compression::Zstd) | None => Codec::ZSTD(ZstdLevel::default()),
                };
                let properties = WriterProperties::builder()
                    .set_compression(codec)
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                let writer =
                    ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|error| {
                        Error::Unsupported(format!("these columns cannot be written as Parquet: {error}"))
                    })?;
                Self::Parquet(Box::new(writer))
            }
            FileKind::Csv => {
                let options = &format.csv;
                let mut builder = WriterBuilder::new()
                    .with_header(options.header.unwrap_or(true))
                    .with_delimiter(options.delimiter)
                    .with_quote(options.quote)
                    .with_null(options.null.clone().unwrap_or_default());
                if let Some(escape) = options.escape {
                    builder = builder.with_escape(escape).with_double_quote(false);
                }
                let mut writer = builder.build(stream(file)?);
                // The header is due also where no row comes.
                writer.write(&RecordBatch::new_empty(schema.clone())).map_err(|error| {
                    Error::Unsupported(format!("these columns cannot be written as CSV: {error}"))
                })?;
                Self::Csv(Box::new(writer))
            }
            FileKind::Json => Self::Json(Box::new(LineDelimitedWriter::new(stream(file)?))),
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), EncodeError> {
        match self {
            Self::Parquet(writer) => Ok(writer.write(batch)?),
            Self::Csv(writer) => Ok(writer.write(batch)?),
            Self::Json(writer) => Ok(writer.write(batch)?),
        }
    }

    fn finish(self) -> Result<(), EncodeError> {
        match self {
            Self::Parquet(writer) => Ok(writer.into_inner()?.flush()?),
            Self::Csv(writer) => Ok(writer.into_inner().finish()?),
            Self::Json(mut writer) => {
                writer.finish()?;
                Ok(writer.into_inner().finish()?)
            }
        }
    }
}

/// What an encoder says, before the file is named.
#[derive(Debug, thiserror::Error)]
enum EncodeError {
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl EncodeError {
    /// A full disk is told apart from columns that a format cannot hold.
    fn named(self, what: &str) -> Error {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&self);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Error::io(what, io::Error::new(error.kind(), error.to_string()));
            }
            source = error.source();
        }
        Error::Invalid(format!("{what}: {self}"))
    }
}

/// A writer with something to write at its end.
trait Finish: Write + Send {
    fn finish(self: Box<Self>) -> io::Result<()>;
}

impl Finish for BufWriter<File> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

impl Finish for GzEncoder<BufWriter<File>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

impl Finish for zstd::stream::write::Encoder<'static, BufWriter<File>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}
