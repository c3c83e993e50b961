//! JSON: an array of objects, or an object per line.

use std::io::{self, Write};

use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::record_batch::RecordBatch;

use super::Renderer;
use super::format::invalid_data;

pub(super) struct Json {
    array: bool,
    opened: bool,
    buffer: Vec<u8>,
}

impl Json {
    pub(super) fn array() -> Self {
        Self { array: true, opened: false, buffer: Vec::new() }
    }

    pub(super) fn lines() -> Self {
        Self { array: false, opened: false, buffer: Vec::new() }
    }
}

impl Renderer for Json {
    fn rows(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> io::Result<()> {
        self.buffer.clear();
        let mut writer =
            WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut self.buffer);
        writer.write(batch).and_then(|()| writer.finish()).map_err(invalid_data)?;
        drop(writer);
        if !self.array {
            return out.write_all(&self.buffer);
        }
        // An object never contains a line feed: JSON escapes them.
        for object in self.buffer.split(|byte| *byte == b'\n').filter(|object| !object.is_empty()) {
            out.write_all(if self.opened { b",\n " } else { b"[" })?;
            self.opened = true;
            out.write_all(object)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match (self.array, self.opened) {
            (false, _) => Ok(()),
            (true, true) => out.write_all(b"]\n"),
            (true, false) => out.write_all(b"[]\n"),
        }
    }
}
