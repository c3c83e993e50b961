//! What all parts of a run share, and how long it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::coordinators::Coordinators;
use super::log::Log;
use super::workers::Workers;
use crate::cluster::Cluster;

/// How often it is looked whether it is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Run {
    pub(super) cluster: Arc<Cluster>,
    pub(super) coordinators: Arc<Coordinators>,
    pub(super) workers: Workers,
    pub(super) log: Arc<Log>,
    until: Instant,
    is_over: AtomicBool,
}

impl Run {
    /// Begins a run that lasts so long.
    pub(super) fn begin(
        cluster: Arc<Cluster>,
        coordinators: Arc<Coordinators>,
        log: Arc<Log>,
        lasting: Duration,
    ) -> Self {
        let workers = Workers::of(&cluster);
        let until = Instant::now() + lasting;
        Self { cluster, coordinators, workers, log, until, is_over: AtomicBool::new(false) }
    }

    /// Whether anything more may happen to nodes.
    pub(super) fn goes_on(&self) -> bool {
        !self.is_over() && Instant::now() < self.until
    }

    /// Whether clients end: nothing happens to nodes any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Waits until something is so, and so long at most; false where the run
    /// ended first, or it never was.
    pub(super) fn wait_until(&self, limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while self.goes_on() {
            if is_so() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        false
    }
}
