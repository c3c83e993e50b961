//! Where a node stands, and the bytes that came to it from elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

/// The zone of a node; of one without a name nobody knows where it is.
#[derive(Debug, Default)]
pub struct Zone {
    name: String,
    crossed_bytes: AtomicU64,
}

impl Zone {
    /// The zone of this name, which may be empty.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), crossed_bytes: AtomicU64::new(0) }
    }

    /// Whether a node of that zone stands in another one, as far as is known.
    pub fn is_other(&self, zone: &str) -> bool {
        !self.name.is_empty() && !zone.is_empty() && self.name != zone
    }

    /// Counts bytes that came from a node of that zone, where it is another one;
    /// whether it is.
    pub fn received(&self, zone: &str, bytes: u64) -> bool {
        let is_other = self.is_other(zone);
        if is_other {
            self.crossed_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        is_other
    }

    /// Bytes that came from other zones so far.
    pub fn crossed_bytes(&self) -> u64 {
        self.crossed_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_come_from_elsewhere_counts() {
        let zone = Zone::named("north");
        assert!(!zone.received("north", 1) && !zone.received("", 2));
        assert!(zone.received("south", 4) && zone.received("east", 8));
        assert_eq!(zone.crossed_bytes(), 12);
        let nowhere = Zone::default();
        assert!(!nowhere.received("south", 1) && !nowhere.received("", 1));
        assert_eq!(nowhere.crossed_bytes(), 0);
    }
}
