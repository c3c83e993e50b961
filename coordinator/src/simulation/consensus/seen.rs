//! What all coordinators of a story were told and saw, and what of it breaks a
//! promise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::State;

/// Of so many changes that were acknowledged last each read is asked.
const ASKED: usize = 40;

/// Shared by all coordinators of a story.
#[derive(Default)]
pub(super) struct Seen(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    starts: u64,
    is_over: bool,
    /// Names of what was made, as somebody was told, in that order.
    made: Vec<String>,
    /// Names of what never will be made, as somebody was told.
    never: BTreeSet<String>,
    /// Who led in each term.
    led: BTreeMap<u64, u64>,
    /// What the state was behind so many entries.
    states: BTreeMap<u64, u32>,
    /// What each coordinator applied last.
    newest: BTreeMap<u64, (u64, Arc<State>)>,
    /// How many voters each coordinator knows.
    voters: BTreeMap<u64, usize>,
    reads: usize,
    broken: Option<String>,
}

impl Inner {
    fn breaks(&mut self, what: impl FnOnce() -> String) {
        self.broken.get_or_insert_with(what);
    }
}

impl Seen {
    /// The number of a start, of any coordinator.
    pub(super) fn new_start(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.starts += 1;
        inner.starts
    }

    /// Nobody begins anything any more.
    pub(super) fn end(&self) {
        self.0.lock().is_over = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.lock().is_over
    }

    pub(super) fn made(&self, name: String) {
        self.0.lock().made.push(name);
    }

    pub(super) fn never(&self, name: String) {
        self.0.lock().never.insert(name);
    }

    /// What was made last.
    pub(super) fn newest_made(&self) -> Vec<String> {
        let inner = self.0.lock();
        inner.made[inner.made.len().saturating_sub(ASKED)..].to_vec()
    }

    /// A state that was read after all this had been made.
    pub(super) fn read(&self, state: &State, made: &[String]) {
        let mut inner = self.0.lock();
        inner.reads += 1;
        if let Some(name) = made.iter().find(|name| !state.has_schema(name)) {
            inner.breaks(|| format!("{name} was acknowledged before version {} was read", state.version));
        }
    }

    /// A coordinator has applied so many entries.
    pub(super) fn applied(&self, number: u64, entries: u64, state: &Arc<State>) {
        let mut inner = self.0.lock();
        if inner.newest.get(&number).is_some_and(|(newest, _)| *newest == entries) {
            return;
        }
        inner.newest.insert(number, (entries, Arc::clone(state)));
        let names = state.schemas();
        let digest = names.fold(0, |digest, name| crc32c::crc32c_append(digest, name.as_bytes()));
        let digest = crc32c::crc32c_append(digest, &state.version.to_le_bytes());
        let first = *inner.states.entry(entries).or_insert(digest);
        if first != digest {
            inner.breaks(|| format!("c{number} has another state behind {entries} entries than another one"));
        }
    }

    pub(super) fn leads(&self, term: u64, coordinator: u64) {
        let mut inner = self.0.lock();
        let first = *inner.led.entry(term).or_insert(coordinator);
        if first != coordinator {
            inner.breaks(|| format!("coordinators {first} and {coordinator} lead in term {term}"));
        }
    }

    pub(super) fn counts(&self, number: u64, voters: usize) {
        self.0.lock().voters.insert(number, voters);
    }

    /// Whether so many coordinators know that so many are voters.
    pub(super) fn are_all_voters(&self, count: usize) -> bool {
        let inner = self.0.lock();
        inner.voters.len() == count && inner.voters.values().all(|voters| *voters == count)
    }

    /// The first promise that was broken.
    pub(super) fn broken(&self) -> Option<String> {
        self.0.lock().broken.clone()
    }

    /// What is not as it should be at the end; none where all is.
    pub(super) fn missing(&self, count: usize) -> Option<String> {
        let inner = self.0.lock();
        let entries: BTreeSet<u64> = inner.newest.values().map(|(entries, _)| *entries).collect();
        if inner.newest.len() != count || entries.len() != 1 {
            return Some(format!("coordinators have applied {entries:?} entries"));
        }
        let (_, state) = inner.newest.values().next()?;
        let lost = inner.made.iter().find(|name| !state.has_schema(name));
        let there = inner.never.iter().find(|name| state.has_schema(name));
        match (lost, there) {
            (Some(name), _) => Some(format!("{name} was acknowledged, and is lost")),
            (None, Some(name)) => Some(format!("{name} was refused, and is there")),
            (None, None) => None,
        }
    }

    /// Changes that were acknowledged, reads, and terms in which somebody led.
    pub(super) fn counts_of_all(&self) -> (usize, usize, usize) {
        let inner = self.0.lock();
        (inner.made.len(), inner.reads, inner.led.len())
    }
}
