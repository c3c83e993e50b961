//! Task execution: the Execution service over datafusion-distributed's
//! `Worker`. Plans run on the threads of [`crate::lanes`]; only frames cross to
//! the runtime that serves the network. One lookup at a time begins there.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_distributed::{
    DistributedCodec, ExecuteTaskRequest, MaybeEncoded, ProducerHead, SetPlanRequest, TaskKey, Worker,
    WorkerToCoordinatorMsg,
};
use datafusion_proto::bytes::physical_plan_from_bytes_with_proto_converter;
use datafusion_proto::physical_plan::DeduplicatingProtoConverter;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use shoal_data::ShardStore;
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::exchange::{
    QueryOptions, ReadLog, Sending, drive_stream, metrics_to_wire, task_metrics_to_wire,
};
use shoal_proto::query::execution_server::{Execution, ExecutionServer};
use shoal_proto::query::{
    Accepted, Frame, PartitionRequest, RunRequest, RuntimeFilter, TaskMetrics, ToCoordinator, ToWorker,
    partition_request, to_coordinator, to_worker,
};
use shoal_proto::runtime_filter::RuntimeFilters;
use shoal_proto::{Channels, ErrorCode, Failure, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use url::Url;
use uuid::Uuid;

use crate::lanes::{ComputeThreads, Lanes};
use crate::pulse::Still;
use crate::session::{TaskSessions, with_counted_readers};

mod own_rows;

pub(crate) use own_rows::OwnRows;

/// How often tasks that ended are let go of.
const FORGET_INTERVAL: Duration = Duration::from_millis(400);
/// What the library says of a task whose plan did not come in time.
const PLAN_IS_LATE: &str = "waiting for the plan";
/// Frames that wait between the plan and the network, per partition: all of a
/// small result, which are its columns, its rows and its end.
const FRAMES_WAITING: usize = 3;

/// Runs tasks. Cheap to clone.
#[derive(Clone)]
pub struct ExecutionService {
    worker_id: WorkerId,
    worker: Worker,
    sessions: TaskSessions,
    lanes: Lanes,
    tasks_running: Arc<AtomicU32>,
}

impl ExecutionService {
    /// Runs plans on these threads, with the memory, disk and stores of `node`;
    /// segments are read through `shards`.
    pub fn new(
        worker_id: WorkerId,
        node: Arc<RuntimeEnv>,
        shards: Arc<ShardStore>,
        channels: Channels,
        compute: ComputeThreads,
        threads: usize,
    ) -> Self {
        let sessions = TaskSessions::new(worker_id.clone(), Arc::clone(&node), shards, channels, threads);
        let worker = Worker::from_session_builder(sessions.clone()).with_runtime_env(node);
        let forgetting = worker.clone();
        let lanes = Lanes::new(compute, FORGET_INTERVAL, move || forget_ended_tasks(forgetting.clone()));
        Self { worker_id, worker, sessions, lanes, tasks_running: Arc::default() }
    }

    /// The gRPC service, with limits.
    pub fn into_server(self) -> ExecutionServer<Self> {
        ExecutionServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What queries read here; see [`TaskSessions::progress`].
    pub fn sessions(&self) -> &TaskSessions {
        &self.sessions
    }

    /// Partitions and whole plans that run now.
    pub fn tasks_running(&self) -> u32 {
        self.tasks_running.load(Ordering::Relaxed)
    }

    /// For how long tasks of each query have not moved.
    pub fn still(&self) -> Vec<Still> {
        self.lanes.still()
    }

    fn refuse(&self, failure: Failure) -> Status {
        failure.at(self.worker_id.as_str()).to_status()
    }

    /// Runs what makes frames on the threads for this query, until the reader goes; `at_once`
    /// on this one, for as long as it need not wait.
    fn frames<F>(
        &self,
        options: &QueryOptions,
        at_once: bool,
        make: impl FnOnce(mpsc::Sender<Result<Frame, Status>>) -> F,
    ) -> FrameStream
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, frames) = mpsc::channel(FRAMES_WAITING);
        let running = Running::start(&self.tasks_running);
        let work = make(sender);
        let task = async move {
            work.await;
            drop(running);
        };
        let lane = self.lanes.of(options);
        let task = if at_once { lane.begin(options, task) } else { Some(lane.spawn(options, task)) };
        FrameStream { first: None, frames, _task: task.map(AbortOnDropHandle::new) }
    }
}

