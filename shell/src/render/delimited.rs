//! CSV, TSV and Markdown: one line per row, written at once.

use std::io::{self, Write};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use super::Renderer;
use super::cell::{Cell, Cells, numeric_columns};
use super::format::invalid_data;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// RFC 4180 with line feeds; NULL is nothing and empty text is `""`.
    Csv,
    /// `\t`, `\n`, `\\` as escapes; NULL is `\N`.
    Tsv,
    /// Pipes; NULL is nothing.
    Markdown,
}

pub(super) struct Delimited {
    dialect: Dialect,
    names: Vec<String>,
    numeric: Vec<bool>,
    header: bool,
    line: String,
}

impl Delimited {
    pub(super) fn new(dialect: Dialect, schema: &SchemaRef, header: bool) -> Self {
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        Self { dialect, names, numeric: numeric_columns(schema), header, line: String::new() }
    }

    fn write_header(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if !std::mem::take(&mut self.header) {
            return Ok(());
        }
        let names: Vec<Cell> = self.names.iter().cloned().map(Cell::Text).collect();
        self.write_line(names.into_iter(), out)?;
        if self.dialect == Dialect::Markdown {
            let marks: String =
                self.numeric.iter().map(|numeric| if *numeric { " ---: |" } else { " --- |" }).collect();
            writeln!(out, "|{marks}")?;
        }
        Ok(())
    }

    fn write_line(&mut self, cells: impl Iterator<Item = Cell>, out: &mut dyn Write) -> io::Result<()> {
        let line = &mut self.line;
        line.clear();
        if self.dialect == Dialect::Markdown {
            line.push('|');
        }
        for (index, cell) in cells.enumerate() {
            match self.dialect {
                Dialect::Csv => {
                    if index > 0 {
                        line.push(',');
                    }
                    push_csv(line, &cell);
                }
                Dialect::Tsv => {
                    if index > 0 {
                        line.push('\t');
                    }
                    push_tsv(line, &cell);
                }
                Dialect::Markdown => {
                    line.push(' ');
                    push_markdown(line, &cell);
                    line.push_str(" |");
                }
            }
        }
        line.push('\n');
        out.write_all(line.as_bytes())
    }
}

impl Renderer for Delimited {
    fn rows(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> io::Result<()> {
        self.write_header(out)?;
        let cells = Cells::new(batch).map_err(invalid_data)?;
        for row in 0..cells.row_count() {
            self.write_line(cells.row(row), out)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.write_header(out)
    }
}

fn push_csv(line: &mut String, cell: &Cell) {
    let Cell::Text(text) = cell else {
        return;
    };
    let needs_quotes = text.is_empty()
        || text.contains(['"', ',', '\n', '\r'])
        || text.starts_with(char::is_whitespace)
        || text.ends_with(char::is_whitespace);
    if needs_quotes {
        line.push('"');
        line.push_str(&text.replace('"', "\"\""));
        line.push('"');
    } else {
        line.push_str(text);
    }
}

fn push_tsv(line: &mut String, cell: &Cell) {
    let Cell::Text(text) = cell else {
        line.push_str("\\N");
        return;
    };
    for character in text.chars() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\t' => line.push_str("\\t"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            other => line.push(other),
        }
    }
}

fn push_markdown(line: &mut String, cell: &Cell) {
    let Cell::Text(text) = cell else {
        return;
    };
    for character in text.chars() {
        match character {
            '|' => line.push_str("\\|"),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("<br>"),
            '\r' => {}
            '<' => line.push_str("&lt;"),
            other => line.push(other),
        }
    }
}
