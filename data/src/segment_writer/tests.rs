//! Segments that are written and read back.

use std::sync::Arc;

use arrow::array::*;
use arrow::compute::concat_batches;
// `record_batch!` looks for it by this name.
use arrow::datatypes as arrow_schema;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;
use proptest::prelude::*;

use super::*;
use crate::{ColumnStatistics, KeyHash, ReplicaCount, StatValue, TableLayout, checksum};

fn table(columns: SchemaRef, sort_key: &[&str]) -> Table {
    Table {
        id: TableId(7),
        schema_name: "public".into(),
        name: "t".into(),
        columns,
        layout: TableLayout {
            shards: 2,
            replicas: ReplicaCount::Count(1),
            shard_key: vec![],
            sort_key: sort_key.iter().map(|name| (*name).to_owned()).collect(),
            hash: KeyHash::CURRENT,
            bloom_filters: Vec::new(),
        },
        placement: vec![],
        segments: vec![],
        sketches: None,
    }
}

fn encode(batches: &[RecordBatch], sort_key: &[&str]) -> EncodedSegment {
    let table = table(batches[0].schema(), sort_key);
    SegmentWriter::new(&table).unwrap().encode(1, SegmentId::random(), batches.to_vec()).unwrap()
}

fn decode(encoded: &EncodedSegment) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(encoded.bytes.clone()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

#[test]
fn rows_are_sorted_and_equal_keys_keep_their_order() {
    let batch = |keys: Vec<Option<i64>>, values: Vec<&str>| {
        record_batch!(("k", Int64, keys), ("v", Utf8View, values)).unwrap()
    };
    let batches = [
        batch(vec![Some(3), None, Some(1)], vec!["a", "b", "c"]),
        batch(vec![Some(1), Some(3)], vec!["d", "e"]),
    ];
    let encoded = encode(&batches, &["k"]);
    let rows = decode(&encoded);
    assert_eq!(rows.column(0).as_ref(), &Int64Array::from(vec![Some(1), Some(1), Some(3), Some(3), None]));
    assert_eq!(rows.column(1).as_ref(), &StringViewArray::from(vec!["c", "d", "a", "e", "b"]));
    assert_eq!(encoded.segment.rows, 5);
    assert_eq!(encoded.segment.crc32c, checksum::crc32c(&encoded.bytes));
    assert_eq!(encoded.segment.bytes, encoded.bytes.len() as u64);
    assert_eq!(
        encoded.segment.columns.get(0),
        Some(ColumnStatistics { nulls: 1, min: Some(StatValue::Int(1)), max: Some(StatValue::Int(3)) })
    );
}

#[test]
fn only_columns_that_are_to_have_bloom_filters_have_them() {
    let batch = record_batch!(("k", Int64, [3, 1, 2]), ("v", Utf8, ["a", "b", "c"])).unwrap();
    let mut table = table(batch.schema(), &[]);
    table.layout.bloom_filters = vec!["v".to_owned()];
    let encoded = SegmentWriter::new(&table).unwrap().encode(1, SegmentId::random(), vec![batch.clone()]);
    let mut merging = SortedWriter::new(&table, 1, &[], usize::MAX).unwrap();
    assert!(merging.push(batch.clone()).unwrap().is_none());
    let compacted = merging.finish().unwrap().unwrap();
    for segment in [encoded.unwrap(), compacted] {
        let reader = ParquetRecordBatchReaderBuilder::try_new(segment.bytes.clone()).unwrap();
        let columns = reader.metadata().row_group(0).columns();
        let have: Vec<bool> = columns.iter().map(|column| column.bloom_filter_offset().is_some()).collect();
        assert_eq!(have, [false, true]);
        assert_eq!(decode(&segment), batch);
        // Not one for as many values as a row group may have.
        assert!(segment.bytes.len() < 20_000, "{} bytes", segment.bytes.len());
    }
}

#[test]
fn without_sort_key_rows_stay_as_written() {
    let batch = record_batch!(("k", Int64, [3, 1, 2]), ("v", Utf8, ["a", "b", "c"])).unwrap();
    assert_eq!(decode(&encode(std::slice::from_ref(&batch), &[])), batch);
}

#[test]
fn several_columns_sort_in_their_order() {
    let batch = record_batch!(("a", Utf8, ["y", "x", "x"]), ("b", Float64, [1.0, 2.0, -2.0])).unwrap();
    let rows = decode(&encode(&[batch], &["a", "b"]));
    assert_eq!(rows, record_batch!(("a", Utf8, ["x", "x", "y"]), ("b", Float64, [-2.0, 2.0, 1.0])).unwrap());
}

#[test]
fn bounds_are_exact_or_missing() {
    let long = "x".repeat(300);
    let batch = record_batch!(
        ("float", Float64, [1.0, f64::NAN]),
        ("number", Float64, [1.0, 2.0]),
        ("long", Utf8, [long.as_str(), "y"]),
        ("null", Int32, [None::<i32>, None])
    )
    .unwrap();
    let columns: Vec<_> = encode(&[batch], &[]).segment.columns.iter().collect();
    assert_eq!(columns[0], ColumnStatistics::default());
    assert_eq!(
        (&columns[1].min, &columns[1].max),
        (&Some(StatValue::Float(1.0)), &Some(StatValue::Float(2.0)))
    );
    assert_eq!((&columns[2].min, &columns[2].max), (&None, &Some(StatValue::Text("y".into()))));
    assert_eq!(columns[3], ColumnStatistics { nulls: 2, min: None, max: None });
}

#[test]
fn many_row_groups_make_one_bound() {
    let rows = (ROW_GROUP_ROWS * 2 + 5) as i64;
    let batch = RecordBatch::try_new(
        Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)])),
        vec![Arc::new((0..rows).rev().collect::<Int64Array>())],
    )
    .unwrap();
    let encoded = encode(&[batch], &["k"]);
    let reader = ParquetRecordBatchReaderBuilder::try_new(encoded.bytes.clone()).unwrap();
    assert_eq!(reader.metadata().num_row_groups(), 3);
    assert_eq!(encoded.segment.columns.min(0), Some(StatValue::Int(0)));
    assert_eq!(encoded.segment.columns.max(0), Some(StatValue::Int(rows - 1)));
    assert_eq!(decode(&encoded).column(0).as_ref(), &(0..rows).collect::<Int64Array>());
}

