//! Which results stay: pure. Those that were used last, in as much memory as there
//! is.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use super::KeptResult;

/// Results that are kept at most, however small: to look through all of them takes
/// milliseconds.
pub(super) const RESULTS_MAX: usize = 10_000;
/// What a result takes beside its rows and its key, about.
const OVERHEAD_BYTES: usize = 512;

/// Which query: two of one key give the same rows as long as all their names mean
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResultKey {
    /// The statement as it was sent.
    pub statement: String,
    /// What was put in the place of its parameters, in order. With their types: values that are
    /// equal may be of different ones, as moments in two time zones are.
    pub parameters: Vec<(DataType, ScalarValue)>,
    /// Names and values of the settings that the session changed, in order.
    pub settings: Vec<(String, String)>,
}

impl ResultKey {
    fn bytes(&self) -> usize {
        let parameters = self.parameters.iter().map(|(data_type, value)| data_type.size() + value.size());
        let settings: usize = self.settings.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.statement.len() + parameters.sum::<usize>() + settings
    }
}

/// What the cache holds, and what it was good for since the coordinator started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Results that are kept.
    pub entries: usize,
    /// Bytes of them, of those that went and are still read, and of those whose rows are
    /// still coming.
    pub bytes: usize,
    /// What these may be.
    pub bytes_max: usize,
    /// Queries that were answered with a kept result.
    pub hits: u64,
    /// Queries that could have been, and were run.
    pub misses: u64,
    /// Results that came in.
    pub stored: u64,
    /// Results that went to make room.
    pub evicted: u64,
    /// Results that went because the tables or views of their query changed.
    pub outdated: u64,
}

/// The bytes of a result, which count until nobody has it any more: one that lost its
/// place here may still be read by clients.
pub(super) struct Charge {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    fn new(held: &Arc<AtomicUsize>, bytes: usize) -> Self {
        held.fetch_add(bytes, Ordering::Relaxed);
        Self { held: Arc::clone(held), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Entry {
    key: Arc<ResultKey>,
    result: Arc<KeptResult>,
}

/// The results, and what they take.
pub(super) struct Kept {
    bytes_max: usize,
    filling_bytes_max: usize,
    /// By their last use.
    entries: BTreeMap<u64, Entry>,
    uses: HashMap<Arc<ResultKey>, u64>,
    next_use: u64,
    /// Bytes of all results that somebody has.
    held: Arc<AtomicUsize>,
    filling_bytes: usize,
    usage: CacheUsage,
}

impl Kept {
    /// Nothing, in so much memory; and so much for what is still coming.
    pub(super) fn new(bytes_max: usize, filling_bytes_max: usize) -> Self {
        Self {
            bytes_max,
            filling_bytes_max,
            entries: BTreeMap::new(),
            uses: HashMap::new(),
            next_use: 0,
            held: Arc::default(),
            filling_bytes: 0,
            usage: CacheUsage::default(),
        }
    }

    /// The result of a key, which is used by that.
    pub(super) fn find(&mut self, key: &ResultKey) -> Option<Arc<KeptResult>> {
        let last_use = *self.uses.get(key)?;
        let entry = self.entries.remove(&last_use)?;
        let result = Arc::clone(&entry.result);
        self.uses.insert(Arc::clone(&entry.key), self.next_use);
        self.entries.insert(self.next_use, entry);
        self.next_use += 1;
        Some(result)
    }

    /// Takes a result of so many bytes in, in the place of the one of its key, and of those
    /// that were not used for longest. Not where that makes too little room, as clients
    /// still read the others.
    pub(super) fn keep(
        &mut self,
        key: Arc<ResultKey>,
        bytes: usize,
        result: impl FnOnce(Charge) -> KeptResult,
    ) {
        let bytes = bytes + key.bytes() + OVERHEAD_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        self.remove(&key);
        while self.held() + bytes > self.bytes_max || self.entries.len() >= RESULTS_MAX {
            let idle = self.entries.iter().find(|(_, entry)| Arc::strong_count(&entry.result) == 1);
            let Some((&oldest, _)) = idle else { return };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.uses.remove(&entry.key);
            }
            self.usage.evicted += 1;
        }
        let result = Arc::new(result(Charge::new(&self.held, bytes)));
        self.usage.stored += 1;
        self.uses.insert(Arc::clone(&key), self.next_use);
        self.entries.insert(self.next_use, Entry { key, result });
        self.next_use += 1;
    }

    /// Removes a result that is no answer any more, unless another one has taken its
    /// place.
    pub(super) fn forget(&mut self, key: &ResultKey, result: &Arc<KeptResult>) {
        let entry = self.uses.get(key).and_then(|last_use| self.entries.get(last_use));
        if entry.is_some_and(|entry| Arc::ptr_eq(&entry.result, result)) {
            self.remove(key);
            self.usage.outdated += 1;
        }
    }

    fn remove(&mut self, key: &ResultKey) {
        if let Some(last_use) = self.uses.remove(key) {
            self.entries.remove(&last_use);
        }
    }

    /// All of them. Whoever looks at them does not have them.
    pub(super) fn all(&self) -> Vec<(Arc<ResultKey>, Weak<KeptResult>)> {
        let entries = self.entries.values();
        entries.map(|entry| (Arc::clone(&entry.key), Arc::downgrade(&entry.result))).collect()
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Sets memory aside for rows that are still coming; whether there is any left.
    pub(super) fn take_for_filling(&mut self, bytes: usize) -> bool {
        let is_there = self.filling_bytes + bytes <= self.filling_bytes_max;
        if is_there {
            self.filling_bytes += bytes;
        }
        is_there
    }

    /// Gives back what was set aside.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.filling_bytes -= bytes;
    }

    /// A kept result was the answer.
    pub(super) fn hit(&mut self) {
        self.usage.hits += 1;
    }

    /// A result that may be kept was not there.
    pub(super) fn miss(&mut self) {
        self.usage.misses += 1;
    }

    /// What there is now, and what was.
    pub(super) fn usage(&self) -> CacheUsage {
        let bytes = self.held() + self.filling_bytes;
        CacheUsage { entries: self.entries.len(), bytes, ..self.usage }
    }
}
