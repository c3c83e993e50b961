//! Queries that begin when they are announced, or when values are bound to them: whoever
//! does that comes for the rows at once, and while that is on its way a short one is done.
//!
//! Only where nobody can tell, but by the time that it takes: the query means the same
//! whenever it is run, and its rows are given only where the catalog and the session's
//! settings are still those that it began with when they are asked for. Otherwise it is
//! run then, as if it had not begun.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_proto::QueryId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::planned::bytes_of;
use super::prepared::VALUES_BYTES_MAX;
use super::{Engine, Parameters, Prepared, QueryOutput};
use crate::query::QueryRecord;
use crate::sql::Statement;
use crate::{Error, Session};

/// How many there are at once: with more clients than that there is other work for
/// each core while one is on its way.
const HEAD_STARTS_MAX: usize = 16;
/// For how long the rows wait at least, and twice that at most. Whoever comes later waits for
/// them to be read.
const HELD_FOR: Duration = Duration::from_secs(1);

/// A query that has begun before its rows are asked for. It ends when the last of its
/// clones is dropped, or nobody asked for a while.
#[derive(Clone)]
pub struct HeadStart {
    query: QueryId,
    early: Arc<Mutex<Option<Early>>>,
}

struct Early {
    record: Arc<QueryRecord>,
    /// What came of it; none where another version of the catalog was the newest already.
    task: AbortOnDropHandle<Option<Result<QueryOutput, Error>>>,
    /// The catalog's version that it reads.
    catalog_version: u64,
    settings_version: u64,
    _place: OwnedSemaphorePermit,
}

/// Those of one coordinator. Cheap to clone.
#[derive(Clone)]
pub(super) struct HeadStarts {
    places: Arc<Semaphore>,
    held: Arc<Mutex<Held>>,
    used: Arc<AtomicU64>,
}

/// In the order in which they began.
#[derive(Default)]
struct Held {
    queue: VecDeque<(Instant, Weak<Mutex<Option<Early>>>)>,
    is_watched: bool,
}

impl HeadStart {
    /// The query's id.
    pub fn query(&self) -> QueryId {
        self.query
    }

    /// Whether it is of use yet: nobody took its rows, and it was not let go.
    pub fn is_there(&self) -> bool {
        self.early.lock().is_some()
    }
}

impl HeadStarts {
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(HEAD_STARTS_MAX)), held: Arc::default(), used: Arc::default() }
    }

    /// How many gave the rows of their queries.
    #[cfg(test)]
    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn hold(&self, query: QueryId, early: Early) -> HeadStart {
        let early = Arc::new(Mutex::new(Some(early)));
        let mut held = self.held.lock();
        held.queue.push_back((Instant::now(), Arc::downgrade(&early)));
        if !std::mem::replace(&mut held.is_watched, true) {
            tokio::spawn(Self::let_go(Arc::downgrade(&self.held)));
        }
        HeadStart { query, early }
    }

    /// Ends those that nobody asked for, for as long as there are any.
    async fn let_go(held: Weak<Mutex<Held>>) {
        loop {
            tokio::time::sleep(HELD_FOR).await;
            let Some(held) = held.upgrade() else { return };
            let mut too_old = Vec::new();
            let is_watched = {
                let mut held = held.lock();
                while held.queue.front().is_some_and(|(since, _)| since.elapsed() >= HELD_FOR) {
                    too_old.extend(held.queue.pop_front());
                }
                held.is_watched = !held.queue.is_empty();
                held.is_watched
            };
            for (_, early) in &too_old {
                let early = early.upgrade().and_then(|early| early.lock().take());
                drop(early);
            }
            if !is_watched {
                return;
            }
        }
    }
}

impl Engine {
    /// Begins a query before its rows are asked for, where that is of use: it is short,
    /// its plan is kept, and it means the same whenever it is run. To be called on a runtime.
    pub fn head_start(
        &self,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        parameters: &Parameters,
    ) -> Option<HeadStart> {
        let settings = session.settings();
        // With settings of its own it may be to be answered with a kept result, or not to be
        // run on workers that are slow: whatever it is, it is rare.
        if settings.all_changed().next().is_some() || !matches!(prepared.statement, Statement::Query(_)) {
            return None;
        }
        let catalog_version = self.catalog().version;
        let planned = prepared.kept_for(session, &settings, catalog_version)?;
        if !planned.is_brief() || bytes_of(parameters) > VALUES_BYTES_MAX {
            return None;
        }
        let values = prepared.values(parameters.clone()).ok()?;
        if !planned.takes(&values) {
            return None;
        }
        let place = Arc::clone(&self.head_starts.places).try_acquire_owned().ok()?;
        let query = QueryId::random();
        let running = self.registry.begin_unlisted(query, session.user(), prepared.sql());
        let record = Arc::clone(running.record());
        let settings_version = settings.version;
        let (engine, session, prepared) = (self.clone(), Arc::clone(session), Arc::clone(prepared));
        let parameters = parameters.clone();
        let task = tokio::spawn(async move {
            let begun = engine.begun(running, &session, settings, &prepared, &parameters).await;
            // In another version it may mean something that must not begin early.
            if !begun.reads(catalog_version) && begun.running().give_up() {
                return None;
            }
            Some(engine.run_begun(begun, &session, &prepared, parameters).await)
        });
        let task = AbortOnDropHandle::new(task);
        let early = Early { record, task, catalog_version, settings_version, _place: place };
        Some(self.head_starts.hold(query, early))
    }

    /// Runs a query that was announced, and may have begun then.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub async fn query_announced(
        &self,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        parameters: Parameters,
        query: QueryId,
        head_start: Option<HeadStart>,
    ) -> Result<QueryOutput, Error> {
        let early = head_start.and_then(|head_start| head_start.early.lock().take());
        if let Some(early) = early
            && let Some(output) = self.rows_of(early, session).await
        {
            return output;
        }
        self.query(session, prepared, parameters, query).await
    }

    /// What a query that has begun gives; none where it must be run again, as if it had not.
    async fn rows_of(&self, early: Early, session: &Session) -> Option<Result<QueryOutput, Error>> {
        session.touch();
        // As one that begins now: it must read whatever was acknowledged before.
        let is_caught_up = self.cluster.catalog().catch_up().await.is_ok();
        let is_newest = early.catalog_version == self.catalog().version
            && early.settings_version == session.settings().version;
        if !is_caught_up || !is_newest || !self.registry.list(&early.record) {
            return None;
        }
        match early.task.await {
            Ok(output) => output.inspect(|_| {
                self.head_starts.used.fetch_add(1, Ordering::Relaxed);
            }),
            Err(error) => Some(Err(Error::Internal(format!("the query stopped: {error}")))),
        }
    }
}

#[cfg(test)]
mod tests;
