//! Who is alive, by what was heard from whom and when.
//!
//! Pure: every decision is given `now`. A worker counts from the first beat on
//! a healthy stream until its stream breaks, or it is silent for
//! [`SILENCE_MAX`], or somebody suspects it; then it must join anew, or, when
//! only suspected, beat again. One that joins again does not beat until it is
//! answered: meanwhile its silence says nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_data::SegmentName;
use shoal_proto::WorkerId;

/// How often a worker beats.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(250);
/// Silence after which a worker is lost: six beats. It is noticed at the next
/// check, so within two seconds in all.
pub const SILENCE_MAX: Duration = Duration::from_millis(1_500);
/// How long a worker that joins again may be silent before it is answered: after
/// that it has given up by itself, and its stream has ended.
pub const ASKING_MAX: Duration = Duration::from_secs(5);
/// A gap between two checks that says that this process itself stood still.
const STALL_MIN: Duration = Duration::from_millis(500);

/// The live workers at one moment; never changes.
#[derive(Clone, Debug, Default)]
pub struct LiveWorkers {
    /// Another one wherever something changed that decisions about shards rest
    /// on: who is live, where, and what it lacks. What beats say of load is not.
    pub generation: u64,
    /// Sorted by id.
    pub workers: Vec<LiveWorker>,
    /// Those to which an RPC failed, and that are live again with their next
    /// beat, by id.
    pub suspected: Vec<LiveWorker>,
    /// Those that are stopping: they get no new work, and end what they have.
    pub leaving: BTreeSet<WorkerId>,
}

impl LiveWorkers {
    /// The worker, if it is alive.
    pub fn get(&self, id: &WorkerId) -> Option<&LiveWorker> {
        let index = self.workers.binary_search_by(|worker| worker.id.cmp(id)).ok()?;
        self.workers.get(index)
    }

    /// Whether nothing more comes from the worker: it is not alive, not only
    /// suspected, and not about to end what it has.
    pub fn is_lost(&self, id: &WorkerId) -> bool {
        self.get(id).is_none() && !self.is_suspected(id) && !self.leaving.contains(id)
    }

    /// Whether the worker is only suspected.
    pub fn is_suspected(&self, id: &WorkerId) -> bool {
        self.suspected.iter().any(|worker| worker.id == *id)
    }
}

/// One worker that is alive.
#[derive(Clone, Debug)]
pub struct LiveWorker {
    /// Stable over restarts.
    pub id: WorkerId,
    /// URL at which it is reached.
    pub address: String,
    /// May be empty.
    pub zone: String,
    /// Threads on which it runs tasks.
    pub threads: u32,
    /// Limit of its query memory.
    pub memory_bytes: u64,
    /// Query memory in use.
    pub memory_used_bytes: u64,
    /// Tasks that it runs.
    pub tasks_running: u32,
    /// Free space on its disk.
    pub disk_free_bytes: u64,
    /// The size of its disk; 0 where it is not known.
    pub disk_total_bytes: u64,
    /// Bytes of its segments.
    pub disk_used_bytes: u64,
    /// Bytes that came to it from other zones since its start.
    pub cross_zone_bytes: u64,
    /// Rows that became segments there since its start.
    pub rows_loaded: u64,
    /// It asks that its shards go to others: it is to stop then.
    pub wants_drain: bool,
    /// Since when it is known, without a break.
    pub joined_at: Instant,
    /// The segments that it really has.
    pub holds: Arc<Holds>,
}

#[cfg(test)]
impl LiveWorker {
    /// An idle worker of this name that has all that the catalog says.
    pub(crate) fn named(id: impl Into<WorkerId>) -> Self {
        let id = id.into();
        Self {
            address: format!("http://{id}"),
            id,
            zone: String::new(),
            threads: 1,
            memory_bytes: 0,
            memory_used_bytes: 0,
            tasks_running: 0,
            disk_free_bytes: 0,
            disk_total_bytes: 0,
            disk_used_bytes: 0,
            cross_zone_bytes: 0,
            rows_loaded: 0,
            wants_drain: false,
            joined_at: Instant::now(),
            holds: Arc::default(),
        }
    }
}

/// What a worker holds, given that the catalog names it as a replica: all of
/// that but what it said, when it joined, that it does not have.
///
/// Kept as what is missing: nearly always nothing, and a committed write needs
/// no message to be counted.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    lacks: HashSet<SegmentName>,
}

impl Holds {
    /// Everything but these.
    pub fn all_but(lacks: HashSet<SegmentName>) -> Self {
        Self { lacks }
    }

    /// What it does not have.
    pub fn lacks(&self) -> impl Iterator<Item = &SegmentName> {
        self.lacks.iter()
    }

