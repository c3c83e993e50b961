//! `\drill`: the same queries again and again while workers are taken away in
//! turn. Does an answer change, and what does it cost?

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shoal_proto::{ErrorCode, Failure};

use super::cluster::DemoCluster;
use super::kept::Kept;
use super::questions::{Question, checksum, questions};
use crate::client::{Client, ClientError, text_rows};
use crate::links::Direction;
use crate::repl::Show;

/// Queries that are asked where nobody says how many, and at most.
const QUERIES_DEFAULT: usize = 4;
const QUERIES_MAX: usize = 8;
/// How often each is asked undisturbed.
const UNDISTURBED_RUNS: usize = 3;
/// So small that every worker has a part in every query.
const SPREAD: &str = "SET shoal.task_bytes = 100000";
/// How long a worker may take to be live again, and how often that is asked.
const BACK_TIMEOUT: Duration = Duration::from_secs(30);
const BACK_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long all of a query may take, whatever happens.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Who the drill's session says that it is.
const USER: &str = "drill";

/// How a worker is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Freeze,
    Cut,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Cut => "cut",
        })
    }
}

/// A worker to take away; it is brought back in any case.
struct Strike {
    cluster: Arc<DemoCluster>,
    worker: String,
    fault: Fault,
    is_away: bool,
}

impl Strike {
    fn strike(&mut self) -> anyhow::Result<()> {
        self.is_away = true;
        match self.fault {
            Fault::Kill => self.cluster.kill(&self.worker).map(drop),
            Fault::Freeze => self.cluster.signal(&self.worker, Signal::STOP).map(drop),
            Fault::Cut => self.cluster.cut(&self.worker, Direction::Both),
        }
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        if !std::mem::take(&mut self.is_away) {
            return Ok(());
        }
        match self.fault {
            Fault::Kill => self.cluster.restart(&self.worker).map(drop),
            Fault::Freeze => self.cluster.signal(&self.worker, Signal::CONT).map(drop),
            Fault::Cut => self.cluster.heal(&self.worker),
        }
    }
}

impl Drop for Strike {
    fn drop(&mut self) {
        // After Ctrl-C nobody is there to hear that it failed; `\nodes` shows it.
        let _healed = self.heal();
    }
}

/// An answer and how long it took.
#[derive(Clone, Copy, Debug)]
struct Answer {
    checksum: u64,
    took: Duration,
}

/// Runs the drill; `argument` may say with how many queries. Shows a line for
/// each query and fault, and gives the line that sums up.
///
/// # Errors
/// Where an answer changed or a query failed, and where there can be no drill.
pub(super) async fn drill(
    cluster: &Arc<DemoCluster>,
    demo: &Kept,
    argument: &str,
    show: Show<'_>,
) -> Result<String, ClientError> {
    let count = count(argument)?;
    if demo.workers < 2 || demo.replicas < 2 {
        return Err(ClientError::Usage(
            "a drill needs a worker to spare: start the demo with 2 or more --workers and --replicas"
                .to_owned(),
        ));
    }
    // A session of its own: the settings of the prompt's stay as they are.
    let client = Client::connect(&cluster.addresses()?, USER).await?;
    client.update(SPREAD).await?;
    let lost = lost(&client).await?;
    if !lost.is_empty() {
        return Err(ClientError::Usage(format!(
            "not all workers are live, and a drill takes away one at a time: bring back {} first \
             (\\start, \\thaw or \\heal)",
            lost.join(", ")
        )));
    }
    let mut asked = Vec::new();
    for question in questions(&client, count).await? {
        let answer = undisturbed(&client, &question).await?;
        asked.push((question, answer));
    }
    show(&format!(
        "{:<14} {:<8} {:<10} {:>10} {:>10} {:>10}  {:<16}\n",
        "Query", "Fault", "Worker", "Normal ms", "Under ms", "Cost ms", "Checksum"
    ));
    let mut result = Outcome::default();
    let mut workers = (1..=demo.workers).cycle();
    for fault in [Fault::Kill, Fault::Freeze, Fault::Cut] {
        for (question, normal) in &asked {
            let worker = format!("worker-{}", workers.next().unwrap_or(1));
            show(&format!("{:<14} {fault:<8} {worker:<10} {:>10.0} ", question.name, ms(normal.took)));
            let strike = Strike { cluster: Arc::clone(cluster), worker, fault, is_away: false };
            let under = struck(&client, question, normal.took / 2, strike).await?;
            show(&result.add(fault, normal, under));
            back(&client, demo.workers).await?;
        }
    }
    result.sum_up()
}

fn count(argument: &str) -> Result<usize, ClientError> {
    match (argument, argument.parse()) {
        ("", _) => Ok(QUERIES_DEFAULT),
        (_, Ok(count)) if (1..=QUERIES_MAX).contains(&count) => Ok(count),
        _ => Err(ClientError::Usage(format!(
            "\\drill takes a number of queries from 1 to {QUERIES_MAX}, not `{argument}`"
        ))),
    }
}

/// The answer, and the median of its times.
async fn undisturbed(client: &Client, question: &Question) -> Result<Answer, ClientError> {
    let first = ask(client, question).await?;
    let mut took = Vec::new();
    for _ in 0..UNDISTURBED_RUNS {
        let again = ask(client, question).await?;
        if again.checksum != first.checksum {
            return Err(failed(format!(
                "{} has another answer each time ({:016x}, then {:016x}): does somebody write?",
                question.name, first.checksum, again.checksum
            )));
        }
        took.push(again.took);
    }
    took.sort();
    let median = took.get(took.len() / 2).copied().unwrap_or(first.took);
    Ok(Answer { checksum: first.checksum, took: median })
}

