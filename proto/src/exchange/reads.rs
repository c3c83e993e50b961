//! What was read of tables for one attempt at a query, as sums: small enough to
//! travel with the rows, and enough to tell whether each segment of a plan was
//! read once. With it goes how many bytes crossed zones.
//!
//! What should have been read is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::execution::TaskContext;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::TableId;
use crate::query::{TableReads, ZoneBytes};

/// Segments of one table, as sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// How many.
    pub segments: u64,
    /// Rows in those that were opened; statistics may rule the others out.
    pub rows: u64,
    /// Wrapping sum of a hash of each segment's name: tells one set of segments
    /// from another of the same size.
    pub digest: u64,
}

impl Reads {
    /// Adds those of others.
    pub fn add(&mut self, other: Self) {
        self.segments += other.segments;
        self.rows += other.rows;
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// What one node read in one attempt, and what others told it that they read.
/// Rows and the reads behind them arrive together, so that a node that has all
/// rows of a stream knows all reads behind them.
#[derive(Debug)]
pub struct ReadLog {
    id: u64,
    entries: Mutex<Entries>,
    /// Bytes from other zones, by the log that counts: they only grow.
    crossed: Mutex<BTreeMap<u64, u64>>,
}

#[derive(Debug, Default)]
struct Entries {
    /// By the log that counts, and the table. What one log counts only grows,
    /// so of two versions the larger is the newer.
    of: BTreeMap<(u64, TableId), Entry>,
    /// Changes so far.
    changes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    reads: Reads,
    /// The number of its last change.
    changed: u64,
}

impl Entries {
    /// Puts the newer version of an entry in place of the older.
    fn put(&mut self, log: u64, table: TableId, reads: Reads) {
        let changed = self.changes + 1;
        let entry = self.of.entry((log, table)).or_default();
        if (reads.segments, reads.rows) > (entry.reads.segments, entry.reads.rows) {
            *entry = Entry { reads, changed };
            self.changes = changed;
        }
    }
}

impl Default for ReadLog {
    fn default() -> Self {
        Self::new()
    }
}

impl ReadLog {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self { id: Uuid::new_v4().as_u64_pair().1, entries: Mutex::default(), crossed: Mutex::default() }
    }

    /// The log of the attempt that a plan runs in; one of its own where the
    /// context has none.
    pub fn of(context: &TaskContext) -> Arc<Self> {
        context.session_config().get_extension::<Self>().unwrap_or_default()
    }

    /// A segment was turned to, once, whether its rows are then read or its
    /// statistics rule them out.
    pub fn add_segment(&self, table: TableId, digest: u64) {
        self.grow(table, Reads { segments: 1, rows: 0, digest });
    }

    /// A segment with so many rows was opened.
    pub fn add_rows(&self, table: TableId, rows: u64) {
        self.grow(table, Reads { segments: 0, rows, digest: 0 });
    }

    fn grow(&self, table: TableId, by: Reads) {
        let mut entries = self.entries.lock();
        entries.changes += 1;
        let changed = entries.changes;
        let entry = entries.of.entry((self.id, table)).or_default();
        entry.reads.add(by);
        entry.changed = changed;
    }

    /// Takes in what another node knows. The same may come again, and older
    /// after newer.
    pub fn take_in(&self, told: Vec<TableReads>) {
        if told.is_empty() {
            return;
        }
        let mut entries = self.entries.lock();
        for told in told {
            let reads = Reads { segments: told.segments, rows: told.rows, digest: told.digest };
            entries.put(told.log, TableId(told.table), reads);
        }
    }

    /// Takes in what was read for a part that counts once, under its number,
    /// however many logs tell of it.
    pub fn take_in_as(&self, part: u64, reads: BTreeMap<TableId, Reads>) {
        let mut entries = self.entries.lock();
        for (table, reads) in reads {
            entries.put(part, table, reads);
        }
    }

    /// What changed since `seen`, which is brought up to now.
    pub fn news(&self, seen: &mut u64) -> Vec<TableReads> {
        let entries = self.entries.lock();
        if entries.changes == *seen {
            return Vec::new();
        }
        let since = std::mem::replace(seen, entries.changes);
        let new = entries.of.iter().filter(|(_, entry)| entry.changed > since);
        new.map(|(&(log, table), Entry { reads, .. })| TableReads {
            log,
            table: table.0,
            segments: reads.segments,
            rows: reads.rows,
            digest: reads.digest,
        })
        .collect()
    }

    /// Bytes came here from another zone.
    pub fn add_crossed(&self, bytes: u64) {
        *self.crossed.lock().entry(self.id).or_default() += bytes;
    }

    /// Takes in what came to other nodes. The same may come again, and older after
    /// newer.
    pub fn take_in_crossed(&self, told: Vec<ZoneBytes>) {
        if told.is_empty() {
            return;
        }
        let mut crossed = self.crossed.lock();
        for ZoneBytes { log, bytes } in told {
            let known = crossed.entry(log).or_default();
            *known = bytes.max(*known);
        }
    }

    /// All that crossed zones where that is more than `seen`, which is brought up
    /// to now.
    pub fn crossed_news(&self, seen: &mut u64) -> Vec<ZoneBytes> {
        let crossed = self.crossed.lock();
        let bytes: u64 = crossed.values().sum();
        if std::mem::replace(seen, bytes) == bytes {
            return Vec::new();
        }
        crossed.iter().map(|(&log, &bytes)| ZoneBytes { log, bytes }).collect()
    }

    /// All bytes that are known to have crossed zones.
    pub fn crossed_bytes(&self) -> u64 {
        self.crossed.lock().values().sum()
    }

    /// The most of it that came to one node.
    pub fn crossed_bytes_most(&self) -> u64 {
        self.crossed.lock().values().copied().max().unwrap_or(0)
    }

    /// All that is known, by table.
    pub fn by_table(&self) -> BTreeMap<TableId, Reads> {
        let mut tables: BTreeMap<TableId, Reads> = BTreeMap::new();
        for ((_, table), entry) in &self.entries.lock().of {
            tables.entry(*table).or_default().add(entry.reads);
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_told_once() {
        let log = ReadLog::new();
        let mut seen = 0;
        assert!(log.news(&mut seen).is_empty());
        log.add_segment(TableId(1), 5);
        log.add_rows(TableId(1), 10);
        let news = log.news(&mut seen);
        assert_eq!(news.len(), 1);
        assert_eq!((news[0].segments, news[0].rows, news[0].digest), (1, 10, 5));
        assert!(log.news(&mut seen).is_empty());
        log.add_segment(TableId(2), 7);
        assert_eq!(log.news(&mut seen).len(), 1, "only what is new");
    }

    #[test]
    fn bytes_that_crossed_zones_count_once_however_often_they_are_told() {
        let [near, far, first] = [(); 3].map(|()| ReadLog::new());
        let mut seen = 0;
        assert!(near.crossed_news(&mut seen).is_empty());
        near.add_crossed(5);
        let early = near.crossed_news(&mut seen);
        assert!(near.crossed_news(&mut seen).is_empty());
        near.add_crossed(2);
        far.add_crossed(30);
        far.take_in_crossed(near.crossed_news(&mut seen));
        // By two ways, and the older after the newer.
        first.take_in_crossed(far.crossed_news(&mut 0));
        first.take_in_crossed(near.crossed_news(&mut 0));
        first.take_in_crossed(early);
        first.add_crossed(100);
        assert_eq!((near.crossed_bytes(), far.crossed_bytes(), first.crossed_bytes()), (7, 37, 137));
        let most = [&near, &far, &first].map(|log| log.crossed_bytes_most());
        assert_eq!(most, [7, 30, 100]);
    }
}
