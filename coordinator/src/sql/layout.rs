//! `CREATE TABLE`: its columns and its WITH options, completed with defaults.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::sql::sqlparser::ast::{self, CreateTableOptions, Expr, SqlOption, Value};
use shoal_data::table::{REPLICAS_DEFAULT, SHARDS_DEFAULT, SHARDS_MAX};
use shoal_data::{KeyHash, ReplicaCount, TableLayout};

use super::parse::fold_identifier;
use crate::Error;

/// What the statement says of its layout; the rest is by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Hash buckets.
    pub shards: Option<u32>,
    /// Copies of each.
    pub replicas: Option<ReplicaCount>,
    /// Columns whose hash decides the shard.
    pub shard_key: Option<Vec<String>>,
    /// Columns by which segments are sorted.
    pub sort_key: Option<Vec<String>>,
    /// Columns of which segments have Bloom filters.
    pub bloom_filters: Option<Vec<String>>,
}

const OPTIONS: &str = "shards, replicas, shard_key, sort_key and bloom_filters";

impl TableOptions {
    /// Reads WITH (...) and a PRIMARY KEY.
    ///
    /// # Errors
    /// `Invalid`, naming the option and what it takes.
    pub fn read(create: &ast::CreateTable) -> Result<Self, Error> {
        let mut read = Self::default();
        let given: &[SqlOption] = match &create.table_options {
            CreateTableOptions::None => &[],
            CreateTableOptions::With(options) | CreateTableOptions::Options(options) => options,
            other => {
                return Err(Error::Invalid(format!(
                    "table options are written WITH (name = value), not `{other}`"
                )));
            }
        };
        read.set_all(given)?;
        if read.shard_key.is_none() {
            read.shard_key = primary_key(create);
        }
        Ok(read)
    }

    /// Reads what ALTER TABLE sets: the number of copies, which is all that can be
    /// changed later.
    ///
    /// # Errors
    /// `Invalid` as in [`Self::read`]; `Unsupported` for other options.
    pub fn read_replicas(options: &[SqlOption]) -> Result<ReplicaCount, Error> {
        let mut read = Self::default();
        read.set_all(options)?;
        match read {
            Self {
                shards: None,
                shard_key: None,
                sort_key: None,
                bloom_filters: None,
                replicas: Some(replicas),
            } => Ok(replicas),
            _ => Err(Error::Unsupported(
                "only replicas can be changed: for other shards or keys, make a new table with CREATE TABLE AS".into(),
            )),
        }
    }

    fn set_all(&mut self, options: &[SqlOption]) -> Result<(), Error> {
        for option in options {
            let SqlOption::KeyValue { key, value } = option else {
                return Err(Error::Invalid(format!(
                    "table options are {OPTIONS}, each as name = value, not `{option}`"
                )));
            };
            self.set(&key.value.to_lowercase(), value)?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &Expr) -> Result<(), Error> {
        let twice = || Error::Invalid(format!("option {name} is given twice"));
        match name {
            "shards" => {
                let shards = count(name, value, SHARDS_MAX)?;
                self.shards.replace(shards).map_or(Ok(()), |_| Err(twice()))
            }
            "replicas" => {
                let replicas = match text(value) {
                    Some(all) if all.eq_ignore_ascii_case("all") => ReplicaCount::All,
                    _ => ReplicaCount::Count(count(name, value, 64)?),
                };
                self.replicas.replace(replicas).map_or(Ok(()), |_| Err(twice()))
            }
            "shard_key" => self.shard_key.replace(names(name, value)?).map_or(Ok(()), |_| Err(twice())),
            "sort_key" => self.sort_key.replace(names(name, value)?).map_or(Ok(()), |_| Err(twice())),
            "bloom_filters" => {
                self.bloom_filters.replace(names(name, value)?).map_or(Ok(()), |_| Err(twice()))
            }
            _ => Err(Error::Invalid(format!("`{name}` is not a table option: there are {OPTIONS}"))),
        }
    }
}

fn text(value: &Expr) -> Option<&str> {
    match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => Some(text),
            _ => None,
        },
        Expr::Identifier(ident) => Some(&ident.value),
        _ => None,
    }
}

