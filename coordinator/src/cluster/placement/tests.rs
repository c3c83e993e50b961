//! Claims about placement, for any workers and zones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::Schema;
use proptest::prelude::*;
use shoal_data::KeyHash;
use shoal_proto::TableId;

use super::*;

fn layout(shards: u32, replicas: ReplicaCount) -> TableLayout {
    TableLayout {
        shards,
        replicas,
        shard_key: vec![],
        sort_key: vec![],
        hash: KeyHash::DataFusion55,
        bloom_filters: vec![],
    }
}

fn workers(zones: &[usize]) -> Vec<Candidate> {
    let mut workers = Vec::new();
    for (zone, count) in zones.iter().enumerate() {
        for index in 0..*count {
            let id = WorkerId::new(format!("w{zone}-{index}"));
            workers.push(Candidate { id, zone: format!("z{zone}"), disk: Disk::default() });
        }
    }
    workers
}

fn table(id: u64, layout: TableLayout, placement: Vec<Vec<WorkerId>>) -> Table {
    Table {
        id: TableId(id),
        schema_name: "public".to_owned(),
        name: format!("t{id}"),
        columns: Arc::new(Schema::empty()),
        layout,
        placement,
        segments: vec![],
        sketches: None,
    }
}

fn range(loads: impl Iterator<Item = usize> + Clone) -> usize {
    loads.clone().max().unwrap_or(0) - loads.min().unwrap_or(0)
}

proptest! {
    #[test]
    fn shards_are_whole_spread_and_balanced(
        shards in 1_u32..40,
        replicas in 1_u32..6,
        zones in prop::collection::vec(1_usize..5, 1..5),
    ) {
        let workers = workers(&zones);
        let layout = layout(shards, ReplicaCount::Count(replicas));
        let placement = place(&layout, &workers, std::iter::empty()).unwrap();
        let copies = (replicas as usize).min(workers.len());
        let zone_of: BTreeMap<_, _> = workers.iter().map(|w| (w.id.clone(), w.zone.clone())).collect();
        let mut load: BTreeMap<_, usize> = workers.iter().map(|w| (w.id.clone(), 0)).collect();
        prop_assert_eq!(placement.shards.len(), shards as usize);
        for shard in &placement.shards {
            let distinct: BTreeSet<_> = shard.iter().collect();
            prop_assert_eq!(distinct.len(), copies);
            prop_assert_eq!(shard.len(), copies);
            let spread: BTreeSet<_> = shard.iter().map(|id| &zone_of[id]).collect();
            prop_assert_eq!(spread.len(), copies.min(zones.len()));
            for id in shard {
                *load.get_mut(id).unwrap() += 1;
            }
        }
        for zone in zone_of.values() {
            let within = load.iter().filter(|(id, _)| &zone_of[*id] == zone).map(|(_, load)| *load);
            prop_assert!(range(within) <= 1, "unbalanced in {}: {:?}", zone, load);
        }
        let even = zones.iter().all(|zone| *zone == zones[0]);
        if even {
            prop_assert!(range(load.values().copied()) <= 1, "unbalanced: {:?}", load);
        }
        prop_assert_eq!(placement.notice.is_some(), replicas as usize > workers.len());
    }

    #[test]
    fn the_order_of_workers_does_not_matter(
        shards in 1_u32..20,
        replicas in 1_u32..4,
        workers in Just(workers(&[3, 2, 4])).prop_shuffle(),
    ) {
        let layout = layout(shards, ReplicaCount::Count(replicas));
        let sorted = super::tests::workers(&[3, 2, 4]);
        prop_assert_eq!(
            place(&layout, &workers, std::iter::empty()),
            place(&layout, &sorted, std::iter::empty())
        );
    }

    /// Whoever leaves or is away, and however many copies are asked for now.
    #[test]
    fn rehomed_shards_are_whole_and_change_no_more_than_they_must(
        shards in 1_u32..20,
        before in 1_u32..5,
        after in 1_u32..5,
        zones in prop::collection::vec(1_usize..4, 1..4),
        fates in prop::collection::vec(0_u8..4, 9),
    ) {
        const LEAVES: u8 = 2;
        let all = workers(&zones);
        let with = |is_fate: fn(u8) -> bool| {
            let chosen = all.iter().zip(&fates).filter(move |(_, fate)| is_fate(**fate));
            chosen.map(|(worker, _)| worker.clone()).collect::<Vec<_>>()
        };
        let here = with(|fate| fate < LEAVES);
        let leave: BTreeSet<_> = with(|fate| fate == LEAVES).into_iter().map(|worker| worker.id).collect();
        let [before, wanted] = [before, after].map(|count| layout(shards, ReplicaCount::Count(count)));
        let old = place(&before, &all, std::iter::empty()).unwrap().shards;
        let asking = table(1, wanted.clone(), old.clone());
        let new = rehome(&asking, &here, &leave).unwrap_or_else(|| old.clone());
        prop_assert_eq!(new.len(), old.len());
        let after = after as usize;
        let zones_of = |shard: &[&WorkerId]| {
            let of_shard = here.iter().filter(|worker| shard.contains(&&worker.id));
            of_shard.map(|worker| worker.zone.as_str()).collect::<BTreeSet<_>>().len()
        };
        let zones_here = zones_of(&here.iter().map(|worker| &worker.id).collect::<Vec<_>>());
        for (old, new) in old.iter().zip(&new) {
            let distinct: BTreeSet<_> = new.iter().collect();
            prop_assert_eq!(distinct.len(), new.len(), "twice on a worker: {:?}", new);
            let staying = old.iter().filter(|id| !leave.contains(*id)).count();
            let kept: Vec<_> = new.iter().filter(|id| old.contains(id) && !leave.contains(*id)).collect();
            prop_assert_eq!(kept.len(), staying.min(after), "{:?} became {:?}", old, new);
            let is_one_free = here.iter().any(|worker| !new.contains(&worker.id));
            let is_one_left = new.iter().any(|id| leave.contains(id));
            let is_left_in_vain = is_one_free && is_one_left;
            prop_assert!(!is_left_in_vain, "{:?} became {:?}", old, new);
            let is_best = new.len() == after || (!is_one_free && new.len() >= old.len());
            prop_assert!(is_best, "{:?} became {:?}", old, new);
            if staying <= after {
                let arrived = new.iter().filter(|id| !old.contains(id)).count();
                let most = zones_here.min(zones_of(&kept) + arrived);
                let zones = zones_of(&new.iter().collect::<Vec<_>>());
                prop_assert_eq!(zones, most, "{:?} became {:?}", old, new);
            }
        }
        prop_assert_eq!(rehome(&table(1, wanted, new), &here, &leave), None, "it moves again");
    }
}

