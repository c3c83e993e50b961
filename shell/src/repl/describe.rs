//! `\d` and its kin: the questions they ask of `information_schema`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::datatypes::UInt64Type;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::command::Described;
use crate::client::ClientError;
use crate::render::quantity;

/// A name or pattern as `\d` takes it: `*` and `?` stand for any characters,
/// and a schema may come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    schema: Option<String>,
    name: String,
}

impl Pattern {
    /// Reads a pattern; without quotes it is in lower case, as SQL has it.
    ///
    /// # Errors
    /// `Usage` for more than a schema and a name.
    pub(super) fn parse(text: &str) -> Result<Self, ClientError> {
        let mut parts = Vec::new();
        let mut part = String::new();
        let mut quoted = false;
        for character in text.trim().chars() {
            match character {
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(std::mem::take(&mut part)),
                other if quoted => part.push(other),
                other => part.extend(other.to_lowercase()),
            }
        }
        parts.push(part);
        match parts.as_slice() {
            [name] => Ok(Self { schema: None, name: name.clone() }),
            [schema, name] => Ok(Self { schema: Some(schema.clone()), name: name.clone() }),
            _ => Err(ClientError::Usage(format!("`{text}` is neither NAME nor SCHEMA.NAME"))),
        }
    }

    /// Whether it can only mean one thing.
    pub(super) fn is_name(&self) -> bool {
        !self.name.contains(['*', '?'])
    }

    /// The condition that it stands for.
    fn condition(&self) -> String {
        let mut conditions = Vec::new();
        if let Some(schema) = &self.schema {
            conditions.push(like("t.table_schema", schema));
        } else {
            conditions.push(VISIBLE.to_owned());
        }
        conditions.push(like("t.table_name", &self.name));
        conditions.join(" AND ")
    }
}

/// What a person made.
const VISIBLE: &str = "t.table_schema NOT IN ('information_schema', 'system')";

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn like(column: &str, pattern: &str) -> String {
    if !pattern.contains(['*', '?']) {
        return format!("{column} = {}", literal(pattern));
    }
    let mut like = String::new();
    for character in pattern.chars() {
        match character {
            '*' => like.push('%'),
            '?' => like.push('_'),
            '%' | '_' | '\\' => {
                like.push('\\');
                like.push(character);
            }
            other => like.push(other),
        }
    }
    format!("{column} LIKE {}", literal(&like))
}

/// What lists relations or schemas.
pub(super) fn list(what: Described, pattern: Option<&Pattern>) -> String {
    let condition = pattern.map_or_else(|| VISIBLE.to_owned(), Pattern::condition);
    let kind = match what {
        Described::Any => "",
        Described::Tables => " AND t.table_type = 'BASE TABLE'",
        Described::Views => " AND t.table_type = 'VIEW'",
        Described::Schemas => {
            let matching = pattern
                .map(|pattern| format!(" WHERE {}", like("schema_name", &pattern.name)))
                .unwrap_or_default();
            return format!(
                "SELECT schema_name AS \"Schema\" FROM information_schema.schemata{matching} ORDER BY schema_name"
            );
        }
    };
    format!(
        "SELECT t.table_schema AS \"Schema\", t.table_name AS \"Name\", \
         CASE t.table_type WHEN 'BASE TABLE' THEN 'table' ELSE lower(t.table_type) END AS \"Type\", \
         s.\"rows\" AS \"Rows\", s.bytes AS \"Size\", s.shards AS \"Shards\", s.replicas AS \"Replicas\" \
         FROM information_schema.tables t \
         LEFT JOIN system.tables s ON s.\"schema\" = t.table_schema AND s.\"table\" = t.table_name \
         WHERE {condition}{kind} ORDER BY 1, 2"
    )
}

/// The answer to [`list`] with sizes as people read them.
///
/// # Errors
/// None in practice; those of making a batch.
pub(super) fn sizes_shown(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let fields = batch.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
    let columns = fields.into_iter().zip(batch.columns()).map(|(name, column)| {
        let sizes = column.as_primitive_opt::<UInt64Type>().filter(|_| name == "Size");
        let column = match sizes {
            Some(sizes) => {
                Arc::new(sizes.iter().map(|size| size.map(quantity::bytes)).collect::<StringArray>())
            }
            None => column.clone(),
        };
        (name, column, true)
    });
    RecordBatch::try_from_iter_with_nullable(columns)
}

/// Which relations a name means: schema, name and type of each.
pub(super) fn find(pattern: &Pattern) -> String {
    format!(
        "SELECT t.table_schema, t.table_name, t.table_type FROM information_schema.tables t WHERE {} ORDER BY 1, 2",
        pattern.condition()
    )
}

/// The columns of a relation: name, Arrow type, whether NULL is allowed.
pub(super) fn columns(schema: &str, name: &str) -> String {
    format!(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns \
         WHERE table_schema = {} AND table_name = {} ORDER BY ordinal_position",
        literal(schema),
        literal(name)
    )
}

/// The answer to [`columns`] as a person reads it.
///
/// # Errors
/// None in practice; those of making a batch.
pub(super) fn columns_shown(rows: &[Vec<Option<String>>]) -> Result<RecordBatch, ArrowError> {
    let cell = |row: &[Option<String>], index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    let texts = |values: Vec<String>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    RecordBatch::try_from_iter([
        ("Column", texts(rows.iter().map(|row| cell(row, 0)).collect())),
        ("Type", texts(rows.iter().map(|row| sql_type(&cell(row, 1))).collect())),
        (
            "Nullable",
            texts(
                rows.iter()
                    .map(|row| if cell(row, 2) == "NO" { "not null".to_owned() } else { String::new() })
                    .collect(),
            ),
        ),
    ])
}

