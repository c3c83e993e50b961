//! The attempts at a query. Until its rows are released, a lost worker costs
//! another attempt: without it, through a fresh view, with a fresh plan. Rows
//! are released when an attempt is complete; those of a scan at once, as it
//! resumes by itself (`shard_streams`).

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::Result as DfResult;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use shoal_proto::exchange::{FirstTask, QueryOptions, ReadLog, panic_failure};
use shoal_proto::{ErrorCode, Failure, WorkerId};

use self::planned::planned;
use self::spool::{Room, Spool, SpoolLimits};
use self::until_error::until_error;
use super::admission::Permit;
use super::certificate::Certifier;
use super::planned_reads::PlannedReads;
use super::registry::Running;
use super::retry::{Attempted, Decision, Event};
use super::rewrite::reads_data;
use super::rows_stay::Stay;
use super::session_state::{Failover, PARTITIONS, PhysicalPlan, Planning, facts_of, tables_of};
use super::shard_streams::streams_of;
use super::timeline::Timeline;
use super::view::View;
use super::whole_plan::KeptWhole;
use crate::Error;
use crate::cluster::{Cluster, LiveWorkers, PinGuard};
use crate::sql::ShoalConfig;

mod pause;
mod planned;
mod spool;
mod until_error;

pub(super) use self::pause::pause;

/// How long a query waits for the first live worker.
const WORKER_WAIT: Duration = Duration::from_secs(2);

/// For how long a task may not move in the first attempt. Far beyond what an
/// operator does in one go.
const STILL_MAX: Duration = Duration::from_secs(10);
/// How often that is looked at.
pub(super) const STILL_CHECK: Duration = Duration::from_millis(500);
/// How long a worker may be missing that is only suspected: a beat, and some.
const SUSPICION: Duration = Duration::from_millis(600);

/// Runs queries against the cluster.
#[derive(Clone)]
pub struct Attempts {
    cluster: Arc<Cluster>,
    zone: String,
    spool_dir: PathBuf,
    turn: Arc<AtomicUsize>,
}

/// What stays the same over the attempts at a query.
pub struct Pinned {
    /// Its live record; gone with the stream.
    pub running: Running,
    /// Its place among the running ones.
    pub permit: Option<Permit>,
    /// Keeps the segments of its snapshot.
    pub pin: PinGuard,
    /// Session and snapshot.
    pub planning: Planning,
    /// The optimised logical plan.
    pub plan: LogicalPlan,
    /// Id, memory limit and settings; the attempt number is set here.
    pub options: QueryOptions,
    /// Sees where the time goes, where that is asked for: then operators' metrics are
    /// brought back, too.
    pub timeline: Option<Timeline>,
    /// Where its rows are to stay on workers if they can: then there are none here.
    pub stay: Option<Stay>,
    /// Where its physical plan is kept, if it is asked again and again.
    pub(crate) kept: Option<Arc<KeptWhole>>,
}

impl Pinned {
    fn settings(&self) -> ShoalConfig {
        ShoalConfig::of(self.planning.state().config_options())
    }
}

impl Attempts {
    /// Over this cluster; workers of `zone` are preferred. Rows that wait and
    /// do not fit in memory wait in `spool_dir`.
    pub fn new(cluster: Arc<Cluster>, zone: &str, spool_dir: &Path) -> Self {
        Self { cluster, zone: zone.to_owned(), spool_dir: spool_dir.to_owned(), turn: Arc::default() }
    }

