//! The memory of one query on one node, or of one compaction: a share of the node's
//! pool with a limit of its own, so that what is over its limit fails alone. What
//! can spill leaves twice as much as it holds to the others: the first sort of a
//! plan would take all, and the next one could not even begin to spill.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// What a sort keeps for the time when it has spilled, at most: what DataFusion keeps by
/// default.
const SORT_KEPT_BYTES_MAX: u64 = 10 << 20;
/// The same at least, where a query has little memory.
const SORT_KEPT_BYTES_MIN: u64 = 256 << 10;
/// The share of a query's memory that one sort keeps for that: a plan may have dozens.
const SORT_KEPT_SHARE: u64 = 128;
/// How many times as much as it holds an operator that can spill leaves free.
const LEFT_FREE: usize = 2;
/// The share of its query's memory that it may hold in any case, or it would spill each batch by
/// itself.
const ALWAYS_SHARE: usize = 32;

/// Bytes that each sort of a query keeps for merging what it has spilled:
/// `datafusion.execution.sort_spill_reservation_bytes` for this limit.
pub fn sort_kept_bytes(limit_bytes: u64) -> usize {
    let kept = (limit_bytes / SORT_KEPT_SHARE).clamp(SORT_KEPT_BYTES_MIN, SORT_KEPT_BYTES_MAX);
    usize::try_from(kept).unwrap_or(usize::MAX)
}

/// A memory pool for one query on top of the node's.
#[derive(Debug)]
pub struct QueryPool {
    node: Arc<dyn MemoryPool>,
    node_name: String,
    /// Whose it is, for its messages.
    whose: &'static str,
    /// What to do about its limit.
    way_out: &'static str,
    limit_bytes: usize,
    used_bytes: AtomicUsize,
}

impl QueryPool {
    /// A pool that takes at most `limit_bytes` from `node`, for a query on the
    /// node named `node_name` (for its messages).
    pub fn new(node: Arc<dyn MemoryPool>, node_name: &str, limit_bytes: u64) -> Self {
        Self {
            node,
            node_name: node_name.to_owned(),
            whose: "the query's",
            way_out: "raise it with SET shoal.query_memory = '...', or ask for less at once",
            limit_bytes: usize::try_from(limit_bytes).unwrap_or(usize::MAX),
            used_bytes: AtomicUsize::new(0),
        }
    }

    /// The same for a compaction.
    pub fn of_compaction(node: Arc<dyn MemoryPool>, node_name: &str, limit_bytes: u64) -> Self {
        let way_out = "the segments stay as they are, and all can be read";
        Self { whose: "a compaction's", way_out, ..Self::new(node, node_name, limit_bytes) }
    }

    /// Bytes that nobody holds when so many of the query's are held, here and on the
    /// node as a whole.
    fn free_bytes(&self, used: usize) -> usize {
        let own = self.limit_bytes.saturating_sub(used);
        match self.node.memory_limit() {
            MemoryLimit::Finite(bytes) => own.min(bytes.saturating_sub(self.node.reserved())),
            MemoryLimit::Infinite | MemoryLimit::Unknown => own,
        }
    }

    /// Whether one that can spill and holds so many bytes may hold more when so many are used by all, or
    /// should spill. What holds nothing has nothing to spill: it gets its first rows wherever they fit.
    fn leaves_enough(&self, holds: usize, more: usize, used: usize) -> bool {
        let held = holds.saturating_add(more);
        holds == 0
            || held <= self.limit_bytes / ALWAYS_SHARE
            || held.saturating_mul(LEFT_FREE) <= self.free_bytes(used)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.node.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.node.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used_bytes.fetch_add(additional, Ordering::Relaxed);
        self.node.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used_bytes.fetch_sub(shrink, Ordering::Relaxed);
        self.node.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        // Rows without columns take nothing, wherever there is no room. On disk they would be in a file that
        // does not end: see `datafusion_defaults`.
        if additional == 0 {
            return Ok(());
        }
        let holds = reservation.size();
        let can_spill = reservation.consumer().can_spill();
        let grown = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let used = used.checked_add(additional).filter(|&used| used <= self.limit_bytes)?;
            (!can_spill || self.leaves_enough(holds, additional, used)).then_some(used)
        });
        if let Err(used) = grown {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} memory limit of {} on {} leaves no room ({} in use, {} more wanted by {}); {}",
                self.whose,
                Bytes(self.limit_bytes),
                self.node_name,
                Bytes(used),
                Bytes(additional),
                reservation.consumer().name(),
                self.way_out
            )));
        }
        self.node.try_grow(reservation, additional).map_err(|error| {
            self.used_bytes.fetch_sub(additional, Ordering::Relaxed);
            DataFusionError::ResourcesExhausted(format!(
                "the memory of {} is used up by all its queries together ({} in use, {} more wanted by {}): {}",
                self.node_name,
                Bytes(self.node.reserved()),
                Bytes(additional),
                reservation.consumer().name(),
                error.strip_backtrace()
            ))
        })
    }

    fn reserved(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit_bytes)
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query(used: {}, limit: {})", Bytes(self.reserved()), Bytes(self.limit_bytes))
    }
}

