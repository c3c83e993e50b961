//! A load that is spread over the workers: each reads some row groups of the
//! files, makes segments of them and sends those to the workers of their shards.
//! Encoded bytes go over the network, never rows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use shoal_data::Table;
use shoal_data::load::{RowGroup, Version, read_pieces};
use shoal_proto::cluster::{LoadFile, LoadTask};
use shoal_proto::{ErrorCode, WriteId};
use tokio::task::JoinSet;

use super::ask::{ask, told};
use super::deals::{Deals, Place};
use super::load::{StagedNames, write_part};
use super::tasks::{cut, first_shard};
use super::{Staged, WriteContext};
use crate::Error;
use crate::catalog::{bytes_in_change, check_change_bytes};

/// How often it is looked for workers that can be given work now.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What is to be loaded.
pub struct Load {
    /// Into this table.
    table: Arc<Table>,
    /// As this write.
    write_id: WriteId,
    /// The columns of the files.
    columns: SchemaRef,
    /// Where workers find files that are not in an object store.
    files_at: String,
    tasks: Vec<Vec<RowGroup>>,
}

impl Load {
    /// A load of these row groups, in tasks of at least about `task_bytes`; none
    /// where it is too little to be spread, or workers cannot find the files.
    pub fn new(
        context: &WriteContext,
        table: &Arc<Table>,
        write_id: &WriteId,
        columns: &SchemaRef,
        row_groups: &[RowGroup],
        files_at: String,
        task_bytes: u64,
    ) -> Option<Self> {
        if row_groups.iter().any(|row_group| row_group.file().origin().is_none()) {
            return None;
        }
        let sizes: Vec<u64> = row_groups.iter().map(RowGroup::bytes).collect();
        let tasks = cut(&sizes, context.holders().able().len(), task_bytes);
        let tasks: Vec<Vec<RowGroup>> = tasks.into_iter().map(|task| row_groups[task].to_vec()).collect();
        (!tasks.is_empty()).then(|| Self {
            table: Arc::clone(table),
            write_id: write_id.clone(),
            columns: Arc::clone(columns),
            files_at,
            tasks,
        })
    }
}

/// Loads it: stages segments of all rows. A task whose worker is lost is done by
/// another one, and what none can do by this coordinator. `done` is told the rows
/// and bytes of each task. Nothing is committed.
///
/// # Errors
/// What is wrong with the files or their rows, as this coordinator finds it;
/// `Exhausted` as soon as there are more segments than one commit may name; and what
/// [`write()`](super::write()) says. Everything that was staged is then discarded, as it
/// is when the future is dropped.
pub async fn spread(
    context: &WriteContext,
    load: Load,
    done: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Staged, Error> {
    let names = StagedNames::new(context, load.write_id.clone());
    let mut staged = Staged::new(Vec::new(), names);
    let mut deals = Deals::new(load.tasks.len());
    let table_json = told(&load.table)?;
    let work = Arc::new(Work { context: context.clone(), table_json, load });
    let mut running = JoinSet::new();
    let mut bytes_to_commit = 0;
    while !deals.is_over() {
        while let Some((task, place)) = deals.next(&context.holders().able()) {
            tracing::debug!(write_id = %work.load.write_id, task, ?place, "task of a load begins");
            running.spawn(Arc::clone(&work).do_task(task, place));
        }
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            // Another worker may be there by now.
            () = tokio::time::sleep(LOOK_INTERVAL) => continue,
        };
        let (task, place, outcome) = match ended {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => return Err(Error::Internal(format!("loading: {error}"))),
            None => return Err(Error::Internal("a load has tasks that nobody does".to_owned())),
        };
        match (outcome, &place) {
            (Ok(part), _) => {
                deals.done(&place);
                done(part.rows, part.segments.iter().map(|segment| segment.bytes).sum());
                bytes_to_commit += bytes_in_change(&part.segments)?;
                staged = staged.with(part);
                // Not only when all the rest is staged, too.
                check_change_bytes(bytes_to_commit, staged.segments.len())?;
            }
            (Err(error), Place::Here) => return Err(error),
            (Err(error), Place::At(worker)) => {
                let code = error.code();
                tracing::warn!(write_id = %work.load.write_id, task, %worker, %error, "task of a load failed");
                deals.failed(task, worker, is_worth_another(code));
            }
        }
    }
    Ok(staged)
}

/// Whether another worker, or the coordinator, may do what one could not: also where that is of an
/// older version, which knows no loads.
pub(super) fn is_worth_another(code: ErrorCode) -> bool {
    code.is_retryable() || matches!(code, ErrorCode::Timeout | ErrorCode::Unsupported)
}

/// What all tasks of a load share.
struct Work {
    context: WriteContext,
    /// As workers are told of it.
    table_json: Bytes,
    load: Load,
}

/// A task, where it was done, and what came of it.
type Ended = (usize, Place, Result<Staged, Error>);

impl Work {
    async fn do_task(self: Arc<Self>, task: usize, place: Place) -> Ended {
        let row_groups = &self.load.tasks[task];
        let outcome = match &place {
            Place::At(worker) => {
                let rows = row_groups.iter().map(RowGroup::rows).sum();
                let order = self.order(task, row_groups);
                let asked = ask(&self.context, worker, &self.load.table, order, rows).await;
                asked.map_err(Error::from)
            }
            Place::Here => self.do_here(task, row_groups).await,
        };
        (task, place, outcome)
    }

    async fn do_here(&self, task: usize, row_groups: &[RowGroup]) -> Result<Staged, Error> {
        let load = &self.load;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let pieces: VecDeque<RowGroup> = row_groups.iter().cloned().collect();
        let rows = read_pieces(pieces, threads, Arc::clone(&load.columns));
        let first_shard = self.first_shard(task);
        write_part(&self.context, &load.table, &load.write_id, first_shard, rows, Arc::default()).await
    }

    fn first_shard(&self, task: usize) -> u32 {
        let load = &self.load;
        first_shard(&load.write_id, task, load.tasks.len(), load.table.layout.shards)
    }

    /// The task as a worker is told of it.
    fn order(&self, task: usize, row_groups: &[RowGroup]) -> LoadTask {
        let load = &self.load;
        let mut files: Vec<LoadFile> = Vec::new();
        let mut last = None;
        for row_group in row_groups {
            let index = u32::try_from(row_group.index()).unwrap_or(u32::MAX);
            let file = row_group.file();
            if last == Some(file.name())
                && let Some(same) = files.last_mut()
            {
                same.row_groups.push(index);
                continue;
            }
            last = Some(file.name());
            let Version { bytes, modified_unix_ms, e_tag } = file.version().clone();
            let origin = file.origin().cloned();
            let (store, path) = origin.map_or_else(Default::default, |origin| (origin.store, origin.path));
            let e_tag = e_tag.unwrap_or_default();
            files.push(LoadFile { store, path, bytes, modified_unix_ms, row_groups: vec![index], e_tag });
        }
        LoadTask {
            table: self.table_json.clone(),
            write_id: load.write_id.to_string(),
            columns: load.columns.fields().iter().map(|field| field.name().clone()).collect(),
            files,
            files_at: load.files_at.clone(),
            first_shard: self.first_shard(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_worker_may_cure_is_tried_there() {
        for (code, expected) in [
            (ErrorCode::Unavailable, true),
            (ErrorCode::Timeout, true),
            (ErrorCode::Unsupported, true),
            (ErrorCode::Invalid, false),
            (ErrorCode::Exhausted, false),
        ] {
            assert_eq!(is_worth_another(code), expected, "{code:?}");
        }
    }
}
