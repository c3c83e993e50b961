//! sqllogictest over the oracle and over a cluster: the same files, the same
//! text for each value.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use datafusion::common::DataFusionError;
use sqllogictest::{AsyncDB, ColumnType, DBOutput, Record, Runner};

use crate::client::{Client, ClientError, Outcome};
use crate::oracle::Oracle;

/// Significant digits of a float in a file: fewer than a double has, because
/// the last ones depend on the order of a sum.
const FLOAT_DIGITS: usize = 12;

/// Type letters of our files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Letter {
    /// `B`: boolean.
    Boolean,
    /// `D`: date.
    Date,
    /// `I`: integer.
    Integer,
    /// `P`: timestamp or time.
    Time,
    /// `R`: float or decimal.
    Real,
    /// `T`: text.
    Text,
    /// `?`: anything else.
    Other,
}

impl ColumnType for Letter {
    fn from_char(value: char) -> Option<Self> {
        Some(match value {
            'B' => Self::Boolean,
            'D' => Self::Date,
            'I' => Self::Integer,
            'P' => Self::Time,
            'R' => Self::Real,
            'T' => Self::Text,
            '?' => Self::Other,
            _ => return None,
        })
    }

    fn to_char(&self) -> char {
        match self {
            Self::Boolean => 'B',
            Self::Date => 'D',
            Self::Integer => 'I',
            Self::Time => 'P',
            Self::Real => 'R',
            Self::Text => 'T',
            Self::Other => '?',
        }
    }
}

impl Letter {
    fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Timestamp(..) | DataType::Time32(_) | DataType::Time64(_) => Self::Time,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Dictionary(_, values) => Self::of(values),
            integer if integer.is_integer() => Self::Integer,
            number if number.is_numeric() => Self::Real,
            _ => Self::Other,
        }
    }
}

/// One engine under test.
pub enum Engine {
    /// Plain DataFusion.
    Oracle(Oracle),
    /// A cluster, through Flight SQL.
    Cluster(Box<Client>),
}

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// In the oracle.
    #[error("{}", .0.strip_backtrace())]
    Oracle(#[from] DataFusionError),
    /// In the cluster.
    #[error("{0}")]
    Cluster(#[from] ClientError),
    /// While a value became text.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

#[async_trait]
impl AsyncDB for Engine {
    type Error = EngineError;
    type ColumnType = Letter;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Letter>, EngineError> {
        let (schema, batches) = match self {
            Self::Oracle(oracle) => oracle.run(sql).await?,
            Self::Cluster(client) => match client.run(sql).await? {
                Outcome::Rows { schema, batches } => (schema, batches),
                Outcome::Changed(rows) => {
                    return Ok(DBOutput::StatementComplete(u64::try_from(rows).unwrap_or(0)));
                }
            },
        };
        if is_change(sql) {
            return Ok(DBOutput::StatementComplete(changed_rows(&batches)));
        }
        Ok(DBOutput::Rows {
            types: schema.fields().iter().map(|field| Letter::of(field.data_type())).collect(),
            rows: rows(&schema, &batches)?,
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        match self {
            Self::Oracle(_) => "datafusion",
            Self::Cluster(_) => "shoal",
        }
    }
}

/// Whether a statement changes something; the oracle answers such with rows.
fn is_change(sql: &str) -> bool {
    let first = sql.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    matches!(first.as_str(), "create" | "drop" | "insert" | "set" | "copy")
}

/// The count that DataFusion gives for an INSERT.
fn changed_rows(batches: &[RecordBatch]) -> u64 {
    batches
        .first()
        .filter(|batch| batch.num_rows() == 1 && batch.num_columns() == 1)
        .and_then(|batch| batch.column(0).as_primitive_opt::<arrow::datatypes::UInt64Type>())
        .map_or(0, |counts| counts.value(0))
}

fn rows(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<Vec<String>>, ArrowError> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<Vec<String>> = (0..schema.fields().len())
            .map(|column| texts(batch.column(column).as_ref()))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column[row].clone()).collect());
        }
    }
    Ok(rows)
}

