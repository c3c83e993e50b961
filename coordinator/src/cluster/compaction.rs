//! Which segments of a shard should become one.
//!
//! Pure: from the catalog, who is alive and the time. The rule: as many of the
//! smallest segments as fit, if none of them has more rows than all others
//! together. Each time that a row is written anew it is then in a segment of at
//! least twice as many rows, and a shard keeps few more small segments than the
//! number of its rows has binary digits.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_data::{Segment, Table};
use shoal_proto::{SegmentId, TableId};

use super::membership::LiveWorkers;
use super::repair::has;
use crate::catalog::{State, TableFacts};

/// What is read for one segment, and about what it may become.
pub const TARGET_BYTES: u64 = 128 << 20;
/// A segment of so many bytes is large enough to stay as it is.
const LARGE_BYTES: u64 = TARGET_BYTES / 2;
/// Fewer small segments of a shard are left alone.
const SEGMENTS_MIN: usize = 8;
/// Segments that are read at once.
const INPUTS_MAX: usize = 100;
/// A worker keeps free so many times what it is to get: old and new segments are
/// there together for a while.
const DISK_FREE_FACTOR: u64 = 4;
/// How long a shard is left alone after its compaction failed, at first and at
/// most.
const REST: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3_600));

/// Segments of one shard that should become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// The table.
    pub table: TableId,
    /// Its shard.
    pub shard: u32,
    /// In the order in which the table has them.
    pub segments: Vec<SegmentId>,
    /// Of one copy of them.
    pub bytes: u64,
}

impl Compaction {
    fn of(facts: &TableFacts, shard: u32, chosen: &[&Arc<Segment>]) -> Self {
        let is_chosen = |segment: &&Arc<Segment>| chosen.iter().any(|it| it.id == segment.id);
        let segments = facts.of_shard(shard).filter(is_chosen).map(|segment| segment.id);
        let bytes = chosen.iter().map(|segment| segment.bytes).sum();
        Self { table: facts.table().id, shard, segments: segments.collect(), bytes }
    }

    /// Its table and its segments as a snapshot has them; none where one of them
    /// is gone.
    pub fn found(&self, state: &State) -> Option<(Arc<Table>, Vec<Arc<Segment>>)> {
        let table = state.table_by_id(self.table)?;
        let is_named = |segment: &&Arc<Segment>| self.segments.contains(&segment.id);
        let facts = state.facts(table);
        let segments: Vec<_> = facts.of_shard(self.shard).filter(is_named).cloned().collect();
        (segments.len() == self.segments.len()).then(|| (Arc::clone(table), segments))
    }
}

/// What should be compacted now: at most one compaction for each shard, those of
/// fewest bytes first, so that many small ones do not wait for a large one.
/// `is_resting` leaves shards out.
pub fn due(state: &State, live: &LiveWorkers, is_resting: impl Fn(TableId, u32) -> bool) -> Vec<Compaction> {
    let mut due = Vec::new();
    for table in state.tables().filter(|table| table.segments.len() >= SEGMENTS_MIN) {
        let mut shards: BTreeMap<u32, Vec<&Arc<Segment>>> = BTreeMap::new();
        for segment in table.segments.iter().filter(|segment| segment.bytes < LARGE_BYTES) {
            shards.entry(segment.shard).or_default().push(segment);
        }
        for (shard, mut small) in shards {
            if small.len() < SEGMENTS_MIN || is_resting(table.id, shard) {
                continue;
            }
            small.retain(|segment| is_settled(table, segment, live));
            let chosen = worth_it(&mut small);
            if !chosen.is_empty() && has_room(table, shard, chosen, live) {
                due.push(Compaction::of(&state.facts(table), shard, chosen));
            }
        }
    }
    due.sort_by_key(|compaction| compaction.bytes);
    due
}

/// What to compact of a shard because somebody asked: as many small segments as
/// fit; none where there are not two.
pub fn asked(facts: &TableFacts, shard: u32, live: &LiveWorkers) -> Option<Compaction> {
    let table = facts.table();
    let mut small: Vec<_> = small_of(facts, shard).collect();
    small.retain(|segment| is_settled(table, segment, live));
    small.sort_by_key(|segment| (segment.bytes, segment.id));
    let fitting = fitting(&small);
    let chosen = &small[..fitting];
    (fitting >= 2 && has_room(table, shard, chosen, live)).then(|| Compaction::of(facts, shard, chosen))
}

/// Shards that have small segments left although there is more than one.
pub fn left(facts: &TableFacts) -> usize {
    let shards = 0..facts.table().layout.shards;
    shards.filter(|&shard| small_of(facts, shard).nth(1).is_some()).count()
}