    /// Where this coordinator stands; may be empty.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The view for an attempt at `plan`.
    ///
    /// # Errors
    /// `Unavailable` where no worker is left.
    pub fn view(&self, plan: &LogicalPlan, avoid: &BTreeSet<WorkerId>) -> Result<Arc<View>, Error> {
        if !reads_data(plan) {
            return Ok(Arc::new(View::without_workers()));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let live = self.cluster.live();
        let others = live.workers.iter().map(|worker| &worker.id).filter(|worker| !avoid.contains(*worker));
        // Those that are slow get no work while there are enough others.
        let mut without = self.cluster.outliers().lock().ejected(others, Instant::now());
        // Nor those that are to be stopped.
        without.extend(self.cluster.drained());
        without.extend(avoid.iter().cloned());
        let tables = facts_of(plan)?;
        let view = match View::new(&live, &tables, &without, &self.zone, turn, PARTITIONS) {
            Ok(view) if !view.lacks_readers() => view,
            // The only ones that have a shard.
            _ if without.len() > avoid.len() => {
                View::new(&live, &tables, avoid, &self.zone, turn, PARTITIONS)?
            }
            view => view?,
        };
        Ok(Arc::new(view))
    }

    /// Tries until rows may go to the client, or an error that no further
    /// attempt can cure.
    ///
    /// # Errors
    /// The last attempt's; `Cancelled` where somebody stopped the query.
    pub async fn run(&self, mut pinned: Pinned) -> Result<QueryStream, Error> {
        let cancelled = pinned.running.cancelled();
        let outcome = tokio::select! {
            biased;
            () = cancelled.cancelled() => Err(stopped()),
            outcome = self.try_all(&mut pinned) => outcome,
        };
        match outcome {
            Ok(released) => Ok(QueryStream::new(released, pinned, Arc::clone(&self.cluster))),
            Err(error) => {
                pinned.running.failed(&error.to_string());
                Err(error)
            }
        }
    }

    /// A worker that was suspected comes back with its next beat: a query that
    /// finds none waits that long before it gives up.
    async fn wait_for_a_worker(&self) {
        let mut live = self.cluster.watch();
        let is_there = live.wait_for(|live| !live.workers.is_empty());
        let _none_came = tokio::time::timeout(WORKER_WAIT, is_there).await;
    }

    async fn try_all(&self, pinned: &mut Pinned) -> Result<Released, Error> {
        let mut attempted = Attempted::new(Instant::now());
        loop {
            if reads_data(&pinned.plan) {
                self.wait_for_a_worker().await;
            }
            attempted.begin();
            pause(attempted.pause()).await;
            let attempt = pinned.running.attempt();
            pinned.options.attempt = attempt;
            let event = match self.view(&pinned.plan, attempted.avoid()) {
                Err(error) => Event::NoWorkerLeft(Failure::from(error)),
                Ok(view) => match self.try_once(pinned, view, &mut attempted).await {
                    Ok(released) => return Ok(released),
                    Err(error) => match pinned.stay.as_ref().and_then(|stay| stay.taker.refusal()) {
                        Some(refusal) => Event::Refused(refusal),
                        None => Event::Failed(Failure::from(error)),
                    },
                },
            };
            let losses = attempted.losses().len();
            let decision = attempted.on(event, Instant::now());
            for loss in &attempted.losses()[losses..] {
                pinned.running.record().lost(&format!("attempt {attempt}: {}: {}", loss.worker, loss.why));
            }
            let (suspect, outcome) = match decision {
                Decision::GoOn => (None, Ok(())),
                Decision::Again { suspect } => (suspect, Ok(())),
                Decision::Fail { failure, suspect } => (suspect, Err(failure)),
            };
            let why = match &outcome {
                Ok(()) => attempted.why().to_owned(),
                Err(failure) => failure.to_string(),
            };
            tracing::warn!(
                query_id = %pinned.options.query, attempt, again = outcome.is_ok(), why, "attempt failed"
            );
            if let Some(worker) = suspect {
                self.cluster.suspect(&worker, &why);
            }
            outcome?;
        }
    }

    /// One attempt, up to the moment when its rows may go to the client.
    async fn try_once(
        &self,
        pinned: &Pinned,
        view: Arc<View>,
        attempted: &mut Attempted,
    ) -> Result<Released, Error> {
        let settings = pinned.settings();
        let failover = settings.failover.then(|| Failover {
            cluster: Arc::clone(&self.cluster),
            record: Some(Arc::clone(pinned.running.record())),
        });
        pinned.timeline.as_ref().inspect(|timeline| timeline.plans());
        let physical = caught(planned(pinned, &view, failover, attempted.joins())).await??;
        let PhysicalPlan { plan, context, can_merge } = physical;
        attempted.planned(can_merge);
        let planned = PlannedReads::of(&plan)?;
        let record = pinned.running.record();
        record.segments_total.store(planned.segments(), Ordering::Relaxed);
        pinned.timeline.as_ref().inspect(|timeline| timeline.runs(FirstTask::of(&context)));
        let rows = datafusion::physical_plan::execute_stream(Arc::clone(&plan), Arc::clone(&context))?;
        let certifier = Certifier {
            snapshot: pinned.pin.version(),
            names: tables_of(&pinned.plan)?.iter().map(|table| (table.id, table.full_name())).collect(),
            planned,
            reads: ReadLog::of(&context),
            view: Arc::clone(&view),
            record: Arc::clone(record),
        };
        let mut rows = certifier.certified(rows);
        if let Some(timeline) = &pinned.timeline {
            rows = timeline.watched(rows);
        }
        let goes_on_by_itself = streams_of(&plan).is_some();
        let is_safe = !settings.failover || view.workers().is_empty() || goes_on_by_itself;
        if is_safe {
            if goes_on_by_itself {
                // What it could not cure, another attempt cannot either.
                attempted.on(Event::Released, Instant::now());
            }
            let first = caught(rows.next()).await?.transpose()?;
            attempted.on(Event::Released, Instant::now());
            let schema = rows.schema();
            let is_complete = first.is_none();
            let rest = if is_complete { futures::stream::empty().boxed() } else { rows.boxed() };
            let rows = futures::stream::iter(first.map(Ok)).chain(rest);
            let rows = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
            return Ok(Released { plan, view, rows, is_complete, is_at_hand: is_complete });
        }
        let limits = SpoolLimits {
            memory_bytes: settings.spool_memory,
            disk_bytes: settings.spool_disk as u64,
            dir: self.spool_dir.clone(),
        };
        let schema = rows.schema();
        let mut spool = Spool::new(Arc::clone(&schema), limits, &context.runtime_env().memory_pool);
        // A worker that falls silent breaks no stream for some time.
        let seen = Arc::clone(&view);
        let silence = worker_lost(&self.cluster, || seen.used_workers());
        let options = &pinned.options;
        let standstill = async {
            loop {
                tokio::time::sleep(STILL_CHECK).await;
                if let Some(failure) =
                    standstill(&self.cluster, options, options.attempt, &seen.used_workers())
                {
                    break failure;
                }
            }
        };
        tokio::pin!(silence, standstill);
        loop {
            let next = tokio::select! {
                biased;
                next = caught(rows.next()) => next?,
                failure = &mut silence => return Err(failure.into()),
                failure = &mut standstill => return Err(failure.into()),
            };
            let Some(batch) = next else { break };
            if spool.push(batch?).await? == Room::Full {
                tracing::info!(query_id = %pinned.options.query, "spool is full: rows are handed out");
                attempted.on(Event::Released, Instant::now());
                let rows = Box::pin(RecordBatchStreamAdapter::new(schema, spool.into_rows().chain(rows)));
                return Ok(Released { plan, view, rows, is_complete: false, is_at_hand: false });
            }
        }
        let is_at_hand = spool.is_in_memory();
        Ok(Released { plan, view, rows: spool.into_rows(), is_complete: true, is_at_hand })
    }
}

/// Waits until one of the used workers is lost; the failure that this is.
/// Which are used is asked each time: tasks are sent as a plan runs.
pub(super) async fn worker_lost(cluster: &Cluster, used: impl Fn() -> BTreeSet<WorkerId>) -> Failure {
    let mut live = cluster.watch();
    let gone = |live: &LiveWorkers| used().into_iter().find(|worker| live.is_lost(worker));
    let lost = |worker: WorkerId| {
        Failure::new(ErrorCode::Unavailable, "is not heard of any more").at(worker.as_str())
    };
    loop {
        let now = Arc::clone(&live.borrow_and_update());
        if let Some(worker) = gone(&now) {
            return lost(worker);
        }
        // One that is only suspected is back with its next beat, or lost.
        if let Some(worker) = used().into_iter().find(|worker| now.is_suspected(worker)) {
            tokio::time::sleep(SUSPICION).await;
            let now = Arc::clone(&live.borrow_and_update());
            if now.get(&worker).is_none() && !now.leaving.contains(&worker) {
                return lost(worker);
            }
            continue;
        }
        if live.changed().await.is_err() {
            // The coordinator stops: its streams say so.
            std::future::pending::<()>().await;
        }
    }
}

/// The failure of a query one of whose tasks has not moved for too long on one
/// of these workers; the worker itself may beat all the while. What is only
/// slow has twice the time in each further try, of which this is number `tries`.
pub(super) fn standstill(
    cluster: &Cluster,
    options: &QueryOptions,
    tries: u32,
    workers: &BTreeSet<WorkerId>,
) -> Option<Failure> {
    let limit = STILL_MAX.saturating_mul(1 << tries.saturating_sub(1).min(8));
    let stillest = cluster.stillest(options.query, options.attempt, workers);
    let (worker, still) = stillest.filter(|(_, still)| *still >= limit)?;
    cluster.outliers().lock().eject(&worker, Instant::now());
    let message = format!("its task has not moved for {:.0} s", still.as_secs_f64());
    Some(Failure::new(ErrorCode::Unavailable, message).at(worker.as_str()))
}

/// What a future gives; a panic in it as an error.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| panic_failure(panic.as_ref()))
}

