//! The rows of a result in a form that two engines can be compared by:
//! exactly, floats to a tolerance, in order only where the query orders.

use std::collections::HashMap;
use std::fmt;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// How far floats may differ, relative to the larger one: sums are not
/// associative, so another order of rows gives other last digits.
pub const FLOAT_TOLERANCE: f64 = 1e-9;
/// Groups of equal exact cells above this size are compared in sorted order
/// only, not by trying pairs.
const PAIRING_ROWS_MAX: usize = 2_000;

/// Whether integers and decimals are compared as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Integers and decimals are exact, with their scale.
    Exact,
    /// All numbers are floats: for engines whose types differ (another
    /// database's average of decimals).
    AsFloats,
}

/// One value.
#[derive(Clone, Debug)]
enum Cell {
    Null,
    Exact(String),
    Float(f64),
}

/// A whole result.
#[derive(Clone, Debug)]
pub struct Answer {
    columns: Vec<(String, String)>,
    rows: Vec<Vec<Cell>>,
}

/// In what two answers differ, for a person.
#[derive(Clone, Debug)]
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Difference {}

impl Answer {
    /// Normalises a result.
    ///
    /// # Errors
    /// When a value cannot be written as text.
    pub fn new(schema: &SchemaRef, batches: &[RecordBatch], numbers: Numbers) -> Result<Self, ArrowError> {
        let columns = schema
            .fields()
            .iter()
            .map(|field| (field.name().clone(), type_name(field.data_type(), numbers)))
            .collect();
        let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
        for batch in batches {
            let cells: Vec<Vec<Cell>> = batch
                .columns()
                .iter()
                .map(|column| column_cells(column.as_ref(), numbers))
                .collect::<Result<_, _>>()?;
            for row in 0..batch.num_rows() {
                rows.push(cells.iter().map(|column| column[row].clone()).collect());
            }
        }
        Ok(Self { columns, rows })
    }

    /// The same rows as [`Numbers::AsFloats`] would have them.
    pub fn as_floats(&self) -> Self {
        let columns = self
            .columns
            .iter()
            .map(|(name, data_type)| {
                let is_number =
                    ["Int", "UInt", "Decimal", "Float"].iter().any(|kind| data_type.starts_with(kind));
                (name.clone(), if is_number { "number".to_owned() } else { data_type.clone() })
            })
            .collect::<Vec<_>>();
        let to_float = |cell: &Cell, column: usize| match cell {
            Cell::Exact(text) if columns[column].1 == "number" => {
                text.parse().map_or_else(|_| cell.clone(), Cell::Float)
            }
            other => other.clone(),
        };
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().enumerate().map(|(column, cell)| to_float(cell, column)).collect())
            .collect();
        Self { columns, rows }
    }

    /// The text of the one value of a result of one row and column.
    pub fn single_value(&self) -> Option<String> {
        match self.rows.as_slice() {
            [row] if row.len() == 1 => Some(match &row[0] {
                Cell::Null => return None,
                Cell::Exact(text) => text.clone(),
                Cell::Float(value) => value.to_string(),
            }),
            _ => None,
        }
    }

    /// How many rows it has.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Compares with another engine's answer. `order` are the columns that the
    /// query sorts by (rows that tie in them may come in any order); `None`
    /// compares without order. `tolerance` is relative.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, actual: &Self, order: Option<&[usize]>, tolerance: f64) -> Result<(), Difference> {
        self.compare_columns(actual)?;
        self.compare_rows(actual, order, tolerance)
    }

    /// Like [`Answer::compare`], without names and types of columns.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_rows(
        &self,
        actual: &Self,
        order: Option<&[usize]>,
        tolerance: f64,
    ) -> Result<(), Difference> {
        if self.rows.len() != actual.rows.len() {
            return Err(Difference(format!(
                "{} rows expected, {} returned\nexpected: {}\nreturned: {}",
                self.rows.len(),
                actual.rows.len(),
                first_rows(&self.rows),
                first_rows(&actual.rows)
            )));
        }
        let same = |(left, right): (&Vec<Cell>, &Vec<Cell>)| rows_equal(left, right, tolerance);
        if self.rows.iter().zip(&actual.rows).all(same) {
            return Ok(());
        }
        for &column in order.unwrap_or_default() {
            for (number, (left, right)) in self.rows.iter().zip(&actual.rows).enumerate() {
                if !cells_equal(&left[column], &right[column], tolerance) {
                    return Err(Difference(format!(
                        "row {number} is out of order in column {column}\nexpected: {}\nreturned: {}",
                        row_text(left),
                        row_text(right)
                    )));
                }
            }
        }
        compare_unordered(&self.rows, &actual.rows, tolerance)
    }

    fn compare_columns(&self, actual: &Self) -> Result<(), Difference> {
        if self.columns == actual.columns {
            return Ok(());
        }
        Err(Difference(format!(
            "columns expected: {:?}\ncolumns returned: {:?}",
            self.columns, actual.columns
        )))
    }
}

