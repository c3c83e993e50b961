//! What is done for tables whatever is asked of them: what was dropped is
//! removed, and copies that are missing are made.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::{Cluster, candidates};
use crate::catalog::Command;
use crate::cluster::{placement, repair};

/// Copies that one worker makes at a time.
const FETCHES_MAX: usize = 16;
/// After so long a copy that was ordered is ordered again.
const FETCH_MAX: Duration = Duration::from_secs(60);

impl Cluster {
    /// Removes what was dropped and no query reads any more.
    pub(super) fn collect(&self) {
        let free = self.pins.collect(|| self.catalog.take_dropped());
        if !free.is_empty() {
            tracing::info!(segments = free.len(), "dropped segments are removed");
            self.discard(free.iter().map(|segment| (segment.name(), segment.replicas.clone())).collect());
        }
    }

    /// Brings copies that were made into the catalog, then lets them count.
    pub(super) async fn record_fetched(&self) {
        let fetched = std::mem::take(&mut self.core.lock().fetched);
        let commands = fetched.iter().map(|(worker, name)| {
            let worker = worker.clone();
            self.catalog.apply(Command::AddReplica { table: name.table, segment: name.segment, worker })
        });
        let outcomes = join_all(commands).await;
        let mut core = self.core.lock();
        for ((worker, name), outcome) in fetched.iter().zip(outcomes) {
            match outcome {
                Ok(_) => core.membership.gained(worker, name),
                Err(error) => tracing::warn!(%worker, segment = %name, %error, "copy not recorded"),
            }
        }
        if !fetched.is_empty() {
            self.publish(&core);
        }
    }

    /// Gives workers that came later a part in tables with too few copies.
    pub(super) async fn extend_placements(&self) {
        let workers = candidates(&self.live());
        let state = self.catalog.snapshot();
        let short = state.tables().filter_map(|table| Some((table, placement::extend(table, &workers)?)));
        let commands = short.map(|(table, placement)| {
            tracing::info!(table = %table.full_name(), "table gets more copies");
            self.catalog.apply(Command::ExtendPlacement { table: table.id, placement })
        });
        for error in join_all(commands).await.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "placement not extended");
        }
    }

    pub(super) fn order_copies(&self, now: Instant) {
        let live = self.live();
        let state = self.catalog.snapshot();
        let mut core = self.core.lock();
        let core = &mut *core;
        for fetching in core.fetching.values_mut() {
            fetching.retain(|_, since| now.saturating_duration_since(*since) < FETCH_MAX);
        }
        let fetching = &core.fetching;
        let orders = repair::missing(&state, &live, FETCHES_MAX, |worker, name| {
            let under_way = fetching.get(worker);
            under_way.is_some_and(|names| names.len() >= FETCHES_MAX || names.contains_key(name))
        });
        for (worker, request) in orders {
            let Ok(name) = request.name.parse() else {
                continue;
            };
            core.fetching.entry(worker.clone()).or_default().insert(name, now);
            core.waiting.entry(worker).or_default().fetch.push(request);
        }
    }
}