/// An attempt whose rows may go to the client.
struct Released {
    plan: Arc<dyn ExecutionPlan>,
    view: Arc<View>,
    rows: SendableRecordBatchStream,
    /// Whether the attempt is over: no worker is needed any more.
    is_complete: bool,
    /// Whether it is over, and all its rows are in memory.
    is_at_hand: bool,
}

/// The error of a query that `KILL QUERY` or its client ended.
pub(super) fn stopped() -> Error {
    Error::Cancelled("the query was cancelled".into())
}

/// The rows of a query, with all that must live as long as they come. To drop
/// it cancels the query on every node.
pub struct QueryStream {
    schema: SchemaRef,
    plan: Arc<dyn ExecutionPlan>,
    view: Arc<View>,
    rows: BoxStream<'static, DfResult<RecordBatch>>,
    pinned: Pinned,
    cluster: Arc<Cluster>,
    is_at_hand: bool,
    is_over: bool,
}

impl QueryStream {
    fn new(released: Released, mut pinned: Pinned, cluster: Arc<Cluster>) -> Self {
        let Released { plan, view, rows, is_complete, is_at_hand } = released;
        let cancelled = pinned.running.cancelled();
        if is_complete {
            // Others may run while the client takes what is there.
            pinned.permit = None;
        }
        let caught = AssertUnwindSafe(rows).catch_unwind().map(|item| match item {
            Ok(item) => item,
            Err(panic) => Err(panic_failure(panic.as_ref()).into()),
        });
        // The wait is inside the stream, so that a stop is noticed also while
        // no row comes.
        let rows = caught
            .take_until(cancelled.clone().cancelled_owned())
            .chain(
                futures::stream::once(async move {
                    if cancelled.is_cancelled() { Some(Err(stopped().into())) } else { None }
                })
                .filter_map(std::future::ready),
            )
            .boxed();
        let rows = until_error(rows).boxed();
        Self { schema: plan.schema(), plan, view, rows, pinned, cluster, is_at_hand, is_over: false }
    }

