//! The queries that run and those that ended lately: what `system.queries`,
//! progress lines and `KILL QUERY` see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use shoal_proto::{QueryId, WorkerId};
use tokio_util::sync::CancellationToken;

use super::admission::{Class, Ticket};
use super::certificate::Certificate;

/// Ended queries that are remembered.
const RECENT_MAX: usize = 1000;
/// Bytes of SQL that are remembered of each.
const SQL_BYTES_MAX: usize = 4096;

/// Losses that are remembered of each.
const LOSSES_MAX: usize = 100;

/// Where a query is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryState {
    /// Waits for its turn.
    Queued,
    /// Is planned or runs.
    Running,
    /// Gave all its rows.
    Finished,
    /// Ended with an error.
    Failed,
    /// Was stopped.
    Cancelled,
}

impl QueryState {
    /// As `system.queries` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is known of one query.
#[derive(Debug)]
pub struct QueryRecord {
    /// Its id.
    pub query: QueryId,
    /// The id under which workers know it. Another one where it began early: if it is run again,
    /// tasks of both may be there at once, and each query's are counted together.
    pub on_workers: QueryId,
    /// Who asked.
    pub user: String,
    /// What was asked, cut where it is very long.
    pub sql: String,
    /// When.
    pub submitted_at: SystemTime,
    submitted: Instant,
    /// Rows given to the client so far.
    pub rows: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Attempts begun.
    pub attempts: AtomicU32,
    /// Whether its rows are a kept result: it was not run.
    pub from_cache: AtomicBool,
    /// Segments that the plan reads.
    pub segments_total: AtomicU64,
    /// Bytes that crossed zones for its result, once that is complete.
    pub cross_zone_bytes: AtomicU64,
    /// The most of them that came to one node.
    pub cross_zone_bytes_most: AtomicU64,
    /// Whether anybody may see it; see [`Registry::begin_unlisted`].
    is_listed: AtomicBool,
    changing: Mutex<Changing>,
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Changing {
    state: QueryState,
    class: Option<Class>,
    ticket: Option<Ticket>,
    error: Option<String>,
    elapsed: Option<Duration>,
    losses: Vec<String>,
    streamed_by: BTreeSet<WorkerId>,
    certificate: Option<Arc<Certificate>>,
}

impl QueryRecord {
    /// A worker was lost on the way; what and why.
    pub fn lost(&self, what: &str) {
        let mut changing = self.changing.lock();
        if changing.losses.len() < LOSSES_MAX {
            changing.losses.push(what.to_owned());
        }
    }

    /// What was lost on the way, in order.
    pub fn losses(&self) -> Vec<String> {
        self.changing.lock().losses.clone()
    }

    /// A shard was streamed to its end by this worker.
    pub(super) fn streamed_by(&self, worker: WorkerId) {
        self.changing.lock().streamed_by.insert(worker);
    }

    /// The workers that streamed shards to their ends.
    pub(super) fn streamers(&self) -> BTreeSet<WorkerId> {
        self.changing.lock().streamed_by.clone()
    }

    /// All its rows have come, and this is what they rest on.
    pub(super) fn certify(&self, certificate: Certificate) {
        self.changing.lock().certificate = Some(Arc::new(certificate));
    }

    /// What its result rests on; none before the last row came.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.changing.lock().certificate.clone()
    }

    /// Where it is.
    pub fn state(&self) -> QueryState {
        self.changing.lock().state
    }

    /// The error that ended it.
    pub fn error(&self) -> Option<String> {
        self.changing.lock().error.clone()
    }

    /// The ticket of its place in the queue, while it waits.
    pub fn ticket(&self) -> Option<Ticket> {
        self.changing.lock().ticket
    }

    /// When it came.
    pub(crate) fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Whether it is short or long; none before that is known, and where it reads no
    /// data.
    pub fn class(&self) -> Option<Class> {
        self.changing.lock().class
    }

    /// From submission until now, or until it ended.
    pub fn elapsed(&self) -> Duration {
        self.changing.lock().elapsed.unwrap_or_else(|| self.submitted.elapsed())
    }

    fn is_over(&self) -> bool {
        !matches!(self.state(), QueryState::Queued | QueryState::Running)
    }

    fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Relaxed)
    }
}

/// All queries of this coordinator. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    inner: Arc<Mutex<Queries>>,
}

#[derive(Debug, Default)]
struct Queries {
    live: BTreeMap<QueryId, Arc<QueryRecord>>,
    recent: VecDeque<Arc<QueryRecord>>,
}

impl Queries {
    /// Whether this is the live query of its id: one that began anew may have taken its place.
    fn has_live(&self, record: &Arc<QueryRecord>) -> bool {
        self.live.get(&record.query).is_some_and(|live| Arc::ptr_eq(live, record))
    }

    /// Takes it from the live ones; whether it was one of them.
    fn end(&mut self, record: &Arc<QueryRecord>) -> bool {
        let lives = self.has_live(record);
        if lives {
            self.live.remove(&record.query);
        }
        lives
    }

