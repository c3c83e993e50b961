//! What follows from a table alone and is asked for again and again: where its
//! segments are in its list, which of them a worker or a shard has, and which are
//! not where they should be. Worked out when it is first asked for, and kept for
//! as long as the table is the same; what does not depend on where copies are also
//! while copies come and go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, UInt64Array};
use datafusion::common::ColumnStatistics;
use parking_lot::Mutex;
use shoal_data::{Segment, Table};
use shoal_proto::{SegmentId, TableId, WorkerId};

/// Facts of tables that no state has any more, at most.
const STALE_MAX: usize = 16;

/// Where segments are in the list of their table.
type Places = Vec<u32>;

/// What follows from one version of one table. It holds that version, so that no
/// other is ever taken for it.
#[derive(Debug)]
pub struct TableFacts {
    table: Arc<Table>,
    of_segments: Arc<SegmentFacts>,
    by_worker: OnceLock<HashMap<WorkerId, Places>>,
    workers: OnceLock<BTreeSet<WorkerId>>,
    shard_replicas: OnceLock<Vec<Option<Vec<WorkerId>>>>,
    amiss: OnceLock<Amiss>,
}

/// What follows from which segments there are, wherever their copies are and should
/// be. Versions of a table that differ in nothing else share it.
#[derive(Debug, Default)]
struct SegmentFacts {
    by_id: OnceLock<Vec<(SegmentId, u32)>>,
    by_shard: OnceLock<Vec<Places>>,
    shard_bytes: OnceLock<Vec<u64>>,
    rows: OnceLock<ArrayRef>,
    contents: OnceLock<Contents>,
    bounds: Mutex<HashMap<usize, Arc<ColumnBounds>>>,
    merged: Mutex<HashMap<usize, ColumnStatistics>>,
}

/// Which segments a version of a table has, wherever they are: versions of one
/// table that have the same contents hold the same rows. Two that differ are told
/// apart as the segments of a scan are, by a sum of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    segments: usize,
    digest: u64,
}

/// What is known of one column in each segment, in the order of the segments, with
/// null where it is not known; none where it is known of no segment.
#[derive(Clone, Debug, Default)]
pub struct ColumnBounds {
    /// The least values.
    pub min: Option<ArrayRef>,
    /// The greatest values.
    pub max: Option<ArrayRef>,
    /// The numbers of nulls.
    pub nulls: Option<ArrayRef>,
}

/// Segments that are not on exactly the workers that should hold them.
#[derive(Debug, Default)]
struct Amiss {
    /// A worker that should hold it is no replica.
    lacking: Places,
    /// A replica should not hold it.
    surplus: Places,
    /// Bytes of what each worker should hold and is no replica of.
    lacking_bytes: HashMap<WorkerId, u64>,
}