/// The same rows in any order. Rows are grouped by their exact cells; inside a
/// group the floats are paired.
fn compare_unordered(expected: &[Vec<Cell>], actual: &[Vec<Cell>], tolerance: f64) -> Result<(), Difference> {
    type Groups<'a> = HashMap<Vec<Option<&'a str>>, Vec<&'a Vec<Cell>>>;
    fn groups(rows: &[Vec<Cell>]) -> Groups<'_> {
        let mut groups = Groups::new();
        for row in rows {
            let key = row
                .iter()
                .map(|cell| match cell {
                    Cell::Exact(text) => Some(text.as_str()),
                    Cell::Null => None,
                    Cell::Float(_) => Some("\u{0}float"),
                })
                .collect();
            groups.entry(key).or_default().push(row);
        }
        for rows in groups.values_mut() {
            rows.sort_by(|left, right| floats(left).total_cmp_all(&floats(right)));
        }
        groups
    }
    let (mut expected, mut actual) = (groups(expected), groups(actual));
    for (key, expected_rows) in &mut expected {
        let actual_rows = actual.remove(key).unwrap_or_default();
        let missing = Difference(format!(
            "{} rows expected and {} returned like {}",
            expected_rows.len(),
            actual_rows.len(),
            expected_rows.first().map_or_else(String::new, |row| row_text(row))
        ));
        if expected_rows.len() != actual_rows.len() {
            return Err(missing);
        }
        if expected_rows.iter().zip(&actual_rows).all(|(left, right)| rows_equal(left, right, tolerance)) {
            continue;
        }
        if expected_rows.len() > PAIRING_ROWS_MAX {
            return Err(missing);
        }
        let mut open = actual_rows;
        for row in expected_rows {
            let Some(found) = open.iter().position(|other| rows_equal(row, other, tolerance)) else {
                let nearest = open.first().map_or_else(String::new, |row| row_text(row));
                return Err(Difference(format!("expected: {}\nreturned: {nearest}", row_text(row))));
            };
            open.swap_remove(found);
        }
    }
    match actual.values().flatten().next() {
        Some(row) => Err(Difference(format!("returned but not expected: {}", row_text(row)))),
        None => Ok(()),
    }
}

struct Floats(Vec<f64>);

impl Floats {
    fn total_cmp_all(&self, other: &Self) -> std::cmp::Ordering {
        self.0
            .iter()
            .zip(&other.0)
            .map(|(left, right)| left.total_cmp(right))
            .find(|order| order.is_ne())
            .unwrap_or(std::cmp::Ordering::Equal)
    }
}

fn floats(row: &[Cell]) -> Floats {
    Floats(
        row.iter()
            .filter_map(|cell| if let Cell::Float(value) = cell { Some(*value) } else { None })
            .collect(),
    )
}

fn rows_equal(left: &[Cell], right: &[Cell], tolerance: f64) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| cells_equal(left, right, tolerance))
}

fn cells_equal(left: &Cell, right: &Cell, tolerance: f64) -> bool {
    match (left, right) {
        (Cell::Null, Cell::Null) => true,
        (Cell::Exact(left), Cell::Exact(right)) => left == right,
        (Cell::Float(left), Cell::Float(right)) => {
            left == right
                || (left.is_nan() && right.is_nan())
                || (left - right).abs() <= tolerance * left.abs().max(right.abs())
        }
        _ => false,
    }
}

fn column_cells(column: &dyn Array, numbers: Numbers) -> Result<Vec<Cell>, ArrowError> {
    let data_type = column.data_type();
    if data_type.is_floating() || (numbers == Numbers::AsFloats && data_type.is_numeric()) {
        let floats = cast(column, &DataType::Float64)?;
        let cells = floats.as_primitive::<Float64Type>().iter();
        return Ok(cells.map(|value| value.map_or(Cell::Null, Cell::Float)).collect());
    }
    let options = FormatOptions::default().with_null("NULL");
    let formatter = ArrayFormatter::try_new(column, &options)?;
    (0..column.len())
        .map(|row| {
            if column.is_null(row) {
                return Ok(Cell::Null);
            }
            Ok(Cell::Exact(formatter.value(row).try_to_string()?))
        })
        .collect()
}