#[tonic::async_trait]
impl Execution for ExecutionService {
    type TaskStream = BoxStream<'static, Result<ToCoordinator, Status>>;
    type PartitionStream = FrameStream;
    type RunStream = FrameStream;

    async fn task(
        &self,
        request: Request<Streaming<ToWorker>>,
    ) -> Result<Response<Self::TaskStream>, Status> {
        let (metadata, _, mut messages) = request.into_parts();
        let first = messages.message().await?.and_then(|message| message.message);
        let Some(to_worker::Message::SetPlan(plan)) = first else {
            return Err(self.refuse(Failure::new(ErrorCode::Invalid, "a task starts with its plan")));
        };
        let request = SetPlanRequest {
            task_key: task_key(plan.key).map_err(|failure| self.refuse(failure))?,
            task_count: plan.task_count as usize,
            plan: MaybeEncoded::Encoded(plan.plan.into()),
            work_unit_feed_declarations: Vec::new(),
            target_worker_url: Url::parse(&plan.worker_url).map_err(|error| {
                self.refuse(Failure::new(
                    ErrorCode::Invalid,
                    format!("worker URL `{}`: {error}", plan.worker_url),
                ))
            })?,
            query_start_time_ns: plan.query_start_ns as usize,
        };
        let worker = self.worker.clone();
        let headers = metadata.into_headers();
        let options = QueryOptions::from_headers(&headers).map_err(|failure| self.refuse(failure))?;
        // Messages after the plan carry filters, where there are any; their end is a message too.
        let (still_wanted, gathered) = if plan.runtime_filters {
            let (scope, filters) = self.sessions.runtime_filters(&options);
            let gathered = Arc::clone(&filters);
            let (wanted, is_over) = oneshot::channel::<()>();
            let still_wanted = messages.filter_map(move |message| {
                let _kept_until_then = (&scope, &wanted);
                if let Ok(ToWorker { message: Some(to_worker::Message::RuntimeFilter(filter)) }) = message {
                    filters.deliver(&filter);
                }
                std::future::ready(None)
            });
            (still_wanted.boxed(), Some((gathered, is_over)))
        } else {
            (messages.filter_map(|_| std::future::ready(None)).boxed(), None)
        };
        let take = async move { worker.coordinator_channel(headers, request, still_wanted).await };
        let replies = match self.lanes.of(&options).spawn(&options, take).await {
            Ok(Ok(replies)) => replies,
            Ok(Err(error)) => return Err(self.refuse(Failure::from_datafusion(&error))),
            Err(panic) => return Err(self.refuse(joined_panic(panic))),
        };
        let worker_id = self.worker_id.clone();
        let accepted = ToCoordinator { message: Some(to_coordinator::Message::Accepted(Accepted {})) };
        let replies = replies.filter_map(move |reply| {
            std::future::ready(match reply {
                Ok(WorkerToCoordinatorMsg::TaskMetrics(metrics)) => Some(Ok(ToCoordinator {
                    message: Some(to_coordinator::Message::Metrics(task_metrics_to_wire(&metrics))),
                })),
                Ok(WorkerToCoordinatorMsg::LoadInfo(_) | WorkerToCoordinatorMsg::LoadInfoEos) => None,
                Err(error) => Some(Err(Failure::from_datafusion(&error).at(worker_id.as_str()).to_status())),
            })
        });
        let replies = match gathered {
            Some((gathered, is_over)) => with_parts(replies.boxed(), gathered, is_over).boxed(),
            None => replies.boxed(),
        };
        let replies = futures::stream::once(async move { Ok(accepted) }).chain(replies);
        Ok(Response::new(replies.boxed()))
    }

