//! Delimited text, record by record.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use flate2::read::MultiGzDecoder;
use regex::Regex;
use shoal_data::load::{BATCH_BYTES, BATCH_ROWS, RowShape, Sink, SourceFile};

use super::{Compression, CsvOptions, FileFormat};
use crate::Error;

/// Bytes read at once.
const READ_BYTES: usize = 1024 * 1024;
/// Compressed bytes read at once.
const PACKED_BYTES: usize = 256 * 1024;
/// Characters of a broken line that a message shows.
const SHOWN_CHARS_MAX: usize = 200;

/// A file whose first line was looked at.
pub(super) struct CsvFile {
    file: SourceFile,
    format: FileFormat,
    columns: SchemaRef,
    /// Columns in the order of the file, as they are parsed.
    parsed: SchemaRef,
    has_header: bool,
}

impl CsvFile {
    /// Reads the first line and finds which field is which column.
    pub(super) fn open(file: SourceFile, format: &FileFormat, columns: &SchemaRef) -> Result<Self, Error> {
        let first = first_line(&file, format)?;
        let named = |name: &str| {
            let exact = columns.fields().iter().find(|field| field.name() == name);
            exact.or_else(|| columns.fields().iter().find(|field| field.name().eq_ignore_ascii_case(name)))
        };
        let has_header =
            format.csv.header.unwrap_or_else(|| first.iter().any(|name| named(name.trim()).is_some()));
        let fields = if has_header {
            let fields = first.iter().map(|name| match named(name.trim()) {
                Some(field) => as_parsed(field),
                // Refused below, by name.
                None => Ok(Field::new(name.trim(), DataType::Utf8, true)),
            });
            fields.collect::<Result<Vec<_>, _>>()?
        } else {
            columns.fields().iter().map(|field| as_parsed(field)).collect::<Result<Vec<_>, _>>()?
        };
        let parsed: SchemaRef = Arc::new(Schema::new(fields));
        // What is parsed as text is cast on the way: names are what counts here.
        let names = parsed.fields().iter().map(|field| {
            let data_type = named(field.name()).map_or(DataType::Utf8, |field| field.data_type().clone());
            Field::new(field.name(), data_type, true)
        });
        RowShape::complete(&format!("`{}`", file.name()), columns, &Schema::new(names.collect::<Vec<_>>()))?;
        Ok(Self { file, format: format.clone(), columns: columns.clone(), parsed, has_header })
    }

    pub(super) fn read(self, sink: Sink<'_>) -> Result<(), Error> {
        let mut builder = ReaderBuilder::new(self.parsed.clone())
            .with_format(arrow_format(&self.format.csv)?)
            .with_header(self.has_header)
            .with_batch_size(BATCH_ROWS);
        if let Some(null) = &self.format.csv.null {
            builder = builder.with_null_regex(exactly(null)?);
        }
        let mut decoder = builder.build_decoder();
        let mut text = text(&self.file, &self.format)?;
        let (mut waiting_bytes, mut rows_before) = (0, 0);
        loop {
            let bytes = text.fill_buf().map_err(|error| self.file.unreadable(&error))?;
            let is_end = bytes.is_empty();
            // With many bytes at hand, go line by line to where a record ends.
            let is_large = waiting_bytes >= BATCH_BYTES;
            let line_end = bytes.iter().position(|byte| *byte == b'\n').filter(|_| is_large);
            let piece = line_end.map_or(bytes, |line_end| &bytes[..=line_end]);
            let capacity = decoder.capacity();
            let taken = decoder.decode(piece).map_err(|error| self.broken(&error))?;
            let ends_record = line_end.is_some() && taken == piece.len() && decoder.capacity() < capacity;
            text.consume(taken);
            waiting_bytes += taken;
            if !is_end && !ends_record && decoder.capacity() > 0 {
                continue;
            }
            waiting_bytes = 0;
            if let Some(batch) = decoder.flush().map_err(|error| self.broken(&error))? {
                let batch = self.with_types(&batch)?;
                let source = format!("`{}`", self.file.name());
                let mut shape =
                    RowShape::complete(&source, &self.columns, &batch.schema())?.after(rows_before);
                rows_before += batch.num_rows() as u64;
                if !sink(shape.apply(&batch)?) {
                    return Ok(());
                }
            }
            if is_end {
                return Ok(());
            }
        }
    }

