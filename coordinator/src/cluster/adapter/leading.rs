//! What only one of the coordinators does: the one that leads looks after what
//! workers hold. Queries, writes and the news of workers concern all of them.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shoal_data::SegmentName;

use super::Cluster;
use crate::catalog::{COMMANDS, Call, Coordinator, shown_term};
use crate::cluster::going::Needs;
use crate::cluster::repairing::Repairing;

/// How long another coordinator may take to say what it needs.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(1);
/// After so long without a word of a coordinator its queries are not waited for.
/// Those that still read something that is gone fail; they are never wrong.
const UNHEARD_MAX: Duration = Duration::from_secs(60);
/// A round that takes so long is told: what workers wait for comes later then.
const ROUND_TOLD: Duration = Duration::from_millis(250);

/// What all coordinators need of segments that wait to be removed.
#[derive(Debug)]
pub(super) struct Answered {
    /// In which they were asked.
    term: u64,
    asked: Vec<SegmentName>,
    answers: Vec<Option<Needs>>,
}

impl Cluster {
    /// One round of all that is done for tables and workers.
    pub(super) async fn look_after_workers(&self) {
        let began = Instant::now();
        let leads = self.lead();
        self.collect(leads);
        self.give_up(Instant::now());
        if let Some(term) = leads {
            self.record_fetched().await;
            self.remove_what_nobody_needs(term).await;
            self.place_anew().await;
            self.order_copies(Instant::now());
            if !self.core.lock().going.is_empty() {
                self.to_ask.notify_one();
            }
        }
        let took = began.elapsed();
        if took >= ROUND_TOLD {
            let round_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(round_ms, "a round of looking after the workers took long");
        }
    }

    /// The term in which this coordinator leads. A new leader has every worker
    /// say what it holds: the one before may have told it to nobody.
    pub(super) fn lead(&self) -> Option<u64> {
        let term = self.catalog.term();
        let leads = self.catalog.is_leader().then_some(term);
        let mut core = self.core.lock();
        let core = &mut *core;
        if core.leads_in != leads {
            core.leads_in = leads;
            core.going.clear();
            core.answered = None;
            core.fetched.clear();
            core.fetching.clear();
            core.repairing = Repairing::default();
            self.repairs.store(false, Ordering::Relaxed);
            core.silences.clear();
            if leads.is_some() {
                tracing::info!(term = shown_term(term), "this coordinator looks after the workers now");
                // Also those that have not beaten yet, or are suspected: they may by and by.
                for worker in core.membership.members() {
                    core.waiting.entry(worker.clone()).or_default().report = true;
                }
            }
        }
        leads
    }

    /// What this coordinator needs of these segments, in answer to the leader.
    pub fn needs(&self, asked: &[SegmentName]) -> Needs {
        // The version before the pins: whoever pins from now on reads it or a
        // newer one.
        let version = self.catalog.snapshot().version;
        let core = self.core.lock();
        let staged: HashSet<_> = core.protected.values().flat_map(|staged| staged.keys()).collect();
        Needs {
            version,
            oldest_read: self.pins.oldest(),
            staged: asked.iter().filter(|name| staged.contains(name)).copied().collect(),
            reads: COMMANDS,
        }
    }

    /// Asks all coordinators what they need of what waits to be removed, and has a
    /// round remove what is free by that. No round waits for whoever is silent.
    pub(super) async fn ask_needs(&self) {
        let (term, mut asked) = {
            let mut core = self.core.lock();
            let Some(term) = core.leads_in else { return };
            (term, core.going.asked())
        };
        // What a query here reads stays until that ends, whatever the others say.
        asked.retain(|name| self.pins.retired(name).is_none());
        if asked.is_empty() {
            return;
        }
        let mut answers = vec![Some(self.needs(&asked))];
        let all = self.catalog.coordinators();
        let others: Vec<&Coordinator> = all.iter().filter(|it| !it.is_self).collect();
        let peers = &self.catalog.consensus().peers;
        let calls =
            others.iter().map(|it| peers.call((Some(it.id), &it.address), Call::Needs, &asked, ANSWER_MAX));
        let said: Vec<Result<Needs, _>> = join_all(calls).await;
        let now = Instant::now();
        let mut core = self.core.lock();
        if core.leads_in != Some(term) {
            return;
        }
        let mut may_answer_yet = false;
        for (other, said) in others.iter().zip(said) {
            match said {
                Ok(needs) => {
                    core.silences.answered(&other.address);
                    answers.push(Some(needs));
                }
                Err(_) if core.silences.failed(now, &other.address) > UNHEARD_MAX => answers.push(None),
                Err(_) => may_answer_yet = true,
            }
        }
        if may_answer_yet || !core.going.is_any_free(&asked, &answers) {
            return;
        }
        core.answered = Some(Answered { term, asked, answers });
        drop(core);
        self.changed.notify_one();
    }

    /// Removes what was dropped, and what no write is about to commit, where all
    /// coordinators have said since the last round that they do not need it.
    pub(super) async fn remove_what_nobody_needs(&self, term: u64) {
        let answered = self.core.lock().answered.take();
        let Some(Answered { mut asked, answers, .. }) = answered.filter(|it| it.term == term) else { return };
        // Another one may lead by now, and have decided otherwise. And a change that is
        // in the log may still be made, also one of a coordinator that has forgotten it.
        if self.catalog.apply_all(term).await.is_err() || self.lead() != Some(term) {
            return;
        }
        // What nobody knew when it was asked about may have come into the catalog since,
        // and gone again: who reads a snapshot in between reads it.
        let state = self.catalog.snapshot();
        self.collect(Some(term));
        asked.retain(|name| self.pins.retired(name).is_none());
        let mut free = self.core.lock().going.release(&asked, &answers);
        // What a write has committed meanwhile is not unknown any more.
        free.retain_mut(|(name, workers)| {
            let replicas = state.segment(name).map(|segment| &segment.replicas);
            workers.retain(|worker| !replicas.is_some_and(|replicas| replicas.contains(worker)));
            !workers.is_empty()
        });
        if !free.is_empty() {
            tracing::info!(segments = free.len(), "segments that nobody needs are removed");
            self.discard_in(term, free);
        }
    }
}
