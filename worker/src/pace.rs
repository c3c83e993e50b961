//! A rate, kept on average: who has moved bytes is told how long to wait before
//! moving more.
//!
//! Pure: it is given `now`, and waits for nobody.

use std::time::{Duration, Instant};

/// What may be made up of time in which fewer bytes moved than might have: a
/// wait is never quite as long as it was meant to be.
const SLACK: Duration = Duration::from_millis(50);

/// So many bytes in a second, for all who share it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When all that moved so far has had its time.
    paid_until: Option<Instant>,
}

impl Pace {
    /// Counts bytes that have just moved; how long to wait before more do.
    /// A rate of 0 is no limit.
    pub(crate) fn pay(&mut self, now: Instant, bytes: u64, bytes_per_second: u64) -> Duration {
        if bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let from = self.paid_until.map_or(earliest, |until| until.max(earliest));
        let until = from + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        self.paid_until = Some(until);
        until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const RATE: u64 = 8 * MIB;

    /// Bytes that so many, who move a piece whenever they may, have moved after
    /// so long, each wait as much longer as `late` says.
    fn moved(parties: usize, piece: u64, late: Duration, time: Duration) -> u64 {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut next = vec![start; parties];
        let mut bytes = 0;
        loop {
            let (party, now) = next.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
            if now >= start + time {
                return bytes;
            }
            bytes += piece;
            let wait = pace.pay(now, piece, RATE);
            next[party] = now + if wait.is_zero() { wait } else { wait + late };
        }
    }

    #[test]
    fn all_who_share_a_rate_stay_within_it_together() {
        let time = Duration::from_secs(10);
        let most = |parties: u64, piece: u64| {
            let slack = (RATE as f64 * SLACK.as_secs_f64()) as u64;
            10 * RATE + slack + parties * piece
        };
        for (parties, piece) in [(1, MIB), (1, 4_096), (3, MIB), (16, MIB), (16, 100_000)] {
            let bytes = moved(parties, piece, Duration::ZERO, time);
            assert!(bytes <= most(parties as u64, piece), "{parties} with {piece}: {bytes}");
            assert!(bytes >= 10 * RATE, "{parties} with {piece}: {bytes}");
        }
        // Waits that end a little late cost nothing of the rate.
        let late = moved(1, MIB, Duration::from_millis(2), time);
        assert!((99 * RATE / 10..=most(1, MIB)).contains(&late), "{late}");
    }

    #[test]
    fn what_was_not_moved_for_long_is_not_made_up() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.pay(start, RATE, RATE) >= Duration::from_secs(1) - SLACK);
        let later = start + Duration::from_secs(3_600);
        assert_eq!(pace.pay(later, RATE, RATE), Duration::from_secs(1) - SLACK);
        assert_eq!(pace.pay(later, RATE, RATE), Duration::from_secs(2) - SLACK);
        // At another rate what was moved before keeps its time.
        assert_eq!(pace.pay(later, RATE, 2 * RATE), Duration::from_millis(2_500) - SLACK);
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut pace = Pace::default();
        assert_eq!(pace.pay(Instant::now(), u64::MAX, 0), Duration::ZERO);
    }
}
