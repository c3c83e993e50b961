//! A query that is answered with a kept result, and the same one run each time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::record_batch::RecordBatch;
use serde::Serialize;

use crate::answer::Numbers;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::oracle::{Expectation, Oracle};
use crate::process::CpuTime;
use crate::report::percentile;

/// Reads four columns of all rows of the largest table; its answer is four rows.
const SQL: &str = "SELECT l_returnflag, l_linestatus, count(*), sum(l_quantity), sum(l_extendedprice), max(l_discount) \
                   FROM lineitem GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus";
/// It is asked so many times at least, however short the time.
const ASKED_MIN: usize = 5;
/// It is run so many times at most.
const RUNS_MAX: usize = 100;
/// Of so many hits at most is the time taken: a coordinator remembers its newest 1,000
/// queries, with what they took.
const HITS_MAX: usize = 500;
/// What the coordinator says of queries that it answered with a kept result and did not run.
const TOLD: &str =
    "SELECT id, elapsed_ms FROM system.queries WHERE from_cache AND attempts = 0 AND state = 'finished'";

/// What the query took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Cached {
    /// How often it was answered with the kept result.
    pub(super) hits: usize,
    /// From sending it to having all rows.
    pub(super) p50_ms: f64,
    /// As the coordinator says: from when the ticket was brought until its last row was
    /// taken. That it was announced before, in a call of its own, is not in it.
    pub(super) coordinator_p50_ms: f64,
    /// CPU time of the coordinator's process for each hit, both calls and all threads.
    pub(super) coordinator_cpu_ms: f64,
    /// How often it was run.
    pub(super) runs: usize,
    /// The client's time where it was.
    pub(super) uncached_p50_ms: f64,
}

impl Cached {
    /// For a person.
    pub(super) fn line(&self) -> String {
        format!(
            "a kept result: p50 {:.2} ms, at the coordinator {:.3} ms and {:.3} ms of CPU ({} hits); run: {:.2} ms ({} runs)",
            self.p50_ms,
            self.coordinator_p50_ms,
            self.coordinator_cpu_ms,
            self.hits,
            self.uncached_p50_ms,
            self.runs
        )
    }
}

/// One answer: under which id, and how long it took.
struct Answered {
    id: String,
    ms: f64,
}

/// Asks in a session without the result cache, then in the same one with it, each for so
/// many seconds at most. Whoever else asks this coordinator at the same time is in the way.
///
/// # Errors
/// When an answer is missing or wrong, or one does not come from where it should.
pub(super) async fn measure(cluster: &Cluster, oracle: &Oracle, seconds: f64) -> Result<Cached> {
    let coordinator = cluster.pid("coordinator")?;
    let expected = oracle.expect(SQL, Numbers::Exact).await?;
    let mut client = cluster.connect().await?;
    ask(&mut client, &expected).await?;
    let run = asked(&mut client, &expected, seconds, RUNS_MAX).await?;
    client.update("SET shoal.result_cache = on").await?;
    // This one is run, and kept.
    let kept = ask(&mut client, &expected).await?;
    let before = CpuTime::of(coordinator);
    let hits = asked(&mut client, &expected, seconds, HITS_MAX).await?;
    let coordinator_s = CpuTime::of(coordinator).since(&before);

    let told = told(&client.query(TOLD).await?)?;
    if let Some(run) = run.iter().chain([&kept]).find(|run| told.contains_key(&run.id)) {
        bail!("query {} was to be run, and was answered with a kept result", run.id);
    }
    let coordinator_ms = coordinator_ms(&hits, &told)?;
    Ok(Cached {
        hits: hits.len(),
        p50_ms: p50(&hits),
        coordinator_p50_ms: percentile(&coordinator_ms, 0.5),
        coordinator_cpu_ms: coordinator_s * 1e3 / hits.len() as f64,
        runs: run.len(),
        uncached_p50_ms: p50(&run),
    })
}

