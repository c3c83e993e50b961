//! Which of a query's shards are far behind the others: pure.

use std::time::Duration;

/// So many times the median of those that ended.
const BEHIND_FACTOR: f64 = 1.25;
/// And at least so much more: what scatters by itself.
const BEHIND_MIN: Duration = Duration::from_millis(40);

/// How long the shards of one query that ended took.
#[derive(Clone, Debug)]
pub(super) struct Stragglers {
    shards: usize,
    /// Sorted.
    took: Vec<Duration>,
}

impl Stragglers {
    /// Of a query that reads so many shards.
    pub(super) fn of(shards: usize) -> Self {
        Self { shards, took: Vec::with_capacity(shards) }
    }

    /// A shard ended after so long; whether it was behind then.
    pub(super) fn ended(&mut self, took: Duration) -> Option<bool> {
        let was_behind = self.is_behind(took);
        let at = self.took.partition_point(|other| *other <= took);
        self.took.insert(at, took);
        was_behind
    }

    /// Whether a shard that has taken so long is behind: half of them all have
    /// ended, and it takes clearly longer than they did. None where fewer have.
    pub(super) fn is_behind(&self, so_far: Duration) -> Option<bool> {
        if self.took.is_empty() || self.took.len() < self.shards.div_ceil(2) {
            return None;
        }
        let median = self.took[self.took.len() / 2];
        Some(so_far >= median.mul_f64(BEHIND_FACTOR).max(median + BEHIND_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn behind_is_who_takes_clearly_longer_than_most() {
        let mut stragglers = Stragglers::of(8);
        for took in [400, 380, 420] {
            stragglers.ended(ms(took));
        }
        assert_eq!(stragglers.is_behind(ms(60_000)), None, "three of eight say nothing yet");
        stragglers.ended(ms(390));
        assert_eq!(stragglers.is_behind(ms(450)), Some(false));
        assert_eq!(stragglers.is_behind(ms(501)), Some(true));
    }

    #[test]
    fn what_scatters_by_itself_is_not_behind() {
        let mut stragglers = Stragglers::of(2);
        stragglers.ended(ms(5));
        assert_eq!(stragglers.is_behind(ms(44)), Some(false));
        assert_eq!(stragglers.is_behind(ms(45)), Some(true));
    }
}
