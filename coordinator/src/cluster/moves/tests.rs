//! Claims about moves, with all that is planned done at once.

use std::collections::HashSet;
use std::sync::Arc;

use shoal_data::ReplicaCount::{All, Count};
use shoal_data::{Segment, SegmentName};

use super::*;
use crate::catalog::state::tests::{create, segment, table};
use crate::catalog::{Outcome, WorkerRecord};
use crate::cluster::disk::Disk;
use crate::cluster::placement::place;
use crate::cluster::{Holds, LiveWorker, repair};

/// After so many rounds whatever still moves never comes to rest.
const ROUNDS_MAX: usize = 100;

/// `w1:a` is a worker in a zone, `w1` one without.
fn workers(text: &str) -> Vec<Candidate> {
    let worker = |text: &str| {
        let (id, zone) = text.split_once(':').unwrap_or((text, ""));
        Candidate { id: id.into(), zone: zone.to_owned(), disk: Disk::default() }
    };
    text.split_whitespace().map(worker).collect()
}

fn ids(text: &str) -> Vec<WorkerId> {
    text.split_whitespace().map(WorkerId::from).collect()
}

/// `w1 w2, w2 w3` is where two shards live.
fn shards(text: &str) -> Vec<Vec<WorkerId>> {
    text.split(',').map(ids).collect()
}

fn leave(text: &str) -> BTreeSet<WorkerId> {
    ids(text).into_iter().collect()
}

/// Live workers that have all that the catalog says.
fn all_live(ids: impl IntoIterator<Item = WorkerId>) -> LiveWorkers {
    let ids: BTreeSet<WorkerId> = ids.into_iter().collect();
    let workers = ids.into_iter().map(LiveWorker::named);
    LiveWorkers { workers: workers.collect(), ..LiveWorkers::default() }
}

fn live(text: &str) -> LiveWorkers {
    all_live(ids(text))
}

/// Adds a table `t<id>`, with one segment for each of `bytes`, in order of shards,
/// on all its workers.
fn add(state: &mut State, replicas: ReplicaCount, placement: Vec<Vec<WorkerId>>, bytes: &[u64]) -> TableId {
    let Ok(Outcome::Table(id)) = state.apply(Command::ReserveTable) else {
        panic!("no table id");
    };
    let mut table = table(id, &format!("t{id}"));
    table.layout.shards = u32::try_from(placement.len()).unwrap();
    table.layout.replicas = replicas;
    for (shard, (workers, bytes)) in placement.iter().zip(bytes).enumerate() {
        let shard = u32::try_from(shard).unwrap();
        let held = Segment { bytes: *bytes, replicas: workers.clone(), ..segment(id, shard, "") };
        table.segments.push(Arc::new(held));
    }
    table.placement = placement;
    state.apply(create(table)).unwrap();
    id
}

/// Each must change something: what is planned for nothing is planned again.
fn apply(state: &mut State, commands: Vec<Command>) {
    for command in commands {
        assert_eq!(state.apply(command.clone()), Ok(Outcome::Done), "{command:?}");
    }
}

fn set_replicas(state: &mut State, name: &str, replicas: ReplicaCount) {
    let schema_name = "public".to_owned();
    state.apply(Command::SetReplicas { schema_name, name: name.to_owned(), replicas }).unwrap();
}

/// Makes copies that are missing, at most so many on each worker; how many.
fn copy_some(state: &mut State, live: &LiveWorkers, per_worker_max: usize) -> usize {
    let orders = repair::missing(state, live, per_worker_max, |_, _, _| false);
    for (worker, request) in &orders {
        let name: SegmentName = request.name.parse().unwrap();
        let worker = worker.clone();
        apply(state, vec![Command::AddReplica { table: name.table, segment: name.segment, worker }]);
    }
    orders.len()
}

fn copy(state: &mut State, live: &LiveWorkers) -> usize {
    copy_some(state, live, usize::MAX)
}

fn placed(state: &State, table: TableId) -> Vec<Vec<WorkerId>> {
    state.table_by_id(table).unwrap().placement.clone()
}

/// Who has the segments of a table, by the catalog.
fn held(state: &State, table: TableId) -> Vec<BTreeSet<WorkerId>> {
    let table = state.table_by_id(table).unwrap();
    table.segments.iter().map(|segment| set(&segment.replicas)).collect()
}