#[test]
fn tables_sharded_alike_live_together() {
    let layout = layout(8, ReplicaCount::Count(2));
    let four = workers(&[4]);
    let first = place(&layout, &four[..3], std::iter::empty()).unwrap();
    let tables = [table(1, layout.clone(), first.shards.clone())];
    let second = place(&layout, &four, tables.iter()).unwrap();
    assert_eq!(second.shards, first.shards, "a worker that came later does not split the group");
    let dead = place(&layout, &four[1..], tables.iter()).unwrap();
    assert!(dead.shards.iter().flatten().all(|id| *id != four[0].id), "a dead worker was chosen");
    let other = place(&super::tests::layout(4, ReplicaCount::Count(2)), &four, tables.iter()).unwrap();
    assert_eq!(other.shards.len(), 4);
}

#[test]
fn a_group_with_too_few_copies_is_not_joined() {
    let layout = layout(4, ReplicaCount::Count(3));
    let three = workers(&[3]);
    let poor = place(&layout, &three[..1], std::iter::empty()).unwrap();
    assert_eq!(
        poor.notice.as_deref(),
        Some("replicas = 3, but there is 1 worker live: each shard gets 1 for now")
    );
    let tables = [table(1, layout.clone(), poor.shards)];
    let rich = place(&layout, &three, tables.iter()).unwrap();
    assert!(rich.notice.is_none());
    assert!(rich.shards.iter().all(|shard| shard.len() == 3));
}

#[test]
fn a_reference_table_is_on_every_worker() {
    let placement = place(&layout(1, ReplicaCount::All), &workers(&[2, 3]), std::iter::empty()).unwrap();
    assert_eq!(placement.shards[0].len(), 5);
    assert!(placement.notice.is_none());
}

#[test]
fn without_workers_there_is_no_placement() {
    assert_eq!(place(&layout(1, ReplicaCount::Count(1)), &[], std::iter::empty()), None);
}