    async fn partition(&self, request: Request<PartitionRequest>) -> Result<Response<FrameStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let options =
            QueryOptions::from_headers(&metadata.into_headers()).map_err(|failure| self.refuse(failure))?;
        let partition = request.partition as usize;
        let (discard, compression) = (request.discard, request.compression());
        let execute = ExecuteTaskRequest {
            task_key: task_key(request.key).map_err(|failure| self.refuse(failure))?,
            target_partition_start: partition,
            target_partition_end: partition + 1,
            producer_head: producer_head(request.head).map_err(|failure| self.refuse(failure))?,
        };
        let worker = self.worker.clone();
        let worker_id = self.worker_id.clone();
        Ok(Response::new(self.frames(&options, false, |frames| async move {
            let open = async {
                let opened = worker.execute_task(execute).await;
                let (mut streams, context) = opened.map_err(|error| opening_failure(&error))?;
                match streams.pop() {
                    Some(stream) if streams.is_empty() => Ok((stream, ReadLog::of(&context))),
                    _ => Err(Failure::new(ErrorCode::Internal, "not one stream for one partition").into()),
                }
            };
            if discard {
                // Opened and dropped: its producer knows that nobody reads.
                let _dropped = open.await;
                return;
            }
            let sending = Sending::AsTheyCome;
            drive_stream(open, worker_id.as_str(), compression, sending, frames, || None).await;
        })))
    }

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<FrameStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let service = self.clone();
        let options =
            QueryOptions::from_headers(&metadata.into_headers()).map_err(|failure| self.refuse(failure))?;
        // Whoever asks where the time goes is told at once that the plan was taken.
        let goes_together = options.is_short && !request.collect_metrics;
        let sending = if goes_together { Sending::Together } else { Sending::AsTheyCome };
        let at_once = goes_together && request.at_once;
        let of_query = options.clone();
        let mut frames = self.frames(&options, at_once, |frames| async move {
            let ran: Arc<Mutex<Option<Arc<dyn ExecutionPlan>>>> = Arc::default();
            let open = async {
                // A lookup seldom has functions, whose names take a good part of it to copy. Nor is
                // it known of them how long they take.
                let plain = at_once.then(|| service.whole_plan(&of_query, &request, false));
                let (plan, context) = match plain {
                    Some(Ok(plain)) => plain,
                    Some(Err(_)) => {
                        // Not on a thread of the network.
                        tokio::task::yield_now().await;
                        service.whole_plan(&of_query, &request, true)?
                    }
                    None => service.whole_plan(&of_query, &request, true)?,
                };
                if request.collect_metrics {
                    *ran.lock() = Some(Arc::clone(&plan));
                }
                let reads = ReadLog::of(&context);
                Ok((plan.execute(0, context)?, reads))
            };
            let metrics = || ran.lock().as_ref().map(plan_metrics);
            let worker = service.worker_id.as_str();
            drive_stream(open, worker, request.compression(), sending, frames, metrics).await;
        });
        if goes_together {
            frames.first().await;
        }
        Ok(Response::new(frames))
    }
}

impl ExecutionService {
    /// A plan and what it runs in. Without functions one that has some cannot be decoded.
    fn whole_plan(
        &self,
        options: &QueryOptions,
        request: &RunRequest,
        has_functions: bool,
    ) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>)> {
        let (context, scope) = self.sessions.whole_plan_context(options, has_functions)?;
        let codec = DistributedCodec::new_combined_with_user(context.session_config());
        let converter = DeduplicatingProtoConverter::default();
        let plan =
            physical_plan_from_bytes_with_proto_converter(&request.plan, &context, &codec, &converter)?;
        let reads = ReadLog::of(&context);
        Ok((with_counted_readers(plan, &scope, &reads)?, context))
    }
}

/// The library keeps tasks in a cache that lets go of what ended only when it
/// is used again: a worker without queries would hold their memory. So it is
/// used again, with a key that no task has.
async fn forget_ended_tasks(worker: Worker) {
    let nothing = ExecuteTaskRequest {
        task_key: TaskKey { query_id: Uuid::nil(), stage_id: 0, task_number: 0 },
        target_partition_start: 0,
        target_partition_end: 0,
        producer_head: ProducerHead::None,
    };
    let _nobody_waits = tokio::time::timeout(Duration::ZERO, worker.execute_task(nothing)).await;
}

/// What a task has to say, and what it or its neighbours gathered for run-time
/// filters: until it has said all, and is not wanted any more.
fn with_parts(
    replies: BoxStream<'static, Result<ToCoordinator, Status>>,
    gathered: Arc<RuntimeFilters>,
    is_over: oneshot::Receiver<()>,
) -> impl Stream<Item = Result<ToCoordinator, Status>> {
    let state = (Some(replies), gathered, is_over);
    futures::stream::unfold(state, |(mut replies, gathered, mut is_over)| async move {
        // A task without metrics has nothing to say from the beginning, and joins all the same.
        while let Some(own) = &mut replies {
            tokio::select! {
                biased;
                reply = own.next() => match reply {
                    Some(reply) => return Some((reply, (replies, gathered, is_over))),
                    None => replies = None,
                },
                part = gathered.next_part() => {
                    return Some((Ok(filter_part(part)), (replies, gathered, is_over)));
                }
            }
        }
        tokio::select! {
            biased;
            _wanted_no_more = &mut is_over => None,
            part = gathered.next_part() => Some((Ok(filter_part(part)), (replies, gathered, is_over))),
        }
    })
}

