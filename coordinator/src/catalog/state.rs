//! The catalog as one value: commands change it, queries read it.
//!
//! Pure: no clock, no I/O, no randomness. The same commands in the same order
//! make the same state on every coordinator.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_data::{Segment, SegmentName, Sketches, Table};
use shoal_proto::{SegmentId, TableId, WorkerId, WriteId};

use self::facts::Memo;
use self::names::{Existing, drop_one, key};
use self::tables::Tables;
use self::writes::Writes;
use super::command::{Command, ExternalTable, Key, Outcome, View, WorkerRecord, WriteRecord};

mod by_key;
mod bytes;
mod compact;
mod disks;
mod facts;
mod names;
mod replicas;
mod sketches;
mod tables;
mod writes;

pub use facts::{ColumnBounds, Contents, TableFacts};

/// The schema that every cluster starts with.
pub const SCHEMA_DEFAULT: &str = "public";
/// Writes whose ids are remembered: a write repeated later than that many
/// others is taken for a new one.
pub const WRITES_MAX: usize = 10_000;
/// No coordinator gets a greater number.
pub const COORDINATORS_MAX: u64 = (1 << 20) - 1;

/// Why a command was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CatalogError {
    /// The named thing does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The command cannot be.
    #[error("{0}")]
    Invalid(String),
    /// What it counts on is lost: a new one can be.
    #[error("{0}")]
    Unavailable(String),
}

/// The catalog at one version. Cheap to clone: what it holds is shared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Commands that changed it so far.
    pub version: u64,
    /// Id of the cluster, made at its first start.
    pub cluster: String,
    next_table: u64,
    schemas: BTreeSet<String>,
    tables: Tables,
    #[serde(with = "by_key")]
    views: BTreeMap<Key, Arc<View>>,
    #[serde(with = "by_key")]
    externals: BTreeMap<Key, Arc<ExternalTable>>,
    workers: BTreeMap<WorkerId, WorkerRecord>,
    /// The ids of their disks, as far as they are known.
    #[serde(default)]
    disks: BTreeMap<WorkerId, String>,
    #[serde(with = "writes")]
    writes: Writes,
    /// 0 and 1 are one number: a cluster begins with coordinator 1.
    #[serde(default)]
    last_coordinator: u64,
    #[serde(default)]
    dismissed: BTreeSet<u64>,
    /// Segments that commands took out since somebody last asked.
    #[serde(skip)]
    dropped: Vec<Arc<Segment>>,
    #[serde(skip)]
    memo: Memo,
}

