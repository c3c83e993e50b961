//! Plans that ran whole on one worker, kept for when the same query is asked again: what
//! is planned of a small query anew takes about as long as the rest of it.
//!
//! Such a plan is of one logical plan without parameters, which is optimised already and is
//! of one version of the catalog: it names the same segments whenever it is run, and each
//! worker can run it. Which one does is chosen each time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use shoal_proto::exchange::QueryOptions;
use shoal_proto::{Channels, TableId};

use super::WholePlanExec;
use crate::query::leaves::shards_of;
use crate::query::view::View;

/// What is longer, encoded, is not small.
const ENCODED_BYTES_MAX: usize = 64 << 10;

/// Where the plan of one query is kept. It holds nothing before it is opened, nor once it is
/// closed: whoever opens them says how many there are.
#[derive(Debug, Default)]
pub(crate) struct KeptWhole(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_open: bool,
    kept: Option<Arc<Kept>>,
}

/// All that a plan was made for, beside its query: in another world another one may be
/// better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    workers: usize,
    task_bytes: u64,
    least_memory_bytes: Option<u64>,
    memory_limit_bytes: u64,
    /// Whether it may have to survive the loss of a worker.
    failover: bool,
}

#[derive(Debug)]
struct Kept {
    world: World,
    plan: Arc<dyn ExecutionPlan>,
    encoded: Bytes,
    shards: BTreeMap<(TableId, u32), u64>,
    can_merge: bool,
    at_once: bool,
}

impl World {
    pub(crate) fn of(view: &View, task_bytes: u64, query: &QueryOptions, failover: bool) -> Self {
        Self {
            workers: view.workers().len(),
            task_bytes,
            least_memory_bytes: view.least_memory_bytes(),
            memory_limit_bytes: query.memory_limit_bytes,
            failover,
        }
    }
}

impl KeptWhole {
    /// Lets it keep a plan.
    pub(crate) fn open(&self) {
        self.0.lock().is_open = true;
    }

    /// Forgets it for good.
    pub(crate) fn close(&self) {
        *self.0.lock() = State::default();
    }

    /// The plan for this world, to be run by the worker that has most of what it reads; and
    /// whether it has hash joins that could be merges. None where there is no such plan.
    pub(crate) fn find(
        &self,
        world: &World,
        view: &View,
        query: &QueryOptions,
        channels: &Channels,
    ) -> Option<(Arc<dyn ExecutionPlan>, bool)> {
        let kept = self.0.lock().kept.clone().filter(|kept| kept.world == *world)?;
        let url = view.assign_whole(&kept.shards).url.clone();
        let (plan, encoded) = (Arc::clone(&kept.plan), kept.encoded.clone());
        let plan = WholePlanExec::new(plan, encoded, url, query.clone(), channels.clone(), false);
        let plan = if kept.at_once { plan.at_once() } else { plan };
        Some((Arc::new(plan), kept.can_merge))
    }

    /// Keeps a plan that was made in this world, where it is one that runs whole.
    ///
    /// # Errors
    /// None in practice; those of walking a plan.
    pub(crate) fn keep(&self, world: World, plan: &Arc<dyn ExecutionPlan>, can_merge: bool) -> Result<()> {
        let Some(whole) = plan.downcast_ref::<WholePlanExec>() else { return Ok(()) };
        if whole.encoded.len() > ENCODED_BYTES_MAX || !self.0.lock().is_open {
            return Ok(());
        }
        let (plan, encoded) = (Arc::clone(whole.plan()), whole.encoded.clone());
        let (shards, at_once) = (shards_of(&plan)?, whole.at_once);
        let kept = Kept { world, shards, plan, encoded, can_merge, at_once };
        let mut state = self.0.lock();
        if state.is_open {
            state.kept = Some(Arc::new(kept));
        }
        Ok(())
    }

    /// Whether it may keep one.
    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().is_open
    }

    /// Whether there is one.
    #[cfg(test)]
    pub(crate) fn is_kept(&self) -> bool {
        self.0.lock().kept.is_some()
    }
}