fn texts(column: &dyn Array) -> Result<Vec<String>, ArrowError> {
    let null = || "NULL".to_owned();
    if column.data_type().is_floating() {
        let floats = arrow::compute::cast(column, &DataType::Float64)?;
        let values = floats.as_primitive::<Float64Type>().iter();
        return Ok(values.map(|value| value.map_or_else(null, float_text)).collect());
    }
    let options = FormatOptions::default().with_null("NULL");
    let formatter = ArrayFormatter::try_new(column, &options)?;
    (0..column.len())
        .map(|row| {
            if column.is_null(row) {
                return Ok(null());
            }
            let text = formatter.value(row).try_to_string()?;
            // Runs of blanks are one blank to the comparison, so that an empty
            // text and blanks that count need other signs.
            Ok(match text.as_str() {
                "" => "(empty)".to_owned(),
                text if text.trim() != text || text.contains("  ") => text.replace(' ', "·"),
                text => text.replace('\n', "\\n").replace('\t', "\\t"),
            })
        })
        .collect()
}

/// A float with [`FLOAT_DIGITS`] significant digits and no trailing zeros.
fn float_text(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return value.to_string();
    }
    let rounded: f64 = format!("{value:.*e}", FLOAT_DIGITS - 1).parse().unwrap_or(value);
    if rounded.abs() >= 1e15 || rounded.abs() < 1e-6 { format!("{rounded:e}") } else { rounded.to_string() }
}

/// Every `.slt` file of a directory, by name.
///
/// # Errors
/// When it cannot be read.
pub fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    Ok(files)
}

/// What running a file showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Statements and queries that ran.
    pub statements: usize,
    /// Each failed one, with file, line and both results.
    pub failures: Vec<String>,
}

/// Runs one file and goes on after failures. `engine` is called for each
/// connection that the file names.
///
/// # Errors
/// When the file cannot be parsed.
pub async fn run_file<F>(path: &Path, engine: F) -> anyhow::Result<Report>
where
    F: AsyncFn() -> anyhow::Result<Engine>,
{
    let records = sqllogictest::parse_file::<Letter>(path)?;
    let first = engine().await?;
    let mut first = Some(first);
    let mut runner = Runner::new(|| std::future::ready(first.take().ok_or_else(one_connection)));
    runner.with_column_validator(sqllogictest::strict_column_validator);
    let mut report = Report::default();
    for record in records {
        if matches!(record, Record::Statement { .. } | Record::Query { .. }) {
            report.statements += 1;
        }
        if matches!(record, Record::Halt { .. }) {
            break;
        }
        if let Err(error) = runner.run_async(record).await {
            report.failures.push(error.display(false).to_string());
        }
    }
    runner.shutdown_async().await;
    Ok(report)
}

/// Writes the oracle's results into a file, in place of those that it has.
///
/// # Errors
/// When the file cannot be parsed or written.
pub async fn write_expectations(path: &Path) -> anyhow::Result<()> {
    let mut first = Some(Engine::Oracle(Oracle::new(4)));
    let mut runner = Runner::new(|| std::future::ready(first.take().ok_or_else(one_connection)));
    runner
        .update_test_file(
            path,
            " ",
            sqllogictest::default_validator,
            sqllogictest::default_normalizer,
            sqllogictest::strict_column_validator,
        )
        .await
        .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

fn one_connection() -> EngineError {
    EngineError::Arrow(ArrowError::NotYetImplemented("a file has one connection".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_have_one_text() {
        for (value, expected) in [
            (0.1 + 0.2, "0.3"),
            (1.0, "1"),
            (-0.0, "0"),
            (1e300, "1e300"),
            (1234567.891, "1234567.891"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float_text(value), expected);
        }
    }
}