fn small_of(facts: &TableFacts, shard: u32) -> impl Iterator<Item = &Arc<Segment>> {
    facts.of_shard(shard).filter(|segment| segment.bytes < LARGE_BYTES)
}

/// How many of the first segments fit together.
fn fitting(segments: &[&Arc<Segment>]) -> usize {
    let mut bytes = 0;
    let fits = |segment: &&&Arc<Segment>| {
        bytes += segment.bytes;
        bytes <= TARGET_BYTES
    };
    segments.iter().take(INPUTS_MAX).take_while(fits).count()
}

/// Those of a shard's small segments that are worth the work; none where there
/// are too few, or one would be written anew for little.
fn worth_it<'a, 'b>(small: &'a mut [&'b Arc<Segment>]) -> &'a [&'b Arc<Segment>] {
    if small.len() < SEGMENTS_MIN {
        return &[];
    }
    small.sort_by_key(|segment| (segment.rows, segment.bytes, segment.id));
    let (mut rows, mut bytes, mut best) = (0, 0, 0);
    for (index, segment) in small[..fitting(small)].iter().enumerate() {
        let count = index + 1;
        bytes += segment.bytes;
        let is_enough = count >= SEGMENTS_MIN || (count >= 2 && bytes >= LARGE_BYTES);
        if is_enough && segment.rows <= rows {
            best = count;
        }
        rows += segment.rows;
    }
    &small[..best]
}

/// Whether all copies of a segment are where they should be, and can be read:
/// otherwise it is about to be moved or copied.
fn is_settled(table: &Table, segment: &Segment, live: &LiveWorkers) -> bool {
    segment.replicas.iter().all(|id| {
        table.should_hold(segment.shard, id) && live.get(id).is_some_and(|worker| has(segment, worker))
    })
}

/// Whether most workers of the shard are live, and those have room for it.
fn has_room(table: &Table, shard: u32, chosen: &[&Arc<Segment>], live: &LiveWorkers) -> bool {
    let placed = table.placement.get(shard as usize).map(Vec::as_slice).unwrap_or_default();
    let bytes: u64 = chosen.iter().map(|segment| segment.bytes).sum();
    let there: Vec<_> = placed.iter().filter_map(|id| live.get(id)).collect();
    2 * there.len() > placed.len()
        && there.iter().all(|worker| worker.disk_free_bytes >= bytes.saturating_mul(DISK_FREE_FACTOR))
}

/// Shards whose compaction failed.
#[derive(Debug, Default)]
pub struct Rests(HashMap<(TableId, u32), Rest>);

#[derive(Debug)]
struct Rest {
    until: Instant,
    length: Duration,
}

impl Rests {
    /// A compaction of this shard failed: it is left alone, twice as long as the
    /// last time.
    pub fn failed(&mut self, table: TableId, shard: u32, now: Instant) {
        let (first, longest) = REST;
        self.0.retain(|_, rest| now < rest.until + longest);
        let before = self.0.get(&(table, shard));
        let length = before.map_or(first, |rest| (rest.length * 2).min(longest));
        self.0.insert((table, shard), Rest { until: now + length, length });
    }

    /// A compaction of this shard is done.
    pub fn done(&mut self, table: TableId, shard: u32) {
        self.0.remove(&(table, shard));
    }

    /// Whether the shard is left alone.
    pub fn is_resting(&self, table: TableId, shard: u32, now: Instant) -> bool {
        self.0.get(&(table, shard)).is_some_and(|rest| now < rest.until)
    }
}

/// A compaction that is done, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The table, with its schema.
    pub table: String,
    /// Its shard.
    pub shard: u32,
    /// Segments that there were.
    pub before: usize,
    /// Segments that there are in their place.
    pub after: usize,
    /// Of one copy of those that there were.
    pub bytes: u64,
}

impl fmt::Display for Compacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, shard, before, after, bytes } = self;
        write!(f, "{table}, shard {shard}: {before} segments of {} into {after}", size(*bytes))
    }
}

/// A line for each table.
pub fn told(done: &[Compacted]) -> Vec<String> {
    let mut tables: BTreeMap<&str, Vec<&Compacted>> = BTreeMap::new();
    for compacted in done {
        tables.entry(&compacted.table).or_default().push(compacted);
    }
    let lines = tables.into_iter().map(|(table, done)| match done.as_slice() {
        [only] => only.to_string(),
        several => {
            let sum = |get: fn(&Compacted) -> usize| several.iter().map(|it| get(it)).sum::<usize>();
            let bytes: u64 = several.iter().map(|compacted| compacted.bytes).sum();
            format!(
                "{table}, {} times: {} segments of {} into {}",
                several.len(),
                sum(|compacted| compacted.before),
                size(bytes),
                sum(|compacted| compacted.after)
            )
        }
    });
    lines.collect()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests;
