//! One number of workers: a cluster, its tables, and what each query costs every
//! process of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_data::sample::TpchTable;

use super::cost::{Moved, QueryCost, Run, Step};
use super::{GrowthArgs, Question};
use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::load::{load_tables, settle};
use crate::process::CpuTime;
use crate::report::say;
use crate::tpch_data::TpchData;

/// The zone of the coordinator, in which no worker stands.
const COORDINATOR_ZONE: &str = "coordinator";
/// How long the processes have for what is left of a query, before their CPU time
/// is read.
const PAUSE: Duration = Duration::from_millis(50);

/// The processes of a cluster, or their CPU time at one moment.
struct Processes<T> {
    coordinator: T,
    workers: Vec<T>,
}

impl Processes<u32> {
    fn of(cluster: &Cluster) -> Result<Self> {
        let workers = cluster.worker_names().iter().map(|name| cluster.pid(name)).collect::<Result<_>>()?;
        Ok(Self { coordinator: cluster.pid("coordinator")?, workers })
    }

    fn now(&self) -> Processes<CpuTime> {
        Processes {
            coordinator: CpuTime::of(self.coordinator),
            workers: self.workers.iter().copied().map(CpuTime::of).collect(),
        }
    }
}

/// Measures all questions with so many workers, each as on a machine of its own.
///
/// # Errors
/// When something cannot be started, a query fails, or a process ends meanwhile.
pub(super) async fn step(
    args: &GrowthArgs,
    data: &TpchData,
    questions: &[Question],
    workers: usize,
) -> Result<Step> {
    let mut options = ClusterOptions::for_bench(workers, data)?;
    // Each process is a zone: what crosses zones is what would go over a network.
    options.zones = (1..=workers).map(|number| format!("machine-{number}")).collect();
    options.coordinator_zone = Some(COORDINATOR_ZONE.to_owned());
    // What is merged in the background would be counted for whatever query runs meanwhile.
    options.coordinator_args.push("--compaction=off".to_owned());
    let cluster = Cluster::start(&options)?;
    let mut client = cluster.connect().await?;
    load_tables(&mut client, data, args.shards, None).await?;
    if args.optimize {
        optimize(&mut client).await?;
    }
    settle(&mut client).await?;
    // The network of the prediction is faster than the codec, though its machines are zones.
    client.update("SET shoal.exchange_compression = 'none'").await?;
    let processes = Processes::of(&cluster)?;

    let mut right = 0;
    let mut moved = Vec::with_capacity(questions.len());
    for question in questions {
        let answered = client.query_with_schema(question.sql).await;
        let (schema, batches) = answered.with_context(|| format!("q{}", question.number))?;
        match question.expected.check(&schema, &batches) {
            Ok(()) => right += 1,
            Err(difference) => {
                say(format!("wrong with {workers} workers: q{}: {difference}", question.number))
            }
        }
        let text = client.text(&format!("EXPLAIN ANALYZE {}", question.sql)).await;
        let text = text.with_context(|| format!("q{}", question.number))?;
        let bytes = crossed_bytes(&text);
        moved.push(
            bytes.with_context(|| format!("q{} does not say what crossed zones: {text}", question.number))?,
        );
    }
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); questions.len()];
    for _pass in 0..args.runs {
        for (question, runs) in questions.iter().zip(&mut runs) {
            let run = timed(&mut client, question.sql, &processes).await;
            runs.push(run.with_context(|| format!("q{}", question.number))?);
        }
    }
    // What it took is not counted, and others took its place.
    let ended = cluster.crashed();
    ensure!(ended.is_empty(), "{} ended while it was measured", ended.join(", "));
    let link_bits_per_s = args.link_gbit * 1e9;
    let costs = questions
        .iter()
        .zip(&runs)
        .zip(moved)
        .map(|((question, runs), bytes)| QueryCost::new(question.number, runs, bytes, link_bits_per_s));
    Ok(Step::new(workers, right, costs.collect()))
}

/// Makes few segments of many, and says what stays as it is.
async fn optimize(client: &mut Client) -> Result<()> {
    let _of_the_load = client.notices().await?;
    for table in TpchTable::ALL {
        client
            .update(&format!("OPTIMIZE TABLE {table}"))
            .await
            .with_context(|| format!("optimize {table}"))?;
    }
    for notice in client.notices().await? {
        say(notice);
    }
    Ok(())
}

/// One run, and the CPU time that each process took for it.
async fn timed(client: &mut Client, sql: &str, processes: &Processes<u32>) -> Result<Run> {
    let before = processes.now();
    let began = Instant::now();
    client.query(sql).await?;
    let wall_s = began.elapsed().as_secs_f64();
    tokio::time::sleep(PAUSE).await;
    let after = processes.now();
    let workers_s = after.workers.iter().zip(&before.workers).map(|(after, before)| after.since(before));
    Ok(Run {
        wall_s,
        coordinator_s: after.coordinator.since(&before.coordinator),
        workers_s: workers_s.collect(),
    })
}

/// What EXPLAIN ANALYZE says that crossed zones.
fn crossed_bytes(text: &str) -> Option<Moved> {
    let line = text.lines().find_map(|line| line.strip_prefix("crossed zones: "))?;
    let (all, most) = line.strip_suffix(" to one node")?.split_once(" bytes, at most ")?;
    Some(Moved { bytes: all.parse().ok()?, most_bytes: most.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crossed_zones_is_found_at_the_end_of_a_plan() {
        let plan = "┌─ Stage 1 ── 2 tasks on a, b ── time 3 µs, sent 7 rows, 80 B\n└─\nattempts: 1\n";
        let line = "crossed zones: 14432 bytes, at most 9000 to one node";
        let moved = crossed_bytes(&format!("{plan}{line}\n")).unwrap();
        assert_eq!((moved.bytes, moved.most_bytes), (14_432, 9_000));
        assert!(crossed_bytes(plan).is_none());
        assert!(crossed_bytes("crossed zones: many bytes, at most 1 to one node").is_none());
    }
}
