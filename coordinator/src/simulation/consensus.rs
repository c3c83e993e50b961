//! The real consensus in a made-up world: catalogs with openraft, gRPC and the
//! real file of the catalog, on machines and a network of turmoil, and on disks
//! that lose what was not fsynced.
//!
//! What must be so: nothing that was acknowledged is lost, and nothing that was
//! refused is made; a read sees all that was acknowledged anywhere before it
//! began; each term has one leader; the same entries make the same state
//! everywhere.
//!
//! How far a seed tells the same story: the network, the disks, the faults and
//! their times come from the seed, and time is made up. openraft takes its election
//! timeouts from random numbers of its own, and changes have random numbers. So
//! who leads, and what is under way when something goes wrong, is another time
//! different: run a seed that failed again and again. What a seed tells bit for bit
//! are the stories of the pure parts (`simulation`).
//!
//! turmoil loses what a cut link should carry, and its connections do not send
//! again: a connection that was cut is given up by the keepalive, as one to a
//! machine that is gone. It cannot pause a process: the pure stories can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use disk::Disk;
use seen::Seen;

mod disk;
mod network;
mod node;
mod seen;

/// Coordinators of each story.
const COUNT: u64 = 3;
/// Stories that are told; fewer where nothing is optimised.
const SEEDS: u64 = if cfg!(debug_assertions) { 2 } else { 12 };
/// Between two looks at all machines.
const TICK: Duration = Duration::from_millis(5);
/// For how long things go wrong.
const FAULTS_FOR: Duration = Duration::from_secs(40);
/// How long anything may take when nothing goes wrong.
const SOON: Duration = Duration::from_secs(90);
/// A change is settled, or a question is answered, by then.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// A story under way.
struct Story<'a> {
    seed: u64,
    sim: Sim<'a>,
    chance: StdRng,
    seen: Arc<Seen>,
    disks: Vec<Disk>,
    /// Which machines are down, and when they start again.
    down: BTreeMap<u64, Duration>,
    /// Which links are cut, and when they are well again.
    cut: Vec<(u64, u64, Duration)>,
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.seed;
            eprintln!(
                "the consensus breaks in story {seed}; tell it again, more than once, with\n\
                 SHOAL_SIM_SEED={seed} cargo test --release -p shoal-coordinator simulation::consensus"
            );
        }
    }
}

impl Story<'_> {
    fn new(seed: u64) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(24 * 60 * 60))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(40))
            .build();
        let seen = Arc::new(Seen::default());
        let disks: Vec<Disk> = (1..=COUNT).map(|number| Disk::new(seed * COUNT + number)).collect();
        for (number, disk) in (1..=COUNT).zip(&disks) {
            let (disk, seen) = (disk.clone(), Arc::clone(&seen));
            sim.host(name(number), move || node::run(number, disk.clone(), Arc::clone(&seen)));
        }
        let chance = StdRng::seed_from_u64(seed);
        Self { seed, sim, chance, seen, disks, down: BTreeMap::new(), cut: Vec::new() }
    }

    fn step(&mut self) {
        let stepped = self.sim.step();
        assert!(stepped.is_ok(), "a machine ended: {stepped:?}");
        let now = self.sim.elapsed();
        for number in 1..=COUNT {
            if self.disk(number).is_off() {
                self.crash(number);
            }
        }
        let due: Vec<u64> =
            self.down.iter().filter(|(_, at)| **at <= now).map(|(number, _)| *number).collect();
        for number in due {
            self.start(number);
        }
        let due: Vec<_> = self.cut.extract_if(.., |(.., at)| *at <= now).collect();
        for (a, b, _) in due {
            self.sim.repair(name(a), name(b));
        }
        if let Some(broken) = self.seen.broken() {
            panic!("{broken}");
        }
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step();
        }
    }

    fn run_until(&mut self, what: &str, is_so: impl Fn(&Seen) -> bool) {
        let until = self.sim.elapsed() + SOON;
        while !is_so(self.seen.as_ref()) {
            assert!(self.sim.elapsed() < until, "still not so: {what}");
            self.step();
        }
    }

    fn disk(&self, number: u64) -> &Disk {
        &self.disks[(number - 1) as usize]
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.chance.random_range(from..to))
    }

    /// A machine loses its power.
    fn crash(&mut self, number: u64) {
        if self.down.contains_key(&number) {
            return;
        }
        // The disk first: what is closed in order writes nothing any more.
        self.disk(number).crash();
        self.sim.crash(name(number));
        let back = self.sim.elapsed() + self.millis(100, 6_000);
        self.down.insert(number, back);
    }

    fn start(&mut self, number: u64) {
        self.down.remove(&number);
        self.sim.bounce(name(number));
    }

    fn cut(&mut self, a: u64, b: u64) {
        if a == b {
            return;
        }
        if self.chance.random_bool(0.3) {
            self.sim.partition_oneway(name(a), name(b));
        } else {
            self.sim.partition(name(a), name(b));
        }
        let well = self.sim.elapsed() + self.millis(100, 8_000);
        self.cut.push((a, b, well));
    }

    /// Something goes wrong.
    fn fault(&mut self) {
        let (a, b) = (self.chance.random_range(1..=COUNT), self.chance.random_range(1..=COUNT));
        match self.chance.random_range(0..12) {
            0..=2 => self.cut(a, b),
            3..=4 => (1..=COUNT).for_each(|other| self.cut(a, other)),
            5..=6 => self.crash(a),
            7..=9 => {
                // In the middle of whatever it writes next.
                let changes = self.chance.random_range(0..60);
                self.disk(a).fail_after(changes);
            }
            10 => (1..=COUNT).for_each(|number| self.crash(number)),
            _ => {}
        }
    }

    /// Nothing is wrong any more.
    fn heal(&mut self) {
        for (a, b, _) in std::mem::take(&mut self.cut) {
            self.sim.repair(name(a), name(b));
        }
        let down: Vec<u64> = self.down.keys().copied().collect();
        for number in down {
            self.start(number);
        }
    }
}

fn name(number: u64) -> String {
    format!("c{number}")
}

fn tell(seed: u64) {
    let count = COUNT as usize;
    let mut story = Story::new(seed);
    story.run_until("all coordinators are voters", |seen| seen.are_all_voters(count));
    let until = story.sim.elapsed() + FAULTS_FOR;
    while story.sim.elapsed() < until {
        story.fault();
        let pause = story.millis(100, 2_500);
        story.run_for(pause);
    }
    story.heal();
    // Power that was about to fail fails now.
    story.run_for(SETTLED_AFTER);
    story.heal();
    story.seen.end();
    story.run_for(SETTLED_AFTER);
    story.run_until("all coordinators have all of it", |seen| seen.missing(count).is_none());
    let (made, reads, terms) = story.seen.counts_of_all();
    assert!(made > 50 && reads > 50 && terms > 2, "little happened: {made}, {reads}, {terms}");
}

#[test]
fn the_consensus_keeps_what_it_promises() {
    super::tell_all(SEEDS, tell);
}
