//! What must be so after every step.

use std::sync::Arc;

use shoal_data::SegmentName;

use super::context::Decision;
use super::trace::Brief;
use super::worker::index_of;
use super::world::World;
use crate::catalog::{Command, State};

impl World {
    /// After a command: what is in the catalog leaves it only where somebody wants
    /// that, what was given up does not come, and each copy that counts is there.
    pub(super) fn check_commit(&mut self, before: &Arc<State>, command: Option<&Command>) {
        let after = self.log.newest();
        if Arc::ptr_eq(before, &after) {
            return;
        }
        if let Some(Command::CommitWrite { segments, .. } | Command::Compact { new: segments, .. }) = command
        {
            for segment in segments {
                let name = segment.name();
                let is_given_up = self.context.seen.given_up.contains(&name);
                assert!(!is_given_up, "{} is committed and was given up", Brief(&name));
                self.context.seen.committed.insert(name);
            }
        }
        let is_wanted = |name: &SegmentName| match command {
            Some(Command::DropTable { .. } | Command::CommitWrite { replace: true, .. }) => true,
            Some(Command::Compact { old, .. }) => old.contains(&name.segment),
            _ => false,
        };
        for segment in before.tables().flat_map(|table| &table.segments) {
            let is_there = is_wanted(&segment.name()) || after.segment(&segment.name()).is_some();
            assert!(is_there, "{} is lost from the catalog by {command:?}", Brief(&segment.name()));
        }
        self.check_copies(&after);
    }

    /// Each copy that the catalog counts is there, unless its disk was lost; and
    /// something of each segment is left.
    fn check_copies(&self, state: &State) {
        for segment in state.tables().flat_map(|table| &table.segments) {
            let name = segment.name();
            for replica in &segment.replicas {
                let at = index_of(replica.as_str());
                let is_there = self.workers[at].disk.contains(&name);
                let is_lost = self.context.seen.lost.contains(&(at, name));
                assert!(is_there || is_lost, "the catalog counts on {} of {replica}", Brief(&name));
            }
            self.check_left(&name);
        }
    }

    fn check_left(&self, name: &SegmentName) {
        let is_left = self.workers.iter().any(|worker| worker.disk.contains(name));
        assert!(is_left, "no disk has {} any more", Brief(name));
    }

    /// After a worker removed a file because it was told to: nobody counts on it,
    /// no query may read it and no write is about to commit it.
    pub(super) fn check_removal(&self, at: usize, name: &SegmentName) {
        let id = &self.workers[at].id;
        if let Some(segment) = self.log.newest().segment(name) {
            let counts = segment.replicas.contains(id);
            assert!(!counts, "{id} removes {}, and the catalog counts on it", Brief(name));
            self.check_left(name);
        }
        let seen = &self.context.seen;
        for coordinator in &self.coordinators {
            let me = coordinator.me;
            let excused_until = seen.excused.get(&me).copied();
            for query in coordinator.queries() {
                let is_read = query.pinned.segment(name).is_some_and(|segment| segment.replicas.contains(id));
                let is_excused = excused_until.is_some_and(|until| query.since <= until);
                assert!(
                    !is_read || is_excused,
                    "{id} removes {}, and a query of c{me} reads it in version {}",
                    Brief(name),
                    query.pinned.version
                );
            }
            // What is committed is safe in another way, and its writer may not know yet.
            let is_staged = !seen.committed.contains(name) && coordinator.stages(name);
            assert!(!is_staged, "{id} removes {}, and a write of c{me} stages it", Brief(name));
        }
    }

    /// What whoever leads takes away is on all disks where it should be.
    pub(super) fn check_decisions(&mut self) {
        for decision in std::mem::take(&mut self.context.seen.decisions) {
            match decision {
                Decision::Replicas { coordinator, table, segments, state } => {
                    let all = state.table_by_id(table).into_iter().flat_map(|table| &table.segments);
                    for segment in all.filter(|segment| segments.contains(&segment.id)) {
                        self.check_taken(coordinator, &segment.name(), &state);
                    }
                }
                Decision::Files { coordinator, worker, names, state } => {
                    for name in &names {
                        let Some(segment) = state.segment(name) else { continue };
                        let counts = segment.replicas.contains(&self.workers[worker].id);
                        assert!(!counts, "w{worker} is to remove {}, which counts", Brief(name));
                        self.check_taken(coordinator, name, &state);
                    }
                }
            }
        }
    }

    /// Whether all that should hold a segment do, where a copy of it is taken away
    /// by somebody who leads and has heard of them.
    fn check_taken(&self, coordinator: usize, name: &SegmentName, state: &State) {
        let decider = &self.coordinators[coordinator];
        let is_leading = self.log.leader == Some(coordinator) && decider.acts_in() == Some(self.log.term);
        let Some(table) = state.table_by_id(name.table).filter(|_| is_leading) else { return };
        let placed = table.placement.get(name.shard as usize).into_iter().flatten();
        for worker in placed.filter(|worker| !decider.awaits_report(worker)) {
            let is_there = self.workers[index_of(worker.as_str())].disk.contains(name);
            assert!(is_there, "a copy of {} is taken away, and {worker} does not have it", Brief(name));
        }
    }
}