async fn ask(client: &Client, question: &Question) -> Result<Answer, ClientError> {
    let began = Instant::now();
    let batches = tokio::time::timeout(ANSWER_TIMEOUT, client.collect(&question.sql)).await;
    let batches = batches
        .map_err(|_| failed(format!("no answer to {} within {ANSWER_TIMEOUT:?}", question.name)))??;
    let took = began.elapsed();
    Ok(Answer { checksum: checksum(&batches)?, took })
}

/// Asks while a worker is taken away after so long, and brings that back. The
/// inner result is the query's own.
async fn struck(
    client: &Client,
    question: &Question,
    after: Duration,
    mut strike: Strike,
) -> Result<Result<Answer, ClientError>, ClientError> {
    let striking = async {
        tokio::time::sleep(after).await;
        strike.strike()
    };
    let (answer, stricken) = tokio::join!(ask(client, question), striking);
    // A process is waited for, also if nobody waits for this any more.
    let healed = tokio::task::spawn_blocking(move || strike.heal()).await.map_err(anyhow::Error::from);
    stricken.and(healed.and_then(|healed| healed)).map_err(|error| failed(format!("{error:#}")))?;
    Ok(answer)
}

/// Waits until all workers are live.
async fn back(client: &Client, workers: u32) -> Result<(), ClientError> {
    let deadline = Instant::now() + BACK_TIMEOUT;
    loop {
        let lost = lost(client).await?;
        if lost.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(failed(format!(
                "of {workers} workers {} did not come back within {BACK_TIMEOUT:?}; \\nodes shows the logs",
                lost.join(", ")
            )));
        }
        tokio::time::sleep(BACK_POLL_INTERVAL).await;
    }
}

/// The workers that are not live.
async fn lost(client: &Client) -> Result<Vec<String>, ClientError> {
    let lost = client.collect("SELECT worker FROM system.workers WHERE state <> 'live' ORDER BY 1").await?;
    Ok(text_rows(&lost).into_iter().flatten().flatten().collect())
}

/// What came of all queries so far.
#[derive(Default)]
struct Outcome {
    same: usize,
    different: usize,
    failed: usize,
    /// The worst that each fault cost.
    worst: BTreeMap<Fault, Duration>,
}

impl Outcome {
    /// Counts one; the rest of its line.
    fn add(&mut self, fault: Fault, normal: &Answer, under: Result<Answer, ClientError>) -> String {
        let under = match under {
            Ok(under) => under,
            Err(error) => {
                self.failed += 1;
                return format!("FAILED: {error}\n");
            }
        };
        let verdict = if under.checksum == normal.checksum {
            self.same += 1;
            "same".to_owned()
        } else {
            self.different += 1;
            format!("DIFFERENT, was {:016x}", normal.checksum)
        };
        let worst = self.worst.entry(fault).or_default();
        *worst = under.took.saturating_sub(normal.took).max(*worst);
        format!(
            "{:>10.0} {:>+10.0}  {:016x} {verdict}\n",
            ms(under.took),
            ms(under.took) - ms(normal.took),
            under.checksum
        )
    }

    fn sum_up(&self) -> Result<String, ClientError> {
        let asked = self.same + self.different + self.failed;
        if self.same < asked {
            return Err(failed(format!(
                "of {asked} queries under faults {} had another answer and {} failed",
                self.different, self.failed
            )));
        }
        let costs: Vec<String> =
            self.worst.iter().map(|(fault, cost)| format!("a {fault} at most {:.0} ms", ms(*cost))).collect();
        Ok(format!("{asked} queries under faults, every answer the same; it cost {}", costs.join(", ")))
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn failed(why: String) -> ClientError {
    ClientError::Statement(Failure::new(ErrorCode::Internal, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(checksum: u64, ms: u64) -> Answer {
        Answer { checksum, took: Duration::from_millis(ms) }
    }

    #[test]
    fn a_drill_fails_with_one_answer() {
        let mut outcome = Outcome::default();
        let line = outcome.add(Fault::Kill, &answer(7, 20), Ok(answer(7, 150)));
        assert_eq!(line, "       150       +130  0000000000000007 same\n");
        outcome.add(Fault::Kill, &answer(7, 20), Ok(answer(7, 15)));
        assert_eq!(
            outcome.sum_up().unwrap(),
            "2 queries under faults, every answer the same; it cost a kill at most 130 ms"
        );
        let line = outcome.add(Fault::Cut, &answer(7, 20), Ok(answer(8, 20)));
        assert!(line.contains("DIFFERENT, was 0000000000000007"), "{line}");
        let line = outcome.add(Fault::Freeze, &answer(7, 20), Err(failed("no replica".to_owned())));
        assert_eq!(line, "FAILED: no replica\n");
        let error = outcome.sum_up().unwrap_err();
        assert_eq!(error.to_string(), "of 4 queries under faults 1 had another answer and 1 failed");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn the_number_of_queries_is_checked() {
        assert_eq!(count("").unwrap(), QUERIES_DEFAULT);
        assert_eq!(count("2").unwrap(), 2);
        for wrong in ["0", "9", "two"] {
            assert!(count(wrong).unwrap_err().to_string().contains(&format!("`{wrong}`")));
        }
    }
}
