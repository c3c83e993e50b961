//! `system.columns`: what the catalog knows of the columns of tables, which is what queries are
//! planned with. Worked out only where it is read: to name all tables one need not look at all segments.

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;
use shoal_data::Table;

use super::columns::{Columns, filled, text};
use crate::Error;
use crate::catalog::State;
use crate::query::ShardTable;

/// The table, of one snapshot; made anew for each query, as the others are.
///
/// # Errors
/// None in practice; those of making a batch.
pub(super) fn columns(snapshot: &State) -> Result<StreamingTable, Error> {
    let schema = batch(&[])?.schema();
    let rows = OfSnapshot { snapshot: snapshot.clone(), schema: Arc::clone(&schema) };
    Ok(StreamingTable::try_new(schema, vec![Arc::new(rows)])?)
}

#[derive(Debug)]
struct OfSnapshot {
    snapshot: State,
    schema: SchemaRef,
}

impl PartitionStream for OfSnapshot {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let snapshot = self.snapshot.clone();
        let rows = stream::once(async move { Ok(all(&snapshot)?) });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

struct Row<'a> {
    table: &'a Table,
    column: &'a str,
    nulls: Option<u64>,
    min: Option<String>,
    max: Option<String>,
    distinct: Option<u64>,
}

/// One row for each column of each table.
fn all(snapshot: &State) -> Result<RecordBatch, Error> {
    let rows: Vec<Row<'_>> = snapshot
        .tables()
        .flat_map(|table| of_table(table, &ShardTable::new(snapshot.facts(table))))
        .collect();
    batch(&rows)
}

fn batch(rows: &[Row<'_>]) -> Result<RecordBatch, Error> {
    let columns: Columns = vec![
        ("schema", text(rows.iter().map(|row| row.table.schema_name.as_str()))),
        ("table", text(rows.iter().map(|row| row.table.name.as_str()))),
        ("column", text(rows.iter().map(|row| row.column))),
        ("nulls", Arc::new(rows.iter().map(|row| row.nulls).collect::<UInt64Array>())),
        ("min", Arc::new(rows.iter().map(|row| row.min.as_deref()).collect::<StringArray>())),
        ("max", Arc::new(rows.iter().map(|row| row.max.as_deref()).collect::<StringArray>())),
        ("distinct_count", Arc::new(rows.iter().map(|row| row.distinct).collect::<UInt64Array>())),
    ];
    filled("columns", columns)
}

fn of_table<'a>(table: &'a Table, known: &ShardTable) -> Vec<Row<'a>> {
    let fields = table.columns.fields();
    let all: Vec<usize> = (0..fields.len()).collect();
    let statistics = known.known(&all);
    let has_rows = !table.segments.is_empty();
    let row = |(index, field): (usize, &'a Arc<arrow::datatypes::Field>)| {
        let unknown = ColumnStatistics::new_unknown();
        let column = statistics.as_ref().and_then(|all| all.column_statistics.get(index)).unwrap_or(&unknown);
        let (nulls, distinct) = match has_rows {
            true => {
                let nulls = exact(&column.null_count).map(|nulls| *nulls as u64);
                (nulls, distinct(table, index, column))
            }
            false => (Some(0), Some(0)),
        };
        Row {
            table,
            column: field.name(),
            nulls,
            min: exact(&column.min_value).and_then(shown),
            max: exact(&column.max_value).and_then(shown),
            distinct,
        }
    };
    fields.iter().enumerate().map(row).collect()
}

/// The estimate; also where it is that there are no values at all, which is nothing for a plan.
fn distinct(table: &Table, index: usize, column: &ColumnStatistics) -> Option<u64> {
    let offered = column.distinct_count.get_value().map(|count| *count as u64);
    offered.or_else(|| table.sketches.as_ref()?.distinct(index).map(|_| 0))
}

fn exact<T: Clone + std::fmt::Debug + PartialEq + Eq + PartialOrd>(value: &Precision<T>) -> Option<&T> {
    match value {
        Precision::Exact(value) => Some(value),
        Precision::Inexact(_) | Precision::Absent => None,
    }
}

fn shown(value: &ScalarValue) -> Option<String> {
    (!value.is_null()).then(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use arrow::util::pretty::pretty_format_batches;
    use shoal_data::{ColumnStatistics, Sketches, StatValue};
    use shoal_proto::TableId;

    use super::*;
    use crate::catalog::Command;
    use crate::catalog::state::tests::{create, segment, table};

    #[test]
    fn each_column_has_what_is_known_of_it() {
        let mut state = State::new("c");
        for (name, has_rows, is_sketched) in
            [("counted", true, true), ("empty", false, false), ("old", true, false)]
        {
            let Ok(crate::catalog::Outcome::Table(id)) = state.apply(Command::ReserveTable) else { panic!() };
            let mut made = table(id, name);
            if has_rows {
                made.segments = vec![Arc::new(of_ten(id))];
            }
            if is_sketched {
                let values: ArrayRef = Arc::new((0..10).map(|row| Some(row % 4)).collect::<Int64Array>());
                let rows = RecordBatch::try_from_iter([("a", values)]).unwrap();
                made.sketches = Sketches::of_rows(&rows).map(Arc::new);
            }
            state.apply(create(made)).unwrap();
        }
        let shown = pretty_format_batches(&[all(&state).unwrap()]).unwrap().to_string();
        let expected = "\
+--------+---------+--------+-------+-----+-----+----------------+
| schema | table   | column | nulls | min | max | distinct_count |
+--------+---------+--------+-------+-----+-----+----------------+
| public | counted | a      | 2     | -1  | 9   | 4              |
| public | empty   | a      | 0     |     |     | 0              |
| public | old     | a      | 2     | -1  | 9   |                |
+--------+---------+--------+-------+-----+-----+----------------+";
        assert_eq!(shown, expected);
    }

    fn of_ten(id: TableId) -> shoal_data::Segment {
        let known =
            ColumnStatistics { nulls: 2, min: Some(StatValue::Int(-1)), max: Some(StatValue::Int(9)) };
        shoal_data::Segment { columns: vec![known].into(), ..segment(id, 0, "w1") }
    }
}
