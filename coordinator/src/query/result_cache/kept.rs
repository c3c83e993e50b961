//! Which results stay: pure. Those that were used last, in as much memory as there
//! is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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
    /// Bytes of them, and of those whose rows are still coming.
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

struct Entry {
    key: Arc<ResultKey>,
    result: Arc<KeptResult>,
    bytes: usize,
}

/// The results, and what they take.
pub(super) struct Kept {
    bytes_max: usize,
    filling_bytes_max: usize,
    /// By their last use.
    entries: BTreeMap<u64, Entry>,
    uses: HashMap<Arc<ResultKey>, u64>,
    next_use: u64,
    bytes: usize,
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
            bytes: 0,
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

    /// Takes a result in, in the place of the one of its key, and of those that were
    /// not used for longest.
    pub(super) fn keep(&mut self, key: Arc<ResultKey>, result: Arc<KeptResult>, bytes: usize) {
        let bytes = bytes + key.bytes() + OVERHEAD_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        self.remove(&key);
        while self.bytes + bytes > self.bytes_max || self.entries.len() >= RESULTS_MAX {
            let Some((_, oldest)) = self.entries.pop_first() else { break };
            self.uses.remove(&oldest.key);
            self.bytes -= oldest.bytes;
            self.usage.evicted += 1;
        }
        self.bytes += bytes;
        self.usage.stored += 1;
        self.uses.insert(Arc::clone(&key), self.next_use);
        self.entries.insert(self.next_use, Entry { key, result, bytes });
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
        let entry = self.uses.remove(key).and_then(|last_use| self.entries.remove(&last_use));
        self.bytes -= entry.map_or(0, |entry| entry.bytes);
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<(Arc<ResultKey>, Arc<KeptResult>)> {
        self.entries.values().map(|entry| (Arc::clone(&entry.key), Arc::clone(&entry.result))).collect()
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
        let bytes = self.bytes + self.filling_bytes;
        CacheUsage { entries: self.entries.len(), bytes, ..self.usage }
    }
}
