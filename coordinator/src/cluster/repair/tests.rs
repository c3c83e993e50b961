//! Claims about repair.

use std::sync::Arc;

use shoal_proto::TableId;

use super::*;
use crate::catalog::Command;
use crate::catalog::state::tests::{commit, create, segment, table};
use crate::cluster::Holds;

/// Two tables of two shards: `w1` and `w2` should hold shard 0 of the first,
/// `w2` and `w3` its shard 1; everybody the second.
fn catalog(segments: &[Segment]) -> State {
    let mut state = State::new("c");
    for id in [1, 2] {
        state.apply(Command::ReserveTable).unwrap();
        let mut table = table(TableId(id), &format!("t{id}"));
        let everybody = || vec!["w1".into(), "w2".into(), "w3".into()];
        (table.layout.replicas, table.placement) = match id {
            1 => {
                let placement = vec![vec!["w1".into(), "w2".into()], vec!["w2".into(), "w3".into()]];
                (ReplicaCount::Count(2), placement)
            }
            _ => (ReplicaCount::All, vec![everybody(), everybody()]),
        };
        state.apply(create(table)).unwrap();
    }
    for (number, segment) in segments.iter().enumerate() {
        state.apply(commit(&number.to_string(), segment)).unwrap();
    }
    state
}

fn live(workers: &[(&str, &[SegmentName])]) -> LiveWorkers {
    let workers = workers.iter().map(|(id, lacks)| {
        let holds = Arc::new(Holds::all_but(lacks.iter().copied().collect()));
        LiveWorker { holds, ..LiveWorker::named(*id) }
    });
    LiveWorkers { workers: workers.collect(), ..LiveWorkers::default() }
}

fn ordered(state: &State, live: &LiveWorkers) -> Vec<(String, String, Vec<String>)> {
    let orders = missing(state, live, 100, |_, _, _| false);
    let from = |request: &FetchRequest| request.from.iter().map(|from| from.worker.clone()).collect();
    let mut orders: Vec<_> = orders
        .iter()
        .map(|(worker, request)| (worker.to_string(), request.name.clone(), from(request)))
        .collect();
    orders.sort();
    orders
}

#[test]
fn a_copy_that_is_missing_is_fetched_from_who_has_it() {
    let held = segment(TableId(1), 0, "w1");
    let state = catalog(std::slice::from_ref(&held));
    let name = held.name();
    let wanted = [("w2".to_owned(), name.to_string(), vec!["w1".to_owned()])];
    assert_eq!(ordered(&state, &live(&[("w1", &[]), ("w2", &[]), ("w3", &[])])), wanted);
    // Nobody alive has it, or the one that should have it is away.
    assert!(ordered(&state, &live(&[("w2", &[]), ("w3", &[])])).is_empty());
    assert!(ordered(&state, &live(&[("w1", &[]), ("w3", &[])])).is_empty());
    // The catalog counts on a worker that lost the file.
    assert!(ordered(&state, &live(&[("w1", &[name]), ("w2", &[])])).is_empty());
}

#[test]
fn a_copy_comes_from_the_same_zone_where_it_can() {
    let mut held = segment(TableId(2), 0, "w1");
    held.replicas.extend(["w2", "w4"].map(WorkerId::from));
    let state = catalog(std::slice::from_ref(&held));
    let from = |zone_of_w3: &str| {
        let mut live = live(&[("w1", &[]), ("w2", &[]), ("w3", &[]), ("w4", &[])]);
        for (worker, zone) in live.workers.iter_mut().zip(["a", "b", zone_of_w3, "b"]) {
            zone.clone_into(&mut worker.zone);
        }
        let mut orders = ordered(&state, &live);
        let (worker, _, from) = orders.remove(0);
        assert_eq!((worker.as_str(), orders.len()), ("w3", 0));
        from
    };
    assert_eq!(from("a"), ["w1", "w2", "w4"]);
    assert_eq!(from("b"), ["w2", "w4", "w1"]);
    assert_eq!(from(""), ["w1", "w2", "w4"]);
}

#[test]
fn a_lost_file_is_fetched_again() {
    let mut held = segment(TableId(1), 0, "w1");
    held.replicas.push("w2".into());
    let state = catalog(std::slice::from_ref(&held));
    let name = held.name();
    assert!(ordered(&state, &live(&[("w1", &[]), ("w2", &[])])).is_empty());
    let wanted = [("w1".to_owned(), name.to_string(), vec!["w2".to_owned()])];
    assert_eq!(ordered(&state, &live(&[("w1", &[name]), ("w2", &[])])), wanted);
}

#[test]
fn a_reference_table_reaches_all_that_should_hold_it() {
    let mut held = segment(TableId(2), 0, "w1");
    held.replicas.push("w2".into());
    let state = catalog(std::slice::from_ref(&held));
    let orders = ordered(&state, &live(&[("w1", &[]), ("w2", &[]), ("w3", &[]), ("w7", &[])]));
    assert_eq!(orders.len(), 1, "w7 is not placed yet");
    assert_eq!(orders[0].0, "w3");
}

