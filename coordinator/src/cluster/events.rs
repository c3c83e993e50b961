//! What happened to the cluster lately, for people to read. Lives in memory: the
//! log has it all.

use std::collections::VecDeque;
use std::time::SystemTime;

use parking_lot::Mutex;
use shoal_proto::WorkerId;

/// Events that are kept; older ones go.
const EVENTS_MAX: usize = 1_000;

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// Of what kind.
    pub kind: EventKind,
    /// The worker that it is about, where it is about one.
    pub worker: Option<WorkerId>,
    /// What happened and why.
    pub message: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A worker joined, or is back.
    Joined,
    /// A worker stopped as it should.
    Left,
    /// A worker is not heard of any more.
    Lost,
    /// A worker was away for too long: its shards get other workers.
    Dead,
    /// All shards leave a worker.
    Draining,
    /// No shard is left on a worker that is drained.
    Drained,
    /// Shards get other workers.
    Moved,
    /// What had too few copies has them again, where they could be made.
    Repaired,
    /// Small segments became few.
    Compacted,
    /// Small segments could not become few: it is tried again later.
    Deferred,
}

impl EventKind {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Lost => "lost",
            Self::Dead => "dead",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Moved => "moved",
            Self::Repaired => "repaired",
            Self::Compacted => "compacted",
            Self::Deferred => "deferred",
        }
    }
}

/// The latest events.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<Event>>);

impl Events {
    /// Remembers what happened now.
    pub fn tell(&self, kind: EventKind, worker: Option<&WorkerId>, message: impl Into<String>) {
        let event = Event { at: SystemTime::now(), kind, worker: worker.cloned(), message: message.into() };
        let mut events = self.0.lock();
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// All that are kept, oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().iter().cloned().collect()
    }
}