    /// Whether the worker has the segment, if the catalog counts it among the
    /// segment's replicas.
    pub fn contains(&self, name: &SegmentName) -> bool {
        !self.lacks.contains(name)
    }
}

/// What a worker says of itself when it joins.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Stable over restarts.
    pub id: WorkerId,
    /// New at each process start.
    pub incarnation: String,
    /// The id of the disk on which it keeps what it has; empty: not known.
    pub disk: String,
    /// URL at which it is reached.
    pub address: String,
    /// May be empty.
    pub zone: String,
    /// Threads on which it runs tasks.
    pub threads: u32,
    /// Limit of its query memory.
    pub memory_bytes: u64,
    /// It asks that its shards go to others.
    pub wants_drain: bool,
    /// What it lacks of what the catalog says it holds.
    pub lacks: HashSet<SegmentName>,
}

/// What a beat says.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    /// Query memory in use.
    pub memory_used_bytes: u64,
    /// Tasks that it runs.
    pub tasks_running: u32,
    /// Free space on its disk.
    pub disk_free_bytes: u64,
    /// The size of its disk; 0 where it is not known.
    pub disk_total_bytes: u64,
    /// Bytes of its segments.
    pub disk_used_bytes: u64,
    /// Bytes that came to it from other zones since its start.
    pub cross_zone_bytes: u64,
    /// Rows that became segments there since its start.
    pub rows_loaded: u64,
    /// It is stopping: no new work.
    pub leaving: bool,
    /// It asks that its shards go to others.
    pub wants_drain: bool,
}

/// What becomes of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The worker is alive, as before.
    Same,
    /// The worker is alive again, is leaving, or asks that its shards go to
    /// others: what it can be given has changed.
    Changed,
    /// Nobody joined like that: the worker must join anew.
    Unknown,
}

/// Number of one heartbeat stream; a worker's newer stream has a higher one.
pub type StreamNumber = u64;

#[derive(Debug)]
struct Member {
    worker: LiveWorker,
    incarnation: String,
    disk: String,
    heard_at: Instant,
    /// Until then it may be waiting for the answer to another join.
    asks_until: Option<Instant>,
    /// The stream on which it beats; none before its first beat.
    stream: Option<StreamNumber>,
    trust: Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// It beats.
    Live,
    /// It joined and has not beaten yet, or an RPC to it failed.
    Waiting,
    /// It is stopping.
    Leaving,
}

/// All members, live or about to be.
#[derive(Debug, Default)]
pub struct Membership {
    generation: u64,
    members: BTreeMap<WorkerId, Member>,
    checked_at: Option<Instant>,
}

impl Membership {
    /// Takes a worker in, in place of what was known of it. It is live from
    /// its first beat on.
    pub fn join(&mut self, now: Instant, joining: Joining) {
        let worker = LiveWorker {
            id: joining.id.clone(),
            address: joining.address,
            zone: joining.zone,
            threads: joining.threads,
            memory_bytes: joining.memory_bytes,
            memory_used_bytes: 0,
            tasks_running: 0,
            disk_free_bytes: 0,
            disk_total_bytes: 0,
            disk_used_bytes: 0,
            cross_zone_bytes: 0,
            rows_loaded: 0,
            wants_drain: joining.wants_drain,
            joined_at: now,
            holds: Arc::new(Holds::all_but(joining.lacks)),
        };
        let (incarnation, disk) = (joining.incarnation, joining.disk);
        let member = Member {
            worker,
            incarnation,
            disk,
            heard_at: now,
            asks_until: None,
            stream: None,
            trust: Trust::Waiting,
        };
        self.members.insert(joining.id, member);
        self.generation += 1;
    }

    /// A member joins again: where many do so at once it may have to wait. It is not
    /// silent until [`Membership::join`], for [`ASKING_MAX`] at most.
    pub fn asks_to_join(&mut self, now: Instant, id: &WorkerId, incarnation: &str) {
        let member = self.members.get_mut(id).filter(|member| member.incarnation == incarnation);
        if let Some(member) = member {
            member.asks_until = Some(now + ASKING_MAX);
        }
    }

    /// The address of another live process that has this worker's name.
    pub fn rival(&self, id: &WorkerId, incarnation: &str, address: &str) -> Option<String> {
        let member = self.members.get(id)?;
        let is_other = member.incarnation != incarnation && member.worker.address != address;
        (is_other && member.trust != Trust::Waiting).then(|| member.worker.address.clone())
    }

