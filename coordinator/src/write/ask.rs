//! One task of a load on one worker, or rows that a query gives there: what it is told,
//! what it tells, and what of that is taken.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use shoal_data::load::{Durable, Written, from_wire, to_wire};
use shoal_data::{SegmentName, Sketches, Table};
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::cluster::load_news::News;
use shoal_proto::cluster::load_order::Order;
use shoal_proto::cluster::loads_client::LoadsClient;
use shoal_proto::cluster::{LoadDone, LoadOrder, LoadRefused, LoadRows, LoadWorker, LoadWorkers};
use shoal_proto::exchange::{QueryOptions, ReadLog};
use shoal_proto::query::Frame;
use shoal_proto::{ErrorCode, Failure, WorkerId, WriteId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request};

use super::load::StagedNames;
use super::{Staged, WriteContext};

/// How long a worker may take to begin.
const BEGIN_MAX: Duration = Duration::from_secs(10);
/// How often it is looked at which workers are live.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Orders that wait for the network.
const ORDERS_WAITING: usize = 16;

/// The table as workers are told of it: they need not know what it has.
///
/// # Errors
/// None in practice.
pub(super) fn told(table: &Table) -> Result<Bytes, Failure> {
    to_wire(&Table { segments: Vec::new(), sketches: None, ..table.clone() })
}

/// Why a worker made no segments.
#[derive(Debug)]
pub(super) enum NotLoaded {
    /// It, or what it was to make them of, failed: elsewhere it may be different.
    Failed(Failure),
    /// It says that the rows cannot be written; no worker is named. `Unsupported` where it
    /// knows no such order.
    Refused(Failure),
}

impl NotLoaded {
    fn into_failure(self) -> Failure {
        match self {
            Self::Failed(failure) | Self::Refused(failure) => failure,
        }
    }
}

impl From<Failure> for NotLoaded {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Has `worker` do a task with files, of which all rows together are `rows`, or as many as
/// it says that it has read. What it stages is protected before it does, and discarded
/// unless all was well.
///
/// # Errors
/// `Unavailable` where it cannot be reached, falls silent or does not end in order;
/// `Corrupt` where what it says cannot be; what it says went wrong.
pub(super) async fn ask(
    context: &WriteContext,
    worker: &WorkerId,
    table: &Table,
    write_id: &WriteId,
    task: Order,
    rows: Option<u64>,
) -> Result<Staged, Failure> {
    let names = StagedNames::new(context, write_id.clone());
    let call = Call { context, worker, table, names: &names };
    let made = call.make_unless_lost(task, HeaderMap::new()).await;
    let done = made.map_err(NotLoaded::into_failure)?;
    let written = written_of(&done, table)?;
    call.check(&written.durable, rows.unwrap_or(done.rows))?;
    Ok(Staged::new(written, names))
}

/// Has `worker` make segments of rows that the query of these options gives there; `reads`
/// takes in what was read for them. Otherwise as [`ask`].
///
/// # Errors
/// As there, but for what it refuses.
pub(super) async fn ask_rows(
    context: &WriteContext,
    worker: &WorkerId,
    table: &Table,
    rows: LoadRows,
    query: &QueryOptions,
    reads: &ReadLog,
) -> Result<Staged, NotLoaded> {
    let names = StagedNames::new(context, WriteId::new(rows.write_id.clone()));
    let call = Call { context, worker, table, names: &names };
    let done = call.make_unless_lost(Order::Rows(rows), query.to_headers()?).await?;
    let written = written_of(&done, table)?;
    call.check(&written.durable, done.rows)?;
    let read = Frame::decode(done.read).map_err(|error| call.wrong(&error.to_string()))?;
    reads.take_in(read.reads);
    reads.take_in_crossed(read.crossed);
    Ok(Staged::new(written, names))
}

struct Call<'a> {
    context: &'a WriteContext,
    worker: &'a WorkerId,
    table: &'a Table,
    names: &'a StagedNames,
}

