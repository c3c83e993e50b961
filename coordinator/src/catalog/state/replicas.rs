//! Changes of workers, and of what lives on which of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_data::{ReplicaCount, Segment};
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
        let Some(entry) = self.tables.by_id_mut(table) else { return Outcome::Unchanged };
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
        mut placement: Vec<Vec<WorkerId>>,
    ) -> Outcome {
        placement.iter_mut().flatten().for_each(|worker| self.share(worker));
        let Some(entry) = self.tables.by_id_mut(table) else { return Outcome::Unchanged };
        let is_whole = placement.len() == seen.len() && placement.iter().all(|shard| !shard.is_empty());
        if entry.placement != seen || !is_whole || entry.placement == placement {
            return Outcome::Unchanged;
        }
        Arc::make_mut(entry).placement = placement;
        Outcome::Done
    }

    /// A table or segment that was dropped meanwhile needs no copy. Each table is
    /// looked at, and made anew, once for all of its copies.
    pub(super) fn add_replicas(
        &mut self,
        copies: impl IntoIterator<Item = (TableId, SegmentId, WorkerId)>,
    ) -> Outcome {
        let mut by_table: BTreeMap<TableId, (Vec<SegmentId>, Vec<WorkerId>)> = BTreeMap::new();
        for (table, id, mut worker) in copies {
            self.share(&mut worker);
            let (ids, workers) = by_table.entry(table).or_default();
            ids.push(id);
            workers.push(worker);
        }
        let mut outcome = Outcome::Unchanged;
        for (table, (ids, workers)) in by_table {
            let Some(entry) = self.tables.by_id_mut(table) else { continue };
            let places = self.memo.places(entry, &ids);
            let copies = places.into_iter().zip(workers).filter_map(|(place, worker)| Some((place?, worker)));
            let is_new = |place: usize, worker: &WorkerId| !entry.segments[place].replicas.contains(worker);
            let new: Vec<_> = copies.filter(|(place, worker)| is_new(*place, worker)).collect();
            if new.is_empty() {
                continue;
            }
            let entry = Arc::make_mut(entry);
            for (place, worker) in new {
                let segment = Arc::make_mut(&mut entry.segments[place]);
                // The same copy may be told twice.
                if !segment.replicas.contains(&worker) {
                    segment.replicas.push(worker);
                }
            }
            outcome = Outcome::Done;
        }
        outcome
    }

    /// Leaves those that are the last copy, and those that should be there.
    pub(super) fn remove_replicas(
        &mut self,
        table: TableId,
        worker: &WorkerId,
        segments: &[SegmentId],
    ) -> Outcome {
        let Some(entry) = self.tables.by_id_mut(table) else {
            return Outcome::Unchanged;
        };
        let is_surplus = |segment: &Segment| {
            segment.replicas.len() > 1
                && segment.replicas.contains(worker)
                && !entry.should_hold(segment.shard, worker)
        };
        let mut surplus: Vec<usize> = self.memo.places(entry, segments).into_iter().flatten().collect();
        surplus.retain(|place| is_surplus(&entry.segments[*place]));
        // In order of commit, and each once.
        surplus.sort_unstable();
        surplus.dedup();
        if surplus.is_empty() {
            return Outcome::Unchanged;
        }
        let entry = Arc::make_mut(entry);
        for place in surplus {
            let segment = &mut entry.segments[place];
            let removed = Segment { replicas: vec![worker.clone()], ..segment.as_ref().clone() };
            Arc::make_mut(segment).replicas.retain(|replica| replica != worker);
            self.dropped.push(Arc::new(removed));
        }
        Outcome::Done
    }
}
