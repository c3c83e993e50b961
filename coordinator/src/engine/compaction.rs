//! Small segments become few: in the background while this coordinator leads, and
//! for `OPTIMIZE TABLE`. One shard at a time, on one thread, in a memory of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast::ObjectName;
use futures::StreamExt;
use shoal_data::{Segment, Table};
use shoal_proto::fault::{self, Step};
use shoal_proto::{ErrorCode, QueryId, TableId};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::names::full_name;
use super::own_thread::on_own_thread;
use super::write::commit_staged;
use super::{Engine, Prepared};
use crate::catalog::{Command, Outcome};
use crate::cluster::compaction::{self, Compacted, Compaction, Rests};
use crate::write::Staged;
use crate::{Error, Session};

/// How long at least between two looks at what is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long at most, while the catalog does not change: workers may be back.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// How often it is told what was compacted, while there is more, and looked whether
/// all coordinators can read that.
const TELL_INTERVAL: Duration = Duration::from_secs(30);
/// How often it is looked whether this coordinator still leads.
const LEADER_INTERVAL: Duration = Duration::from_millis(500);
/// How long one compaction may take: as long as it reads, what was dropped stays. And
/// so long it waits for its turn: what comes before it is given up by then.
const COMPACTION_MAX: Duration = Duration::from_secs(30 * 60);
/// While queries wait for their turn, or there are too few copies of something, a
/// compaction rests for so many times as long as it worked.
const REST_FACTOR: u32 = 4;
/// How long it rests at most between two batches.
const REST_MAX: Duration = Duration::from_secs(1);
/// How often a shard may change while it is compacted because somebody asked, and
/// how long it is left alone then.
const CHANGES_MAX: u32 = 10;
const CHANGE_PAUSE: Duration = Duration::from_millis(200);

/// The right to compact. There is one, and it is given back when all that has it has
/// ended.
type Turn = Arc<OwnedMutexGuard<()>>;

/// What became of a compaction that did not fail.
#[derive(Debug)]
enum Ended {
    Done(Compacted),
    /// The shard has changed in the meantime, and nothing was done.
    Changed,
    /// These segments stay as they are: room or memory is short for them, or they would
    /// be no fewer. That says nothing of other shards.
    Refused(Error),
}

impl Ended {
    /// What an error before the commit comes to. What was short is so for this shard:
    /// others have other workers, and other rows.
    fn before_commit(error: Error) -> Result<Self, Error> {
        if error.code() == ErrorCode::Exhausted { Ok(Self::Refused(error)) } else { Err(error) }
    }
}

/// What `OPTIMIZE TABLE` does after a compaction of a shard.
#[derive(Debug)]
enum Next {
    /// Takes what is left of the shard.
    GoOn(Compacted),
    /// Tries the same again, after a pause.
    Again,
    /// Leaves the shard as it is, and takes the next one.
    Leave(Error),
}

