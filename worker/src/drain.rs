//! How a worker ends that nobody is to miss: its shards go to others first,
//! while it serves on.
//!
//! Where they go is the coordinators' business. Here they are asked for it, and
//! the log is told how far it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::Error;
use crate::coordinators::DrainWord;
use crate::heartbeat::Heartbeat;
use crate::segment_dir::SegmentDir;
use crate::segments::blocking;

/// How often it is looked whether something is left.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the log is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(3);
/// The same while it does not go on.
const TELL_STUCK_EVERY: Duration = Duration::from_secs(10);
/// How long no segments are taken while it is asked for the last time: a few beats.
const LET_GO_MAX: Duration = Duration::from_secs(2);

/// Asks for a drain and waits until nothing is left here: nothing that the
/// catalog knows, and no file that a query or a write may need. That takes as
/// long as it takes. When this returns, no more segments are taken.
///
/// # Errors
/// `Internal` where the segments cannot be counted.
pub(crate) async fn until_drained(heartbeat: &Heartbeat, dir: &Arc<SegmentDir>) -> Result<(), Error> {
    heartbeat.drain();
    let mut telling = Telling::default();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let counted = Arc::clone(dir);
        let left = blocking(move || Ok(counted.count())).await?;
        let word = heartbeat.drain_word();
        if word.is_done && left == 0 && is_let_go(heartbeat, dir).await? {
            return Ok(());
        }
        let is_stuck = !word.lacks.is_empty();
        if telling.is_due(Instant::now(), is_stuck) {
            let line = line(left, &word);
            if is_stuck {
                tracing::warn!("{line}");
            } else {
                tracing::info!("{line}");
            }
        }
    }
}

/// Whether the worker can end. Something may have come since it was told that it is
/// drained. So it takes no more, where nothing is here, and asks again: from then on
/// no write can count on it, as none that counts on it is without its file.
async fn is_let_go(heartbeat: &Heartbeat, dir: &Arc<SegmentDir>) -> Result<bool, Error> {
    let closing = Arc::clone(dir);
    if !blocking(move || Ok(closing.close())).await? {
        return Ok(false);
    }
    if heartbeat.is_let_go(LET_GO_MAX).await {
        return Ok(true);
    }
    let opening = Arc::clone(dir);
    blocking(move || {
        opening.open_again();
        Ok(())
    })
    .await?;
    Ok(false)
}

/// When the log is told something.
#[derive(Debug, Default)]
struct Telling {
    /// When it was told last, and whether it did not go on then.
    told: Option<(Instant, bool)>,
}

impl Telling {
    /// Whether the log is to be told now, and then counts as told.
    fn is_due(&mut self, now: Instant, is_stuck: bool) -> bool {
        let every = if is_stuck { TELL_STUCK_EVERY } else { TELL_EVERY };
        let is_due = self.told.is_none_or(|(at, was_stuck)| {
            was_stuck != is_stuck || now.saturating_duration_since(at) >= every
        });
        if is_due {
            self.told = Some((now, is_stuck));
        }
        is_due
    }
}

fn line(left: usize, word: &DrainWord) -> String {
    let left = if left == 1 { "1 segment".to_owned() } else { format!("{left} segments") };
    let DrainWord { is_done, lacks, .. } = word;
    if !lacks.is_empty() {
        format!("draining waits, with {left} left: {lacks}; another signal stops this worker as it is")
    } else if *is_done {
        format!("draining: {left} left, only for queries and writes that are under way")
    } else {
        format!("draining: {left} left")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_at_first_at_each_turn_and_then_now_and_again() {
        let start = Instant::now();
        let mut telling = Telling::default();
        for (second, is_stuck, expected) in [
            (0, false, true),
            (2, false, false),
            (3, false, true),
            (4, true, true),
            (13, true, false),
            (14, true, true),
            (15, false, true),
            (17, false, false),
        ] {
            let is_due = telling.is_due(start + Duration::from_secs(second), is_stuck);
            assert_eq!(is_due, expected, "after {second} s");
        }
    }

    #[test]
    fn a_line_says_how_much_is_left_and_what_it_waits_for() {
        let check = |left: usize, is_done: bool, lacks: &str, expected: &str| {
            let word = DrainWord { is_done, lacks: lacks.to_owned(), closing: 0 };
            assert_eq!(line(left, &word), expected);
        };
        check(12, false, "", "draining: 12 segments left");
        check(1, true, "", "draining: 1 segment left, only for queries and writes that are under way");
        let stuck = "draining waits, with 2 segments left: no coordinator is connected; another signal stops this \
                     worker as it is";
        check(2, false, "no coordinator is connected", stuck);
    }
}