fn set(workers: &[WorkerId]) -> BTreeSet<WorkerId> {
    workers.iter().cloned().collect()
}

fn sets(shards: &[Vec<WorkerId>]) -> Vec<BTreeSet<WorkerId>> {
    shards.iter().map(|workers| set(workers)).collect()
}

fn told(state: &State, commands: &[Command]) -> Vec<String> {
    let moved = commands.iter().flat_map(|command| changes(state, command));
    moved.map(|moved| moved.to_string()).collect()
}

/// Bytes on each worker that has some.
fn loads(state: &State) -> BTreeMap<WorkerId, u64> {
    let mut loads: BTreeMap<WorkerId, u64> = BTreeMap::new();
    for table in state.tables() {
        for segment in &table.segments {
            for worker in &segment.replicas {
                *loads.entry(worker.clone()).or_default() += segment.bytes;
            }
        }
    }
    loads
}

/// How many zones a shard is in.
fn zones(shard: &[WorkerId], workers: &[Candidate]) -> usize {
    let of_shard = workers.iter().filter(|worker| shard.contains(&worker.id));
    of_shard.map(|worker| worker.zone.as_str()).collect::<BTreeSet<_>>().len()
}

/// Evens out and makes the copies, until there is nothing to do; in how many
/// rounds.
fn even(state: &mut State, workers: &[Candidate]) -> usize {
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
fn a_dead_worker_is_replaced_and_one_that_is_only_away_is_not() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(2), shards("w1 w2, w2 w3, w3 w1"), &[10, 10, 10]);
    let here = workers("w2 w3 w4");
    assert!(mend(&state, &here, &leave("")).is_empty(), "it may come back");
    let commands = mend(&state, &here, &leave("w1"));
    assert_eq!(
        told(&state, &commands),
        ["public.t1, shard 0: from w1 to w4", "public.t1, shard 2: from w1 to w4"]
    );
    apply(&mut state, commands);
    assert_eq!(placed(&state, table), shards("w2 w4, w2 w3, w3 w4"));
    assert!(mend(&state, &here, &leave("w1")).is_empty());
    // What it has counts until the copies are made.
    let live = live("w2 w3 w4");
    assert!(surplus(&state, &live, &leave("")).is_empty());
    assert_eq!(copy(&mut state, &live), 2);
    let commands = surplus(&state, &live, &leave(""));
    assert_eq!(commands.len(), 1, "one command for all that leaves a worker");
    apply(&mut state, commands);
    assert_eq!(held(&state, table), sets(&placed(&state, table)));
}

#[test]
fn what_leaves_stays_where_nobody_can_take_over() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(3), shards("w3 w1 w2"), &[10]);
    // There is one for two.
    let commands = mend(&state, &workers("w3 w4"), &leave("w1 w2"));
    apply(&mut state, commands);
    assert_eq!(placed(&state, table), shards("w3 w4 w1 w2"));
    assert!(mend(&state, &workers("w3 w4"), &leave("w1 w2")).is_empty());
    assert!(mend(&state, &[], &leave("w1 w3 w4")).is_empty());
    let commands = mend(&state, &workers("w3 w4 w5"), &leave("w1 w2"));
    apply(&mut state, commands);
    assert_eq!(placed(&state, table), shards("w3 w4 w5"));
}

#[test]
fn what_stays_says_how_many_others_can_hold_it() {
    let check = |replicas: ReplicaCount, placed: &str, here: &str, leaving: &str, expected: &str| {
        let mut state = State::new("c");
        add(&mut state, replicas, shards(placed), &[10]);
        let said = lacking(&state, &workers(here), &leave(leaving), &"w1".into()).unwrap_or_default();
        let said = said.replace(" can hold one: start another worker", "");
        assert_eq!(said.replace("public.t1 is to have ", ""), expected, "{placed}, {here}, {leaving}");
    };
    check(Count(3), "w1 w2 w3", "w2 w3", "w1", "3 copies of each shard, and only 2 other workers");
    check(Count(3), "w1 w2 w3", "w3", "w1", "3 copies of each shard, and only 2 other workers");
    check(Count(3), "w1 w2 w3", "w2 w3 w4", "w1 w4", "3 copies of each shard, and only 2 other workers");
    check(Count(3), "w1 w2 w3", "w2 w3 w4", "w1", "");
    check(Count(3), "w2 w3 w4", "w2 w3", "w1", "");
    check(Count(2), "w1 w2", "w2", "w1", "2 copies of each shard, and only 1 other worker");
    check(Count(1), "w1", "", "w1", "a copy of each shard, and no other worker");
    check(All, "w1", "", "w1", "a copy of each shard on every worker, and no other worker");
    check(All, "w1", "w2", "w1", "");
}

