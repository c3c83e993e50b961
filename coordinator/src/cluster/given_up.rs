//! Whose shards should leave them: who is drained, and who has been away for too
//! long.
//!
//! Pure: from the catalog, who is a member, who asks to be drained and `now` to
//! what is to be done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use shoal_proto::WorkerId;

use crate::catalog::{State, WorkerRecord};

/// Why the shards of a worker leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// It was away for too long.
    Dead,
    /// Somebody drains it, or it asks for that itself, and some copies are still
    /// on it.
    Draining,
    /// Nothing is left on it.
    Drained,
}

/// A worker that was given up now, or for another reason than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The worker.
    pub worker: WorkerId,
    /// Why.
    pub why: GivenUp,
    /// Whether it holds or should hold something.
    pub is_used: bool,
}

/// The workers that are given up, and since when others have been away.
#[derive(Debug, Default)]
pub struct GivenUps {
    absent: HashMap<WorkerId, Instant>,
    why: BTreeMap<WorkerId, GivenUp>,
    /// Those that hold or should hold something, in this version of the catalog.
    used: Option<(u64, BTreeSet<WorkerId>)>,
}

impl GivenUps {
    /// Why a worker is given up; none where it is not.
    pub fn get(&self, worker: &WorkerId) -> Option<GivenUp> {
        self.why.get(worker).copied()
    }

    /// All of them: their shards should leave them.
    pub fn leaving(&self) -> BTreeSet<WorkerId> {
        self.why.keys().cloned().collect()
    }

    /// Those that are or were emptied because somebody wished it.
    pub fn drained(&self) -> BTreeSet<WorkerId> {
        let drained = self.why.iter().filter(|(_, why)| **why != GivenUp::Dead);
        drained.map(|(worker, _)| worker.clone()).collect()
    }

    /// Looks again. Where more than half of those that hold something are away, it
    /// is not they who are dead. A worker that a write still goes to is not drained.
    /// What an operator wants is in the catalog, what a worker wants is asked for:
    /// either is enough.
    pub fn update(
        &mut self,
        now: Instant,
        dead_after: Duration,
        state: &State,
        is_member: impl Fn(&WorkerId) -> bool,
        wants_drain: impl Fn(&WorkerId) -> bool,
        is_written_to: impl Fn(&WorkerId) -> bool,
    ) -> Vec<News> {
        for WorkerRecord { id, .. } in state.workers() {
            if is_member(id) {
                self.absent.remove(id);
            } else {
                self.absent.entry(id.clone()).or_insert(now);
            }
        }
        let used = match self.used.take() {
            Some((version, used)) if version == state.version => used,
            _ => used_workers(state),
        };
        let away = used.iter().filter(|id| self.absent.contains_key(*id)).count();
        let are_few_away = 2 * away <= used.len();
        let mut given_up = BTreeMap::new();
        for WorkerRecord { id, is_draining, .. } in state.workers() {
            let since = self.absent.get(id);
            let is_long_away = since.is_some_and(|since| now.saturating_duration_since(*since) >= dead_after);
            let was_dead = self.get(id) == Some(GivenUp::Dead);
            if *is_draining || wants_drain(id) {
                let is_needed = used.contains(id) || is_written_to(id);
                let why = if is_needed { GivenUp::Draining } else { GivenUp::Drained };
                given_up.insert(id.clone(), why);
            } else if is_long_away && (was_dead || are_few_away) {
                given_up.insert(id.clone(), GivenUp::Dead);
            }
        }
        let new = given_up.iter().filter(|(worker, why)| self.why.get(*worker) != Some(*why));
        let news = new.map(|(worker, why)| News {
            worker: worker.clone(),
            why: *why,
            is_used: used.contains(worker),
        });
        let news = news.collect();
        self.why = given_up;
        self.used = Some((state.version, used));
        news
    }
}

/// Whether a worker holds or should hold something.
pub fn is_used(state: &State, worker: &WorkerId) -> bool {
    state.tables().any(|table| state.facts(table).workers().contains(worker))
}

