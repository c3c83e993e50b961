//! What one worker that is ten times as slow as the others costs a query that
//! only scans.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Bench, timed};
use crate::answer::Numbers;
use crate::client::Client;
use crate::oracle::Expectation;
use crate::report::median;
use crate::slow::slow_while;

/// Reads and computes a lot, and exchanges next to nothing.
const QUERY: &str = "SELECT count(*), sum(l_extendedprice * (1 - l_discount)), max(l_comment) FROM lineitem \
                     WHERE l_comment LIKE '%special%'";
/// Small enough for several tasks of each worker.
const TASK_BYTES: &str = "SET shoal.task_bytes = '4MiB'";
const RUNS: usize = 7;

#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) undisturbed_s: Vec<f64>,
    pub(super) slowed_s: Vec<f64>,
}

impl Measured {
    pub(super) fn ratio(&self) -> f64 {
        median(&self.slowed_s) / median(&self.undisturbed_s)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (undisturbed, slowed) = (median(&self.undisturbed_s), median(&self.slowed_s));
        write!(f, "a scan: {undisturbed:.3} s, with one worker ten times as slow {slowed:.3} s")
    }
}

/// Runs the query without and with a slow worker.
pub(super) async fn measure(bench: &Bench) -> Result<Measured> {
    let expected = bench.oracle.expect(QUERY, Numbers::Exact).await?;
    let mut client = bench.cluster.connect().await?;
    client.update(TASK_BYTES).await?;
    timed(&mut client, QUERY, &expected).await?;
    let undisturbed_s = seconds(&mut client, &expected).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let slowing = tokio::task::spawn_blocking({
        let (cluster, is_over) = (Arc::clone(&bench.cluster), Arc::clone(&is_over));
        move || slow_while(&cluster, "worker-1", || !is_over.load(Ordering::Relaxed))
    });
    let slowed_s = seconds(&mut client, &expected).await;
    is_over.store(true, Ordering::Relaxed);
    slowing.await.context("the worker was not slowed")??;
    bench.cluster.wait_until_joined(bench.workers)?;
    Ok(Measured { undisturbed_s, slowed_s: slowed_s? })
}

async fn seconds(client: &mut Client, expected: &Expectation) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        seconds.push(timed(client, QUERY, expected).await?);
    }
    Ok(seconds)
}
