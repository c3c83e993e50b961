//! Delimited text, record by record.

use std::io::BufRead;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::{Decoder, Format};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use regex::Regex;
use shoal_proto::{ErrorCode, Failure};

use super::text::{text, text_in};
use super::{BATCH_BYTES, BATCH_ROWS, CsvOptions, FileFormat, RowShape, Sink, SourceFile};

/// Characters of a broken line that a message shows.
const SHOWN_CHARS_MAX: usize = 200;

/// A file whose first line was looked at, or the lines of it that begin in a range.
#[derive(Clone)]
pub struct CsvFile {
    file: SourceFile,
    format: FileFormat,
    columns: SchemaRef,
    /// Columns in the order of the file, as they are parsed.
    parsed: SchemaRef,
    has_header: bool,
    range: Option<Range<u64>>,
}

impl CsvFile {
    /// Reads the first line and finds which field is which column.
    pub(super) fn open(file: SourceFile, format: &FileFormat, columns: &SchemaRef) -> Result<Self, Failure> {
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
        Ok(Self { file, format: format.clone(), columns: columns.clone(), parsed, has_header, range: None })
    }

    /// The file.
    pub(super) fn file(&self) -> &SourceFile {
        &self.file
    }

    /// What of it, if not all.
    pub(super) fn range(&self) -> Option<&Range<u64>> {
        self.range.as_ref()
    }

    /// The lines that begin in this range of a file that is not compressed.
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        Self { range: Some(range), ..self.clone() }
    }

    /// Hands all rows to `sink`. Of a part, they are those that the whole file has there
    /// if every part of it is read without an error: each of them makes sure that where
    /// it ends a record ends too, and thereby where the next one begins.
    pub(super) fn read(&self, sink: Sink<'_>) -> Result<(), Failure> {
        let has_header = self.has_header && self.range.as_ref().is_none_or(|range| range.start == 0);
        let mut builder = ReaderBuilder::new(self.parsed.clone())
            .with_format(arrow_format(&self.format.csv)?)
            .with_header(has_header)
            .with_batch_size(BATCH_ROWS);
        if let Some(null) = &self.format.csv.null {
            builder = builder.with_null_regex(exactly(null)?);
        }
        let mut decoder = builder.build_decoder();
        if self.range.as_ref().is_some_and(|range| range.start > 0) {
            // An empty line, which is no record: what looks like a byte order mark is one
            // at the start of a file only.
            decoder.decode(b"\n").map_err(|error| self.broken(&error))?;
        }
        let mut text = text_in(&self.file, &self.format, self.range.as_ref())?;
        let (mut waiting_bytes, mut rows_before) = (0, 0);
        let mut last_byte = None;
        loop {
            let bytes = text.fill_buf().map_err(|error| self.file.unreadable(&error))?;
            let is_end = bytes.is_empty();
            // With many bytes at hand, go line by line to where a record ends.
            let is_large = waiting_bytes >= BATCH_BYTES;
            let line_end = bytes.iter().position(|byte| *byte == b'\n').filter(|_| is_large);
            let piece = line_end.map_or(bytes, |line_end| &bytes[..=line_end]);
            let capacity = decoder.capacity();
            // A part that ends with a line may be followed by another one.
            let ends_part = is_end && self.range.is_some() && last_byte.is_none_or(|byte| byte == b'\n');
            let taken = match ends_part {
                true => 0,
                false => decoder.decode(piece).map_err(|error| self.broken(&error))?,
            };
            last_byte = piece[..taken].last().copied().or(last_byte);
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
            if ends_part && last_byte.is_some() {
                return self.check_between_records(&mut decoder);
            }
            if is_end {
                return Ok(());
            }
        }
    }

    /// Finds out whether a record could begin now, behind a line end, and not only go on
    /// in a value that has line ends.
    fn check_between_records(&self, decoder: &mut Decoder) -> Result<(), Failure> {
        let CsvOptions { delimiter, quote, escape, .. } = self.format.csv;
        let is_plain = |byte: &u8| *byte != delimiter && *byte != quote && Some(*byte) != escape;
        let value = (b'a'..=b'z').find(is_plain).unwrap_or(b'a');
        let mut record = vec![value];
        record.resize(self.parsed.fields().len().max(1), delimiter);
        record.push(b'\n');
        // One more record for who is between records; part of a value for who is in one.
        let capacity = decoder.capacity();
        let mut left = record.as_slice();
        while !left.is_empty() {
            let taken = decoder.decode(left).map_err(|error| self.broken(&error))?;
            left = &left[taken.max(1)..];
        }
        if decoder.capacity() + 1 == capacity {
            return Ok(());
        }
        let Range { start, end } = self.range.clone().unwrap_or_default();
        let message = format!(
            "`{}`: a record that begins in bytes {start} to {end} goes on behind the line end that follows",
            self.file.name()
        );
        Err(invalid(message))
    }

    /// Casts what was parsed as text only because the parser knows no better,
    /// and makes empty text of the empty fields of NOT NULL text columns.
    fn with_types(&self, batch: &RecordBatch) -> Result<RecordBatch, Failure> {
        let mut fields = Vec::with_capacity(batch.num_columns());
        let mut arrays = Vec::with_capacity(batch.num_columns());
        for (parsed, array) in self.parsed.fields().iter().zip(batch.columns()) {
            let column = self.columns.field_with_name(parsed.name()).map_err(|error| self.broken(&error))?;
            let strict = CastOptions { safe: false, ..CastOptions::default() };
            let mut array = match cast_with_options(array, column.data_type(), &strict) {
                Ok(array) => array,
                Err(error) => {
                    let message = format!("`{}`, column `{}`: {error}", self.file.name(), column.name());
                    return Err(invalid(message));
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

    fn broken(&self, error: &ArrowError) -> Failure {
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
        invalid(format!("`{}`: {message}", self.file.name()))
    }
}

/// The fields of the first line.
fn first_line(file: &SourceFile, format: &FileFormat) -> Result<Vec<String>, Failure> {
    let head = arrow_format(&format.csv)?.with_header(true);
    let (schema, _) = head
        .infer_schema(text(file, format)?, Some(0))
        .map_err(|error| invalid(format!("`{}`, line 1: {error}", file.name())))?;
    Ok(schema.fields().iter().map(|field| field.name().clone()).collect())
}

/// The options in Arrow's words.
///
/// # Errors
/// None in practice; those of a regular expression.
pub fn arrow_format(options: &CsvOptions) -> Result<Format, Failure> {
    let mut format = Format::default().with_delimiter(options.delimiter).with_quote(options.quote);
    if let Some(escape) = options.escape {
        format = format.with_escape(escape);
    }
    if let Some(null) = &options.null {
        format = format.with_null_regex(exactly(null)?);
    }
    Ok(format)
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Invalid, message)
}

fn exactly(text: &str) -> Result<Regex, Failure> {
    Regex::new(&format!("^(?:{})$", regex::escape(text)))
        .map_err(|error| invalid(format!("NULL '{text}': {error}")))
}

/// How a column is parsed: as itself where Arrow's parser knows the type.
fn as_parsed(column: &Field) -> Result<Field, Failure> {
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
            return Err(Failure::new(
                ErrorCode::Unsupported,
                format!(
                    "column `{}` is of type {nested}, which CSV cannot hold: use Parquet or JSON",
                    column.name()
                ),
            ));
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
