//! Tables of the user's own files: read here, with their columns inferred,
//! and sent by bulk ingest. The cluster never sees the files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::execution::options::JsonReadOptions;
use datafusion::prelude::{CsvReadOptions, DataFrame, ParquetReadOptions, SessionConfig, SessionContext};
use flate2::read::MultiGzDecoder;
use futures::TryStreamExt;
use shoal_proto::WriteId;
use tokio::io::AsyncReadExt;

use super::bars::Bars;
use crate::client::{Client, ClientError, IngestTarget};

/// Rows from which the columns of CSV and JSON are inferred.
const INFER_ROWS: usize = 100_000;

/// What a file holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    Parquet,
    Csv,
    Tsv,
    Json,
}

/// A file that becomes a table.
#[derive(Clone, Debug)]
pub(super) struct UserFile {
    path: PathBuf,
    /// Everything from the dot that says what it is, such as `.csv.gz`.
    extension: String,
    kind: FileKind,
    compression: Option<Compression>,
    table: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

/// Checks the files and names their tables.
///
/// # Errors
/// For the first file that is not there or of no known kind, and for two
/// files that would be one table.
pub(super) fn plan(paths: &[PathBuf]) -> Result<Vec<UserFile>> {
    let files: Vec<_> = paths.iter().map(|path| UserFile::new(path)).collect::<Result<_>>()?;
    let mut seen = BTreeMap::new();
    for file in &files {
        if let Some(other) = seen.insert(&file.table, &file.path) {
            bail!(
                "{} and {} would both become the table `{}`",
                other.display(),
                file.path.display(),
                file.table
            );
        }
    }
    Ok(files)
}

impl UserFile {
    fn new(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            bail!("{} is a folder: name the files in it, like {0}/*.parquet", path.display());
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let unknown = || {
            format!(
                "cannot tell what {} holds by its name: it should end in .parquet, .csv, .tsv, .json, .ndjson or \
                 .jsonl, and may have .gz or .zst after that",
                path.display()
            )
        };
        let (rest, compressed) = match name.rsplit_once('.') {
            Some((rest, last)) if last.eq_ignore_ascii_case("gz") => (rest, Some(Compression::Gzip)),
            Some((rest, last)) if last.eq_ignore_ascii_case("zst") => (rest, Some(Compression::Zstd)),
            _ => (name, None),
        };
        let (stem, last) = rest.rsplit_once('.').with_context(unknown)?;
        let kind = match last.to_ascii_lowercase().as_str() {
            "parquet" | "pq" if compressed.is_none() => FileKind::Parquet,
            "csv" => FileKind::Csv,
            "tsv" | "tab" => FileKind::Tsv,
            "json" | "ndjson" | "jsonl" => FileKind::Json,
            _ => bail!(unknown()),
        };
        Ok(Self {
            path: path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?,
            extension: name[stem.len()..].to_owned(),
            kind,
            compression: compressed,
            table: table_name(stem),
        })
    }

    /// The table that it becomes.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Sends its rows into a new table; how many.
    ///
    /// # Errors
    /// Then there is no such table.
    pub(super) async fn load(&self, client: &Client, bars: &Bars) -> Result<u64> {
        let loading = || format!("cannot load {}", self.path.display());
        // Kept until its rows are sent.
        let (plain, _temporary) = self.plain().await.with_context(loading)?;
        let rows = plain.open().await.with_context(loading)?;
        if let Some(field) = rows.schema().fields().iter().find(|field| *field.data_type() == DataType::Null)
        {
            bail!(
                "{}: column `{}` has no value in any row, so its type is not known",
                loading(),
                field.name()
            );
        }
        if rows.schema().fields().is_empty() {
            bail!("{}: it is empty", loading());
        }
        let bar = bars.table(&self.table, None);
        let sent = bar.clone();
        let batches = rows.execute_stream().await.with_context(loading)?;
        let batches = batches
            .map_err(|error: DataFusionError| ClientError::Content(error.strip_backtrace()))
            .inspect_ok(move |batch| sent.inc(batch.num_rows() as u64));
        let target = IngestTarget { table: self.table.clone(), create: true, ..IngestTarget::default() };
        let rows = client.ingest(&target, &WriteId::random(), batches).await.with_context(loading)?;
        bar.finish();
        Ok(u64::try_from(rows).unwrap_or_default())
    }

