//! Copies of a shard that are in one zone although there is a zone without one: it may
//! be newer than the table, or have been away.

use std::collections::{BTreeMap, HashMap};

use shoal_proto::WorkerId;

use super::{Group, Loaded};

/// The first shard with two copies in one zone of which one can go to a zone that has
/// none: from whom to whom, and which shard of which group. From the fullest of those to
/// the emptiest of these that has room; `by_load` has the emptiest first.
pub(super) fn best_move<'a>(
    groups: &[Group<'_>],
    by_load: &[Loaded<'a>],
    zones: &HashMap<&WorkerId, &str>,
) -> Option<(&'a WorkerId, &'a WorkerId, usize, usize)> {
    let mut in_zone: BTreeMap<&str, Vec<&Loaded<'a>>> = BTreeMap::new();
    for worker in by_load {
        in_zone.entry(zones.get(worker.id).copied().unwrap_or_default()).or_default().push(worker);
    }
    // Where all are in one zone, each shard has a copy in every zone that there is.
    if in_zone.len() < 2 {
        return None;
    }
    for (index, group) in groups.iter().enumerate() {
        for (shard, (workers, bytes)) in group.placement.iter().zip(&group.bytes).enumerate() {
            let of_shard: Vec<&str> = workers.iter().filter_map(|id| zones.get(id).copied()).collect();
            let is_crowded = |zone: &&str| of_shard.iter().filter(|other| *other == zone).count() > 1;
            if !of_shard.iter().any(is_crowded) {
                continue;
            }
            let has_room = |it: &&&Loaded<'a>| it.size.room_bytes > 0 && it.size.room_bytes >= *bytes;
            let without = in_zone.iter().filter(|(zone, _)| !of_shard.contains(zone));
            let takers = without.filter_map(|(_, there)| there.iter().find(has_room));
            let Some(to) = takers.min_by_key(|it| (it.fullness(), it.id)) else { continue };
            let leaves =
                |it: &&Loaded<'a>| workers.contains(it.id) && zones.get(it.id).is_some_and(is_crowded);
            if let Some(from) = by_load.iter().rev().find(leaves) {
                return Some((from.id, to.id, index, shard));
            }
        }
    }
    None
}
