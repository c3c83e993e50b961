//! The catalog as one value: commands change it, queries read it.
//!
//! Pure: no clock, no I/O, no randomness. The same commands in the same order
//! make the same state on every coordinator.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_data::{Segment, SegmentName, Table};
use shoal_proto::{SegmentId, TableId, WorkerId, WriteId};

use self::facts::Memo;
use self::tables::Tables;
use super::command::{Command, ExternalTable, Key, Named, Outcome, View, WorkerRecord, WriteRecord};

mod bytes;
mod compact;
mod disks;
mod facts;
mod replicas;
mod tables;

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
    #[serde(with = "recent")]
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
            Command::CommitWrite { write, table, segments, replace } => {
                self.commit_write(write, table, segments, replace)
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

    fn create_schema(&mut self, name: String, if_not_exists: bool) -> Result<Outcome, CatalogError> {
        if self.schemas.contains(&name) {
            return unchanged_if(if_not_exists, || format!("schema `{name}` already exists"));
        }
        self.schemas.insert(name);
        Ok(Outcome::Done)
    }

    fn drop_schema(&mut self, name: &str, if_exists: bool, cascade: bool) -> Result<Outcome, CatalogError> {
        if !self.schemas.contains(name) {
            return if if_exists { Ok(Outcome::Unchanged) } else { Err(no_schema(name)) };
        }
        if name == SCHEMA_DEFAULT {
            return Err(CatalogError::Invalid(format!(
                "schema `{name}` is where statements without a schema look; it cannot be dropped"
            )));
        }
        let within = |key: &Key| key.0 == name;
        let held = self.tables.keys().filter(|key| within(key)).count()
            + self.views.keys().filter(|key| within(key)).count()
            + self.externals.keys().filter(|key| within(key)).count();
        if held > 0 && !cascade {
            return Err(CatalogError::Invalid(format!(
                "schema `{name}` holds {held} tables and views; drop them first, or add CASCADE"
            )));
        }
        let keys: Vec<Key> = self.tables.keys().filter(|key| within(key)).cloned().collect();
        let gone = keys.iter().filter_map(|key| self.tables.remove(key));
        self.dropped.extend(gone.flat_map(|table| table.segments.clone()));
        self.views.retain(|key, _| !within(key));
        self.externals.retain(|key, _| !within(key));
        self.schemas.remove(name);
        Ok(Outcome::Done)
    }

    /// Refuses a name that cannot be used for a new thing of kind `kind`.
    fn check_name(&self, (schema_name, name): &Key, replaced: &str) -> Result<(), CatalogError> {
        if !self.schemas.contains(schema_name) {
            return Err(no_schema(schema_name));
        }
        let key = key(schema_name, name);
        let kinds = [
            ("table", self.tables.contains_key(&key)),
            ("view", self.views.contains_key(&key)),
            ("external table", self.externals.contains_key(&key)),
        ];
        match kinds.iter().find(|(kind, taken)| *taken && *kind != replaced) {
            Some((kind, _)) => {
                Err(CatalogError::AlreadyExists(format!("{kind} `{schema_name}.{name}` already exists")))
            }
            None => Ok(()),
        }
    }

    fn create_table(
        &mut self,
        mut table: Table,
        existing: Existing,
        write: Option<WriteRecord>,
    ) -> Result<Outcome, CatalogError> {
        if let Some(rows) = write.as_ref().and_then(|write| self.writes.rows(&write.id)) {
            return Ok(Outcome::AlreadyWritten { rows });
        }
        table.placement.iter_mut().flatten().for_each(|worker| self.share(worker));
        let table = Arc::new(table);
        let key = table.key();
        if existing == Existing::Left && self.tables.contains_key(&key) {
            return Ok(Outcome::Unchanged);
        }
        self.check_name(&key, if existing == Existing::Replaced { "table" } else { "" })?;
        if table.id.0 == 0 || table.id.0 >= self.next_table || self.table_by_id(table.id).is_some() {
            return Err(CatalogError::Invalid(format!("table id {} was not reserved for it", table.id)));
        }
        check_segments(&table, &table.segments)?;
        if let Some(replaced) = self.tables.insert(table) {
            self.dropped.extend(replaced.segments.iter().cloned());
        }
        self.writes.extend(write);
        Ok(Outcome::Done)
    }

    fn drop_table(
        &mut self,
        schema_name: &str,
        name: &str,
        if_exists: bool,
    ) -> Result<Outcome, CatalogError> {
        let removed = self.tables.remove(&key(schema_name, name));
        self.dropped.extend(removed.iter().flat_map(|table| &table.segments).cloned());
        dropped(removed.is_some(), "table", schema_name, name, if_exists)
    }

    fn create_view(&mut self, view: View, or_replace: bool) -> Result<Outcome, CatalogError> {
        let view = Arc::new(view);
        self.check_name(&view.key(), if or_replace { "view" } else { "" })?;
        self.views.insert(view.key(), view);
        Ok(Outcome::Done)
    }

    fn create_external(
        &mut self,
        table: ExternalTable,
        if_not_exists: bool,
        or_replace: bool,
    ) -> Result<Outcome, CatalogError> {
        let table = Arc::new(table);
        if if_not_exists && self.externals.contains_key(&table.key()) {
            return Ok(Outcome::Unchanged);
        }
        self.check_name(&table.key(), if or_replace { "external table" } else { "" })?;
        self.externals.insert(table.key(), table);
        Ok(Outcome::Done)
    }

    fn commit_write(
        &mut self,
        write: WriteRecord,
        table: TableId,
        mut segments: Vec<Segment>,
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

/// What becomes of a table that has the name already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Refused,
    Left,
    Replaced,
}

fn key(schema_name: &str, name: &str) -> Key {
    (schema_name.to_owned(), name.to_owned())
}

fn no_schema(name: &str) -> CatalogError {
    CatalogError::NotFound(format!("schema `{name}` does not exist"))
}

fn unchanged_if(tolerated: bool, message: impl FnOnce() -> String) -> Result<Outcome, CatalogError> {
    if tolerated { Ok(Outcome::Unchanged) } else { Err(CatalogError::AlreadyExists(message())) }
}

fn drop_one<T>(
    map: &mut BTreeMap<Key, T>,
    kind: &str,
    schema_name: &str,
    name: &str,
    if_exists: bool,
) -> Result<Outcome, CatalogError> {
    let was_there = map.remove(&key(schema_name, name)).is_some();
    dropped(was_there, kind, schema_name, name, if_exists)
}

fn dropped(
    was_there: bool,
    kind: &str,
    schema_name: &str,
    name: &str,
    if_exists: bool,
) -> Result<Outcome, CatalogError> {
    match was_there {
        true => Ok(Outcome::Done),
        false if if_exists => Ok(Outcome::Unchanged),
        false => Err(CatalogError::NotFound(format!("{kind} `{schema_name}.{name}` does not exist"))),
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

/// Ids of recent writes, oldest first.
#[derive(Clone, Debug, Default)]
struct Writes {
    order: VecDeque<Arc<WriteRecord>>,
    rows: std::collections::HashMap<WriteId, u64>,
}

impl Writes {
    fn rows(&self, write: &WriteId) -> Option<u64> {
        self.rows.get(write).copied()
    }

    fn extend(&mut self, writes: impl IntoIterator<Item = WriteRecord>) {
        for write in writes {
            self.rows.insert(write.id.clone(), write.rows);
            self.order.push_back(Arc::new(write));
            if self.order.len() > WRITES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.rows.remove(&oldest.id);
            }
        }
    }
}

/// Recent writes as a list, oldest first.
mod recent {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{WriteRecord, Writes};

    pub(super) fn serialize<S: Serializer>(writes: &Writes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(writes.order.iter().map(AsRef::as_ref))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Writes, D::Error> {
        let mut writes = Writes::default();
        writes.extend(Vec::<WriteRecord>::deserialize(deserializer)?);
        Ok(writes)
    }
}

/// Named things as a list; their names are in them.
mod by_key {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Key, Named};

    pub(super) fn serialize<S: Serializer, T: Serialize>(
        map: &BTreeMap<Key, T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.values())
    }

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<BTreeMap<Key, T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de> + Named,
    {
        let things = Vec::<T>::deserialize(deserializer)?;
        Ok(things.into_iter().map(|thing| (thing.key(), thing)).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests;
