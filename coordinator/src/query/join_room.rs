//! How much memory the hash joins of a plan may take, as the planner's rules are told
//! it: beside the settings of the session, but no setting itself.

use std::any::Any;

use datafusion::common::{DataFusionError, Result};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};

use super::view::View;

/// Of the memory that a query may hold on a worker, hash joins may be expected to take one
/// part in so many. What is expected may be wrong by a factor; while a hash join puts its rows
/// together it holds them twice, and is asked for them once; and all else needs some, too.
const SHARE: u64 = 2;

/// How an attempt at a query joins by equality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Joins {
    /// By hash where that is expected to fit in memory, and else by merging sorted sides.
    #[default]
    ByRoom,
    /// By merging wherever that is possible.
    Merged,
    /// By hash.
    Hashed,
}

/// What the hash joins of one plan may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JoinRoom {
    pub(super) joins: Joins,
    /// For all hash joins of the plan together, on one worker.
    pub(super) bytes: u64,
    /// The most tasks that a stage may have.
    pub(super) tasks_max: usize,
    /// Bytes of a scan that one of them is worth.
    pub(super) task_bytes: u64,
}

impl JoinRoom {
    /// The room that there is where a query may hold so much on a node, and stages have so
    /// many tasks.
    pub(super) fn new(
        joins: Joins,
        query_bytes: u64,
        view: &View,
        tasks_max: usize,
        task_bytes: u64,
    ) -> Self {
        let least = view.least_memory_bytes().unwrap_or(u64::MAX);
        Self { joins, bytes: query_bytes.min(least) / SHARE, tasks_max: tasks_max.max(1), task_bytes }
    }

    /// What a plan's rules were told; none where that is nothing.
    pub(super) fn of(options: &ConfigOptions) -> Option<Self> {
        options.extensions.get::<Self>().copied()
    }
}

impl ConfigExtension for JoinRoom {
    const PREFIX: &'static str = "shoal_join_room";
}

impl ExtensionOptions for JoinRoom {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(*self)
    }

    fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(DataFusionError::Configuration(format!("`{}.{key}` is no setting", Self::PREFIX)))
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}