#[test]
fn copies_are_ordered_a_few_at_a_time_and_not_twice() {
    let segments: Vec<_> = (0..10).map(|_| segment(TableId(1), 0, "w1")).collect();
    let state = catalog(&segments);
    let live = live(&[("w1", &[]), ("w2", &[])]);
    assert_eq!(missing(&state, &live, 3, |_, _, _| false).len(), 3);
    assert!(missing(&state, &live, 3, |_, _, _| true).is_empty());
    let first = segments[0].name();
    let rest = missing(&state, &live, 100, |_, name, _| *name == first);
    assert_eq!(rest.len(), 9);
}

#[test]
fn what_has_fewest_copies_is_copied_first() {
    let mut safe = segment(TableId(2), 0, "w1");
    safe.replicas.push("w2".into());
    let in_danger = segment(TableId(2), 0, "w1");
    let mut counted_only = segment(TableId(2), 0, "w2");
    counted_only.replicas.push("w9".into());
    let state = catalog(&[safe.clone(), in_danger.clone(), counted_only.clone()]);
    let live = live(&[("w1", &[]), ("w2", &[]), ("w3", &[])]);
    let to_w3 = |per_worker_max: usize| {
        let orders = missing(&state, &live, per_worker_max, |_, _, _| false).into_iter();
        let to_w3 = orders.filter(|(worker, _)| worker.as_str() == "w3");
        to_w3.map(|(_, request)| request.name).collect::<Vec<_>>()
    };
    let names = [in_danger, counted_only, safe].map(|segment| segment.name().to_string());
    assert_eq!(to_w3(3), names, "a copy on a worker that is away does not count");
    assert_eq!(to_w3(1), names[..1]);
}

#[test]
fn what_has_too_few_copies_is_urgent_and_comes_first() {
    let placed_elsewhere = |replicas: &[&str]| {
        let replicas = replicas.iter().copied().map(WorkerId::from).collect();
        Segment { replicas, ..segment(TableId(1), 0, "") }
    };
    // Both should be on `w1` and `w2`. Of the first there are two copies, of which
    // one is to go.
    let [moves, lost] = [&["w1", "w3"][..], &["w1", "w9"]].map(placed_elsewhere);
    let state = catalog(&[moves.clone(), lost.clone()]);
    let to_w2 = |live: &LiveWorkers, per_worker_max: usize| {
        let orders = missing(&state, live, per_worker_max, |_, _, _| false).into_iter();
        let to_w2 = orders.filter(|(worker, _)| worker.as_str() == "w2");
        to_w2.map(|(_, request)| (request.name, request.urgent)).collect::<Vec<_>>()
    };
    let [moves, lost] = [moves, lost].map(|segment| segment.name().to_string());
    let all = live(&[("w1", &[]), ("w2", &[]), ("w3", &[])]);
    let expected = [(lost.clone(), true), (moves.clone(), false)];
    assert_eq!(to_w2(&all, 10), expected);
    assert_eq!(to_w2(&all, 1), expected, "what moves keeps nothing urgent from being ordered");
    // Whoever has the other copy is away.
    let fewer = live(&[("w1", &[]), ("w2", &[])]);
    assert_eq!(to_w2(&fewer, 10), [(moves, true), (lost, true)]);
}

#[test]
fn a_table_that_is_everywhere_is_in_danger_as_others_are() {
    let state = catalog(&[]);
    let is_urgent =
        |table: u64, copies: usize| are_too_few(state.table_by_id(TableId(table)).unwrap(), copies);
    assert_eq!([0, 1, 2, 3].map(|copies| is_urgent(1, copies)), [true, true, false, false]);
    assert_eq!([1, 2, 3, 4].map(|copies| is_urgent(2, copies)), [true, true, false, false]);
}

#[test]
fn what_is_damaged_before_it_is_committed_does_not_count_afterwards() {
    let mut staged = segment(TableId(1), 0, "w1");
    staged.replicas.push("w2".into());
    let name = staged.name();
    let before = catalog(&[]);
    let held = HashMap::from([(name, 0)]);
    let reconciled = reconcile(&before, &live(&[("w2", &[])]), &"w1".into(), &held, |_| true);
    let lacks: Vec<SegmentName> = reconciled.lacks.into_iter().collect();
    assert_eq!((lacks.as_slice(), reconciled.discard.len()), (&[name][..], 0));
    let after = catalog(std::slice::from_ref(&staged));
    let wanted = [("w1".to_owned(), name.to_string(), vec!["w2".to_owned()])];
    assert_eq!(ordered(&after, &live(&[("w1", lacks.as_slice()), ("w2", &[])])), wanted);
}

