//! One JSON object per line.

use std::io::{BufRead, Read};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use shoal_proto::{ErrorCode, Failure};

use super::text::text_in;
use super::{BATCH_BYTES, BATCH_ROWS, FileFormat, RowShape, Sink, SourceFile};

/// A line may have so many bytes.
const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A file of JSON lines, or those of them that begin in a range.
#[derive(Clone)]
pub struct JsonFile {
    file: SourceFile,
    format: FileFormat,
    columns: SchemaRef,
    /// The columns, all nullable: nulls are looked for with better messages.
    parsed: SchemaRef,
    range: Option<Range<u64>>,
}

/// Lines that are not a batch yet.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`, and its number in the file.
    ends: Vec<(usize, u64)>,
}

impl JsonFile {
    pub(super) fn open(file: SourceFile, format: &FileFormat, columns: &SchemaRef) -> Result<Self, Failure> {
        let fields =
            columns.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
        let parsed = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let opened = Self { file, format: format.clone(), columns: columns.clone(), parsed, range: None };
        opened.decoder()?;
        Ok(opened)
    }

    /// The file.
    pub(super) fn file(&self) -> &SourceFile {
        &self.file
    }

    /// What of it, if not all.
    pub(super) fn range(&self) -> Option<&Range<u64>> {
        self.range.as_ref()
    }

    /// The lines that begin in this range of a file that is not compressed. No object
    /// goes on behind the end of its line, so they are what the whole file has there.
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        Self { range: Some(range), ..self.clone() }
    }

    /// Hands all rows to `sink`. Of a part, errors have lines of that part.
    pub(super) fn read(&self, sink: Sink<'_>) -> Result<(), Failure> {
        let mut text = text_in(&self.file, &self.format, self.range.as_ref())?;
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

    fn decoder(&self) -> Result<Decoder, Failure> {
        ReaderBuilder::new(self.parsed.clone())
            .with_batch_size(BATCH_ROWS)
            .with_strict_mode(true)
            .build_decoder()
            .map_err(|error| {
                Failure::new(ErrorCode::Unsupported, format!("a column cannot be read from JSON: {error}"))
            })
    }

    fn decode(&self, lines: &Lines) -> Result<RecordBatch, Failure> {
        let mut decoder = self.decoder()?;
        let mut start = 0;
        for (end, number) in &lines.ends {
            let line = &lines.bytes[start..*end];
            let taken = decoder.decode(line).map_err(|error| self.wrong(*number, &error))?;
            if decoder.has_partial_record() {
                return Err(self.wrong(*number, &"the object does not end on this line"));
            }
            // With as many objects as it takes at once the decoder stops, and says nothing.
            if !line[taken..].trim_ascii().is_empty() {
                return Err(self.wrong(*number, &"there are more objects than lines"));
            }
            start = *end;
        }
        match decoder.flush() {
            Ok(Some(rows)) => Ok(rows),
            Ok(None) => {
                Err(Failure::new(ErrorCode::Internal, format!("`{}`: lines without rows", self.file.name())))
            }
            Err(error) => Err(self.find_wrong(lines, &error)?),
        }
    }

    /// A value that does not fit shows only when the batch is made: tries the
    /// lines one by one.
    fn find_wrong(&self, lines: &Lines, error: &dyn std::fmt::Display) -> Result<Failure, Failure> {
        let mut start = 0;
        for (end, number) in &lines.ends {
            let mut decoder = self.decoder()?;
            decoder.decode(&lines.bytes[start..*end]).map_err(|error| self.wrong(*number, &error))?;
            if let Err(error) = decoder.flush() {
                return Ok(self.wrong(*number, &error));
            }
            start = *end;
        }
        Ok(Failure::new(ErrorCode::Invalid, format!("`{}`: {error}", self.file.name())))
    }

    fn wrong(&self, line: u64, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(
            ErrorCode::Invalid,
            format!("`{}`, line {line}: {error} (expected is one JSON object per line)", self.file.name()),
        )
    }
}
