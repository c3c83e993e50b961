//! What is done for tables whatever is asked of them: what was dropped is
//! removed, shards get workers that can hold them, and copies that are missing
//! are made.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shoal_data::SegmentName;
use shoal_proto::WorkerId;

use super::{AtRest, Cluster, Copied, Core, Ordered, draining};
use crate::catalog::{Command, Dropped, Outcome, State};
use crate::cluster::disk::fills;
use crate::cluster::events::EventKind;
use crate::cluster::given_up::{GivenUp, News};
use crate::cluster::moves::{self, Moved};
use crate::cluster::repair;

/// Urgent copies that one worker has orders for at a time, and as many others: it
/// makes fewer at a time, and is not to wait for the next order.
const FETCHES_MAX: usize = 16;
/// Copies that one command records.
const COPIES_MAX: usize = 10_000;
/// Moves of one table that are told one by one.
const MOVES_TOLD_MAX: usize = 16;
/// After so long a copy that was ordered is ordered again.
const FETCH_MAX: Duration = Duration::from_secs(60);

impl Cluster {
    /// Takes note of what was dropped and no query here reads any more. Who
    /// leads removes it once none of the other coordinators' queries does.
    pub(super) fn collect(&self, leads: Option<u64>) {
        let free = self.pins.collect(|| self.catalog.take_dropped());
        if leads.is_none() {
            return;
        }
        let mut core = self.core.lock();
        for Dropped { version, segment } in free {
            core.going.dropped(segment.name(), version, segment.bytes, segment.replicas.iter().cloned());
        }
    }

    /// Brings copies that were made into the catalog, then lets them count.
    pub(super) async fn record_fetched(&self) {
        // They stay in the list meanwhile: nobody may order to remove them.
        let (fetched, leads_in) = {
            let core = self.core.lock();
            (core.fetched.clone(), core.leads_in)
        };
        let Some(term) = leads_in else { return };
        for copies in fetched.chunks(COPIES_MAX) {
            self.record_copies(term, copies).await;
        }
    }

    /// The same for so many that one command can carry: each command makes the
    /// tables anew that it changes.
    async fn record_copies(&self, term: u64, copies: &[Copied]) {
        let mut by_worker: BTreeMap<&WorkerId, Vec<SegmentName>> = BTreeMap::new();
        for Copied { worker, name, .. } in copies {
            by_worker.entry(worker).or_default().push(*name);
        }
        let by_worker = by_worker.into_iter().map(|(worker, names)| (worker.clone(), names));
        let command = Command::AddReplicas { copies: by_worker.collect() };
        let on_disk = |it: &Copied| (it.name.segment, it.worker.clone(), it.disk.clone());
        let command = command.on_disks(copies.iter().map(on_disk));
        let outcome = self.catalog.apply_in(term, command).await;
        let state = self.catalog.snapshot();
        let mut core = self.core.lock();
        let recorded = copies.len().min(core.fetched.len());
        core.fetched.drain(..recorded);
        match outcome {
            Ok(_) => {
                for Copied { worker, name, disk, is_urgent } in copies {
                    // A table or segment that was dropped meanwhile needs no copy.
                    let Some(segment) = state.segment(name) else {
                        core.going.dropped(*name, state.version, 0, [worker.clone()]);
                        continue;
                    };
                    if *is_urgent && segment.replicas.contains(worker) {
                        core.repairing.made(Instant::now(), segment.bytes);
                    }
                    if core.membership.disk(worker) == Some(disk.as_str()) {
                        core.membership.gained(worker, name);
                    }
                }
            }
            Err(error) => tracing::warn!(copies = copies.len(), %error, "copies not recorded"),
        }
        self.publish(&core);
    }

    /// Finds out whose shards should leave them, and tells it.
    pub(super) fn give_up(&self, now: Instant) {
        let state = self.catalog.snapshot();
        // Others wait for the lock.
        for table in state.tables() {
            state.facts(table).workers();
        }
        let mut core = self.core.lock();
        let Core { given_up, membership, protected, .. } = &mut *core;
        let is_written_to = |id: &WorkerId| draining::is_written_to(protected, id);
        let is_member = |id: &WorkerId| membership.is_member(id);
        let wants_drain = |id: &WorkerId| membership.wants_drain(id);
        for news in given_up.update(now, self.dead_after, &state, is_member, wants_drain, is_written_to) {
            self.tell_given_up(&news);
        }
    }

    fn tell_given_up(&self, News { worker, why, is_used }: &News) {
        let away = self.dead_after.as_secs_f64();
        let (kind, message) = match why {
            GivenUp::Dead if *is_used => {
                (EventKind::Dead, format!("away for {away:.0} s: its shards get other workers"))
            }
            GivenUp::Dead => (EventKind::Dead, format!("away for {away:.0} s; it held nothing")),
            GivenUp::Draining => (EventKind::Draining, "its shards get other workers".to_owned()),
            GivenUp::Drained => (EventKind::Drained, "nothing is left on it: it may be stopped".to_owned()),
        };
        tracing::warn!(%worker, kind = kind.name(), message);
        self.events.tell(kind, Some(worker), message);
    }

