//! What clients hold handles to: prepared statements, and queries that wait
//! to be fetched. Both are bounded, for each session and in all, and expire.
//! This coordinator alone knows them; `query_ticket` is what others can use.
//!
//! [`Shelf`] is pure: it is given the time and does no locking.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::ScalarValue;
use parking_lot::Mutex;
use shoal_proto::QueryId;

use super::home::new_handle;
use crate::catalog::CoordinatorId;
use crate::{Error, HeadStart, Prepared, Session};

/// Prepared statements: one client rarely holds more than a few dozen.
pub(super) const STATEMENT_LIMITS: Limits =
    Limits { what: "prepared statements", per_owner: 1_000, total: 20_000, idle: Duration::from_secs(3600) };

/// Queries between `GetFlightInfo` and `DoGet`: usually milliseconds.
pub(super) const PENDING_LIMITS: Limits = Limits {
    what: "queries that wait to be fetched",
    per_owner: 1_000,
    total: 20_000,
    idle: Duration::from_secs(600),
};

/// How often everything is looked through for what expired.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// A statement that its client prepared, with the parameters bound last.
pub(super) struct Statement {
    /// Whose settings it runs with.
    pub(super) session: Arc<Session>,
    /// The plan, for every run.
    pub(super) prepared: Arc<Prepared>,
    pub(super) bound: Mutex<Bound>,
}

/// What is bound to a statement.
#[derive(Default)]
pub(super) struct Bound {
    /// Rows of parameters; `None` before the first binding.
    pub(super) rows: Option<Vec<Vec<ScalarValue>>>,
    /// The query with these, where it has begun and was not announced.
    pub(super) head_start: Option<HeadStart>,
}

/// A query that runs when it is fetched, or has begun before.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) session: Arc<Session>,
    pub(super) prepared: Arc<Prepared>,
    pub(super) parameters: Vec<ScalarValue>,
    /// Announced to the client already.
    pub(super) query: QueryId,
    /// Where it has begun.
    pub(super) head_start: Option<HeadStart>,
}

/// How much a [`Shelf`] holds, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For the error message.
    pub(super) what: &'static str,
    /// Of one session; beyond, its least recently used goes.
    pub(super) per_owner: usize,
    /// Of all sessions; beyond, new ones are refused.
    pub(super) total: usize,
    /// Since the last use.
    pub(super) idle: Duration,
}

/// Values by handle, each owned by a session.
pub(super) struct Shelf<T> {
    limits: Limits,
    /// Whose handles they are.
    coordinator: CoordinatorId,
    owners: HashMap<String, HashMap<String, Entry<T>>>,
    owner_of: HashMap<String, String>,
    swept: Instant,
}

struct Entry<T> {
    value: T,
    used: Instant,
}

impl<T: Clone> Shelf<T> {
    pub(super) fn new(limits: Limits, coordinator: CoordinatorId, now: Instant) -> Self {
        Self { limits, coordinator, owners: HashMap::new(), owner_of: HashMap::new(), swept: now }
    }

    /// Keeps `value` for `owner`; the handle to find it by, which nobody can
    /// guess.
    ///
    /// # Errors
    /// `Exhausted` at the total limit.
    pub(super) fn put(&mut self, owner: &str, value: T, now: Instant) -> Result<String, Error> {
        if now.duration_since(self.swept) >= SWEEP_INTERVAL || self.owner_of.len() >= self.limits.total {
            self.sweep(now);
        }
        let held = self.owners.get(owner).map_or(0, HashMap::len);
        if held >= self.limits.per_owner {
            self.evict_oldest(owner);
        }
        if self.owner_of.len() >= self.limits.total {
            return Err(Error::Exhausted(format!(
                "the coordinator holds {} {} already; close some, or try again later",
                self.limits.total, self.limits.what
            )));
        }
        let handle = new_handle(self.coordinator);
        self.owner_of.insert(handle.clone(), owner.to_owned());
        self.owners.entry(owner.to_owned()).or_default().insert(handle.clone(), Entry { value, used: now });
        Ok(handle)
    }

    /// The value, which counts as used.
    pub(super) fn get(&mut self, handle: &str, now: Instant) -> Option<T> {
        let owner = self.owner_of.get(handle)?;
        let entry = self.owners.get_mut(owner)?.get_mut(handle)?;
        if now.duration_since(entry.used) >= self.limits.idle {
            self.take(handle, now);
            return None;
        }
        entry.used = now;
        Some(entry.value.clone())
    }

