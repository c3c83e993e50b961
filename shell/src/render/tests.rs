//! What each format looks like, to the letter.

use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;

use super::*;

fn batch() -> RecordBatch {
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(20), None]));
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("pear"), None, Some("日本 \"x\", y|z")]));
    let prices =
        Decimal128Array::from(vec![Some(150), Some(-1), None]).with_precision_and_scale(9, 2).unwrap();
    RecordBatch::try_from_iter([("k", keys), ("name", names), ("price", Arc::new(prices) as ArrayRef)])
        .unwrap()
}

fn rendered(layout: &Layout, batches: &[RecordBatch]) -> String {
    let mut out = Vec::new();
    let mut renderer = layout.renderer(&batches[0].schema());
    for batch in batches {
        renderer.rows(batch, &mut out).unwrap();
    }
    renderer.finish(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn check(layout: &Layout, expected: &str) {
    assert_eq!(rendered(layout, &[batch()]), expected);
    let slices: Vec<RecordBatch> = (0..3).map(|row| batch().slice(row, 1)).collect();
    assert_eq!(rendered(layout, &slices), expected, "in three batches");
}

fn format(format: Format) -> Layout {
    Layout { format, ..Layout::default() }
}

#[test]
fn a_table_aligns_its_columns() {
    check(
        &format(Format::Table),
        "    k | name          | price
------+---------------+-------
    1 | pear          |  1.50
   20 | NULL          | -0.01
 NULL | 日本 \"x\", y|z |  NULL
(3 rows)
",
    );
}

#[test]
fn a_table_on_a_terminal_has_lines_and_colours() {
    let layout = Layout {
        unicode: true,
        paint: Paint::COLORED,
        width: Some(80),
        footer: false,
        ..format(Format::Table)
    };
    let text = rendered(&layout, &[batch().slice(1, 1)]);
    assert_eq!(
        text,
        " \x1b[1m k\x1b[0m \x1b[2m│\x1b[0m \x1b[1mname\x1b[0m \x1b[2m│\x1b[0m \x1b[1mprice\x1b[0m
\x1b[2m────┼──────┼───────\x1b[0m
 20 \x1b[2m│\x1b[0m \x1b[2mNULL\x1b[0m \x1b[2m│\x1b[0m -0.01
"
    );
}

#[test]
fn a_table_that_is_too_wide_is_cut_or_turned() {
    let long: ArrayRef = Arc::new(StringArray::from(vec!["a long text that goes on", "short"]));
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![123_456_789_012, 1]));
    let batch = RecordBatch::try_from_iter([("text", long), ("number", numbers)]).unwrap();
    let narrow = Layout { width: Some(36), footer: false, ..Layout::default() };
    assert_eq!(
        rendered(&narrow, std::slice::from_ref(&batch)),
        " text                |       number
---------------------+--------------
 a long text that g… | 123456789012
 short               |            1
"
    );
    let turned = Layout { expanded: Expanded::Auto, ..narrow };
    assert_eq!(
        rendered(&turned, &[batch]),
        "-[ 1 ]---
text   | a long text that goes on
number | 123456789012
-[ 2 ]---
text   | short
number | 1
"
    );
}

#[test]
fn columns_that_do_not_fit_are_left_out_and_counted() {
    let columns = (0..10).map(|index| {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![index]));
        (format!("column_{index}"), numbers)
    });
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let layout = Layout { width: Some(50), footer: false, ..Layout::default() };
    let mut out = Vec::new();
    let mut renderer = layout.renderer(&batch.schema());
    renderer.rows(&batch, &mut out).unwrap();
    renderer.finish(&mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        " column_0 | column_1 | … | column_8 | column_9
----------+----------+---+----------+----------
        0 |        1 | … |        8 |        9
"
    );
    assert_eq!(renderer.remark().unwrap(), "4 of 10 columns shown; \\x shows all");
}

#[test]
fn rows_after_the_sized_ones_are_written_at_once() {
    let layout = Layout { rows_sized: 1, ..Layout::default() };
    let mut out = Vec::new();
    let mut renderer = layout.renderer(&batch().schema());
    renderer.rows(&batch().slice(1, 1), &mut out).unwrap();
    let sized = out.len();
    assert!(sized > 0);
    renderer.rows(&batch().slice(2, 1), &mut out).unwrap();
    assert_eq!(std::str::from_utf8(&out[sized..]).unwrap(), " NULL | 日本 \"x\", y|z |  NULL\n");
}

#[test]
fn an_empty_result_still_has_its_columns() {
    let empty = batch().slice(0, 0);
    assert_eq!(
        rendered(&format(Format::Table), std::slice::from_ref(&empty)),
        " k | name | price\n---+------+-------\n(0 rows)\n"
    );
    assert_eq!(rendered(&format(Format::Csv), std::slice::from_ref(&empty)), "k,name,price\n");
    assert_eq!(rendered(&format(Format::Json), std::slice::from_ref(&empty)), "[]\n");
    assert_eq!(rendered(&format(Format::Ndjson), &[empty]), "");
}

#[test]
fn lines_within_a_cell_stay_within_its_column() {
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["one\ntwo\x1b[2J"]));
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let batch = RecordBatch::try_from_iter([("t", texts), ("n", numbers)]).unwrap();
    assert_eq!(
        rendered(&Layout { footer: false, ..Layout::default() }, std::slice::from_ref(&batch)),
        " t          | n\n------------+---\n one        | 7\n two\\x1b[2J |\n"
    );
    let vertical = Layout { expanded: Expanded::On, footer: false, ..Layout::default() };
    assert_eq!(rendered(&vertical, &[batch]), "-[ 1 ]---\nt | one\n  | two\\x1b[2J\nn | 7\n");
}

#[test]
fn vertical_has_a_line_per_value() {
    check(
        &format(Format::Vertical),
        "-[ 1 ]---
k     | 1
name  | pear
price | 1.50
-[ 2 ]---
k     | 20
name  | NULL
price | -0.01
-[ 3 ]---
k     | NULL
name  | 日本 \"x\", y|z
price | NULL
(3 rows)
",
    );
}

#[test]
fn csv_tells_null_from_empty_text() {
    check(&format(Format::Csv), "k,name,price\n1,pear,1.50\n20,,-0.01\n,\"日本 \"\"x\"\", y|z\",\n");
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some(""), None, Some("a\nb")]));
    let batch = RecordBatch::try_from_iter([("t", texts)]).unwrap();
    let bare = Layout { header: false, ..format(Format::Csv) };
    assert_eq!(rendered(&bare, &[batch]), "\"\"\n\n\"a\nb\"\n");
}

#[test]
fn tsv_escapes_what_would_end_a_value() {
    check(&format(Format::Tsv), "k\tname\tprice\n1\tpear\t1.50\n20\t\\N\t-0.01\n\\N\t日本 \"x\", y|z\t\\N\n");
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["a\tb\\c\nd"]));
    let batch = RecordBatch::try_from_iter([("t", texts)]).unwrap();
    assert_eq!(rendered(&format(Format::Tsv), &[batch]), "t\na\\tb\\\\c\\nd\n");
}

