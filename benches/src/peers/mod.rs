//! The engines that a benchmark puts side by side. Each runs in processes of
//! its own, so that CPU and memory can be told apart, and all answer over the
//! same rows.

mod ballista;
#[cfg(feature = "ballista")]
mod ballista_serve;
mod child;
mod duckdb;
mod flight;
mod serve;
mod shoal;

use std::path::PathBuf;

use anyhow::{Result, bail};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shoal_coordinator::query::TimeSplit;

pub use ballista::{BALLISTA, BALLISTA_16, ensure_built as ensure_ballista, start as start_ballista};
pub use child::ChildPeer;
pub use duckdb::start as start_duckdb;
pub use flight::FlightPeer;
pub use serve::{PeerCommand, run as serve};
pub(crate) use serve::{register, runtime, say_line, wait_for_end_of_stdin};
pub use shoal::{ShoalPeer, shard_files};

use crate::answer::{Answer, Numbers};

/// One timed execution.
#[derive(Debug)]
pub struct Execution {
    /// From sending the statement to having the last row.
    pub seconds: f64,
    /// Rows of the result.
    pub rows: usize,
    /// The rows, where they were asked for.
    pub answer: Option<Answer>,
}

/// An engine with the tables of a benchmark in it.
#[async_trait]
pub trait Peer: Send {
    /// As in `--against` and in `ratio_<name>`.
    fn name(&self) -> &str;

    /// How its numbers are compared.
    fn numbers(&self) -> Numbers {
        Numbers::Exact
    }

    /// Its processes.
    fn pids(&self) -> Vec<u32>;

    /// Runs a query; with its rows when `answer` says so, which is outside of
    /// the time.
    ///
    /// # Errors
    /// What the engine says.
    async fn run(&mut self, sql: &str, answer: bool) -> Result<Execution>;

    /// Runs a query once to see where its time goes.
    ///
    /// # Errors
    /// What the engine says, and for one that does not know.
    async fn split(&mut self, _sql: &str) -> Result<TimeSplit> {
        bail!("{} does not say where its time goes", self.name())
    }
}

/// Files of the tables that a peer reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableFiles {
    /// Its name in SQL.
    pub table: String,
    /// Parquet files or directories of such.
    pub paths: Vec<PathBuf>,
}
