//! Whatever happens to a cluster, in any order.

use proptest::prelude::*;

use super::*;

const WORKERS: usize = 6;
const TABLES: usize = 4;

/// What can happen to a cluster, and what it does about it.
#[derive(Clone, Debug)]
enum Step {
    /// A worker joins, or is back.
    Here(usize),
    /// A worker is lost.
    Away(usize),
    /// A worker was lost for too long.
    Dead(usize),
    Drain(usize, bool),
    Replicas(usize, ReplicaCount),
    Mend,
    /// Each worker makes at most so many copies.
    Copy(usize),
    TakeOut,
    EvenOut,
}

fn any_step() -> impl Strategy<Value = Step> {
    let replicas = prop_oneof![4 => (1..5_u32).prop_map(Count), 1 => Just(All)];
    prop_oneof![
        2 => (0..WORKERS).prop_map(Step::Here),
        1 => (0..WORKERS).prop_map(Step::Away),
        1 => (0..WORKERS).prop_map(Step::Dead),
        1 => (0..WORKERS, any::<bool>()).prop_map(|(worker, is_draining)| Step::Drain(worker, is_draining)),
        1 => (1..=TABLES, replicas).prop_map(|(table, replicas)| Step::Replicas(table, replicas)),
        2 => Just(Step::Mend),
        2 => (1..8_usize).prop_map(Step::Copy),
        2 => Just(Step::TakeOut),
        2 => Just(Step::EvenOut),
    ]
}

/// Two workers in each of three zones.
fn worker(number: usize) -> Candidate {
    let zone = format!("z{}", number % 3);
    Candidate { id: WorkerId::new(format!("w{number}")), zone, disk: Disk::default() }
}

/// A catalog, and who is there.
struct Model {
    state: State,
    here: BTreeSet<WorkerId>,
    dead: BTreeSet<WorkerId>,
}

impl Model {
    /// Four workers, a group of two tables, one more and a reference table.
    fn new() -> Self {
        let mut model = Self { state: State::new("c"), here: BTreeSet::new(), dead: BTreeSet::new() };
        for number in 0..4 {
            model.join(number);
        }
        let four = model.candidates();
        for (count, replicas) in [(4, Count(2)), (4, Count(2)), (3, Count(3)), (1, All)] {
            let mut layout = table(TableId(1), "t").layout;
            layout.shards = count;
            layout.replicas = replicas;
            let tables = model.state.tables().map(AsRef::<Table>::as_ref);
            let placement = place(&layout, &four, tables).unwrap().shards;
            let bytes: Vec<u64> = (0..u64::from(count)).map(|shard| 50 + shard * 37 % 101).collect();
            add(&mut model.state, replicas, placement, &bytes);
        }
        assert_eq!(model.state.tables().count(), TABLES);
        model
    }

    fn join(&mut self, number: usize) {
        let Candidate { id, zone, .. } = worker(number);
        self.here.insert(id.clone());
        self.dead.remove(&id);
        let worker = WorkerRecord { id, address: String::new(), zone, is_draining: false };
        self.state.apply(Command::RegisterWorker { worker }).unwrap();
    }

    fn live(&self) -> LiveWorkers {
        all_live(self.here.iter().cloned())
    }

    fn candidates(&self) -> Vec<Candidate> {
        let known = self.state.workers();
        let staying = known.filter(|worker| !worker.is_draining && self.here.contains(&worker.id));
        let candidate = |worker: &WorkerRecord| Candidate {
            id: worker.id.clone(),
            zone: worker.zone.clone(),
            disk: Disk::default(),
        };
        staying.map(candidate).collect()
    }

    fn leave(&self) -> BTreeSet<WorkerId> {
        let drained = self.state.workers().filter(|worker| worker.is_draining);
        self.dead.iter().cloned().chain(drained.map(|worker| worker.id.clone())).collect()
    }

    /// Whether nobody is expected back.
    fn is_all_there(&self) -> bool {
        let leave = self.leave();
        self.state.workers().all(|worker| self.here.contains(&worker.id) || leave.contains(&worker.id))
    }

