//! A load that is spread over the workers: each reads some row groups, or lines, of the
//! files, makes segments of them and sends those to the workers of their shards.
//! Encoded bytes go over the network, never rows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use shoal_data::Table;
use shoal_data::load::{FileFormat, FileKind, FilePiece, Version, read_pieces, to_wire};
use shoal_proto::cluster::load_order::Order;
use shoal_proto::cluster::{LoadFile, LoadRange, LoadTask, LoadText};
use shoal_proto::{ErrorCode, Failure, WriteId};
use tokio::task::JoinSet;

use super::ask::{ask, told};
use super::deals::{Deals, Place};
use super::load::{StagedNames, write_part};
use super::tasks::{cut, first_shard};
use super::{Staged, WriteContext};
use crate::Error;
use crate::catalog::{bytes_in_change, check_change_bytes};
use crate::files::Opened;

/// How often it is looked for workers that can be given work now.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A task has so many parts of a text, which its worker reads at once and one after the
/// other, each of so many bytes.
const PARTS: u64 = 4;
const PART_BYTES_MIN: u64 = 64 << 10;
const PART_BYTES_MAX: u64 = 16 << 20;

/// What becomes of large text files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texts {
    /// They are cut where a line ends, which may be in the middle of a record.
    Cut,
    /// Each is read from its start to its end by one task.
    Whole,
}

/// What is to be loaded.
pub struct Load {
    /// Into this table.
    table: Arc<Table>,
    /// As this write.
    write_id: WriteId,
    /// The columns of the files.
    columns: SchemaRef,
    format: FileFormat,
    /// Where workers find files that are not in an object store.
    files_at: String,
    tasks: Vec<Vec<FilePiece>>,
}

impl Load {
    /// A load of what was opened, in tasks of at least about `task_bytes`; none where it is
    /// too little to be spread, or workers cannot find the files. `write` is the table and
    /// the id of the write.
    pub fn new(
        context: &WriteContext,
        (table, write_id): (&Arc<Table>, &WriteId),
        opened: &Opened,
        texts: Texts,
        files_at: &str,
        task_bytes: u64,
    ) -> Option<Self> {
        let (columns, format) = (opened.columns(), opened.format());
        if opened.pieces().any(|piece| piece.file().origin().is_none()) {
            return None;
        }
        let part_bytes = (task_bytes / PARTS).clamp(PART_BYTES_MIN, PART_BYTES_MAX);
        let pieces: Vec<FilePiece> = match texts {
            Texts::Cut => opened.pieces().flat_map(|piece| piece.cut(format, part_bytes)).collect(),
            Texts::Whole => opened.pieces().cloned().collect(),
        };
        let sizes: Vec<u64> = pieces.iter().map(FilePiece::bytes).collect();
        let tasks = cut(&sizes, context.holders().able().len(), task_bytes);
        let tasks: Vec<Vec<FilePiece>> = tasks.into_iter().map(|task| pieces[task].to_vec()).collect();
        // What is wrong with one that is read from its start again is told here anyway.
        let tasks_min = if texts == Texts::Whole { 2 } else { 1 };
        (tasks.len() >= tasks_min).then(|| Self {
            table: Arc::clone(table),
            write_id: write_id.clone(),
            columns: Arc::clone(columns),
            format: format.clone(),
            files_at: files_at.to_owned(),
            tasks,
        })
    }

    /// Whether an error may be one only of where texts were cut.
    pub fn is_cut(&self) -> bool {
        self.tasks.iter().flatten().any(|piece| piece.range().is_some())
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
    let mut staged = Staged::nothing(names);
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
        let pieces = &self.load.tasks[task];
        let outcome = match &place {
            Place::At(worker) => {
                // Of text nobody knows before it is read.
                let rows = pieces.iter().map(FilePiece::rows).sum();
                match self.order(task, pieces) {
                    Ok(order) => {
                        let Load { table, write_id, .. } = &self.load;
                        let asked = ask(&self.context, worker, table, write_id, order, rows).await;
                        asked.map_err(Error::from)
                    }
                    Err(failure) => Err(failure.into()),
                }
            }
            Place::Here => self.do_here(task, pieces).await,
        };
        (task, place, outcome)
    }

    async fn do_here(&self, task: usize, pieces: &[FilePiece]) -> Result<Staged, Error> {
        let load = &self.load;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let pieces: VecDeque<FilePiece> = pieces.iter().cloned().collect();
        let rows = read_pieces(pieces, threads, Arc::clone(&load.columns));
        let first_shard = self.first_shard(task);
        write_part(&self.context, &load.table, &load.write_id, first_shard, rows, Arc::default()).await
    }

    fn first_shard(&self, task: usize) -> u32 {
        let load = &self.load;
        first_shard(&load.write_id, task, load.tasks.len(), load.table.layout.shards)
    }

    /// The task as a worker is told of it.
    fn order(&self, task: usize, pieces: &[FilePiece]) -> Result<Order, Failure> {
        let load = &self.load;
        let mut files: Vec<LoadFile> = Vec::new();
        let mut last = None;
        for piece in pieces {
            let file = piece.file();
            let row_group = match piece {
                FilePiece::Parquet(row_group) => Some(u32::try_from(row_group.index()).unwrap_or(u32::MAX)),
                FilePiece::Csv(_) | FilePiece::Json(_) => None,
            };
            let range = piece.range().map(|range| LoadRange { start: range.start, end: range.end });
            if last == Some(file.name())
                && let Some(same) = files.last_mut()
            {
                same.row_groups.extend(row_group);
                same.ranges.extend(range);
                continue;
            }
            last = Some(file.name());
            let (row_groups, ranges) = (row_group.into_iter().collect(), range.into_iter().collect());
            let Version { bytes, modified_unix_ms, e_tag } = file.version().clone();
            let origin = file.origin().cloned();
            let (store, path) = origin.map_or_else(Default::default, |origin| (origin.store, origin.path));
            let e_tag = e_tag.unwrap_or_default();
            files.push(LoadFile { store, path, bytes, modified_unix_ms, row_groups, e_tag, ranges });
        }
        let task = LoadTask {
            table: self.table_json.clone(),
            write_id: load.write_id.to_string(),
            columns: load.columns.fields().iter().map(|field| field.name().clone()).collect(),
            files,
            files_at: load.files_at.clone(),
            first_shard: self.first_shard(task),
        };
        match load.format.kind {
            FileKind::Parquet => Ok(Order::Task(task)),
            FileKind::Csv | FileKind::Json => {
                Ok(Order::Text(LoadText { task: Some(task), format: to_wire(&load.format)? }))
            }
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