    /// Takes the value away.
    pub(super) fn take(&mut self, handle: &str, now: Instant) -> Option<T> {
        let owner = self.owner_of.remove(handle)?;
        let entries = self.owners.get_mut(&owner)?;
        let entry = entries.remove(handle)?;
        if entries.is_empty() {
            self.owners.remove(&owner);
        }
        (now.duration_since(entry.used) < self.limits.idle).then_some(entry.value)
    }

    /// Takes the first value that `wanted` accepts, with its handle.
    pub(super) fn take_where(&mut self, now: Instant, wanted: impl Fn(&T) -> bool) -> Option<(String, T)> {
        let handle = self.find(wanted)?.to_owned();
        let value = self.take(&handle, now)?;
        Some((handle, value))
    }

    /// Whether there is a value that `wanted` accepts.
    pub(super) fn any(&self, wanted: impl Fn(&T) -> bool) -> bool {
        self.find(wanted).is_some()
    }

    /// Drops all that a session held.
    pub(super) fn drop_owner(&mut self, owner: &str) {
        for handle in self.owners.remove(owner).unwrap_or_default().keys() {
            self.owner_of.remove(handle);
        }
    }

    fn find(&self, wanted: impl Fn(&T) -> bool) -> Option<&str> {
        self.owners
            .values()
            .flatten()
            .find(|(_, entry)| wanted(&entry.value))
            .map(|(handle, _)| handle.as_str())
    }

    fn evict_oldest(&mut self, owner: &str) {
        let Some(entries) = self.owners.get_mut(owner) else { return };
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(handle, _)| handle.clone());
        if let Some(handle) = oldest {
            entries.remove(&handle);
            self.owner_of.remove(&handle);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let Self { limits, owners, owner_of, .. } = self;
        owners.retain(|_, entries| {
            entries.retain(|handle, entry| {
                let fresh = now.duration_since(entry.used) < limits.idle;
                if !fresh {
                    owner_of.remove(handle);
                }
                fresh
            });
            !entries.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { what: "things", per_owner: 2, total: 3, idle: Duration::from_secs(60) };

    fn shelf() -> (Shelf<u32>, Instant) {
        let now = Instant::now();
        (Shelf::new(LIMITS, 1, now), now)
    }

    #[test]
    fn an_owner_at_its_limit_loses_what_it_used_least_recently() {
        let (mut shelf, now) = shelf();
        let later = |seconds| now + Duration::from_secs(seconds);
        let first = shelf.put("a", 1, now).unwrap();
        let second = shelf.put("a", 2, later(1)).unwrap();
        assert_eq!(shelf.get(&first, later(2)), Some(1));
        let third = shelf.put("a", 3, later(3)).unwrap();
        assert_eq!(shelf.get(&first, later(4)), Some(1));
        assert_eq!(shelf.get(&second, later(4)), None);
        assert_eq!(shelf.get(&third, later(4)), Some(3));
    }

    #[test]
    fn the_total_limit_refuses_until_something_expires() {
        let (mut shelf, now) = shelf();
        for owner in ["a", "b", "c"] {
            shelf.put(owner, 1, now).unwrap();
        }
        let error = shelf.put("d", 1, now).unwrap_err();
        assert!(error.to_string().contains("3 things"), "{error}");
        shelf.put("d", 1, now + LIMITS.idle).unwrap();
        assert_eq!(shelf.owner_of.len(), 1);
    }

    #[test]
    fn what_is_idle_too_long_is_gone() {
        let (mut shelf, now) = shelf();
        let got = shelf.put("a", 1, now).unwrap();
        let taken = shelf.put("a", 2, now).unwrap();
        assert_eq!(shelf.get(&got, now + LIMITS.idle), None);
        assert_eq!(shelf.take(&taken, now + LIMITS.idle), None);
        assert!(shelf.owner_of.is_empty() && shelf.owners.is_empty());
    }

    #[test]
    fn a_closed_session_takes_its_handles_with_it() {
        let (mut shelf, now) = shelf();
        let gone = shelf.put("a", 1, now).unwrap();
        let kept = shelf.put("b", 2, now).unwrap();
        shelf.drop_owner("a");
        assert_eq!(shelf.get(&gone, now), None);
        assert_eq!(shelf.get(&kept, now), Some(2));
    }

    #[test]
    fn a_value_is_taken_once() {
        let (mut shelf, now) = shelf();
        let handle = shelf.put("a", 7, now).unwrap();
        assert!(shelf.any(|value| *value == 7));
        assert_eq!(shelf.take_where(now, |value| *value == 7), Some((handle, 7)));
        assert_eq!(shelf.take_where(now, |value| *value == 7), None);
    }
}