#[test]
fn a_lookup_by_key_decodes_few_rows() {
    let keys = Arc::new((0..50_000).collect::<Int64Array>());
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)]));
    let batch = RecordBatch::try_new(schema, vec![keys]).unwrap();
    let pages = |shard_key: &[&str]| {
        let mut table = table(batch.schema(), &["k"]);
        table.layout.shard_key = shard_key.iter().map(|name| (*name).to_owned()).collect();
        let encoded = SegmentWriter::new(&table).unwrap();
        let encoded = encoded.encode(1, SegmentId::random(), vec![batch.clone()]).unwrap();
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(encoded.bytes, options).unwrap();
        reader.metadata().offset_index().unwrap()[0][0].page_locations().len()
    };
    assert_eq!(pages(&["k"]), 50_000_usize.div_ceil(LOOKUP_PAGE_ROWS));
    assert_eq!(pages(&[]), 50_000_usize.div_ceil(PAGE_ROWS));
}

#[test]
fn of_many_columns_some_are_written_as_the_format_does() {
    let column = |_| Arc::new((0..1000).collect::<Int64Array>()) as ArrayRef;
    let columns = (0..PACKED_COLUMNS_MAX + 2).map(|index| (format!("c{index}"), column(index)));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let encoded = encode(std::slice::from_ref(&batch), &[]);
    assert_eq!(decode(&encoded), batch);
    let reader = ParquetRecordBatchReaderBuilder::try_new(encoded.bytes.clone()).unwrap();
    let is_packed = |index: usize| {
        let column = reader.metadata().row_group(0).column(index);
        column.encodings().any(|encoding| encoding == parquet::basic::Encoding::DELTA_BINARY_PACKED)
    };
    let packed = (0..batch.num_columns()).filter(|index| is_packed(*index)).count();
    assert_eq!(packed, PACKED_COLUMNS_MAX);
}

#[test]
fn a_segment_without_rows_is_refused() {
    let batch = record_batch!(("k", Int64, [1])).unwrap().slice(0, 0);
    let table = table(batch.schema(), &[]);
    assert!(SegmentWriter::new(&table).unwrap().encode(0, SegmentId::random(), vec![batch]).is_err());
}

