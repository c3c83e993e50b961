//! One line per value: for rows that are wider than the terminal.

use std::io::{self, Write};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use super::cell::{Cell, Cells};
use super::format::invalid_data;
use super::width::{made_safe, push_padded};
use super::{Layout, Renderer, display_width, quantity};

pub(super) struct VerticalRenderer {
    layout: Layout,
    names: Vec<String>,
    name_width: usize,
    rows_written: u64,
}

impl VerticalRenderer {
    pub(super) fn new(layout: Layout, schema: &SchemaRef) -> Self {
        let names: Vec<String> = schema.fields().iter().map(|field| made_safe(field.name(), false)).collect();
        let name_width = names.iter().map(|name| display_width(name)).max().unwrap_or(0);
        Self { layout, names, name_width, rows_written: 0 }
    }

    fn write_record(&mut self, cells: &[Cell], out: &mut dyn Write) -> io::Result<()> {
        let paint = self.layout.paint;
        let (dash, bar) = if self.layout.unicode { ("─", "│") } else { ("-", "|") };
        self.rows_written += 1;
        let mut title = format!("{dash}[ {} ]", self.rows_written);
        let fill = (self.name_width + 3).saturating_sub(display_width(&title)).max(3);
        title.push_str(&dash.repeat(fill));
        writeln!(out, "{}", paint.dim(&title))?;
        for (name, cell) in self.names.iter().zip(cells) {
            let mut label = String::new();
            push_padded(&mut label, name, self.name_width, false);
            let bar = paint.dim(bar);
            match cell {
                Cell::Null => writeln!(out, "{} {bar} {}", paint.head(&label), paint.dim(&self.layout.null))?,
                Cell::Text(text) => {
                    let text = made_safe(text, true);
                    let mut label = paint.head(&label);
                    for line in text.split('\n') {
                        writeln!(out, "{}", format!("{label} {bar} {line}").trim_end())?;
                        label = " ".repeat(self.name_width);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Renderer for VerticalRenderer {
    fn rows(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> io::Result<()> {
        let cells = Cells::new(batch).map_err(invalid_data)?;
        for row in 0..cells.row_count() {
            let record: Vec<Cell> = cells.row(row).collect();
            self.write_record(&record, out)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.layout.footer {
            writeln!(out, "({})", quantity::rows(self.rows_written))?;
        }
        Ok(())
    }
}
