//! TPC-H as plain Parquet files, generated once for each scale and kept: what
//! every peer reads and what Shoal loads.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use shoal_data::sample::{TpchTable, tpch_batches, tpch_schema};

/// Files of each large table.
const FILES: u32 = 4;
/// Tables with fewer rows are one file.
const LARGE_ROWS: u64 = 20_000;
/// Encoded bytes of a row group.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// The files of one scale: `<dir>/<table>/<part>.parquet`, Snappy, row groups
/// of 32 MB.
#[derive(Clone, Debug)]
pub struct TpchData {
    dir: PathBuf,
    scale: f64,
}

impl TpchData {
    /// The files below `root` for this scale, generated on all cores where
    /// they are not there yet.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn ensure(root: &Path, scale: f64) -> Result<Self> {
        let data = Self { dir: root.join(format!("sf{scale}")), scale };
        if data.dir.exists() {
            return Ok(data);
        }
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let unfinished = tempfile::Builder::new()
            .prefix("unfinished-")
            .tempdir_in(root)
            .context("make a directory for TPC-H files")?;
        generate(unfinished.path(), scale)?;
        // Several processes may get here at once; the first one wins.
        if fs::rename(unfinished.path(), &data.dir).is_err() && !data.dir.exists() {
            anyhow::bail!("cannot rename {} to {}", unfinished.path().display(), data.dir.display());
        }
        Ok(data)
    }

    /// The scale factor.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The directory of all tables.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory with one table's files.
    pub fn table_dir(&self, table: TpchTable) -> PathBuf {
        self.dir.join(table.name())
    }

    /// The statement that loads one table into Shoal.
    pub fn copy_statement(&self, table: TpchTable) -> String {
        format!("COPY {table} FROM '{}/*.parquet' (FORMAT parquet)", self.table_dir(table).display())
    }
}

/// Where generated data is kept: below the build's target directory.
pub fn data_root() -> PathBuf {
    let executable = std::env::current_exe().unwrap_or_default();
    let target = executable.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    target.unwrap_or_else(|| Path::new("target")).join("shoal-bench-data")
}

fn generate(dir: &Path, scale: f64) -> Result<()> {
    let mut files = Vec::new();
    for table in TpchTable::ALL.into_iter().rev() {
        fs::create_dir(dir.join(table.name())).context("create a table's directory")?;
        let parts = if table.rows(scale) < LARGE_ROWS { 1 } else { FILES };
        files.extend((0..parts).map(|part| (table, part, parts)));
    }
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((table, part, parts)) =
                    files.get(next.fetch_add(1, Ordering::Relaxed)).copied()
                {
                    let path = dir.join(table.name()).join(format!("{part}.parquet"));
                    if let Err(error) = write_part(&path, table, scale, part, parts)
                        && let Ok(mut failure) = failure.lock()
                    {
                        failure.get_or_insert(error.context(format!("write {}", path.display())));
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => anyhow::bail!("a generator panicked"),
    }
}

fn write_part(path: &Path, table: TpchTable, scale: f64, part: u32, parts: u32) -> Result<()> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(None)
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, tpch_schema(table), Some(properties))?;
    for batch in tpch_batches(table, scale, part, parts) {
        writer.write(&batch?)?;
    }
    writer.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Oracle;

    #[tokio::test]
    async fn files_hold_every_row_once_and_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let data = TpchData::ensure(root.path(), 0.01).unwrap();
        let written = fs::metadata(data.dir()).unwrap().modified().unwrap();
        let oracle = Oracle::new(2);
        oracle.register_parquet("orders", &data.table_dir(TpchTable::Orders)).await.unwrap();
        let (_, batches) = oracle.run("SELECT 1 FROM orders").await.unwrap();
        let rows: usize = batches.iter().map(arrow::record_batch::RecordBatch::num_rows).sum();
        assert_eq!(rows as u64, TpchTable::Orders.rows(0.01));

        TpchData::ensure(root.path(), 0.01).unwrap();
        assert_eq!(fs::metadata(data.dir()).unwrap().modified().unwrap(), written);
    }
}
