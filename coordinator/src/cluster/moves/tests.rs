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

mod apart;
mod evenness;
mod plainly;
mod story;
