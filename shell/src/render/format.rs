//! The output formats, and choosing the renderer for a result.

use std::io::{self, Write};

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use clap::ValueEnum;

use super::Paint;
use super::delimited::{Delimited, Dialect};
use super::json::Json;
use super::table::{ExplainRenderer, TableRenderer};
use super::vertical::VerticalRenderer;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// Comma-separated values (RFC 4180), with a header.
    Csv,
    /// Tab-separated values with backslash escapes, with a header.
    Tsv,
    /// One JSON array of objects.
    Json,
    /// One JSON object per line.
    Ndjson,
    /// One line per value.
    Vertical,
    /// A Markdown table.
    Markdown,
}

/// Whether a table is turned on its side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expanded {
    /// Never.
    #[default]
    Off,
    /// Always.
    On,
    /// When it is wider than the terminal.
    Auto,
}

/// How a result is laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The format.
    pub format: Format,
    /// Whether a table is turned on its side.
    pub expanded: Expanded,
    /// Columns of the terminal that it is written to. None: not a terminal,
    /// so nothing is cut.
    pub width: Option<usize>,
    /// Colour.
    pub paint: Paint,
    /// Draw lines with box characters.
    pub unicode: bool,
    /// What NULL is written as in tables.
    pub null: String,
    /// Write the columns' names in CSV and TSV.
    pub header: bool,
    /// Rows that a table looks at to size its columns.
    pub rows_sized: usize,
    /// Write `(3 rows)` below a table.
    pub footer: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            format: Format::Table,
            expanded: Expanded::Off,
            width: None,
            paint: Paint::PLAIN,
            unicode: false,
            null: "NULL".to_owned(),
            header: true,
            rows_sized: 1000,
            footer: true,
        }
    }
}

/// Writes one result. Errors are the destination's; a value that has no text
/// is `InvalidData`.
pub trait Renderer: Send {
    /// Takes the next rows; they may be written later.
    ///
    /// # Errors
    /// Those of `out`.
    fn rows(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> io::Result<()>;

    /// Writes what is left.
    ///
    /// # Errors
    /// Those of `out`.
    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()>;

    /// What a person should know about what was written, such as columns
    /// that did not fit.
    fn remark(&self) -> Option<String> {
        None
    }
}

impl Layout {
    /// The renderer for a result with these columns.
    pub fn renderer(&self, schema: &SchemaRef) -> Box<dyn Renderer> {
        match self.format {
            Format::Table if is_explain(schema) => Box::new(ExplainRenderer::new(self.clone())),
            Format::Table if self.expanded == Expanded::On => {
                Box::new(VerticalRenderer::new(self.clone(), schema))
            }
            Format::Table => Box::new(TableRenderer::new(self.clone(), schema)),
            Format::Vertical => Box::new(VerticalRenderer::new(self.clone(), schema)),
            Format::Csv => Box::new(Delimited::new(Dialect::Csv, schema, self.header)),
            Format::Tsv => Box::new(Delimited::new(Dialect::Tsv, schema, self.header)),
            Format::Markdown => Box::new(Delimited::new(Dialect::Markdown, schema, true)),
            Format::Json => Box::new(Json::array()),
            Format::Ndjson => Box::new(Json::lines()),
        }
    }
}

/// Whether these are the columns of EXPLAIN, whose text has a shape of its
/// own.
fn is_explain(schema: &SchemaRef) -> bool {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    names == ["plan_type", "plan"]
}

pub(super) fn invalid_data(error: ArrowError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
