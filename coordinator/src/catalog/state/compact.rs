//! Segments of a shard that take the place of others with the same rows.

use std::collections::HashSet;
use std::sync::Arc;

use shoal_data::Segment;
use shoal_proto::{SegmentId, TableId};

use super::{CatalogError, State, check_segments};
use crate::catalog::command::Outcome;

impl State {
    /// Takes the old segments out and puts the new ones there, all at once.
    /// Changes nothing where one of the old ones is gone, or has a copy on a worker
    /// on which a new one is not: no row has fewer copies afterwards.
    pub(super) fn compact(
        &mut self,
        table: TableId,
        shard: u32,
        old: &[SegmentId],
        mut new: Vec<Segment>,
    ) -> Result<Outcome, CatalogError> {
        new.iter_mut().flat_map(|segment| &mut segment.replicas).for_each(|worker| self.share(worker));
        let Some(entry) = self.tables.by_id_mut(table) else { return Ok(Outcome::Unchanged) };
        let named: HashSet<&SegmentId> = old.iter().collect();
        let is_old = |segment: &Segment| segment.shard == shard && named.contains(&segment.id);
        let Some(first) = entry.segments.iter().position(|segment| is_old(segment)) else {
            return Ok(Outcome::Unchanged);
        };
        let taken: Vec<Arc<Segment>> =
            entry.segments.iter().filter(|segment| is_old(segment)).cloned().collect();
        let is_kept = |segment: &Arc<Segment>| {
            let copies = &segment.replicas;
            new.iter().all(|new| copies.iter().all(|worker| new.replicas.contains(worker)))
        };
        if taken.len() != named.len() || !taken.iter().all(is_kept) {
            return Ok(Outcome::Unchanged);
        }
        let new: Vec<Arc<Segment>> = new.into_iter().map(Arc::new).collect();
        check_segments(entry, &new)?;
        if let Some(other) = new.iter().find(|segment| segment.shard != shard) {
            return Err(CatalogError::Invalid(format!("segment {} is not of shard {shard}", other.name())));
        }
        let (had, has) = (counted(&taken), counted(&new));
        if had != has {
            return Err(CatalogError::Invalid(format!(
                "shard {shard} of `{}` was compacted wrongly: {} rows became {}, with nulls {:?} and {:?} by column; \
                 nothing was changed",
                entry.full_name(),
                had.0,
                has.0,
                had.1,
                has.1
            )));
        }
        let entry = Arc::make_mut(entry);
        entry.segments.retain(|segment| !is_old(segment));
        // Nothing before the first of them was taken out: there the new ones begin.
        let after = entry.segments.split_off(first);
        entry.segments.extend(new);
        entry.segments.extend(after);
        self.dropped.extend(taken);
        Ok(Outcome::Done)
    }
}

/// Rows, and nulls in each column.
fn counted(segments: &[Arc<Segment>]) -> (u64, Vec<u64>) {
    let mut nulls: Vec<u64> = Vec::new();
    for segment in segments {
        nulls.resize(nulls.len().max(segment.columns.len()), 0);
        for (sum, column) in nulls.iter_mut().zip(segment.columns.iter()) {
            *sum += column.nulls;
        }
    }
    (segments.iter().map(|segment| segment.rows).sum(), nulls)
}
