//! What one thread reads of a file at a time, in each of the formats.

use std::ops::Range;

use arrow::datatypes::SchemaRef;
use shoal_proto::Failure;

use super::csv_file::CsvFile;
use super::json_file::JsonFile;
use super::text::ranges;
use super::{Compression, FileFormat, FileKind, Piece, RowGroup, Sink, SourceFile, row_groups};

/// A part of one file whose columns were checked.
#[derive(Clone)]
pub enum FilePiece {
    /// A row group of a Parquet file.
    Parquet(RowGroup),
    /// A file of delimited text, or a part of it.
    Csv(CsvFile),
    /// A file of JSON lines, or a part of it.
    Json(JsonFile),
}

impl FilePiece {
    /// Checks the columns of a file, as far as its head and footer say: its row groups, or
    /// all of it.
    ///
    /// # Errors
    /// `Invalid`, naming the file and what is wrong with it; why its bytes do not come.
    pub fn open(file: SourceFile, format: &FileFormat, columns: &SchemaRef) -> Result<Vec<Self>, Failure> {
        Ok(match format.kind {
            FileKind::Parquet => row_groups(&file, columns)?.into_iter().map(Self::Parquet).collect(),
            FileKind::Csv => vec![Self::Csv(CsvFile::open(file, format, columns)?)],
            FileKind::Json => vec![Self::Json(JsonFile::open(file, format, columns)?)],
        })
    }

    /// The file that it is in.
    pub fn file(&self) -> &SourceFile {
        match self {
            Self::Parquet(row_group) => row_group.file(),
            Self::Csv(csv) => csv.file(),
            Self::Json(json) => json.file(),
        }
    }

    /// Its bytes: decompressed for Parquet, as the footer says, and as they are for text.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Parquet(row_group) => row_group.bytes(),
            Self::Csv(_) | Self::Json(_) => {
                self.range().map_or(self.file().version().bytes, |range| range.end - range.start)
            }
        }
    }

    /// Rows in it, where that is known before it is read.
    pub fn rows(&self) -> Option<u64> {
        match self {
            Self::Parquet(row_group) => Some(row_group.rows()),
            Self::Csv(_) | Self::Json(_) => None,
        }
    }

    /// The bytes in which its lines begin; none where it is no part of a text.
    pub fn range(&self) -> Option<&Range<u64>> {
        match self {
            Self::Parquet(_) => None,
            Self::Csv(csv) => csv.range(),
            Self::Json(json) => json.range(),
        }
    }

    /// Parts of about so many bytes of a text that is not compressed; else it is one.
    /// Where all of them are read without an error their rows are those of the whole; an
    /// error may also be one only of where it was cut.
    pub fn cut(&self, format: &FileFormat, part_bytes: u64) -> Vec<Self> {
        let file = self.file();
        let is_whole_text = self.rows().is_none() && self.range().is_none();
        if !is_whole_text || format.stream_compression(file.name()) != Compression::None {
            return vec![self.clone()];
        }
        let ranges = ranges(file.version().bytes, part_bytes);
        if ranges.len() < 2 {
            return vec![self.clone()];
        }
        ranges.into_iter().map(|range| self.part(range)).collect()
    }

    /// The lines of this text that begin in a range; a row group as it is.
    pub fn part(&self, range: Range<u64>) -> Self {
        match self {
            Self::Parquet(row_group) => Self::Parquet(row_group.clone()),
            Self::Csv(csv) => Self::Csv(csv.part(range)),
            Self::Json(json) => Self::Json(json.part(range)),
        }
    }
}

impl Piece for FilePiece {
    fn read(self, sink: Sink<'_>) -> Result<(), Failure> {
        let read = match &self {
            Self::Parquet(row_group) => return row_group.clone().read(sink),
            Self::Csv(csv) => csv.read(sink),
            Self::Json(json) => json.read(sink),
        };
        // What came of another version says nothing, neither rows nor errors.
        self.file().check_unchanged()?;
        read
    }
}

#[cfg(test)]
mod tests;
