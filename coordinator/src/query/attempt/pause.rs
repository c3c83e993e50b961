//! The pause before an attempt.

use std::time::Duration;

/// Waits for so long, and not at all where that is nothing: a timer of nothing
/// ends with the next tick, a millisecond later, which a small query would
/// notice.
pub(in crate::query) async fn pause(length: Duration) {
    if !length.is_zero() {
        tokio::time::sleep(length).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn no_pause_takes_no_time_and_others_take_theirs() {
        assert!(pause(Duration::ZERO).now_or_never().is_some(), "it waits for a timer");
        assert!(pause(Duration::from_secs(60)).now_or_never().is_none());
    }
}
