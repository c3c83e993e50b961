//! Segments that may be removed from workers once no coordinator needs them.
//!
//! Pure. Each coordinator reads snapshots and stages writes of which the others
//! know nothing: the leader asks all of them first.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use shoal_data::SegmentName;
use shoal_proto::WorkerId;

/// Segments that are asked for at a time.
const ASKED_MAX: usize = 10_000;

/// What one coordinator needs of the segments that it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The version of the catalog that its next query will read, or a newer one.
    pub version: u64,
    /// The oldest version that a query of it reads.
    pub oldest_read: Option<u64>,
    /// Those that writes of it stage.
    pub staged: HashSet<SegmentName>,
    /// The newest [commands](crate::catalog::COMMANDS) that it can read; 0 where it
    /// is of a version that does not say.
    #[serde(default)]
    pub reads: u32,
}

#[derive(Debug)]
struct Leaving {
    /// The first version of the catalog that does not have it.
    version: u64,
    workers: BTreeSet<WorkerId>,
    /// Of its file; 0 where that is not known.
    bytes: u64,
    /// Whether the catalog never had it, as far as is known: it may be of a
    /// write that is under way.
    is_unknown: bool,
}

impl Leaving {
    /// Whether nobody needs the segment of this name, by these answers.
    fn is_free(&self, name: &SegmentName, answers: &[Option<Needs>]) -> bool {
        answers.iter().all(|answer| match answer {
            None => !self.is_unknown,
            Some(needs) => {
                needs.version >= self.version
                    && needs.oldest_read.is_none_or(|oldest| oldest >= self.version)
                    && !needs.staged.contains(name)
            }
        })
    }
}

/// What waits to be removed.
#[derive(Debug, Default)]
pub struct Going {
    segments: BTreeMap<SegmentName, Leaving>,
    /// The last one that was asked for: those behind it are next.
    asked_to: Option<SegmentName>,
}

impl Going {
    /// The catalog does not have this segment of so many bytes since `version`.
    pub fn dropped(
        &mut self,
        name: SegmentName,
        version: u64,
        bytes: u64,
        workers: impl IntoIterator<Item = WorkerId>,
    ) {
        // Of a write that is under way it cannot be: what was committed never is again.
        self.add(name, version, bytes, workers, false);
    }

    /// A worker holds a segment that the catalog does not have in `version`.
    pub fn unknown(&mut self, name: SegmentName, version: u64, worker: WorkerId) {
        self.add(name, version, 0, [worker], true);
    }

    fn add(
        &mut self,
        name: SegmentName,
        version: u64,
        bytes: u64,
        workers: impl IntoIterator<Item = WorkerId>,
        is_unknown: bool,
    ) {
        let first = Leaving { version, workers: BTreeSet::new(), bytes, is_unknown };
        let leaving = self.segments.entry(name).or_insert(first);
        leaving.version = leaving.version.max(version);
        leaving.bytes = leaving.bytes.max(bytes);
        leaving.workers.extend(workers);
        leaving.is_unknown &= is_unknown;
    }

