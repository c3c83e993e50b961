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
use shoal_proto::{Failure, WorkerId, WriteId};

use super::ask::{NotLoaded, ask_rows, told};
use super::load::StagedNames;
use super::spread::is_worth_another;
use super::tasks::first_shard;
use super::{Staged, WriteContext};
use crate::Error;
use crate::catalog::{bytes_in_change, check_change_bytes};
use crate::query::{LastTasks, Refusal, TakesRows};

/// A write whose rows a query gives. Of its attempts the last one counts.
pub struct RowsLoad {
    context: WriteContext,
    table: Arc<Table>,
    /// As workers are told of it.
    table_json: Bytes,
    write_id: WriteId,
    taking: Mutex<Taking>,
    /// Workers could not write them, and another way may.
    is_given_up: AtomicBool,
}

/// What has come of an attempt.
#[derive(Default)]
struct Taking {
    attempt: u32,
    staged: Option<Staged>,
    refusal: Option<Refusal>,
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
            taking: Mutex::default(),
            is_given_up: AtomicBool::new(false),
        })
    }

    /// The segments of all rows, where workers have made them.
    pub fn staged(&self) -> Option<Staged> {
        self.taking.lock().staged.take()
    }

    /// What an attempt fails with: the query's own error, or that its rows are refused.
    fn failure(&self, attempt: u32, worker: &WorkerId, why: NotLoaded) -> Failure {
        match why {
            NotLoaded::Failed(failure) => failure,
            NotLoaded::Refused(failure) => {
                tracing::warn!(write_id = %self.write_id, %worker, %failure, "rows are not loaded where they are");
                // It may reach other workers, and knows itself what is new.
                let may_come_here = is_worth_another(failure.code);
                self.refuse(attempt, Refusal { failure, may_come_here })
            }
        }
    }

    /// Notes why the rows of an attempt are not taken. What one worker could not write it may be
    /// that the coordinator can, which says the last word; what would be wrong everywhere is
    /// told at once.
    fn refuse(&self, attempt: u32, refusal: Refusal) -> Failure {
        let failure = refusal.failure.clone();
        let mut taking = self.taking.lock();
        if taking.attempt == attempt {
            self.is_given_up.fetch_or(refusal.may_come_here, Ordering::Relaxed);
            taking.refusal.get_or_insert(refusal);
        }
        failure
    }

    /// Has all of them make segments, at once: what one gives may wait for what is taken
    /// from others.
    async fn load(&self, last: &LastTasks) -> Result<Staged, Failure> {
        let mut asked: FuturesUnordered<_> =
            (0..last.tasks.len()).map(|index| self.ask(last, index)).collect();
        let names = StagedNames::new(&self.context, self.write_id.clone());
        let mut staged = Staged::nothing(names);
        let mut bytes_to_commit = 0;
        while let Some(part) = asked.next().await {
            let part = part?;
            bytes_to_commit += bytes_in_change(&part.segments)?;
            staged = staged.with(part);
            // Not only when all the rest is staged, too. The coordinator makes fewer and larger ones.
            if let Err(error) = check_change_bytes(bytes_to_commit, staged.segments.len()) {
                let refusal = Refusal { failure: Failure::from(error), may_come_here: true };
                return Err(self.refuse(last.query.attempt, refusal));
            }
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
        asked.map_err(|why| self.failure(last.query.attempt, worker, why))
    }
}

impl TakesRows for RowsLoad {
    fn begin(&self, attempt: u32) -> bool {
        let begun = Taking { attempt, ..Taking::default() };
        let before = std::mem::replace(&mut *self.taking.lock(), begun);
        // What an attempt before this one staged is discarded.
        drop(before);
        !self.is_given_up.load(Ordering::Relaxed)
    }

    fn refusal(&self) -> Option<Refusal> {
        self.taking.lock().refusal.clone()
    }

    fn take(self: Arc<Self>, last: LastTasks) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let staged = self.load(&last).await?;
            let mut taking = self.taking.lock();
            // Another attempt may have begun, which does not count with this one's segments.
            let discarded = match taking.attempt == last.query.attempt {
                true => taking.staged.replace(staged),
                false => Some(staged),
            };
            drop(taking);
            drop(discarded);
            Ok(())
        })
    }
}
