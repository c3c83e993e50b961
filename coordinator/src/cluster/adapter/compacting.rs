//! What is due to be compacted, and what is told of it. The work itself is the
//! engine's.

use std::time::Instant;

use super::Cluster;
use crate::cluster::compaction::{self, Compacted, Compaction, Rests};
use crate::cluster::events::EventKind;

impl Cluster {
    /// What should be compacted now; nothing where another coordinator leads.
    pub fn compactions_due(&self, rests: &Rests) -> Vec<Compaction> {
        if !self.catalog.is_leader() {
            return Vec::new();
        }
        let now = Instant::now();
        let (state, live) = (self.catalog.snapshot(), self.live());
        compaction::due(&state, &live, |table, shard| rests.is_resting(table, shard, now))
    }

    /// Tells what was compacted, a line for each table.
    pub fn tell_compacted(&self, done: &[Compacted]) {
        for line in compaction::told(done) {
            tracing::info!("compacted {line}");
            self.events.tell(EventKind::Compacted, None, line);
        }
    }
}
