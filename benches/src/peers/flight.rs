//! The client's side of DataFusion behind Flight.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::TableFiles;
use super::child::tables_file;

/// A child process that serves Flight SQL; it ends when this is dropped.
pub struct FlightPeer {
    child: Child,
    url: String,
    _dir: TempDir,
}

impl FlightPeer {
    /// Starts DataFusion with so many threads and partitions over files. All that
    /// is asked of it runs at once.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(threads: usize, tables: &[TableFiles]) -> Result<Self> {
        Self::start_with(threads, &[], tables)
    }

    /// The same with so many queries that run at once; the others wait in order, as
    /// at a coordinator.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn with_queue(threads: usize, queries_max: usize, tables: &[TableFiles]) -> Result<Self> {
        Self::start_with(threads, &["--queries", &queries_max.to_string()], tables)
    }

    fn start_with(threads: usize, more: &[&str], tables: &[TableFiles]) -> Result<Self> {
        let dir = TempDir::new().context("make a directory")?;
        let mut child = Command::new(std::env::current_exe().context("path of this executable")?)
            .args(["peer", "flight", "--threads", &threads.to_string()])
            .args(more)
            .arg("--tables")
            .arg(tables_file(&dir, tables)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start DataFusion behind Flight")?;
        let mut url = String::new();
        let stdout = child.stdout.take().context("a pipe from the child")?;
        BufReader::new(stdout).read_line(&mut url)?;
        let url = url.trim().to_owned();
        anyhow::ensure!(url.starts_with("http"), "DataFusion behind Flight did not start");
        Ok(Self { child, url, _dir: dir })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for FlightPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
