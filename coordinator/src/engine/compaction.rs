//! Small segments become few: in the background while this coordinator leads, and
//! for `OPTIMIZE TABLE`. One shard at a time, on one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast::ObjectName;
use futures::StreamExt;
use shoal_proto::fault::{self, Step};
use shoal_proto::{QueryId, TableId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::names::full_name;
use super::write::commit_staged;
use super::{Engine, Prepared};
use crate::catalog::{Command, Outcome};
use crate::cluster::compaction::{self, Compacted, Compaction, Rests};
use crate::query::Admission;
use crate::{Error, Session};

/// How long at least between two looks at what is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long at most, while the catalog does not change: workers may be back.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// How often it is told what was compacted, while there is more.
const TELL_INTERVAL: Duration = Duration::from_secs(30);
/// While queries wait for their turn, a compaction rests for so many times as long
/// as it worked.
const REST_FACTOR: u32 = 4;
/// How long it rests at most between two batches.
const REST_MAX: Duration = Duration::from_secs(1);
/// How often a shard may change while it is compacted because somebody asked, and
/// how long it is left alone then.
const CHANGES_MAX: u32 = 10;
const CHANGE_PAUSE: Duration = Duration::from_millis(200);
/// Stack of the thread that compacts.
const STACK_BYTES: usize = 8 << 20;

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
        loop {
            let mut done = Vec::new();
            let mut told_at = Instant::now();
            for compaction in self.cluster.compactions_due(&rests) {
                if !self.cluster.catalog().is_leader() {
                    break;
                }
                let Compaction { table, shard, .. } = compaction;
                match self.compact(compaction).await {
                    Ok(Some(compacted)) => {
                        rests.done(table, shard);
                        done.push(compacted);
                    }
                    Ok(None) => rests.failed(table, shard, Instant::now()),
                    Err(error) => {
                        tracing::warn!(%table, shard, %error, "shard not compacted");
                        rests.failed(table, shard, Instant::now());
                    }
                }
                if told_at.elapsed() >= TELL_INTERVAL {
                    self.cluster.tell_compacted(&std::mem::take(&mut done));
                    told_at = Instant::now();
                }
            }
            self.cluster.tell_compacted(&done);
            tokio::time::sleep(LOOK_INTERVAL).await;
            tokio::select! {
                _ = catalog.changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL_MAX) => {}
            }
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
        let (id, shards) = (table.id, table.layout.shards);
        let running = self.registry.begin(QueryId::random(), session.user(), prepared.sql());
        let cancelled = running.cancelled();
        let mut done = Vec::new();
        let ended = tokio::select! {
            biased;
            () = cancelled.cancelled() => Err(Error::Cancelled("the statement was cancelled".into())),
            ended = self.compact_all(id, shards, &mut done) => ended,
        };
        // What was compacted before an error stays so.
        self.cluster.tell_compacted(&done);
        match ended {
            Ok(()) => running.finished(),
            Err(error) => {
                running.failed(&error.to_string());
                return Err(error);
            }
        }
        for line in compaction::told(&done) {
            session.notice(line);
        }
        if done.is_empty() {
            session.notice(format!("nothing to compact in {schema_name}.{name}"));
        }
        let snapshot = self.catalog();
        let left = snapshot.table_by_id(id).map_or(0, |table| compaction::left(&snapshot.facts(table)));
        if left > 0 {
            session.notice(format!(
                "{left} of {shards} shards of {schema_name}.{name} have small segments left: workers that hold them are \
                 away or have little room, their copies move or are still to be made, or they were written meanwhile; try \
                 again later"
            ));
        }
        Ok(0)
    }

    async fn compact_all(&self, id: TableId, shards: u32, done: &mut Vec<Compacted>) -> Result<(), Error> {
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
                let Some(compaction) = compaction::asked(&facts, shard, &self.cluster.live()) else { break };
                match self.compact(compaction).await? {
                    Some(compacted) => {
                        done.push(compacted);
                        left -= 1;
                    }
                    None if changes < CHANGES_MAX => {
                        changes += 1;
                        tokio::time::sleep(CHANGE_PAUSE).await;
                    }
                    None => {
                        return Err(Error::Unavailable(format!(
                            "shard {shard} of {} changed {changes} times while it was compacted; try again later",
                            table.full_name()
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Carries out one compaction, when it is its turn; none where the shard has
    /// changed in the meantime, and nothing was done. To drop this gives it up.
    async fn compact(&self, compaction: Compaction) -> Result<Option<Compacted>, Error> {
        let _turn = self.compacting.lock().await;
        let engine = self.clone();
        on_own_thread(async move { engine.compact_here(&compaction).await }).await
    }

    async fn compact_here(&self, compaction: &Compaction) -> Result<Option<Compacted>, Error> {
        fault::point(Step::CompactionBegun);
        let pinned = self.cluster.pin();
        let Some((table, old)) = compaction.found(&pinned) else { return Ok(None) };
        let shard = compaction.shard;
        let rows = paced(self.template.merged_rows(&table, &old).await?, self.admission.clone());
        let staged = crate::write::compact(&self.writes, &table, shard, &old, rows).await?;
        fault::point(Step::CompactionStaged);
        // Whoever gave it up meanwhile is heard here, before the commit.
        tokio::task::yield_now().await;
        let (before, after) = (old.len(), staged.segments.len());
        if after >= before {
            return Err(Error::Exhausted(format!(
                "{before} segments of shard {shard} of {} became {after}: they stay as they are",
                table.full_name()
            )));
        }
        let command = Command::Compact {
            table: table.id,
            shard,
            old: compaction.segments.clone(),
            new: staged.segments.clone(),
        };
        let command = staged.on_disks(command);
        // Not on this thread, which ends when nobody waits for it any more.
        let committing = self.compute.spawn(commit_staged(Arc::clone(&self.cluster), command, staged));
        let outcome = committing
            .await
            .map_err(|error| Error::Internal(format!("committing a compaction: {error}")))??;
        if outcome != Outcome::Done {
            tracing::info!(table = %table.full_name(), shard, "shard has changed while it was compacted");
            return Ok(None);
        }
        fault::point(Step::CompactionCommitted);
        Ok(Some(Compacted { table: table.full_name(), shard, before, after, bytes: compaction.bytes }))
    }
}

/// The same rows, more slowly while queries wait for their turn.
fn paced(rows: SendableRecordBatchStream, admission: Admission) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let state = (rows, admission, Instant::now());
    let paced = futures::stream::unfold(state, |(mut rows, admission, since)| async move {
        if admission.waiting() > 0 {
            tokio::time::sleep((since.elapsed() * REST_FACTOR).min(REST_MAX)).await;
        }
        let since = Instant::now();
        let batch = rows.next().await?;
        Some((batch, (rows, admission, since)))
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, paced))
}

/// Runs work on a thread of its own, so that it takes one core at most: where there
/// is one thread only, operators start no others. To drop the result ends it.
async fn on_own_thread<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let _stops_when_dropped = stop.drop_guard();
    let (sender, ended) = oneshot::channel();
    let run = move || {
        let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stopped.cancelled() => Err(Error::Cancelled("the compaction was given up".into())),
                    result = work => result,
                }
            }),
            Err(error) => Err(Error::io("cannot start a runtime to compact on", error)),
        };
        // Whoever waited may have gone.
        drop(sender.send(result));
    };
    std::thread::Builder::new()
        .name("shoal-compact".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|error| Error::io("cannot start a thread to compact on", error))?;
    ended.await.unwrap_or_else(|_| Err(Error::Internal("the thread that compacts panicked".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_on_a_thread_of_its_own_ends_when_it_is_dropped() {
        assert_eq!(on_own_thread(async { Ok(7) }).await.unwrap(), 7);
        let refused = on_own_thread::<()>(async { Err(Error::Invalid("no".into())) }).await;
        assert_eq!(refused.unwrap_err().to_string(), "no");
        let (alive, is_over) = oneshot::channel::<()>();
        let endless = on_own_thread(async move {
            let _alive = alive;
            std::future::pending::<()>().await;
            Ok(())
        });
        let given_up = tokio::time::timeout(Duration::from_millis(50), endless).await;
        assert!(given_up.is_err(), "it ended by itself");
        // Its end drops what it held.
        assert!(tokio::time::timeout(Duration::from_secs(20), is_over).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_panic_on_the_thread_is_an_error() {
        async fn panics() -> Result<(), Error> {
            panic!("on purpose")
        }
        let error = on_own_thread(panics()).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