impl State {
    /// The catalog of a new cluster.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            version: 0,
            cluster: cluster.into(),
            next_table: 1,
            schemas: BTreeSet::from([SCHEMA_DEFAULT.to_owned()]),
            tables: Tables::default(),
            views: BTreeMap::new(),
            externals: BTreeMap::new(),
            workers: BTreeMap::new(),
            disks: BTreeMap::new(),
            writes: Writes::default(),
            last_coordinator: 1,
            dismissed: BTreeSet::new(),
            dropped: Vec::new(),
            memo: Memo::default(),
        }
    }

    /// The segments that commands took out since the last call.
    pub fn take_dropped(&mut self) -> Vec<Arc<Segment>> {
        std::mem::take(&mut self.dropped)
    }

    /// Names of all schemas, sorted.
    pub fn schemas(&self) -> impl Iterator<Item = &str> {
        self.schemas.iter().map(String::as_str)
    }

    /// Whether the schema exists.
    pub fn has_schema(&self, name: &str) -> bool {
        self.schemas.contains(name)
    }

    /// All tables, by schema and name.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    /// All views, by schema and name.
    pub fn views(&self) -> impl Iterator<Item = &Arc<View>> {
        self.views.values()
    }

    /// All external tables, by schema and name.
    pub fn externals(&self) -> impl Iterator<Item = &Arc<ExternalTable>> {
        self.externals.values()
    }

    /// Every worker that ever joined, by id.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.values()
    }

    /// The worker, if it ever joined.
    pub fn worker(&self, id: &WorkerId) -> Option<&WorkerRecord> {
        self.workers.get(id)
    }

    /// The table of this name.
    pub fn table(&self, schema_name: &str, name: &str) -> Option<&Arc<Table>> {
        self.tables.get(&key(schema_name, name))
    }

    /// The table with this id.
    pub fn table_by_id(&self, id: TableId) -> Option<&Arc<Table>> {
        self.tables.by_id(id)
    }

    /// What follows from a table of this state. To ask again costs nothing as long
    /// as no command has changed the table.
    pub fn facts(&self, table: &Arc<Table>) -> Arc<TableFacts> {
        self.memo.of(table, self.tables.len(), |id| self.tables.by_id(id).is_some())
    }

    /// The view of this name.
    pub fn view(&self, schema_name: &str, name: &str) -> Option<&Arc<View>> {
        self.views.get(&key(schema_name, name))
    }

    /// The external table of this name.
    pub fn external(&self, schema_name: &str, name: &str) -> Option<&Arc<ExternalTable>> {
        self.externals.get(&key(schema_name, name))
    }

    /// The segment of this name.
    pub fn segment(&self, name: &SegmentName) -> Option<&Arc<Segment>> {
        let table = self.table_by_id(name.table)?;
        let segment = table.segments.get(self.facts(table).place(name.segment)?)?;
        (segment.shard == name.shard).then_some(segment)
    }

    /// Rows of the write, if it is committed and not too long ago.
    pub fn written(&self, write: &WriteId) -> Option<u64> {
        self.writes.rows(write)
    }

    /// Whether there ever was more than one coordinator.
    pub fn had_several_coordinators(&self) -> bool {
        self.last_coordinator > 1
    }

    /// Whether this coordinator was removed for good.
    pub fn is_dismissed(&self, coordinator: u64) -> bool {
        self.dismissed.contains(&coordinator)
    }

    /// The writes that are remembered, oldest first.
    pub fn writes(&self) -> impl Iterator<Item = &WriteRecord> {
        self.writes.order.iter().map(AsRef::as_ref)
    }

    /// Applies one command.
    ///
    /// # Errors
    /// Says why it cannot be; the state is then as it was.
    pub fn apply(&mut self, command: Command) -> Result<Outcome, CatalogError> {
        let outcome = match command {
            Command::CreateSchema { name, if_not_exists } => self.create_schema(name, if_not_exists),
            Command::DropSchema { name, if_exists, cascade } => self.drop_schema(&name, if_exists, cascade),
            Command::ReserveTable => {
                let id = TableId(self.next_table);
                self.next_table += 1;
                Ok(Outcome::Table(id))
            }
            Command::ReserveCoordinator => {
                let next = self.last_coordinator.max(1) + 1;
                if next > COORDINATORS_MAX {
                    return Err(CatalogError::Invalid("no number is left for a coordinator".to_owned()));
                }
                self.last_coordinator = next;
                Ok(Outcome::Coordinator(next))
            }
            Command::DismissCoordinator { coordinator } => {
                let is_new = self.dismissed.insert(coordinator);
                Ok(if is_new { Outcome::Done } else { Outcome::Unchanged })
            }
            Command::CreateTable { table, if_not_exists, write } => {
                let tolerated = if if_not_exists { Existing::Left } else { Existing::Refused };
                self.create_table(table, tolerated, write)
            }
            Command::ReplaceTable { table, write } => self.create_table(table, Existing::Replaced, write),
            Command::DropTable { schema_name, name, if_exists } => {
                self.drop_table(&schema_name, &name, if_exists)
            }
            Command::CreateView { view, or_replace } => self.create_view(view, or_replace),
            Command::DropView { schema_name, name, if_exists } => {
                drop_one(&mut self.views, "view", &schema_name, &name, if_exists)
            }
            Command::CreateExternal { table, if_not_exists, or_replace } => {
                self.create_external(table, if_not_exists, or_replace)
            }
            Command::DropExternal { schema_name, name, if_exists } => {
                drop_one(&mut self.externals, "external table", &schema_name, &name, if_exists)
            }
            Command::CommitWrite { write, table, segments, replace, sketches } => {
                self.commit_write(write, table, (segments, sketches), replace)
            }
            Command::Compact { table, shard, old, new } => self.compact(table, shard, &old, new),
            Command::RegisterWorker { worker } => Ok(self.register_worker(worker)),
            Command::RegisterDisk { worker, disk } => Ok(self.register_disk(worker, disk)),
            Command::OnDisks { disks, change } => return self.apply_on_disks(&disks, *change),
            Command::ExtendPlacement { table, placement } => Ok(self.extend_placement(table, placement)),
            Command::AddReplica { table, segment, worker } => {
                Ok(self.add_replicas([(table, segment, worker)]))
            }
            Command::AddReplicas { copies } => {
                let each = |(worker, names): (WorkerId, Vec<SegmentName>)| {
                    let of_worker = move |name: SegmentName| (name.table, name.segment, worker.clone());
                    names.into_iter().map(of_worker)
                };
                Ok(self.add_replicas(copies.into_iter().flat_map(each)))
            }
            Command::MoveShards { table, seen, placement } => Ok(self.move_shards(table, &seen, placement)),
            Command::RemoveReplicas { table, worker, segments } => {
                Ok(self.remove_replicas(table, &worker, &segments))
            }
            Command::SetReplicas { schema_name, name, replicas } => {
                self.set_replicas(&schema_name, &name, replicas)
            }
            Command::DrainWorker { worker, is_draining } => self.drain_worker(&worker, is_draining),
        }?;
        match &outcome {
            Outcome::Done | Outcome::Table(_) | Outcome::Coordinator(_) => self.version += 1,
            Outcome::Unchanged | Outcome::AlreadyWritten { .. } => {}
        }
        Ok(outcome)
    }

    fn commit_write(
        &mut self,
        write: WriteRecord,
        table: TableId,
        (mut segments, sketches): (Vec<Segment>, Option<Arc<Sketches>>),
        replace: bool,
    ) -> Result<Outcome, CatalogError> {
        if let Some(rows) = self.writes.rows(&write.id) {
            return Ok(Outcome::AlreadyWritten { rows });
        }
        segments.iter_mut().flat_map(|segment| &mut segment.replicas).for_each(|worker| self.share(worker));
        let segments: Vec<_> = segments.into_iter().map(Arc::new).collect();
        let entry = self.tables.by_id_mut(table);
        let entry = entry.ok_or_else(|| {
            CatalogError::NotFound(
                "the table was dropped while it was written to; nothing was written".to_owned(),
            )
        })?;
        check_segments(entry, &segments)?;
        let entry = Arc::make_mut(entry);
        if replace {
            self.dropped.append(&mut entry.segments);
            entry.sketches = Some(Arc::default());
        }
        if !segments.is_empty() {
            let known = sketches::of_table(entry);
            entry.sketches = Sketches::of_both(known, sketches::fitting(sketches, entry));
        }
        entry.segments.extend(segments);
        self.writes.extend([write]);
        Ok(Outcome::Done)
    }
}

