//! Statements that move shards while the run goes on: workers are drained for a
//! while, and shards evened out.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;

use super::asker::Asker;
use super::log::Verdict;
use super::run::Run;
use super::workers::alter;
use crate::client::Client;

/// Drains workers, one after the other, and takes that back each time: before
/// it is done, or after.
pub(super) fn drain(run: &Run, seed: u64, mut asker: Asker) {
    let mut random = StdRng::seed_from_u64(seed);
    while run.goes_on() {
        pause(run, &mut random, 1..10);
        // Nobody else drains a worker meanwhile, or stops the one that is drained.
        let _turn = run.workers.drain_turn();
        let workers = run.workers.names();
        let Some(worker) = workers.choose(&mut random) else { continue };
        alter(run, &mut asker, worker, "DRAIN");
        pause(run, &mut random, 1..20);
        alter(run, &mut asker, worker, "CANCEL DRAIN");
    }
}

/// Has shards evened out again and again.
pub(super) fn rebalance(run: &Run, seed: u64, mut asker: Asker) {
    const SQL: &str = "REBALANCE";
    let mut random = StdRng::seed_from_u64(seed);
    while run.goes_on() {
        pause(run, &mut random, 1..10);
        let asked = Instant::now();
        // It answers with the shards that move.
        let statement = |mut client: Client| async move { client.query(SQL).await };
        let outcome = Handle::current().block_on(asker.ask("rebalance", SQL, statement));
        let outcome = outcome.map(|_moved| ()).map_err(|error| (Verdict::Failed, error.to_string()));
        run.log.answer("rebalance", SQL, asked, outcome);
    }
}

/// Waits for so many seconds, or until the run is over.
fn pause(run: &Run, random: &mut StdRng, seconds: std::ops::Range<u64>) {
    run.wait_until(Duration::from_secs(random.random_range(seconds)), || false);
}