#[test]
fn another_order_of_the_same_workers_is_no_move() {
    let mut state = State::new("c");
    add(&mut state, Count(2), shards("w1 w2"), &[10]);
    let commands = mend(&state, &workers("w2"), &leave("w1"));
    assert!(commands.is_empty(), "{:?}", told(&state, &commands));
}

#[test]
fn tables_of_one_group_stay_together() {
    let mut state = State::new("c");
    let group =
        [10, 20, 0].map(|bytes| add(&mut state, Count(2), shards("w1 w2, w2 w3, w3 w1, w1 w3"), &[bytes; 4]));
    add(&mut state, Count(1), shards("w4, w4, w2"), &[50, 60, 70]);
    let commands = mend(&state, &workers("w2 w3 w4 w5"), &leave("w1"));
    assert_eq!(commands.len(), group.len());
    apply(&mut state, commands);
    let [first, second, empty] = group.map(|table| placed(&state, table));
    assert_eq!(first, second);
    assert_eq!(first, empty);
    assert!(first.iter().all(|shard| set(shard).len() == 2 && !shard.contains(&"w1".into())), "{first:?}");
}

#[test]
fn copies_that_are_too_many_leave_whoever_has_most() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(3), shards("w1 w2 w3, w4 w1 w2, w3 w4 w1, w2 w3 w4"), &[10; 4]);
    let before = placed(&state, table);
    set_replicas(&mut state, "t1", Count(2));
    let here = workers("w1 w2 w3 w4");
    let commands = mend(&state, &here, &leave(""));
    apply(&mut state, commands);
    let after = placed(&state, table);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(set(after).len(), 2);
        assert!(after.iter().all(|worker| before.contains(worker)), "a copy is made for nothing");
    }
    assert!(mend(&state, &here, &leave("")).is_empty());
    let commands = surplus(&state, &live("w1 w2 w3 w4"), &leave(""));
    apply(&mut state, commands);
    assert_eq!(held(&state, table), sets(&after));
    assert!(loads(&state).values().all(|bytes| *bytes == 20), "{:?}", loads(&state));
}

#[test]
fn copies_that_are_too_many_leave_whoever_is_away() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(3), shards("w1 w2 w3"), &[10]);
    set_replicas(&mut state, "t1", Count(2));
    let commands = mend(&state, &workers("w2 w3"), &leave(""));
    apply(&mut state, commands);
    assert_eq!(placed(&state, table), shards("w2 w3"));
}

#[test]
fn a_reference_table_is_on_all_workers_until_it_asks_for_fewer() {
    let mut state = State::new("c");
    let table = add(&mut state, All, shards("w1 w2 w3, w1 w2 w3"), &[10, 10]);
    let (here, live) = (workers("w1 w2 w3 w4"), live("w1 w2 w3 w4"));
    assert_eq!(copy(&mut state, &live), 0, "w4 came later, and should not have it yet");
    let commands = mend(&state, &here, &leave(""));
    assert_eq!(told(&state, &commands), ["public.t1, shard 0: also on w4", "public.t1, shard 1: also on w4"]);
    apply(&mut state, commands);
    assert_eq!(copy(&mut state, &live), 2);
    assert!(surplus(&state, &live, &leave("")).is_empty());
    let mut without = state.clone();
    let commands = mend(&without, &here, &leave("w1"));
    apply(&mut without, commands);
    assert_eq!(placed(&without, table), shards("w2 w3 w4, w2 w3 w4"));
    let last = workers("w1");
    apply(
        &mut without,
        vec![Command::MoveShards { table, seen: shards("w2 w3 w4, w2 w3 w4"), placement: shards("w1, w1") }],
    );
    assert!(mend(&without, &last, &leave("w1")).is_empty(), "nobody can take it over");
    set_replicas(&mut state, "t1", Count(2));
    let commands = mend(&state, &here, &leave(""));
    apply(&mut state, commands);
    let after = placed(&state, table);
    assert!(after.iter().all(|shard| set(shard).len() == 2), "{after:?}");
    let commands = surplus(&state, &live, &leave(""));
    apply(&mut state, commands);
    assert_eq!(held(&state, table), sets(&after));
}

