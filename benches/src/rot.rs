//! `shoal-benches rot`: thousands of bytes on the disks of a real cluster
//! change, on one worker at a time, while everything is queried. Every answer
//! is compared with the oracle's, and every changed file must be replaced by
//! one that is as it was.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shoal_data::checksum::crc32c;
use shoal_data::sample::{QUERIES, TpchTable, query, tpch_schema};

use crate::answer::Numbers;
use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::disk::{files_below, flip};
use crate::load::load_tables;
use crate::oracle::{Expectation, Oracle};
use crate::report::{Summary, say};
use crate::tpch_data::{TpchData, data_root};

/// Within this all files of a round must be good again.
const REPAIRED_WITHIN: Duration = Duration::from_secs(60);
/// A file that is not good after this is never going to be.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(180);
/// One flip in so many hits checksums instead of a segment.
const SUMS_EVERY: u32 = 8;
/// How often the files are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long the replicas of the load may take to be whole.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct RotArgs {
    /// Chooses files, places and bits: the same seed, the same choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Bytes that change in all
    #[arg(long, default_value_t = 10_000)]
    pub flips: usize,
    /// Bytes that change before the worker is waited for
    #[arg(long, default_value_t = 500)]
    pub round: usize,
    /// Workers of the cluster; each shard has a replica on three of them
    #[arg(long, default_value_t = 3)]
    pub workers: usize,
    /// TPC-H scale factor of the tables
    #[arg(long, default_value_t = 0.1)]
    pub scale: f64,
}

