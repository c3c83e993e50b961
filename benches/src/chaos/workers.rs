//! The workers of a run, and how they come and go: one joins and one is
//! drained, about once a minute.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;

use super::asker::Asker;
use super::log::Verdict;
use super::run::Run;
use crate::client::ClientError;
use crate::cluster::Cluster;

/// How often one joins and one is drained.
const EVERY: Duration = Duration::from_secs(60);
/// How long a drain lasts that is meant to be cancelled.
const CANCELLED_AFTER: Duration = Duration::from_secs(5);
/// How long one may last that is not.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
/// How long a drained worker may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Those that should be live whenever none is struck.
pub(super) struct Workers {
    names: Mutex<Vec<String>>,
    /// Of whoever strikes one, or has one come or go.
    turn: Mutex<()>,
    /// Of whoever drains one.
    drain_turn: Mutex<()>,
}

impl Workers {
    /// Those of a cluster.
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self {
            names: Mutex::new(cluster.worker_names()),
            turn: Mutex::default(),
            drain_turn: Mutex::default(),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.lock().clone()
    }

    /// Waits until nobody else does anything to workers.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Waits until nobody else drains a worker.
    pub(super) fn drain_turn(&self) -> MutexGuard<'_, ()> {
        self.drain_turn.lock()
    }
}

/// Has workers come and go while the run goes on; never fewer than at first are
/// left.
///
/// # Errors
/// When one does not come up, or does not end.
pub(super) fn come_and_go(run: &Run, seed: u64, mut asker: Asker) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let usual = run.workers.names().len();
    loop {
        run.wait_until(EVERY, || false);
        if !run.goes_on() {
            return Ok(());
        }
        if run.workers.names().len() == usual {
            join(run)?;
        }
        let _drain_turn = run.workers.drain_turn();
        let workers = run.workers.names();
        let Some(worker) = workers.choose(&mut random) else { continue };
        let is_to_stop = random.random_bool(0.5);
        alter(run, &mut asker, worker, "DRAIN");
        let is_drained = if is_to_stop {
            run.wait_until(DRAINED_WITHIN, || is_drained(run, &mut asker, worker))
        } else {
            run.wait_until(CANCELLED_AFTER, || false)
        };
        if is_drained {
            stop(run, worker)?;
        } else {
            alter(run, &mut asker, worker, "CANCEL DRAIN");
        }
    }
}

fn join(run: &Run) -> Result<()> {
    let _turn = run.workers.turn();
    let worker = run.cluster.add_worker()?;
    run.log.note(&format!("{worker} joins"));
    let expected = run.workers.names().len() + 1;
    run.cluster.wait_until_joined(expected)?;
    run.workers.names.lock().push(worker);
    Ok(())
}

fn stop(run: &Run, worker: &str) -> Result<()> {
    let _turn = run.workers.turn();
    run.log.note(&format!("{worker} is drained, and stopped"));
    run.workers.names.lock().retain(|name| name != worker);
    let status = run.cluster.terminate(worker, ENDS_WITHIN)?;
    ensure!(status.success(), "{worker} ended with {status}");
    Ok(())
}

/// Drains a worker, or takes that back.
pub(super) fn alter(run: &Run, asker: &mut Asker, worker: &str, change: &str) {
    let sql = format!("ALTER WORKER '{worker}' {change}");
    let asked = Instant::now();
    let outcome = Handle::current().block_on(asker.update("drain", &sql, &sql));
    run.log.answer("drain", &sql, asked, outcome.map(|_changed| ()).map_err(failed));
}

fn is_drained(run: &Run, asker: &mut Asker, worker: &str) -> bool {
    let sql = format!("SELECT count(*) FROM system.workers WHERE worker = '{worker}' AND drain = 'drained'");
    let asked = Instant::now();
    match Handle::current().block_on(asker.number("drain", worker, &sql)) {
        Ok(count) => count > 0,
        Err(error) => {
            run.log.answer("drain", worker, asked, Err(failed(error)));
            false
        }
    }
}

fn failed(error: ClientError) -> (Verdict, String) {
    (Verdict::Failed, error.to_string())
}