#[test]
fn a_joining_worker_keeps_what_it_should_hold() {
    let [mine, unknown_to_catalog, mut foreign, lonely] = [(0, "w1"), (0, "w2"), (1, "w2"), (1, "w2")]
        .map(|(shard, worker)| segment(TableId(1), shard, worker));
    foreign.replicas.push("w3".into());
    let cut = segment(TableId(1), 0, "w1");
    let gone = segment(TableId(1), 0, "w1");
    let dropped = segment(TableId(8), 0, "w1");
    let staged = segment(TableId(1), 1, "w1");
    let state = catalog(&[&mine, &unknown_to_catalog, &foreign, &lonely, &cut, &gone].map(Segment::clone));
    let held = HashMap::from([
        (mine.name(), 100),
        (unknown_to_catalog.name(), 100),
        (foreign.name(), 100),
        (lonely.name(), 100),
        (cut.name(), 50),
        (dropped.name(), 100),
        (staged.name(), 100),
    ]);
    let spared = staged.name();
    let result =
        reconcile(&state, &live(&[("w2", &[]), ("w3", &[])]), &"w1".into(), &held, |name| *name == spared);
    assert_eq!(result.lacks, HashSet::from([cut.name(), gone.name()]));
    // Of one that others should have, and have not all, its copy counts too.
    assert_eq!(result.adopt, [unknown_to_catalog.name(), lonely.name()]);
    let mut discard = [foreign.name(), dropped.name()];
    discard.sort();
    assert_eq!(result.discard, discard);
}

/// What a look at all workers for each segment says that is missing.
fn missing_plainly(
    state: &State,
    live: &LiveWorkers,
    under_way: &SegmentName,
) -> Vec<(String, String, Vec<String>)> {
    let mut missing = Vec::new();
    for table in state.tables() {
        for segment in &table.segments {
            let from: Vec<String> = live
                .workers
                .iter()
                .filter(|worker| has(segment, worker))
                .map(|worker| worker.id.to_string())
                .collect();
            for worker in &live.workers {
                let is_missing = table.should_hold(segment.shard, &worker.id) && !has(segment, worker);
                if is_missing && !from.is_empty() && segment.name() != *under_way {
                    missing.push((worker.id.to_string(), segment.name().to_string(), from.clone()));
                }
            }
        }
    }
    missing.sort();
    missing
}

#[test]
fn what_is_missing_and_what_is_needed_is_what_a_look_at_everything_says() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..200 {
        let state = crate::catalog::state::tests::random(seed);
        let mut random = StdRng::seed_from_u64(seed);
        let segments: Vec<Segment> = state
            .tables()
            .flat_map(|table| &table.segments)
            .map(|segment| segment.as_ref().clone())
            .collect();
        let mut live = LiveWorkers::default();
        for number in 0..10 {
            let named = segments.iter().filter(|_| random.random_bool(0.05)).map(Segment::name);
            let lacks = if number % 3 == 0 { named.collect() } else { HashSet::new() };
            let worker = LiveWorker {
                holds: Arc::new(Holds::all_but(lacks)),
                ..LiveWorker::named(format!("w{number}").as_str())
            };
            if random.random_bool(0.8) {
                live.workers.push(worker);
            }
        }
        let under_way = segments.first().map_or_else(|| segment(TableId(1), 0, "w1").name(), Segment::name);
        let orders = missing(&state, &live, usize::MAX, |_, name, _| *name == under_way);
        let mut ordered: Vec<_> = orders
            .iter()
            .map(|(worker, request)| {
                let mut from: Vec<String> = request.from.iter().map(|from| from.worker.clone()).collect();
                from.sort();
                (worker.to_string(), request.name.clone(), from)
            })
            .collect();
        ordered.sort();
        assert_eq!(ordered, missing_plainly(&state, &live, &under_way), "seed {seed}");

        let worker = WorkerId::from("w3");
        let strange = segment(TableId(1), 0, "w1").name();
        let mut held: HashMap<SegmentName, u64> = HashMap::from([(strange, 100)]);
        for segment in &segments {
            if !random.random_bool(0.6) {
                continue;
            }
            let bytes = if random.random_bool(0.9) { segment.bytes } else { 1 };
            held.insert(segment.name(), bytes);
        }
        let spared = segments.last().map_or(strange, Segment::name);
        let said = reconcile(&state, &live, &worker, &held, |name| *name == spared);
        let mut plain = Reconciled::default();
        let mut needed = StillNeeded::default();
        for (table, segment) in
            state.tables().flat_map(|table| table.segments.iter().map(move |segment| (table, segment)))
        {
            let (name, is_here) = (segment.name(), held.contains_key(&segment.name()));
            let is_whole = held.get(&name) == Some(&segment.bytes);
            let is_wanted = table.should_hold(segment.shard, &worker);
            let is_safe = has_all_copies(table, segment, &live);
            if segment.replicas.contains(&worker) {
                plain.lacks.extend((!is_whole).then_some(name));
            } else if is_whole && (is_wanted || !is_safe) {
                plain.adopt.push(name);
            } else if is_here && name != spared {
                plain.discard.push(name);
            }
            if segment.replicas.contains(&worker) || is_wanted {
                needed.held.extend(is_here.then_some(name));
            } else if !is_safe {
                needed.adopt.extend(is_here.then_some(name));
            }
        }
        plain.discard.extend((strange != spared).then_some(strange));
        plain.adopt.sort();
        plain.discard.sort();
        assert_eq!(said, plain, "seed {seed}");
        let names: BTreeSet<SegmentName> = held.keys().copied().collect();
        assert_eq!(still_needed(&state, &live, &worker, &names), needed, "seed {seed}");
    }
}
