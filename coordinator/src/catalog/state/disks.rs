//! Which disk each worker has, and changes that count on copies on disks.
//!
//! Between the moment at which a worker makes a copy durable and the change that
//! names it, it may lose its disk and join again. Its new disk is in the log then
//! before the change, and says here that the copy is gone. In the other order the
//! worker is asked for the copy when it joins.

use shoal_proto::WorkerId;

use super::{CatalogError, State};
use crate::catalog::command::{Command, OnDisk, Outcome};

impl State {
    /// The id of the disk on which a worker keeps what it has, as far as it is known.
    pub fn disk(&self, worker: &WorkerId) -> Option<&str> {
        self.disks.get(worker).map(String::as_str)
    }

    pub(super) fn register_disk(&mut self, worker: WorkerId, disk: String) -> Outcome {
        if self.disk(&worker) == Some(disk.as_str()) {
            return Outcome::Unchanged;
        }
        self.disks.insert(worker, disk);
        Outcome::Done
    }

    /// Applies a change without the copies that are lost.
    pub(super) fn apply_on_disks(
        &mut self,
        disks: &[OnDisk],
        mut change: Command,
    ) -> Result<Outcome, CatalogError> {
        let is_lost = |on: &&OnDisk| self.disk(&on.worker).is_some_and(|disk| disk != on.disk);
        let lost: Vec<&OnDisk> = disks.iter().filter(is_lost).collect();
        let is_repeated = change.write().is_some_and(|write| self.written(&write.id).is_some());
        if !lost.is_empty() && !is_repeated {
            self.leave_out(&lost, &mut change)?;
        }
        self.apply(change)
    }

    /// Takes copies out of a change.
    ///
    /// # Errors
    /// `Unavailable` for a write that has no majority then of the copies that a
    /// shard should have.
    fn leave_out(&self, lost: &[&OnDisk], change: &mut Command) -> Result<(), CatalogError> {
        let placement = match &*change {
            Command::CommitWrite { table, .. } => {
                self.table_by_id(*table).map(|table| table.placement.clone()).unwrap_or_default()
            }
            Command::CreateTable { table, .. } | Command::ReplaceTable { table, .. } => {
                table.placement.clone()
            }
            // Of the others none is acknowledged to anybody.
            _ => Vec::new(),
        };
        if let Command::AddReplicas { copies } = change {
            for (worker, names) in copies {
                names.retain(|name| !lost.iter().any(|on| on.is_of(name.segment, worker)));
            }
        }
        for segment in change.brought_mut() {
            let (id, before) = (segment.id, segment.replicas.len());
            segment.replicas.retain(|worker| !lost.iter().any(|on| on.is_of(id, worker)));
            let left = segment.replicas.len();
            let placed = placement.get(segment.shard as usize).map_or(0, Vec::len);
            if left < before && left < placed / 2 + 1 {
                return Err(CatalogError::Unavailable(format!(
                    "shard {} is on {left} of its {placed} workers: others lost their disks while it was written; \
                     nothing was changed; write it again",
                    segment.shard
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
