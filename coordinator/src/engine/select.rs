//! Statements that give rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{RecordBatch, StringArray};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use shoal_proto::{ErrorCode, Failure, QueryId};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::planned::{Asked, Planned};
use super::prepared::explain_columns;
use super::{Engine, Parameters, Prepared, QueryOutput, Scope, here};
use crate::query::{
    Class, Failover, Filling, Joins, Need, Permit, Pinned, QueryStream, Running, Stay, Timeline, explain,
    explain_analyze, reads_data, weigh,
};
use crate::session::Settings;
use crate::sql::{ShoalConfig, Statement};
use crate::{Error, Session, cluster};

/// Batches that wait for the client, beyond those in its connection.
const BATCHES_WAITING: usize = 2;
/// A client that takes no rows for so long does not keep others waiting.
const SLOW_CLIENT: Duration = Duration::from_secs(5);
/// With more live workers a plan takes too long to be made beside the network.
const WORKERS_OF_LOOKUPS_MAX: usize = 100;

/// A query before anything is planned for it: when its catalog has caught up, or could
/// not.
pub(super) struct Begun {
    running: Running,
    settings: Settings,
    caught_up: Result<(), Error>,
    /// The newest snapshot after that.
    pinned: cluster::Pinned,
    /// Its plan, where that is a lookup that was kept for this snapshot.
    lookup: Option<Arc<Planned>>,
}

impl Begun {
    /// Its hold on its record.
    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// Whether it reads this version of the catalog, and a majority says that no newer one
    /// was there when it began.
    pub(super) fn reads(&self, catalog_version: u64) -> bool {
        self.caught_up.is_ok() && self.pinned.version == catalog_version
    }
}

impl Engine {
    /// Runs a statement that returns rows, under the id `query`.
    ///
    /// # Errors
    /// Before the first row; later ones come through the stream.
    pub async fn query(
        &self,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        parameters: Parameters,
        query: QueryId,
    ) -> Result<QueryOutput, Error> {
        session.touch();
        let running = self.registry.begin(query, session.user(), prepared.sql());
        let begun = self.begun(running, session, session.settings(), prepared, &parameters).await;
        self.run_begun(begun, session, prepared, parameters).await
    }

    /// A query that is known, with these settings, when the catalog has caught up.
    pub(super) async fn begun(
        &self,
        running: Running,
        session: &Session,
        settings: Settings,
        prepared: &Prepared,
        parameters: &Parameters,
    ) -> Begun {
        let caught_up = self.cluster.catalog().catch_up().await;
        let pinned = self.cluster.pin();
        // A lookup whose plan is kept is run among the threads that talk to clients: to hand
        // it to another one and back would take about as long as the coordinator's part of it.
        let may_be_short = caught_up.is_ok() && self.cluster.live().workers.len() <= WORKERS_OF_LOOKUPS_MAX;
        let lookup = match may_be_short {
            true => prepared.kept_lookup(session, &settings, pinned.version, parameters),
            false => None,
        };
        Begun { running, settings, caught_up, pinned, lookup }
    }

