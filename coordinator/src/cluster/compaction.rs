//! Which segments of a shard should become one.
//!
//! Pure: from the catalog, who is alive and the time. The rule: as many of the
//! smallest segments as fit, if none of them has more rows than all others
//! together; where those will not do, as many of the smallest but one, and so
//! on. Each time that a row is written anew it is then in a segment of at
//! least twice as many rows, and a shard keeps few more small segments than the
//! number of its rows has binary digits.

mod rests;
mod room;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::{DataType, Schema};
use shoal_data::{Segment, Table};
use shoal_proto::{SegmentId, TableId};

use super::membership::LiveWorkers;
use super::repair::has;
use crate::Error;
use crate::catalog::{State, TableFacts};

pub use rests::Rests;
pub use room::{Leaving, check_room};

/// What is read for one segment, and about what it may become.
pub const TARGET_BYTES: u64 = 128 << 20;
/// What is decoded for one segment, as far as the catalog tells.
const DECODED_BYTES: u64 = 1 << 30;
/// A segment of so many bytes is large enough to stay as it is.
const LARGE_BYTES: u64 = TARGET_BYTES / 2;
/// So is one that is so large when it is decoded.
const LARGE_DECODED_BYTES: u64 = DECODED_BYTES / 2;
/// Fewer small segments of a shard are left alone.
const SEGMENTS_MIN: usize = 8;
/// Segments that are read at once: of each, pages of all columns are in memory.
const INPUTS_MAX: usize = 16;
/// So many shards are named that stay as they are.
const REFUSED_NAMED_MAX: usize = 32;
/// A text or a list in memory, without what is in it.
const REFERENCE_BYTES: u64 = 16;

/// How much work segments are.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Of their files.
    stored_bytes: u64,
    /// Of their rows in memory, about: how well text compresses is not known.
    decoded_bytes: u64,
}

impl Load {
    /// Of a segment whose rows take `row_bytes` each.
    fn of(row_bytes: u64, segment: &Segment) -> Self {
        let decoded_bytes = segment.rows.saturating_mul(row_bytes).saturating_add(segment.bytes);
        Self { stored_bytes: segment.bytes, decoded_bytes }
    }

    fn and(self, other: Self) -> Self {
        Self {
            stored_bytes: self.stored_bytes.saturating_add(other.stored_bytes),
            decoded_bytes: self.decoded_bytes.saturating_add(other.decoded_bytes),
        }
    }

    fn fits(self) -> bool {
        self.stored_bytes <= TARGET_BYTES && self.decoded_bytes <= DECODED_BYTES
    }

    fn is_large(self) -> bool {
        self.stored_bytes >= LARGE_BYTES || self.decoded_bytes >= LARGE_DECODED_BYTES
    }
}

/// Bytes of a row in memory, without its text and lists.
fn row_bytes(columns: &Schema) -> u64 {
    columns.fields().iter().map(|field| value_bytes(field.data_type())).sum()
}

fn value_bytes(data_type: &DataType) -> u64 {
    match data_type {
        DataType::Boolean | DataType::Null => 1,
        DataType::FixedSizeBinary(length) => u64::from(length.unsigned_abs()),
        DataType::FixedSizeList(item, length) => {
            u64::from(length.unsigned_abs()).saturating_mul(value_bytes(item.data_type()))
        }
        DataType::Struct(fields) => fields.iter().map(|field| value_bytes(field.data_type())).sum(),
        other => other.primitive_width().map_or(REFERENCE_BYTES, |width| width as u64),
    }
}

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
pub fn due(
    state: &State,
    live: &LiveWorkers,
    leaving: &Leaving,
    rests: &Rests,
    now: Instant,
) -> Vec<Compaction> {
    let mut due = Vec::new();
    for table in state.tables().filter(|table| table.segments.len() >= SEGMENTS_MIN) {
        let row_bytes = row_bytes(&table.columns);
        let mut shards: BTreeMap<u32, Vec<&Arc<Segment>>> = BTreeMap::new();
        for segment in table.segments.iter().filter(|segment| !Load::of(row_bytes, segment).is_large()) {
            shards.entry(segment.shard).or_default().push(segment);
        }
        for (shard, mut small) in shards {
            if small.len() < SEGMENTS_MIN || rests.is_resting(table.id, shard, now) {
                continue;
            }
            small.retain(|segment| is_settled(table, segment, live) && !rests.has_failed(segment.id, now));
            let chosen = worth_it(row_bytes, &mut small);
            if chosen.is_empty() {
                continue;
            }
            let compaction = Compaction::of(&state.facts(table), shard, chosen);
            if check_room(table, shard, compaction.bytes, live, leaving).is_ok() {
                due.push(compaction);
            }
        }
    }
    due.sort_by_key(|compaction| compaction.bytes);
    due
}

