//! REBALANCE: what evenness would wait with is decided now.

use std::time::{Duration, Instant};

use futures::FutureExt;
use serde::{Deserialize, Serialize};
use shoal_proto::Failure;

use super::Cluster;
use crate::Error;
use crate::catalog::{Answer, Call};
use crate::cluster::moves::{self, Moved};
use crate::cluster::repair;

/// How long whoever leads may be looked for, and may take.
const REBALANCE_MAX: Duration = Duration::from_secs(30);
/// How often a few moves are decided on. What is left after that can be asked for
/// again.
const ROUNDS_MAX: usize = 32;

/// What came of a REBALANCE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebalanced {
    /// The shards that go elsewhere.
    pub moved: Vec<Moved>,
    /// Why none does, for people to read; empty where some do.
    pub why_not: String,
}

impl Cluster {
    /// Gives shards other workers until all hold as much as they should, whoever
    /// is away and whatever is still being copied. Who leads decides, also where
    /// that is another coordinator.
    ///
    /// # Errors
    /// `Unavailable` where nobody leads, or no majority answers.
    pub async fn rebalance(&self) -> Result<Rebalanced, Error> {
        // Without a majority nobody need be looked for.
        self.catalog.catch_up().await?;
        let consensus = self.catalog.consensus();
        let asked = consensus.ask_leader(Call::Rebalance, &(), REBALANCE_MAX, || self.rebalance_here());
        asked.boxed().await
    }

    /// [`Self::rebalance`], as the leader.
    ///
    /// # Errors
    /// None in practice: what cannot be carried out does not move.
    pub async fn rebalance_here(&self) -> Result<Answer<Rebalanced>, Failure> {
        let Some(term) = self.lead() else { return Ok(Answer::NotLeader) };
        self.give_up(Instant::now());
        let mut moved = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let state = self.catalog.snapshot();
            let workers = self.candidates(&self.live(), &state);
            let leave = self.core.lock().given_up.leaving();
            let commands = moves::at_once(&state, &workers, &leave);
            let begun = self.carry_out(term, &state, commands).await;
            if begun.is_empty() {
                break;
            }
            moved.extend(begun);
        }
        let why_not = if moved.is_empty() { self.why_not() } else { String::new() };
        Ok(Answer::Done(Rebalanced { moved, why_not }))
    }

    fn why_not(&self) -> String {
        let (live, state) = (self.live(), self.catalog.snapshot());
        let why_not = moves::why_not(&state, &self.candidates(&live, &state));
        let is_copied = !repair::missing(&state, &live, 1, |_, _, _| false).is_empty();
        let meanwhile = if is_copied { "; copies are still being made (system.moves)" } else { "" };
        format!("{why_not}{meanwhile}")
    }
}
