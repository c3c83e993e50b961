//! Rows of a query that become segments on the workers that compute them: they go neither
//! to the coordinator nor anywhere else before they are encoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use shoal_data::Table;
use shoal_proto::cluster::LoadRows;
use shoal_proto::{ErrorCode, Failure, WorkerId, WriteId};

use super::ask::{NotLoaded, ask_rows, told};
use super::load::StagedNames;
use super::tasks::first_shard;
use super::{Staged, WriteContext};
use crate::Error;
use crate::catalog::{bytes_in_change, check_change_bytes};
use crate::query::{LastTasks, TakesRows};

/// A write whose rows a query gives. Of its attempts the last one counts.
pub struct RowsLoad {
    context: WriteContext,
    table: Arc<Table>,
    /// As workers are told of it.
    table_json: Bytes,
    write_id: WriteId,
    /// What the attempt has come to that took rows last.
    staged: Mutex<Option<Staged>>,
    /// A worker could not write them, and another way may.
    is_given_up: AtomicBool,
}

impl RowsLoad {
    /// A write into this table. Nothing is committed by it.
    ///
    /// # Errors
    /// None in practice; those of telling workers of the table.
    pub fn new(context: &WriteContext, table: &Arc<Table>, write_id: &WriteId) -> Result<Self, Error> {
        Ok(Self {
            context: context.clone(),
            table: Arc::clone(table),
            table_json: told(table)?,
            write_id: write_id.clone(),
            staged: Mutex::default(),
            is_given_up: AtomicBool::new(false),
        })
    }

    /// The segments of all rows, where workers have made them.
    pub fn staged(&self) -> Option<Staged> {
        self.staged.lock().take()
    }

    /// The error of an attempt. What one worker could not write it may be that the coordinator
    /// can, which says the last word; what would be wrong everywhere is told at once.
    fn failure(&self, worker: &WorkerId, why: NotLoaded) -> Failure {
        match why {
            NotLoaded::Failed(failure) => failure,
            NotLoaded::Refused(failure) if is_of_worker(failure.code) => {
                tracing::warn!(write_id = %self.write_id, %worker, %failure, "rows are not loaded where they are");
                self.is_given_up.store(true, Ordering::Relaxed);
                Failure::new(ErrorCode::Unavailable, failure.message).at(worker.as_str())
            }
            NotLoaded::Refused(failure) => failure,
        }
    }

    /// Has all of them make segments, at once: what one gives may wait for what is taken
    /// from others.
    async fn load(&self, last: &LastTasks) -> Result<Staged, Failure> {
        let mut asked: FuturesUnordered<_> =
            (0..last.tasks.len()).map(|index| self.ask(last, index)).collect();
        let names = StagedNames::new(&self.context, self.write_id.clone());
        let mut staged = Staged::new(Vec::new(), names);
        let mut bytes_to_commit = 0;
        while let Some(part) = asked.next().await {
            let part = part?;
            bytes_to_commit += bytes_in_change(&part.segments)?;
            staged = staged.with(part);
            // Not only when all the rest is staged, too.
            check_change_bytes(bytes_to_commit, staged.segments.len())?;
        }
        Ok(staged)
    }

    async fn ask(&self, last: &LastTasks, index: usize) -> Result<Staged, Failure> {
        let (worker, source) = &last.tasks[index];
        let rows = LoadRows {
            table: self.table_json.clone(),
            write_id: self.write_id.to_string(),
            first_shard: first_shard(&self.write_id, index, last.tasks.len(), self.table.layout.shards),
            columns: last.columns.clone(),
            source: Some(source.clone()),
        };
        tracing::debug!(write_id = %self.write_id, %worker, index, "rows of a query are loaded");
        let asked = ask_rows(&self.context, worker, &self.table, rows, &last.query, &last.reads).await;
        asked.map_err(|why| self.failure(worker, why))
    }
}

impl TakesRows for RowsLoad {
    fn begin(&self) -> bool {
        // What an attempt before this one staged is discarded.
        let before = self.staged.lock().take();
        drop(before);
        !self.is_given_up.load(Ordering::Relaxed)
    }

    fn take(self: Arc<Self>, last: LastTasks) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let staged = self.load(&last).await?;
            let before = self.staged.lock().replace(staged);
            drop(before);
            Ok(())
        })
    }
}

/// Whether the coordinator may write what a worker refuses to: it may reach other workers, and
/// it knows itself what is new.
fn is_of_worker(code: ErrorCode) -> bool {
    code.is_retryable() || matches!(code, ErrorCode::Timeout | ErrorCode::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_no_worker_can_write_are_told_at_once_and_all_else_is_tried_here() {
        for (code, expected) in [
            (ErrorCode::Unavailable, true),
            (ErrorCode::Timeout, true),
            (ErrorCode::Unsupported, true),
            (ErrorCode::Invalid, false),
            (ErrorCode::Exhausted, false),
        ] {
            assert_eq!(is_of_worker(code), expected, "{code:?}");
        }
    }
}
