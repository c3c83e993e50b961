//! The `Loads` service of a worker: row groups of files, or rows that a query gives here,
//! become segments, which go to the workers of their shards. The coordinator knows of each before it is
//! staged, and commits them or has them discarded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::Stream;
use http::HeaderMap;
use shoal_data::Table;
use shoal_data::load::{
    FileFormat, FileKind, FilePiece, SourceFile, WriteContext, WriteLimits, WriteProgress, Written,
    from_wire, read_pieces, to_wire, write,
};
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::cluster::load_news::News;
use shoal_proto::cluster::load_order::Order;
use shoal_proto::cluster::loads_server::{Loads, LoadsServer};
use shoal_proto::cluster::{LoadDone, LoadFile, LoadNews, LoadOrder, LoadRows, LoadTask};
use shoal_proto::{Channels, ErrorCode, Failure, WorkerId, WriteId};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use crate::Error;
use crate::execute::ExecutionService;
use crate::replicate::Replicator;
use crate::segment_dir::SegmentDir;
use crate::segments::blocking;

mod files;
mod holders;
mod rows;

pub use files::Files;
use holders::{Announced, LoadHolders};

/// Tasks that load files at once; one more is refused: not now, maybe elsewhere. Rows of
/// queries take no place: there are only so many queries, and what a query gives here may
/// wait for what it gives elsewhere.
const TASKS_MAX: usize = 8;
/// Rows that all of them hold together at most, and what of the memory for queries
/// that may be at most, besides it.
const BUFFER_BYTES_MAX: usize = 384 << 20;
const BUFFER_SHARE: usize = 8;
/// How long the coordinator may take to say what the task is.
const TASK_WAIT: Duration = Duration::from_secs(10);
/// News that wait for the network.
const NEWS_WAITING: usize = 16;

/// What a worker loads with.
pub struct LoadParts {
    /// Its name.
    pub worker: WorkerId,
    /// Where segments go that are for it.
    pub dir: Arc<SegmentDir>,
    /// Who is told of those that come late.
    pub replicator: Replicator,
    /// Where it reads.
    pub files: Files,
    /// Who computes rows of queries.
    pub execution: ExecutionService,
    /// How it reaches others.
    pub channels: Channels,
    /// Where it computes.
    pub compute: Handle,
    /// On so many threads.
    pub threads: usize,
    /// Memory that queries have.
    pub memory_bytes: usize,
}

/// What is to be loaded.
enum Input {
    Files(LoadTask, FileFormat),
    /// With the headers of the call.
    Rows(LoadRows, HeaderMap),
}

/// Loads rows into segments. Cheap to clone.
#[derive(Clone)]
pub struct LoadService {
    parts: Arc<LoadParts>,
    limits: WriteLimits,
    places: Arc<Semaphore>,
    rows_loaded: Arc<AtomicU64>,
}

impl LoadService {
    /// A service of these parts.
    pub fn new(parts: LoadParts) -> Self {
        let buffer_bytes = BUFFER_BYTES_MAX.min(parts.memory_bytes / BUFFER_SHARE);
        Self {
            limits: WriteLimits::new(buffer_bytes, parts.threads),
            places: Arc::new(Semaphore::new(TASKS_MAX)),
            rows_loaded: Arc::default(),
            parts: Arc::new(parts),
        }
    }

    /// The gRPC service, with limits.
    pub fn into_server(self) -> LoadsServer<Self> {
        LoadsServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Counts rows that became segments here.
    pub fn rows_loaded(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rows_loaded)
    }

    fn refuse(&self, code: ErrorCode, message: impl Into<String>) -> Status {
        Failure::new(code, message).at(self.parts.worker.as_str()).to_status()
    }

    /// Loads while the orders are followed; the last news.
    async fn run(
        &self,
        input: Input,
        mut orders: Streaming<LoadOrder>,
        news: mpsc::Sender<Result<LoadNews, Status>>,
    ) -> Result<News, Failure> {
        let announced = Arc::new(Announced::new(news.clone()));
        let LoadParts { worker, dir, replicator, .. } = self.parts.as_ref();
        let (holders, workers) = LoadHolders::new(worker.clone(), Arc::clone(dir), replicator.clone(), news);
        let following = async {
            loop {
                let order = match orders.message().await {
                    Ok(Some(order)) => order.order,
                    Ok(None) => break Failure::new(ErrorCode::Cancelled, "the load was given up"),
                    Err(status) => break Failure::of_call(&status),
                };
                match order {
                    Some(Order::Workers(known)) => workers.tell(known),
                    Some(Order::GoOn(name)) => announced.go_on(&name),
                    Some(Order::Task(_) | Order::Text(_) | Order::Rows(_)) | None => {
                        break Failure::new(ErrorCode::Invalid, "an order that is none for a task that runs");
                    }
                }
            }
        };
        let announced_too = Arc::clone(&announced);
        let loading = async {
            match input {
                Input::Files(task, format) => {
                    self.load_files(&task, &format, holders, announced_too).await.map(News::Done)
                }
                Input::Rows(rows, headers) => {
                    self.load_query_rows(rows, headers, holders, announced_too).await
                }
            }
        };
        tokio::select! {
            last = loading => last,
            failure = following => Err(failure),
        }
    }

    /// Where segments go, within the limits that all loads share.
    fn writes(&self, holders: LoadHolders) -> WriteContext {
        WriteContext::new(Arc::new(holders), self.parts.channels.clone(), self.limits.clone())
    }

