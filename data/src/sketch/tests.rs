//! Claims about sketches of columns.

use arrow::array::{
    BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, StringArray,
};
use arrow::datatypes::{Int32Type, Int64Type};

use super::*;

fn rows(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .unwrap()
}

fn numbers(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<Int64Array>())
}

/// Those of one column of numbers.
fn of(values: impl IntoIterator<Item = i64>) -> Option<Arc<Sketches>> {
    Sketches::of_rows(&rows(vec![("k", numbers(values.into_iter().map(Some)))])).map(Arc::new)
}

fn check_close(found: Option<u64>, expected: u64) {
    let found = found.unwrap();
    assert!(found.abs_diff(expected) <= (expected / 10).max(1), "{found} in place of {expected}");
}

#[test]
fn values_of_each_type_are_counted_once_and_nulls_not_at_all() {
    const ROWS: i64 = 50_000;
    let texts: StringArray = (0..ROWS).map(|row| Some(format!("text {}", row % 5_000))).collect();
    let floats: Float64Array = (0..ROWS).map(|row| (row % 2 > 0).then_some(row as f64 / 8.0)).collect();
    let booleans: BooleanArray = (0..ROWS).map(|row| Some(row % 3 == 0)).collect();
    let keys: Int32Array = (0..ROWS).map(|row| Some((row % 40) as i32)).collect();
    let values: StringArray = (0..60).map(|value| Some(format!("value {value}"))).collect();
    let dictionary = DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values)).unwrap();
    let rows = rows(vec![
        ("k", numbers((0..ROWS).map(Some))),
        ("constant", numbers((0..ROWS).map(|_| Some(7)))),
        ("null", numbers((0..ROWS).map(|_| None))),
        ("some", numbers((0..ROWS).map(|row| (row % 10 > 0).then_some(row % 100)))),
        ("s", Arc::new(texts)),
        ("f", Arc::new(floats)),
        ("b", Arc::new(booleans)),
        ("d", Arc::new(dictionary)),
    ]);
    let sketches = Sketches::of_rows(&rows).unwrap();
    for (column, expected) in [50_000, 1, 0, 90, 5_000, 25_000, 2, 40].into_iter().enumerate() {
        check_close(sketches.distinct(column), expected);
    }
    assert_eq!(sketches.distinct(2), Some(0));
    assert_eq!(sketches.distinct(8), None);
}

#[test]
fn nested_columns_and_those_behind_the_last_are_not_known() {
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1)]), None]);
    let sketches = Sketches::of_rows(&rows(vec![
        ("l", Arc::new(lists) as ArrayRef),
        ("k", numbers([Some(1), Some(2)])),
    ]));
    let sketches = sketches.unwrap();
    assert_eq!((sketches.distinct(0), sketches.distinct(1)), (None, Some(2)));
    let names: Vec<String> = (0..=COLUMNS_MAX).map(|column| format!("c{column}")).collect();
    let many = names.iter().map(|name| (name.as_str(), numbers([Some(1)])));
    let sketches = Sketches::of_rows(&rows(many.collect())).unwrap();
    assert_eq!((sketches.distinct(COLUMNS_MAX - 1), sketches.distinct(COLUMNS_MAX)), (Some(1), None));
}

#[test]
fn parts_together_are_as_all_at_once() {
    let parts = (0..10).map(|part| of(part * 900..part * 900 + 1_000));
    let together = parts.fold(Some(Arc::default()), Sketches::of_both);
    assert_eq!(together, of(0..9_100));
    check_close(together.unwrap().distinct(0), 9_100);
}

#[test]
fn what_is_not_known_of_a_part_is_not_known_of_all() {
    let known = of(0..10);
    assert_eq!(Sketches::of_both(known.clone(), None), None);
    assert_eq!(Sketches::of_both(None, known.clone()), None);
    let two = Sketches::of_rows(&rows(vec![("a", numbers([Some(1)])), ("b", numbers([Some(1)]))]));
    assert_eq!(Sketches::of_both(known.clone(), two.map(Arc::new)), None);
    // Without rows nothing is not known.
    assert_eq!(Sketches::of_both(Some(Arc::default()), known.clone()), known);
    assert_eq!(Sketches::of_both(known.clone(), Some(Arc::default())), known);
    assert_eq!(Sketches::default().distinct(3), Some(0));
}

#[test]
fn a_column_that_a_part_did_not_sketch_is_not_known() {
    let both = of(0..10).unwrap();
    let lacking = Sketches { columns: vec![None] };
    let together = Sketches::of_both(Some(both), Some(Arc::new(lacking))).unwrap();
    assert_eq!(together.distinct(0), None);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Holder {
    #[serde(default, deserialize_with = "readable", skip_serializing_if = "Option::is_none")]
    sketches: Option<Arc<Sketches>>,
    rows: u64,
}

#[test]
fn what_is_written_is_read_and_short_where_there_are_few_values() {
    for count in [0, 1, 300, 100_000] {
        let holder = Holder { sketches: of(0..count), rows: 1 };
        let json = serde_json::to_string(&holder).unwrap();
        assert!(json.len() < 60 + usize::min(3 * count as usize, 1_024), "{count}: {json}");
        assert_eq!(serde_json::from_str::<Holder>(&json).unwrap(), holder);
    }
}

#[test]
fn what_cannot_be_read_is_none_and_spoils_nothing_else() {
    for other in [
        "null",
        "7",
        "{}",
        r#"{"version":2,"columns":["AAA"]}"#,
        r#"{"version":2,"registers":{"a":[1,null]}}"#,
        r#"{"version":1,"columns":["A"]}"#,
        r#"{"version":1,"columns":["!!!!"]}"#,
    ] {
        let holder = serde_json::from_str::<Holder>(&format!(r#"{{"sketches":{other},"rows":3}}"#)).unwrap();
        assert_eq!(holder, Holder { sketches: None, rows: 3 }, "{other}");
    }
    assert_eq!(serde_json::from_str::<Holder>(r#"{"rows":3}"#).unwrap(), Holder { sketches: None, rows: 3 });
    assert_eq!(serde_json::to_string(&Holder { sketches: None, rows: 3 }).unwrap(), r#"{"rows":3}"#);
}
