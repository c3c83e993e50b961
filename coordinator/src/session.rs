//! One client's session: who it is, its settings, its notices.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use datafusion::config::ConfigOptions;
use parking_lot::Mutex;
use shoal_proto::WriteId;

use crate::Error;
use crate::sql::ShoalConfig;

/// Notices that are kept for a client that does not fetch them.
const NOTICES_MAX: usize = 100;
/// The setting that names the next write.
const WRITE_ID_SETTING: &str = "shoal.write_id";
/// Settings that the engine's correctness rests on.
const FIXED_PREFIXES: [&str; 8] = [
    "distributed.",
    "datafusion.catalog.create_default",
    "datafusion.catalog.information_schema",
    "datafusion.execution.target_partitions",
    // See `datafusion_defaults`: with more, queries can wait for good.
    "datafusion.execution.max_spill_file_size_bytes",
    // Takes filters away from above scans: `shoal.late_materialization` does not.
    "datafusion.execution.parquet.pushdown_filters",
    "datafusion.optimizer.preserve_file_partitions",
    "datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery",
];

/// Sessions that there ever were in this process.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// A session. Statements of one session see each other's settings.
pub struct Session {
    id: String,
    user: String,
    settings: Mutex<Settings>,
    notices: Mutex<VecDeque<String>>,
    used_at: Mutex<Instant>,
}

/// A session's settings at one moment.
#[derive(Clone)]
pub struct Settings {
    /// All of them, for planning.
    pub options: Arc<ConfigOptions>,
    /// Those of `datafusion.*` that the session changed, for the workers.
    pub changed: Vec<(String, String)>,
    /// The others that it changed.
    changed_here: Vec<(String, String)>,
    /// Counts the changes, so that a cached plan knows when it is old.
    pub version: u64,
    /// The number of their session, which no other one of this process has.
    pub session: u64,
    /// Whether the session is for one statement, which nobody sends in it again.
    pub is_passing: bool,
    defaults: Arc<ConfigOptions>,
}

impl Settings {
    /// All that the session changed, as [`Session::set`] takes it in another one.
    /// The id of its next write is not among them: that is for one write here.
    pub fn all_changed(&self) -> impl Iterator<Item = &(String, String)> {
        self.changed.iter().chain(&self.changed_here)
    }
}

impl Session {
    /// A session with the given settings to begin with.
    pub(crate) fn new(id: String, user: &str, defaults: Arc<ConfigOptions>) -> Self {
        let settings = Settings {
            options: Arc::clone(&defaults),
            changed: Vec::new(),
            changed_here: Vec::new(),
            version: 0,
            session: SESSIONS.fetch_add(1, Ordering::Relaxed),
            is_passing: false,
            defaults,
        };
        Self {
            id,
            user: user.to_owned(),
            settings: Mutex::new(settings),
            notices: Mutex::default(),
            used_at: Mutex::new(Instant::now()),
        }
    }

    /// The same session for one statement only.
    pub(crate) fn passing(self) -> Self {
        self.settings.lock().is_passing = true;
        self
    }

    /// Its secret id: the bearer token of its client.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who it belongs to.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Its settings now.
    pub fn settings(&self) -> Settings {
        self.settings.lock().clone()
    }

    /// Changes one setting, or sets it back with `None`.
    ///
    /// # Errors
    /// `Invalid`, naming the setting and the value; nothing is changed then.
    pub fn set(&self, name: &str, value: Option<&str>) -> Result<(), Error> {
        let name = name.to_lowercase();
        let name = match name.as_str() {
            "timezone" | "time.zone" | "time zone" => "datafusion.execution.time_zone".to_owned(),
            _ => name,
        };
        if let Some(fixed) = FIXED_PREFIXES.iter().find(|prefix| name.starts_with(*prefix)) {
            return Err(Error::Invalid(format!(
                "`{name}` cannot be changed: Shoal rests on `{fixed}*` as it is"
            )));
        }
        let mut settings = self.settings.lock();
        let mut options = settings.options.as_ref().clone();
        let value = match value {
            Some(value) => value.to_owned(),
            None => {
                let entries = settings.defaults.entries();
                let default = entries.into_iter().find(|entry| entry.key == name);
                default.and_then(|entry| entry.value).unwrap_or_default()
            }
        };
        options.set(&name, &value).map_err(|error| {
            Error::Invalid(format!("cannot set `{name}` to `{value}`: {}", error.strip_backtrace()))
        })?;
        let shoal = ShoalConfig::of(&options);
        shoal
            .query_memory_bytes()
            .map_err(|error| Error::Invalid(format!("cannot set `{name}`: {error}")))?;
        if name != WRITE_ID_SETTING {
            let changed = match name.starts_with("datafusion.") {
                true => &mut settings.changed,
                false => &mut settings.changed_here,
            };
            changed.retain(|(changed, _)| *changed != name);
            changed.push((name, value));
        }
        settings.options = Arc::new(options);
        settings.version += 1;
        Ok(())
    }