    /// Runs a query that has begun.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub(super) async fn run_begun(
        &self,
        begun: Begun,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        parameters: Parameters,
    ) -> Result<QueryOutput, Error> {
        let is_short = begun.lookup.is_some();
        let (engine, session, prepared) = (self.clone(), Arc::clone(session), Arc::clone(prepared));
        let work = async move { engine.query_here(&session, &prepared, parameters, begun).await };
        if is_short { here(work).await } else { self.on_compute(work).await }
    }

    async fn query_here(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        parameters: Parameters,
        begun: Begun,
    ) -> Result<QueryOutput, Error> {
        let Begun { running, settings, caught_up, pinned, lookup } = begun;
        let query = running.record().query;
        let key = match &prepared.statement {
            Statement::Query(_) if caught_up.is_ok() => {
                self.result_key(&settings, prepared.sql(), || prepared.values(parameters.clone()))
            }
            _ => None,
        };
        if let Some(result) = key.as_ref().and_then(|key| self.kept_result(key, &pinned)) {
            self.results.hit();
            let schema = Arc::clone(result.schema());
            return Ok(QueryOutput { query, schema, stream: result.rows(running) });
        }
        let scope = self.scope_at(pinned, settings, &caught_up, |names| names);
        match &prepared.statement {
            Statement::Query(statement) => {
                let asked = self.asked_of(session, &scope, prepared, statement, parameters, lookup).await?;
                let filling = key.and_then(|key| self.filling(key, session, &scope, prepared, asked.plan()));
                let stream = self.select(running, scope, asked, None).await?;
                // What is to be kept is copied: among what is computed.
                let stream: SendableRecordBatchStream = match stream.is_at_hand() && filling.is_none() {
                    true => Box::pin(stream),
                    false => self.pumped(stream, filling),
                };
                Ok(QueryOutput { query, schema: stream.schema(), stream })
            }
            Statement::Explain { analyze, verbose, query: statement } => {
                let plan = self.plan_of(session, &scope, prepared, statement, parameters).await?;
                let timeline = Timeline::new(prepared.took, running.record().submitted());
                let timeline = analyze.then_some(timeline);
                let rows = self.explain(running, scope, plan, timeline, *verbose).await?;
                let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(
                    explain_columns(),
                    futures::stream::iter([Ok(rows)]),
                ));
                Ok(QueryOutput { query, schema: explain_columns(), stream })
            }
            Statement::Availability(statement) => {
                let plan = self.plan_of(session, &scope, prepared, statement, parameters).await?;
                let rows = self.explain_availability(&scope, plan)?;
                running.finished();
                Ok(one_batch(query, rows))
            }
            Statement::Rebalance => {
                let rebalanced = self.rebalance(session).await;
                let rows = rebalanced.inspect_err(|error| running.failed(&error.to_string()))?;
                running.finished();
                Ok(one_batch(query, rows))
            }
            _ => Err(Error::Invalid("this statement gives no rows: run it as an update".into())),
        }
    }

    /// Polls a stream on the compute runtime: what a plan's last stage computes
    /// must not keep the network from its work. The end is told, so that a
    /// task that just stops is an error and not a short answer.
    ///
    /// A client that does not take its rows gives up its query's turn and its place in the
    /// result cache, not its query: others run meanwhile. Otherwise the result is kept where
    /// all of it comes, and before its end is told.
    fn pumped(&self, mut rows: QueryStream, mut filling: Option<Filling>) -> SendableRecordBatchStream {
        let schema = RecordBatchStream::schema(&rows);
        let columns = Arc::clone(&schema);
        let (sender, receiver) = mpsc::channel(BATCHES_WAITING);
        let engine = self.clone();
        let task = self.compute.spawn(async move {
            while let Some(batch) = rows.next().await {
                filling = match &batch {
                    Ok(batch) => filling.and_then(|filling| filling.with(batch)),
                    Err(_) => None,
                };
                let room = match tokio::time::timeout(SLOW_CLIENT, sender.reserve()).await {
                    Ok(room) => room,
                    Err(_elapsed) => {
                        filling = None;
                        rows.give_up_turn();
                        sender.reserve().await
                    }
                };
                match room {
                    Ok(room) => room.send(Some(batch)),
                    Err(_gone) => return,
                }
            }
            if let Some(filling) = filling {
                filling.finish(columns, rows.running().record().certificate(), &engine.catalog());
            }
            let _gone = sender.send(None).await;
        });
        let state = Some((receiver, AbortOnDropHandle::new(task)));
        let received = futures::stream::unfold(state, |state| async move {
            let (mut receiver, task) = state?;
            match receiver.recv().await {
                Some(Some(batch)) => Some((batch, Some((receiver, task)))),
                Some(None) => None,
                None => {
                    let failure =
                        Failure::new(ErrorCode::Internal, "the query stopped before its end was told");
                    Some((Err(failure.into()), None))
                }
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, received))
    }

    /// Runs a logical plan: waits for its turn, then tries. Where its time goes is seen by
    /// `timeline`, which is planning when it comes here.
    pub(super) async fn select(
        &self,
        running: Running,
        scope: Scope,
        asked: impl Into<Asked>,
        timeline: Option<Timeline>,
    ) -> Result<QueryStream, Error> {
        self.select_for(running, scope, asked, timeline, None).await
    }

    /// The same, where rows may stay on workers: none come of those that do.
    pub(super) async fn select_for(
        &self,
        running: Running,
        scope: Scope,
        asked: impl Into<Asked>,
        timeline: Option<Timeline>,
        stay: Option<Stay>,
    ) -> Result<QueryStream, Error> {
        let mut options = self.query_options(running.record().on_workers, &scope.settings)?;
        // Only an optimised plan tells how much it is.
        let (optimised, kept) = match asked.into() {
            Asked::Optimised(plan, kept) => (Ok(plan), kept),
            Asked::Plan(plan) => (self.optimised(&scope, plan), None),
        };
        let plan = optimised.inspect_err(|error| running.failed(&error.to_string()))?;
        timeline.as_ref().inspect(|timeline| timeline.planned());
        let need = need(&scope, &plan);
        if let Some(need) = need {
            running.classed(need.class);
            options.is_short = need.class == Class::Short;
        }
        let cancelled = running.cancelled();
        let admitted = tokio::select! {
            biased;
            () = cancelled.cancelled() => Err(Error::Cancelled("the query was cancelled while it waited".into())),
            permit = self.turn(&running, need, options.memory_limit_bytes) => permit,
        };
        let permit = match admitted {
            Ok(permit) => permit,
            Err(error) => {
                running.failed(&error.to_string());
                return Err(error);
            }
        };
        running.admitted();
        let Scope { pin, planning, .. } = scope;
        let pinned = Pinned { running, permit, pin, planning, plan, options, timeline, stay, kept };
        self.attempts.run(pinned).await
    }

    /// Waits for a place among the running queries, where it needs one.
    async fn turn(
        &self,
        running: &Running,
        need: Option<Need>,
        memory_limit_bytes: u64,
    ) -> Result<Option<Permit>, Error> {
        let Some(mut need) = need else { return Ok(None) };
        if need.class == Class::Long {
            let live = self.cluster.live();
            // Of some it may not be known.
            let known = live.workers.iter().map(|worker| worker.memory_bytes).filter(|bytes| *bytes > 0);
            let least = known.min().unwrap_or_default();
            self.admission.know_memory(least);
            need = need.on_one_of(live.workers.len(), least, memory_limit_bytes);
        }
        self.admission.admit(need, |ticket| running.queued(ticket)).await.map(Some)
    }

    /// A plan as text; with a timeline it is run first.
    async fn explain(
        &self,
        running: Running,
        scope: Scope,
        plan: LogicalPlan,
        timeline: Option<Timeline>,
        verbose: bool,
    ) -> Result<RecordBatch, Error> {
        if let Some(timeline) = timeline {
            let kept = self.kept_line(&scope.settings, &plan);
            let mut stream = self.select(running, scope, plan, Some(timeline.clone())).await?;
            while let Some(batch) = stream.next().await {
                batch?;
            }
            let elapsed = timeline.elapsed();
            let text = explain_analyze(stream.plan(), stream.view(), verbose, elapsed).await?;
            let record = stream.running().record();
            let attempts = record.attempts.load(Ordering::Relaxed);
            let mut text = format!("{text}attempts: {attempts}\n");
            if !self.attempts.zone().is_empty() {
                let crossed = record.cross_zone_bytes.load(Ordering::Relaxed);
                let most = record.cross_zone_bytes_most.load(Ordering::Relaxed);
                text.push_str(&format!("crossed zones: {crossed} bytes, at most {most} to one node\n"));
            }
            for loss in record.losses() {
                text.push_str(&format!("lost: {loss}\n"));
            }
            text.push_str(&kept.unwrap_or_default());
            return explain_rows(vec![("Plan with Metrics", text)]);
        }
        let optimised = self.optimised(&scope, plan.clone())?;
        let view = self.attempts.view(&optimised, &BTreeSet::new())?;
        let options = self.query_options(running.record().on_workers, &scope.settings)?;
        let failover = ShoalConfig::of(&scope.settings.options)
            .failover
            .then(|| Failover { cluster: Arc::clone(&self.cluster), record: None });
        let physical =
            scope.planning.physical(&optimised, &view, &options, false, failover, Joins::ByRoom).await?;
        let mut rows = Vec::new();
        if verbose {
            rows.push(("initial_logical_plan", plan.display_indent().to_string()));
        }
        rows.push(("logical_plan", optimised.display_indent().to_string()));
        rows.push(("physical_plan", explain(&physical.plan, &view, verbose)));
        running.finished();
        explain_rows(rows)
    }
}

/// What a plan needs before it may run. What reads no data needs nothing: an operator
/// must see the queue also when it is full.
fn need(scope: &Scope, plan: &LogicalPlan) -> Option<Need> {
    if !reads_data(plan) {
        return None;
    }
    let weight = weigh(plan, scope.planning.state());
    Some(Need {
        class: weight.class,
        memory_bytes: weight.memory_bytes,
        session: scope.settings.session,
        priority: ShoalConfig::of(&scope.settings.options).priority,
    })
}

fn one_batch(query: QueryId, rows: RecordBatch) -> QueryOutput {
    let schema = rows.schema();
    let rows = futures::stream::iter([Ok(rows)]);
    let stream: SendableRecordBatchStream =
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), rows));
    QueryOutput { query, schema, stream }
}

fn explain_rows(rows: Vec<(&str, String)>) -> Result<RecordBatch, Error> {
    let kinds: StringArray = rows.iter().map(|(kind, _)| Some(*kind)).collect();
    let texts: StringArray = rows.iter().map(|(_, text)| Some(text.as_str())).collect();
    RecordBatch::try_new(explain_columns(), vec![Arc::new(kinds), Arc::new(texts)])
        .map_err(|error| Error::Internal(error.to_string()))
}
