//! Aligned columns. The first rows size the columns and are then written;
//! later rows are written as they come.

mod fit;

use std::io::{self, Write};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use self::fit::Fit;
use super::cell::{Cell, Cells, numeric_columns};
use super::format::invalid_data;
use super::vertical::VerticalRenderer;
use super::width::{made_safe, push_padded};
use super::{Expanded, Layout, Renderer, display_width, quantity, truncated};

pub(super) struct TableRenderer {
    layout: Layout,
    schema: SchemaRef,
    numeric: Vec<bool>,
    state: State,
    rows_written: u64,
}

enum State {
    /// Rows are kept until there are enough of them to size the columns.
    Sizing { kept: Vec<RecordBatch>, row_count: usize },
    /// The header is written.
    Writing(Fit),
    /// It does not fit and was turned on its side.
    Turned(VerticalRenderer),
}

impl TableRenderer {
    pub(super) fn new(layout: Layout, schema: &SchemaRef) -> Self {
        Self {
            layout,
            schema: schema.clone(),
            numeric: numeric_columns(schema),
            state: State::Sizing { kept: Vec::new(), row_count: 0 },
            rows_written: 0,
        }
    }

    /// Sizes the columns by the rows kept, and writes those.
    fn start(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let State::Sizing { kept, .. } = &mut self.state else {
            return Ok(());
        };
        let kept = std::mem::take(kept);
        let names: Vec<String> =
            self.schema.fields().iter().map(|field| made_safe(field.name(), false)).collect();
        let mut widths: Vec<usize> = names.iter().map(|name| display_width(name)).collect();
        for batch in &kept {
            let cells = Cells::new(batch).map_err(invalid_data)?;
            for row in 0..cells.row_count() {
                for (width, cell) in widths.iter_mut().zip(cells.row(row)) {
                    *width = (*width).max(self.cell_width(&cell));
                }
            }
        }
        let fit = Fit::new(&widths, &self.numeric, self.layout.width);
        if self.layout.expanded == Expanded::Auto && !fit.is_whole() {
            let mut turned = VerticalRenderer::new(self.layout.clone(), &self.schema);
            for batch in &kept {
                turned.rows(batch, out)?;
            }
            self.state = State::Turned(turned);
            return Ok(());
        }
        self.write_header(&names, &fit, out)?;
        for batch in &kept {
            self.write_rows(batch, &fit, out)?;
        }
        self.state = State::Writing(fit);
        Ok(())
    }

    fn cell_width(&self, cell: &Cell) -> usize {
        match cell {
            Cell::Null => display_width(&self.layout.null),
            Cell::Text(text) => made_safe(text, true).split('\n').map(display_width).max().unwrap_or(0),
        }
    }

    fn write_header(&self, names: &[String], fit: &Fit, out: &mut dyn Write) -> io::Result<()> {
        let paint = self.layout.paint;
        let (bar, dash, cross) = if self.layout.unicode { ("│", "─", "┼") } else { ("|", "-", "+") };
        let bar = paint.dim(bar);
        let mut head = String::new();
        let mut rule = String::new();
        for (index, slot) in fit.slots().iter().enumerate() {
            if index > 0 {
                head.push_str(&bar);
                rule.push_str(cross);
            }
            let name = slot.column.map_or("…", |column| names[column].as_str());
            let right = slot.column.is_some_and(|column| self.numeric[column]);
            let mut padded = String::new();
            push_padded(&mut padded, &truncated(name, slot.width), slot.width, right);
            if index + 1 == fit.slots().len() {
                padded.truncate(padded.trim_end().len());
            }
            head.push_str(&format!(" {} ", paint.head(&padded)));
            rule.push_str(&dash.repeat(slot.width + 2));
        }
        writeln!(out, "{}", head.trim_end())?;
        writeln!(out, "{}", paint.dim(&rule))
    }

