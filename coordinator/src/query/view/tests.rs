//! Tests of the view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_data::{KeyHash, PackedStatistics, ReplicaCount, Segment, Table, TableLayout};
use shoal_proto::{SegmentId, TableId, WorkerId};

use super::*;
use crate::cluster::{Holds, LiveWorker};

fn segment(table: TableId, shard: u32, replicas: &[&str]) -> Segment {
    Segment {
        id: SegmentId::random(),
        table,
        shard,
        rows: 1,
        bytes: 10,
        crc32c: 0,
        columns: PackedStatistics::default(),
        replicas: replicas.iter().copied().map(WorkerId::from).collect(),
    }
}

fn table(id: u64, holders: &[&[&str]]) -> Arc<Table> {
    let id = TableId(id);
    Arc::new(Table {
        id,
        schema_name: "public".into(),
        name: format!("t{id}"),
        columns: Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)])),
        layout: TableLayout {
            shards: u32::try_from(holders.len()).unwrap(),
            replicas: ReplicaCount::Count(2),
            shard_key: vec!["k".into()],
            sort_key: Vec::new(),
            hash: KeyHash::CURRENT,
            bloom_filters: Vec::new(),
        },
        placement: holders.iter().map(|held| held.iter().copied().map(WorkerId::from).collect()).collect(),
        segments: holders
            .iter()
            .enumerate()
            .map(|(shard, held)| Arc::new(segment(id, u32::try_from(shard).unwrap(), held)))
            .collect(),
        sketches: None,
    })
}

fn known(tables: &[Arc<Table>]) -> Vec<Arc<TableFacts>> {
    tables.iter().map(|table| Arc::new(TableFacts::new(Arc::clone(table)))).collect()
}

fn live(names: &[&str]) -> LiveWorkers {
    let workers = names.iter().map(|name| LiveWorker::named(*name));
    LiveWorkers { workers: workers.collect(), ..LiveWorkers::default() }
}

fn loads(table: &Table) -> Vec<ShardLoad> {
    (0..table.layout.shards).map(|shard| ShardLoad { table: table.id, shard, bytes: 10 }).collect()
}

#[test]
fn a_task_is_worth_as_much_as_its_threads_together() {
    let task_bytes = |threads: [u32; 2]| {
        let mut live = live(&["a", "b"]);
        for (worker, threads) in live.workers.iter_mut().zip(threads) {
            worker.threads = threads;
        }
        View::new(&live, &[], &BTreeSet::new(), "", 0, 2).unwrap().task_bytes(100)
    };
    assert_eq!(task_bytes([1, 1]), 100);
    assert_eq!(task_bytes([2, 2]), 200);
    // It has no third thread with two partitions, and may run where there is least.
    assert_eq!(task_bytes([16, 16]), 200);
    assert_eq!(task_bytes([16, 1]), 100);
    // What says nothing of itself has one.
    assert_eq!(task_bytes([0, 2]), 100);
    assert_eq!(View::without_workers().task_bytes(100), 100);
}

#[test]
fn a_shard_is_read_by_each_where_no_task_is_on_a_worker_without_it() {
    let held = table(1, &[&["a", "b", "c"], &["a", "b"]]);
    let view = View::new(&live(&["a", "b", "c"]), &known(&[held]), &BTreeSet::new(), "", 0, 2).unwrap();
    let is_read = |shard, tasks| view.is_read_by_each(TableId(1), shard, tasks);
    assert!(is_read(0, 2) && is_read(0, 3));
    assert!(is_read(1, 2) && !is_read(1, 3));
    // What is not in the query is on no disk that is known of.
    assert!(!is_read(2, 1) && !view.is_read_by_each(TableId(9), 0, 1));
}

#[test]
fn shards_go_to_workers_that_hold_them() {
    let held = table(1, &[&["a", "b"], &["b", "c"], &["c", "d"], &["d", "a"]]);
    let tables = [Arc::clone(&held)];
    let live = live(&["a", "b", "c", "d"]);
    for turn in 0..4 {
        for tasks in 1..=4 {
            let view = View::new(&live, &known(&tables), &BTreeSet::new(), "", turn, 2).unwrap();
            let workers = view.task_workers(tasks);
            let dealt = view.deal(&loads(&held), tasks);
            assert_eq!(dealt, view.deal(&loads(&held), tasks), "the same question, another answer");
            if tasks < 2 {
                continue;
            }
            for (shard, task) in dealt.into_iter().enumerate() {
                let worker = &view.workers()[workers[task]].id;
                assert!(held.placement[shard].contains(worker), "shard {shard} went to {worker}");
            }
        }
    }
}

