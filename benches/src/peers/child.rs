//! A peer in a child process: one line of JSON for each query, one for each
//! answer. The child ends when its standard input closes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use arrow::ipc::reader::FileReader;
use async_trait::async_trait;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use shoal_coordinator::query::TimeSplit;
use tempfile::TempDir;

use super::{Execution, Peer, TableFiles};
use crate::answer::{Answer, Numbers};
use crate::process::family;

/// What the parent asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The query.
    pub(super) sql: String,
    /// Where to write the rows, if they are wanted.
    pub(super) answer: Option<PathBuf>,
    /// Whether it is asked for where the time goes, and for nothing else.
    #[serde(default)]
    pub(super) split: bool,
}

/// What the child answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Reply {
    /// The time that the query took.
    #[serde(default)]
    pub(super) seconds: f64,
    /// Rows of the result.
    #[serde(default)]
    pub(super) rows: usize,
    /// Why there is no result.
    #[serde(default)]
    pub(super) error: Option<String>,
    /// Where the time went, where that was asked for: a [`TimeSplit`] as text.
    #[serde(default)]
    pub(super) split: Option<String>,
}

/// The form in which a child writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowFile {
    Arrow,
    Parquet,
}

/// A peer that is a child process.
pub struct ChildPeer {
    name: String,
    numbers: Numbers,
    row_file: RowFile,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Helpers that this one needs, such as workers.
    helpers: Vec<ChildPeer>,
    dir: TempDir,
}

impl ChildPeer {
    /// Single-process DataFusion over files, under the given name.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn datafusion(name: &str, threads: usize, tables: &[TableFiles]) -> Result<Self> {
        Self::datafusion_within(name, threads, None, tables)
    }

    /// The same with so many bytes of memory for queries; None: no limit.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn datafusion_within(
        name: &str,
        threads: usize,
        memory_bytes: Option<u64>,
        tables: &[TableFiles],
    ) -> Result<Self> {
        let dir = TempDir::new().context("make a directory")?;
        let mut command = this_executable("datafusion")?;
        command.arg("--threads").arg(threads.to_string()).arg("--tables").arg(tables_file(&dir, tables)?);
        if let Some(bytes) = memory_bytes {
            command.arg("--memory").arg(bytes.to_string());
        }
        Self::start(name, Numbers::Exact, RowFile::Arrow, command, dir)
    }

    /// Plain datafusion-distributed: a coordinator and `workers` workers, each
    /// a process.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn datafusion_distributed(
        workers: usize,
        threads: usize,
        head_threads: usize,
        tables: &[TableFiles],
    ) -> Result<Self> {
        let mut helpers = Vec::new();
        let mut ports = Vec::new();
        for number in 1..=workers {
            let dir = TempDir::new().context("make a directory")?;
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let mut command = this_executable("dfd-worker")?;
            command.arg("--threads").arg(threads.to_string()).arg("--port").arg(port.to_string());
            helpers.push(Self::start(
                &format!("dfd worker {number}"),
                Numbers::Exact,
                RowFile::Arrow,
                command,
                dir,
            )?);
            ports.push(port.to_string());
        }
        let dir = TempDir::new().context("make a directory")?;
        let mut command = this_executable("dfd")?;
        command
            .args(["--threads", &head_threads.to_string()])
            // One partition in a task gives wrong answers in 4.0.
            .args(["--partitions", &threads.max(2).to_string()])
            .args(["--workers", &ports.join(",")])
            .arg("--tables")
            .arg(tables_file(&dir, tables)?);
        let peer = Self::start("dfd", Numbers::Exact, RowFile::Arrow, command, dir)?;
        Ok(peer.with_helpers(helpers))
    }

    pub(super) fn start(
        name: &str,
        numbers: Numbers,
        row_file: RowFile,
        mut command: Command,
        dir: TempDir,
    ) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a pipe from the child")?;
        let mut peer = Self {
            name: name.to_owned(),
            numbers,
            row_file,
            child,
            stdin,
            stdout: BufReader::new(stdout),
            helpers: Vec::new(),
            dir,
        };
        // The first line says that it is ready.
        let ready = peer.reply()?;
        match ready.error {
            Some(error) => bail!("{name}: {error}"),
            None => Ok(peer),
        }
    }

    /// The same with processes that it needs, which end after it.
    pub(super) fn with_helpers(mut self, helpers: Vec<Self>) -> Self {
        self.helpers = helpers;
        self
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stdin.write_all(line.as_bytes()).with_context(|| format!("write to {}", self.name))?;
        stdin.flush()?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            bail!("{} ended with {status}", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("{} said: {line}", self.name))
    }

    fn read_rows(&self, path: &std::path::Path) -> Result<Answer> {
        let file = File::open(path).with_context(|| format!("rows of {}", self.name))?;
        let (schema, batches) = match self.row_file {
            RowFile::Arrow => {
                let reader = FileReader::try_new(file, None)?;
                (reader.schema(), reader.collect::<Result<Vec<_>, _>>()?)
            }
            RowFile::Parquet => {
                let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
                let schema = reader.schema().clone();
                (schema, reader.build()?.collect::<Result<Vec<_>, _>>()?)
            }
        };
        std::fs::remove_file(path)?;
        Ok(Answer::new(&schema, &batches, self.numbers)?)
    }
}

#[async_trait]
impl Peer for ChildPeer {
    fn name(&self) -> &str {
        &self.name
    }

    fn numbers(&self) -> Numbers {
        self.numbers
    }

    fn pids(&self) -> Vec<u32> {
        let own = family(self.child.id());
        own.into_iter().chain(self.helpers.iter().flat_map(Peer::pids)).collect()
    }

    async fn run(&mut self, sql: &str, answer: bool) -> Result<Execution> {
        let path = self.dir.path().join("rows");
        let request = Request { sql: sql.to_owned(), answer: answer.then(|| path.clone()), split: false };
        let reply = tokio::task::block_in_place(|| self.ask(&request))?;
        if let Some(error) = reply.error {
            return Err(anyhow!("{error}"));
        }
        let answer = if answer { Some(self.read_rows(&path)?) } else { None };
        Ok(Execution { seconds: reply.seconds, rows: reply.rows, answer })
    }

    async fn split(&mut self, sql: &str) -> Result<TimeSplit> {
        let request = Request { sql: sql.to_owned(), answer: None, split: true };
        let reply = tokio::task::block_in_place(|| self.ask(&request))?;
        match (reply.error, reply.split) {
            (Some(error), _) => Err(anyhow!("{error}")),
            (None, Some(split)) => split.parse().map_err(anyhow::Error::msg),
            (None, None) => bail!("{} does not say where its time goes", self.name),
        }
    }
}

impl Drop for ChildPeer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hidden `peer` subcommand of this executable.
pub(super) fn this_executable(kind: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("path of this executable")?);
    command.args(["peer", kind]);
    Ok(command)
}

/// Writes the tables' files where a child reads them.
pub(super) fn tables_file(dir: &TempDir, tables: &[TableFiles]) -> Result<PathBuf> {
    let path = dir.path().join("tables.json");
    std::fs::write(&path, serde_json::to_vec(tables)?).context("write the list of tables")?;
    Ok(path)
}