    fn write_rows(&mut self, batch: &RecordBatch, fit: &Fit, out: &mut dyn Write) -> io::Result<()> {
        let cells = Cells::new(batch).map_err(invalid_data)?;
        for row in 0..cells.row_count() {
            let row: Vec<Cell> = cells.row(row).collect();
            self.write_row(&row, fit, out)?;
        }
        self.rows_written += cells.row_count() as u64;
        Ok(())
    }

    /// Writes one row, which has as many lines as its cell with the most.
    fn write_row(&self, row: &[Cell], fit: &Fit, out: &mut dyn Write) -> io::Result<()> {
        let paint = self.layout.paint;
        let bar = paint.dim(if self.layout.unicode { "│" } else { "|" });
        let texts: Vec<Option<String>> = row
            .iter()
            .map(|cell| match cell {
                Cell::Null => None,
                Cell::Text(text) => Some(made_safe(text, true)),
            })
            .collect();
        let line_count = texts.iter().flatten().map(|text| text.split('\n').count()).max().unwrap_or(1);
        for line_index in 0..line_count {
            let mut line = String::new();
            for (index, slot) in fit.slots().iter().enumerate() {
                if index > 0 {
                    line.push_str(&bar);
                }
                line.push(' ');
                let Some(column) = slot.column else {
                    push_padded(&mut line, "…", slot.width, false);
                    line.push(' ');
                    continue;
                };
                let right = self.numeric[column];
                match &texts[column] {
                    None if line_index > 0 => push_padded(&mut line, "", slot.width, right),
                    None => {
                        let mut padded = String::new();
                        push_padded(&mut padded, &self.layout.null, slot.width, right);
                        line.push_str(&paint.dim(&padded));
                    }
                    Some(text) => {
                        let text = text.split('\n').nth(line_index).unwrap_or_default();
                        // A number that is cut is another number.
                        let cut = self.layout.width.is_some() && !right;
                        let shown = if cut { truncated(text, slot.width) } else { text.to_owned() };
                        push_padded(&mut line, &shown, slot.width, right);
                    }
                }
                line.push(' ');
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Renderer for TableRenderer {
    fn rows(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> io::Result<()> {
        match &mut self.state {
            State::Sizing { kept, row_count } => {
                kept.push(batch.clone());
                *row_count += batch.num_rows();
                if *row_count >= self.layout.rows_sized {
                    self.start(out)?;
                }
                Ok(())
            }
            State::Writing(fit) => {
                let fit = fit.clone();
                self.write_rows(batch, &fit, out)
            }
            State::Turned(vertical) => vertical.rows(batch, out),
        }
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.start(out)?;
        match &mut self.state {
            State::Turned(vertical) => vertical.finish(out),
            State::Sizing { .. } | State::Writing(_) if self.layout.footer => {
                writeln!(out, "({})", quantity::rows(self.rows_written))
            }
            State::Sizing { .. } | State::Writing(_) => Ok(()),
        }
    }

    fn remark(&self) -> Option<String> {
        let State::Writing(fit) = &self.state else {
            return None;
        };
        let total = self.numeric.len();
        let shown = fit.slots().iter().filter(|slot| slot.column.is_some()).count();
        (shown < total).then(|| format!("{shown} of {total} columns shown; \\x shows all"))
    }
}

/// EXPLAIN: each plan under its title, in full.
pub(super) struct ExplainRenderer {
    layout: Layout,
    first: bool,
}

impl ExplainRenderer {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, first: true }
    }
}

impl Renderer for ExplainRenderer {
    fn rows(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> io::Result<()> {
        let cells = Cells::new(batch).map_err(invalid_data)?;
        for row in 0..cells.row_count() {
            if !std::mem::take(&mut self.first) {
                writeln!(out)?;
            }
            for (index, cell) in cells.row(row).enumerate() {
                let Cell::Text(text) = cell else {
                    continue;
                };
                let text = made_safe(&text, true);
                if index == 0 {
                    writeln!(out, "{}", self.layout.paint.head(&text))?;
                } else {
                    for line in text.trim_end().split('\n') {
                        writeln!(out, "{}", format!("  {line}").trim_end())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}
