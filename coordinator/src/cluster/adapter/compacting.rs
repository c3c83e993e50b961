//! What is due to be compacted and may be, and what is told of it. The work itself
//! is the engine's.

use std::time::Instant;

use futures::future::join_all;
use shoal_data::{SegmentName, Table};

use super::Cluster;
use super::leading::ANSWER_MAX;
use crate::Error;
use crate::catalog::{Call, Coordinator, CoordinatorId, TableFacts};
use crate::cluster::compaction::{self, Compacted, Compaction, Leaving, Rests};
use crate::cluster::events::EventKind;
use crate::cluster::going::Needs;

impl Cluster {
    /// What should be compacted now; nothing where another coordinator leads.
    pub fn compactions_due(&self, rests: &Rests) -> Vec<Compaction> {
        if !self.catalog.is_leader() {
            return Vec::new();
        }
        let (state, live) = (self.catalog.snapshot(), self.live());
        compaction::due(&state, &live, &self.leaving(), rests, Instant::now())
    }

    /// What to compact of a shard because somebody asked; none where there is
    /// nothing, or no room.
    pub fn compaction_asked(&self, facts: &TableFacts, shard: u32) -> Option<Compaction> {
        compaction::asked(facts, shard, &self.live(), &self.leaving())
    }

    /// Looks whether the workers of a shard have room for what is made of `bytes`
    /// of it.
    ///
    /// # Errors
    /// `Unavailable` where too few are live; `Exhausted`, with the bytes.
    pub fn check_room(&self, table: &Table, shard: u32, bytes: u64) -> Result<(), Error> {
        compaction::check_room(table, shard, bytes, &self.live(), &self.leaving())
    }

    /// What no table has any more and is still on workers, as far as it is known
    /// here: the leader knows all of it.
    fn leaving(&self) -> Leaving {
        let mut leaving = self.pins.retired_bytes();
        for (worker, bytes) in self.core.lock().going.bytes() {
            *leaving.entry(worker).or_default() += bytes;
        }
        leaving
    }

    /// Looks whether all other coordinators can read what a compaction brings into
    /// the catalog. Those that do not answer count as they did before.
    ///
    /// # Errors
    /// `Unavailable`, with the one that cannot.
    pub async fn check_coordinators(&self) -> Result<(), Error> {
        let all = self.catalog.coordinators();
        let others: Vec<&Coordinator> = all.iter().filter(|it| !it.is_self).collect();
        let peers = &self.catalog.consensus().peers;
        let nothing: Vec<SegmentName> = Vec::new();
        let calls =
            others.iter().map(|it| peers.call((Some(it.id), &it.address), Call::Needs, &nothing, ANSWER_MAX));
        let said: Vec<Result<Needs, _>> = join_all(calls).await;
        let answers: Vec<(CoordinatorId, Option<u32>)> =
            others.iter().zip(said).map(|(it, said)| (it.id, said.ok().map(|needs| needs.reads))).collect();
        let older = self.core.lock().older.hear(&answers);
        match older {
            None => Ok(()),
            Some(older) => Err(Error::Unavailable(format!(
                "coordinator {older} is of an older version, which cannot read that segments were compacted: update it \
                 first, or ALTER CLUSTER REMOVE COORDINATOR {older}"
            ))),
        }
    }

    /// Tells what was compacted, a line for each table.
    pub fn tell_compacted(&self, done: &[Compacted]) {
        for line in compaction::told(done) {
            tracing::info!("compacted {line}");
            self.events.tell(EventKind::Compacted, None, line);
        }
    }

    /// Tells that segments are left alone for now.
    pub fn tell_deferred(&self, compaction: &Compaction, why: &Error) {
        let state = self.catalog.snapshot();
        let table = state.table_by_id(compaction.table);
        let table = table.map_or_else(|| format!("table {}", compaction.table), |table| table.full_name());
        let line = format!(
            "{table}, shard {}: {} segments of {} stay as they are, and are tried again later: {why}",
            compaction.shard,
            compaction.segments.len(),
            compaction::size(compaction.bytes)
        );
        self.events.tell(EventKind::Deferred, None, line);
    }
}