#[test]
fn json_is_an_array_or_lines() {
    let objects = [
        r#"{"k":1,"name":"pear","price":1.50}"#,
        r#"{"k":20,"name":null,"price":-0.01}"#,
        r#"{"k":null,"name":"日本 \"x\", y|z","price":null}"#,
    ];
    check(&format(Format::Json), &format!("[{}]\n", objects.join(",\n ")));
    check(&format(Format::Ndjson), &format!("{}\n", objects.join("\n")));
}

#[test]
fn markdown_escapes_its_own_marks() {
    check(
        &format(Format::Markdown),
        "| k | name | price |
| ---: | --- | ---: |
| 1 | pear | 1.50 |
| 20 |  | -0.01 |
|  | 日本 \"x\", y\\|z |  |
",
    );
}

#[test]
fn plans_are_shown_in_full() {
    let kinds: ArrayRef = Arc::new(StringArray::from(vec!["logical_plan", "physical_plan"]));
    let plans: ArrayRef =
        Arc::new(StringArray::from(vec!["Projection: a\n  Scan: t\n", "ScanExec: a very long line"]));
    let batch = RecordBatch::try_from_iter([("plan_type", kinds), ("plan", plans)]).unwrap();
    let narrow = Layout { width: Some(20), ..Layout::default() };
    assert_eq!(
        rendered(&narrow, &[batch]),
        "logical_plan\n  Projection: a\n    Scan: t\n\nphysical_plan\n  ScanExec: a very long line\n"
    );
}