impl Call<'_> {
    async fn make_unless_lost(&self, order: Order, headers: HeaderMap) -> Result<LoadDone, NotLoaded> {
        tokio::select! {
            done = self.make(order, headers) => done,
            () = self.context.holders().lost(self.worker) => Err(self.unavailable("is silent").into()),
        }
    }

    async fn make(&self, order: Order, headers: HeaderMap) -> Result<LoadDone, NotLoaded> {
        let holders = self.context.holders();
        let address = holders.address(self.worker).ok_or_else(|| self.unavailable("is not live"))?;
        let (orders, outgoing) = mpsc::channel(ORDERS_WAITING);
        let mut known = self.workers();
        for order in [order, Order::Workers(known.clone())] {
            give(&orders, order).await;
        }
        let mut client = LoadsClient::new(self.context.here().channels().get(&address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let outgoing = ReceiverStream::new(outgoing);
        let request =
            Request::from_parts(MetadataMap::from_headers(headers), Extensions::default(), outgoing);
        let begun = tokio::time::timeout(BEGIN_MAX, client.load(request)).await;
        let begun = begun.map_err(|_| self.unavailable("does not begin"))?;
        let mut news = begun.map_err(|status| self.not_begun(&status))?.into_inner();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                told = news.message() => told.map_err(|status| self.failed(&status))?,
                _ = looks.tick() => {
                    let now = self.workers();
                    if now != known {
                        known = now;
                        give(&orders, Order::Workers(known.clone())).await;
                    }
                    continue;
                }
            };
            match told.map(|told| told.news) {
                Some(Some(News::Staging(name))) => {
                    self.announced(&name)?;
                    give(&orders, Order::GoOn(name)).await;
                }
                Some(Some(News::Suspect(suspect))) => {
                    holders.suspect(&WorkerId::new(suspect.worker), &suspect.why);
                }
                Some(Some(News::Done(done))) => return Ok(done),
                Some(Some(News::Refused(LoadRefused { code, message }))) => {
                    let failure = Failure::new(ErrorCode::from_number(code), message);
                    return Err(NotLoaded::Refused(failure));
                }
                Some(None) => return Err(self.wrong("it says nothing").into()),
                None => return Err(self.unavailable("stopped before the end of its task").into()),
            }
        }
    }

    /// The workers of the table, as they are now.
    fn workers(&self) -> LoadWorkers {
        let holders = self.context.holders();
        let worker = |id: &WorkerId| LoadWorker {
            worker: id.to_string(),
            address: holders.address(id).unwrap_or_default(),
            is_live: holders.is_live(id),
        };
        LoadWorkers { workers: self.table.workers().into_iter().map(worker).collect() }
    }

    /// Protects a segment that is about to be staged.
    fn announced(&self, name: &str) -> Result<(), Failure> {
        let name: SegmentName =
            name.parse().map_err(|error: shoal_data::DataError| self.wrong(&error.to_string()))?;
        let Some(workers) = self.table.placement.get(name.shard as usize).filter(|_| {
            name.table == self.table.id && name.shard < self.table.layout.shards && !self.names.has(&name)
        }) else {
            return Err(self.wrong(&format!("segment {name} is none of its task")));
        };
        self.names.add(name, workers);
        Ok(())
    }

    /// Takes nothing on trust that a commit would rest on.
    fn check(&self, durable: &[Durable], rows: u64) -> Result<(), Failure> {
        let made: u64 = durable.iter().map(|it| it.segment.rows).sum();
        if made != rows {
            return Err(self.wrong(&format!("it made segments of {made} rows of {rows}")));
        }
        let nobody = Vec::new();
        for (index, Durable { segment, disks }) in durable.iter().enumerate() {
            let name = segment.name();
            let workers = self.table.placement.get(segment.shard as usize).unwrap_or(&nobody);
            let is_durable = is_majority(&segment.replicas, workers);
            let is_on_disks = segment.replicas.len() == disks.len();
            let is_twice = durable.iter().take(index).any(|earlier| earlier.segment.name() == name);
            if !self.names.has(&name) || !is_durable || !is_on_disks || is_twice {
                let replicas: Vec<&str> = segment.replicas.iter().map(WorkerId::as_str).collect();
                return Err(self.wrong(&format!("segment {name} on {} cannot be", replicas.join(", "))));
            }
        }
        Ok(())
    }

    fn unavailable(&self, what: &str) -> Failure {
        Failure::new(ErrorCode::Unavailable, what).at(self.worker.as_str())
    }

    fn wrong(&self, what: &str) -> Failure {
        let message = format!("what it says of a load is wrong: {what}");
        Failure::new(ErrorCode::Corrupt, message).at(self.worker.as_str())
    }

    /// Why the worker did not begin. One of an older version does not know the order.
    fn not_begun(&self, status: &tonic::Status) -> NotLoaded {
        let failure = self.failed(status);
        match failure.code {
            ErrorCode::Invalid | ErrorCode::Unsupported => {
                NotLoaded::Refused(Failure::new(ErrorCode::Unsupported, failure.message))
            }
            _ => NotLoaded::Failed(failure),
        }
    }

    /// What the worker says, or what became of the connection to it.
    fn failed(&self, status: &tonic::Status) -> Failure {
        let failure = Failure::of_call(status);
        if failure.worker.is_none() && failure.code == ErrorCode::Unavailable {
            self.context.holders().suspect(self.worker, &failure.message);
        }
        failure.at(self.worker.as_str())
    }
}