    /// Whether nothing is computed or waited for any more: its rows are in memory.
    pub fn is_at_hand(&self) -> bool {
        self.is_at_hand
    }

    /// The plan that runs, for EXPLAIN ANALYZE once the rows have ended.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The view that it runs in.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Lets another query run in place of this one, which goes on.
    pub fn give_up_turn(&mut self) {
        self.pinned.permit = None;
    }

    /// The query's record.
    pub fn running(&self) -> &Running {
        &self.pinned.running
    }
}

impl Stream for QueryStream {
    type Item = DfResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let polled = self.rows.poll_next_unpin(cx);
        match &polled {
            Poll::Ready(Some(Ok(batch))) => {
                self.pinned.running.count(batch.num_rows(), batch.get_array_memory_size());
            }
            Poll::Ready(Some(Err(error))) => {
                let failure = Failure::from_datafusion(error);
                self.pinned.running.failed(&failure.to_string());
                if let (Some(worker), ErrorCode::Unavailable) = (&failure.worker, failure.code) {
                    self.cluster.suspect(&WorkerId::from(worker.as_str()), &failure.message);
                }
                self.is_over = true;
                self.pinned.permit = None;
            }
            Poll::Ready(None) => {
                self.is_over = true;
                self.pinned.running.finished();
                self.pinned.permit = None;
            }
            Poll::Pending => {}
        }
        polled
    }
}

impl RecordBatchStream for QueryStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
