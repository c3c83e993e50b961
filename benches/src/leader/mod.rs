//! `shoal-benches leader`: how soon changes of the catalog are accepted again
//! when the coordinator that leads is killed, what queries at the others feel of
//! it, and whether anything is lost that was acknowledged.

mod changes;
mod kills;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::client::Client;
use crate::cluster::ClusterOptions;
use crate::load::{Doors, Load, Questions, start_loaded};
use crate::report::{Bar, Summary, missed, percentile, say, write_json};
use crate::tpch_data::{TpchData, data_root};
use changes::{CREATE_TABLE, Changers, Kept, PREFIX, TABLE};
use kills::Kill;

/// Shards of each large table.
const SHARDS: u32 = 8;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct LeaderArgs {
    /// Coordinators of the cluster: three or more, as one is away at a time
    #[arg(long, default_value_t = 3)]
    pub coordinators: usize,
    /// Workers of the cluster
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// How often the leader is killed
    #[arg(long, default_value_t = 20)]
    pub runs: usize,
    /// TPC-H scale factor of the tables that are queried
    #[arg(long, default_value_t = 0.1)]
    pub scale: f64,
    /// Clients that ask queries at each coordinator
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Milliseconds between two changes of one client; 0: as many as are taken
    #[arg(long, value_name = "MS", default_value_t = 25)]
    pub pause_ms: u64,
    /// Fail where accepted_p99_s is more than this
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub accepted_max: f64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    kills: Vec<Kill>,
    changes: usize,
    changes_failed: u64,
    queries: usize,
    failed: usize,
    wrong: usize,
    lost: usize,
    /// Of queries that were asked soon after a kill, and at other times.
    after_p50_ms: f64,
    after_p99_ms: f64,
    otherwise_p50_ms: f64,
    otherwise_p99_ms: f64,
}

/// Runs it; false after a query that failed or was wrong, a change that was
/// lost or failed where nobody was killed, and where the bar was missed.
///
/// # Errors
/// When something cannot be started, or does not come back.
pub async fn run(args: &LeaderArgs) -> Result<bool> {
    ensure!(args.coordinators >= 3, "--coordinators is 3 or more: of two, none can be missed");
    ensure!(args.runs > 0 && args.clients > 0, "--runs and --clients are 1 or more");
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let mut options = ClusterOptions::for_bench(args.workers, &data)?;
    options.coordinators = args.coordinators;
    let (cluster, mut client) = start_loaded(&options, &data, SHARDS).await?;
    client.update(CREATE_TABLE).await?;
    let questions = Arc::new(Questions::ask_first(&mut client, args.scale).await?);
    let doors = Arc::new(Doors::of(&cluster)?);

    let load = Load::begin(&doors, &questions, args.clients * args.coordinators, true);
    let changers = Changers::begin(&doors, Duration::from_millis(args.pause_ms));
    let killing = tokio::task::spawn_blocking({
        let (cluster, doors, record) = (Arc::clone(&cluster), Arc::clone(&doors), changers.record());
        let (runs, workers) = (args.runs, args.workers);
        move || kills::kill_leaders(&cluster, &doors, &record, runs, workers)
    });
    let kills = killing.await.context("the leaders were not killed")??;
    let record = changers.record();
    let kept = changers.end().await?;
    let (tally, _detours) = load.end().await?;
    let lost = lost(&doors, &kept).await?;

    let is_after = |at| kills.iter().any(|kill| kill.is_soon_after(at));
    let (after, otherwise) = (tally.when(is_after), tally.when(|at| !is_after(at)));
    say(format!("within {} s of a kill: {}", kills::SOON.as_secs(), after.describe()));
    say(format!("otherwise: {}", otherwise.describe()));
    let measured = Measured {
        changes: record.count(),
        changes_failed: record.failed(),
        queries: tally.count(),
        failed: tally.failed(),
        wrong: tally.wrong(),
        lost,
        after_p50_ms: after.percentile_ms(0.5),
        after_p99_ms: after.p99_ms(),
        otherwise_p50_ms: otherwise.percentile_ms(0.5),
        otherwise_p99_ms: otherwise.p99_ms(),
        kills,
    };
    report(args, &measured)
}

fn report(args: &LeaderArgs, measured: &Measured) -> Result<bool> {
    if let Some(path) = &args.json {
        write_json(path, measured)?;
    }
    let accepted: Vec<f64> = measured.kills.iter().map(|kill| kill.accepted_s).collect();
    let everywhere: Vec<f64> = measured.kills.iter().map(|kill| kill.accepted_everywhere_s).collect();
    let missed = missed(&[Bar::new("accepted_p99_s", percentile(&accepted, 0.99), Some(args.accepted_max))]);
    for line in &missed {
        say(line);
    }
    Summary::new("leader")
        .with("runs", measured.kills.len())
        .with("pause_ms", args.pause_ms)
        .with_number("accepted_p50_s", percentile(&accepted, 0.5))
        .with_number("accepted_p99_s", percentile(&accepted, 0.99))
        .with_number("accepted_max_s", percentile(&accepted, 1.0))
        .with_number("everywhere_max_s", percentile(&everywhere, 1.0))
        .with("changes", measured.changes)
        .with("changes_failed", measured.changes_failed)
        .with("queries", measured.queries)
        .with("failed", measured.failed)
        .with("wrong", measured.wrong)
        .with("lost", measured.lost)
        .with_number("p99_ratio_queries", measured.after_p99_ms / measured.otherwise_p99_ms)
        .print();
    let is_well = measured.failed == 0 && measured.wrong == 0 && measured.lost == 0;
    Ok(is_well && measured.changes_failed == 0 && missed.is_empty())
}

/// How many of the acknowledged changes are not there, or are there twice, as
/// the coordinator says that misses most.
async fn lost(doors: &Doors, kept: &Kept) -> Result<usize> {
    let mut most = 0;
    for (name, url) in doors.all() {
        let mut client = Client::connect(url).await?;
        let schemas = format!(
            "SELECT schema_name FROM information_schema.schemata WHERE starts_with(schema_name, '{PREFIX}')"
        );
        let schemas = client.text(&schemas).await?;
        let schemas: BTreeSet<String> = schemas.lines().map(str::to_owned).collect();
        let keys = client.text(&format!("SELECT CAST(k AS VARCHAR) FROM {TABLE}")).await?;
        let keys: Result<Vec<i64>, _> = keys.lines().map(str::parse).collect();
        let keys = keys.with_context(|| format!("the keys in {TABLE}"))?;
        let once: BTreeSet<i64> = keys.iter().copied().collect();
        let lost = schemas.symmetric_difference(&kept.schemas).count()
            + once.symmetric_difference(&kept.keys).count()
            + (keys.len() - once.len());
        say(format!(
            "{name}: {} schemas of {}, {} rows of {}, {lost} missing or too many",
            schemas.len(),
            kept.schemas.len(),
            keys.len(),
            kept.keys.len()
        ));
        most = lost.max(most);
    }
    Ok(most)
}