/// What a worker tells of at its end. Sketches in a form that is not known here are as good as
/// none, which is what an older worker tells; so are those that cannot be of its segments.
fn written_of(done: &LoadDone, table: &Table) -> Result<Written, Failure> {
    let durable = done.segments.iter().map(|segment| from_wire(segment));
    let durable: Vec<Durable> = durable.collect::<Result<_, _>>()?;
    let can_be = |sketches: &Sketches| durable.is_empty() || sketches.fit(table.columns.fields().len());
    let sketches = from_wire(&done.sketches).ok().filter(can_be).map(Arc::new);
    Ok(Written { durable, sketches })
}

/// Whether all of these replicas are workers of the shard, each named once, and more than
/// half of them.
fn is_majority(replicas: &[WorkerId], workers: &[WorkerId]) -> bool {
    let distinct: BTreeSet<&WorkerId> = replicas.iter().collect();
    distinct.len() == replicas.len()
        && distinct.iter().all(|replica| workers.contains(replica))
        && replicas.len() > workers.len() / 2
}

/// Sends an order. A worker that is gone says so by its news.
async fn give(orders: &mpsc::Sender<LoadOrder>, order: Order) {
    let _gone = orders.send(LoadOrder { order: Some(order) }).await;
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use shoal_proto::TableId;
    use shoal_proto::cluster::{LoadFile, LoadTask, LoadText};

    use super::*;
    use crate::catalog::state::tests::{segment, table};

    fn workers(names: &str) -> Vec<WorkerId> {
        names.split_whitespace().map(WorkerId::from).collect()
    }

    #[test]
    fn a_majority_is_of_different_workers_of_the_shard() {
        let shard = workers("w1 w2 w3");
        for (replicas, expected) in [
            ("w1 w3", true),
            ("w3 w2 w1", true),
            ("w1", false),
            ("w1 w1", false),
            ("w1 w2 w2", false),
            ("w1 w2 w4", false),
            ("", false),
        ] {
            assert_eq!(is_majority(&workers(replicas), &shard), expected, "{replicas}");
        }
        assert!(!is_majority(&[], &[]), "a shard that is nowhere");
    }

    #[test]
    fn what_a_worker_does_not_say_of_distinct_values_is_not_known() {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let rows = RecordBatch::try_from_iter([("k", keys)]).unwrap();
        let known = Sketches::of_rows(&rows).unwrap();
        let later = br#"{"version":99,"columns":["of another kind"]}"#;
        let table = table(TableId(1), "t");
        let durable = Durable { segment: segment(table.id, 0, "w1"), disks: vec![String::new()] };
        let one = vec![to_wire(&durable).unwrap()];
        let none = Sketches::default();
        for (segments, sketches, expected) in [
            (&one, Bytes::new(), None),
            (&one, to_wire(&known).unwrap(), Some(known)),
            (&one, Bytes::from_static(later), None),
            // Of no rows, with a segment.
            (&one, to_wire(&none).unwrap(), None),
            (&Vec::new(), to_wire(&none).unwrap(), Some(none)),
        ] {
            let done = LoadDone { segments: segments.clone(), sketches, ..LoadDone::default() };
            assert_eq!(written_of(&done, &table).unwrap().sketches, expected.map(Arc::new));
        }
    }

    /// The orders to begin with that a worker of the version before knows.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Older {
        #[prost(message, optional, tag = "1")]
        task: Option<LoadTask>,
        #[prost(message, optional, tag = "4")]
        rows: Option<LoadRows>,
    }

    #[test]
    fn text_is_no_task_for_a_worker_that_knows_only_parquet() {
        let task = LoadTask { files: vec![LoadFile::default()], ..LoadTask::default() };
        for (order, is_known) in [
            (Order::Task(task.clone()), true),
            (Order::Text(LoadText { task: Some(task), format: Bytes::new() }), false),
        ] {
            let sent = LoadOrder { order: Some(order) }.encode_to_vec();
            let older = Older::decode(sent.as_slice()).unwrap();
            assert_eq!(older.task.is_some() || older.rows.is_some(), is_known, "{older:?}");
        }
    }
}
