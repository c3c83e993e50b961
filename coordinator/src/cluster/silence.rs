//! For how long others have left questions unanswered.
//!
//! Pure: every call is given `now`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After so long without a question a new failure is the first: what was in
/// between nobody knows.
const UNASKED_MAX: Duration = Duration::from_secs(30);

/// Who is silent, and since when. Who was not asked is not silent.
#[derive(Debug, Default)]
pub struct Silences(HashMap<String, Silence>);

#[derive(Debug)]
struct Silence {
    since: Instant,
    asked_last: Instant,
}

impl Silences {
    /// It answered.
    pub fn answered(&mut self, who: &str) {
        self.0.remove(who);
    }

    /// It did not answer; for how long it has been like that.
    pub fn failed(&mut self, now: Instant, who: &str) -> Duration {
        let begins = Silence { since: now, asked_last: now };
        let silence = self.0.entry(who.to_owned()).or_insert(begins);
        if now.saturating_duration_since(silence.asked_last) > UNASKED_MAX {
            silence.since = now;
        }
        silence.asked_last = now;
        now.saturating_duration_since(silence.since)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_begins_with_the_first_failure_and_ends_with_an_answer() {
        let (start, mut silences) = (Instant::now(), Silences::default());
        for seconds in 0..100 {
            assert_eq!(silences.failed(start + seconds * SECOND, "a"), seconds * SECOND);
        }
        assert_eq!(silences.failed(start + 100 * SECOND, "b"), Duration::ZERO);
        silences.answered("a");
        assert_eq!(silences.failed(start + 101 * SECOND, "a"), Duration::ZERO);
    }

    #[test]
    fn who_is_not_asked_is_not_silent() {
        let (start, mut silences) = (Instant::now(), Silences::default());
        silences.answered("a");
        // Nothing was to be asked for a long time, and then one question fails.
        assert_eq!(silences.failed(start + 1_000 * SECOND, "a"), Duration::ZERO);
        assert_eq!(silences.failed(start + 1_002 * SECOND, "a"), 2 * SECOND);
        assert_eq!(silences.failed(start + 5_000 * SECOND, "a"), Duration::ZERO);
    }
}