    fn remember(&mut self, record: &Arc<QueryRecord>) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Arc::clone(record));
    }
}

impl Registry {
    /// Enters a query. It leaves the live ones when the guard is dropped: as
    /// cancelled, unless its end was told before.
    pub fn begin(&self, query: QueryId, user: &str, sql: &str) -> Running {
        self.enter(query, query, true, user, sql)
    }

    /// The same for one that begins before its client asks for its rows, and so may never be
    /// asked for: until it is [listed](Self::list) nobody sees it, nor can stop it, and when
    /// it ends it was never there.
    pub fn begin_unlisted(&self, query: QueryId, user: &str, sql: &str) -> Running {
        self.enter(query, QueryId::random(), false, user, sql)
    }

    fn enter(&self, query: QueryId, on_workers: QueryId, is_listed: bool, user: &str, sql: &str) -> Running {
        let mut end = sql.len().min(SQL_BYTES_MAX);
        while !sql.is_char_boundary(end) {
            end -= 1;
        }
        let record = Arc::new(QueryRecord {
            query,
            on_workers,
            user: user.to_owned(),
            sql: sql[..end].to_owned(),
            submitted_at: SystemTime::now(),
            submitted: Instant::now(),
            rows: AtomicU64::default(),
            bytes: AtomicU64::default(),
            attempts: AtomicU32::default(),
            from_cache: AtomicBool::default(),
            segments_total: AtomicU64::default(),
            cross_zone_bytes: AtomicU64::default(),
            cross_zone_bytes_most: AtomicU64::default(),
            is_listed: AtomicBool::new(is_listed),
            changing: Mutex::new(Changing {
                state: QueryState::Running,
                class: None,
                ticket: None,
                error: None,
                elapsed: None,
                losses: Vec::new(),
                streamed_by: BTreeSet::new(),
                certificate: None,
            }),
            cancel: CancellationToken::new(),
        });
        self.inner.lock().live.insert(query, Arc::clone(&record));
        Running { record, registry: self.clone() }
    }

    /// A query that runs or ended lately.
    pub fn find(&self, query: QueryId) -> Option<Arc<QueryRecord>> {
        let queries = self.inner.lock();
        let live = queries.live.get(&query).filter(|record| record.is_listed());
        let recent = || queries.recent.iter().rev().find(|record| record.query == query);
        live.or_else(recent).cloned()
    }

    /// Shows a query that began unlisted: its rows are asked for. False where it has ended
    /// otherwise than with all its rows: then it was never there.
    pub fn list(&self, record: &Arc<QueryRecord>) -> bool {
        let mut queries = self.inner.lock();
        let lives = queries.has_live(record);
        if !lives && record.state() != QueryState::Finished {
            return false;
        }
        if !record.is_listed.swap(true, Ordering::Relaxed) && !lives {
            queries.remember(record);
        }
        true
    }

    /// Every query that is known, the oldest first.
    pub fn all(&self) -> Vec<Arc<QueryRecord>> {
        let queries = self.inner.lock();
        let live = queries.live.values().filter(|record| record.is_listed());
        queries.recent.iter().chain(live).cloned().collect()
    }

    /// Queries that wait or run, with those that are not listed.
    pub fn live_count(&self) -> usize {
        self.inner.lock().live.len()
    }

    /// Asks a query to stop; whether there was one to ask.
    pub fn cancel(&self, query: QueryId) -> bool {
        let live = self.inner.lock().live.get(&query).cloned();
        live.filter(|record| record.is_listed()).is_some_and(|record| {
            record.cancel.cancel();
            true
        })
    }
}

/// A live query's own hold on its record.
#[derive(Debug)]
pub struct Running {
    record: Arc<QueryRecord>,
    registry: Registry,
}

impl Running {
    /// The record.
    pub fn record(&self) -> &Arc<QueryRecord> {
        &self.record
    }

    /// Fires when somebody asks the query to stop.
    pub fn cancelled(&self) -> CancellationToken {
        self.record.cancel.clone()
    }

    /// Ends one that is not listed, as if it had never begun; whether it was one. It must go
    /// on if not: its rows are asked for.
    pub fn give_up(&self) -> bool {
        let mut queries = self.registry.inner.lock();
        !self.record.is_listed() && queries.end(&self.record)
    }

    /// It is of this class.
    pub fn classed(&self, class: Class) {
        self.record.changing.lock().class = Some(class);
    }

    /// It waits, with this ticket.
    pub fn queued(&self, ticket: Ticket) {
        let mut changing = self.record.changing.lock();
        changing.state = QueryState::Queued;
        changing.ticket = Some(ticket);
    }

    /// Its turn came.
    pub fn admitted(&self) {
        let mut changing = self.record.changing.lock();
        changing.state = QueryState::Running;
        changing.ticket = None;
    }

