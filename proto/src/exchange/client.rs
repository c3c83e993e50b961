//! The side that asks: our transport under datafusion-distributed's
//! `WorkerChannel`. One stream per output partition, so that back-pressure is
//! HTTP/2's own and a partition that nobody reads holds up no other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest, GetWorkerInfoResponse,
    LoadInfo, MaybeEncoded, ProducerHead, SetPlanRequest, TaskKey, WorkerChannel, WorkerToCoordinatorMsg,
};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Extensions, Request};
use url::Url;

use super::address::{address_of, worker_of, zone_of};
use super::arrivals::{Arrivals, FirstTask};
use super::compression::ExchangeCompression;
use super::frames::{decode_frames, transport_failure};
use super::metrics::task_metrics_from_wire;
use super::options::QueryOptions;
use super::reads::ReadLog;
use crate::channel::MESSAGE_BYTES_MAX;
use crate::query::execution_client::ExecutionClient;
use crate::query::{
    BroadcastHead, Compression, Frame, NoHead, PartitionRequest, RepartitionHead, RunRequest, RuntimeFilter,
    SetPlan, TaskMetrics, ToWorker, frame, partition_request, to_coordinator, to_worker,
};
use crate::runtime_filter::RuntimeFilterRelay;
use crate::{Channels, Failure};

/// How long metrics may take to arrive once a query is over. A worker that
/// dies then must not turn a complete answer into an error, or a hang.
const METRICS_WAIT: Duration = Duration::from_millis(500);

/// Gives the engine a client for each worker that a plan names.
#[derive(Clone, Debug)]
pub struct ExchangeResolver {
    channels: Channels,
}

impl ExchangeResolver {
    /// Clients over these channels.
    pub fn new(channels: Channels) -> Self {
        Self { channels }
    }
}

#[async_trait]
impl ChannelResolver for ExchangeResolver {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        Ok(Box::new(ExchangeClient::new(&self.channels, url)?))
    }
}

struct ExchangeClient {
    client: ExecutionClient<Channel>,
    worker: String,
    from: Source,
}

impl ExchangeClient {
    fn new(channels: &Channels, url: &Url) -> Result<Self> {
        let channel = channels.get(&address_of(url)?)?;
        let from = Source { zone: zone_of(url), channels: channels.clone() };
        Ok(Self { client: execution_client(channel), worker: worker_of(url).to_owned(), from })
    }
}

/// Where frames come from.
#[derive(Clone)]
struct Source {
    zone: String,
    channels: Channels,
}

impl Source {
    /// How rows from there are to be compressed for the query of these headers. Headers that
    /// are not understood are for who runs the plan to refuse.
    fn compression(&self, headers: &HeaderMap) -> Compression {
        let wanted =
            QueryOptions::from_headers(headers).map_or(ExchangeCompression::None, |of| of.compression);
        wanted.between(self.channels.zone().is_other(&self.zone))
    }

    /// Counts a frame that came, where it crossed zones.
    fn count(&self, frame: &Frame, log: &ReadLog) {
        let Some(frame::Part::Message(message)) = &frame.part else { return };
        let bytes = (message.header.len() + message.body.len()) as u64;
        if self.channels.zone().received(&self.zone, bytes) {
            log.add_crossed(bytes);
        }
    }
}

