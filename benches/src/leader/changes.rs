//! Clients that change the catalog: one at each coordinator, each with one
//! change under way at any time. Each change does nothing when it is sent a
//! second time, and is sent until it is acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::Code;

use crate::client::{Client, ClientError};
use crate::load::{Doors, Seat};
use crate::report::say;

/// The table that rows are written into.
pub(super) const TABLE: &str = "leader_rows";
pub(super) const CREATE_TABLE: &str =
    "CREATE TABLE leader_rows (k BIGINT NOT NULL) WITH (shards = 1, replicas = 3, shard_key = 'k')";
/// What the names of all schemas begin with.
pub(super) const PREFIX: &str = "leader_";
/// Of so many schemas one is not dropped again.
const KEEP_EVERY: i64 = 8;
/// Keys of one client, at most.
const KEYS_EACH: i64 = 1_000_000;
/// How long one try may take.
const TRY_MAX: Duration = Duration::from_secs(15);
/// How long a change may take to be acknowledged: its coordinator may be away.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(120);
/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// A change that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// The coordinator, by number.
    pub(super) coordinator: usize,
    /// When the try began that was acknowledged.
    pub(super) sent: Instant,
    pub(super) acknowledged: Instant,
}

/// What must be there in the end.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) schemas: BTreeSet<String>,
    pub(super) keys: BTreeSet<i64>,
}

/// What all of them share.
#[derive(Default)]
struct Shared {
    made: Mutex<Vec<Change>>,
    /// Tries that failed on coordinators that nobody killed.
    failed: AtomicU64,
    is_over: AtomicBool,
}

/// The record of what was acknowledged. Cheap to clone.
#[derive(Clone)]
pub(super) struct Record(Arc<Shared>);

impl Record {
    /// All changes so far.
    pub(super) fn count(&self) -> usize {
        self.0.made.lock().len()
    }

    /// The first change that was sent to this coordinator from `since` on and
    /// acknowledged.
    pub(super) fn first_since(&self, coordinator: usize, since: Instant) -> Option<Change> {
        first_since(&self.0.made.lock(), coordinator, since)
    }

    /// Tries that failed where nobody was killed.
    pub(super) fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }
}

fn first_since(made: &[Change], coordinator: usize, since: Instant) -> Option<Change> {
    let there = made.iter().filter(|change| change.coordinator == coordinator && change.sent >= since);
    there.min_by_key(|change| change.acknowledged).copied()
}

/// All of the clients.
pub(super) struct Changers {
    shared: Arc<Shared>,
    clients: JoinSet<Result<Kept>>,
}

impl Changers {
    /// One for each coordinator, which waits for so long between two changes.
    pub(super) fn begin(doors: &Arc<Doors>, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        for coordinator in 0..doors.count() {
            let (doors, shared) = (Arc::clone(doors), Arc::clone(&shared));
            let changer = Changer { doors, shared, coordinator, pause, session: None, kept: Kept::default() };
            clients.spawn(changer.run());
        }
        Self { shared, clients }
    }

    pub(super) fn record(&self) -> Record {
        Record(Arc::clone(&self.shared))
    }

    /// Ends them, each after its last change; what they made.
    ///
    /// # Errors
    /// When a change was refused, or never acknowledged.
    pub(super) async fn end(mut self) -> Result<Kept> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let mut all = Kept::default();
        while let Some(ended) = self.clients.join_next().await {
            let kept = ended.context("a client stopped")??;
            all.schemas.extend(kept.schemas);
            all.keys.extend(kept.keys);
        }
        Ok(all)
    }
}

struct Changer {
    doors: Arc<Doors>,
    shared: Arc<Shared>,
    coordinator: usize,
    pause: Duration,
    session: Option<(Seat, Client)>,
    kept: Kept,
}

impl Changer {
    /// Makes a schema, writes a row and drops the schema again, and so on.
    async fn run(mut self) -> Result<Kept> {
        let mut round = 0;
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let schema = format!("{PREFIX}{}_{round}", self.coordinator);
            self.make(&format!("CREATE SCHEMA IF NOT EXISTS {schema}"), "").await?;
            let key = i64::try_from(self.coordinator)? * KEYS_EACH + round;
            self.make(&format!("INSERT INTO {TABLE} VALUES ({key})"), &format!("{PREFIX}{key}")).await?;
            self.kept.keys.insert(key);
            if round % KEEP_EVERY == 0 {
                self.kept.schemas.insert(schema);
            } else {
                self.make(&format!("DROP SCHEMA IF EXISTS {schema}"), "").await?;
            }
            round += 1;
        }
        Ok(self.kept)
    }

    /// Sends a change until it is acknowledged.
    async fn make(&mut self, sql: &str, write_id: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let sent = Instant::now();
            let (seat, outcome) = self.send(sql, write_id).await;
            let error = match outcome {
                Ok(()) => {
                    let acknowledged = Instant::now();
                    let change = Change { coordinator: self.coordinator, sent, acknowledged };
                    self.shared.made.lock().push(change);
                    tokio::time::sleep(self.pause).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            self.session = None;
            if matches!(error.code, Code::InvalidArgument | Code::NotFound | Code::AlreadyExists) {
                bail!("{} refuses {sql}: {error}", self.doors.name(seat));
            }
            if !self.doors.is_excused(seat) {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                say(format!("failed at {}: {sql}: {error}", self.doors.name(seat)));
            }
            if began.elapsed() > ACKNOWLEDGED_WITHIN {
                bail!("{sql} is not acknowledged after {ACKNOWLEDGED_WITHIN:?}: {error}");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// One try, and the seat at which it was made.
    async fn send(&mut self, sql: &str, write_id: &str) -> (Seat, Result<(), ClientError>) {
        let mut seat = self.doors.seat(self.coordinator);
        if let Some((taken, _)) = &self.session {
            seat = *taken;
        }
        let sending = async {
            let mut client = match &self.session {
                Some((_, client)) => client.clone(),
                None => Client::connect(self.doors.url(seat)).await?,
            };
            // An empty one is none.
            if !write_id.is_empty() {
                client.flight().set_header("shoal-write-id", write_id);
            }
            client.update(sql).await?;
            Ok::<_, ClientError>(client)
        };
        let sent = tokio::time::timeout(TRY_MAX, sending).await;
        match sent {
            Ok(Ok(client)) => {
                // Whatever happened before, the session is good now.
                self.session = Some((self.doors.seat(self.coordinator), client));
                (seat, Ok(()))
            }
            Ok(Err(error)) => (seat, Err(error)),
            Err(_) => {
                let message = format!("no answer within {TRY_MAX:?}");
                (seat, Err(ClientError { code: Code::DeadlineExceeded, message }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_after_the_kill_to_that_coordinator_counts() {
        let kill = Instant::now();
        let at = |ms: u64| kill + Duration::from_millis(ms);
        let before = kill.checked_sub(Duration::from_millis(5)).unwrap();
        let change = |coordinator: usize, sent: Instant, acknowledged: Instant| Change {
            coordinator,
            sent,
            acknowledged,
        };
        let made = [
            change(0, before, at(900)),
            change(0, at(920), at(950)),
            change(1, at(10), at(940)),
            change(0, at(960), at(970)),
        ];
        let accepted = |coordinator| first_since(&made, coordinator, kill).map(|it| it.acknowledged);
        assert_eq!([accepted(0), accepted(1), accepted(2)], [Some(at(950)), Some(at(940)), None]);
    }
}
