//! `shoal-benches growth`: what TPC-H costs with 1 to 16 workers, in CPU seconds
//! of each process and in bytes between them, and how long it would take if each
//! of them had a machine of its own. All of them run on this one: its time is no
//! measure of that, and what was counted is.

mod chart;
mod cost;
mod measure;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shoal_data::sample::{QUERIES, query};

use self::cost::Step;
use crate::answer::Numbers;
use crate::oracle::{Expectation, Oracle};
use crate::report::{Summary, say, write_json};
use crate::tpch_data::{TpchData, data_root};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct GrowthArgs {
    /// TPC-H scale factor
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Workers of the cluster, of one thread each; with several numbers, one cluster after the other
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    pub workers: Vec<usize>,
    /// Shards of each large table, with every number of workers: as many as the most workers, or a multiple
    #[arg(long, default_value_t = 32)]
    pub shards: u32,
    /// Make the segments of each shard one before anything is measured, as far as they fit. A load leaves one of each worker
    /// in each shard: with more workers they are more and smaller
    #[arg(long)]
    pub optimize: bool,
    /// Measured passes after the one that checks; the medians count
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Only these queries, by number
    #[arg(long, value_delimiter = ',')]
    pub queries: Vec<usize>,
    /// The network of the prediction, in gigabits a second
    #[arg(long, default_value_t = 10.0)]
    pub link_gbit: f64,
    /// Write everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw a chart here
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// A query, and what is right.
struct Question {
    number: usize,
    sql: &'static str,
    expected: Expectation,
}

#[derive(Debug, Serialize)]
struct Report {
    scale: f64,
    shards: u32,
    optimized: bool,
    runs: usize,
    link_gbit: f64,
    steps: Vec<Step>,
}

impl Report {
    /// How many times as fast all queries together would be with the last number of
    /// workers as with the first.
    fn speedup(&self) -> f64 {
        match (self.steps.first(), self.steps.last()) {
            (Some(first), Some(last)) => last.speedup(first),
            _ => f64::NAN,
        }
    }

    /// The same of another prediction.
    fn speedup_by(&self, predicted_s: fn(&Step) -> f64) -> f64 {
        match (self.steps.first(), self.steps.last()) {
            (Some(first), Some(last)) => predicted_s(first) / predicted_s(last),
            _ => f64::NAN,
        }
    }

    fn right(&self) -> usize {
        self.steps.iter().map(|step| step.right).sum()
    }

    fn asked(&self) -> usize {
        self.steps.iter().map(|step| step.queries.len()).sum()
    }

    fn summary(&self) -> Summary {
        let all = |get: fn(&Step) -> f64| self.steps.iter().map(get).collect::<Vec<f64>>();
        Summary::new("growth")
            .with("scale", self.scale)
            .with_list("workers", all(|step| step.workers as f64), 0)
            .with("right", format!("{}/{}", self.right(), self.asked()))
            .with_number("speedup", self.speedup())
            .with_number("speedup_without_coordinator", self.speedup_by(|step| step.without_coordinator_s))
            .with_number("speedup_one_link", self.speedup_by(|step| step.one_link_s))
            .with_list("predicted_s", all(|step| step.predicted_s), 2)
            .with_list("cpu_s", all(|step| step.cpu_s), 2)
            .with_list("moved_mb", all(|step| step.bytes as f64 / 1e6), 1)
            .with_list("share", all(|step| step.share), 2)
    }

    /// A table: what each query is predicted to take, and how many times as fast it
    /// is with the last number of workers.
    fn table(&self) -> Vec<String> {
        let (Some(first), Some(last)) = (self.steps.first(), self.steps.last()) else { return Vec::new() };
        let row = |name: &str, cells: &[String]| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>12}")).collect();
            format!("{name:>12}{cells}")
        };
        let numbers = |get: &dyn Fn(&Step) -> f64, digits: usize| -> Vec<String> {
            self.steps.iter().map(|step| format!("{:.digits$}", get(step))).collect()
        };
        let mut heading: Vec<String> = self.steps.iter().map(|step| format!("{} w", step.workers)).collect();
        heading.push("speed-up".to_owned());
        let mut rows = vec![row("predicted s", &heading)];
        for (place, query) in first.queries.iter().enumerate() {
            let mut cells = numbers(&|step: &Step| step.queries[place].predicted_s, 3);
            cells.push(format!("{:.2}", last.speedup_of(first, place)));
            rows.push(row(&format!("q{}", query.query), &cells));
        }
        let mut total = numbers(&|step: &Step| step.predicted_s, 3);
        total.push(format!("{:.2}", self.speedup()));
        rows.push(row("total", &total));
        rows.push(row("cpu s", &numbers(&|step: &Step| step.cpu_s, 2)));
        rows.push(row("moved MB", &numbers(&|step: &Step| step.bytes as f64 / 1e6, 1)));
        rows.push(row("share", &numbers(&|step: &Step| step.share, 2)));
        rows.push(row("here, s", &numbers(&|step: &Step| step.wall_s, 2)));
        rows.push(row("right", &numbers(&|step: &Step| step.right as f64, 0)));
        rows
    }
}