#[test]
fn a_table_with_too_few_copies_grows_when_workers_come() {
    let wanted = layout(6, ReplicaCount::Count(3));
    let all = workers(&[2, 2]);
    let first = place(&wanted, &all[..1], std::iter::empty()).unwrap();
    let poor = table(1, wanted.clone(), first.shards.clone());
    let nobody = BTreeSet::new();
    assert_eq!(rehome(&poor, &all[..1], &nobody), None);
    let grown = rehome(&poor, &all, &nobody).unwrap();
    let mut load: BTreeMap<&WorkerId, usize> = BTreeMap::new();
    for (old, new) in first.shards.iter().zip(&grown) {
        assert!(new.starts_with(old));
        assert_eq!(new.iter().collect::<BTreeSet<_>>().len(), 3);
        let zones: BTreeSet<_> =
            new.iter().filter_map(|id| all.iter().find(|worker| worker.id == *id)).map(|w| &w.zone).collect();
        assert_eq!(zones.len(), 2);
        new.iter().for_each(|id| *load.entry(id).or_default() += 1);
    }
    assert!(range(load.iter().filter(|(id, _)| ***id != all[0].id).map(|(_, load)| *load)) <= 1, "{load:?}");
    let twin = table(2, wanted.clone(), first.shards);
    assert_eq!(rehome(&twin, &all, &nobody), Some(grown.clone()), "a group is torn apart");
    assert_eq!(rehome(&table(1, wanted, grown), &all, &nobody), None);
}

#[test]
fn a_worker_that_is_away_is_not_replaced() {
    let wanted = layout(2, ReplicaCount::Count(2));
    let all = workers(&[3]);
    let placed = place(&wanted, &all[..2], std::iter::empty()).unwrap();
    assert_eq!(rehome(&table(1, wanted, placed.shards), &all[1..], &BTreeSet::new()), None);
}

/// Where one shard goes, by numbers of workers.
fn rehomed(replicas: ReplicaCount, placed: &[usize], all: &[Candidate], leave: &[usize]) -> Vec<WorkerId> {
    let id = |number: &usize| all[*number].id.clone();
    let placed: Vec<WorkerId> = placed.iter().map(id).collect();
    let leave: BTreeSet<WorkerId> = leave.iter().map(id).collect();
    let table = table(1, layout(1, replicas), vec![placed.clone()]);
    rehome(&table, all, &leave).map_or(placed, |mut shards| shards.remove(0))
}

#[test]
fn fewer_copies_stay_in_as_many_zones() {
    let all = workers(&[2, 1]);
    let left = rehomed(ReplicaCount::Count(2), &[0, 1, 2], &all, &[]);
    assert_eq!(left.len(), 2);
    assert!(left.contains(&all[2].id), "both are in one zone: {left:?}");
}

#[test]
fn a_worker_that_is_given_up_and_back_already_is_named_once() {
    let all = workers(&[2]);
    let placed = rehomed(ReplicaCount::Count(3), &[0, 1], &all, &[0]);
    assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), placed.len(), "{placed:?}");
}

#[test]
fn a_reference_table_is_on_whoever_stays() {
    let all = workers(&[3]);
    let ids: Vec<_> = all.iter().map(|worker| worker.id.clone()).collect();
    assert_eq!(rehomed(ReplicaCount::All, &[0, 1, 2], &all, &[0]), ids[1..]);
    assert_eq!(rehomed(ReplicaCount::All, &[0], &all, &[]), ids);
    assert_eq!(rehomed(ReplicaCount::All, &[0, 1, 2], &all, &[0, 1, 2]), ids, "copies are given up");
    assert_eq!(rehomed(ReplicaCount::All, &[0], &all[..1], &[0]), ids[..1], "nobody can take it over");
}

/// The workers with disks of which so many hundredths are free.
fn with_disks(workers: Vec<Candidate>, free: &[u64]) -> Vec<Candidate> {
    const HUNDREDTH: u64 = 10 << 30;
    let with_disk = |(worker, free): (Candidate, &u64)| {
        let disk = Disk { free_bytes: free * HUNDREDTH, total_bytes: 100 * HUNDREDTH };
        Candidate { disk, ..worker }
    };
    workers.into_iter().zip(free).map(with_disk).collect()
}

