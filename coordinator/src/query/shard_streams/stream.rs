//! The rows of one shard, over as many workers as it takes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion_distributed::MaybeEncoded;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use shoal_proto::exchange::{Arrivals, Progress, ReadLog, metrics_from_wire, run_plan, worker_url};
use shoal_proto::query::RunRequest;
use shoal_proto::{ErrorCode, Failure, WorkerId};
use url::Url;

use super::kept_rows::KeptRows;
use super::stragglers::Stragglers;
use super::{Giving, ShardPlan, StreamContext};
use crate::query::attempt::{STILL_CHECK, pause, standstill, worker_lost};
use crate::query::planned_reads::take_in_shard;
use crate::query::retry::{Attempted, Decision, Event};

/// How long a stream waits for a live worker to go on with.
const WORKER_WAIT: Duration = Duration::from_secs(5);
/// How often is asked whether a shard is behind the others, or stands still.
const CHECK: Duration = Duration::from_millis(20);

/// The rows of one shard. They come from one run on one worker; a second run
/// begins where the first is lost or far behind, and of two the first to be
/// done counts, never both.
pub(super) struct ShardStream {
    shard: Arc<ShardPlan>,
    giving: Giving,
    context: StreamContext,
    task: Arc<TaskContext>,
    metrics: Arc<Mutex<Vec<MetricsSet>>>,
    arrivals: Arrivals,
    stragglers: Arc<Mutex<Stragglers>>,
    attempted: Attempted,
    /// One, or two while one of them is behind.
    runs: Vec<Run>,
    /// Rows that were handed out.
    rows_given: usize,
    /// To be handed out before anything else.
    ready: VecDeque<RecordBatch>,
    is_over: bool,
    /// Of the rows of the run that is whole; runs have their own until then.
    reservation: MemoryReservation,
    /// How long workers let the reader wait.
    waited: Duration,
    has_begun_twice: bool,
    checked_at: Instant,
}

/// The shard read on one worker.
struct Run {
    worker: WorkerId,
    began: Instant,
    rows: BoxStream<'static, Result<RecordBatch>>,
    /// Rows of the shard before the next that comes.
    at: usize,
    /// What came, while it must be whole.
    kept: KeptRows,
    /// Begun while the first run was under way.
    is_second: bool,
}

/// What happened while a stream waited.
enum Happened {
    /// The run of that number gave something, or ended.
    Gave(usize, Option<Result<RecordBatch>>),
    /// A worker is lost.
    Lost(Failure),
    /// Time to see whether it is behind.
    Tick,
}

impl ShardStream {
    pub(super) fn new(
        shard: Arc<ShardPlan>,
        giving: Giving,
        context: StreamContext,
        task: Arc<TaskContext>,
        metrics: Arc<Mutex<Vec<MetricsSet>>>,
        arrivals: Arrivals,
        stragglers: Arc<Mutex<Stragglers>>,
    ) -> Self {
        let reservation = MemoryConsumer::new("rows of a shard").register(task.memory_pool());
        Self {
            shard,
            giving,
            context,
            task,
            metrics,
            arrivals,
            stragglers,
            attempted: Attempted::new(Instant::now()),
            runs: Vec::new(),
            rows_given: 0,
            ready: VecDeque::new(),
            is_over: false,
            reservation,
            waited: Duration::ZERO,
            has_begun_twice: false,
            checked_at: Instant::now(),
        }
    }