#[test]
fn who_can_read_a_shard_is_what_a_look_at_each_worker_says() {
    let names = ["a", "b", "c", "d", "e"];
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut some = || -> Vec<&str> { names.into_iter().filter(|_| random.random_bool(0.7)).collect() };
        let shards: Vec<Vec<&str>> = (0..4).map(|_| some()).collect();
        let mut held = Arc::unwrap_or_clone(table(1, &shards.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        // The last shard has none.
        held.layout.shards += 1;
        for shard in [0, 2, 0, 1] {
            held.segments.push(Arc::new(segment(held.id, shard, &some())));
        }
        let mut live = live(&names);
        for (worker, segment) in live.workers.iter_mut().zip(&held.segments) {
            if some().contains(&"a") {
                worker.holds = Arc::new(Holds::all_but([segment.name()].into()));
            }
        }
        let held = Arc::new(held);
        let avoid: BTreeSet<WorkerId> = BTreeSet::from(["e".into()]);
        let view = View::new(&live, &known(&[Arc::clone(&held)]), &avoid, "", 1, 2).unwrap();
        for shard in 0..held.layout.shards {
            let plain = live.workers.iter().filter(|worker| {
                held.shard_segments(shard).all(|segment| {
                    segment.replicas.contains(&worker.id) && worker.holds.contains(&segment.name())
                })
            });
            let plain: BTreeSet<WorkerId> =
                plain.map(|worker| worker.id.clone()).filter(|id| !avoid.contains(id)).collect();
            assert_eq!(view.readers(held.id, shard), plain, "seed {seed}, shard {shard}");
        }
    }
}

#[test]
fn a_suspect_gets_nothing_and_the_last_one_is_named() {
    let held = table(1, &[&["a", "b"]]);
    let tables = [Arc::clone(&held)];
    let live = live(&["a", "b"]);
    let view = View::new(&live, &known(&tables), &BTreeSet::from(["a".into()]), "", 0, 2).unwrap();
    assert_eq!(view.workers().len(), 1);
    assert_eq!(view.deal(&loads(&held), 3), vec![0]);
    let error =
        View::new(&live, &known(&tables), &BTreeSet::from(["a".into(), "b".into()]), "", 0, 2).unwrap_err();
    assert!(error.message.contains("tried a, b"), "{}", error.message);
}

#[test]
fn what_is_nearer_comes_first() {
    let held = table(1, &[&["a", "b", "c"], &["a", "b", "c"]]);
    let mut live = live(&["a", "b", "c"]);
    for (worker, zone) in live.workers.iter_mut().zip(["north", "south", "north"]) {
        zone.clone_into(&mut worker.zone);
    }
    for turn in 0..3 {
        for (zone, near) in [("south", &["b"][..]), ("north", &["a", "c"])] {
            let view =
                View::new(&live, &known(&[Arc::clone(&held)]), &BTreeSet::new(), zone, turn, 2).unwrap();
            let chosen = &view.workers()[view.task_workers(1)[0]].id;
            assert!(near.contains(&chosen.as_str()), "{chosen} from {zone}");
        }
    }
}

/// Workers of these zones, `a` the first.
fn live_in(zones: &[&str]) -> LiveWorkers {
    let names = ["a", "b", "c", "d"];
    let mut live = live(&names[..zones.len()]);
    for (worker, zone) in live.workers.iter_mut().zip(zones) {
        (*zone).clone_into(&mut worker.zone);
    }
    live
}

#[test]
fn a_zone_that_has_all_shards_needs_no_other() {
    let live = live_in(&["north", "south", "north", "south"]);
    let view = |table: &Arc<Table>, zone: &str, avoid: &[&str]| {
        let avoid = avoid.iter().copied().map(WorkerId::from).collect();
        View::new(&live, &known(&[Arc::clone(table)]), &avoid, zone, 1, 2).unwrap()
    };
    let names = |view: &View| view.workers().iter().map(|it| it.id.to_string()).collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let both = table(1, &[&["a", "b"], &["c", "d"], &["a", "d"]]);
    let north = view(&both, "north", &[]);
    assert_eq!(names(&north), set(&["a", "c"]));
    assert!(!north.lacks_readers());
    // Those beyond the zone have the shards, too, and take none.
    let whole = BTreeMap::from([((both.id, 0), 10), ((both.id, 2), 10)]);
    assert_eq!(north.assign_whole(&whole).id.as_str(), "a");
    for tasks in 1..4 {
        let workers = north.task_workers(tasks);
        assert!(workers.iter().all(|&worker| worker < 2), "a task beyond the zone: {workers:?}");
        for (shard, task) in north.deal(&loads(&both), tasks).into_iter().enumerate() {
            let is_local = both.placement[shard].contains(&north.workers()[workers[task]].id);
            assert!(is_local || tasks == 1, "shard {shard} of {tasks} tasks is read from elsewhere");
        }
    }
    // Where it has to go on elsewhere, it is known who else has the shard.
    assert_eq!(north.readers(both.id, 0), BTreeSet::from(["a".into(), "b".into()]));
    assert_eq!(names(&view(&both, "south", &[])), set(&["b", "d"]));
    for (zone, avoid) in [("", vec![]), ("east", vec![]), ("north", vec!["a"])] {
        let view = view(&both, zone, &avoid);
        assert_eq!(view.workers().len(), 4 - avoid.len(), "{zone} without {avoid:?}");
        assert!(!view.lacks_readers());
    }
    // One shard is in the south only.
    let view = view(&table(2, &[&["a", "b"], &["d"]]), "north", &[]);
    assert_eq!(view.workers().len(), 4);
}

#[test]
fn of_workers_that_have_as_much_one_of_the_zone_is_taken_even_if_it_is_busy() {
    let mut live = live_in(&["south", "north", "south"]);
    live.workers[1].tasks_running = 9;
    // The second shard is not in the north: all may take tasks.
    let held = table(1, &[&["a", "b"], &["c"]]);
    let view = View::new(&live, &known(&[Arc::clone(&held)]), &BTreeSet::new(), "north", 0, 2).unwrap();
    let chosen = view.assign_whole(&BTreeMap::from([((held.id, 0), 10)]));
    assert_eq!(chosen.id.as_str(), "b");
    let chosen = view.assign_whole(&BTreeMap::from([((held.id, 1), 10)]));
    assert_eq!(chosen.id.as_str(), "c");
}

#[test]
fn hashed_tasks_land_where_their_shards_are() {
    // Shard i on three of four workers, as placement puts them.
    let names = ["a", "b", "c", "d"];
    let held: Vec<Vec<&str>> =
        (0..8).map(|shard| (0..3).map(|copy| names[(shard + copy) % 4]).collect()).collect();
    let held: Vec<&[&str]> = held.iter().map(Vec::as_slice).collect();
    let table = table(1, &held);
    let tables = [Arc::clone(&table)];
    let live = live(&names);
    for turn in 0..4 {
        let view = View::new(&live, &known(&tables), &BTreeSet::new(), "", turn, 2).unwrap();
        let workers = view.task_workers(4);
        assert_eq!(workers.iter().collect::<BTreeSet<_>>().len(), 4, "one task for each worker");
        for shard in 0..8_usize {
            let worker = &view.workers()[workers[shard / 2]].id;
            assert!(table.placement[shard].contains(worker), "turn {turn}: shard {shard} is not on {worker}");
        }
    }
}

#[test]
fn a_whole_plan_goes_to_a_worker_that_has_its_shards() {
    let held = table(1, &[&["a", "b"], &["b", "c"], &["c", "d"], &["d", "a"]]);
    let mut live = live(&["a", "b", "c", "d"]);
    let reads = |shards: &[(u32, u64)]| -> BTreeMap<(TableId, u32), u64> {
        shards.iter().map(|(shard, bytes)| ((held.id, *shard), *bytes)).collect()
    };
    let mut chosen = BTreeSet::new();
    for turn in 0..4 {
        let view = View::new(&live, &known(&[Arc::clone(&held)]), &BTreeSet::new(), "", turn, 2).unwrap();
        for shard in 0..4 {
            let worker = view.assign_whole(&reads(&[(shard, 10)])).id.clone();
            assert!(held.placement[shard as usize].contains(&worker), "shard {shard} goes to {worker}");
            assert_eq!(view.used_workers(), BTreeSet::from([worker.clone()]), "its silence must be noticed");
            chosen.insert((shard, worker));
        }
        let most = view.assign_whole(&reads(&[(0, 10), (1, 10), (2, 10)]));
        assert!(["b", "c"].contains(&most.id.as_str()), "two of the three shards are not on {}", most.id);
        let heavy = view.assign_whole(&reads(&[(0, 100), (2, 10), (3, 10)]));
        assert_eq!(heavy.id.as_str(), "a", "bytes count, not shards");
        view.assign_whole(&reads(&[]));
    }
    assert_eq!(chosen.len(), 8, "every replica gets its turn: {chosen:?}");
    live.workers[0].tasks_running = 3;
    let view = View::new(&live, &known(&[Arc::clone(&held)]), &BTreeSet::new(), "", 0, 2).unwrap();
    assert_eq!(view.task_workers(1).len(), 1, "what a plan that was given up was meant for");
    assert_eq!(view.assign_whole(&reads(&[(0, 10)])).id.as_str(), "b", "an idle one before a busy one");
}