/// What to compact of a shard because somebody asked: as many small segments as
/// fit; none where there are not two.
pub fn asked(facts: &TableFacts, shard: u32, live: &LiveWorkers, leaving: &Leaving) -> Option<Compaction> {
    let table = facts.table();
    let row_bytes = row_bytes(&table.columns);
    let mut small: Vec<_> = small_of(facts, shard).collect();
    small.retain(|segment| is_settled(table, segment, live));
    small.sort_by_key(|segment| (segment.bytes, segment.id));
    let fitting = fitting(row_bytes, &small);
    if fitting < 2 {
        return None;
    }
    let compaction = Compaction::of(facts, shard, &small[..fitting]);
    check_room(table, shard, compaction.bytes, live, leaving).is_ok().then_some(compaction)
}

/// What is said of shards that have small segments left, after all of them were looked
/// at or not all; none where there are no such shards.
pub fn told_left(table: &str, shards: u32, left: usize, is_whole: bool) -> Option<String> {
    let why = match is_whole {
        true => {
            ": workers that hold them are away or have little room, their copies move or are still to be made, or \
             they were written meanwhile; try again later"
        }
        false => "",
    };
    (left > 0).then(|| format!("{left} of {shards} shards of {table} have small segments left{why}"))
}

/// Shards that have small segments left although there is more than one.
pub fn left(facts: &TableFacts) -> usize {
    let shards = 0..facts.table().layout.shards;
    shards.filter(|&shard| small_of(facts, shard).nth(1).is_some()).count()
}

fn small_of(facts: &TableFacts, shard: u32) -> impl Iterator<Item = &Arc<Segment>> {
    let row_bytes = row_bytes(&facts.table().columns);
    facts.of_shard(shard).filter(move |segment| !Load::of(row_bytes, segment).is_large())
}

/// How many of the first segments fit together.
fn fitting(row_bytes: u64, segments: &[&Arc<Segment>]) -> usize {
    let mut load = Load::default();
    let fits = |segment: &&&Arc<Segment>| {
        load = load.and(Load::of(row_bytes, segment));
        load.fits()
    };
    segments.iter().take(INPUTS_MAX).take_while(fits).count()
}

/// Those of a shard's small segments that are worth the work; none where there
/// are too few, or one would be written anew for little.
fn worth_it<'a, 'b>(row_bytes: u64, small: &'a mut [&'b Arc<Segment>]) -> &'a [&'b Arc<Segment>] {
    if small.len() < SEGMENTS_MIN {
        return &[];
    }
    small.sort_by_key(|segment| (segment.rows, segment.bytes, segment.id));
    let small: &'a [&'b Arc<Segment>] = small;
    let from = move |first: usize| {
        let small = &small[first..];
        &small[..worth_it_of_first(row_bytes, small)]
    };
    (0..small.len()).map(from).find(|chosen| !chosen.is_empty()).unwrap_or_default()
}

/// How many of the first segments are worth the work, at most.
fn worth_it_of_first(row_bytes: u64, small: &[&Arc<Segment>]) -> usize {
    let (mut rows, mut load, mut best) = (0, Load::default(), 0);
    for (index, segment) in small[..fitting(row_bytes, small)].iter().enumerate() {
        let count = index + 1;
        load = load.and(Load::of(row_bytes, segment));
        let is_enough = count >= SEGMENTS_MIN || (count >= 2 && load.is_large());
        if is_enough && segment.rows <= rows {
            best = count;
        }
        rows += segment.rows;
    }
    best
}

/// Whether all copies of a segment are where they should be, and can be read:
/// otherwise it is about to be moved or copied.
fn is_settled(table: &Table, segment: &Segment, live: &LiveWorkers) -> bool {
    segment.replicas.iter().all(|id| {
        table.should_hold(segment.shard, id) && live.get(id).is_some_and(|worker| has(segment, worker))
    })
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

/// What is said of shards that were to be compacted and stay as they are, each with
/// why, after all were looked at or not all; none where there are none.
pub fn refused(table: &str, shards: u32, mut refused: Vec<(u32, Error)>, is_whole: bool) -> Option<Error> {
    if shards == 1 {
        return refused.pop().map(|(_, why)| why);
    }
    let (first, why) = refused.first()?;
    let numbers: Vec<String> =
        refused.iter().take(REFUSED_NAMED_MAX).map(|(shard, _)| shard.to_string()).collect();
    let more = match refused.len().saturating_sub(REFUSED_NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let are_others = is_whole && refused.len() < shards as usize;
    let others = if are_others { "; the others were looked at" } else { "" };
    Some(Error::Exhausted(format!(
        "{} of {shards} shards of {table} stay as they are: {}{more}{others}. Shard {first}: {why}",
        refused.len(),
        numbers.join(", ")
    )))
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests;