    /// The next rows; none at the end.
    pub(super) async fn next(&mut self) -> Option<Result<RecordBatch, Failure>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(batch));
            }
            if self.is_over {
                return None;
            }
            let stepped = if self.runs.is_empty() { self.begin().await } else { self.step().await };
            if let Err(failure) = stepped {
                self.is_over = true;
                self.runs.clear();
                return Some(Err(failure));
            }
        }
    }

    /// Begins where no run is under way.
    async fn begin(&mut self) -> Result<(), Failure> {
        let opened = match self.worker().await {
            Ok((worker, url)) => {
                self.attempted.begin();
                pause(self.attempted.pause()).await;
                self.open(worker, &url)
            }
            Err(failure) => Err(failure),
        };
        match opened {
            Ok(()) => Ok(()),
            Err(failure) => self.failed(failure),
        }
    }

    /// Waits for what comes next, and takes it.
    async fn step(&mut self) -> Result<(), Failure> {
        let since = Instant::now();
        let workers: BTreeSet<WorkerId> = self.runs.iter().map(|run| run.worker.clone()).collect();
        let runs = &mut self.runs;
        let gave = std::future::poll_fn(|cx| {
            for (number, run) in runs.iter_mut().enumerate() {
                if let Poll::Ready(item) = run.rows.poll_next_unpin(cx) {
                    return Poll::Ready(Happened::Gave(number, item));
                }
            }
            Poll::Pending
        });
        let happened = tokio::select! {
            biased;
            gave = gave => gave,
            failure = worker_lost(&self.context.cluster, || workers.clone()) => Happened::Lost(failure),
            () = tokio::time::sleep(CHECK) => Happened::Tick,
        };
        self.waited += since.elapsed();
        match happened {
            Happened::Gave(number, Some(Ok(batch))) => return self.take(number, batch),
            Happened::Gave(number, None) => return self.ended(number),
            Happened::Gave(number, Some(Err(error))) => {
                self.runs.remove(number);
                return self.failed(Failure::from_datafusion(&error));
            }
            Happened::Lost(failure) => return self.lost(failure),
            Happened::Tick => {
                self.begin_twice_if_behind();
                if self.checked_at.elapsed() >= STILL_CHECK {
                    self.checked_at = Instant::now();
                    let tries = u32::try_from(self.attempted.losses().len()).unwrap_or(u32::MAX) + 1;
                    let StreamContext { cluster, query, .. } = &self.context;
                    if let Some(failure) = standstill(cluster, query, tries, &workers) {
                        return self.lost(failure);
                    }
                }
            }
        }
        Ok(())
    }

    /// The worker that a failure names gives nothing any more.
    fn lost(&mut self, failure: Failure) -> Result<(), Failure> {
        self.runs.retain(|run| Some(run.worker.as_str()) != failure.worker.as_deref());
        self.failed(failure)
    }

    /// Takes rows of a run: those that were not handed out yet.
    fn take(&mut self, number: usize, batch: RecordBatch) -> Result<(), Failure> {
        let rows = batch.num_rows();
        let run = &mut self.runs[number];
        let given = self.rows_given.saturating_sub(run.at).min(rows);
        run.at += rows;
        match self.giving {
            Giving::WhenWhole => {
                run.kept.push(batch).map_err(|error| Failure::from_datafusion(&error))?;
            }
            Giving::AsTheyCome if given < rows => {
                self.ready.push_back(batch.slice(given, rows - given));
                self.rows_given += rows - given;
                self.attempted.progressed(Instant::now());
            }
            // The other run was there before.
            Giving::AsTheyCome => {}
        }
        Ok(())
    }

    /// A run came to its end, with its completion mark: the shard is read.
    fn ended(&mut self, number: usize) -> Result<(), Failure> {
        let run = self.runs.swap_remove(number);
        if self.giving == Giving::AsTheyCome && run.at != self.rows_given {
            return Err(Failure::new(
                ErrorCode::Corrupt,
                format!(
                    "shard {} has {} rows, and another replica gave {}",
                    self.shard.shard, run.at, self.rows_given
                ),
            )
            .at(run.worker.as_str()));
        }
        let (kept, reservation) = run.kept.into_parts();
        self.ready.extend(kept);
        self.reservation = reservation;
        self.is_over = true;
        let was_behind = self.stragglers.lock().ended(self.waited.div_f64(self.shard.weight));
        if !run.is_second && was_behind == Some(false) {
            self.context.cluster.outliers().lock().kept_up(&run.worker, run.began);
        }
        // A first run that is overtaken says something of its worker; a second
        // one that began too late does not.
        if let Some(slower) = self.runs.pop().filter(|_| run.is_second) {
            let what =
                format!("shard {}: {} was overtaken by {}", self.shard.shard, slower.worker, run.worker);
            tracing::info!(query_id = %self.context.query.query, "{what}");
            self.context.cluster.outliers().lock().overtook(&slower.worker, slower.began, Instant::now());
            if let Some(record) = &self.context.record {
                record.lost(&what);
            }
        }
        Ok(())
    }

    /// What a failure comes to: the other run, the next replica, or the end.
    fn failed(&mut self, failure: Failure) -> Result<(), Failure> {
        let event = match (&failure.worker, failure.code) {
            (None, ErrorCode::Unavailable) => Event::NoWorkerLeft(failure.clone()),
            _ => Event::Failed(failure.clone()),
        };
        let (suspect, outcome) = match self.attempted.on(event, Instant::now()) {
            Decision::GoOn => (None, Ok(())),
            Decision::Again { suspect } => (suspect, Ok(())),
            // The other run is as good.
            Decision::Fail { suspect, .. } if !self.runs.is_empty() => (suspect, Ok(())),
            Decision::Fail { failure, suspect } => (suspect, Err(failure)),
        };
        if let Some(worker) = suspect {
            self.context.cluster.suspect(&worker, &failure.message);
        }
        if let Some(record) = &self.context.record
            && failure.worker.is_some()
            && failure.code.is_retryable()
        {
            record.lost(&format!("shard {} at row {}: {failure}", self.shard.shard, self.rows_given));
        }
        tracing::warn!(
            query_id = %self.context.query.query, shard = self.shard.shard, row = self.rows_given,
            goes_on = outcome.is_ok(), "stream of a shard failed: {failure}"
        );
        outcome
    }

    /// Begins a second run on another worker, where the first is far behind the
    /// other shards and there is room for it.
    fn begin_twice_if_behind(&mut self) {
        let [run] = self.runs.as_slice() else { return };
        let so_far = self.waited.div_f64(self.shard.weight);
        if self.has_begun_twice || self.stragglers.lock().is_behind(so_far) != Some(true) {
            return;
        }
        let behind = run.worker.clone();
        let mut avoid = self.attempted.avoid().clone();
        avoid.insert(behind.clone());
        let Ok(Some((worker, url))) = self.best_worker(&avoid) else { return };
        if !self.context.cluster.outliers().lock().may_run_again() {
            return;
        }
        self.has_begun_twice = true;
        tracing::info!(
            query_id = %self.context.query.query, shard = self.shard.shard, row = self.rows_given,
            %behind, %worker, "shard begins a second time"
        );
        if let Err(failure) = self.open(worker, &url) {
            tracing::warn!(query_id = %self.context.query.query, "second run did not begin: {failure}");
        }
    }

    /// Starts to read behind the rows that were given already.
    fn open(&mut self, worker: WorkerId, url: &Url) -> Result<(), Failure> {
        let is_second = !self.runs.is_empty();
        if !is_second {
            self.context.cluster.outliers().lock().begun();
        }
        let named = |error: datafusion::common::DataFusionError| Failure::from_datafusion(&error);
        let of_shard = self.shard.plan().map_err(named)?;
        let plan = match self.rows_given {
            0 => Arc::clone(&of_shard),
            rows => Arc::new(GlobalLimitExec::new(Arc::clone(&of_shard), rows, None)) as _,
        };
        let request = RunRequest {
            query: self.context.query.query.0.as_bytes().to_vec().into(),
            plan: MaybeEncoded::Decoded(plan).encode(&self.task).map_err(named)?.into(),
            worker_url: url.to_string(),
            collect_metrics: self.context.collect_metrics,
            ..RunRequest::default()
        };
        tracing::debug!(
            query_id = %self.context.query.query, shard = self.shard.shard, %worker, row = self.rows_given,
            "stream of a shard begins"
        );
        let is_whole = self.rows_given == 0;
        let metrics = Arc::clone(&self.metrics);
        let headers = self.context.query.to_headers()?;
        let (shard, reads) = (Arc::clone(&self.shard), ReadLog::of(&self.task));
        let (record, from) = (self.context.record.clone(), worker.clone());
        let progress = Progress::of(&self.task, self.arrivals.clone());
        let rows = run_plan(&self.context.channels, url, headers, request, progress, move |ended| {
            reads.take_in_crossed(ended.reads.crossed_news(&mut 0));
            // Also a run that began in the middle reads the shard from its start.
            take_in_shard(&of_shard, shard.shard, &ended.reads, &reads)?;
            record.inspect(|record| record.streamed_by(from));
            // A resumed plan has a node more.
            let nodes = ended.metrics.into_iter().flat_map(|wire| wire.nodes);
            add_metrics(&mut metrics.lock(), nodes.map(metrics_from_wire).skip(usize::from(!is_whole)));
            Ok(())
        })
        .map_err(named)?;
        let kept = KeptRows::new(&self.reservation);
        let (began, at) = (Instant::now(), self.rows_given);
        self.runs.push(Run { worker, began, rows, at, kept, is_second });
        Ok(())
    }

    /// The worker to read from: the one that was dealt, then others that hold
    /// the shard, then any: every worker can fetch what it lacks.
    async fn worker(&mut self) -> Result<(WorkerId, Url), Failure> {
        if self.attempted.losses().is_empty() {
            return Ok(self.shard.worker.clone());
        }
        let mut live = self.context.cluster.watch();
        let avoid = self.attempted.avoid().clone();
        let is_there = live.wait_for(|live| live.workers.iter().any(|worker| !avoid.contains(&worker.id)));
        let is_there = tokio::time::timeout(WORKER_WAIT, is_there).await.is_ok_and(|live| live.is_ok());
        match self.best_worker(&avoid)? {
            Some(best) if is_there => Ok(best),
            _ => {
                let tried: BTreeSet<&str> =
                    self.attempted.losses().iter().map(|loss| loss.worker.as_str()).collect();
                let message = format!(
                    "no live worker is left to read shard {} from (tried {})",
                    self.shard.shard,
                    tried.into_iter().collect::<Vec<_>>().join(", ")
                );
                Err(Failure::new(ErrorCode::Unavailable, message))
            }
        }
    }

    /// The live worker, of those that are not to be avoided, that reads the shard
    /// from its own disk; of equals one that is not slow, then one of this zone,
    /// then the idlest.
    fn best_worker(&self, avoid: &BTreeSet<WorkerId>) -> Result<Option<(WorkerId, Url)>, Failure> {
        let live = self.context.cluster.live();
        let others = live.workers.iter().filter(|worker| !avoid.contains(&worker.id));
        let all = live.workers.iter().map(|worker| &worker.id);
        let ejected = self.context.cluster.outliers().lock().ejected(all, Instant::now());
        let best = others.max_by_key(|worker| {
            let is_reader = self.shard.readers.contains(&worker.id);
            let is_near = worker.zone == self.context.zone;
            let is_well = !ejected.contains(&worker.id);
            (is_reader, is_well, is_near, std::cmp::Reverse(worker.tasks_running))
        });
        let Some(best) = best else { return Ok(None) };
        let url = worker_url(&best.address, &best.id, &best.zone);
        let url = url.map_err(|error| Failure::from_datafusion(&error))?;
        Ok(Some((best.id.clone(), url)))
    }
}

/// Adds the metrics of one shard's nodes to those of the others.
fn add_metrics(all: &mut Vec<MetricsSet>, nodes: impl Iterator<Item = MetricsSet>) {
    for (index, node) in nodes.enumerate() {
        if all.len() <= index {
            all.push(MetricsSet::new());
        }
        node.iter().for_each(|metric| all[index].push(Arc::clone(metric)));
    }
}