impl TableFacts {
    /// Those of a table, of which nothing is worked out yet.
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Self::with(table, Arc::default())
    }

    /// The same, but for what is known of another version and holds of this one, too.
    fn after(other: Option<&Self>, table: &Arc<Table>) -> Self {
        let same = other.filter(|other| has_same_segments(&other.table, table));
        let of_segments = same.map(|same| Arc::clone(&same.of_segments)).unwrap_or_default();
        Self::with(Arc::clone(table), of_segments)
    }

    fn with(table: Arc<Table>, of_segments: Arc<SegmentFacts>) -> Self {
        Self {
            table,
            of_segments,
            by_worker: OnceLock::new(),
            workers: OnceLock::new(),
            shard_replicas: OnceLock::new(),
            amiss: OnceLock::new(),
        }
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Works out where segments are, by id and by worker: for those who hold a lock
    /// when they ask, as it takes a while for a large table.
    pub fn prepare(&self) {
        self.by_id();
        self.by_worker();
    }

    fn by_id(&self) -> &[(SegmentId, u32)] {
        self.of_segments.by_id.get_or_init(|| {
            let places = self.table.segments.iter().zip(0_u32..);
            let mut by_id: Vec<_> = places.map(|(segment, place)| (segment.id, place)).collect();
            // Nearly in order already: later ids sort after earlier ones.
            by_id.sort();
            by_id
        })
    }

    fn by_worker(&self) -> &HashMap<WorkerId, Places> {
        self.by_worker.get_or_init(|| {
            let mut by_worker: HashMap<WorkerId, Places> = HashMap::new();
            for (segment, place) in self.table.segments.iter().zip(0_u32..) {
                for replica in &segment.replicas {
                    match by_worker.get_mut(replica) {
                        Some(places) => places.push(place),
                        None => drop(by_worker.insert(replica.clone(), vec![place])),
                    }
                }
            }
            by_worker
        })
    }

    /// The place of a segment in the table's list.
    pub fn place(&self, id: SegmentId) -> Option<usize> {
        let by_id = self.by_id();
        let first = by_id.partition_point(|(other, _)| *other < id);
        let (_, place) = by_id.get(first).filter(|(other, _)| *other == id)?;
        usize::try_from(*place).ok()
    }

    /// The places of the segments of one shard, in order of commit.
    pub fn places_of_shard(&self, shard: u32) -> &[u32] {
        let by_shard = self.of_segments.by_shard.get_or_init(|| {
            let mut by_shard = vec![Places::new(); self.table.layout.shards as usize];
            for (segment, place) in self.table.segments.iter().zip(0_u32..) {
                if let Some(places) = by_shard.get_mut(segment.shard as usize) {
                    places.push(place);
                }
            }
            by_shard
        });
        by_shard.get(shard as usize).map(Vec::as_slice).unwrap_or_default()
    }

    /// The segments of one shard, in order of commit.
    pub fn of_shard(&self, shard: u32) -> impl Iterator<Item = &Arc<Segment>> {
        self.at(self.places_of_shard(shard))
    }

    /// The segments of which the worker is a replica, in order of commit.
    pub fn of_worker(&self, worker: &WorkerId) -> impl Iterator<Item = &Arc<Segment>> {
        self.at(self.by_worker().get(worker).map(Vec::as_slice).unwrap_or_default())
    }

    /// The workers that hold or should hold something of it.
    pub fn workers(&self) -> &BTreeSet<WorkerId> {
        self.workers.get_or_init(|| {
            let mut workers: BTreeSet<WorkerId> = self.table.placement.iter().flatten().cloned().collect();
            // Segments of one shard have the same replicas, mostly.
            let mut last: HashMap<u32, &Segment> = HashMap::new();
            for segment in &self.table.segments {
                let before = last.insert(segment.shard, segment);
                if before.is_none_or(|before| before.replicas != segment.replicas) {
                    workers.extend(segment.replicas.iter().cloned());
                }
            }
            workers
        })
    }

    /// Bytes of one copy of each shard.
    pub fn shard_bytes(&self) -> &[u64] {
        self.of_segments.shard_bytes.get_or_init(|| {
            let mut bytes = vec![0; self.table.layout.shards as usize];
            for segment in &self.table.segments {
                if let Some(bytes) = bytes.get_mut(segment.shard as usize) {
                    *bytes += segment.bytes;
                }
            }
            bytes
        })
    }

    /// For each shard, the workers that are replicas of all its segments; none where
    /// it has no segments.
    pub fn shard_replicas(&self) -> &[Option<Vec<WorkerId>>] {
        self.shard_replicas.get_or_init(|| {
            let mut replicas: Vec<Option<Vec<WorkerId>>> = vec![None; self.table.layout.shards as usize];
            for segment in &self.table.segments {
                match replicas.get_mut(segment.shard as usize) {
                    Some(Some(replicas)) => replicas.retain(|worker| segment.replicas.contains(worker)),
                    Some(unknown) => *unknown = Some(segment.replicas.clone()),
                    None => {}
                }
            }
            replicas
        })
    }

    /// The rows of each segment.
    pub fn rows(&self) -> &ArrayRef {
        self.of_segments.rows.get_or_init(|| -> ArrayRef {
            let rows = self.table.segments.iter().map(|segment| segment.rows);
            Arc::new(UInt64Array::from_iter_values(rows))
        })
    }

    /// What it has of rows, told in few bytes.
    pub fn contents(&self) -> Contents {
        *self.of_segments.contents.get_or_init(|| {
            let digests = self.table.segments.iter().map(|segment| segment.name().digest());
            let digest = digests.fold(0, u64::wrapping_add);
            Contents { segments: self.table.segments.len(), digest }
        })
    }

    /// What is known of a column, by its place; `make` works it out where nobody did.
    /// It takes as much memory as one value for each segment, for each column that
    /// some filter asked about.
    pub fn bounds(
        &self,
        column: usize,
        make: impl FnOnce(&[Arc<Segment>]) -> ColumnBounds,
    ) -> Arc<ColumnBounds> {
        if let Some(bounds) = self.of_segments.bounds.lock().get(&column) {
            return Arc::clone(bounds);
        }
        // Two that come at once do the same twice: nobody waits for another.
        let bounds = Arc::new(make(&self.table.segments));
        self.of_segments.bounds.lock().insert(column, Arc::clone(&bounds));
        bounds
    }

    /// What is known of a column, by its place, in all segments together; `make`
    /// works it out where nobody did.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn merged<E>(
        &self,
        column: usize,
        make: impl FnOnce(&[Arc<Segment>]) -> Result<ColumnStatistics, E>,
    ) -> Result<ColumnStatistics, E> {
        if let Some(merged) = self.of_segments.merged.lock().get(&column) {
            return Ok(merged.clone());
        }
        let merged = make(&self.table.segments)?;
        self.of_segments.merged.lock().insert(column, merged.clone());
        Ok(merged)
    }

    /// The places of segments that a worker should hold which is no replica.
    pub fn lacking(&self) -> &[u32] {
        &self.amiss().lacking
    }

    /// The places of segments that have a replica which should not hold them.
    pub fn surplus(&self) -> &[u32] {
        &self.amiss().surplus
    }

    /// Bytes of the segments that each worker should hold and is no replica of; only
    /// workers for which there are some.
    pub fn lacking_bytes(&self) -> &HashMap<WorkerId, u64> {
        &self.amiss().lacking_bytes
    }

    fn amiss(&self) -> &Amiss {
        self.amiss.get_or_init(|| {
            let mut amiss = Amiss::default();
            for (segment, place) in self.table.segments.iter().zip(0_u32..) {
                let placed = self.table.placement.get(segment.shard as usize);
                let placed = placed.map(Vec::as_slice).unwrap_or_default();
                if placed == segment.replicas {
                    continue;
                }
                let mut is_lacking = false;
                for worker in placed.iter().filter(|worker| !segment.replicas.contains(worker)) {
                    is_lacking = true;
                    match amiss.lacking_bytes.get_mut(worker) {
                        Some(bytes) => *bytes += segment.bytes,
                        None => drop(amiss.lacking_bytes.insert(worker.clone(), segment.bytes)),
                    }
                }
                if is_lacking {
                    amiss.lacking.push(place);
                }
                if segment.replicas.iter().any(|worker| !placed.contains(worker)) {
                    amiss.surplus.push(place);
                }
            }
            amiss
        })
    }

    /// The segments at these places.
    fn at(&self, places: &[u32]) -> impl Iterator<Item = &Arc<Segment>> {
        places.iter().filter_map(move |place| self.table.segments.get(*place as usize))
    }
}

