//! COPY TO: rows into one file below the import roots, or one object of an
//! object store. It is there as a whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::json::LineDelimitedWriter;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use flate2::write::GzEncoder;
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::file::properties::WriterProperties;
use shoal_data::ImportRoots;
use shoal_data::plain_rows::{conformed, in_pieces, plain_field};
use tokio::sync::mpsc;

use super::sink::{NewFile, NewObject, Sink, SinkWriter};
use super::{Compression, FileFormat, FileKind, Location, resolve};
use crate::Error;

/// Batches that wait for the disk.
const WAITING_BATCHES: usize = 4;
/// Bytes of rows that are handed to the writer together; one row may have more.
const PIECE_BYTES: usize = 8 << 20;
/// Rows of a Parquet row group.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Writes all rows into one file or object, which takes the place of one that
/// is there; the number of rows. A directory must exist below an import root;
/// whether an object store may be used, the caller has checked.
///
/// # Errors
/// `Invalid` for a location outside the roots, `Exhausted` where the disk is
/// full, and what the input or the object store says. Then the file is what it
/// was.
pub async fn write_file(
    state: &SessionState,
    roots: &ImportRoots,
    location: &str,
    format: &FileFormat,
    mut input: SendableRecordBatchStream,
) -> Result<u64, Error> {
    let target = match resolve(roots, location)? {
        Location::Local(path) => Target::File(roots.clone(), path),
        Location::Remote(url) => Target::Object(NewObject::create(state, &url)?),
    };
    let (sender, mut receiver) = mpsc::channel::<RecordBatch>(WAITING_BATCHES);
    let (finished_sender, finished) = tokio::sync::oneshot::channel::<()>();
    // What is written must not depend on how the query was run.
    let columns: Vec<_> = input.schema().fields().iter().map(plain_field).collect();
    let schema: SchemaRef = Arc::new(Schema::new(columns));
    let announced = Arc::clone(&schema);
    let format = format.clone();
    let location = location.to_owned();
    let writing = tokio::task::spawn_blocking(move || {
        let mut sink = match target {
            Target::File(roots, path) => Sink::File(NewFile::create(&roots, &path)?),
            Target::Object(object) => Sink::Object(object),
        };
        let what = format!("cannot write `{location}`");
        let mut rows = 0;
        {
            let mut encoder = Encoder::new(sink.writer()?, &location, &format, &schema)?;
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
        sink.keep().map_err(|error| Error::io(what, error))?;
        Ok(rows)
    });
    'rows: while let Some(batch) = input.next().await {
        for piece in in_pieces(batch?, PIECE_BYTES) {
            let piece = conformed(&announced, &piece).map_err(|error| Error::Internal(error.to_string()))?;
            // The writer is gone only if it failed; its own error says why.
            if sender.send(piece).await.is_err() {
                break 'rows;
            }
        }
    }
    let _writer_may_be_gone = finished_sender.send(());
    drop(sender);
    writing.await.map_err(|error| Error::Internal(format!("writing a file: {error}")))?
}

/// What is to be written. A file is made on a thread that may block.
enum Target {
    File(ImportRoots, PathBuf),
    Object(NewObject),
}

/// Rows into the bytes of a format.
enum Encoder {
    Parquet(Box<ArrowWriter<BufWriter<SinkWriter>>>),
    Csv(Box<arrow::csv::Writer<Box<dyn Finish>>>),
    Json(Box<LineDelimitedWriter<Box<dyn Finish>>>),
}

impl Encoder {
    fn new(file: SinkWriter, location: &str, format: &FileFormat, schema: &SchemaRef) -> Result<Self, Error> {
        let file = BufWriter::new(file);
        let compression = format.stream_compression(location);
        let stream = |file: BufWriter<SinkWriter>| -> Result<Box<dyn Finish>, Error> {
            Ok(match compression {
                Compression::Gzip => Box::new(GzEncoder::new(file, flate2::Compression::default())),
                Compression::Zstd => Box::new(
                    zstd::stream::write::Encoder::new(file, zstd::DEFAULT_COMPRESSION_LEVEL)
                        .map_err(|error| Error::io(format!("cannot write `{location}`"), error))?,
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

impl Finish for BufWriter<SinkWriter> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

impl Finish for GzEncoder<BufWriter<SinkWriter>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

impl Finish for zstd::stream::write::Encoder<'static, BufWriter<SinkWriter>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}