/// What a writer of sorted rows makes of these batches, for segments that were
/// encoded before.
fn merged(
    sort_key: &[&str],
    before: &[EncodedSegment],
    batches: Vec<RecordBatch>,
    bytes_max: usize,
) -> Result<Vec<EncodedSegment>, DataError> {
    let table = table(batches[0].schema(), sort_key);
    let before: Vec<_> = before.iter().map(|encoded| Arc::new(encoded.segment.clone())).collect();
    let mut writer = SortedWriter::new(&table, 1, &before, bytes_max)?;
    let mut segments = Vec::new();
    for batch in batches {
        segments.extend(writer.push(batch)?);
    }
    segments.extend(writer.finish()?);
    Ok(segments)
}

#[test]
fn merged_rows_make_the_segment_that_all_of_them_together_make() {
    let batch = |keys: std::ops::Range<i64>| {
        let floats: ArrayRef = Arc::new(keys.clone().map(|key| key as f64 / 8.0).collect::<Float64Array>());
        let texts: ArrayRef = Arc::new(
            keys.clone().map(|key| (key % 3 > 0).then(|| format!("text {key}"))).collect::<StringArray>(),
        );
        let keys: ArrayRef = Arc::new(keys.collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([
            ("k", keys, false),
            ("f", floats, true),
            ("s", texts, true),
        ])
        .unwrap()
    };
    let rows = ROW_GROUP_ROWS as i64 + 5_000;
    let parts: Vec<_> = (0..rows).step_by(7_000).map(|from| batch(from..rows.min(from + 7_000))).collect();
    for sort_key in [vec!["k"], vec!["k", "s"], vec![]] {
        let before: Vec<_> = parts.iter().map(|part| encode(std::slice::from_ref(part), &sort_key)).collect();
        let whole = encode(&parts, &sort_key);
        let segments = merged(&sort_key, &before, parts.clone(), usize::MAX).unwrap();
        let [segment] = segments.as_slice() else { panic!("{} segments", segments.len()) };
        assert_eq!(decode(segment), decode(&whole));
        assert_eq!((segment.segment.rows, segment.segment.shard), (rows as u64, 1));
        assert_eq!(segment.segment.columns, whole.segment.columns);
        assert_eq!(segment.segment.crc32c, checksum::crc32c(&segment.bytes));
        assert_eq!(segment.segment.bytes, segment.bytes.len() as u64);
    }
}

#[test]
fn merged_rows_that_are_out_of_order_are_refused() {
    let batch = |keys: Vec<Option<i64>>| record_batch!(("k", Int64, keys)).unwrap();
    for batches in [
        vec![batch(vec![Some(1), Some(3), Some(2)])],
        vec![batch(vec![Some(1), Some(3)]), batch(vec![Some(2)])],
        vec![batch(vec![Some(1), None]), batch(vec![Some(2)])],
    ] {
        let error = merged(&["k"], &[], batches.clone(), usize::MAX).unwrap_err();
        assert!(error.to_string().contains("not in the order of their sort key"), "{error}");
        assert_eq!(merged(&[], &[], batches, usize::MAX).unwrap().len(), 1);
    }
    let equal = vec![batch(vec![Some(1), Some(1)]), batch(vec![Some(1), None]), batch(vec![None])];
    assert_eq!(merged(&["k"], &[], equal, usize::MAX).unwrap().len(), 1);
}

/// Numbers that are far apart, and so are their differences.
fn incompressible(number: i64) -> i64 {
    let mixed = number.wrapping_mul(0x1e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x3f58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 32)
}

#[test]
fn a_merged_segment_ends_where_it_is_large_enough() {
    let values: Int64Array = (0..200_000).map(incompressible).collect();
    let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, false)]));
    let whole = RecordBatch::try_new(schema.clone(), vec![Arc::new(values)]).unwrap();
    let batches: Vec<_> = (0..10).map(|part| whole.slice(part * 20_000, 20_000)).collect();
    let segments = merged(&[], &[], batches, 300_000).unwrap();
    assert!((3..=6).contains(&segments.len()), "{} segments", segments.len());
    let rows: Vec<_> = segments.iter().map(decode).collect();
    assert_eq!(concat_batches(&schema, &rows).unwrap().column(0), whole.column(0));
    assert_eq!(segments.iter().map(|encoded| encoded.segment.rows).sum::<u64>(), 200_000);
    assert!(merged(&[], &[], vec![whole.slice(0, 0)], 1).unwrap().is_empty());
}