    fn take(&mut self, step: Step) {
        let before = self.state.clone();
        match step {
            Step::Here(number) => self.join(number),
            Step::Away(number) => {
                self.here.remove(&worker(number).id);
            }
            Step::Dead(number) => {
                let id = worker(number).id;
                self.here.remove(&id);
                self.dead.insert(id);
            }
            Step::Drain(number, is_draining) => {
                let id = worker(number).id;
                if self.state.worker(&id).is_some() {
                    self.state.apply(Command::DrainWorker { worker: id, is_draining }).unwrap();
                }
            }
            Step::Replicas(table, replicas) => {
                set_replicas(&mut self.state, &format!("t{table}"), replicas);
            }
            Step::Mend => {
                let commands = mend(&self.state, &self.candidates(), &self.leave());
                apply(&mut self.state, commands);
            }
            Step::Copy(per_worker_max) => {
                let live = self.live();
                copy_some(&mut self.state, &live, per_worker_max);
            }
            Step::TakeOut => {
                let commands = surplus(&self.state, &self.live(), &self.leave());
                apply(&mut self.state, commands);
            }
            Step::EvenOut => self.even_out(),
        }
        self.check(&before);
    }

    fn even_out(&mut self) {
        let workers = self.candidates();
        let before = self.state.clone();
        let commands = even_out(&self.state, &workers);
        apply(&mut self.state, commands);
        for (before, after) in before.tables().zip(self.state.tables()) {
            for (before, after) in before.placement.iter().zip(&after.placement) {
                let is_as_safe = zones(after, &workers) >= zones(before, &workers);
                assert!(is_as_safe, "moved into one zone: {before:?} to {after:?}");
            }
        }
    }

    /// What holds after each step.
    fn check(&self, before: &State) {
        for (before, after) in before.tables().zip(self.state.tables()) {
            for shard in &after.placement {
                assert!(!shard.is_empty() && set(shard).len() == shard.len(), "placed on {shard:?}");
            }
            for (before, segment) in before.segments.iter().zip(&after.segments) {
                assert!(!segment.replicas.is_empty(), "the last copy is given up");
                if segment.replicas.len() < before.replicas.len() {
                    let placed = &after.placement[segment.shard as usize];
                    let is_safe = |id: &WorkerId| self.here.contains(id) && segment.replicas.contains(id);
                    assert!(placed.iter().all(is_safe), "a copy is given up too early");
                }
            }
        }
    }

    /// Does what the coordinator does time after time, until nothing is left to
    /// do.
    fn come_to_rest(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let before = self.state.version;
            self.take(Step::TakeOut);
            self.take(Step::Mend);
            let is_complete = repair::missing(&self.state, &self.live(), 1, |_, _, _| false).is_empty();
            if self.state.version == before && is_complete && self.is_all_there() {
                self.take(Step::EvenOut);
            }
            self.take(Step::Copy(usize::MAX));
            if self.state.version == before {
                return;
            }
        }
        panic!("still moving after {ROUNDS_MAX} rounds");
    }

    /// What holds at rest, unless somebody is expected back: whoever can hold
    /// what a table asks for does, and nobody else; and it is in as many zones as
    /// it can be.
    fn check_rest(&self) {
        if !self.is_all_there() {
            return;
        }
        let workers = self.candidates();
        for table in self.state.tables() {
            let Count(wanted) = table.layout.replicas else { continue };
            let wanted = wanted as usize;
            for shard in &table.placement {
                let staying = workers.iter().filter(|worker| shard.contains(&worker.id)).count();
                assert_eq!(staying, wanted.min(workers.len()), "{} is on {shard:?}", table.name);
                assert!(staying < wanted || shard.len() == wanted, "{} is on {shard:?}", table.name);
                let all: Vec<WorkerId> = workers.iter().map(|worker| worker.id.clone()).collect();
                let apart = staying.min(zones(&all, &workers));
                assert_eq!(zones(shard, &workers), apart, "{} is on {shard:?}", table.name);
            }
            for segment in &table.segments {
                let placed = &table.placement[segment.shard as usize];
                let is_readable = segment.replicas.iter().any(|id| self.here.contains(id));
                if is_readable && placed.iter().all(|id| self.here.contains(id)) {
                    assert_eq!(set(&segment.replicas), set(placed));
                }
            }
        }
    }
}

proptest! {
    /// Whatever happens to workers and tables, and however far what is done about
    /// it got in between: no copy is given up before those that take its place
    /// are there, and in the end nothing moves any more.
    #[test]
    fn any_story_keeps_all_copies_and_comes_to_rest(
        steps in proptest::collection::vec(any_step(), 0..40),
    ) {
        let mut model = Model::new();
        for step in steps {
            model.take(step);
        }
        model.come_to_rest();
        model.check_rest();
        // All is well when all are back.
        for number in 0..WORKERS {
            model.take(Step::Here(number));
            model.take(Step::Drain(number, false));
        }
        model.come_to_rest();
        model.check_rest();
    }
}
