//! Plans of queries that were sent as text, so that a text that is sent again is not
//! parsed, planned and optimised again: as a prepared statement keeps its own.
//!
//! They are of one version of the catalog, the newest that anybody asked in: what
//! changes the catalog forgets them all.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use parking_lot::Mutex;

use super::planned::Planned;
use crate::Session;
use crate::query::never_kept;
use crate::session::Settings;
use crate::sql::Statement;

/// Plans that one coordinator keeps.
const PLANS_MAX: usize = 256;
/// A longer text is planned each time: its plan is large, and it is hardly sent again.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// A query's text, its plan, and what its client is told of it.
#[derive(Clone)]
pub(super) struct KeptPlan {
    pub(super) statement: Statement,
    pub(super) columns: SchemaRef,
    pub(super) parameters: Schema,
    pub(super) planned: Arc<Planned>,
}

/// The plans that one coordinator keeps. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct KeptPlans(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    catalog_version: u64,
    by_text: HashMap<Key, Entry>,
    /// Counts what was found and kept.
    now: u64,
}

/// For whom a text was planned, and the text. Sessions that changed no setting share
/// their plans.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    session: Option<u64>,
    settings_version: u64,
    text: Arc<str>,
}

struct Entry {
    plan: KeptPlan,
    used_at: u64,
}

impl Key {
    /// None for a text of which no plan is kept.
    fn of(settings: &Settings, text: &str) -> Option<Self> {
        // With settings of its own, which end with it: nobody would ever find the plan.
        let is_for_nobody = settings.is_passing && settings.version > 0;
        (text.len() <= TEXT_BYTES_MAX && !is_for_nobody).then(|| Self {
            session: (settings.version > 0).then_some(settings.session),
            settings_version: settings.version,
            text: text.into(),
        })
    }
}

impl KeptPlans {
    /// Whether there may be a plan of this text. Where there is not, it need not be
    /// asked which version of the catalog is the newest.
    pub(super) fn may_have(&self, settings: &Settings, text: &str) -> bool {
        Key::of(settings, text).is_some_and(|key| self.0.lock().by_text.contains_key(&key))
    }

    /// The plan of this text, where it is for this session and this version of the
    /// catalog, of which a majority said that it is the newest.
    pub(super) fn find(
        &self,
        session: &Session,
        settings: &Settings,
        catalog_version: u64,
        text: &str,
    ) -> Option<KeptPlan> {
        let key = Key::of(settings, text)?;
        let mut kept = self.0.lock();
        kept.now += 1;
        let now = kept.now;
        let entry = kept.by_text.get_mut(&key)?;
        if !entry.plan.planned.is_for(session, settings, catalog_version) {
            return None;
        }
        entry.used_at = now;
        Some(entry.plan.clone())
    }

    /// Keeps the plan of this text, where it is right whenever it is run in this version
    /// of the catalog: it is optimised, and nothing that it reads can change without the
    /// catalog, such as an external file.
    pub(super) fn keep(&self, settings: &Settings, catalog_version: u64, text: &str, plan: KeptPlan) {
        let Some(key) = Key::of(settings, text) else { return };
        let planned = &plan.planned;
        if !planned.is_optimised() || planned.reads_own_tables() || never_kept(planned.plan()).is_some() {
            return;
        }
        let mut forgotten: Vec<Entry> = Vec::new();
        let mut kept = self.0.lock();
        if catalog_version < kept.catalog_version {
            return;
        }
        if catalog_version > kept.catalog_version {
            kept.catalog_version = catalog_version;
            forgotten.extend(std::mem::take(&mut kept.by_text).into_values());
        }
        if kept.by_text.len() >= PLANS_MAX
            && !kept.by_text.contains_key(&key)
            && let Some(oldest) =
                kept.by_text.iter().min_by_key(|(_, entry)| entry.used_at).map(|(key, _)| key.clone())
        {
            forgotten.extend(kept.by_text.remove(&oldest));
        }
        kept.now += 1;
        // As many physical plans are kept as there are entries here.
        plan.planned.whole().inspect(|whole| whole.open());
        let entry = Entry { plan, used_at: kept.now };
        forgotten.extend(kept.by_text.insert(key, entry));
        // Many plans are dropped when nobody waits for the lock.
        drop(kept);
        for Entry { plan, .. } in forgotten {
            // Prepared statements may have them yet.
            plan.planned.whole().inspect(|whole| whole.close());
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().by_text.len()
    }
}

#[cfg(test)]
mod tests;