fn execution_client(channel: Channel) -> ExecutionClient<Channel> {
    ExecutionClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// How a plan that one worker ran whole came to its end.
pub struct Ended {
    /// Where they were asked for.
    pub metrics: Option<TaskMetrics>,
    /// All that was read for it.
    pub reads: Arc<ReadLog>,
}

/// What is told of a plan that one worker runs whole while it runs.
pub struct Progress {
    /// What comes from another zone, also where the end never comes.
    pub crossed: Arc<ReadLog>,
    /// The rows that come.
    pub arrivals: Arrivals,
    /// When the worker has taken it.
    pub first_task: FirstTask,
}

impl Progress {
    /// Of a plan in this context, whose rows are counted by `arrivals`.
    pub fn of(context: &TaskContext, arrivals: Arrivals) -> Self {
        Self { crossed: ReadLog::of(context), arrivals, first_task: FirstTask::of(context) }
    }
}

/// Runs a whole plan on one worker. `plan` has one output partition and is
/// encoded with the codec of `datafusion-distributed`. `on_end` is told when
/// all rows have come, and may turn the end into a failure.
///
/// # Errors
/// Through the stream: a `Failure` that names the worker, or that of `on_end`.
pub fn run_plan(
    channels: &Channels,
    url: &Url,
    headers: HeaderMap,
    request: RunRequest,
    progress: Progress,
    on_end: impl FnOnce(Ended) -> std::result::Result<(), Failure> + Send + 'static,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let ExchangeClient { mut client, worker, from } = ExchangeClient::new(channels, url)?;
    let Progress { crossed, arrivals, first_task } = progress;
    let request = RunRequest { compression: from.compression(&headers).into(), ..request };
    let frames = futures::stream::once(async move {
        let frames = client.run(with_headers(headers, request)).await?.into_inner();
        first_task.taken(Instant::now());
        Ok::<_, tonic::Status>(frames)
    })
    .try_flatten()
    .inspect_ok(move |frame| from.count(frame, &crossed));
    let reads = Arc::new(ReadLog::new());
    let on_end = {
        let reads = Arc::clone(&reads);
        move |metrics| on_end(Ended { metrics, reads })
    };
    Ok(decode_frames(frames, worker, reads, arrivals, on_end))
}

fn with_headers<T>(headers: HeaderMap, message: T) -> Request<T> {
    Request::from_parts(MetadataMap::from_headers(headers), Extensions::default(), message)
}

#[async_trait]
impl WorkerChannel for ExchangeClient {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        to_worker: BoxStream<'static, CoordinatorToWorkerMsg>,
        _metrics: ExecutionPlanMetricsSet,
        task_ctx: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        if !request.work_unit_feed_declarations.is_empty() {
            return Err(DataFusionError::NotImplemented("work unit feeds are not sent to workers".into()));
        }
        let relay = task_ctx.session_config().get_extension::<RuntimeFilterRelay>();
        let set_plan = SetPlan {
            runtime_filters: relay.is_some(),
            key: Some(wire_key(request.task_key)),
            task_count: request.task_count as u64,
            plan: request.plan.encode(task_ctx)?.into(),
            worker_url: request.target_worker_url.to_string(),
            query_start_ns: request.query_start_time_ns as u64,
        };
        let first = ToWorker { message: Some(to_worker::Message::SetPlan(set_plan)) };
        let filters = relay.as_ref().and_then(|relay| relay.join(request.target_worker_url.as_str()));
        // Nothing but filters follows the plan; that the stream stays open is what
        // tells the worker that the task is still wanted.
        let (over, is_over) = tokio::sync::oneshot::channel::<()>();
        let requests = futures::stream::unfold(
            (Some(first), to_worker, filters, Some(over)),
            |(mut first, mut to_worker, mut filters, mut over)| async move {
                if let Some(first) = first.take() {
                    return Some((first, (None, to_worker, filters, over)));
                }
                loop {
                    tokio::select! {
                        biased;
                        message = to_worker.next() => if message.is_none() {
                            drop(over.take());
                            return None;
                        },
                        Some(filter) = next_filter(&mut filters) => {
                            let message = Some(to_worker::Message::RuntimeFilter(filter));
                            return Some((ToWorker { message }, (None, to_worker, filters, over)));
                        }
                    }
                }
            },
        )
        .boxed();

        let mut client = self.client.clone();
        let worker = self.worker.clone();
        let replies = client
            .task(with_headers(headers, requests))
            // Boxed: the compiler cannot see through this future's lifetimes.
            .boxed()
            .await
            .map_err(|status| transport_failure(&status, &worker))?
            .into_inner();
        FirstTask::of(task_ctx).taken(Instant::now());
        Ok(until_over(replies, is_over, worker, relay).boxed())
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        task_ctx: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let head = wire_head(request.producer_head, task_ctx)?;
        let compression = self.from.compression(&headers);
        // Those of the operator that reads this.
        let arrivals = Arrivals::among(&metrics);
        let streams = (request.target_partition_start..request.target_partition_end).map(|partition| {
            let request = PartitionRequest {
                key: Some(wire_key(request.task_key)),
                partition: partition as u64,
                head: Some(head.clone()),
                discard: false,
                compression: compression.into(),
            };
            self.partition(headers.clone(), request, ReadLog::of(task_ctx), arrivals.clone())
        });
        Ok(streams.collect())
    }

    async fn get_worker_info(&mut self, _request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        Ok(GetWorkerInfoResponse { version: env!("CARGO_PKG_VERSION").to_owned() })
    }
}

impl ExchangeClient {
    /// The rows of one partition; asked for at the first poll.
    fn partition(
        &self,
        headers: HeaderMap,
        request: PartitionRequest,
        reads: Arc<ReadLog>,
        arrivals: Arrivals,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let (client, unread) = (Some(self.client.clone()), request.clone());
        let mut unread = Unread { client, headers: headers.clone(), request: unread };
        let mut client = self.client.clone();
        let (from, crossed) = (self.from.clone(), Arc::clone(&reads));
        let frames = futures::stream::once(async move {
            unread.is_read();
            Ok::<_, tonic::Status>(client.partition(with_headers(headers, request)).await?.into_inner())
        })
        .try_flatten()
        .inspect_ok(move |frame| from.count(frame, &crossed));
        decode_frames(frames, self.worker.clone(), reads, arrivals, |_| Ok(()))
    }
}

