//! What a worker is told that is to stop once nothing is left on it.

use shoal_proto::WorkerId;
use shoal_proto::cluster::Orders;

use super::{Cluster, Core, Protected};
use crate::cluster::given_up::{self, GivenUp};
use crate::cluster::moves;

impl Cluster {
    /// How far it is with a worker that asks to be drained. Only who leads knows:
    /// another one may be behind.
    pub(super) fn word_on_drain(&self, core: &Core, worker: &WorkerId) -> Orders {
        if !core.membership.wants_drain(worker) || !self.catalog.is_leader() {
            return Orders::default();
        }
        let state = self.catalog.snapshot();
        match core.given_up.get(worker) {
            // That was found out a while ago: a table or a write may have come since.
            Some(GivenUp::Drained) => {
                let is_needed = is_written_to(&core.protected, worker) || given_up::is_used(&state, worker);
                Orders { drained: !is_needed, ..Orders::default() }
            }
            Some(GivenUp::Draining) => {
                let (workers, leave) = (self.candidates(&self.live(), &state), core.given_up.leaving());
                let lacks = moves::lacking(&state, &workers, &leave, worker);
                Orders { drain_lacks: lacks.unwrap_or_default(), ..Orders::default() }
            }
            Some(GivenUp::Dead) | None => Orders::default(),
        }
    }
}

/// Whether a write of this coordinator goes to the worker.
pub(super) fn is_written_to(protected: &Protected, worker: &WorkerId) -> bool {
    protected.values().flat_map(|staged| staged.values()).flatten().any(|other| other == worker)
}
