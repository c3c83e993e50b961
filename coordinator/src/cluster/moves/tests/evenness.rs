//! Shards that move for evenness alone.

use super::*;

/// Evens out and makes the copies, until there is nothing to do; in how many
/// rounds.
pub(super) fn even(state: &mut State, workers: &[Candidate]) -> usize {
    let live = all_live(workers.iter().map(|worker| worker.id.clone()));
    for round in 0..ROUNDS_MAX {
        let commands = even_out(state, workers);
        if commands.is_empty() {
            return round;
        }
        let before = state.clone();
        apply(state, commands);
        assert!(surplus(state, &live, &leave("")).is_empty(), "a copy is given up before there is another");
        copy(state, &live);
        let commands = surplus(state, &live, &leave(""));
        apply(state, commands);
        for (before, after) in before.tables().zip(state.tables()) {
            let counts = |shards: &[BTreeSet<WorkerId>]| shards.iter().map(BTreeSet::len).collect::<Vec<_>>();
            let copies = sets(&after.placement);
            assert_eq!(counts(&copies), counts(&sets(&before.placement)), "a shard lost a worker");
            for segment in &after.segments {
                assert_eq!(set(&segment.replicas), copies[segment.shard as usize]);
            }
        }
    }
    panic!("still moving after {ROUNDS_MAX} rounds");
}

#[test]
fn a_new_worker_gets_its_part_and_then_nothing_moves() {
    let mut state = State::new("c");
    let mut layout = table(TableId(1), "t").layout;
    layout.shards = 8;
    layout.replicas = Count(3);
    let placement = place(&layout, &workers("w1 w2 w3 w4"), std::iter::empty()).unwrap().shards;
    // Shards of 100, 200, ... 800 bytes in all.
    for part in [10, 30, 60] {
        let bytes: Vec<u64> = (1..=8).map(|shard| part * shard).collect();
        add(&mut state, Count(3), placement.clone(), &bytes);
    }
    let mut five = workers("w1 w2 w3 w4 w5");
    let commands = even_out(&state, &five);
    assert_eq!(commands.len(), 3, "a group is torn apart");
    assert!(commands.iter().all(|command| changes(&state, command).len() <= MOVES_MAX));
    assert!(even(&mut state, &five) > 0);
    let loads = loads(&state);
    assert_eq!(loads.len(), 5);
    let range = loads.values().max().unwrap() - loads.values().min().unwrap();
    assert!(range <= 800, "more than one shard apart: {loads:?}");
    let placements: BTreeSet<_> = state.tables().map(|table| &table.placement).collect();
    assert_eq!(placements.len(), 1, "a group is torn apart");
    five.reverse();
    assert!(even_out(&state, &five).is_empty());
}

#[test]
fn empty_tables_never_move() {
    let mut state = State::new("c");
    add(&mut state, Count(1), shards("w1, w1, w1"), &[]);
    let here = workers("w1 w2");
    assert!(even_out(&state, &here).is_empty());
    add(&mut state, Count(1), shards("w1, w1"), &[10, 10]);
    let commands = even_out(&state, &here);
    assert_eq!(told(&state, &commands), ["public.t2, shard 1: from w1 to w2"]);
}

#[test]
fn what_is_even_enough_stays() {
    let mut state = State::new("c");
    add(&mut state, Count(1), shards("w1, w1, w1, w2"), &[1000, 20, 20, 1000]);
    assert!(even_out(&state, &workers("w1 w2")).is_empty());
    // It would wander to and fro.
    let mut state = State::new("c");
    add(&mut state, Count(1), shards("w1"), &[1000]);
    assert!(even_out(&state, &workers("w1 w2")).is_empty());
    assert!(even_out(&state, &[]).is_empty());
}

#[test]
fn evenness_brings_no_two_copies_into_one_zone() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(2), shards("w1 w2, w1 w2, w1 w2, w1 w2"), &[10; 4]);
    let here = workers("w1:a w2:b w3:a");
    even(&mut state, &here);
    let after = placed(&state, table);
    assert!(after.iter().all(|shard| zones(shard, &here) == 2), "{after:?}");
}

#[test]
fn new_workers_in_every_zone_get_their_part() {
    let mut state = State::new("c");
    add(&mut state, Count(2), shards("w1 w2, w1 w2, w1 w2, w1 w2"), &[10; 4]);
    even(&mut state, &workers("w1:a w2:b w3:a w4:b"));
    let even: BTreeMap<WorkerId, u64> = ids("w1 w2 w3 w4").into_iter().map(|id| (id, 20)).collect();
    assert_eq!(loads(&state), even);
}