#[test]
fn a_new_table_goes_where_there_is_room() {
    let check = |zones: &[usize], free: &[u64], replicas: ReplicaCount, expected: &[usize]| {
        let all = workers(zones);
        let expected: BTreeSet<WorkerId> = expected.iter().map(|at| all[*at].id.clone()).collect();
        let disks = with_disks(all.clone(), free);
        let placement = place(&layout(2, replicas), &disks, std::iter::empty()).unwrap();
        let placed: BTreeSet<WorkerId> = placement.shards.iter().flatten().cloned().collect();
        assert_eq!(placed, expected, "{free:?}, {replicas:?}");
        placement.notice
    };
    let two = ReplicaCount::Count(2);
    assert_eq!(check(&[3], &[0, 50, 50], two, &[1, 2]), None);
    assert_eq!(check(&[3], &[5, 50, 50], two, &[1, 2]), None, "tight ones come last");
    assert_eq!(check(&[3], &[5, 5, 50], two, &[0, 1, 2]), None, "and they come");
    // Rather two zones than room; there is none on a full disk.
    assert_eq!(check(&[2, 1], &[50, 50, 5], two, &[0, 1, 2]), None);
    assert_eq!(check(&[2, 1], &[50, 50, 0], two, &[0, 1]), None);
    assert_eq!(check(&[3], &[0, 0, 0], two, &[0, 1, 2]), None);
    assert_eq!(check(&[3], &[50, 0, 50], ReplicaCount::All, &[0, 2]), None);
    let notice = check(&[3], &[0, 50, 50], ReplicaCount::Count(3), &[1, 2]);
    let expected =
        "replicas = 3, but there are 2 workers live whose disks are not full: each shard gets 2 for now";
    assert_eq!(notice.as_deref(), Some(expected));
}

#[test]
fn a_group_on_a_full_disk_is_not_joined() {
    let layout = layout(4, ReplicaCount::Count(2));
    let all = workers(&[4]);
    let first = place(&layout, &all[..2], std::iter::empty()).unwrap();
    let tables = [table(1, layout.clone(), first.shards.clone())];
    let on = |free: &[u64]| place(&layout, &with_disks(all.clone(), free), tables.iter()).unwrap().shards;
    assert_eq!(on(&[5, 50, 50, 50]), first.shards, "joins are worth more than room");
    assert!(on(&[0, 50, 50, 50]).iter().flatten().all(|id| *id != all[0].id));
}

#[test]
fn what_is_missing_goes_where_there_is_room_and_waits_where_there_is_none() {
    let wanted = layout(2, ReplicaCount::Count(2));
    let all = workers(&[3]);
    let ids: Vec<WorkerId> = all.iter().map(|worker| worker.id.clone()).collect();
    let placed = vec![ids[..2].to_vec(), ids[..2].to_vec()];
    let table = table(1, wanted, placed.clone());
    let leave = BTreeSet::from([ids[0].clone()]);
    let to = |free: &[u64]| {
        rehome(&table, &with_disks(all.clone(), free), &leave).unwrap_or_else(|| placed.clone())
    };
    let moved = vec![vec![ids[1].clone(), ids[2].clone()]; 2];
    assert_eq!(to(&[50, 50, 50]), moved);
    assert_eq!(to(&[50, 50, 5]), moved, "it has room for some");
    assert_eq!(to(&[50, 50, 0]), placed);
    // What is on a full disk stays there.
    assert_eq!(to(&[50, 0, 50]), moved);
}

#[test]
fn where_a_look_says_that_all_is_right_nothing_moves() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let mut were_right = 0;
    for seed in 0..300 {
        let state = crate::catalog::state::tests::random(seed);
        let mut random = StdRng::seed_from_u64(seed);
        let mut some = |share: f64| -> Vec<Candidate> {
            let all = (0..10_u64).map(|number| Candidate {
                id: WorkerId::new(format!("w{number}")),
                zone: String::new(),
                // Some are full.
                disk: Disk { free_bytes: (number % 4) << 40, total_bytes: 8 << 40 },
            });
            all.filter(|_| random.random_bool(share)).collect()
        };
        let workers = some(0.8);
        let leave: BTreeSet<WorkerId> = if seed % 3 == 0 {
            some(0.2).into_iter().map(|worker| worker.id).collect()
        } else {
            BTreeSet::new()
        };
        for (table, number) in state.tables().zip(0..) {
            let mut table = Table::clone(table);
            let fewest = table.placement.iter().map(Vec::len).min().unwrap_or_default();
            table.placement.iter_mut().filter(|_| number % 2 == 0).for_each(|shard| shard.truncate(fewest));
            table.layout.replicas = match (number, u32::try_from(fewest)) {
                (3, _) => ReplicaCount::All,
                (_, Ok(fewest)) => ReplicaCount::Count(fewest),
                (_, Err(_)) => ReplicaCount::Count(1),
            };
            let slowly = super::rehomed(&table, &workers, &leave);
            were_right += usize::from(slowly.is_none());
            assert_eq!(rehome(&table, &workers, &leave), slowly, "seed {seed}, {table:?}");
        }
    }
    assert!(were_right > 100, "{were_right} of 1200 were right");
}
