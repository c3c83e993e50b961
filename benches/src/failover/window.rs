//! What a steady load of one cheap query feels between the death of a worker
//! and its return.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{Bench, timed};
use crate::answer::Numbers;
use crate::report::percentile;

/// Cheap, and yet run by every worker.
const QUERY: &str = "SELECT o_orderpriority, count(*), max(o_orderdate) FROM orders GROUP BY o_orderpriority";
const TASK_BYTES: &str = "SET shoal.task_bytes = '256KiB'";
/// Clients, and how often each asks. A query that is late does not hold up
/// the next: it counts from when it should have begun.
const CLIENTS: u32 = 4;
const EACH_ASKS_EVERY: Duration = Duration::from_millis(400);
/// How long the load runs undisturbed.
const UNDISTURBED: Duration = Duration::from_secs(15);
/// How often a worker dies, how long it is away, and how long between.
const DEATHS: usize = 3;
const AWAY: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
pub(super) struct Measured {
    undisturbed_ms: Vec<f64>,
    window_ms: Vec<f64>,
}

impl Measured {
    pub(super) fn p99_ratio(&self) -> f64 {
        percentile(&self.window_ms, 0.99) / percentile(&self.undisturbed_ms, 0.99)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |ms: &[f64]| {
            let of = |share| percentile(ms, share);
            format!("p50 {:.1}, p99 {:.1}, worst {:.1} ms of {}", of(0.5), of(0.99), of(1.0), ms.len())
        };
        write!(
            f,
            "steady load: undisturbed {}; from a kill until the worker is back {}",
            line(&self.undisturbed_ms),
            line(&self.window_ms)
        )
    }
}

/// Runs the load, and kills a worker every now and then.
pub(super) async fn measure(bench: &Bench) -> Result<Measured> {
    let expected = Arc::new(bench.oracle.expect(QUERY, Numbers::Exact).await?);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = bench.cluster.connect().await?;
        client.update(TASK_BYTES).await?;
        timed(&mut client, QUERY, &expected).await?;
        let (expected, is_over) = (Arc::clone(&expected), Arc::clone(&is_over));
        clients.spawn(async move {
            let start = tokio::time::Instant::now() + EACH_ASKS_EVERY * number / CLIENTS;
            let mut ticks = tokio::time::interval_at(start, EACH_ASKS_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut asked: Vec<(Instant, f64)> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let due = ticks.tick().await;
                timed(&mut client, QUERY, &expected).await?;
                asked.push((due.into_std(), due.elapsed().as_secs_f64() * 1e3));
            }
            anyhow::Ok(asked)
        });
    }
    tokio::time::sleep(UNDISTURBED).await;
    let undisturbed_until = Instant::now();
    let mut windows = Vec::new();
    for turn in 0..DEATHS {
        let (cluster, worker) = (Arc::clone(&bench.cluster), format!("worker-{}", turn % bench.workers + 1));
        let workers = bench.workers;
        let away = tokio::task::spawn_blocking(move || -> Result<_> {
            let since = Instant::now();
            cluster.kill(&worker)?;
            std::thread::sleep(AWAY);
            cluster.restart(&worker)?;
            cluster.wait_until_joined(workers)?;
            Ok((since, Instant::now()))
        });
        windows.push(away.await.context("the worker was not killed")??);
        tokio::time::sleep(BETWEEN).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut measured = Measured { undisturbed_ms: Vec::new(), window_ms: Vec::new() };
    while let Some(asked) = clients.join_next().await {
        for (due, ms) in asked.context("a client stopped")?? {
            let is_within = |(since, until): &(Instant, Instant)| (*since..*until).contains(&due);
            if due < undisturbed_until {
                measured.undisturbed_ms.push(ms);
            } else if windows.iter().any(is_within) {
                measured.window_ms.push(ms);
            }
        }
    }
    Ok(measured)
}
