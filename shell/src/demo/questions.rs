//! What a drill asks, and the checksum of an answer.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use shoal_data::sample::{TpchTable, query};

use crate::client::{Client, ClientError, text_rows};

/// Queries of TPC-H that read much and exchange much, the best first. All
/// their sums are of decimals: exact in any order.
const TPCH_QUERIES: [usize; 8] = [1, 5, 13, 18, 3, 9, 10, 21];
/// Columns that a query over a table of the user's reads.
const COLUMNS_MAX: usize = 4;
/// Types that have a smallest and a largest value, as their names begin.
const ORDERED_TYPES: [&str; 9] =
    ["Int", "UInt", "Float", "Decimal", "Utf8", "LargeUtf8", "Date", "Time", "Timestamp"];

/// A query with one right answer, however often it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) name: String,
    pub(super) sql: String,
}

/// Up to `count` questions: TPC-H's, or else one about each of the largest
/// tables that have copies.
///
/// # Errors
/// Where there is nothing to ask about.
pub(super) async fn questions(client: &Client, count: usize) -> Result<Vec<Question>, ClientError> {
    let tables = client
        .collect(
            "SELECT \"table\" FROM system.tables \
             WHERE schema = 'public' AND replicas <> '1' AND rows > 0 ORDER BY rows DESC",
        )
        .await?;
    let tables: Vec<String> = text_rows(&tables).into_iter().flatten().flatten().collect();
    let there: BTreeSet<&str> = tables.iter().map(String::as_str).collect();
    if TpchTable::ALL.iter().all(|table| there.contains(table.name())) {
        let numbers = TPCH_QUERIES.into_iter().take(count);
        let asked = numbers.filter_map(|number| {
            Some(Question { name: format!("TPC-H q{number}"), sql: query(number)?.to_owned() })
        });
        return Ok(asked.collect());
    }
    let mut asked = Vec::new();
    for table in tables.into_iter().take(count) {
        let columns = client
            .collect(&format!(
                "SELECT column_name, data_type FROM information_schema.columns \
                 WHERE table_schema = 'public' AND table_name = '{}' ORDER BY ordinal_position",
                table.replace('\'', "''")
            ))
            .await?;
        let columns = text_rows(&columns).into_iter().filter_map(|row| match row.as_slice() {
            [Some(name), Some(kind)] if ORDERED_TYPES.iter().any(|ordered| kind.starts_with(ordered)) => {
                Some(name.clone())
            }
            _ => None,
        });
        asked.push(about(table, columns.take(COLUMNS_MAX)));
    }
    if asked.is_empty() {
        return Err(ClientError::Usage(
            "there is no table with rows in it and 2 or more copies of each shard; \
             \\copy loads a file into a table, and CREATE TABLE takes WITH (replicas = 2)"
                .to_owned(),
        ));
    }
    Ok(asked)
}

/// A question about a table: no floating point sum, whose last digits depend
/// on the order, and nothing that statistics could answer alone.
fn about(table: String, columns: impl Iterator<Item = String>) -> Question {
    let mut sql = "SELECT count(*)".to_owned();
    for column in columns {
        let column = quoted(&column);
        sql.push_str(&format!(
            ", min({column}), max({column}), max(character_length(CAST({column} AS VARCHAR)))"
        ));
    }
    sql.push_str(&format!(" FROM public.{}", quoted(&table)));
    Question { name: table, sql }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A number for the rows of an answer in whatever order: equal for equal
/// answers, and hardly ever for others.
///
/// # Errors
/// Where a value has no text.
pub(super) fn checksum(batches: &[RecordBatch]) -> Result<u64, ArrowError> {
    // NULL is not the empty text.
    let options = FormatOptions::default().with_null("\0");
    let mut sum: u64 = 0;
    for batch in batches {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let mut hasher = DefaultHasher::new();
            for column in &columns {
                column.value(row).try_to_string()?.hash(&mut hasher);
            }
            sum = sum.wrapping_add(hasher.finish());
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn rows(numbers: &[i64], texts: &[Option<&str>]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("t", texts, true)]).unwrap()
    }

    #[test]
    fn the_order_of_rows_does_not_count_and_all_else_does() {
        let of = |batches: &[RecordBatch]| checksum(batches).unwrap();
        let all = of(&[rows(&[1, 2, 3], &[Some("a"), Some(""), None])]);
        assert_eq!(of(&[rows(&[3, 1], &[None, Some("a")]), rows(&[2], &[Some("")])]), all);
        for other in [
            rows(&[1, 2], &[Some("a"), Some("")]),
            rows(&[1, 2, 3, 3], &[Some("a"), Some(""), None, None]),
            rows(&[1, 2, 3], &[Some("a"), None, None]),
            rows(&[1, 2, 3], &[Some(""), Some("a"), None]),
        ] {
            assert_ne!(of(std::slice::from_ref(&other)), all, "{other:?}");
        }
    }

    #[test]
    fn names_are_quoted() {
        let question = about("my \"t\"".to_owned(), ["A b".to_owned()].into_iter());
        assert_eq!(
            question.sql,
            "SELECT count(*), min(\"A b\"), max(\"A b\"), max(character_length(CAST(\"A b\" AS VARCHAR))) \
             FROM public.\"my \"\"t\"\"\""
        );
    }
}