#[test]
fn a_new_copy_goes_to_a_zone_without_one() {
    let mut state = State::new("c");
    // `w4` has more than `w3`, and is alone in the zone of `w1`.
    let table = add(&mut state, Count(2), shards("w1 w2, w4 w2, w4 w2"), &[10, 10, 10]);
    let commands = mend(&state, &workers("w2:b w3:b w4:a"), &leave("w1"));
    apply(&mut state, commands);
    assert_eq!(placed(&state, table), shards("w2 w4, w4 w2, w4 w2"));
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

#[test]
fn a_copy_is_taken_out_once_all_that_should_have_one_do() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(2), shards("w1 w2"), &[10]);
    let moved = Command::MoveShards { table, seen: shards("w1 w2"), placement: shards("w2 w3") };
    apply(&mut state, vec![moved]);
    let all = live("w1 w2 w3");
    assert!(surplus(&state, &all, &leave("")).is_empty(), "w3 has no copy yet");
    assert_eq!(copy(&mut state, &all), 1);
    assert!(surplus(&state, &live("w1 w2"), &leave("")).is_empty(), "w3 is away");
    let name = state.table_by_id(table).unwrap().segments[0].name();
    let mut lost = live("w1 w2 w3");
    lost.workers[2].holds = Arc::new(Holds::all_but(HashSet::from([name])));
    assert!(surplus(&state, &lost, &leave("")).is_empty(), "w3 has lost its file");
    // Whether the one that should not have it is there does not matter.
    for live in [live("w2 w3"), all] {
        let commands = surplus(&state, &live, &leave(""));
        let [Command::RemoveReplicas { worker, segments, .. }] = &commands[..] else {
            panic!("{commands:?}");
        };
        assert_eq!((worker.as_str(), &segments[..]), ("w1", &[name.segment][..]));
    }
}

#[test]
fn copies_of_a_reference_table_are_not_too_many_before_it_is_placed_there() {
    let mut state = State::new("c");
    let table = add(&mut state, All, shards("w1"), &[10]);
    let segment = state.table_by_id(table).unwrap().segments[0].id;
    apply(&mut state, vec![Command::AddReplica { table, segment, worker: "w2".into() }]);
    assert!(surplus(&state, &live("w1 w2"), &leave("")).is_empty());
    assert_eq!(surplus(&state, &live("w1 w2"), &leave("w2")).len(), 1);
}

#[test]
fn the_last_copy_stays_wherever_it_is() {
    let mut state = State::new("c");
    let table = add(&mut state, Count(1), shards("w1"), &[10]);
    let moved = Command::MoveShards { table, seen: shards("w1"), placement: shards("w2") };
    apply(&mut state, vec![moved]);
    let both = live("w1 w2");
    assert!(surplus(&state, &both, &leave("")).is_empty());
    copy(&mut state, &both);
    let commands = surplus(&state, &both, &leave(""));
    apply(&mut state, commands);
    assert_eq!(held(&state, table), sets(&shards("w2")));
}

#[test]
fn what_moves_is_told() {
    let mut state = State::new("c");
    let seen = shards("w1 w2, w1 w2, w1, w1 w2 w3");
    let table = add(&mut state, Count(2), seen.clone(), &[]);
    let placement = shards("w1 w2, w3 w2, w1 w2 w4, w3");
    let moved = [Command::MoveShards { table, seen, placement }, Command::ReserveTable];
    assert_eq!(
        told(&state, &moved),
        [
            "public.t1, shard 1: from w1 to w3",
            "public.t1, shard 2: also on w2, w4",
            "public.t1, shard 3: not on w1, w2 any more",
        ]
    );
}

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

mod story;
