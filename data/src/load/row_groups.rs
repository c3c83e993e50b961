//! Parquet files, row group by row group.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use shoal_proto::Failure;

use super::{BATCH_BYTES, BATCH_ROWS, Piece, RowShape, Sink, SourceFile};

/// One row group of a file whose columns were checked. Clones share the footer.
#[derive(Clone)]
pub struct RowGroup {
    file: SourceFile,
    metadata: ArrowReaderMetadata,
    columns: SchemaRef,
    index: usize,
    rows_before: u64,
}

/// Reads the footer, checks the columns and cuts the file into row groups.
///
/// # Errors
/// `Invalid`, naming the file and what is wrong with it; why its bytes do not come.
pub fn row_groups(file: &SourceFile, columns: &SchemaRef) -> Result<Vec<RowGroup>, Failure> {
    let metadata = read_footer(file, Some(columns))?;
    RowShape::complete(&label(file), columns, metadata.schema())?;
    let mut rows_before = 0;
    let mut pieces = Vec::with_capacity(metadata.metadata().num_row_groups());
    for (index, row_group) in metadata.metadata().row_groups().iter().enumerate() {
        pieces.push(RowGroup {
            file: file.clone(),
            metadata: metadata.clone(),
            columns: columns.clone(),
            index,
            rows_before,
        });
        rows_before += u64::try_from(row_group.num_rows()).unwrap_or(0);
    }
    Ok(pieces)
}

/// The footer; text is read as the table has it, where the table is known.
///
/// # Errors
/// `Invalid` where it is none; why its bytes do not come.
pub fn read_footer(file: &SourceFile, columns: Option<&SchemaRef>) -> Result<ArrowReaderMetadata, Failure> {
    let unreadable = |error: parquet::errors::ParquetError| {
        file.failure_or(format!("`{}` is not a whole Parquet file: {error}", file.name()))
    };
    let own = ArrowReaderMetadata::load(file, ArrowReaderOptions::new()).map_err(unreadable)?;
    let Some(wanted) = columns.and_then(|columns| with_text_of(own.schema(), columns)) else {
        return Ok(own);
    };
    let options = ArrowReaderOptions::new().with_schema(wanted);
    Ok(ArrowReaderMetadata::try_new(Arc::clone(own.metadata()), options).unwrap_or(own))
}

/// The file's columns with the table's kinds of text and bytes, which saves a
/// cast; none where they are the same.
fn with_text_of(file: &SchemaRef, table: &Schema) -> Option<SchemaRef> {
    use DataType as T;
    let fields = file.fields().iter().map(|field| {
        let wanted = table.field_with_name(field.name()).map(Field::data_type);
        let is_text = |data_type: &T| matches!(data_type, T::Utf8 | T::LargeUtf8 | T::Utf8View);
        let is_bytes = |data_type: &T| matches!(data_type, T::Binary | T::LargeBinary | T::BinaryView);
        match wanted {
            Ok(wanted)
                if (is_text(wanted) && is_text(field.data_type()))
                    || (is_bytes(wanted) && is_bytes(field.data_type())) =>
            {
                Arc::new(field.as_ref().clone().with_data_type(wanted.clone()))
            }
            _ => Arc::clone(field),
        }
    });
    let wanted = Schema::new_with_metadata(fields.collect::<Vec<_>>(), file.metadata().clone());
    (wanted != **file).then(|| Arc::new(wanted))
}

fn label(file: &SourceFile) -> String {
    format!("`{}`", file.name())
}

impl RowGroup {
    /// The file that it is in.
    pub fn file(&self) -> &SourceFile {
        &self.file
    }

    /// Its number in the file.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Rows in it, as the footer says.
    pub fn rows(&self) -> u64 {
        u64::try_from(self.metadata.metadata().row_group(self.index).num_rows()).unwrap_or(0)
    }

    /// Bytes of it when they are decompressed, as the footer says.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.metadata.metadata().row_group(self.index).total_byte_size()).unwrap_or(0)
    }

    fn read_rows(&self, sink: Sink<'_>) -> Result<(), Failure> {
        let unreadable = |error: &dyn std::fmt::Display| {
            let message = format!("`{}` is damaged in row group {}: {error}", self.file.name(), self.index);
            self.file.failure_or(message)
        };
        let mut shape = RowShape::complete(&label(&self.file), &self.columns, self.metadata.schema())?
            .after(self.rows_before);
        let row_group = self.metadata.metadata().row_group(self.index);
        let (start, bytes) = row_group
            .columns()
            .iter()
            .map(|column| column.byte_range())
            .fold((u64::MAX, 0), |(start, end), (at, bytes)| {
                (start.min(at), end.max(at.saturating_add(bytes)))
            });
        let file = self.file.prefetched(start, bytes).map_err(|error| unreadable(&error))?;
        let row_bytes = row_group.total_byte_size().max(0) as usize
            / usize::try_from(row_group.num_rows()).unwrap_or(1).max(1);
        let batch_rows = (BATCH_BYTES / row_bytes.max(1)).clamp(1, BATCH_ROWS);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![self.index])
            .with_batch_size(batch_rows)
            .build()
            .map_err(|error| unreadable(&error))?;
        for batch in reader {
            let batch = batch.map_err(|error| unreadable(&error))?;
            if !sink(shape.apply(&batch)?) {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Piece for RowGroup {
    fn read(self, sink: Sink<'_>) -> Result<(), Failure> {
        let read = self.read_rows(sink);
        // What came of another version says nothing, neither rows nor errors.
        self.file.check_unchanged()?;
        read
    }
}

#[cfg(test)]
mod tests;