    /// Another attempt begins; its number, from 1.
    pub fn attempt(&self) -> u32 {
        self.record.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A kept result is its answer.
    pub fn answered_from_cache(&self) {
        self.record.from_cache.store(true, Ordering::Relaxed);
    }

    /// Rows were handed to the client.
    pub fn count(&self, rows: usize, bytes: usize) {
        self.record.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.record.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What was done so far counts for nothing: all of it is done anew.
    pub fn begun_anew(&self) {
        self.record.rows.store(0, Ordering::Relaxed);
        self.record.bytes.store(0, Ordering::Relaxed);
    }

    /// It gave all its rows.
    pub fn finished(&self) {
        self.end(QueryState::Finished, None);
    }

    /// It ended with an error.
    pub fn failed(&self, error: &str) {
        let state =
            if self.record.cancel.is_cancelled() { QueryState::Cancelled } else { QueryState::Failed };
        self.end(state, Some(error.to_owned()));
    }

    fn end(&self, state: QueryState, error: Option<String>) {
        let mut changing = self.record.changing.lock();
        if changing.elapsed.is_none() {
            changing.state = state;
            changing.ticket = None;
            changing.error = error;
            changing.elapsed = Some(self.record.submitted.elapsed());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.record.is_over() {
            self.end(QueryState::Cancelled, None);
        }
        let mut queries = self.registry.inner.lock();
        if !queries.end(&self.record) {
            return;
        }
        if self.record.is_listed() {
            queries.remember(&self.record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_leaves_as_it_ended() {
        let registry = Registry::default();
        let (done, dropped) = (QueryId::random(), QueryId::random());
        let running = registry.begin(done, "ada", "SELECT 1");
        running.finished();
        drop(running);
        drop(registry.begin(dropped, "ada", "SELECT 2"));
        let state = |query| registry.find(query).unwrap().state();
        assert_eq!((state(done), state(dropped)), (QueryState::Finished, QueryState::Cancelled));
        assert_eq!(registry.live_count(), 0);
        assert!(!registry.cancel(done));
    }

    #[test]
    fn what_nobody_asked_for_yet_is_not_seen_and_cannot_be_stopped() {
        let registry = Registry::default();
        let begin = || registry.begin_unlisted(QueryId::random(), "ada", "SELECT 1");
        let seen = || registry.all().iter().map(|record| (record.query, record.state())).collect::<Vec<_>>();
        let running = begin();
        let record = Arc::clone(running.record());
        assert_ne!(record.on_workers, record.query, "it may be run again under its id");
        assert!(seen().is_empty() && registry.find(record.query).is_none());
        assert!(!registry.cancel(record.query) && !running.cancelled().is_cancelled());
        assert_eq!(registry.live_count(), 1, "a stop waits for it");
        assert!(registry.list(&record) && registry.list(&record));
        assert!(!running.give_up(), "it is asked for");
        assert!(registry.cancel(record.query) && running.cancelled().is_cancelled());
        drop(running);
        assert_eq!(seen(), [(record.query, QueryState::Cancelled)]);

        // It gave all its rows before they were asked for.
        let running = begin();
        let finished = Arc::clone(running.record());
        running.finished();
        drop(running);
        assert_eq!(seen().len(), 1);
        assert!(registry.list(&finished) && registry.list(&finished));
        assert_eq!(seen()[1..], [(finished.query, QueryState::Finished)], "once");

        // These were never there.
        let failed = begin();
        let of_failed = Arc::clone(failed.record());
        failed.failed("no");
        drop(failed);
        let given_up = begin();
        let of_given_up = Arc::clone(given_up.record());
        assert!(given_up.give_up());
        assert!(!registry.list(&of_failed) && !registry.list(&of_given_up));
        drop(given_up);
        assert_eq!((seen().len(), registry.live_count()), (2, 0));
    }

    #[test]
    fn one_that_began_anew_under_the_same_id_stays() {
        let registry = Registry::default();
        let first = registry.begin_unlisted(QueryId::random(), "ada", "SELECT 1");
        let second = registry.begin(first.record().query, "ada", "SELECT 1");
        drop(first);
        assert!(registry.cancel(second.record().query) && second.cancelled().is_cancelled());
    }

    #[test]
    fn what_is_done_anew_counts_once() {
        let running = Registry::default().begin(QueryId::random(), "ada", "COPY t FROM 'a.csv'");
        running.count(10, 100);
        running.begun_anew();
        running.count(7, 70);
        let record = running.record();
        let done = (record.rows.load(Ordering::Relaxed), record.bytes.load(Ordering::Relaxed));
        assert_eq!(done, (7, 70));
    }

    #[test]
    fn a_stop_reaches_the_query() {
        let registry = Registry::default();
        let query = QueryId::random();
        let running = registry.begin(query, "ada", &"é".repeat(SQL_BYTES_MAX));
        assert!(registry.cancel(query));
        assert!(running.cancelled().is_cancelled());
        running.failed("stopped");
        assert_eq!(registry.find(query).unwrap().state(), QueryState::Cancelled);
        assert!(running.record().sql.len() <= SQL_BYTES_MAX);
    }
}