/// A partition that is dropped before its first poll is asked for and
/// discarded: its producer must not keep rows for it.
struct Unread {
    client: Option<ExecutionClient<Channel>>,
    headers: HeaderMap,
    request: PartitionRequest,
}

impl Unread {
    fn is_read(&mut self) {
        self.client = None;
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let (Some(mut client), Ok(runtime)) = (self.client.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let request = PartitionRequest { discard: true, ..self.request.clone() };
        let request = with_headers(std::mem::take(&mut self.headers), request);
        runtime.spawn(async move {
            // The worker frees it with the query in any case.
            let _best_effort = client.partition(request).await;
        });
    }
}

/// What comes from a worker about a task.
type Reply = std::result::Result<crate::query::ToCoordinator, tonic::Status>;

/// The worker's messages, until the query is over and the worker has had its
/// time to say the rest. Once it is over, nothing that goes wrong here can
/// harm the answer.
fn until_over(
    replies: impl Stream<Item = Reply> + Unpin,
    is_over: tokio::sync::oneshot::Receiver<()>,
    worker: String,
    relay: Option<Arc<RuntimeFilterRelay>>,
) -> impl Stream<Item = Result<WorkerToCoordinatorMsg>> {
    struct State<S> {
        replies: S,
        is_over: Option<tokio::sync::oneshot::Receiver<()>>,
        deadline: Option<tokio::time::Instant>,
        worker: String,
        relay: Option<Arc<RuntimeFilterRelay>>,
        is_accepted: bool,
    }
    let state = State { replies, is_over: Some(is_over), deadline: None, worker, relay, is_accepted: false };
    futures::stream::unfold(state, |mut state| async move {
        loop {
            let reply = match (state.is_over.as_mut(), state.deadline) {
                (Some(is_over), _) => tokio::select! {
                    // A worker that goes in the same moment harms nothing.
                    biased;
                    _ = is_over => {
                        state.is_over = None;
                        state.deadline = Some(tokio::time::Instant::now() + METRICS_WAIT);
                        continue;
                    }
                    reply = state.replies.next() => reply,
                },
                (None, Some(deadline)) => {
                    tokio::time::timeout_at(deadline, state.replies.next()).await.unwrap_or_default()
                }
                (None, None) => None,
            };
            match reply {
                Some(Ok(reply)) => match reply.message {
                    Some(to_coordinator::Message::Metrics(metrics)) => {
                        let metrics = task_metrics_from_wire(metrics);
                        return Some((Ok(WorkerToCoordinatorMsg::TaskMetrics(metrics)), state));
                    }
                    Some(to_coordinator::Message::Accepted(_)) => {
                        state.is_accepted = true;
                        return Some((Ok(WorkerToCoordinatorMsg::LoadInfo(LoadInfo::default())), state));
                    }
                    Some(to_coordinator::Message::RuntimeFilter(part)) => {
                        if let Some(relay) = &state.relay {
                            relay.take_in(&part);
                        }
                    }
                    None => {}
                },
                // A worker of whose task all rows have come may go before the others have ended. Whether rows
                // are lost is told where they are read.
                Some(Err(_)) if state.relay.is_some() && state.is_accepted => return None,
                Some(Err(status)) if state.is_over.is_some() => {
                    let failure = transport_failure(&status, &state.worker);
                    return Some((Err(failure.into()), state));
                }
                Some(Err(_)) | None => return None,
            }
        }
    })
}

/// The next filter for a worker; never where another stream carries them.
async fn next_filter(filters: &mut Option<mpsc::UnboundedReceiver<RuntimeFilter>>) -> Option<RuntimeFilter> {
    match filters {
        Some(filters) => filters.recv().await,
        None => std::future::pending().await,
    }
}

fn wire_key(key: TaskKey) -> crate::query::TaskKey {
    crate::query::TaskKey {
        query: key.query_id.as_bytes().to_vec().into(),
        stage: key.stage_id as u64,
        task: key.task_number as u64,
    }
}

fn wire_head(head: ProducerHead, ctx: &Arc<TaskContext>) -> Result<partition_request::Head> {
    Ok(match head {
        ProducerHead::None => partition_request::Head::None(NoHead {}),
        ProducerHead::BroadcastExec { output_partitions } => {
            partition_request::Head::Broadcast(BroadcastHead { output_partitions: output_partitions as u64 })
        }
        ProducerHead::RepartitionExec { partitioning } => {
            let partitioning = match partitioning {
                encoded @ MaybeEncoded::Encoded(_) => encoded,
                decoded @ MaybeEncoded::Decoded(_) => MaybeEncoded::Encoded(decoded.encode(ctx)?),
            };
            partition_request::Head::Repartition(RepartitionHead {
                partitioning: partitioning.encode(ctx)?.into(),
            })
        }
    })
}

#[cfg(test)]
mod tests;