fn filter_part(part: RuntimeFilter) -> ToCoordinator {
    ToCoordinator { message: Some(to_coordinator::Message::RuntimeFilter(part)) }
}

/// Why a task did not begin. The library says of a plan that it waited for in
/// vain what it says of one that cannot be run.
fn opening_failure(error: &DataFusionError) -> Failure {
    let failure = Failure::from_datafusion(error);
    match error.find_root() {
        DataFusionError::Execution(message) if message.contains(PLAN_IS_LATE) => {
            Failure { code: ErrorCode::Unavailable, ..failure }
        }
        _ => failure,
    }
}

/// Metrics of each node of a plan that ran, in pre-order.
fn plan_metrics(plan: &Arc<dyn ExecutionPlan>) -> TaskMetrics {
    let mut nodes = Vec::new();
    let walked = plan.apply(|node| {
        nodes.push(metrics_to_wire(&node.metrics().unwrap_or_default()));
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "walking a plan does not fail");
    TaskMetrics { nodes, task: None }
}

/// Frames of one partition. Dropping it stops the work behind it.
pub struct FrameStream {
    /// What was waited for.
    first: Option<Result<Frame, Status>>,
    frames: mpsc::Receiver<Result<Frame, Status>>,
    /// None where it is over.
    _task: Option<AbortOnDropHandle<()>>,
}

impl FrameStream {
    /// Waits for the first frame, so that the answer begins with it.
    async fn first(&mut self) {
        self.first = self.frames.recv().await;
    }
}

impl Stream for FrameStream {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.frames.poll_recv(cx),
        }
    }
}

/// Counts a task for as long as it lives.
pub(crate) struct Running(Arc<AtomicU32>);

impl Running {
    fn start(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn joined_panic(error: tokio::task::JoinError) -> Failure {
    match error.try_into_panic() {
        Ok(panic) => shoal_proto::exchange::panic_failure(panic.as_ref()),
        Err(error) => Failure::new(ErrorCode::Cancelled, format!("the task was stopped: {error}")),
    }
}

fn task_key(key: Option<shoal_proto::query::TaskKey>) -> Result<TaskKey, Failure> {
    let missing = || Failure::new(ErrorCode::Invalid, "a task without a key");
    let key = key.ok_or_else(missing)?;
    Ok(TaskKey {
        query_id: Uuid::from_slice(&key.query).map_err(|_| missing())?,
        stage_id: key.stage as usize,
        task_number: key.task as usize,
    })
}

fn producer_head(head: Option<partition_request::Head>) -> Result<ProducerHead, Failure> {
    match head {
        Some(partition_request::Head::None(_)) => Ok(ProducerHead::None),
        Some(partition_request::Head::Broadcast(head)) => {
            Ok(ProducerHead::BroadcastExec { output_partitions: head.output_partitions as usize })
        }
        Some(partition_request::Head::Repartition(head)) => Ok(ProducerHead::RepartitionExec {
            partitioning: MaybeEncoded::Encoded(head.partitioning.into()),
        }),
        None => Err(Failure::new(ErrorCode::Invalid, "a partition request without a head")),
    }
}

#[cfg(test)]
mod tests {
    use datafusion_distributed::DefaultSessionBuilder;

    use super::*;

    /// Also a plan that the library let go of, unused for ten minutes, is one that does not come.
    // Time stands still but where all wait for it.
    #[tokio::test(start_paused = true)]
    async fn a_plan_that_does_not_come_is_a_reason_to_try_again() {
        let worker = Worker::from_session_builder(DefaultSessionBuilder);
        let unknown = ExecuteTaskRequest {
            task_key: TaskKey { query_id: Uuid::from_u128(7), stage_id: 1, task_number: 0 },
            target_partition_start: 0,
            target_partition_end: 1,
            producer_head: ProducerHead::None,
        };
        let late = worker.execute_task(unknown).await.err().unwrap();
        assert_eq!(opening_failure(&late).code, ErrorCode::Unavailable, "{late}");
        let other = DataFusionError::Execution("the plan cannot be run".into());
        assert_ne!(opening_failure(&other).code, ErrorCode::Unavailable);
    }
}
