//! How much memory it takes to merge segments, and so how many of them are merged
//! at once.
//!
//! Pure: from the footers of their files. The catalog does not know how large rows
//! are once they are decoded: a file of a megabyte may hold a gigabyte of text.

use datafusion::execution::memory_pool::MemoryLimit;
use parquet::basic::Type;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

/// What a compaction takes at most. Where a node has less than four times that, it is
/// a quarter of what the node has: the rest is for queries.
const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// Rows of one batch at most.
const BATCH_ROWS: u64 = 2048;
/// About as much of one batch at most, or one row.
const BATCH_BYTES: u64 = 4 << 20;
/// What is on its way from what is read to what is written.
const FIXED_BYTES: u64 = 32 << 20;
/// A value in memory, without its text.
const VALUE_BYTES: u64 = 16;

/// What a compaction may take of a node's memory.
pub(super) fn limit_bytes(node: MemoryLimit) -> u64 {
    match node {
        MemoryLimit::Finite(bytes) => MEMORY_BYTES_MAX.min(bytes as u64 / 4),
        MemoryLimit::Infinite | MemoryLimit::Unknown => MEMORY_BYTES_MAX,
    }
}

/// What one segment takes while it is merged with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Of its file: about what the new one has of it.
    file_bytes: u64,
    /// Of its largest row group, which is fetched as it is stored.
    pub(super) fetched_bytes: u64,
    /// Of a page of each column, decoded.
    page_bytes: u64,
    /// Of a row in the page where rows are longest.
    row_bytes: u64,
}

impl Footprint {
    /// Of a segment with this footer, which has the offset index where there is one.
    pub(super) fn of(footer: &ParquetMetaData, file_bytes: u64) -> Self {
        let mut footprint = Self { file_bytes, ..Self::default() };
        for (number, group) in footer.row_groups().iter().enumerate() {
            let pages = footer.offset_index().and_then(|groups| groups.get(number));
            let (mut page_bytes, mut row_bytes) = (0_u64, 0_u64);
            for (index, column) in group.columns().iter().enumerate() {
                let pages = pages.and_then(|columns| columns.get(index));
                let (of_page, of_row) = of_column(column, positive(group.num_rows()), pages);
                page_bytes = page_bytes.saturating_add(of_page);
                row_bytes = row_bytes.saturating_add(of_row);
            }
            footprint.fetched_bytes = footprint.fetched_bytes.max(positive(group.compressed_size()));
            footprint.page_bytes = footprint.page_bytes.max(page_bytes);
            footprint.row_bytes = footprint.row_bytes.max(row_bytes);
        }
        footprint
    }

    fn batch_bytes(&self) -> u64 {
        self.row_bytes.saturating_mul(BATCH_ROWS).min(BATCH_BYTES.max(self.row_bytes))
    }

    /// All of it. A merge holds the batch that it has come to, and the one before as
    /// long as rows of it are on their way; the new file may become somewhat larger.
    fn bytes(&self) -> u64 {
        let decoded_bytes = self.page_bytes.saturating_add(self.batch_bytes());
        let written_bytes = self.file_bytes.saturating_add(self.file_bytes / 4);
        self.fetched_bytes.saturating_add(decoded_bytes.saturating_mul(2)).saturating_add(written_bytes)
    }
}

/// Bytes of the largest page of a column, and of a row in the page where they are
/// most, as far as the file tells.
fn of_column(column: &ColumnChunkMetaData, rows: u64, pages: Option<&OffsetIndexMetaData>) -> (u64, u64) {
    let (in_page, in_memory) = match column.column_type() {
        Type::BOOLEAN => (1, VALUE_BYTES),
        Type::INT32 | Type::FLOAT => (4, VALUE_BYTES),
        Type::INT64 | Type::DOUBLE => (8, VALUE_BYTES),
        Type::INT96 => (12, VALUE_BYTES),
        Type::BYTE_ARRAY => (4, VALUE_BYTES),
        Type::FIXED_LEN_BYTE_ARRAY => {
            let length = positive(column.column_descr().type_length().into());
            (length, length.max(VALUE_BYTES))
        }
    };
    let whole_bytes = positive(column.uncompressed_size());
    // Of lists there may be many in a row.
    let values = positive(column.num_values()).div_ceil(rows.max(1)).max(1);
    let (mut page_bytes, mut row_bytes) = (0_u64, 0_u64);
    let mut take = |rows: u64, text_bytes: u64| {
        let of_page = rows.saturating_mul(values).saturating_mul(in_page).saturating_add(text_bytes);
        page_bytes = page_bytes.max(of_page);
        let of_row = values.saturating_mul(in_memory).saturating_add(text_bytes.div_ceil(rows.max(1)));
        row_bytes = row_bytes.max(of_row);
    };
    match pages.map(|pages| (pages.page_locations(), pages.unencoded_byte_array_data_bytes())) {
        Some((locations, texts)) if !locations.is_empty() => {
            for (number, location) in locations.iter().enumerate() {
                let end = locations.get(number + 1).map_or(rows, |next| positive(next.first_row_index));
                let text_bytes = texts.and_then(|texts| texts.get(number)).map_or(0, |text| positive(*text));
                // What is nested may have more values in some rows: they are stored there.
                let stored_bytes = positive(location.compressed_page_size.into());
                take(end.saturating_sub(positive(location.first_row_index)), text_bytes.max(stored_bytes));
            }
        }
        _ => {
            let text_bytes = column.unencoded_byte_array_data_bytes().map_or(0, positive);
            take(rows, text_bytes.max(whole_bytes));
        }
    }
    // Its length is only known as it is stored.
    let dictionary = column.dictionary_page_offset().map_or(0, |at| positive(column.data_page_offset() - at));
    let stored_bytes = positive(column.compressed_size()).max(1);
    let dictionary_bytes = dictionary.saturating_mul(whole_bytes) / stored_bytes;
    (page_bytes.saturating_add(dictionary_bytes).min(whole_bytes), row_bytes)
}

fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Which segments are merged together, by their places, and how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fitting {
    /// In order.
    pub(super) places: Vec<usize>,
    /// Rows of one batch.
    pub(super) batch_rows: usize,
}

/// As many of these segments as can be merged in so much memory, those that take
/// least first.
///
/// # Errors
/// What it takes at least, where it is too much for two of them.
pub(super) fn fitting(footprints: &[Footprint], limit_bytes: u64) -> Result<Fitting, u64> {
    let mut by_size: Vec<usize> = (0..footprints.len()).collect();
    by_size.sort_by_key(|&place| footprints[place].bytes());
    let (mut bytes, mut row_bytes) = (FIXED_BYTES, 1);
    let mut places = Vec::new();
    for place in by_size {
        bytes = bytes.saturating_add(footprints[place].bytes());
        if bytes > limit_bytes {
            break;
        }
        places.push(place);
        row_bytes = row_bytes.max(footprints[place].row_bytes);
    }
    if places.len() < footprints.len().min(2) {
        return Err(bytes);
    }
    places.sort_unstable();
    let batch_rows = (BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS);
    Ok(Fitting { places, batch_rows: usize::try_from(batch_rows).unwrap_or(1) })
}

#[cfg(test)]
mod tests;
