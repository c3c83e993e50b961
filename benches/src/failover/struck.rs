//! Each query with a worker killed, cut off and frozen half way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use shoal_data::sample::query;

use super::{Bench, timed};
use crate::answer::Numbers;
use crate::client::Client;
use crate::cluster::{Cluster, Direction};
use crate::oracle::Expectation;
use crate::report::{median, say};

#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) query: usize,
    /// Medians of undisturbed runs, in seconds.
    pub(super) on_s: f64,
    pub(super) off_s: f64,
    /// None where nobody was struck.
    pub(super) struck: Option<Struck>,
}

/// Seconds with a worker killed, cut off and frozen half way.
#[derive(Debug, Serialize)]
pub(super) struct Struck {
    pub(super) killed_s: f64,
    pub(super) cut_s: f64,
    pub(super) frozen_s: f64,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Cut,
    Freeze,
}

impl Fault {
    fn strike(self, cluster: &Cluster, worker: &str) -> Result<()> {
        match self {
            Self::Kill => cluster.kill(worker),
            Self::Cut => cluster.cut(worker, Direction::Both),
            Self::Freeze => cluster.pause(worker),
        }
    }

    fn heal(self, cluster: &Cluster, worker: &str) -> Result<()> {
        match self {
            Self::Kill => cluster.restart(worker),
            Self::Cut => cluster.heal(worker),
            Self::Freeze => cluster.resume(worker),
        }
    }
}

/// Runs the queries, each with faults of another worker.
pub(super) async fn measure(bench: &Bench, queries: &[usize]) -> Result<Vec<Measured>> {
    let cluster = &bench.cluster;
    let mut on = cluster.connect().await?;
    let mut off = cluster.connect().await?;
    off.update("SET shoal.failover = false").await?;
    let titles = ["killed, s", "cut off, s", "frozen, s"].map(|title| format!("{title:>12}")).concat();
    let titles = if bench.has_faults { titles.as_str() } else { "" };
    say(format!("{:>5}{:>10}{:>10}{titles}", "", "on, s", "off, s"));
    let mut measured = Vec::new();
    for (turn, number) in queries.iter().copied().enumerate() {
        let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
        let expected = bench.oracle.expect(sql, Numbers::Exact).await?;
        let (mut on_s, mut off_s) = (Vec::new(), Vec::new());
        timed(&mut on, sql, &expected).await?;
        timed(&mut off, sql, &expected).await?;
        for run in 0..bench.runs {
            // Whoever comes second finds things as the first left them.
            if run % 2 == 0 {
                on_s.push(timed(&mut on, sql, &expected).await?);
            }
            off_s.push(timed(&mut off, sql, &expected).await?);
            if run % 2 == 1 {
                on_s.push(timed(&mut on, sql, &expected).await?);
            }
        }
        let mut one = Measured { query: number, on_s: median(&on_s), off_s: median(&off_s), struck: None };
        if bench.has_faults {
            let worker = format!("worker-{}", turn % bench.workers + 1);
            let struck = strike(bench, &mut on, number, &expected, one.on_s / 2.0, &worker).await?;
            one.struck = Some(struck);
        }
        let struck = one.struck.iter().flat_map(|one| [one.killed_s, one.cut_s, one.frozen_s]);
        let struck: String = struck.map(|seconds| format!("{seconds:>12.3}")).collect();
        say(format!("{:>5}{:>10.3}{:>10.3}{struck}", format!("q{number}"), one.on_s, one.off_s));
        measured.push(one);
    }
    Ok(measured)
}

/// One run with each fault of a worker, `after_s` seconds after it began.
async fn strike(
    bench: &Bench,
    client: &mut Client,
    number: usize,
    expected: &Expectation,
    after_s: f64,
    worker: &str,
) -> Result<Struck> {
    let cluster = &bench.cluster;
    let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
    let mut struck_s = [0.0; 3];
    for (fault, seconds) in [Fault::Kill, Fault::Cut, Fault::Freeze].into_iter().zip(&mut struck_s) {
        let striking = tokio::spawn({
            let (cluster, worker) = (Arc::clone(cluster), worker.to_owned());
            async move {
                tokio::time::sleep(Duration::from_secs_f64(after_s)).await;
                fault.strike(&cluster, &worker)
            }
        });
        *seconds = timed(client, sql, expected)
            .await
            .with_context(|| format!("q{number}, {fault:?} of {worker}"))?;
        striking.await.context("the fault did not strike")??;
        fault.heal(cluster, worker)?;
        cluster.wait_until_joined(bench.workers)?;
    }
    let [killed_s, cut_s, frozen_s] = struck_s;
    Ok(Struck { killed_s, cut_s, frozen_s })
}