#[test]
fn a_writer_of_merged_rows_tells_what_it_holds() {
    let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, false)]));
    let batch = |rows: i64| {
        let values: Int64Array = (0..rows).map(incompressible).collect();
        RecordBatch::try_new(schema.clone(), vec![Arc::new(values)]).unwrap()
    };
    let mut writer = SortedWriter::new(&table(schema.clone(), &[]), 1, &[], usize::MAX).unwrap();
    assert_eq!(writer.memory_bytes(), 0);
    // Some that wait, some that are encoded, and row groups that are written.
    for rows in [1_000, 20_000, 379_000] {
        let before = writer.memory_bytes();
        assert!(writer.push(batch(rows)).unwrap().is_none());
        assert!(writer.memory_bytes() > before, "{rows}");
    }
    assert!(writer.memory_bytes() >= 7 * 400_000, "{} bytes", writer.memory_bytes());
}

#[test]
fn what_is_not_a_number_is_found_in_merged_segments_too() {
    let batch = |keys: [i64; 2], values: [f64; 2]| {
        record_batch!(("k", Int64, keys.to_vec()), ("f", Float64, values.to_vec())).unwrap()
    };
    let parts = [batch([1, 2], [1.0, f64::NAN]), batch([3, 4], [2.0, 3.0])];
    let before: Vec<_> = parts.iter().map(|part| encode(std::slice::from_ref(part), &["k"])).collect();
    let segments = merged(&["k"], &before, parts.to_vec(), usize::MAX).unwrap();
    assert_eq!(segments[0].segment.columns.get(1), Some(ColumnStatistics::default()));
    let reader = ParquetRecordBatchReaderBuilder::try_new(segments[0].bytes.clone()).unwrap();
    assert!(reader.metadata().row_group(0).column(1).statistics().is_none());
    assert!(reader.metadata().row_group(0).column(0).statistics().is_some());
    // One that nobody told of would be lost to readers.
    let error = merged(&["k"], &before[1..], parts.to_vec(), usize::MAX).unwrap_err();
    assert!(error.to_string().contains("column `f`"), "{error}");
}

/// Some as far apart as they can be, and some that are near one another or missing.
fn times() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![any::<Option<i64>>(), (0..50_i64).prop_map(Some), Just(Some(i64::MIN)), Just(Some(i64::MAX))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_what_is_read(
        rows in prop::collection::vec((any::<Option<i32>>(), ".{0,20}", times()), 1..200),
        cut in 0..200_usize,
    ) {
        let numbers: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<Int32Array>());
        let texts: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.1.as_str())).collect::<StringViewArray>());
        let times: ArrayRef = Arc::new(rows.iter().map(|row| row.2).collect::<TimestampMicrosecondArray>());
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("n", numbers, true), ("text", texts, true), ("time", times, true),
        ]).unwrap();
        let cut = cut.min(rows.len());
        let batches = [batch.slice(0, cut), batch.slice(cut, rows.len() - cut)];
        let encoded = encode(&batches, &["n", "text", "time"]);

        let mut expected = rows;
        expected.sort_by_key(|(n, text, time)| (n.is_none(), *n, text.clone(), time.is_none(), *time));
        let read = decode(&encoded);
        let numbers = read.column(0).as_primitive::<arrow::datatypes::Int32Type>();
        let texts = read.column(1).as_string_view();
        let times = read.column(2).as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
        for (index, (n, text, time)) in expected.iter().enumerate() {
            prop_assert_eq!(numbers.is_valid(index).then(|| numbers.value(index)), *n);
            prop_assert_eq!(texts.value(index), text);
            prop_assert_eq!(times.is_valid(index).then(|| times.value(index)), *time);
        }
        let stats = encoded.segment.columns.get(0).unwrap();
        let values = || expected.iter().filter_map(|row| row.0);
        prop_assert_eq!(&stats.min, &values().min().map(|n| StatValue::Int(n.into())));
        prop_assert_eq!(&stats.max, &values().max().map(|n| StatValue::Int(n.into())));
        prop_assert_eq!(stats.nulls as usize, expected.iter().filter(|row| row.0.is_none()).count());
    }
}