    /// The id that the client set for its next write; taken once.
    pub fn take_write_id(&self) -> Option<WriteId> {
        let id = ShoalConfig::of(&self.settings.lock().options).write_id;
        if id.is_empty() {
            return None;
        }
        let cleared = self.set(WRITE_ID_SETTING, Some(""));
        debug_assert!(cleared.is_ok(), "an empty write id can be set");
        Some(WriteId::new(id))
    }

    /// Tells the client something that is no error.
    pub fn notice(&self, notice: String) {
        let mut notices = self.notices.lock();
        if notices.len() == NOTICES_MAX {
            notices.pop_front();
        }
        notices.push_back(notice);
    }

    /// Notices since the last call, oldest first.
    pub fn take_notices(&self) -> Vec<String> {
        self.notices.lock().drain(..).collect()
    }

    /// The client was heard of.
    pub(crate) fn touch(&self) {
        *self.used_at.lock() = Instant::now();
    }

    /// When the client was heard of last.
    pub(crate) fn used_at(&self) -> Instant {
        *self.used_at.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let mut options = ConfigOptions::new();
        options.extensions.insert(ShoalConfig::default());
        Session::new("id".into(), "ada", Arc::new(options))
    }

    #[test]
    fn settings_change_and_go_back() {
        let session = session();
        session.set("datafusion.execution.batch_size", Some("100")).unwrap();
        session.set("TIMEZONE", Some("+02:00")).unwrap();
        assert_eq!(session.settings().options.execution.batch_size.get(), 100);
        assert_eq!(session.settings().changed.len(), 2);
        session.set("datafusion.execution.batch_size", None).unwrap();
        assert_eq!(session.settings().options.execution.batch_size.get(), 8192);
    }

    #[test]
    fn what_was_changed_can_be_set_in_another_session() {
        let first = session();
        for (name, value) in [
            ("shoal.task_bytes", Some("1MiB")),
            ("TIMEZONE", Some("+02:00")),
            ("shoal.task_bytes", Some("7MiB")),
            ("shoal.colocate", Some("false")),
            ("shoal.colocate", None),
            ("shoal.write_id", Some("w-1")),
        ] {
            first.set(name, value).unwrap();
        }
        let second = session();
        for (name, value) in first.settings().all_changed() {
            second.set(name, Some(value)).unwrap();
        }
        assert_eq!(second.take_write_id(), None);
        first.take_write_id().unwrap();
        let shown = |session: &Session| {
            let entries = session.settings().options.entries();
            entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&first), shown(&second));
        assert_eq!(ShoalConfig::of(&second.settings().options).task_bytes, 7 << 20);
        assert_eq!(second.settings().all_changed().count(), 3);
    }

    #[test]
    fn wrong_settings_change_nothing() {
        let session = session();
        for (name, value) in [
            ("datafusion.execution.batch_size", "many"),
            ("datafusion.execution.target_partitions", "1"),
            ("datafusion.execution.max_spill_file_size_bytes", "1000000"),
            ("datafusion.execution.parquet.pushdown_filters", "true"),
            ("shoal.query_memory", "lots"),
            ("shoal.colour", "red"),
        ] {
            let message = session.set(name, Some(value)).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(session.settings().version, 0);
    }

    #[test]
    fn a_write_id_is_used_once() {
        let session = session();
        session.set("shoal.write_id", Some("w-1")).unwrap();
        assert_eq!(session.take_write_id(), Some(WriteId::new("w-1")));
        assert_eq!(session.take_write_id(), None);
    }
}