/// The name that SQL has for a type of Arrow's; that itself where SQL has
/// none.
fn sql_type(arrow: &str) -> String {
    let name = match arrow {
        "Boolean" => "boolean",
        "Int8" => "tinyint",
        "Int16" => "smallint",
        "Int32" => "int",
        "Int64" => "bigint",
        "UInt8" => "tinyint unsigned",
        "UInt16" => "smallint unsigned",
        "UInt32" => "int unsigned",
        "UInt64" => "bigint unsigned",
        "Float32" => "real",
        "Float64" => "double",
        "Utf8" | "LargeUtf8" | "Utf8View" => "varchar",
        "Binary" | "LargeBinary" | "BinaryView" => "bytea",
        "Date32" | "Date64" => "date",
        _ if arrow.starts_with("Interval") => "interval",
        _ if arrow.starts_with("Time32") || arrow.starts_with("Time64") => "time",
        // `Timestamp(ns)`, `Timestamp(ns, "UTC")`
        _ if arrow.starts_with("Timestamp") && arrow.contains(',') && !arrow.contains("None") => {
            "timestamp with time zone"
        }
        _ if arrow.starts_with("Timestamp") => "timestamp",
        _ => match arrow.strip_prefix("Decimal").and_then(|rest| rest.split_once('(')) {
            Some((_, arguments)) => return format!("decimal({arguments}"),
            None => arrow,
        },
    };
    name.to_owned()
}

/// How a table is laid out, and what is in it: shards, replicas, shard key,
/// sort key, segments, rows, bytes.
pub(super) fn layout(schema: &str, name: &str) -> String {
    format!(
        "SELECT shards, replicas, shard_key, sort_key, segments, \"rows\", bytes \
         FROM system.tables WHERE \"schema\" = {} AND \"table\" = {}",
        literal(schema),
        literal(name)
    )
}

/// The answer to [`layout`] in a sentence.
pub(super) fn layout_text(row: &[Option<String>]) -> Option<String> {
    let [Some(shards), Some(replicas), shard_key, sort_key, Some(segments), Some(rows), Some(bytes)] = row
    else {
        return None;
    };
    let plural =
        |count: &str, noun: &str| if count == "1" { format!("1 {noun}") } else { format!("{count} {noun}s") };
    let replicas = match replicas.as_str() {
        "all" => "a replica on every worker".to_owned(),
        count => plural(count, "replica"),
    };
    let mut parts = vec![plural(shards, "shard"), replicas];
    for (what, key) in [("sharded by", shard_key), ("sorted by", sort_key)] {
        if let Some(key) = key
            && !key.is_empty()
        {
            parts.push(format!("{what} {key}"));
        }
    }
    let size = quantity::bytes(bytes.parse().ok()?);
    let rows = quantity::rows(rows.parse().ok()?);
    Some(format!("{}\n{rows}, {size} in {}\n", parts.join(", "), plural(segments, "segment")))
}

/// The text of a view.
pub(super) fn view_text(schema: &str, name: &str) -> String {
    format!(
        "SELECT definition FROM information_schema.views WHERE table_schema = {} AND table_name = {}",
        literal(schema),
        literal(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_said_in_words() {
        let row = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
        assert_eq!(
            layout_text(&row(&["8", "3", "k", "", "24", "6001215", "229000000"])).unwrap(),
            "8 shards, 3 replicas, sharded by k\n6,001,215 rows, 229 MB in 24 segments\n"
        );
        assert_eq!(
            layout_text(&row(&["1", "all", "", "d", "1", "25", "2000"])).unwrap(),
            "1 shard, a replica on every worker, sorted by d\n25 rows, 2.00 kB in 1 segment\n"
        );
    }

    #[test]
    fn types_have_their_sql_names() {
        for (arrow, expected) in [
            ("Int64", "bigint"),
            ("Utf8View", "varchar"),
            ("Decimal128(15, 2)", "decimal(15, 2)"),
            ("Timestamp(ns)", "timestamp"),
            ("Timestamp(Nanosecond, None)", "timestamp"),
            ("Timestamp(µs, \"UTC\")", "timestamp with time zone"),
            ("Interval(MonthDayNano)", "interval"),
            ("List(Int64)", "List(Int64)"),
        ] {
            assert_eq!(sql_type(arrow), expected);
        }
    }

    #[test]
    fn names_are_matched_exactly_and_patterns_by_like() {
        assert_eq!(
            Pattern::parse("Orders").unwrap().condition(),
            format!("{VISIBLE} AND t.table_name = 'orders'")
        );
        assert_eq!(
            Pattern::parse("system.*").unwrap().condition(),
            "t.table_schema = 'system' AND t.table_name LIKE '%'"
        );
        assert_eq!(
            Pattern::parse("l_*").unwrap().condition(),
            format!("{VISIBLE} AND t.table_name LIKE 'l\\_%'")
        );
        assert_eq!(
            Pattern::parse("\"Od.d'\"").unwrap().condition(),
            format!("{VISIBLE} AND t.table_name = 'Od.d'''")
        );
        assert!(Pattern::parse("a.b.c").is_err());
    }
}
