//! How queries failed, for clients that come with the same ticket again: some
//! drivers take an error for a reason to try the next location, and a query
//! that was stopped must not begin anew there.

use std::collections::{HashMap, VecDeque};

use shoal_proto::{ErrorCode, Failure};

/// Failures that are remembered.
const FAILURES_MAX: usize = 1_000;

/// The newest failures, by the handle of the query's ticket.
#[derive(Debug, Default)]
pub(super) struct Failures {
    by_handle: HashMap<String, Failure>,
    /// The handles, oldest first.
    order: VecDeque<String>,
}

impl Failures {
    /// Remembers how the query of a ticket failed, unless another attempt may
    /// cure it: then the ticket is good for that attempt.
    pub(super) fn keep(&mut self, handle: &str, failure: Failure) {
        let may_pass = matches!(failure.code, ErrorCode::Timeout | ErrorCode::Exhausted);
        if failure.code.is_retryable() || may_pass {
            return;
        }
        if self.by_handle.insert(handle.to_owned(), failure).is_some() {
            return;
        }
        self.order.push_back(handle.to_owned());
        if self.order.len() > FAILURES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_handle.remove(&oldest);
        }
    }

    /// How the query of a ticket failed, if it did.
    pub(super) fn of(&self, handle: &str) -> Option<Failure> {
        self.by_handle.get(handle).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_other_attempt_can_cure_is_told_again() {
        let mut failures = Failures::default();
        for (code, is_told) in [
            (ErrorCode::Invalid, true),
            // Another coordinator's queue may have room.
            (ErrorCode::Exhausted, false),
            (ErrorCode::Cancelled, true),
            (ErrorCode::Unavailable, false),
            (ErrorCode::Timeout, false),
        ] {
            let handle = format!("1-{code:?}");
            failures.keep(&handle, Failure::new(code, "no"));
            assert_eq!(failures.of(&handle).is_some(), is_told, "{code:?}");
        }
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut failures = Failures::default();
        let failure = |message: &str| Failure::new(ErrorCode::Invalid, message);
        failures.keep("1-first", failure("a"));
        failures.keep("1-second", failure("b"));
        failures.keep("1-first", failure("c"));
        for number in 2..FAILURES_MAX {
            failures.keep(&format!("2-{number}"), failure("d"));
        }
        assert_eq!(failures.of("1-first"), Some(failure("c")));
        failures.keep("3-last", failure("e"));
        assert_eq!(failures.of("1-first"), None);
        assert_eq!(failures.of("1-second"), Some(failure("b")));
        assert_eq!(failures.by_handle.len(), FAILURES_MAX);
    }
}
