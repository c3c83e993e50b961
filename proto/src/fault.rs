//! Named steps at which a test may end or stop this process, so
//! that a fault at each of them can be tried, and not only at random moments.
//!
//! Off, as everywhere but in tests, a step costs one load. On, the file that
//! [`FILE_VARIABLE`] names is read at every step: each of its lines is
//! `PID STEP ACTION`, where `*` is any process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// The environment variable that names the file of orders.
pub const FILE_VARIABLE: &str = "SHOAL_FAULT_POINTS";

/// How often a process that was stopped looks whether it may go on.
const STALL_CHECK: Duration = Duration::from_millis(20);

static ORDERS: OnceLock<Option<PathBuf>> = OnceLock::new();

/// A step that a process takes, of a write or of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A worker was told of a segment and made its file.
    StageCreated,
    /// A worker wrote all bytes of a segment; none are durable.
    StageWritten,
    /// The bytes and their checksums are durable, under temporary names.
    StageSynced,
    /// The checksums have their name, the segment has not.
    SumsRenamed,
    /// Both have their names; the directory is not durable.
    SegmentRenamed,
    /// The segment is there and durable; nobody was told.
    StageInstalled,
    /// A coordinator has begun a write.
    WriteBegun,
    /// A segment of it is encoded.
    SegmentEncoded,
    /// A segment of it is durable on its workers.
    SegmentStaged,
    /// All segments are; nothing is committed.
    WriteStaged,
    /// The commit is in the catalog's log; nobody sees it.
    CommitLogged,
    /// The commit is seen; the client was not told.
    WriteCommitted,
    /// The answer to the client is on its way.
    Replying,
    /// A coordinator has begun to compact a shard.
    CompactionBegun,
    /// All new segments are durable on their workers; nothing is committed.
    CompactionStaged,
    /// They are in the catalog, in the place of the old ones.
    CompactionCommitted,
    /// A batch of rows goes through the function `shoal_step`.
    TaskBatch,
}

impl Step {
    /// Those that a worker takes, in their order.
    pub const OF_WORKER: [Self; 6] = [
        Self::StageCreated,
        Self::StageWritten,
        Self::StageSynced,
        Self::SumsRenamed,
        Self::SegmentRenamed,
        Self::StageInstalled,
    ];
    /// Those that a coordinator takes, in their order. Those of a segment are a
    /// worker's where that loads.
    pub const OF_COORDINATOR: [Self; 7] = [
        Self::WriteBegun,
        Self::SegmentEncoded,
        Self::SegmentStaged,
        Self::WriteStaged,
        Self::CommitLogged,
        Self::WriteCommitted,
        Self::Replying,
    ];

    /// Those that a coordinator takes that compacts a shard, in their order.
    pub const OF_COMPACTION: [Self; 3] =
        [Self::CompactionBegun, Self::CompactionStaged, Self::CompactionCommitted];

    /// Its name in the file of orders.
    pub fn name(self) -> &'static str {
        match self {
            Self::StageCreated => "stage.created",
            Self::StageWritten => "stage.written",
            Self::StageSynced => "stage.synced",
            Self::SumsRenamed => "stage.sums_renamed",
            Self::SegmentRenamed => "stage.segment_renamed",
            Self::StageInstalled => "stage.installed",
            Self::WriteBegun => "write.begun",
            Self::SegmentEncoded => "write.segment_encoded",
            Self::SegmentStaged => "write.segment_staged",
            Self::WriteStaged => "write.staged",
            Self::CommitLogged => "commit.logged",
            Self::WriteCommitted => "write.committed",
            Self::Replying => "reply.sent",
            Self::CompactionBegun => "compaction.begun",
            Self::CompactionStaged => "compaction.staged",
            Self::CompactionCommitted => "compaction.committed",
            Self::TaskBatch => "task.batch",
        }
    }
}

/// What a process does at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends with SIGKILL: nothing is flushed, dropped or said.
    Kill,
    /// Blocks its thread until the file no longer says so, and with it what
    /// else would run there.
    Stall,
    /// Waits until the file no longer says so, and leaves the other tasks of
    /// its thread to another thread. Only in a runtime of several threads.
    Hold,
}

impl Action {
    /// Its name in the file of orders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stall => "stall",
            Self::Hold => "hold",
        }
    }
}

/// This process has come to `step`; returns at once, unless a test has given
/// orders for it.
pub fn point(step: Step) {
    if let Some(file) = ORDERS.get_or_init(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from)) {
        obey(file, step);
    }
}

fn obey(file: &Path, step: Step) {
    let mut is_said = false;
    while let Some(action) = ordered(file, step) {
        if !is_said {
            tracing::warn!(step = step.name(), action = action.name(), "a fault was ordered");
            is_said = true;
        }
        if action == Action::Kill
            && let Err(error) = kill_process(getpid(), Signal::KILL)
        {
            tracing::error!(%error, "this process cannot end itself");
        }
        let wait = || std::thread::sleep(STALL_CHECK);
        if action == Action::Hold { tokio::task::block_in_place(wait) } else { wait() }
    }
}

/// What the file orders this process to do at `step`; nothing where there is
/// no file.
fn ordered(file: &Path, step: Step) -> Option<Action> {
    let orders = std::fs::read_to_string(file).ok()?;
    let pid = std::process::id().to_string();
    orders.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_ours = words.next().is_some_and(|process| process == "*" || process == pid);
        if !is_ours || words.next() != Some(step.name()) {
            return None;
        }
        let action = words.next()?;
        [Action::Kill, Action::Stall, Action::Hold].into_iter().find(|known| known.name() == action)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_for_one_process_and_one_step() {
        let path = std::env::temp_dir().join(format!("shoal-fault-{}", uuid::Uuid::new_v4()));
        let (us, other) = (std::process::id(), std::process::id() + 1);
        for (orders, expected) in [
            (format!("{us} stage.synced kill"), Some(Action::Kill)),
            (format!("{other} stage.synced kill\n* stage.synced stall"), Some(Action::Stall)),
            (format!("{other} stage.synced kill"), None),
            (format!("{us} stage.synced hold"), Some(Action::Hold)),
            (format!("{us} stage.written kill"), None),
            (format!("{us} stage.synced explode"), None),
            (String::new(), None),
        ] {
            std::fs::write(&path, &orders).unwrap();
            assert_eq!(ordered(&path, Step::StageSynced), expected, "{orders}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(ordered(&path, Step::StageSynced), None);
    }

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let others = || Step::OF_COMPACTION.into_iter().chain([Step::TaskBatch]);
        let steps = || Step::OF_WORKER.into_iter().chain(Step::OF_COORDINATOR).chain(others());
        let names: std::collections::BTreeSet<_> = steps().map(Step::name).collect();
        assert_eq!(names.len(), steps().count(), "{names:?}");
    }
}