/// Whether two versions of a table have the same segments, at the same places, with
/// the same rows and statistics: all that [`SegmentFacts`] follow from. One look at each
/// pair, and most are one and the same.
fn has_same_segments(one: &Table, other: &Table) -> bool {
    let are_same = |one: &Segment, other: &Segment| {
        let file =
            |segment: &Segment| (segment.id, segment.shard, segment.rows, segment.bytes, segment.crc32c);
        file(one) == file(other) && one.columns == other.columns
    };
    one.id == other.id
        && one.layout.shards == other.layout.shards
        && one.segments.len() == other.segments.len()
        && (Arc::ptr_eq(&one.columns, &other.columns) || one.columns == other.columns)
        && one
            .segments
            .iter()
            .zip(&other.segments)
            .all(|(one, other)| Arc::ptr_eq(one, other) || are_same(one, other))
}

/// The facts of the newest version of each table that was asked about. States
/// that come of one another share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo(Arc<Mutex<BTreeMap<TableId, Arc<TableFacts>>>>);

impl Memo {
    /// The facts of this version of a table. `is_kept` says which tables there
    /// still are.
    pub(super) fn of(
        &self,
        table: &Arc<Table>,
        tables: usize,
        is_kept: impl Fn(TableId) -> bool,
    ) -> Arc<TableFacts> {
        let before = self.0.lock().get(&table.id).cloned();
        if let Some(facts) = &before
            && Arc::ptr_eq(&facts.table, table)
        {
            return Arc::clone(facts);
        }
        // Others need not wait for a look at all segments.
        let facts = Arc::new(TableFacts::after(before.as_deref(), table));
        let mut known = self.0.lock();
        if let Some(meanwhile) = known.get(&table.id)
            && Arc::ptr_eq(&meanwhile.table, table)
        {
            return Arc::clone(meanwhile);
        }
        known.insert(table.id, Arc::clone(&facts));
        if known.len() > tables + STALE_MAX {
            known.retain(|id, _| is_kept(*id));
        }
        facts
    }

    /// The places of these segments in a version of their table of which there may
    /// be no facts yet: segments stay where they were while replicas come and go,
    /// so those of another version are tried first.
    pub(super) fn places(&self, table: &Arc<Table>, ids: &[SegmentId]) -> Vec<Option<usize>> {
        let is_at = |place: usize, id: SegmentId| table.segments.get(place).is_some_and(|it| it.id == id);
        let by = |facts: &TableFacts| -> Vec<Option<usize>> {
            ids.iter().map(|id| facts.place(*id).filter(|place| is_at(*place, *id))).collect()
        };
        let known = self.0.lock().get(&table.id).cloned();
        if let Some(facts) = &known {
            let places = by(facts);
            if Arc::ptr_eq(&facts.table, table) || places.iter().all(Option::is_some) {
                return places;
            }
        }
        // Kept: where nobody but the log asks, the next entries name segments of it, too.
        let facts = Arc::new(TableFacts::after(known.as_deref(), table));
        let places = by(&facts);
        self.0.lock().insert(table.id, facts);
        places
    }
}

#[cfg(test)]
mod tests;