impl Engine {
    /// Compacts what is due, whenever this coordinator leads, until `stop`. What is
    /// under way then is given up.
    pub async fn compact_in_background(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.compact_what_is_due() => {}
        }
    }

    async fn compact_what_is_due(&self) {
        let mut catalog = self.cluster.catalog().watch();
        let mut rests = Rests::default();
        let mut said = String::new();
        loop {
            let due = self.cluster.compactions_due(&rests);
            if !due.is_empty() {
                match self.cluster.check_coordinators().await {
                    Ok(()) => {
                        said.clear();
                        self.compact_one_by_one(due, &mut rests).await;
                    }
                    Err(error) => {
                        let what = error.to_string();
                        if what != said {
                            tracing::warn!(%error, "nothing is compacted");
                            said = what;
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            tokio::select! {
                _ = catalog.changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL_MAX) => {}
            }
        }
    }

    /// Compacts all of this as long as this coordinator leads, and tells it. What
    /// fails is put off.
    async fn compact_one_by_one(&self, due: Vec<Compaction>, rests: &mut Rests) {
        let mut done = Vec::new();
        let mut told_at = Instant::now();
        for compaction in due {
            if told_at.elapsed() >= TELL_INTERVAL {
                self.cluster.tell_compacted(&std::mem::take(&mut done));
                if self.cluster.check_coordinators().await.is_err() {
                    break;
                }
                told_at = Instant::now();
            }
            let ended = tokio::select! {
                biased;
                () = self.follows() => break,
                ended = self.compact(compaction.clone()) => ended,
            };
            match ended {
                Ok(Ended::Done(compacted)) => {
                    rests.done(&compaction);
                    done.push(compacted);
                }
                Ok(Ended::Changed) => {
                    rests.failed(&compaction, Instant::now());
                }
                Ok(Ended::Refused(error)) | Err(error) => {
                    let Compaction { table, shard, .. } = &compaction;
                    tracing::warn!(%table, shard, %error, "shard not compacted");
                    if rests.failed(&compaction, Instant::now()) {
                        self.cluster.tell_deferred(&compaction, &error);
                    }
                }
            }
        }
        self.cluster.tell_compacted(&done);
    }

    /// Returns when this coordinator does not lead.
    async fn follows(&self) {
        while self.cluster.catalog().is_leader() {
            tokio::time::sleep(LEADER_INTERVAL).await;
        }
    }

    /// `OPTIMIZE TABLE`: compacts all that can be, and returns when that is done.
    pub(super) async fn optimize_table(
        &self,
        session: &Session,
        prepared: &Prepared,
        name: &ObjectName,
    ) -> Result<u64, Error> {
        let (schema_name, name) = full_name(name, &session.settings())?;
        self.cluster.catalog().catch_up().await?;
        let snapshot = self.catalog();
        if snapshot.view(&schema_name, &name).is_some() || snapshot.external(&schema_name, &name).is_some() {
            return Err(Error::Invalid(format!(
                "{schema_name}.{name} is a view or an external table: only tables have segments that can be compacted"
            )));
        }
        let Some(table) = snapshot.table(&schema_name, &name) else {
            return Err(self.unknown_table(&snapshot, &schema_name, &name));
        };
        let (id, shards, what) = (table.id, table.layout.shards, table.full_name());
        self.cluster.check_coordinators().await?;
        let running = self.registry.begin(QueryId::random(), session.user(), prepared.sql());
        let cancelled = running.cancelled();
        let (mut done, mut refused) = (Vec::new(), Vec::new());
        let ended = tokio::select! {
            biased;
            () = cancelled.cancelled() => Err(Error::Cancelled("the statement was cancelled".into())),
            ended = self.compact_all(id, shards, &mut done, &mut refused) => ended,
        };
        let refused = compaction::refused(&what, shards, refused, ended.is_ok());
        // What was compacted before an error stays so.
        self.cluster.tell_compacted(&done);
        for line in compaction::told(&done) {
            session.notice(line);
        }
        let ended = match (ended, refused) {
            (Ok(()), Some(refused)) => Err(refused),
            (Err(error), Some(refused)) => {
                session.notice(refused.to_string());
                Err(error)
            }
            (ended, None) => ended,
        };
        if done.is_empty() && ended.is_ok() {
            session.notice(format!("nothing to compact in {what}"));
        }
        let snapshot = self.catalog();
        let left = snapshot.table_by_id(id).map_or(0, |table| compaction::left(&snapshot.facts(table)));
        if let Some(line) = compaction::told_left(&what, shards, left, ended.is_ok()) {
            session.notice(line);
        }
        match ended {
            Ok(()) => {
                running.finished();
                Ok(0)
            }
            Err(error) => {
                running.failed(&error.to_string());
                Err(error)
            }
        }
    }

    /// Compacts one shard after the other. Those for which room or memory is short, or
    /// whose segments would be no fewer, are `refused`: they stay as they are, and why.
    /// What the catalog has no room for is short for the next shard, too, and is an error.
    async fn compact_all(
        &self,
        id: TableId,
        shards: u32,
        done: &mut Vec<Compacted>,
        refused: &mut Vec<(u32, Error)>,
    ) -> Result<(), Error> {
        for shard in 0..shards {
            let mut changes = 0;
            let found = self.catalog();
            // Each time there is one less; what is written meanwhile is for the next time.
            let mut left = found.table_by_id(id).map_or(0, |table| table.shard_segments(shard).count());
            while left > 0 {
                let snapshot = self.catalog();
                let Some(table) = snapshot.table_by_id(id) else {
                    return Err(Error::NotFound("the table was dropped while it was compacted".into()));
                };
                let facts = snapshot.facts(table);
                let Some(compaction) = self.cluster.compaction_asked(&facts, shard) else { break };
                let what = format!("shard {shard} of {}", table.full_name());
                match next(&what, changes, self.compact(compaction).await)? {
                    Next::GoOn(compacted) => {
                        done.push(compacted);
                        left -= 1;
                    }
                    Next::Again => {
                        changes += 1;
                        tokio::time::sleep(CHANGE_PAUSE).await;
                    }
                    Next::Leave(why) => {
                        refused.push((shard, why));
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Carries out one compaction, when it is its turn. To drop this gives it up, and
    /// no other begins before all of it has ended: two would take the memory of two.
    async fn compact(&self, compaction: Compaction) -> Result<Ended, Error> {
        let turn = turn_of(&self.compacting, COMPACTION_MAX).await?;
        let (engine, of_work) = (self.clone(), Arc::clone(&turn));
        let work = on_own_thread(turn, async move { engine.compact_here(&compaction, of_work).await });
        tokio::time::timeout(COMPACTION_MAX, work).await.unwrap_or_else(|_elapsed| {
            Err(Error::Timeout(format!("a compaction took longer than {COMPACTION_MAX:?} and was given up")))
        })
    }

    async fn compact_here(&self, compaction: &Compaction, turn: Turn) -> Result<Ended, Error> {
        fault::point(Step::CompactionBegun);
        let pinned = self.cluster.pin();
        let Some((table, old)) = compaction.found(&pinned) else { return Ok(Ended::Changed) };
        let shard = compaction.shard;
        let (old, staged) = match self.stage_anew(compaction, &table, &old).await {
            Ok(staged) => staged,
            Err(error) => return Ended::before_commit(error),
        };
        fault::point(Step::CompactionStaged);
        // Whoever gave it up meanwhile is heard here, before the commit.
        tokio::task::yield_now().await;
        let (before, after) = (old.len(), staged.segments.len());
        if after >= before {
            return Ok(Ended::Refused(Error::Exhausted(format!(
                "{before} segments of shard {shard} of {} became {after}: they stay as they are",
                table.full_name()
            ))));
        }
        let command = Command::Compact {
            table: table.id,
            shard,
            old: old.iter().map(|segment| segment.id).collect(),
            new: staged.segments.clone(),
        };
        let command = staged.on_disks(command);
        let committing = commit_staged(Arc::clone(&self.cluster), command, staged);
        // Not on this thread, which ends when nobody waits for it any more.
        let committing = self.compute.spawn(async move {
            let _turn = turn;
            committing.await
        });
        let outcome = committing
            .await
            .map_err(|error| Error::Internal(format!("committing a compaction: {error}")))??;
        if outcome != Outcome::Done {
            tracing::info!(table = %table.full_name(), shard, "shard has changed while it was compacted");
            return Ok(Ended::Changed);
        }
        fault::point(Step::CompactionCommitted);
        let bytes = old.iter().map(|segment| segment.bytes).sum();
        Ok(Ended::Done(Compacted { table: table.full_name(), shard, before, after, bytes }))
    }

    /// Writes as many of these segments anew as can be merged: which, and what was staged
    /// in their place.
    async fn stage_anew(
        &self,
        compaction: &Compaction,
        table: &Table,
        old: &[Arc<Segment>],
    ) -> Result<(Vec<Arc<Segment>>, Staged), Error> {
        let shard = compaction.shard;
        // Again: it has waited for its turn.
        self.cluster.check_room(table, shard, compaction.bytes)?;
        let what = format!("shard {shard} of {}", table.full_name());
        let merge = self.template.merge_of(&what, old).await?;
        let (admission, cluster) = (self.admission.clone(), Arc::clone(&self.cluster));
        let is_to_rest = move || admission.is_pressed() || cluster.is_repairing();
        let rows = paced(self.template.merged_rows(table, &merge).await?, is_to_rest);
        let (old, memory) = (merge.segments(), merge.memory("the new segment"));
        let staged = crate::write::compact(&self.writes, table, shard, old, rows, &memory).await?;
        Ok((old.to_vec(), staged))
    }
}

/// What follows for `OPTIMIZE TABLE` from how a compaction of `what` has ended, after
/// so many that came to nothing because of a change.
fn next(what: &str, changes: u32, ended: Result<Ended, Error>) -> Result<Next, Error> {
    match ended {
        Ok(Ended::Done(compacted)) => Ok(Next::GoOn(compacted)),
        Ok(Ended::Refused(why)) => Ok(Next::Leave(why)),
        Ok(Ended::Changed) if changes < CHANGES_MAX => Ok(Next::Again),
        // A worker may be gone that has these segments: then they wait for it.
        Err(error) if error.code() == ErrorCode::Unavailable && changes < CHANGES_MAX => {
            tracing::info!(shard = what, %error, "shard is compacted again");
            Ok(Next::Again)
        }
        Ok(Ended::Changed) => Err(Error::Unavailable(format!(
            "{what} changed {changes} times while it was compacted; try again later"
        ))),
        Err(error) => Err(error),
    }
}

/// The turn, as soon as all before it have ended. A thread that stands still keeps its
/// own for ever: nobody is to wait for that without a word.
async fn turn_of(turns: &Arc<Mutex<()>>, limit: Duration) -> Result<Turn, Error> {
    let turn = tokio::time::timeout(limit, Arc::clone(turns).lock_owned()).await;
    turn.map(Arc::new).map_err(|_elapsed| {
        Error::Timeout(format!("no compaction was begun: another one has not ended within {limit:?}"))
    })
}

/// The same rows, more slowly while others have more need of what they take.
fn paced(
    rows: SendableRecordBatchStream,
    is_to_rest: impl Fn() -> bool + Send + 'static,
) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let state = (rows, is_to_rest, Instant::now());
    let paced = futures::stream::unfold(state, |(mut rows, is_to_rest, since)| async move {
        if is_to_rest() {
            tokio::time::sleep((since.elapsed() * REST_FACTOR).min(REST_MAX)).await;
        }
        // Whoever gave it up is heard here, also where all rows are at hand.
        tokio::task::yield_now().await;
        let since = Instant::now();
        let batch = rows.next().await?;
        Some((batch, (rows, is_to_rest, since)))
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, paced))
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use arrow::datatypes::Schema;

    use super::*;

    #[tokio::test]
    async fn a_turn_that_does_not_come_is_not_waited_for_for_ever() {
        let turns = Arc::default();
        let first = turn_of(&turns, COMPACTION_MAX).await.unwrap();
        let refused = turn_of(&turns, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Timeout, "{refused}");
        drop(first);
        drop(turn_of(&turns, COMPACTION_MAX).await.unwrap());
    }

    #[test]
    fn only_what_concerns_one_shard_alone_leaves_it_for_the_next_one() {
        let of = |changes: u32, ended: Result<Ended, Error>| next("shard 3 of public.t", changes, ended);
        let full = || Error::Exhausted("the disk of the catalog is full".to_owned());
        let no_room = || Error::Exhausted("no room on worker w1".to_owned());
        let away = || Error::Unavailable("w1 is not live".to_owned());
        let compacted = Compacted { table: "public.t".to_owned(), shard: 3, before: 9, after: 1, bytes: 900 };
        assert!(matches!(of(CHANGES_MAX, Ok(Ended::Done(compacted))), Ok(Next::GoOn(_))));
        assert!(matches!(of(0, Ended::before_commit(no_room())), Ok(Next::Leave(Error::Exhausted(_)))));
        assert!(matches!(of(0, Ended::before_commit(away())), Ok(Next::Again)));
        assert!(matches!(of(CHANGES_MAX, Ended::before_commit(away())), Err(Error::Unavailable(_))));
        // At the commit. The next shard would be merged for nothing.
        assert!(matches!(of(0, Err(full())), Err(Error::Exhausted(_))));
        assert!(matches!(of(0, Err(Error::Internal(String::new()))), Err(Error::Internal(_))));
        for changes in [0, CHANGES_MAX - 1] {
            assert!(matches!(of(changes, Ok(Ended::Changed)), Ok(Next::Again)));
            assert!(matches!(of(changes, Err(away())), Ok(Next::Again)));
        }
        assert_eq!(of(CHANGES_MAX, Err(away())).unwrap_err().to_string(), "w1 is not live");
        let changed = of(CHANGES_MAX, Ok(Ended::Changed)).unwrap_err();
        assert_eq!(changed.code(), ErrorCode::Unavailable);
        assert!(changed.to_string().starts_with("shard 3 of public.t changed 10 times"), "{changed}");
    }

    #[tokio::test]
    async fn rows_that_are_all_at_hand_are_given_up_before_their_end() {
        let schema = Arc::new(Schema::empty());
        let empty = RecordBatch::new_empty(Arc::clone(&schema));
        let endless = futures::stream::repeat_with(move || Ok(empty.clone()));
        let mut rows = paced(Box::pin(RecordBatchStreamAdapter::new(schema, endless)), || false);
        let reading = async move { while rows.next().await.is_some() {} };
        assert!(tokio::time::timeout(Duration::from_millis(50), reading).await.is_err());
    }
}