    /// Gives shards other workers: where there are too few copies or too many,
    /// where workers are given up, and, when all that is done, where workers
    /// hold more than others. Takes out copies that are too many then.
    pub(super) async fn place_anew(&self) {
        let live = self.live();
        let state = self.catalog.snapshot();
        let workers = self.candidates(&live, &state);
        let Some(term) = self.core.lock().leads_in else { return };
        // The same follows from the same: to look at a large catalog takes a while.
        let disks = fills(&workers).into_iter().zip(workers.iter().map(|worker| worker.disk.rounded()));
        let at_rest = AtRest {
            version: state.version,
            generation: live.generation,
            leave: self.core.lock().given_up.leaving(),
            disks: disks.collect(),
        };
        if self.core.lock().at_rest.as_ref() == Some(&at_rest) {
            return;
        }
        let commands = moves::due(&state, &live, &workers, &at_rest.leave);
        if commands.is_empty() {
            self.core.lock().at_rest = Some(at_rest);
            return;
        }
        self.carry_out(term, &state, commands).await;
    }

    /// Carries out what was decided on in this state by the leader of this term, and
    /// tells it; the shards that go elsewhere by that.
    pub(super) async fn carry_out(&self, term: u64, state: &State, commands: Vec<Command>) -> Vec<Moved> {
        let changes: Vec<_> = commands.iter().map(|command| moves::changes(state, command)).collect();
        let making = commands.into_iter().map(|command| self.catalog.apply_in(term, command));
        let outcomes = join_all(making).await;
        let mut moved = Vec::new();
        for (changes, outcome) in changes.into_iter().zip(outcomes) {
            match outcome {
                Ok(Outcome::Done) => {
                    self.tell_moved(&changes);
                    moved.extend(changes);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "shards not moved"),
            }
        }
        moved
    }

    /// Few moves one by one, many in one line.
    fn tell_moved(&self, moved: &[Moved]) {
        let lines = match moved {
            [first, .., last] if moved.len() > MOVES_TOLD_MAX => {
                vec![format!(
                    "{} moves of shards of {}, such as {first} and {last}",
                    moved.len(),
                    first.table
                )]
            }
            few => few.iter().map(Moved::to_string).collect(),
        };
        for line in lines {
            tracing::info!("{line}");
            self.events.tell(EventKind::Moved, None, line);
        }
    }

    /// Whether copies are being made of what has too few, as of the last round: for
    /// those who ask all the time.
    pub fn is_repairing(&self) -> bool {
        self.repairs.load(Ordering::Relaxed)
    }

    pub(super) fn order_copies(&self, now: Instant) {
        let live = self.live();
        let state = self.catalog.snapshot();
        let mut core = self.core.lock();
        let core = &mut *core;
        for fetching in core.fetching.values_mut() {
            fetching.retain(|_, ordered| now.saturating_duration_since(ordered.at) < FETCH_MAX);
        }
        let fetching = &core.fetching;
        // Since the round began, and the catalog does not have them.
        let made: HashSet<_> = core.fetched.iter().map(|it| (&it.worker, it.name)).collect();
        let orders = repair::missing(&state, &live, FETCHES_MAX, |worker, name, is_urgent| {
            if made.contains(&(worker, *name)) {
                return true;
            }
            let Some(ordered) = fetching.get(worker) else { return false };
            // What only moved may be urgent by now.
            let is_ordered = ordered.get(name).is_some_and(|it| it.is_urgent || !is_urgent);
            is_ordered || ordered.values().filter(|it| it.is_urgent == is_urgent).count() >= FETCHES_MAX
        });
        let is_any = !orders.is_empty();
        for (worker, mut request) in orders {
            let Ok(name) = request.name.parse() else {
                continue;
            };
            let is_urgent = request.urgent;
            request.bytes_per_second = self.rates.bytes_per_second(is_urgent);
            if is_urgent {
                core.repairing.ordered(now);
            }
            core.fetching.entry(worker.clone()).or_default().insert(name, Ordered { at: now, is_urgent });
            core.waiting.entry(worker).or_default().fetch.push(request);
        }
        let ordered = core.fetching.values().flat_map(|ordered| ordered.values());
        let urgent = ordered.filter(|it| it.is_urgent).map(|it| it.at);
        // Another one may lead since the round began.
        let repairs = core.leads_in.is_some() && core.repairing.gets_on(now, urgent.clone());
        self.repairs.store(repairs, Ordering::Relaxed);
        let is_over = core.repairing.stands_still(now, FETCH_MAX)
            // What was made since the round began is not in the catalog yet.
            || (urgent.count() == 0 && !core.fetched.iter().any(|it| it.is_urgent));
        if core.leads_in.is_some()
            && is_over
            && let Some(repaired) = core.repairing.ended()
        {
            tracing::info!("{repaired}");
            self.events.tell(EventKind::Repaired, None, repaired.to_string());
        }
        if is_any {
            self.ordered.send_replace(());
        }
    }
}
