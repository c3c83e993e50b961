//! What moves and what is too much, against a plain look at everything.

use super::*;

/// The best move by a look at all shards for each pair of workers.
fn best_move_plainly<'a>(
    groups: &[Group<'_>],
    load: &BTreeMap<&'a WorkerId, u64>,
    zones: &HashMap<&WorkerId, &str>,
    sizes: &BTreeMap<&WorkerId, Size>,
) -> Option<(&'a WorkerId, &'a WorkerId, usize, usize)> {
    let (by_load, mean) = (by_load(load, sizes), mean(load));
    for fuller in by_load.iter().rev() {
        for emptier in &by_load {
            let gap = fuller.gap_to(emptier);
            if is_even(gap, mean) || emptier.size.room_bytes == 0 {
                continue;
            }
            let (from, to) = (fuller.id, emptier.id);
            let bytes_max = (gap / 4 * 3).min(emptier.size.room_bytes);
            let movable: Vec<(u64, usize, usize)> = groups
                .iter()
                .enumerate()
                .flat_map(|(index, group)| {
                    let shards = group.placement.iter().zip(&group.bytes).enumerate();
                    let can_move = shards
                        .filter(|(_, (workers, bytes))| **bytes > 0 && may_move(workers, from, to, zones));
                    can_move.map(move |(shard, (_, bytes))| (*bytes, index, shard))
                })
                .collect();
            let are_large = movable.iter().any(|(bytes, ..)| *bytes > bytes_max);
            let fitting = movable.into_iter().filter(|(bytes, ..)| *bytes <= bytes_max).max();
            let Some((bytes, index, shard)) = fitting else { continue };
            if !are_large || bytes >= gap / CRUMB {
                return Some((from, to, index, shard));
            }
        }
    }
    None
}

#[test]
fn moves_and_surplus_are_what_a_look_at_everything_says() {
    let mut moved = 0;
    for seed in 0..300 {
        let state = crate::catalog::state::tests::random(seed);
        let candidates: Vec<Candidate> = state
            .workers()
            .zip(0_u64..)
            .map(|(worker, number)| {
                // Of half of them, disks of two sizes, some of which are full.
                let disk = Disk { free_bytes: (number % 4) << 30, total_bytes: 4 << (30 + number % 2) };
                let disk = if seed % 2 == 0 { disk } else { Disk::default() };
                Candidate { id: worker.id.clone(), zone: format!("z{}", number % 2), disk }
            })
            .collect();
        let mut groups: Groups<'_> = BTreeMap::new();
        state.tables().for_each(|table| groups.entry(&table.placement).or_default().push(table));
        let groups: Vec<Group<'_>> =
            groups.into_iter().map(|(placement, tables)| Group::new(&state, placement, tables)).collect();
        let mut load: BTreeMap<&WorkerId, u64> = candidates.iter().map(|worker| (&worker.id, 0)).collect();
        for group in &groups {
            for (workers, bytes) in group.placement.iter().zip(&group.bytes) {
                workers.iter().for_each(|worker| *load.entry(worker).or_default() += bytes);
            }
        }
        let zones = candidates.iter().map(|worker| (&worker.id, worker.zone.as_str())).collect();
        let sizes = sizes(&candidates);
        let best = best_move(&groups, &load, &zones, &sizes);
        assert_eq!(best, best_move_plainly(&groups, &load, &zones, &sizes), "seed {seed}");
        moved += usize::from(best.is_some());

        let live = all_live(state.workers().skip(1).map(|worker| worker.id.clone()));
        let mut plain: BTreeMap<(TableId, &WorkerId), Vec<SegmentId>> = BTreeMap::new();
        for table in state.tables() {
            for segment in &table.segments {
                for worker in segment.replicas.iter().filter(|id| !table.should_hold(segment.shard, id)) {
                    if has_all_copies(table, segment, &live) {
                        plain.entry((table.id, worker)).or_default().push(segment.id);
                    }
                }
            }
        }
        let said = surplus(&state, &live, &leave(""));
        let said: Vec<_> = said
            .iter()
            .map(|command| match command {
                Command::RemoveReplicas { table, worker, segments } => ((*table, worker), segments.clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(said, plain.into_iter().collect::<Vec<_>>(), "seed {seed}");
    }
    assert!(moved > 30, "{moved} of 300 had a move");
}