/// The workers that hold or should hold something.
fn used_workers(state: &State) -> BTreeSet<WorkerId> {
    let mut used = BTreeSet::new();
    for table in state.tables() {
        for worker in state.facts(table).workers() {
            if !used.contains(worker) {
                used.insert(worker.clone());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use shoal_proto::TableId;

    use super::*;
    use crate::catalog::state::tests::{create, table};
    use crate::catalog::{Command, Outcome};

    const DEAD_AFTER: Duration = Duration::from_secs(60);

    fn apply(state: &mut State, command: Command) {
        assert_eq!(state.apply(command.clone()), Ok(Outcome::Done), "{command:?}");
    }

    /// A table with a shard on `w1` and one on `w2`.
    fn state() -> (State, TableId) {
        let mut state = State::new("c");
        let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else {
            panic!("no table id");
        };
        state.apply(create(table(id, "t"))).unwrap();
        for worker in ["w1", "w2"] {
            let (id, address) = (worker.into(), format!("http://{worker}"));
            let worker = WorkerRecord { id, address, zone: String::new(), is_draining: false };
            apply(&mut state, Command::RegisterWorker { worker });
        }
        (state, id)
    }

    /// Everything of the table goes to `w2`.
    fn empty_w1(state: &mut State, table: TableId) {
        let seen = vec![vec!["w1".into()], vec!["w2".into()]];
        let placement = vec![vec!["w2".into()], vec!["w2".into()]];
        apply(state, Command::MoveShards { table, seen, placement });
    }

    /// Why `w1` is given up where this is so, and what is news.
    struct Looking {
        given_ups: GivenUps,
        now: Instant,
        is_member: bool,
        wants_drain: bool,
        is_written_to: bool,
    }

    impl Looking {
        fn new() -> Self {
            let (given_ups, now) = (GivenUps::default(), Instant::now());
            Self { given_ups, now, is_member: true, wants_drain: false, is_written_to: false }
        }

        fn look(&mut self, state: &State) -> (Option<GivenUp>, Vec<GivenUp>) {
            let is_w1 = |id: &WorkerId| id.as_str() == "w1";
            let Self { is_member, wants_drain, is_written_to, .. } = *self;
            let news = self.given_ups.update(
                self.now,
                DEAD_AFTER,
                state,
                |id| !is_w1(id) || is_member,
                |id| is_w1(id) && wants_drain,
                |id| is_w1(id) && is_written_to,
            );
            (self.given_ups.get(&"w1".into()), news.into_iter().map(|news| news.why).collect())
        }
    }

    #[test]
    fn a_worker_that_asks_for_it_is_drained_as_long_as_it_is_there() {
        let (mut state, id) = state();
        let mut looking = Looking::new();
        assert_eq!(looking.look(&state), (None, vec![]));
        looking.wants_drain = true;
        assert_eq!(looking.look(&state), (Some(GivenUp::Draining), vec![GivenUp::Draining]));
        assert_eq!(looking.look(&state), (Some(GivenUp::Draining), vec![]));
        assert!(is_used(&state, &"w1".into()));
        empty_w1(&mut state, id);
        assert!(!is_used(&state, &"w1".into()));
        looking.is_written_to = true;
        assert_eq!(looking.look(&state), (Some(GivenUp::Draining), vec![]));
        looking.is_written_to = false;
        assert_eq!(looking.look(&state), (Some(GivenUp::Drained), vec![GivenUp::Drained]));
        // Its process has ended, and nobody remembers the wish.
        (looking.is_member, looking.wants_drain) = (false, false);
        assert_eq!(looking.look(&state), (None, vec![]));
        looking.is_member = true;
        assert_eq!(looking.look(&state), (None, vec![]), "it takes part again");
        assert_eq!(state.worker(&"w1".into()).map(|worker| worker.is_draining), Some(false));
    }

    #[test]
    fn what_an_operator_drains_stays_so_whatever_the_worker_asks_for() {
        let (mut state, id) = state();
        empty_w1(&mut state, id);
        apply(&mut state, Command::DrainWorker { worker: "w1".into(), is_draining: true });
        let mut looking = Looking::new();
        looking.wants_drain = true;
        assert_eq!(looking.look(&state), (Some(GivenUp::Drained), vec![GivenUp::Drained]));
        (looking.is_member, looking.wants_drain) = (false, false);
        assert_eq!(looking.look(&state), (Some(GivenUp::Drained), vec![]));
        looking.now += 2 * DEAD_AFTER;
        assert_eq!(looking.look(&state), (Some(GivenUp::Drained), vec![]), "nobody waits for it");
        apply(&mut state, Command::DrainWorker { worker: "w1".into(), is_draining: false });
        looking.is_member = true;
        assert_eq!(looking.look(&state), (None, vec![]));
    }
}
