//! The coordinators of a run: what they suffer, a minority of them at a time,
//! and with which of them a client goes on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use tonic::Code;

use super::faults::{Fault, Struck, strike};
use super::run::Run;
use super::victims::{Seat, Victims};
use crate::client::{Client, ClientError};
use crate::cluster::Cluster;

/// How often the leader is meant, and not whoever it may be.
const LEADER_SHARE: f64 = 0.5;
/// How long a client waits for a coordinator that suffers.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for one that does not, where there are others.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// How long a coordinator may take until it answers again.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// How long one try to ask it may take.
const TRY_MAX: Duration = Duration::from_secs(10);
/// How often something is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Needs a majority of the coordinators, as system tables do not.
const READS_CATALOG: &str = "SELECT count(*) FROM region";
const LIVE_WORKERS: &str = "SELECT worker FROM system.workers WHERE state = 'live'";

/// By the order in which they were started.
pub(super) struct Coordinators {
    names: Vec<String>,
    /// Where clients connect to each; the same over restarts.
    urls: Vec<String>,
    victims: Mutex<Victims>,
}

impl Coordinators {
    /// Those of a cluster, all of them whole.
    ///
    /// # Errors
    /// When one never listened.
    pub(super) fn of(cluster: &Cluster) -> Result<Self> {
        let names = cluster.coordinator_names();
        let urls: Result<Vec<String>> = names.iter().map(|name| cluster.url_of(name)).collect();
        Ok(Self::new(names, urls?))
    }

    pub(super) fn new(names: Vec<String>, urls: Vec<String>) -> Self {
        let victims = Mutex::new(Victims::new(names.len()));
        Self { names, urls, victims }
    }

    pub(super) fn are_several(&self) -> bool {
        self.names.len() > 1
    }

    /// How many may suffer at a time.
    pub(super) fn minority(&self) -> usize {
        self.victims.lock().minority()
    }

    pub(super) fn name(&self, seat: Seat) -> &str {
        &self.names[seat.coordinator]
    }

    pub(super) fn url(&self, seat: Seat) -> &str {
        &self.urls[seat.coordinator]
    }

    /// Each name, with where clients connect.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.iter().map(String::as_str).zip(self.urls.iter().map(String::as_str))
    }

    /// What all of them say together; none of them may suffer.
    ///
    /// # Errors
    /// What one says instead of a number.
    pub(super) async fn sum(&self, sql: &str) -> Result<i64, ClientError> {
        let mut sum = 0;
        for url in &self.urls {
            sum += Client::connect(url).await?.number(sql).await?;
        }
        Ok(sum)
    }

    /// See [`Victims::seat`].
    pub(super) fn seat(&self, first: usize) -> Seat {
        self.victims.lock().seat(first)
    }

    /// See [`Victims::explain`].
    pub(super) fn explain(&self, seat: Seat, error: &ClientError) -> bool {
        self.victims.lock().explain(seat, error.code)
    }

    /// See [`Victims::strike`].
    pub(super) fn strike(
        &self,
        preferred: Option<usize>,
        now: Instant,
        random: &mut StdRng,
    ) -> Option<usize> {
        self.victims.lock().strike(preferred, now, random)
    }

    /// Returns when a client should wait no longer for an answer from there.
    pub(super) async fn silence(&self, seat: Seat) -> ClientError {
        let asked = Instant::now();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let suffers_for = self.victims.lock().suffers_for(seat, Instant::now());
            let waited = asked.elapsed();
            if suffers_for > PATIENCE || (self.are_several() && waited > ANSWER_MAX) {
                let message = format!("no answer within {:.1} s", waited.as_secs_f64());
                return ClientError { code: Code::DeadlineExceeded, message };
            }
        }
    }

    /// Strikes one coordinator at a time while the run goes on, and heals each.
    ///
    /// # Errors
    /// When one does not come back, or nobody leads.
    pub(super) fn suffer(&self, run: &Run, seed: u64, faults: &[Fault]) -> Result<Struck> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut struck = Struck::default();
        while run.goes_on() {
            std::thread::sleep(Duration::from_millis(random.random_range(200..2500)));
            let Some(&fault) = faults.choose(&mut random) else { continue };
            let lasting = Duration::from_millis(random.random_range(100..5000));
            let leader = if random.random_bool(LEADER_SHARE) {
                let leader = run.cluster.leader()?;
                self.names.iter().position(|name| *name == leader)
            } else {
                None
            };
            let Some(victim) = self.strike(leader, Instant::now(), &mut random) else { continue };
            let name = &self.names[victim];
            run.log.fault(name, fault, lasting);
            struck.add(strike(&run.cluster, name, fault, lasting, &mut random, &run.log)?);
            self.wait_until_whole(victim, run)?;
            self.victims.lock().heal(victim);
            run.log.healed(name);
        }
        Ok(struck)
    }

    /// Waits until a coordinator answers, with every worker that does not
    /// suffer.
    fn wait_until_whole(&self, coordinator: usize, run: &Run) -> Result<()> {
        let deadline = Instant::now() + WHOLE_WITHIN;
        loop {
            let asking = async { tokio::time::timeout(TRY_MAX, live_workers(&self.urls[coordinator])).await };
            let why = match Handle::current().block_on(asking) {
                Err(_) => format!("no answer within {TRY_MAX:?}"),
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(live)) => {
                    let suffering = run.log.suffering();
                    let mut missed = run.workers.names();
                    missed.retain(|worker| !live.contains(worker) && !suffering.contains(worker));
                    if missed.is_empty() {
                        return Ok(());
                    }
                    format!("without {}", missed.join(", "))
                }
            };
            ensure!(
                Instant::now() < deadline,
                "{} is not whole after {WHOLE_WITHIN:?}: {why}\n{}",
                self.names[coordinator],
                run.cluster.log_tails()
            );
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// The workers that a coordinator knows to be live, if it can answer.
async fn live_workers(url: &str) -> Result<BTreeSet<String>, ClientError> {
    let mut client = Client::connect(url).await?;
    client.number(READS_CATALOG).await?;
    let live = client.text(LIVE_WORKERS).await?;
    Ok(live.lines().map(str::to_owned).collect())
}