/// Runs it; false after one change that was not noticed, one wrong answer, one
/// failed query or one repair that took too long.
///
/// # Errors
/// When something cannot be started.
pub async fn run(args: &RotArgs) -> Result<bool> {
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    // It changes the files that are there at the start, again and again.
    options.coordinator_args.push("--compaction=off".to_owned());
    let cluster = Cluster::start(&options)?;
    let mut client = cluster.connect().await?;
    load_tables(&mut client, &data, 8, Some(3)).await?;
    wait_until_whole(&mut client, args.workers.min(3)).await?;
    let questions = questions(&data).await?;
    let disks = (1..=args.workers)
        .map(|number| {
            Disk::new(&cluster.data_dir(&format!("worker-{number}"))?.join("segments")).map(Arc::new)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut random = StdRng::seed_from_u64(args.seed);
    let (mut flips, mut noticed, mut worst) = (0, 0, Duration::ZERO);
    let mut totals = Totals::default();
    for number in 0.. {
        let count = args.round.min(args.flips - flips);
        if count == 0 {
            break;
        }
        let index = number % disks.len();
        let (disk, seed) = (Arc::clone(&disks[index]), random.random());
        let damaged = tokio::task::spawn_blocking(move || {
            disk.damage_and_wait(count, &mut StdRng::seed_from_u64(seed))
        });
        // Answers while the bytes change, and at least once after.
        loop {
            let is_over = damaged.is_finished();
            totals.ask(&mut client, &questions, number).await?;
            if is_over {
                break;
            }
        }
        let round = damaged.await.context("the flipping stopped")??;
        flips += count;
        noticed += count - round.unnoticed;
        worst = worst.max(round.repaired_after);
        say(format!(
            "round {number}: worker-{}, {count} bytes in {} files, {} not noticed, good again after {:.1} s; {} answers, {} wrong, {} failed",
            index + 1,
            round.files,
            round.unnoticed,
            round.repaired_after.as_secs_f64(),
            totals.answers,
            totals.wrong,
            totals.failed
        ));
    }
    let crashed = cluster.crashed();
    for node in &crashed {
        say(format!("crashed: {node}"));
    }
    Summary::new("rot")
        .with("flips", flips)
        .with("noticed", noticed)
        .with("answers", totals.answers)
        .with("wrong", totals.wrong)
        .with("failed", totals.failed)
        .with_number("worst_repair_s", worst.as_secs_f64())
        .print();
    let is_good = noticed == flips && totals.wrong == 0 && totals.failed == 0 && worst <= REPAIRED_WITHIN;
    Ok(is_good && crashed.is_empty())
}

async fn wait_until_whole(client: &mut Client, replicas: usize) -> Result<()> {
    let sql = format!("SELECT count(*) FROM system.shards WHERE replicas_live < {replicas}");
    let since = Instant::now();
    while client.number(&sql).await? > 0 {
        if since.elapsed() > WHOLE_WITHIN {
            bail!("replicas are missing after {WHOLE_WITHIN:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// The queries of TPC-H, and for each table one that needs every byte of it.
async fn questions(data: &TpchData) -> Result<Vec<(String, Expectation)>> {
    let oracle = Oracle::of_tables(2, data).await?;
    let all = (1..=QUERIES.len()).filter_map(query).map(str::to_owned);
    let mut questions = Vec::new();
    for sql in all.chain(TpchTable::ALL.map(whole_table)) {
        let expected = oracle.expect(&sql, Numbers::Exact).await?;
        questions.push((sql, expected));
    }
    Ok(questions)
}

fn whole_table(table: TpchTable) -> String {
    let schema = tpch_schema(table);
    let columns = schema.fields().iter().map(|field| {
        let name = field.name();
        if field.data_type().is_string() {
            format!("max({name} || ''), sum(length({name}))")
        } else {
            format!("sum(CAST({name} AS BIGINT))")
        }
    });
    format!("SELECT {} FROM {table}", columns.collect::<Vec<_>>().join(", "))
}

/// How the answers compared.
#[derive(Debug, Default)]
struct Totals {
    answers: usize,
    wrong: usize,
    failed: usize,
}

impl Totals {
    /// Asks everything once, spread over the workers in every other round.
    async fn ask(
        &mut self,
        client: &mut Client,
        questions: &[(String, Expectation)],
        round: usize,
    ) -> Result<()> {
        let bytes = if round.is_multiple_of(2) { "64KiB" } else { "24MiB" };
        client.update(&format!("SET shoal.task_bytes = '{bytes}'")).await?;
        for (sql, expected) in questions {
            self.answers += 1;
            match client.query_with_schema(sql).await {
                Err(error) => {
                    self.failed += 1;
                    say(format!("failed: {sql}: {error}"));
                }
                Ok((schema, batches)) => {
                    if let Err(difference) = expected.check(&schema, &batches) {
                        self.wrong += 1;
                        say(format!("wrong: {sql}: {difference}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The segments of one worker as they were before anything happened.
struct Disk {
    segments: Vec<PathBuf>,
    sums: Vec<PathBuf>,
    /// Length and checksum of each file.
    pristine: BTreeMap<PathBuf, (u64, u32)>,
}

/// What came of one round.
struct Round {
    files: usize,
    unnoticed: usize,
    /// From the last change until all files were good.
    repaired_after: Duration,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        let mut files = files_below(dir);
        // Not the id of the disk.
        files.retain(|path| path.extension().is_some());
        let mut pristine = BTreeMap::new();
        for path in &files {
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            pristine.insert(path.clone(), (bytes.len() as u64, crc32c(&bytes)));
        }
        let (sums, segments): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|path| path.extension().is_some_and(|end| end == "sums"));
        if segments.is_empty() || segments.len() != sums.len() {
            bail!("{} has {} segments and {} checksums", dir.display(), segments.len(), sums.len());
        }
        Ok(Self { segments, sums, pristine })
    }

    /// Changes `count` bytes, then waits until all files are as they were.
    fn damage_and_wait(&self, count: usize, random: &mut StdRng) -> Result<Round> {
        let mut places = HashSet::new();
        let mut flips: BTreeMap<&Path, usize> = BTreeMap::new();
        while places.len() < count {
            let files = if random.random_ratio(1, SUMS_EVERY) { &self.sums } else { &self.segments };
            let path = files.choose(random).context("there is no file to change")?;
            let length = self.pristine.get(path).map_or(0, |(length, _)| *length);
            let at = random.random_range(0..length.max(1));
            let bits = random.random_range(1..=u8::MAX);
            // The same bit twice would be none. A file that is being replaced
            // right now is left for another.
            if !places.contains(&(path, at)) && flip(path, at, bits).unwrap_or(false) {
                places.insert((path, at));
                *flips.entry(path).or_default() += 1;
            }
        }
        let files = flips.len();
        let since = Instant::now();
        while since.elapsed() < GIVEN_UP_AFTER {
            flips.retain(|path, _| !self.is_pristine(path));
            if flips.is_empty() {
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        for path in flips.keys() {
            say(format!("not replaced: {}", path.display()));
        }
        Ok(Round { files, unnoticed: flips.values().sum(), repaired_after: since.elapsed() })
    }

    fn is_pristine(&self, path: &Path) -> bool {
        let expected = self.pristine.get(path);
        std::fs::read(path).is_ok_and(|bytes| expected == Some(&(bytes.len() as u64, crc32c(&bytes))))
    }
}
