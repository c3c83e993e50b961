//! DuckDB over the plain files, through its Python package in a virtual
//! environment of ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::TableFiles;
use super::child::{ChildPeer, RowFile, tables_file};
use crate::answer::Numbers;

const SCRIPT: &str = include_str!("duckdb_peer.py");

/// Starts DuckDB with so many threads; its package is installed below `root`
/// at the first time.
///
/// # Errors
/// When there is no Python, or the package cannot be had.
pub fn start(root: &Path, threads: usize, tables: &[TableFiles]) -> Result<ChildPeer> {
    let python = environment(root)?;
    let dir = TempDir::new().context("make a directory")?;
    let script = dir.path().join("duckdb_peer.py");
    std::fs::write(&script, SCRIPT).context("write the script")?;
    let mut command = Command::new(python);
    command.arg(script).arg(threads.to_string()).arg(tables_file(&dir, tables)?);
    ChildPeer::start("duckdb", Numbers::AsFloats, RowFile::Parquet, command, dir)
}

/// The interpreter of an environment that has the package.
fn environment(root: &Path) -> Result<PathBuf> {
    let dir = root.join("python");
    let python = dir.join("bin/python");
    if has_duckdb(&python) {
        return Ok(python);
    }
    quietly(Command::new("python3").args(["-m", "venv"]).arg(&dir)).context("make a virtual environment")?;
    quietly(Command::new(&python).args(["-m", "pip", "install", "--quiet", "duckdb", "pyarrow"]))
        .context("install duckdb")?;
    if has_duckdb(&python) { Ok(python) } else { bail!("the duckdb package cannot be imported") }
}

fn has_duckdb(python: &Path) -> bool {
    python.exists() && quietly(Command::new(python).args(["-c", "import duckdb, pyarrow"])).is_ok()
}

fn quietly(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { bail!("{status}") }
}