/// Refuses a run that would measure nothing.
fn check(args: &GrowthArgs) -> Result<()> {
    ensure!(!args.workers.is_empty() && !args.workers.contains(&0), "--workers are numbers from 1");
    ensure!(args.runs > 0, "--runs 0 measures nothing");
    ensure!(args.link_gbit > 0.0, "--link-gbit is more than 0");
    Ok(())
}

/// Runs it; false where an answer was wrong.
///
/// # Errors
/// When something cannot be started, or a query fails.
pub async fn run(args: &GrowthArgs) -> Result<bool> {
    check(args)?;
    let data = TpchData::ensure(&data_root(), args.scale)?;
    let questions = questions(args, &data).await?;
    let mut report = Report {
        scale: args.scale,
        shards: args.shards,
        optimized: args.optimize,
        runs: args.runs,
        link_gbit: args.link_gbit,
        steps: Vec::new(),
    };
    for &workers in &args.workers {
        let step = measure::step(args, &data, &questions, workers).await;
        let step = step.with_context(|| format!("with {workers} workers"))?;
        say(format!(
            "{workers:>3} workers: {} of {} right, {:.2} s of CPU, {:.1} MB moved, predicted {:.2} s",
            step.right,
            questions.len(),
            step.cpu_s,
            step.bytes as f64 / 1e6,
            step.predicted_s
        ));
        report.steps.push(step);
    }
    for row in report.table() {
        say(row);
    }
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &args.svg {
        let title = format!("TPC-H scale {}, predicted for separate machines", args.scale);
        chart::write(path, &title, &report.steps)?;
    }
    report.summary().print();
    Ok(report.right() == report.asked())
}

/// The queries with the oracle's answers.
async fn questions(args: &GrowthArgs, data: &TpchData) -> Result<Vec<Question>> {
    let oracle = Oracle::of_tables(2, data).await?;
    let numbers: Vec<usize> =
        if args.queries.is_empty() { (1..=QUERIES.len()).collect() } else { args.queries.clone() };
    let mut questions = Vec::new();
    for number in numbers {
        let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
        let expected = oracle.expect(sql, Numbers::Exact).await?;
        questions.push(Question { number, sql, expected });
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::cost::{Moved, QueryCost, Run};
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        growth: GrowthArgs,
    }

    fn args(flags: &[&str]) -> GrowthArgs {
        Line::parse_from(["growth"].iter().chain(flags)).growth
    }

    /// One query, all workers of which take as long.
    fn step(workers: usize, seconds: f64) -> Step {
        let run = Run { wall_s: 1.0, coordinator_s: 0.25, workers_s: vec![seconds; workers] };
        Step::new(
            workers,
            1,
            vec![QueryCost::new(6, &[run], Moved { bytes: 1_300_000, most_bytes: 650_000 }, 1e10)],
        )
    }

    #[test]
    fn what_measures_nothing_is_refused() {
        check(&args(&[])).unwrap();
        assert_eq!(args(&[]).workers, [1, 2, 4, 8, 16]);
        for flags in [["--workers", "1,0"], ["--runs", "0"], ["--link-gbit", "0"]] {
            let refusal = check(&args(&flags)).unwrap_err().to_string();
            assert!(refusal.starts_with(flags[0]), "{refusal}");
        }
    }

    #[test]
    fn the_last_line_and_the_table_have_a_number_for_each_step() {
        let steps = vec![step(1, 4.0), step(4, 1.0)];
        let (scale, link_gbit) = (1.0, 10.0);
        let report = Report { scale, shards: 32, optimized: false, runs: 1, link_gbit, steps };
        assert_eq!(
            report.summary().as_str(),
            "growth scale=1 workers=1,4 right=2/2 speedup=3.40 speedup_without_coordinator=4.00 speedup_one_link=3.40 predicted_s=4.25,1.25 cpu_s=4.25,4.25 \
             moved_mb=1.3,1.3 share=1.00,0.25"
        );
        let table = report.table();
        assert_eq!(table[0], " predicted s         1 w         4 w    speed-up");
        assert_eq!(table[1], "          q6       4.251       1.251        3.40");
        assert_eq!(table.len(), 8);
    }
}
