//! Each query with a worker killed, cut off and frozen half way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use shoal_data::sample::query;

use super::{Bench, timed};
use crate::answer::Numbers;
use crate::cluster::{Cluster, Direction};
use crate::report::{median, say};

#[derive(Debug, Serialize)]
pub(super) struct Measured {
    query: usize,
    /// Medians of undisturbed runs, in seconds.
    pub(super) on_s: f64,
    pub(super) off_s: f64,
    /// With a worker killed, cut off and frozen half way.
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
    say(format!(
        "{:>5}{:>10}{:>10}{:>12}{:>12}{:>12}",
        "", "on, s", "off, s", "killed, s", "cut off, s", "frozen, s"
    ));
    let mut measured = Vec::new();
    for (turn, number) in queries.iter().copied().enumerate() {
        let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
        let expected = bench.oracle.expect(sql, Numbers::Exact).await?;
        let (mut on_s, mut off_s) = (Vec::new(), Vec::new());
        timed(&mut on, sql, &expected).await?;
        for _ in 0..bench.runs {
            on_s.push(timed(&mut on, sql, &expected).await?);
            off_s.push(timed(&mut off, sql, &expected).await?);
        }
        let half = Duration::from_secs_f64(median(&on_s) / 2.0);
        let worker = format!("worker-{}", turn % bench.workers + 1);
        let mut struck_s = [0.0; 3];
        for (fault, seconds) in [Fault::Kill, Fault::Cut, Fault::Freeze].into_iter().zip(&mut struck_s) {
            let striking = tokio::spawn({
                let (cluster, worker) = (Arc::clone(cluster), worker.clone());
                async move {
                    tokio::time::sleep(half).await;
                    fault.strike(&cluster, &worker)
                }
            });
            *seconds = timed(&mut on, sql, &expected)
                .await
                .with_context(|| format!("q{number}, {fault:?} of {worker}"))?;
            striking.await.context("the fault did not strike")??;
            fault.heal(cluster, &worker)?;
            cluster.wait_until_joined(bench.workers)?;
        }
        let [killed_s, cut_s, frozen_s] = struck_s;
        let one =
            Measured { query: number, on_s: median(&on_s), off_s: median(&off_s), killed_s, cut_s, frozen_s };
        say(format!(
            "{:>5}{:>10.3}{:>10.3}{:>12.3}{:>12.3}{:>12.3}",
            format!("q{number}"),
            one.on_s,
            one.off_s,
            one.killed_s,
            one.cut_s,
            one.frozen_s
        ));
        measured.push(one);
    }
    Ok(measured)
}
