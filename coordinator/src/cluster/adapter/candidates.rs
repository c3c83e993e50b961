//! Which workers can take shards, and how much room there is for them.

use std::collections::HashMap;
use std::sync::Arc;

use shoal_proto::WorkerId;

use super::Cluster;
use crate::catalog::State;
use crate::cluster::arriving::bytes_to_come;
use crate::cluster::disk::Disk;
use crate::cluster::membership::{LiveWorker, LiveWorkers};
use crate::cluster::placement::Candidate;

/// What disks are to get yet, and all that it follows from: before there is
/// anything, nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct ToCome {
    /// Of the catalog.
    version: u64,
    /// Of the live workers.
    generation: u64,
    bytes: Arc<HashMap<WorkerId, u64>>,
}

impl Cluster {
    /// The live workers that can take shards. Of what is free on their disks, what is
    /// placed there already and has still to come is taken: between two rounds of
    /// moves a disk says nothing else of it.
    pub(super) fn candidates(&self, live: &LiveWorkers, state: &State) -> Vec<Candidate> {
        candidates_of(live, state, &self.to_come(live, state))
    }

    /// [`bytes_to_come`], worked out once for as long as it is the same.
    fn to_come(&self, live: &LiveWorkers, state: &State) -> Arc<HashMap<WorkerId, u64>> {
        let (version, generation) = (state.version, live.generation);
        let known = self.to_come.lock().clone();
        if (known.version, known.generation) == (version, generation) {
            return known.bytes;
        }
        // Without the lock: nobody waits while a large catalog is looked at.
        let bytes = Arc::new(bytes_to_come(state, live));
        *self.to_come.lock() = ToCome { version, generation, bytes: Arc::clone(&bytes) };
        bytes
    }
}

/// The same with what is to come to each worker's disk.
pub(crate) fn candidates_of(
    live: &LiveWorkers,
    state: &State,
    to_come: &HashMap<WorkerId, u64>,
) -> Vec<Candidate> {
    let is_draining = |id: &WorkerId| state.worker(id).is_some_and(|known| known.is_draining);
    let stays = |worker: &&LiveWorker| !worker.wants_drain && !is_draining(&worker.id);
    let candidate = |worker: &LiveWorker| {
        let to_come = to_come.get(&worker.id).copied().unwrap_or_default();
        let free_bytes = worker.disk_free_bytes.saturating_sub(to_come);
        let disk = Disk { free_bytes, total_bytes: worker.disk_total_bytes };
        Candidate { id: worker.id.clone(), zone: worker.zone.clone(), disk }
    };
    live.workers.iter().filter(stays).map(candidate).collect()
}
