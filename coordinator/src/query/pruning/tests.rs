//! What is looked up for a filter is what whole statistics say.

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::pruning::PrunableStatistics;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::prelude::{SessionContext, col, lit};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_data::{ColumnStatistics as Known, Sketches};
use shoal_proto::TableId;

use super::*;
use crate::catalog::state::tests::{segment, table};
use crate::query::ShardTable;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("number", DataType::Int32, true),
        Field::new("text", DataType::Utf8View, true),
        Field::new("price", DataType::Decimal128(15, 2), true),
        Field::new("unknown", DataType::Int64, true),
    ]))
}

/// Segments of which some bounds are not known, and one that has fewer columns.
fn segments(random: &mut StdRng) -> Vec<Arc<Segment>> {
    let mut segments = Vec::new();
    for number in 0..random.random_range(1..20_u64) {
        let mut some = |value: StatValue| random.random_bool(0.7).then_some(value);
        let at = i64::try_from(number).unwrap();
        let mut columns = vec![
            Known { nulls: number, min: some(StatValue::Int(at)), max: some(StatValue::Int(at * 3)) },
            Known { nulls: 0, min: some(StatValue::Text(format!("a{at}"))), max: None },
            Known {
                nulls: 1,
                min: some(StatValue::Decimal((at - 5).to_string())),
                max: some(StatValue::Decimal((at * 100).to_string())),
            },
            Known::default(),
        ];
        if number == 3 {
            columns.pop();
        }
        segments.push(Arc::new(Segment {
            rows: 10 + number,
            bytes: 1_000 * number,
            columns: columns.into(),
            ..segment(TableId(1), 0, "w1")
        }));
    }
    segments
}

/// Bounds as an array, with null where there is none; nothing where all are null.
fn array<'a>(bounds: impl Iterator<Item = &'a Precision<ScalarValue>>, field: &Field) -> Option<ArrayRef> {
    let unknown = ScalarValue::try_from(field.data_type()).unwrap();
    let bounds: Vec<ScalarValue> =
        bounds.map(|bound| bound.get_value().cloned().unwrap_or_else(|| unknown.clone())).collect();
    let is_known = bounds.iter().any(|bound| !bound.is_null());
    is_known.then(|| ScalarValue::iter_to_array(bounds).unwrap())
}

#[test]
fn bounds_and_counts_are_the_same() {
    let schema = schema();
    let all: Vec<usize> = (0..schema.fields().len()).collect();
    for seed in 0..100 {
        let segments = segments(&mut StdRng::seed_from_u64(seed));
        let each: Vec<Arc<Statistics>> =
            segments.iter().map(|segment| Arc::new(segment_statistics(segment, &schema, &all))).collect();
        let whole = PrunableStatistics::new(each.clone(), Arc::clone(&schema));
        let known = KnownSegments { segments: &segments, schema: &schema };
        assert_eq!(known.num_containers(), whole.num_containers());
        assert_eq!(known.row_counts(), whole.row_counts(), "seed {seed}");
        let table = Table { segments: segments.clone(), ..table(TableId(1), "t") };
        let facts = TableFacts::new(Arc::new(table));
        let of_table = KnownTable { facts: &facts, schema: &schema };
        assert_eq!(of_table.num_containers(), whole.num_containers());
        assert_eq!(of_table.row_counts(), whole.row_counts(), "seed {seed}");
        for (index, field) in schema.fields().iter().enumerate() {
            let column = Column::from_name(field.name());
            let of_column = || each.iter().map(|each| &each.column_statistics[index]);
            let mins = array(of_column().map(|column| &column.min_value), field);
            let maxes = array(of_column().map(|column| &column.max_value), field);
            assert_eq!(known.min_values(&column), mins, "seed {seed}, {field}");
            assert_eq!(known.max_values(&column), maxes, "seed {seed}, {field}");
            assert_eq!(known.null_counts(&column), whole.null_counts(&column), "seed {seed}, {field}");
            for _ in 0..2 {
                assert_eq!(of_table.min_values(&column), mins, "seed {seed}, {field}");
                assert_eq!(of_table.max_values(&column), maxes, "seed {seed}, {field}");
                assert_eq!(of_table.null_counts(&column), whole.null_counts(&column), "seed {seed}, {field}");
            }
        }
        let strange = Column::from_name("no such column");
        assert_eq!(known.min_values(&strange), None);
        assert_eq!(known.null_counts(&strange), None);
    }
}

