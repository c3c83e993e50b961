//! Which versions of the catalog queries still read, and which segments that
//! were dropped must stay until they are done.
//!
//! Knows nothing of workers. Lives in memory: after a restart no query reads
//! anything, and workers are told what to remove when they join.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_data::{Segment, SegmentName};

use crate::catalog::{Dropped, State};

/// The pins of one coordinator. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pins(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// How many read each version.
    pinned: BTreeMap<u64, usize>,
    /// What was dropped and may still be read.
    retired: HashMap<SegmentName, Dropped>,
}

impl Inner {
    /// A segment may be taken from one worker after the other.
    fn retire(&mut self, mut dropped: Dropped) {
        if let Some(before) = self.retired.remove(&dropped.segment.name()) {
            let segment = Arc::make_mut(&mut dropped.segment);
            let known = before.segment.replicas.iter().filter(|worker| !segment.replicas.contains(worker));
            let known: Vec<_> = known.cloned().collect();
            segment.replicas.extend(known);
        }
        self.retired.insert(dropped.segment.name(), dropped);
    }
}

/// Keeps one version readable until it is dropped.
#[derive(Debug)]
pub struct PinGuard {
    pins: Pins,
    version: u64,
}

impl PinGuard {
    /// The version.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// A state that stays readable as long as this lives.
#[derive(Debug)]
pub struct Pinned {
    state: Arc<State>,
    guard: PinGuard,
}

impl Pinned {
    /// The state.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The state, and the guard that must live as long as it is read.
    pub fn into_parts(self) -> (Arc<State>, PinGuard) {
        (self.state, self.guard)
    }
}

impl Deref for Pinned {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Pins {
    /// Pins a version. The caller must know that it is still readable, for
    /// example because it holds another pin on it; [`Self::pin_newest`] needs
    /// no such care.
    pub fn pin(&self, version: u64) -> PinGuard {
        *self.0.lock().pinned.entry(version).or_default() += 1;
        PinGuard { pins: self.clone(), version }
    }

    /// Pins what `newest` returns, with nothing collected in between.
    pub fn pin_newest(&self, newest: impl FnOnce() -> Arc<State>) -> Pinned {
        let mut inner = self.0.lock();
        let state = newest();
        *inner.pinned.entry(state.version).or_default() += 1;
        let guard = PinGuard { pins: self.clone(), version: state.version };
        Pinned { state, guard }
    }

    /// Takes note of what was dropped, without a look at whether it may go.
    pub fn note(&self, dropped: impl FnOnce() -> Vec<Dropped>) {
        let mut inner = self.0.lock();
        for dropped in dropped() {
            inner.retire(dropped);
        }
    }

    /// Takes what was dropped since the last call; returns the segments that
    /// no pin can read any more. Each is returned once.
    pub fn collect(&self, dropped: impl FnOnce() -> Vec<Dropped>) -> Vec<Dropped> {
        let mut inner = self.0.lock();
        for dropped in dropped() {
            inner.retire(dropped);
        }
        let oldest = inner.pinned.keys().next().copied().unwrap_or(u64::MAX);
        let free = inner.retired.extract_if(|_, dropped| oldest >= dropped.version);
        free.map(|(_, dropped)| dropped).collect()
    }

    /// The oldest version that is pinned.
    pub fn oldest(&self) -> Option<u64> {
        self.0.lock().pinned.keys().next().copied()
    }

    /// A dropped segment that some query may still read.
    pub fn retired(&self, name: &SegmentName) -> Option<Arc<Segment>> {
        self.0.lock().retired.get(name).map(|dropped| Arc::clone(&dropped.segment))
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        let mut inner = self.pins.0.lock();
        if let Some(count) = inner.pinned.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                inner.pinned.remove(&self.version);
            }
        }
    }
}

#[cfg(test)]
mod tests;
