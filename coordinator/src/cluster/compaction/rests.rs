//! What is left alone because its compaction failed.
//!
//! Most failures come again when the same is tried again: a segment that cannot
//! be read, rows that take too much memory, a disk without room. So the shard
//! waits, that it is not tried at each look; and its segments wait longer, that
//! others of the shard get their turn.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use shoal_proto::{SegmentId, TableId};

use super::Compaction;

/// How long a shard is left alone after the first failure.
const SHARD_WAIT: Duration = Duration::from_secs(60);
/// How long its segments are.
const SEGMENT_WAIT: Duration = Duration::from_secs(120);
/// Each failure doubles the wait, up to this; and for so long after it a failure
/// is remembered.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Shards and segments whose compaction failed.
#[derive(Debug, Default)]
pub struct Rests {
    shards: Waits<(TableId, u32)>,
    segments: Waits<SegmentId>,
}

impl Rests {
    /// A compaction failed: its shard and its segments are left alone, twice as
    /// long as the last time. Whether none of them had failed before.
    pub fn failed(&mut self, compaction: &Compaction, now: Instant) -> bool {
        self.shards.forget_old(now);
        self.segments.forget_old(now);
        let mut is_first = self.shards.failed((compaction.table, compaction.shard), SHARD_WAIT, now);
        for segment in &compaction.segments {
            is_first &= self.segments.failed(*segment, SEGMENT_WAIT, now);
        }
        is_first
    }

    /// A compaction is done.
    pub fn done(&mut self, compaction: &Compaction) {
        self.shards.0.remove(&(compaction.table, compaction.shard));
        for segment in &compaction.segments {
            self.segments.0.remove(segment);
        }
    }

    /// Whether the shard is left alone.
    pub fn is_resting(&self, table: TableId, shard: u32, now: Instant) -> bool {
        self.shards.is_waiting(&(table, shard), now)
    }

    /// Whether the segment is left alone.
    pub fn has_failed(&self, segment: SegmentId, now: Instant) -> bool {
        self.segments.is_waiting(&segment, now)
    }
}

#[derive(Debug)]
struct Waits<K>(HashMap<K, Wait>);

#[derive(Debug)]
struct Wait {
    until: Instant,
    length: Duration,
}

impl<K> Default for Waits<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Waits<K> {
    /// Whether it is the first failure that is remembered.
    fn failed(&mut self, key: K, first: Duration, now: Instant) -> bool {
        let before = self.0.get(&key).map(|wait| wait.length);
        let length = before.map_or(first, |length| (length * 2).min(WAIT_MAX));
        self.0.insert(key, Wait { until: now + length, length });
        before.is_none()
    }

    fn forget_old(&mut self, now: Instant) {
        self.0.retain(|_, wait| now < wait.until + WAIT_MAX);
    }

    fn is_waiting(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_some_and(|wait| now < wait.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: TableId = TableId(1);
    const MOMENT: Duration = Duration::from_millis(1);

    fn compaction(shard: u32, segments: Vec<SegmentId>) -> Compaction {
        Compaction { table: TABLE, shard, segments, bytes: 100 }
    }

    #[test]
    fn what_fails_again_rests_longer_each_time() {
        let mut rests = Rests::default();
        let failing = compaction(0, vec![SegmentId::random(), SegmentId::random()]);
        let mut now = Instant::now();
        assert!(!rests.is_resting(TABLE, 0, now));
        let (mut shard_wait, mut segment_wait) = (SHARD_WAIT, SEGMENT_WAIT);
        for time in 0..12 {
            assert_eq!(rests.failed(&failing, now), time == 0, "{time}");
            assert!(rests.is_resting(TABLE, 0, now + shard_wait - MOMENT), "{time}");
            assert!(!rests.is_resting(TABLE, 0, now + shard_wait), "{time}");
            assert!(!rests.is_resting(TABLE, 1, now), "{time}");
            for segment in &failing.segments {
                assert!(rests.has_failed(*segment, now + segment_wait - MOMENT), "{time}");
                assert!(!rests.has_failed(*segment, now + segment_wait), "{time}");
            }
            now += segment_wait;
            shard_wait = (shard_wait * 2).min(WAIT_MAX);
            segment_wait = (segment_wait * 2).min(WAIT_MAX);
        }
        assert_eq!((shard_wait, segment_wait), (WAIT_MAX, WAIT_MAX));
        // After a long time without one it is the first failure again.
        assert!(rests.failed(&failing, now + 2 * WAIT_MAX));
    }

    #[test]
    fn one_bad_segment_does_not_keep_the_others_of_its_shard_waiting() {
        let mut rests = Rests::default();
        let (bad, good) = (SegmentId::random(), SegmentId::random());
        let now = Instant::now();
        assert!(rests.failed(&compaction(0, vec![bad]), now));
        // The shard is tried again before the segment is, and then without it.
        let now = now + SHARD_WAIT;
        assert!(!rests.is_resting(TABLE, 0, now) && rests.has_failed(bad, now));
        rests.done(&compaction(0, vec![good]));
        // It is told of once, whatever it fails with.
        let now = now + SEGMENT_WAIT;
        assert!(!rests.has_failed(bad, now));
        assert!(!rests.failed(&compaction(0, vec![good, bad]), now));
        assert!(
            !rests.is_resting(TABLE, 0, now + SHARD_WAIT),
            "a shard of which something was done begins anew"
        );
        assert!(rests.has_failed(bad, now + 2 * SEGMENT_WAIT - MOMENT));
        assert!(!rests.has_failed(good, now + SEGMENT_WAIT));
    }

    #[test]
    fn a_shard_without_room_is_told_of_once_whichever_of_its_segments_is_tried() {
        let mut rests = Rests::default();
        let mut now = Instant::now();
        for time in 0..4 {
            let next = compaction(0, vec![SegmentId::random()]);
            assert_eq!(rests.failed(&next, now), time == 0, "{time}");
            now += WAIT_MAX;
        }
        assert!(rests.failed(&compaction(1, vec![SegmentId::random()]), now));
    }
}