#[test]
fn what_is_known_of_many_together_is_what_is_known_of_all_at_once() {
    let schema = schema();
    let some = [2, 0];
    let mut random = StdRng::seed_from_u64(1);
    let mut many = Vec::new();
    while many.len() < 2 * MERGED_AT_ONCE + 1 {
        many.extend(segments(&mut random));
    }
    for count in [1, 2, MERGED_AT_ONCE, MERGED_AT_ONCE + 1, many.len()] {
        let segments = &many[..count];
        let each: Vec<Statistics> =
            segments.iter().map(|segment| segment_statistics(segment, &schema, &some)).collect();
        let at_once = Statistics::try_merge_iter(&each, &schema).unwrap();
        let merged = merged_statistics(segments, &schema, &some).unwrap();
        assert_eq!(merged, at_once, "{count} segments");
        let table = Table { segments: segments.to_vec(), ..table(TableId(1), "t") };
        let facts = TableFacts::new(Arc::new(table));
        for known in ["worked out", "kept"] {
            let of_table = table_statistics(&facts, &schema, &some).unwrap();
            assert_eq!(of_table, merged, "{count} segments, {known}");
        }
        let widened = widened(merged.clone(), &schema, &some);
        assert_eq!(widened.column_statistics.len(), schema.fields().len());
        assert_eq!(widened.column_statistics[2], merged.column_statistics[0]);
        assert_eq!(widened.column_statistics[0], merged.column_statistics[1]);
        assert_eq!(widened.column_statistics[1], ColumnStatistics::new_unknown());
        assert_eq!((widened.num_rows, widened.total_byte_size), (at_once.num_rows, at_once.total_byte_size));
    }
}

/// A table of numbers and their remainders, in two segments of which one has the numbers to 499; with
/// what it knows of distinct values.
fn halves(is_sketched: bool) -> ShardTable {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
    let remainders: ArrayRef = Arc::new(Int64Array::from_iter_values((0..1_000).map(|number| number % 30)));
    let nothing: ArrayRef = Arc::new((0..1_000).map(|_| None::<i64>).collect::<Int64Array>());
    let columns = [("n", numbers), ("r", remainders), ("x", nothing)];
    let columns = columns.map(|(name, column)| (name, column, true));
    let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let half = |from: i64| {
        let bound = |value: i64| Some(StatValue::Int(value));
        let columns = vec![
            Known { nulls: 0, min: bound(from), max: bound(from + 499) },
            Known { nulls: 0, min: bound(0), max: bound(29) },
            Known { nulls: 500, min: None, max: None },
        ];
        Arc::new(Segment { rows: 500, columns: columns.into(), ..segment(TableId(1), 0, "w1") })
    };
    let sketches = Sketches::of_rows(&rows).map(Arc::new).filter(|_| is_sketched);
    let segments = vec![half(0), half(500)];
    let made = Table { columns: rows.schema(), segments, sketches, ..table(TableId(1), "t") };
    ShardTable::new(Arc::new(TableFacts::new(Arc::new(made))))
}

fn check_close(found: &Precision<usize>, expected: usize) {
    let Precision::Inexact(found) = found else { panic!("{found:?} in place of about {expected}") };
    assert!(found.abs_diff(expected) <= expected / 10, "{found} in place of {expected}");
}

/// What a scan of all columns offers.
async fn offered(table: &ShardTable, filters: &[Expr]) -> Statistics {
    let session = SessionContext::new().state();
    let scan = table.scan(&session, None, filters, None).await.unwrap();
    let offered = StatisticsContext::new().compute(scan.as_ref(), &StatisticsArgs::new());
    Statistics::clone(&offered.unwrap())
}

#[tokio::test]
async fn scans_offer_about_how_many_values_there_are_and_no_more_than_rows() {
    let table = halves(true);
    let all = offered(&table, &[]).await;
    check_close(&all.column_statistics[0].distinct_count, 1_000);
    check_close(&all.column_statistics[1].distinct_count, 30);
    assert_eq!(all.column_statistics[2].distinct_count, Precision::Absent);
    assert!(all.column_statistics[0].distinct_count.get_value() <= Some(&1_000));
    let known = table.known(&[0, 1, 2]).unwrap();
    for (known, offered) in known.column_statistics.iter().zip(&all.column_statistics) {
        assert_eq!(known.distinct_count, offered.distinct_count);
    }

    let half = offered(&table, &[col("n").lt(lit(500_i64))]).await;
    assert_eq!(half.num_rows.get_value(), Some(&500));
    assert_eq!(half.column_statistics[0].distinct_count, Precision::Inexact(500));
    check_close(&half.column_statistics[1].distinct_count, 30);
}

#[tokio::test]
async fn what_is_not_known_of_all_rows_is_not_offered() {
    let table = halves(false);
    for filters in [vec![], vec![col("n").lt(lit(500_i64))]] {
        let offered = offered(&table, &filters).await;
        let is_absent = |column: &ColumnStatistics| column.distinct_count == Precision::Absent;
        assert!(offered.column_statistics.iter().all(is_absent), "{offered:?}");
    }
}
