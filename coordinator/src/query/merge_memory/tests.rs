//! Claims about the memory that a merge takes, from the footers of real segments.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;
use shoal_data::{SegmentWriter, Table};
use shoal_proto::{SegmentId, TableId};

use super::*;
use crate::catalog::state::tests::table;

const MIB: u64 = 1 << 20;

/// What a segment of one column takes.
fn footprint(column: ArrayRef) -> Footprint {
    let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
    let table = Table { columns: batch.schema(), ..table(TableId(1), "t") };
    let writer = SegmentWriter::new(&table).unwrap();
    let encoded = writer.encode(0, SegmentId::random(), vec![batch]).unwrap();
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let file_bytes = encoded.segment.bytes;
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(encoded.bytes, options).unwrap();
    let footprint = Footprint::of(reader.metadata(), file_bytes);
    assert!(footprint.fetched_bytes <= file_bytes, "{footprint:?}");
    footprint
}

fn of(file_mib: u64, page_mib: u64, row_bytes: u64) -> Footprint {
    Footprint {
        file_bytes: file_mib * MIB,
        fetched_bytes: file_mib * MIB,
        page_bytes: page_mib * MIB,
        row_bytes,
    }
}

#[test]
fn numbers_take_a_page_however_well_they_compress() {
    let same: ArrayRef = Arc::new(Int64Array::from(vec![7; 100_000]));
    let footprint = footprint(same);
    assert!(footprint.file_bytes < 100_000, "{footprint:?}");
    assert!((VALUE_BYTES..2 * VALUE_BYTES).contains(&footprint.row_bytes), "{footprint:?}");
    assert!(footprint.page_bytes < 100_000, "{footprint:?}");
    assert_eq!(fitting(&[footprint; 16], MEMORY_BYTES_MAX).unwrap().batch_rows, 2048);
}

#[test]
fn text_is_as_long_as_it_is_shown() {
    // Each is another one, and nearly the same.
    let long: ArrayRef = Arc::new((0..2_000).map(|n| Some(format!("{n:0>10000}"))).collect::<StringArray>());
    let long = footprint(long);
    assert!(long.file_bytes < 2 * MIB, "{long:?}");
    assert!((10_000..12_000).contains(&long.row_bytes), "{long:?}");
    assert!(long.page_bytes >= 500_000, "{long:?}");
    let fits = fitting(&[long; 16], MEMORY_BYTES_MAX).unwrap();
    assert_eq!(fits.places.len(), 16);
    assert!((300..500).contains(&fits.batch_rows), "{fits:?}");
    // All the same text, of which a file keeps one.
    let same: ArrayRef = Arc::new(vec![Some("x".repeat(10_000)); 2_000].into_iter().collect::<StringArray>());
    let same = footprint(same);
    assert!((10_000..12_000).contains(&same.row_bytes), "{same:?}");
    assert!(same.page_bytes < MIB, "{same:?}");
}

#[test]
fn a_few_long_rows_among_many_short_ones_count() {
    let text = |n: i32| if n / 50 == 300 { format!("{}{n}", "y".repeat(100_000)) } else { "y".to_owned() };
    let texts = (0..20_000).map(|n| Some(text(n)));
    let mixed: ArrayRef = Arc::new(texts.collect::<StringArray>());
    let mixed = footprint(mixed);
    // On the average they have 250 bytes.
    assert!(mixed.row_bytes >= 10_000, "{mixed:?}");
}

#[test]
fn as_many_are_merged_as_fit_and_long_rows_come_in_small_batches() {
    // Each takes (8 + 8 / 4) MiB of the new file, 8 fetched, and 2 * (1 + 4) decoded.
    let usual = of(8, 1, 1 << 20);
    assert_eq!(usual.bytes(), 28 * MIB);
    let fits = fitting(&[usual; 16], MEMORY_BYTES_MAX).unwrap();
    assert_eq!(fits, Fitting { places: (0..16).collect(), batch_rows: 4 });
    let fits = fitting(&[usual; 16], FIXED_BYTES + 3 * 28 * MIB).unwrap();
    assert_eq!(fits.places.len(), 3);
    // The largest stays behind, and does not make the batches small.
    let wide = of(8, 1, 64 << 20);
    let fits = fitting(&[usual, wide, of(1, 1, 100), usual], 200 * MIB).unwrap();
    assert_eq!(fits, Fitting { places: vec![0, 2, 3], batch_rows: 4 });
}

#[test]
fn what_does_not_fit_is_told() {
    let wide = of(60, 60, 60 << 20);
    let needed = fitting(&[wide, wide, wide], 500 * MIB).unwrap_err();
    assert_eq!(needed, FIXED_BYTES + 2 * wide.bytes());
    assert!(fitting(&[wide, wide], needed).is_ok());
    assert!(fitting(&[of(1, 1, 1); 2], FIXED_BYTES).is_err());
    assert_eq!(fitting(&[Footprint { row_bytes: u64::MAX, ..wide }; 2], u64::MAX - 1), Err(u64::MAX));
}

#[test]
fn a_compaction_takes_a_quarter_of_a_small_node_at_most() {
    let finite = |bytes: u64| limit_bytes(MemoryLimit::Finite(usize::try_from(bytes).unwrap()));
    assert_eq!(limit_bytes(MemoryLimit::Infinite), MEMORY_BYTES_MAX);
    assert_eq!(finite(64 << 30), MEMORY_BYTES_MAX);
    assert_eq!(finite(512 << 20), 128 << 20);
}
