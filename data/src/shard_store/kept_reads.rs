//! Small pieces of segments that came from peers, kept in memory: a query that reads
//! little, and is asked again and again, goes to one worker, and that has not all of its
//! shards. To ask a peer took longer than all else of such a query.
//!
//! What is kept is right for good, as a segment never changes and its name is never given
//! again.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use moka::sync::Cache;

use crate::SegmentName;

/// Bytes that are asked for at once and kept: whoever reads more waits for other things.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// What one piece takes beside its bytes.
const ENTRY_BYTES: usize = 128;

/// Pieces by segment and place. Cheap to clone.
#[derive(Clone)]
pub(super) struct KeptReads(Option<Cache<(SegmentName, Range<u64>), Bytes>>);

impl KeptReads {
    /// Keeps so many bytes, those that are asked for most; in 0 nothing.
    pub(super) fn new(bytes_max: u64) -> Self {
        let weight = |_: &(SegmentName, Range<u64>), piece: &Bytes| {
            u32::try_from(piece.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        let cache = || Cache::builder().max_capacity(bytes_max).weigher(weight).build();
        Self((bytes_max > 0).then(cache))
    }

    /// All these ranges of a segment, where all are kept.
    pub(super) fn find(&self, name: &SegmentName, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let cache = self.0.as_ref()?;
        ranges.iter().map(|range| cache.get(&(*name, range.clone()))).collect()
    }

    /// Keeps what these ranges of a segment are, where it is little.
    pub(super) fn keep(&self, name: &SegmentName, ranges: &[Range<u64>], read: &[Bytes]) {
        let Some(cache) = &self.0 else { return };
        if read.iter().map(Bytes::len).sum::<usize>() > READ_BYTES_MAX {
            return;
        }
        for (range, piece) in ranges.iter().zip(read) {
            // A piece of its own: this one may be a part of something larger.
            cache.insert((*name, range.clone()), Bytes::copy_from_slice(piece));
        }
    }
}

impl fmt::Debug for KeptReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_ref().map_or(0, Cache::weighted_size);
        f.debug_struct("KeptReads").field("bytes", &bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use shoal_proto::{SegmentId, TableId};

    use super::*;

    fn name(shard: u32) -> SegmentName {
        SegmentName { table: TableId(1), shard, segment: SegmentId::random() }
    }

    #[test]
    fn what_was_read_is_found_whole_or_not_at_all() {
        let kept = KeptReads::new(1 << 20);
        let (one, other) = (name(0), name(1));
        kept.keep(&one, &[0..3, 7..9], &[Bytes::from_static(b"abc"), Bytes::from_static(b"hi")]);
        assert_eq!(kept.find(&one, from_ref(&(7..9))).unwrap(), ["hi"]);
        assert_eq!(kept.find(&one, &[7..9, 0..3]).unwrap(), ["hi", "abc"]);
        assert_eq!(kept.find(&one, &[0..3, 0..2]), None, "another range");
        assert_eq!(kept.find(&other, from_ref(&(0..3))), None, "another segment");
    }

    #[test]
    fn there_is_a_limit_and_much_at_once_is_not_kept() {
        let (kept, one) = (KeptReads::new(100_000), name(0));
        let large = Bytes::from(vec![7; READ_BYTES_MAX]);
        kept.keep(&one, &[0..READ_BYTES_MAX as u64, 0..1], &[large, Bytes::from_static(b"x")]);
        assert_eq!(kept.find(&one, from_ref(&(0..1))), None);
        for number in 0..100_u64 {
            kept.keep(&one, from_ref(&(number..number + 5_000)), &[Bytes::from(vec![1; 5_000])]);
        }
        let cache = kept.0.as_ref().unwrap();
        cache.run_pending_tasks();
        assert!(cache.entry_count() > 0 && cache.weighted_size() <= 100_000, "{kept:?}");

        let nothing = KeptReads::new(0);
        nothing.keep(&one, from_ref(&(0..1)), &[Bytes::from_static(b"x")]);
        assert_eq!(nothing.find(&one, from_ref(&(0..1))), None);
    }
}