fn count(name: &str, value: &Expr, max: u32) -> Result<u32, Error> {
    let number = match value {
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => number.parse().ok(),
            Value::SingleQuotedString(number) => number.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    let all = if name == "replicas" { ", or 'all'" } else { "" };
    match number {
        Some(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(Error::Invalid(format!(
            "{name} = {value} is not possible: give a whole number from 1 to {max}{all}"
        ))),
    }
}

fn names(option: &str, value: &Expr) -> Result<Vec<String>, Error> {
    let Some(text) = text(value) else {
        return Err(Error::Invalid(format!(
            "{option} = {value} is not possible: give column names, such as 'a' or 'a, b'"
        )));
    };
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    if let Some(twice) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(Error::Invalid(format!("{option} names column `{}` twice", twice.1)));
    }
    Ok(names)
}

fn primary_key(create: &ast::CreateTable) -> Option<Vec<String>> {
    for constraint in &create.constraints {
        if let ast::TableConstraint::PrimaryKey(key) = constraint {
            let columns = key.columns.iter().map(|column| match &column.column.expr {
                Expr::Identifier(ident) => Some(fold_identifier(ident.clone())),
                _ => None,
            });
            return columns.collect();
        }
    }
    let is_key = |column: &&ast::ColumnDef| {
        column.options.iter().any(|option| matches!(option.option, ast::ColumnOption::PrimaryKey(_)))
    };
    create.columns.iter().find(is_key).map(|column| vec![fold_identifier(column.name.clone())])
}

/// Views as plain text and binary; dictionaries as their values.
pub fn plain_columns(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
            DataType::Dictionary(_, values) => match values.as_ref() {
                DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                other => other.clone(),
            },
            DataType::Null => DataType::Utf8,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, field.is_nullable())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Completes a layout. `workers` is how many there are now.
///
/// # Errors
/// `Layout`, through [`TableLayout::check`].
pub fn complete_layout(
    options: TableOptions,
    columns: &Schema,
    workers: usize,
) -> Result<TableLayout, Error> {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX).clamp(1, SHARDS_MAX / 2);
    let replicas = options.replicas.unwrap_or(ReplicaCount::Count(REPLICAS_DEFAULT));
    let shards = options.shards.unwrap_or(match replicas {
        ReplicaCount::All => 1,
        // A multiple of the tasks' partitions, so that shards can be dealt as
        // they are hashed.
        ReplicaCount::Count(_) => SHARDS_DEFAULT.div_ceil(2 * workers) * 2 * workers,
    });
    let shard_key = options.shard_key.unwrap_or_default();
    let sort_key = options.sort_key.unwrap_or_else(|| shard_key.clone());
    let bloom_filters = options.bloom_filters.unwrap_or_default();
    let layout = TableLayout { shards, replicas, shard_key, sort_key, hash: KeyHash::CURRENT, bloom_filters };
    layout.check(columns)?;
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Statement, parse};

    fn options(with: &str) -> Result<TableOptions, Error> {
        match parse(&format!("CREATE TABLE t (a INT, \"B\" INT PRIMARY KEY) {with}"))? {
            Statement::CreateTable(create) => TableOptions::read(&create),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_read_and_completed() {
        let columns = Schema::new(vec![
            Field::new("a", DataType::Int32, true),
            Field::new("B", DataType::Int32, false),
        ]);
        let given = options(
            "WITH (shards = 4, replicas = 'all', shard_key = 'a', sort_key = 'a, B', bloom_filters = 'B')",
        )
        .unwrap();
        let layout = complete_layout(given, &columns, 3).unwrap();
        assert_eq!(layout.bloom_filters, ["B"]);
        assert_eq!((layout.shards, layout.replicas), (4, ReplicaCount::All));
        assert_eq!(layout.sort_key, ["a", "B"]);
        let layout = complete_layout(options("").unwrap(), &columns, 3).unwrap();
        assert_eq!((layout.shards, layout.replicas), (12, ReplicaCount::Count(3)));
        assert_eq!(layout.bloom_filters, [""; 0]);
        assert_eq!((layout.shard_key, layout.sort_key), (vec!["B".to_owned()], vec!["B".to_owned()]));
    }

    fn replicas(set: &str) -> Result<ReplicaCount, Error> {
        match parse(&format!("ALTER TABLE t SET ({set})"))? {
            Statement::AlterTable { options, .. } => TableOptions::read_replicas(&options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_number_of_copies_can_be_set_later() {
        for (set, expected) in [
            ("replicas = 2", ReplicaCount::Count(2)),
            ("REPLICAS = '64'", ReplicaCount::Count(64)),
            ("replicas = 'All'", ReplicaCount::All),
        ] {
            assert_eq!(replicas(set).unwrap(), expected, "{set}");
        }
        for (set, part) in [
            ("replicas = 0", "replicas = 0 is not possible: give a whole number from 1 to 64, or 'all'"),
            ("replicas = 65", "from 1 to 64, or 'all'"),
            ("replicas = -1", "from 1 to 64, or 'all'"),
            ("replicas = 'some'", "from 1 to 64, or 'all'"),
            ("replicas = 1, replicas = 2", "twice"),
            ("shards = 4", "only replicas can be changed"),
            ("replicas = 2, sort_key = 'a'", "only replicas can be changed"),
            ("shard_key = 'a', replicas = 2", "only replicas can be changed"),
            ("shards = 0", "from 1 to 1024"),
            ("copies = 2", "not a table option"),
        ] {
            let message = replicas(set).unwrap_err().to_string();
            assert!(message.contains(part), "{set}: {message}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        for (with, part) in [
            ("WITH (shards = 0)", "from 1 to 1024"),
            ("WITH (shards = 'many')", "from 1 to 1024"),
            ("WITH (shards = 1.5)", "from 1 to 1024"),
            ("WITH (replicas = -1)", "or 'all'"),
            ("WITH (shards = 1, shards = 2)", "twice"),
            ("WITH (shard_key = 3)", "column names"),
            ("WITH (shard_key = 'a, a')", "twice"),
            ("WITH (sharding = 3)", "not a table option"),
            ("WITH (shards)", "Expected: ="),
        ] {
            let message = options(with).unwrap_err().to_string();
            assert!(message.contains(part), "{with}: {message}");
        }
        let columns = Schema::new(vec![Field::new("a", DataType::Int32, true)]);
        let unknown = TableOptions { shard_key: Some(vec!["z".into()]), ..Default::default() };
        let message = complete_layout(unknown, &columns, 1).unwrap_err().to_string();
        assert!(message.contains("`z`") && message.contains("columns: a"), "{message}");
    }
}