    /// Takes a beat that came on `stream`.
    pub fn beat(
        &mut self,
        now: Instant,
        id: &WorkerId,
        incarnation: &str,
        stream: StreamNumber,
        vitals: &Vitals,
    ) -> Heard {
        let Some(member) = self.members.get_mut(id) else {
            return Heard::Unknown;
        };
        // An old process, or an old stream, says nothing about the new one.
        if member.incarnation != incarnation || member.stream.is_some_and(|newest| newest > stream) {
            return Heard::Unknown;
        }
        member.stream = Some(stream);
        member.heard_at = now;
        let worker = &mut member.worker;
        worker.memory_used_bytes = vitals.memory_used_bytes;
        worker.tasks_running = vitals.tasks_running;
        worker.disk_free_bytes = vitals.disk_free_bytes;
        worker.disk_total_bytes = vitals.disk_total_bytes;
        worker.disk_used_bytes = vitals.disk_used_bytes;
        worker.cross_zone_bytes = vitals.cross_zone_bytes;
        worker.rows_loaded = vitals.rows_loaded;
        let trust = if vitals.leaving { Trust::Leaving } else { Trust::Live };
        let changed = member.trust != trust || worker.wants_drain != vitals.wants_drain;
        worker.wants_drain = vitals.wants_drain;
        member.trust = trust;
        self.generation += u64::from(changed);
        if changed { Heard::Changed } else { Heard::Same }
    }

    /// Whether this is the stream on which the worker beats.
    pub fn beats_on(&self, id: &WorkerId, stream: StreamNumber) -> bool {
        self.members.get(id).is_some_and(|member| member.stream == Some(stream))
    }

    /// The stream broke: the worker is lost at once, unless it has a newer
    /// stream. Whether it was lost by this.
    pub fn disconnected(&mut self, id: &WorkerId, stream: StreamNumber) -> bool {
        let current = self.beats_on(id, stream);
        if current {
            self.members.remove(id);
            self.generation += 1;
        }
        current
    }

    /// Those that were silent for too long; each is named once. When this
    /// process itself stood still, nobody is blamed for that time.
    pub fn expire(&mut self, now: Instant) -> Vec<WorkerId> {
        let gap = self.checked_at.map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        self.checked_at = Some(now);
        if gap >= STALL_MIN {
            for member in self.members.values_mut() {
                member.heard_at += gap.min(now.saturating_duration_since(member.heard_at));
            }
        }
        let silent = |member: &Member| {
            now.saturating_duration_since(member.heard_at) >= SILENCE_MAX
                && member.asks_until.is_none_or(|until| now >= until)
        };
        let expired: Vec<_> =
            self.members.iter().filter(|(_, member)| silent(member)).map(|(id, _)| id.clone()).collect();
        for id in &expired {
            self.members.remove(id);
            self.generation += 1;
        }
        expired
    }

    /// An RPC to the worker failed: it is not live until it beats again.
    /// Whether it was live.
    pub fn suspect(&mut self, id: &WorkerId) -> bool {
        let live = self.members.get_mut(id).filter(|member| member.trust == Trust::Live);
        let was_live = live.map(|member| member.trust = Trust::Waiting).is_some();
        self.generation += u64::from(was_live);
        was_live
    }

    /// The worker has the segment now.
    pub fn gained(&mut self, id: &WorkerId, name: &SegmentName) {
        if let Some(member) = self.members.get_mut(id)
            && !member.worker.holds.contains(name)
        {
            Arc::make_mut(&mut member.worker.holds).lacks.remove(name);
            self.generation += 1;
        }
    }

    /// All members, live or not.
    pub fn members(&self) -> impl Iterator<Item = &WorkerId> {
        self.members.keys()
    }

    /// Whether the worker is a member, live or not.
    pub fn is_member(&self, id: &WorkerId) -> bool {
        self.members.contains_key(id)
    }

    /// The id of the disk on which the worker keeps what it has, if it is a member;
    /// empty where it is not known.
    pub fn disk(&self, id: &WorkerId) -> Option<&str> {
        self.members.get(id).map(|member| member.disk.as_str())
    }

    /// Whether the worker said that it is stopping.
    pub fn is_leaving(&self, id: &WorkerId) -> bool {
        self.members.get(id).is_some_and(|member| member.trust == Trust::Leaving)
    }

    /// Whether the worker is a member and asks that its shards go to others.
    pub fn wants_drain(&self, id: &WorkerId) -> bool {
        self.members.get(id).is_some_and(|member| member.worker.wants_drain)
    }

    /// Those that can be given work, sorted by id.
    pub fn live(&self) -> LiveWorkers {
        let with = |trust: Trust| self.members.values().filter(move |member| member.trust == trust);
        let worker = |member: &Member| member.worker.clone();
        // One that joined and has not beaten yet was not lost either.
        LiveWorkers {
            generation: self.generation,
            workers: with(Trust::Live).map(worker).collect(),
            suspected: with(Trust::Waiting).map(worker).collect(),
            leaving: with(Trust::Leaving).map(|member| member.worker.id.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
