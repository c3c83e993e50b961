//! The memory of one query on one node, or of one compaction: a share of the node's
//! pool with a limit of its own, so that what is over its limit fails alone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

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
        let grown = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(additional).filter(|&used| used <= self.limit_bytes)
        });
        if let Err(used) = grown {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} memory limit of {} on {} is reached ({} in use, {} more wanted by {}); {}",
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
        let message = held.try_grow(20).unwrap_err().to_string();
        assert!(message.contains("w1") && message.contains("SET shoal.query_memory"), "{message}");
        let neighbour = MemoryConsumer::new("sort").register(&other);
        neighbour.try_grow(900).unwrap();
        drop((held, neighbour));
        assert_eq!((small.reserved(), other.reserved(), node.reserved()), (0, 0, 0));
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