    /// Whether it is one array of objects, not an object on each line.
    async fn is_json_array(&self) -> bool {
        let mut start = [0; 64];
        let Ok(mut file) = tokio::fs::File::open(&self.path).await else { return false };
        let length = file.read(&mut start).await.unwrap_or_default();
        start[..length].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[')
    }

    /// The file as it is without compression, and what holds it if it had some.
    async fn plain(&self) -> Result<(Self, Option<tempfile::TempPath>)> {
        let Some(compression) = self.compression else { return Ok((self.clone(), None)) };
        let path = self.path.clone();
        let extension = self.extension.rsplit_once('.').map_or("", |(kind, _)| kind).to_owned();
        let suffix = extension.clone();
        let unpacking = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let mut unpacked = tempfile::Builder::new().prefix("shoal-load-").suffix(&suffix).tempfile()?;
            let packed = BufReader::new(File::open(path)?);
            match compression {
                Compression::Gzip => std::io::copy(&mut MultiGzDecoder::new(packed), &mut unpacked)?,
                Compression::Zstd => {
                    std::io::copy(&mut zstd::stream::read::Decoder::with_buffer(packed)?, &mut unpacked)?
                }
            };
            Ok(unpacked.into_temp_path())
        });
        let unpacked = unpacking.await.context("the unpacking stopped")?.context("cannot unpack it")?;
        let plain = Self { path: unpacked.to_path_buf(), extension, compression: None, ..self.clone() };
        Ok((plain, Some(unpacked)))
    }

    async fn open(&self) -> Result<DataFrame> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_information_schema(false));
        let path = self.path.to_str().context("its path is not text")?;
        let frame = match self.kind {
            FileKind::Parquet => {
                let options = ParquetReadOptions { file_extension: &self.extension, ..Default::default() };
                context.read_parquet(path, options).await
            }
            FileKind::Csv | FileKind::Tsv => {
                let options = CsvReadOptions::new()
                    .delimiter(if self.kind == FileKind::Tsv { b'\t' } else { b',' })
                    .schema_infer_max_records(INFER_ROWS)
                    .file_extension(&self.extension);
                context.read_csv(path, options).await
            }
            FileKind::Json => {
                let mut options = JsonReadOptions::default().file_extension(&self.extension);
                options.schema_infer_max_records = INFER_ROWS;
                options.newline_delimited = !self.is_json_array().await;
                context.read_json(path, options).await
            }
        };
        Ok(frame?)
    }
}

/// A name that needs no quotes in SQL: `2024 Sales (EU)` is `_2024_sales_eu`.
fn table_name(stem: &str) -> String {
    let mut name = String::new();
    for c in stem.chars() {
        if c.is_alphanumeric() {
            name.extend(c.to_lowercase());
        } else if !name.ends_with('_') {
            name.push('_');
        }
    }
    let name = name.trim_matches('_');
    match name.chars().next() {
        None => "data".to_owned(),
        Some(first) if first.is_ascii_digit() => format!("_{name}"),
        Some(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_need_no_quotes() {
        for (stem, expected) in [
            ("trips", "trips"),
            ("Trips-2024.01", "trips_2024_01"),
            ("2024 Sales (EU)", "_2024_sales_eu"),
            ("--", "data"),
        ] {
            assert_eq!(table_name(stem), expected);
        }
    }

    #[test]
    fn files_are_known_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            plan(&[path]).map(|files| (files[0].kind, files[0].extension.clone(), files[0].table.clone()))
        };
        let known = |kind, extension: &str, table: &str| (kind, extension.to_owned(), table.to_owned());
        assert_eq!(file("a.parquet").unwrap(), known(FileKind::Parquet, ".parquet", "a"));
        assert_eq!(file("b.CSV.gz").unwrap(), known(FileKind::Csv, ".CSV.gz", "b"));
        assert_eq!(file("c.d.jsonl.zst").unwrap(), known(FileKind::Json, ".jsonl.zst", "c_d"));
        for wrong in ["e", "e.xlsx", "e.parquet.gz", "e.gz"] {
            let error = file(wrong).unwrap_err().to_string();
            assert!(error.contains("should end in .parquet"), "{error}");
        }
    }

    #[test]
    fn two_files_are_never_one_table() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["A.csv", "a.parquet"].map(|name| folder.path().join(name));
        for path in &paths {
            std::fs::write(path, "").unwrap();
        }
        assert!(plan(&paths).unwrap_err().to_string().contains("both become the table `a`"));
        assert!(plan(&[folder.path().to_owned()]).unwrap_err().to_string().contains("is a folder"));
        assert!(plan(&[folder.path().join("absent.csv")]).is_err());
    }
}