    /// Casts what was parsed as text only because the parser knows no better,
    /// and makes empty text of the empty fields of NOT NULL text columns.
    fn with_types(&self, batch: &RecordBatch) -> Result<RecordBatch, Error> {
        let mut fields = Vec::with_capacity(batch.num_columns());
        let mut arrays = Vec::with_capacity(batch.num_columns());
        for (parsed, array) in self.parsed.fields().iter().zip(batch.columns()) {
            let column = self.columns.field_with_name(parsed.name()).map_err(|error| self.broken(&error))?;
            let strict = CastOptions { safe: false, ..CastOptions::default() };
            let mut array = match cast_with_options(array, column.data_type(), &strict) {
                Ok(array) => array,
                Err(error) => {
                    let message = format!("`{}`, column `{}`: {error}", self.file.name(), column.name());
                    return Err(Error::Invalid(message));
                }
            };
            if !column.is_nullable() && self.format.csv.null.is_none() && array.null_count() > 0 {
                array = empty_for_null(array);
            }
            fields.push(Field::new(column.name(), column.data_type().clone(), true));
            arrays.push(array);
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &ArrowError) -> Error {
        let mut message = match error {
            ArrowError::CsvError(message) | ArrowError::ParseError(message) => one_based_line(message),
            other => other.to_string(),
        };
        if let Some((before, number)) = message.rsplit_once(" for column ")
            && let Ok(number) = number.split('.').next().unwrap_or(number).trim().parse::<usize>()
            && let Some(field) = self.parsed.fields().get(number)
        {
            message = format!("{before} for column `{}`", field.name());
        }
        if let Some((kept, _)) = message.char_indices().nth(SHOWN_CHARS_MAX * 2) {
            message.truncate(kept);
            message.push_str("...");
        }
        if !self.has_header && self.format.csv.header.is_none() && message.contains("line 1") {
            message.push_str(" (if the first line has column names, add HEADER)");
        }
        Error::Invalid(format!("`{}`: {message}", self.file.name()))
    }
}

/// The fields of the first line.
pub(super) fn first_line(file: &SourceFile, format: &FileFormat) -> Result<Vec<String>, Error> {
    let head = arrow_format(&format.csv)?.with_header(true);
    let (schema, _) = head
        .infer_schema(text(file, format)?, Some(0))
        .map_err(|error| Error::Invalid(format!("`{}`, line 1: {error}", file.name())))?;
    Ok(schema.fields().iter().map(|field| field.name().clone()).collect())
}

/// The file's text without a byte order mark.
pub(super) fn text(file: &SourceFile, format: &FileFormat) -> Result<impl BufRead + use<>, Error> {
    let stream = plain(file, format.stream_compression(file.name()))?;
    let mut stream = BufReader::with_capacity(READ_BYTES, stream);
    let head = stream.fill_buf().map_err(|error| file.unreadable(&error))?;
    if head.starts_with(b"\xef\xbb\xbf") {
        stream.consume(3);
    }
    Ok(stream)
}

/// The file's bytes, decompressed.
fn plain(file: &SourceFile, compression: Compression) -> Result<Box<dyn Read + Send>, Error> {
    let raw = file.reader();
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PACKED_BYTES, raw))),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::new(raw).map_err(|error| file.unreadable(&error))?)
        }
        Compression::None | Compression::Snappy | Compression::Lz4 => Box::new(raw),
    })
}

/// The options in Arrow's words.
pub(super) fn arrow_format(options: &CsvOptions) -> Result<Format, Error> {
    let mut format = Format::default().with_delimiter(options.delimiter).with_quote(options.quote);
    if let Some(escape) = options.escape {
        format = format.with_escape(escape);
    }
    if let Some(null) = &options.null {
        format = format.with_null_regex(exactly(null)?);
    }
    Ok(format)
}

fn exactly(text: &str) -> Result<Regex, Error> {
    Regex::new(&format!("^(?:{})$", regex::escape(text)))
        .map_err(|error| Error::Invalid(format!("NULL '{text}': {error}")))
}

/// How a column is parsed: as itself where Arrow's parser knows the type.
fn as_parsed(column: &Field) -> Result<Field, Error> {
    use DataType as T;
    let data_type = match column.data_type() {
        known @ (T::Boolean
        | T::Int8
        | T::Int16
        | T::Int32
        | T::Int64
        | T::UInt8
        | T::UInt16
        | T::UInt32
        | T::UInt64
        | T::Float16
        | T::Float32
        | T::Float64
        | T::Decimal32(_, _)
        | T::Decimal64(_, _)
        | T::Decimal128(_, _)
        | T::Decimal256(_, _)
        | T::Date32
        | T::Date64
        | T::Time32(TimeUnit::Second | TimeUnit::Millisecond)
        | T::Time64(TimeUnit::Microsecond | TimeUnit::Nanosecond)
        | T::Timestamp(_, _)
        | T::Utf8
        | T::Utf8View) => known.clone(),
        nested if nested.is_nested() => {
            return Err(Error::Unsupported(format!(
                "column `{}` is of type {nested}, which CSV cannot hold: use Parquet or JSON",
                column.name()
            )));
        }
        _ => T::Utf8,
    };
    Ok(Field::new(column.name(), data_type, true))
}

fn empty_for_null(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8 => {
            Arc::new(array.as_string::<i32>().iter().map(|text| text.or(Some(""))).collect::<StringArray>())
        }
        DataType::LargeUtf8 => Arc::new(
            array.as_string::<i64>().iter().map(|text| text.or(Some(""))).collect::<LargeStringArray>(),
        ),
        DataType::Utf8View => {
            Arc::new(array.as_string_view().iter().map(|text| text.or(Some(""))).collect::<StringViewArray>())
        }
        _ => array,
    }
}

/// Arrow counts from 0 where a value cannot be parsed; people count from 1.
fn one_based_line(message: &str) -> String {
    let Some((before, after)) = message.split_once(" at line ") else {
        return message.to_owned();
    };
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    match after[..digits].parse::<u64>() {
        Ok(line) => format!("line {}: {before}{}", line + 1, &after[digits..]),
        Err(_) => message.to_owned(),
    }
}
