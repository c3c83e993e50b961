//! Changes of workers, and of what lives on which of them.

use std::collections::HashSet;
use std::sync::Arc;

use shoal_data::{ReplicaCount, Segment, Table};
use shoal_proto::{SegmentId, TableId, WorkerId};

use super::{CatalogError, State, key};
use crate::catalog::command::{Outcome, WorkerRecord};

impl State {
    /// Remembers a worker. Whether it is being drained is not its own to say.
    pub(super) fn register_worker(&mut self, mut worker: WorkerRecord) -> Outcome {
        let known = self.workers.get(&worker.id);
        worker.is_draining = known.is_some_and(|known| known.is_draining);
        if known == Some(&worker) {
            return Outcome::Unchanged;
        }
        self.workers.insert(worker.id.clone(), worker);
        Outcome::Done
    }

    pub(super) fn drain_worker(&mut self, id: &WorkerId, is_draining: bool) -> Result<Outcome, CatalogError> {
        let Some(worker) = self.workers.get_mut(id) else {
            let names: Vec<_> = self.workers.keys().map(WorkerId::as_str).collect();
            return Err(CatalogError::NotFound(format!(
                "worker `{id}` never joined this cluster; there are: {}",
                names.join(", ")
            )));
        };
        if worker.is_draining == is_draining {
            return Ok(Outcome::Unchanged);
        }
        worker.is_draining = is_draining;
        Ok(Outcome::Done)
    }

    pub(super) fn set_replicas(
        &mut self,
        schema_name: &str,
        name: &str,
        replicas: ReplicaCount,
    ) -> Result<Outcome, CatalogError> {
        let Some(entry) = self.tables.get_mut(&key(schema_name, name)) else {
            return Err(CatalogError::NotFound(format!("table `{schema_name}.{name}` does not exist")));
        };
        if entry.layout.replicas == replicas {
            return Ok(Outcome::Unchanged);
        }
        Arc::make_mut(entry).layout.replicas = replicas;
        Ok(Outcome::Done)
    }

    /// Changes nothing where the placement is not what the command saw.
    pub(super) fn extend_placement(&mut self, table: TableId, placement: Vec<Vec<WorkerId>>) -> Outcome {
        let Some(entry) = self.table_mut(table) else { return Outcome::Unchanged };
        let extends = entry.placement.len() == placement.len()
            && entry.placement.iter().zip(&placement).all(|(old, new)| new.starts_with(old));
        if !extends || entry.placement == placement {
            return Outcome::Unchanged;
        }
        Arc::make_mut(entry).placement = placement;
        Outcome::Done
    }

    /// Changes nothing where the placement is not what the command saw, or a
    /// shard would be nowhere.
    pub(super) fn move_shards(
        &mut self,
        table: TableId,
        seen: &[Vec<WorkerId>],
        placement: Vec<Vec<WorkerId>>,
    ) -> Outcome {
        let Some(entry) = self.table_mut(table) else { return Outcome::Unchanged };
        let is_whole = placement.len() == seen.len() && placement.iter().all(|shard| !shard.is_empty());
        if entry.placement != seen || !is_whole || entry.placement == placement {
            return Outcome::Unchanged;
        }
        Arc::make_mut(entry).placement = placement;
        Outcome::Done
    }

    /// A table or segment that was dropped meanwhile needs no copy.
    pub(super) fn add_replica(&mut self, table: TableId, id: SegmentId, worker: WorkerId) -> Outcome {
        let Some(entry) = self.table_mut(table) else { return Outcome::Unchanged };
        let Some(index) = entry.segments.iter().position(|segment| segment.id == id) else {
            return Outcome::Unchanged;
        };
        if entry.segments[index].replicas.contains(&worker) {
            return Outcome::Unchanged;
        }
        Arc::make_mut(&mut Arc::make_mut(entry).segments[index]).replicas.push(worker);
        Outcome::Done
    }

    /// Leaves those that are the last copy, and those that should be there.
    pub(super) fn remove_replicas(
        &mut self,
        table: TableId,
        worker: &WorkerId,
        segments: &[SegmentId],
    ) -> Outcome {
        let Some(entry) = self.tables.values_mut().find(|entry| entry.id == table) else {
            return Outcome::Unchanged;
        };
        let named: HashSet<&SegmentId> = segments.iter().collect();
        let is_surplus = |table: &Table, segment: &Segment| {
            named.contains(&segment.id)
                && segment.replicas.len() > 1
                && segment.replicas.contains(worker)
                && !table.should_hold(segment.shard, worker)
        };
        let surplus: Vec<usize> =
            (0..entry.segments.len()).filter(|&index| is_surplus(entry, &entry.segments[index])).collect();
        if surplus.is_empty() {
            return Outcome::Unchanged;
        }
        let entry = Arc::make_mut(entry);
        for index in surplus {
            let segment = &mut entry.segments[index];
            let removed = Segment { replicas: vec![worker.clone()], ..segment.as_ref().clone() };
            Arc::make_mut(segment).replicas.retain(|replica| replica != worker);
            self.dropped.push(Arc::new(removed));
        }
        Outcome::Done
    }

    fn table_mut(&mut self, id: TableId) -> Option<&mut Arc<Table>> {
        self.tables.values_mut().find(|entry| entry.id == id)
    }
}