/// The workers with disks of so many bytes, of which so many are free.
fn with_disks(workers: Vec<Candidate>, disks: &[(u64, u64)]) -> Vec<Candidate> {
    let with_disk = |(worker, (free_bytes, total_bytes)): (Candidate, &(u64, u64))| Candidate {
        disk: Disk { free_bytes: *free_bytes, total_bytes: *total_bytes },
        ..worker
    };
    workers.into_iter().zip(disks).map(with_disk).collect()
}

#[test]
fn nothing_goes_where_there_is_less_room_and_what_is_there_may_leave() {
    const TB: u64 = 1_000_000_000_000;
    let one = || {
        let mut state = State::new("c");
        add(&mut state, Count(1), shards("w1, w1, w1, w1, w2"), &[10, 10, 10, 10, 10]);
        state
    };
    let moved = |disks: &[(u64, u64)]| {
        let state = one();
        let commands = even_out(&state, &with_disks(workers("w1 w2 w3"), disks));
        let moved = commands.iter().flat_map(|command| changes(&state, command));
        moved.flat_map(|moved| moved.to).collect::<BTreeSet<_>>()
    };
    let set_of = |text: &str| set(&ids(text));
    assert_eq!(moved(&[(TB / 2, TB); 3]), set_of("w2 w3"));
    // All on one file system, however full.
    assert_eq!(moved(&[(TB / 50, TB); 3]), set_of("w2 w3"));
    assert_eq!(moved(&[(TB / 2, TB), (TB / 2, TB), (TB / 20, TB)]), set_of("w2"));
    assert_eq!(moved(&[(TB / 2, TB), (TB / 2, TB), (0, TB)]), set_of("w2"));
    // The fullest is the one that shards leave.
    assert_eq!(moved(&[(0, TB), (TB / 2, TB), (TB / 2, TB)]), set_of("w2 w3"));
}

#[test]
fn no_more_goes_to_a_disk_than_fits() {
    let mut state = State::new("c");
    add(&mut state, Count(1), shards("w1, w1, w1, w1, w1, w1"), &[1_000; 6]);
    // A fiftieth of 5,000 stays free: there is room for two.
    let here = with_disks(workers("w1 w2"), &[(2_100, 5_000), (2_100, 5_000)]);
    let commands = even_out(&state, &here);
    assert_eq!(commands.iter().flat_map(|command| changes(&state, command)).count(), 2);
}

#[test]
fn a_larger_disk_holds_more() {
    let mut state = State::new("c");
    add(&mut state, Count(1), vec![ids("w1"); 40], &[10 << 20; 40]);
    let here = with_disks(workers("w1 w2"), &[(90 << 30, 100 << 30), (290 << 30, 300 << 30)]);
    even(&mut state, &here);
    let loads = loads(&state);
    let held = |worker: &str| loads[&WorkerId::from(worker)] >> 20;
    assert_eq!(held("w1") + held("w2"), 400);
    assert!((90..=110).contains(&held("w1")), "{loads:?}");
    assert!(even_out(&state, &here).is_empty());
}

#[test]
fn where_nothing_moves_it_is_said_why() {
    let check = |placed: &str, bytes: &[u64], here: &[Candidate], expected: &str| {
        let mut state = State::new("c");
        add(&mut state, Count(1), shards(placed), bytes);
        assert!(even_out(&state, here).is_empty(), "{placed}: something moves");
        let said = why_not(&state, here);
        assert!(said.contains(expected), "{placed}: {said}");
    };
    check("w1", &[10], &[], "no worker can take shards");
    check("w1", &[10], &workers("w1"), "w1 is the only worker that can take shards");
    check("w1, w2", &[], &workers("w1 w2"), "no table has rows");
    let even = "workers hold as much as they should: w1 holds 1010 bytes and w2 holds 1000";
    check("w1, w1, w2", &[1_000, 10, 1_000], &workers("w1 w2"), even);
    check("w1", &[10], &workers("w1 w2"), "w1 holds 10 bytes and w2 holds 0, and no shard can go");
    let full = with_disks(workers("w1 w2"), &[(1 << 40, 1 << 40), (0, 1 << 40)]);
    check("w1, w1, w1", &[10; 3], &full, "finds no room");
}

#[test]
fn a_shard_too_big_to_move_keeps_no_others_from_moving() {
    let mut state = State::new("c");
    add(&mut state, Count(1), shards("w1, w2, w2, w2, w2"), &[1000, 10, 10, 10, 10]);
    even(&mut state, &workers("w1 w2 w3"));
    assert!(loads(&state).contains_key(&"w3".into()), "{:?}", loads(&state));
}