impl State {
    /// Has a worker's name share the text of the one that joined: there is a name
    /// for each copy of each segment.
    fn share(&self, worker: &mut WorkerId) {
        share(&self.workers, worker);
    }
}

fn share(workers: &BTreeMap<WorkerId, WorkerRecord>, worker: &mut WorkerId) {
    if let Some((known, _)) = workers.get_key_value(worker) {
        worker.clone_from(known);
    }
}

fn check_segments(table: &Table, segments: &[Arc<Segment>]) -> Result<(), CatalogError> {
    // A table's own are there once; of others only those that are named matter.
    let is_own = std::ptr::eq(segments, table.segments.as_slice());
    let named: HashSet<SegmentId> =
        if is_own { HashSet::new() } else { segments.iter().map(|segment| segment.id).collect() };
    let known: HashSet<SegmentId> = match named.is_empty() {
        true => HashSet::new(),
        false => table.segments.iter().map(|segment| segment.id).filter(|id| named.contains(id)).collect(),
    };
    for segment in segments {
        let wrong = if segment.table != table.id || segment.shard >= table.layout.shards {
            "is not of this table"
        } else if segment.replicas.is_empty() {
            "is on no worker"
        } else if segment.columns.len() != table.columns.fields().len() {
            "has other columns than the table"
        } else if known.contains(&segment.id) {
            "is committed already"
        } else {
            continue;
        };
        return Err(CatalogError::Invalid(format!("segment {} {wrong}", segment.name())));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
