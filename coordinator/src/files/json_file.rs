//! One JSON object per line.

use std::io::{BufRead, Read};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use shoal_data::load::{BATCH_BYTES, BATCH_ROWS, RowShape, Sink, SourceFile};

use super::{FileFormat, csv_file};
use crate::Error;

/// A line may have so many bytes.
const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A file of JSON lines.
pub(super) struct JsonFile {
    file: SourceFile,
    format: FileFormat,
    columns: SchemaRef,
    /// The columns, all nullable: nulls are looked for with better messages.
    parsed: SchemaRef,
}

/// Lines that are not a batch yet.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`, and its number in the file.
    ends: Vec<(usize, u64)>,
}

impl JsonFile {
    pub(super) fn open(file: SourceFile, format: &FileFormat, columns: &SchemaRef) -> Result<Self, Error> {
        let fields =
            columns.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
        let parsed = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let opened = Self { file, format: format.clone(), columns: columns.clone(), parsed };
        opened.decoder()?;
        Ok(opened)
    }

    pub(super) fn read(self, sink: Sink<'_>) -> Result<(), Error> {
        let mut text = csv_file::text(&self.file, &self.format)?;
        let mut lines = Lines::default();
        let mut line_number = 0;
        let mut rows_before = 0;
        let mut is_wanted = true;
        while is_wanted {
            let start = lines.bytes.len();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = text
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut lines.bytes)
                .map_err(|error| self.file.unreadable(&error))?;
            line_number += 1;
            if read > LINE_BYTES_MAX {
                return Err(self.wrong(line_number, &format!("has more than {LINE_BYTES_MAX} bytes")));
            }
            if lines.bytes[start..].iter().all(u8::is_ascii_whitespace) {
                lines.bytes.truncate(start);
            } else {
                lines.ends.push((lines.bytes.len(), line_number));
            }
            let is_full = lines.ends.len() >= BATCH_ROWS || lines.bytes.len() >= BATCH_BYTES;
            if (is_full || read == 0) && !lines.ends.is_empty() {
                let rows = self.decode(&lines)?;
                let source = format!("`{}`", self.file.name());
                let mut shape =
                    RowShape::complete(&source, &self.columns, &rows.schema())?.after(rows_before);
                rows_before += rows.num_rows() as u64;
                is_wanted = sink(shape.apply(&rows)?);
                lines.bytes.clear();
                lines.ends.clear();
            }
            if read == 0 {
                break;
            }
        }
        Ok(())
    }

    fn decoder(&self) -> Result<Decoder, Error> {
        ReaderBuilder::new(self.parsed.clone())
            .with_batch_size(BATCH_ROWS)
            .with_strict_mode(true)
            .build_decoder()
            .map_err(|error| Error::Unsupported(format!("a column cannot be read from JSON: {error}")))
    }

    fn decode(&self, lines: &Lines) -> Result<RecordBatch, Error> {
        let mut decoder = self.decoder()?;
        let mut start = 0;
        for (end, number) in &lines.ends {
            let line = &lines.bytes[start..*end];
            decoder.decode(line).map_err(|error| self.wrong(*number, &error))?;
            if decoder.has_partial_record() {
                return Err(self.wrong(*number, &"the object does not end on this line"));
            }
            start = *end;
        }
        match decoder.flush() {
            Ok(Some(rows)) => Ok(rows),
            Ok(None) => Err(Error::Internal(format!("`{}`: lines without rows", self.file.name()))),
            Err(error) => Err(self.find_wrong(lines, &error)?),
        }
    }

    /// A value that does not fit shows only when the batch is made: tries the
    /// lines one by one.
    fn find_wrong(&self, lines: &Lines, error: &dyn std::fmt::Display) -> Result<Error, Error> {
        let mut start = 0;
        for (end, number) in &lines.ends {
            let mut decoder = self.decoder()?;
            decoder.decode(&lines.bytes[start..*end]).map_err(|error| self.wrong(*number, &error))?;
            if let Err(error) = decoder.flush() {
                return Ok(self.wrong(*number, &error));
            }
            start = *end;
        }
        Ok(Error::Invalid(format!("`{}`: {error}", self.file.name())))
    }

    fn wrong(&self, line: u64, error: &dyn std::fmt::Display) -> Error {
        Error::Invalid(format!(
            "`{}`, line {line}: {error} (expected is one JSON object per line)",
            self.file.name()
        ))
    }
}