/// A number of bytes as people write it.
struct Bytes(usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match UNITS.into_iter().find(|(_, size)| self.0 >= *size) {
            Some((unit, size)) => write!(f, "{:.1} {unit}", self.0 as f64 / size as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::execution::memory_pool::{GreedyMemoryPool, UnboundedMemoryPool};

    #[test]
    fn a_query_over_its_limit_fails_alone() {
        let node: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let small: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(Arc::clone(&node), "w1", 100));
        let other: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(Arc::clone(&node), "w1", 1000));
        let held = MemoryConsumer::new("sort").register(&small);
        held.try_grow(90).unwrap();
        held.grow(30);
        held.try_grow(0).unwrap();
        held.shrink(30);
        let message = held.try_grow(20).unwrap_err().to_string();
        assert!(message.contains("w1") && message.contains("SET shoal.query_memory"), "{message}");
        let neighbour = MemoryConsumer::new("sort").register(&other);
        neighbour.try_grow(900).unwrap();
        drop((held, neighbour));
        assert_eq!((small.reserved(), other.reserved(), node.reserved()), (0, 0, 0));
    }

    #[test]
    fn what_can_spill_leaves_room_for_those_that_come_later() {
        let node: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(node, "w1", 1000));
        let mut free = 1000;
        let mut sorts = Vec::new();
        for number in 0..6 {
            let sort = MemoryConsumer::new("sort").with_can_spill(true).register(&pool);
            while sort.try_grow(1).is_ok() {}
            assert_eq!(sort.size(), free / 3, "sort {number} of {free}");
            free -= sort.size();
            sorts.push(sort);
        }
        // What cannot spill gets all that is left.
        let join = MemoryConsumer::new("join").register(&pool);
        assert!(join.try_grow(free + 1).is_err());
        join.try_grow(free).unwrap();
        let message = sorts[0].try_grow(1).unwrap_err().to_string();
        assert!(message.contains("memory limit") && message.contains("SET shoal.query_memory"), "{message}");
    }

    #[test]
    fn what_can_spill_leaves_room_for_other_queries_of_the_node() {
        let node: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(900));
        let first: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(Arc::clone(&node), "w1", 5000));
        let second: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(Arc::clone(&node), "w1", 5000));
        let sort = MemoryConsumer::new("sort").with_can_spill(true).register(&first);
        while sort.try_grow(1).is_ok() {}
        assert!((290..=310).contains(&sort.size()), "{}", sort.size());
        let join = MemoryConsumer::new("join").register(&second);
        join.try_grow(580).unwrap();
        drop((sort, join));
        assert_eq!((first.reserved(), second.reserved(), node.reserved()), (0, 0, 0));
    }

    #[test]
    fn what_can_spill_gets_its_first_rows_where_they_fit() {
        let node: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(node, "w1", 1000));
        let groups = MemoryConsumer::new("groups").register(&pool);
        groups.try_grow(500).unwrap();
        let sort = MemoryConsumer::new("sort").with_can_spill(true).register(&pool);
        assert!(sort.try_grow(501).is_err(), "there is no room");
        sort.try_grow(300).unwrap();
        // It can spill these before it takes more.
        assert!(sort.try_grow(1).is_err());
        sort.free();
        sort.try_grow(300).unwrap();
    }

    #[test]
    fn a_sort_keeps_a_small_share_of_little_memory() {
        let kept = |limit_bytes| sort_kept_bytes(limit_bytes);
        assert_eq!((kept(1 << 20), kept(64 << 20), kept(1 << 30)), (256 << 10, 512 << 10, 8 << 20));
        assert_eq!(kept(u64::MAX), 10 << 20);
    }

    #[test]
    fn a_compaction_over_its_limit_says_so() {
        let node: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::of_compaction(node, "the coordinator", 1 << 20));
        let held = MemoryConsumer::new("the new segment").register(&pool);
        let message = held.try_grow(2 << 20).unwrap_err().to_string();
        for part in
            ["a compaction's memory limit of 1.0 MiB on the coordinator", "2.0 MiB more wanted by the new"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert!(message.contains("stay as they are") && !message.contains("query"), "{message}");
        assert_eq!(pool.reserved(), 0);
    }

    #[test]
    fn a_full_node_takes_nothing_from_the_query() {
        let node: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(50));
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(node, "w1", 100));
        let held = MemoryConsumer::new("sort").register(&pool);
        assert!(held.try_grow(60).is_err());
        assert_eq!(pool.reserved(), 0);
    }
}