    /// Bytes that wait, on each worker.
    pub fn bytes(&self) -> BTreeMap<WorkerId, u64> {
        let mut bytes: BTreeMap<WorkerId, u64> = BTreeMap::new();
        for leaving in self.segments.values() {
            for worker in &leaving.workers {
                *bytes.entry(worker.clone()).or_default() += leaving.bytes;
            }
        }
        bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Forgets everything: another coordinator looks after it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What to ask the other coordinators about: others each time where they are too
    /// many, as the first ones may be needed for long.
    pub fn asked(&mut self) -> Vec<SegmentName> {
        let next = self.asked_to.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.segments.range((next, Bound::Unbounded));
        let before = self.asked_to.map(|last| self.segments.range(..=last)).into_iter().flatten();
        let asked: Vec<SegmentName> = behind.chain(before).map(|(name, _)| *name).take(ASKED_MAX).collect();
        self.asked_to = asked.last().copied();
        asked
    }

    /// Whether [`Going::release`] would take out anything.
    pub fn is_any_free(&self, asked: &[SegmentName], answers: &[Option<Needs>]) -> bool {
        asked.iter().any(|name| self.segments.get(name).is_some_and(|leaving| leaving.is_free(name, answers)))
    }

    /// Takes out what nobody needs of the segments asked about. `answers` are
    /// those of all other coordinators; none is one that has not been heard of for
    /// so long that its queries are not waited for. What it may have staged is.
    pub fn release(
        &mut self,
        asked: &[SegmentName],
        answers: &[Option<Needs>],
    ) -> Vec<(SegmentName, Vec<WorkerId>)> {
        let mut free = Vec::new();
        for name in asked {
            if self.segments.get(name).is_some_and(|leaving| leaving.is_free(name, answers))
                && let Some(leaving) = self.segments.remove(name)
            {
                free.push((*name, leaving.workers.into_iter().collect()));
            }
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::{SegmentId, TableId};

    use super::*;

    fn name(number: u128) -> SegmentName {
        SegmentName { table: TableId(1), shard: 0, segment: SegmentId(uuid::Uuid::from_u128(number)) }
    }

    fn worker(id: &str) -> WorkerId {
        WorkerId::new(id)
    }

    fn at(version: u64) -> Needs {
        Needs { version, ..Needs::default() }
    }

    #[test]
    fn what_a_query_anywhere_may_read_stays() {
        let mut going = Going::default();
        going.dropped(name(1), 7, 100, [worker("a"), worker("b")]);
        let asked = going.asked();
        let reads = |oldest| Needs { oldest_read: Some(oldest), ..at(9) };
        for holds in [at(6), reads(6), Needs { staged: HashSet::from([name(1)]), ..at(9) }] {
            let answers = [Some(at(9)), Some(holds.clone())];
            assert!(!going.is_any_free(&asked, &answers), "{holds:?}");
            assert_eq!(going.release(&asked, &answers), [], "{holds:?}");
        }
        let answers = [Some(reads(7)), Some(at(7)), None];
        assert!(going.is_any_free(&asked, &answers));
        let free = going.release(&asked, &answers);
        assert_eq!(free, [(name(1), vec![worker("a"), worker("b")])]);
        assert!(!going.is_any_free(&asked, &answers), "it is gone");
        assert!(going.is_empty());
    }

    #[test]
    fn what_somebody_who_is_away_may_have_staged_stays() {
        let mut going = Going::default();
        going.unknown(name(1), 7, worker("a"));
        going.dropped(name(2), 7, 30, [worker("a")]);
        let asked = going.asked();
        assert_eq!(going.release(&asked, &[None]), [(name(2), vec![worker("a")])]);
        assert_eq!(going.release(&asked, &[Some(at(7))]), [(name(1), vec![worker("a")])]);
    }

    #[test]
    fn what_the_catalog_had_is_not_of_a_write_under_way() {
        let mut going = Going::default();
        going.unknown(name(1), 7, worker("a"));
        going.dropped(name(1), 9, 30, [worker("b")]);
        going.dropped(name(2), 7, 30, [worker("a")]);
        going.unknown(name(2), 8, worker("b"));
        let asked = going.asked();
        let both = vec![worker("a"), worker("b")];
        assert_eq!(going.release(&asked, &[None]), [(name(1), both.clone()), (name(2), both)]);
    }

    #[test]
    fn all_are_asked_for_where_the_first_ones_are_needed() {
        let mut going = Going::default();
        let count = ASKED_MAX as u128 + 3;
        for number in 0..count {
            going.dropped(name(number), 7, 1, [worker("a")]);
        }
        let first = going.asked();
        assert_eq!((first.len(), first.first()), (ASKED_MAX, Some(&name(0))));
        let second = going.asked();
        assert_eq!((second.len(), second.first()), (ASKED_MAX, Some(&name(ASKED_MAX as u128))));
        let all: BTreeSet<_> = first.into_iter().chain(second).collect();
        assert_eq!(all.len() as u128, count);
        // What fits is asked for whole each time, wherever it began.
        going.release(&all.into_iter().skip(2).collect::<Vec<_>>(), &[]);
        for _ in 0..2 {
            assert_eq!(going.asked().len(), 2);
        }
    }

    #[test]
    fn what_waits_is_counted_on_each_worker_until_it_goes() {
        let mut going = Going::default();
        going.dropped(name(1), 7, 100, [worker("a"), worker("b")]);
        going.dropped(name(2), 7, 30, [worker("b")]);
        // Of one and the same copy, and of one whose length nobody knows here.
        going.dropped(name(2), 8, 0, [worker("b")]);
        going.unknown(name(3), 7, worker("c"));
        let expected = [(worker("a"), 100), (worker("b"), 130), (worker("c"), 0)];
        assert_eq!(going.bytes(), BTreeMap::from(expected));
        going.release(&[name(1)], &[]);
        assert_eq!(going.bytes().get(&worker("b")), Some(&30));
    }

    #[test]
    fn what_an_older_coordinator_answers_is_read() {
        let answer = r#"{"version":7,"oldest_read":null,"staged":[]}"#;
        assert_eq!(serde_json::from_str::<Needs>(answer).unwrap(), at(7));
        assert_eq!(at(7).reads, 0);
    }

    #[test]
    fn only_what_was_asked_about_goes() {
        let mut going = Going::default();
        going.dropped(name(1), 7, 100, [worker("a")]);
        let asked = going.asked();
        going.dropped(name(2), 7, 30, [worker("a")]);
        assert_eq!(going.release(&asked, &[]), [(name(1), vec![worker("a")])]);
        assert!(!going.is_empty());
    }
}
