//! Queries that are answered with a kept result, and results that are kept. A hit
//! costs what the statement's text, the settings and the names in it take to be
//! compared: nothing is planned, nobody waits for a turn, and no worker is asked.
//! The catalog is read as for any query: what is newer is seen.

use std::sync::Arc;
use std::time::Duration;

use datafusion::logical_expr::LogicalPlan;
use tokio_util::sync::CancellationToken;

use super::planned::bytes_of;
use super::{Engine, Parameters, Prepared, Scope};
use crate::catalog::State;
use crate::query::{Filling, KeptResult, ResultKey, never_kept};
use crate::session::Settings;
use crate::sql::{RESULT_CACHE_SETTING, ShoalConfig};
use crate::{Error, Session};

/// A statement of more bytes, or with more of parameters, has no result that is kept: to
/// compare it takes longer, and it is hardly asked again.
const KEY_BYTES_MAX: usize = 64 << 10;
/// How often at most it is looked for results that are no answer any more.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Engine {
    /// The key of a query, with `values` in the place of its parameters; none where it is
    /// too large, or the session does without kept results, or there are none: nothing is
    /// done then.
    pub(super) fn result_key(
        &self,
        settings: &Settings,
        sql: &str,
        values: impl FnOnce() -> Result<Parameters, Error>,
    ) -> Option<ResultKey> {
        // Who stops sends its clients elsewhere.
        if !self.results.is_on() || !wants_kept(settings) || self.admission.is_closed() {
            return None;
        }
        if sql.len() > KEY_BYTES_MAX {
            return None;
        }
        // What is wrong with them is told where the query is run.
        let values = values().ok().filter(|values| bytes_of(values) <= KEY_BYTES_MAX)?;
        let parameters = values.into_iter().map(|value| (value.data_type(), value)).collect();
        let changed = settings.all_changed().filter(|(name, _)| name != RESULT_CACHE_SETTING);
        let mut settings: Vec<_> = changed.cloned().collect();
        settings.sort_unstable();
        let statement = sql.trim().trim_end_matches(';').trim_end().to_owned();
        Some(ResultKey { statement, parameters, settings })
    }

    /// The kept result of a query, where it is right in this state of the catalog.
    pub(super) fn kept_result(&self, key: &ResultKey, state: &State) -> Option<Arc<KeptResult>> {
        self.results.find(key, state)
    }

    /// Begins to keep the result of a query that is about to run; none where it must
    /// not be kept. `plan` is not optimised, or has no part that changes by itself.
    pub(super) fn filling(
        &self,
        key: ResultKey,
        session: &Session,
        scope: &Scope,
        prepared: &Prepared,
        plan: &LogicalPlan,
    ) -> Option<Filling> {
        if let Some(why) = never_kept(plan) {
            tracing::debug!(%why, "result is not kept");
            return None;
        }
        Some(self.results.fill(key, prepared.grounds(session, scope)?))
    }

    /// What EXPLAIN ANALYZE, which runs its query always, says of the result; none in
    /// sessions that do without.
    pub(super) fn kept_line(&self, settings: &Settings, plan: &LogicalPlan) -> Option<String> {
        if !wants_kept(settings) {
            return None;
        }
        let what = match never_kept(plan) {
            _ if !self.results.is_on() => "this coordinator keeps none".to_owned(),
            Some(why) => format!("this result is never kept: {why}"),
            None => "not used by EXPLAIN ANALYZE; without it this result may be kept".to_owned(),
        };
        Some(format!("result cache: {what}\n"))
    }

    /// Tells a session that switches the result cache on where there is none.
    pub(super) fn tell_of_no_results(&self, session: &Session, setting: &str) {
        let is_it = setting.eq_ignore_ascii_case(RESULT_CACHE_SETTING);
        if is_it && wants_kept(&session.settings()) && !self.results.is_on() {
            session
                .notice("this coordinator keeps no results: it was started with --result-cache 0".to_owned());
        }
    }

    /// Forgets results that no query can get any more, soon after the catalog has
    /// changed, until `stop`.
    pub async fn forget_results_in_background(&self, stop: CancellationToken) {
        if !self.results.is_on() {
            return;
        }
        let mut catalog = self.cluster.catalog().watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = catalog.changed() => if changed.is_err() { return },
            }
            let newest = Arc::clone(&catalog.borrow_and_update());
            // Each may be the first to ask about a large table: that is not for the network.
            let results = self.results.clone();
            let looked = self.on_compute(async move {
                results.forget_outdated(&newest);
                Ok(())
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "results that are no answer any more stay until they are asked for");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }
}

fn wants_kept(settings: &Settings) -> bool {
    ShoalConfig::of(&settings.options).result_cache
}