/// A type as far as clients can tell: the layouts of text are one type.
fn type_name(data_type: &DataType, numbers: Numbers) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytes".to_owned(),
        DataType::Dictionary(_, values) => type_name(values, numbers),
        DataType::List(item) | DataType::LargeList(item) => {
            format!("list of {}", type_name(item.data_type(), numbers))
        }
        DataType::Struct(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|field| format!("{} {}", field.name(), type_name(field.data_type(), numbers)))
                .collect();
            format!("struct ({})", fields.join(", "))
        }
        numeric if numbers == Numbers::AsFloats && numeric.is_numeric() => "number".to_owned(),
        other => other.to_string(),
    }
}

fn row_text(row: &[Cell]) -> String {
    let cells: Vec<String> = row
        .iter()
        .map(|cell| match cell {
            Cell::Null => "NULL".to_owned(),
            Cell::Exact(text) => text.clone(),
            Cell::Float(value) => value.to_string(),
        })
        .collect();
    format!("[{}]", cells.join(" | "))
}

fn first_rows(rows: &[Vec<Cell>]) -> String {
    rows.iter().take(3).map(|row| row_text(row)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, StringViewArray};

    fn answer(columns: Vec<(&str, ArrayRef)>) -> Answer {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        Answer::new(&batch.schema(), &[batch], Numbers::Exact).unwrap()
    }

    fn check(expected: &Answer, actual: &Answer, order: Option<&[usize]>, equal: bool) {
        assert_eq!(expected.compare(actual, order, FLOAT_TOLERANCE).is_ok(), equal);
    }

    #[test]
    fn order_counts_only_in_the_columns_that_are_sorted_by() {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![1, 1, 2]));
        let expected =
            answer(vec![("k", Arc::clone(&keys)), ("v", Arc::new(Int64Array::from(vec![7, 8, 9])))]);
        let ties_swapped =
            answer(vec![("k", Arc::clone(&keys)), ("v", Arc::new(Int64Array::from(vec![8, 7, 9])))]);
        let unsorted = answer(vec![
            ("k", Arc::new(Int64Array::from(vec![2, 1, 1]))),
            ("v", Arc::new(Int64Array::from(vec![9, 7, 8]))),
        ]);
        check(&expected, &ties_swapped, Some(&[0]), true);
        check(&expected, &ties_swapped, Some(&[0, 1]), false);
        check(&expected, &unsorted, Some(&[0]), false);
        check(&expected, &unsorted, None, true);
    }

    #[test]
    fn duplicates_and_losses_are_seen_without_order() {
        let expected = answer(vec![("k", Arc::new(Int64Array::from(vec![1, 1, 2])))]);
        let other = answer(vec![("k", Arc::new(Int64Array::from(vec![1, 2, 2])))]);
        let short = answer(vec![("k", Arc::new(Int64Array::from(vec![1, 1])))]);
        check(&expected, &other, None, false);
        check(&expected, &short, None, false);
    }

    #[test]
    fn floats_are_compared_to_a_relative_tolerance() {
        let expected = answer(vec![("f", Arc::new(Float64Array::from(vec![1e12, 0.1])))]);
        let near = answer(vec![("f", Arc::new(Float64Array::from(vec![0.1 + 1e-17, 1e12 + 1.0])))]);
        let far = answer(vec![("f", Arc::new(Float64Array::from(vec![1e12 + 1e4, 0.1])))]);
        check(&expected, &near, None, true);
        check(&expected, &far, None, false);
    }

    #[test]
    fn layouts_of_text_are_one_type_and_other_types_are_not() {
        let utf8 = answer(vec![("t", Arc::new(StringArray::from(vec![Some("a"), None])))]);
        let view = answer(vec![("t", Arc::new(StringViewArray::from(vec![Some("a"), None])))]);
        let integers = answer(vec![("t", Arc::new(Int64Array::from(vec![1, 2])))]);
        check(&utf8, &view, None, true);
        check(&utf8, &integers, None, false);
    }
}