fn p50(answers: &[Answered]) -> f64 {
    percentile(&answers.iter().map(|answer| answer.ms).collect::<Vec<_>>(), 0.5)
}

/// The coordinator's time of each hit.
///
/// # Errors
/// When it does not say of one that it was a kept result.
fn coordinator_ms(hits: &[Answered], told: &HashMap<String, f64>) -> Result<Vec<f64>> {
    let ms = hits.iter().map(|hit| {
        let ms = told.get(&hit.id).copied();
        ms.with_context(|| format!("query {} was not answered with the kept result", hit.id))
    });
    ms.collect()
}

/// Asks for so many seconds, and so many times at most; each answer is compared, which is
/// not in its time.
async fn asked(
    client: &mut Client,
    expected: &Expectation,
    seconds: f64,
    times_max: usize,
) -> Result<Vec<Answered>> {
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    let mut answers = Vec::new();
    while answers.len() < times_max && (answers.len() < ASKED_MIN || Instant::now() < deadline) {
        answers.push(ask(client, expected).await?);
    }
    Ok(answers)
}

async fn ask(client: &mut Client, expected: &Expectation) -> Result<Answered> {
    let asked = Instant::now();
    let flight = client.flight().execute(SQL.to_owned(), None).await?;
    let details = flight.app_metadata.clone();
    let (schema, batches) = client.fetch(flight).await?;
    let ms = asked.elapsed().as_secs_f64() * 1e3;
    expected.check(&schema, &batches)?;
    Ok(Answered { id: query_id(&details)?, ms })
}

/// The id of an announced query, from what came with the announcement.
fn query_id(details: &[u8]) -> Result<String> {
    let details: serde_json::Value = serde_json::from_slice(details).context("details of a query")?;
    let id = details.get("query_id").and_then(serde_json::Value::as_str);
    Ok(id.context("a query without an id")?.to_owned())
}

/// Milliseconds by id, from the rows of [`TOLD`].
fn told(batches: &[RecordBatch]) -> Result<HashMap<String, f64>> {
    let mut told = HashMap::new();
    for batch in batches {
        ensure!(batch.num_columns() == 2, "{} columns for ids and times", batch.num_columns());
        let ids = cast(batch.column(0), &DataType::Utf8)?;
        let times = cast(batch.column(1), &DataType::Float64)?;
        let rows = ids.as_string::<i32>().iter().zip(times.as_primitive::<Float64Type>());
        told.extend(rows.filter_map(|(id, ms)| Some((id?.to_owned(), ms?))));
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, StringViewArray};

    use super::*;

    fn answered(ids: &[&str]) -> Vec<Answered> {
        ids.iter().map(|id| Answered { id: (*id).to_owned(), ms: 7.0 }).collect()
    }

    #[test]
    fn a_hit_counts_only_where_the_coordinator_says_that_it_was_one() {
        let ids: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "b", "other"]));
        let times: ArrayRef = Arc::new(Float64Array::from(vec![0.25, 0.5, 9.0]));
        let batch = RecordBatch::try_from_iter([("id", ids), ("elapsed_ms", times)]).unwrap();
        let told = told(&[batch.slice(0, 1), batch.slice(1, 2), batch.slice(0, 0)]).unwrap();
        assert_eq!(coordinator_ms(&answered(&["b", "a"]), &told).unwrap(), [0.5, 0.25]);
        let refused = coordinator_ms(&answered(&["a", "c"]), &told).unwrap_err().to_string();
        assert_eq!(refused, "query c was not answered with the kept result");
    }

    #[test]
    fn the_id_comes_with_the_announcement() {
        assert_eq!(query_id(br#"{"query_id": "7", "rows": 1}"#).unwrap(), "7");
        for details in [&b""[..], b"{}", br#"{"query_id": 7}"#] {
            assert!(query_id(details).is_err(), "{details:?}");
        }
    }
}
