//! Everything that can change the catalog. Commands are kept on disk as JSON
//! for ever: fields are only added, and with a default.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};
use shoal_data::table::schema_serde;
use shoal_data::{ReplicaCount, Segment, SegmentName, Sketches, Table, sketch};
use shoal_proto::{SegmentId, TableId, WorkerId, WriteId};

/// The newest commands that this program reads, of those that wait until all
/// coordinators do: it is one more for each that an older program cannot read.
/// Coordinators tell one another. 1: [`Command::Compact`].
pub const COMMANDS: u32 = 1;

/// One change, applied as a whole or not at all.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Makes a schema.
    CreateSchema {
        /// Its name.
        name: String,
        /// Whether an existing one is left as it is.
        if_not_exists: bool,
    },
    /// Removes a schema.
    DropSchema {
        /// Its name.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
        /// Whether what it holds goes with it; otherwise it must be empty.
        cascade: bool,
    },
    /// Takes a table id that no other table ever had.
    ReserveTable,
    /// Makes a table, with the segments that it starts with.
    CreateTable {
        /// The table; its id was reserved.
        table: Table,
        /// Whether an existing one is left as it is.
        if_not_exists: bool,
        /// The write that filled it, for `CREATE TABLE AS`.
        #[serde(default)]
        write: Option<WriteRecord>,
    },
    /// Makes a table, in the place of the one of that name if there is one.
    ReplaceTable {
        /// The table; its id was reserved.
        table: Table,
        /// The write that filled it.
        #[serde(default)]
        write: Option<WriteRecord>,
    },
    /// Removes a table and its segments.
    DropTable {
        /// The schema.
        schema_name: String,
        /// The table.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// Makes a view.
    CreateView {
        /// The view.
        view: View,
        /// Whether it takes the place of a view of that name.
        or_replace: bool,
    },
    /// Removes a view.
    DropView {
        /// The schema.
        schema_name: String,
        /// The view.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// Makes an external table.
    CreateExternal {
        /// The external table.
        table: ExternalTable,
        /// Whether an existing one is left as it is.
        if_not_exists: bool,
        /// Whether it takes the place of an external table of that name.
        or_replace: bool,
    },
    /// Removes an external table; its files stay.
    DropExternal {
        /// The schema.
        schema_name: String,
        /// The external table.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// Adds the segments of one write, all shards at once.
    CommitWrite {
        /// The write.
        write: WriteRecord,
        /// Where to.
        table: TableId,
        /// Its segments, with the workers on which they are durable.
        segments: Vec<Segment>,
        /// Whether they take the place of all that the table has.
        replace: bool,
        /// How many distinct values their columns have, where it is known of all of them. Older
        /// versions leave it out.
        #[serde(default, deserialize_with = "sketch::readable", skip_serializing_if = "Option::is_none")]
        sketches: Option<Arc<Sketches>>,
    },
    /// Puts segments of a shard in the place of others that have the same rows.
    /// Of a table or segments that are gone it changes nothing.
    Compact {
        /// The table.
        table: TableId,
        /// The shard of which all of them are.
        shard: u32,
        /// What is taken out.
        old: Vec<SegmentId>,
        /// What comes in, with the workers on which it is durable.
        new: Vec<Segment>,
    },
    /// Remembers a worker that joined.
    RegisterWorker {
        /// The worker.
        worker: WorkerRecord,
    },
    /// Remembers on which disk a worker keeps what it has from now on.
    RegisterDisk {
        /// The worker.
        worker: WorkerId,
        /// The id of the disk.
        disk: String,
    },
    /// A change that names copies which were made durable before. Those on disks
    /// that their workers do not have any more are left out; a write of which too
    /// few are left is refused.
    OnDisks {
        /// On which disks they are.
        disks: Vec<OnDisk>,
        /// The change.
        change: Box<Command>,
    },
    /// Adds workers to the shards of a table that has fewer copies than it
    /// asks for. Only in logs from before [`Command::MoveShards`].
    ExtendPlacement {
        /// The table.
        table: TableId,
        /// The workers of each shard: those that it has, then the new ones.
        placement: Vec<Vec<WorkerId>>,
    },
    /// Gives shards of a table other workers. What they had stays readable until
    /// [`Command::RemoveReplicas`].
    MoveShards {
        /// The table.
        table: TableId,
        /// The workers of each shard before.
        seen: Vec<Vec<WorkerId>>,
        /// The workers of each shard from now on.
        placement: Vec<Vec<WorkerId>>,
    },
    /// Takes copies out that a worker should not hold any more.
    RemoveReplicas {
        /// The table.
        table: TableId,
        /// The worker.
        worker: WorkerId,
        /// Its segments of the table.
        segments: Vec<SegmentId>,
    },
    /// Changes how many copies a table asks for.
    SetReplicas {
        /// The schema.
        schema_name: String,
        /// The table.
        name: String,
        /// How many.
        replicas: ReplicaCount,
    },
    /// Lets all shards leave a worker, or lets it take some again.
    DrainWorker {
        /// The worker.
        worker: WorkerId,
        /// Whether they leave.
        is_draining: bool,
    },
    /// Takes a number that no other coordinator ever had.
    ReserveCoordinator,
    /// Never takes this coordinator in again.
    DismissCoordinator {
        /// Its number.
        coordinator: u64,
    },
    /// Records durable copies of segments.
    AddReplicas {
        /// The segments that each worker now holds.
        copies: Vec<(WorkerId, Vec<SegmentName>)>,
    },
    /// Records one more durable copy of a segment. Only in logs from before
    /// [`Command::AddReplicas`].
    AddReplica {
        /// The table.
        table: TableId,
        /// The segment.
        segment: SegmentId,
        /// The worker that now holds it.
        worker: WorkerId,
    },
}

impl Command {
    /// The write that it commits, if it does.
    pub fn write(&self) -> Option<&WriteRecord> {
        match self {
            Self::CommitWrite { write, .. } => Some(write),
            Self::CreateTable { write, .. } | Self::ReplaceTable { write, .. } => write.as_ref(),
            Self::OnDisks { change, .. } => change.write(),
            _ => None,
        }
    }

    /// The same, of which copies of these segments count only where their workers
    /// still have the disks on which they are.
    pub fn on_disks(self, copies: impl IntoIterator<Item = (SegmentId, WorkerId, String)>) -> Self {
        let mut by_disk: BTreeMap<(WorkerId, String), Vec<SegmentId>> = BTreeMap::new();
        for (segment, worker, disk) in copies {
            // One that says nothing of its disk is believed.
            if !disk.is_empty() {
                by_disk.entry((worker, disk)).or_default().push(segment);
            }
        }
        if by_disk.is_empty() {
            return self;
        }
        let mut counts: BTreeMap<WorkerId, usize> = BTreeMap::new();
        for (worker, _) in by_disk.keys() {
            *counts.entry(worker.clone()).or_default() += 1;
        }
        let on_disk = |((worker, disk), mut segments): ((WorkerId, String), Vec<SegmentId>)| {
            if counts.get(&worker) == Some(&1) {
                segments.clear();
            }
            OnDisk { worker, disk, segments }
        };
        Self::OnDisks { disks: by_disk.into_iter().map(on_disk).collect(), change: Box::new(self) }
    }

    /// The segments that it brings.
    pub(super) fn brought_mut(&mut self) -> Vec<&mut Segment> {
        match self {
            Self::CommitWrite { segments, .. } | Self::Compact { new: segments, .. } => {
                segments.iter_mut().collect()
            }
            Self::CreateTable { table, .. } | Self::ReplaceTable { table, .. } => {
                table.segments.iter_mut().map(Arc::make_mut).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Leaves out what is known of distinct values.
    pub fn leave_out_sketches(&mut self) {
        match self {
            Self::CommitWrite { sketches, .. } => *sketches = None,
            Self::CreateTable { table, .. } | Self::ReplaceTable { table, .. } => table.sketches = None,
            Self::OnDisks { change, .. } => change.leave_out_sketches(),
            _ => {}
        }
    }

    /// Whether it names segments that its coordinator staged, and of which nobody
    /// else knows before.
    pub(super) fn names_staged(&self) -> bool {
        match self {
            Self::OnDisks { change, .. } => change.names_staged(),
            other => other.write().is_some() || matches!(other, Self::Compact { .. }),
        }
    }

    /// How many segments it brings.
    pub fn segments(&self) -> usize {
        match self {
            Self::CommitWrite { segments, .. } | Self::Compact { new: segments, .. } => segments.len(),
            Self::CreateTable { table, .. } | Self::ReplaceTable { table, .. } => table.segments.len(),
            Self::OnDisks { change, .. } => change.segments(),
            _ => 0,
        }
    }

    /// Whether it makes the catalog larger; those that make it smaller may use
    /// the last bytes of the disk.
    pub(super) fn adds(&self) -> bool {
        match self {
            Self::CreateSchema { .. }
            | Self::ReserveTable
            | Self::ReserveCoordinator
            | Self::CreateTable { .. }
            | Self::ReplaceTable { .. }
            | Self::CreateView { .. }
            | Self::CreateExternal { .. }
            | Self::CommitWrite { .. } => true,
            // Smaller in the end, but not in the log; it can wait for room.
            Self::Compact { .. } => true,
            Self::OnDisks { change, .. } => change.adds(),
            Self::DropSchema { .. }
            | Self::DropTable { .. }
            | Self::DropView { .. }
            | Self::DropExternal { .. }
            | Self::RegisterWorker { .. }
            | Self::RegisterDisk { .. }
            | Self::ExtendPlacement { .. }
            | Self::MoveShards { .. }
            | Self::RemoveReplicas { .. }
            | Self::SetReplicas { .. }
            | Self::DrainWorker { .. }
            | Self::DismissCoordinator { .. }
            | Self::AddReplicas { .. }
            | Self::AddReplica { .. } => false,
        }
    }
}

/// Copies that a worker made durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDisk {
    /// The worker.
    pub worker: WorkerId,
    /// The id of the disk on which they are.
    pub disk: String,
    /// Of which segments; none: of all of which the change says so.
    #[serde(default)]
    pub segments: Vec<SegmentId>,
}

impl OnDisk {
    /// Whether this says where a copy is.
    pub fn is_of(&self, segment: SegmentId, worker: &WorkerId) -> bool {
        self.worker == *worker && (self.segments.is_empty() || self.segments.contains(&segment))
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It changed the catalog.
    Done,
    /// There was nothing to change (`IF EXISTS`, `IF NOT EXISTS`, a copy that
    /// is known already).
    Unchanged,
    /// The id that was reserved.
    Table(TableId),
    /// The number that was reserved.
    Coordinator(u64),
    /// This write is committed already; nothing was changed.
    AlreadyWritten {
        /// Rows that it wrote.
        rows: u64,
    },
}

/// A write that is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRecord {
    /// Chosen by whoever writes.
    pub id: WriteId,
    /// Rows that it wrote.
    pub rows: u64,
}

/// A worker that joined once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Stable over restarts.
    pub id: WorkerId,
    /// URL at which it was reached last.
    pub address: String,
    /// May be empty.
    pub zone: String,
    /// Whether its shards leave it, and no new ones come.
    #[serde(default)]
    pub is_draining: bool,
}

/// A named query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Name of the schema that holds it.
    pub schema_name: String,
    /// Its own name.
    pub name: String,
    /// The query.
    pub sql: String,
    /// Names given to its columns, where the statement gives them.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// The schema of names without one, as it was when the view was made.
    #[serde(default)]
    pub default_schema: Option<String>,
}

/// Files that are read in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalTable {
    /// Name of the schema that holds it.
    pub schema_name: String,
    /// Its own name.
    pub name: String,
    /// Its columns.
    #[serde(with = "schema_serde")]
    pub columns: SchemaRef,
    /// `PARQUET`, `CSV` or `JSON`.
    pub format: String,
    /// A path or pattern below the import roots, or an object store URL.
    pub location: String,
    /// Options of the format, as written.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// `schema` and `name`, the key of everything that has a name.
pub(super) type Key = (String, String);

/// What has a place in the one namespace of tables, views and external tables.
pub(super) trait Named {
    /// Its key.
    fn key(&self) -> Key;
}

impl Named for Arc<Table> {
    fn key(&self) -> Key {
        (self.schema_name.clone(), self.name.clone())
    }
}

impl Named for Arc<View> {
    fn key(&self) -> Key {
        (self.schema_name.clone(), self.name.clone())
    }
}

impl Named for Arc<ExternalTable> {
    fn key(&self) -> Key {
        (self.schema_name.clone(), self.name.clone())
    }
}