    /// Counts what became segments; what is told of them.
    fn loaded(&self, write_id: &WriteId, written: &Written) -> Result<LoadDone, Failure> {
        let Written { durable, sketches } = written;
        let rows: u64 = durable.iter().map(|it| it.segment.rows).sum();
        self.rows_loaded.fetch_add(rows, Ordering::Relaxed);
        tracing::info!(%write_id, rows, segments = durable.len(), "rows were loaded");
        let segments = durable.iter().map(to_wire).collect::<Result<_, _>>()?;
        let sketches = sketches.as_ref().map(to_wire).transpose()?.unwrap_or_default();
        Ok(LoadDone { segments, sketches, ..LoadDone::default() })
    }

    async fn load_files(
        &self,
        task: &LoadTask,
        format: &FileFormat,
        holders: LoadHolders,
        announced: Arc<Announced>,
    ) -> Result<LoadDone, Failure> {
        let LoadParts { files, threads, .. } = self.parts.as_ref();
        let table: Table = from_wire(&task.table)?;
        let columns = columns_of(&table, &task.columns)?;
        let mut found = Vec::with_capacity(task.files.len());
        for file in &task.files {
            found.push((files.find(file, &task.files_at).await?, file.clone()));
        }
        let pieces = {
            let (columns, format) = (Arc::clone(&columns), format.clone());
            blocking(move || pieces(found, &format, &columns).map_err(Error::from)).await?
        };
        let rows = read_pieces(pieces, *threads, columns);
        let context = self.writes(holders);
        let write_id = WriteId::new(task.write_id.clone());
        let (first, progress) = (task.first_shard, Arc::<WriteProgress>::default());
        let watched = Arc::clone(&progress);
        let written = write(&context, &table, &write_id, first, rows, announced, watched).await?;
        let done = self.loaded(&write_id, &written)?;
        Ok(LoadDone { rows: progress.rows_read(), ..done })
    }
}

/// The columns of the files, as the table has them.
fn columns_of(table: &Table, names: &[String]) -> Result<SchemaRef, Failure> {
    let wrong = |error: arrow::error::ArrowError| Failure::new(ErrorCode::Invalid, error.to_string());
    let indices = names.iter().map(|name| table.columns.index_of(name)).collect::<Result<Vec<_>, _>>();
    let columns = table.columns.project(&indices.map_err(wrong)?).map_err(wrong)?;
    Ok(Arc::new(columns))
}

/// The task of an order that is one with files, and what those are.
fn files_of(order: Option<&Order>) -> Result<Option<(LoadTask, FileFormat)>, Failure> {
    match order {
        Some(Order::Task(task)) => Ok(Some((task.clone(), FileFormat::of(FileKind::Parquet)))),
        Some(Order::Text(text)) => {
            let format = from_wire(&text.format)?;
            Ok(text.task.clone().map(|task| (task, format)))
        }
        _ => Ok(None),
    }
}

/// Opens the files; of each what the task names.
fn pieces(
    found: Vec<(SourceFile, LoadFile)>,
    format: &FileFormat,
    columns: &SchemaRef,
) -> Result<VecDeque<FilePiece>, Failure> {
    let mut pieces = VecDeque::new();
    for (file, named) in found {
        let name = file.name().to_owned();
        let all = FilePiece::open(file, format, columns)?;
        let is_text = format.kind != FileKind::Parquet;
        match all.first().filter(|_| is_text) {
            Some(whole) if named.ranges.is_empty() => pieces.push_back(whole.clone()),
            Some(whole) => pieces.extend(named.ranges.iter().map(|range| whole.part(range.start..range.end))),
            None => {
                for number in named.row_groups {
                    let piece = all.get(number as usize).cloned().ok_or_else(|| {
                        let message = format!("`{name}` has {} row groups, and none {number}", all.len());
                        Failure::new(ErrorCode::Invalid, message)
                    })?;
                    pieces.push_back(piece);
                }
            }
        }
    }
    Ok(pieces)
}

#[async_trait]
impl Loads for LoadService {
    type LoadStream = NewsStream;

    async fn load(&self, request: Request<Streaming<LoadOrder>>) -> Result<Response<NewsStream>, Status> {
        let (metadata, _, mut orders) = request.into_parts();
        let first = tokio::time::timeout(TASK_WAIT, orders.message()).await;
        let first =
            first.map_err(|_| self.refuse(ErrorCode::Timeout, "the task of a load did not come"))??;
        let first = first.and_then(|order| order.order);
        let files = files_of(first.as_ref()).map_err(|failure| self.refuse(failure.code, failure.message))?;
        let (input, place) = match (first, files) {
            (_, Some((task, format))) => {
                let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                    let message = format!("{TASKS_MAX} tasks of loads run already");
                    return Err(self.refuse(ErrorCode::Unavailable, message));
                };
                (Input::Files(task, format), Some(place))
            }
            (Some(Order::Rows(rows)), None) => (Input::Rows(rows, metadata.into_headers()), None),
            _ => return Err(self.refuse(ErrorCode::Invalid, "a load begins with its task")),
        };
        let (sender, news) = mpsc::channel(NEWS_WAITING);
        let service = self.clone();
        let task = self.parts.compute.spawn(async move {
            let last = match service.run(input, orders, sender.clone()).await {
                Ok(last) => Ok(LoadNews { news: Some(last) }),
                Err(failure) => {
                    tracing::warn!(%failure, "rows were not loaded");
                    Err(failure.at(service.parts.worker.as_str()).to_status())
                }
            };
            let _nobody_listens = sender.send(last).await;
            drop(place);
        });
        Ok(Response::new(NewsStream { news, _task: AbortOnDropHandle::new(task) }))
    }
}

/// News of one task. Dropping it stops the work behind it.
pub struct NewsStream {
    news: mpsc::Receiver<Result<LoadNews, Status>>,
    _task: AbortOnDropHandle<()>,
}

impl Stream for NewsStream {
    type Item = Result<LoadNews, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.news.poll_recv(cx)
    }
}
