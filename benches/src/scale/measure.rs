//! What is asked of the coordinator and looked at: how long it takes to start,
//! to plan, to change the catalog and to give shards other workers, and what it
//! costs at rest.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};

use super::stub::Running;
use crate::client::Client;
use crate::node::Node;

/// How long one statement may take.
const STATEMENT_MAX: Duration = Duration::from_secs(60);
/// How often something is looked at until it is so.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often all shards are looked at.
const SHARDS_INTERVAL: Duration = Duration::from_millis(500);

/// Starts a coordinator; a session with it, and the seconds until it has
/// answered.
///
/// # Errors
/// When it does not come up, with the end of its log.
pub(super) async fn start(node: &mut Node) -> Result<(Client, f64)> {
    let began = Instant::now();
    node.spawn()?;
    let address = node.wait_until_listening()?;
    let mut client = Client::connect(&format!("http://{address}")).await?;
    within("SELECT 1", client.number("SELECT 1")).await?;
    Ok((client, began.elapsed().as_secs_f64()))
}

/// Waits until the coordinator has answered so many of the workers; the seconds
/// that it took, or how many it has answered by then.
pub(super) async fn all_heard(stubs: &[Running], limit: Duration) -> std::result::Result<f64, usize> {
    let began = Instant::now();
    loop {
        let heard = stubs.iter().filter(|running| running.stub.is_heard()).count();
        if heard == stubs.len() {
            return Ok(began.elapsed().as_secs_f64());
        }
        if began.elapsed() > limit {
            return Err(heard);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Milliseconds of a statement that gives rows, each time that it is run.
pub(super) async fn queries_ms(client: &mut Client, sql: &str, times: usize) -> Result<Vec<f64>> {
    let mut ms = Vec::with_capacity(times);
    // The first time pays for what is made once.
    for time in 0..=times {
        let began = Instant::now();
        within(sql, client.query(sql)).await?;
        if time > 0 {
            ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(ms)
}

/// Milliseconds of commands that change the catalog, of each.
pub(super) async fn commands_ms(client: &mut Client, pairs: usize) -> Result<Vec<f64>> {
    let mut ms = Vec::with_capacity(2 * pairs);
    for number in 0..pairs {
        for sql in [format!("CREATE SCHEMA scale_{number}"), format!("DROP SCHEMA scale_{number}")] {
            let began = Instant::now();
            within(&sql, client.update(&sql)).await?;
            ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(ms)
}

/// What came of the death of some workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    /// From the first that was given up until the last shard had another worker.
    pub(super) moves_ms: f64,
    /// Until all copies were made; none where that took too long.
    pub(super) copied_s: Option<f64>,
}

/// Waits until no shard is to be on these workers any more, which have just
/// died, and then until all copies are made.
///
/// # Errors
/// When it takes too long, or the coordinator does not say.
pub(super) async fn moved(client: &mut Client, dead: &[String], limit: Duration) -> Result<Moved> {
    let began = Instant::now();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let news = format!(
        "SELECT count(*) FILTER (WHERE kind = 'dead'), \
         coalesce(min(CASE WHEN kind = 'dead' THEN us END), 0), \
         coalesce(max(CASE WHEN kind = 'moved' THEN us END), 0) \
         FROM (SELECT kind, CAST(at AS BIGINT) AS us FROM system.events) AS e WHERE us >= {}",
        now.as_micros()
    );
    let names: Vec<String> = dead.iter().map(|name| format!("'{name}'")).collect();
    let left = format!(
        "SELECT count(*) FROM (SELECT unnest(workers) AS worker FROM system.shards) AS s WHERE worker IN ({})",
        names.join(", ")
    );
    let mut first_dead_us = None;
    let mut looked_at: Option<Instant> = None;
    loop {
        let said = numbers(client, &news).await?;
        let [dead_count, dead_us, _] = said.as_slice() else { return Err(anyhow!("{news} gives {said:?}")) };
        if *dead_us > 0 {
            // Events are kept for a while only.
            first_dead_us.get_or_insert(*dead_us);
        }
        let all_are = usize::try_from(*dead_count).is_ok_and(|count| count >= dead.len());
        let is_due = looked_at.is_none_or(|at| at.elapsed() > SHARDS_INTERVAL);
        if (all_are || first_dead_us.is_some()) && is_due {
            let shards = within(&left, client.number(&left)).await?;
            looked_at = Some(Instant::now());
            if shards == 0 && all_are {
                break;
            }
        }
        if began.elapsed() > limit {
            return Err(anyhow!(
                "{dead_count} of {} dead workers were given up, and not all of their shards, within {limit:?}",
                dead.len()
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    // What was done is told afterwards.
    tokio::time::sleep(POLL_INTERVAL).await;
    let last_us = numbers(client, &news).await?.get(2).copied().unwrap_or_default();
    let moves_ms = (last_us - first_dead_us.unwrap_or(last_us)).max(0) as f64 / 1e3;
    let mut copied_s = None;
    while copied_s.is_none() && began.elapsed() <= limit {
        let sql = "SELECT count(*) FROM system.moves";
        if within(sql, client.number(sql)).await? == 0 {
            copied_s = Some(began.elapsed().as_secs_f64());
        } else {
            tokio::time::sleep(SHARDS_INTERVAL).await;
        }
    }
    Ok(Moved { moves_ms, copied_s })
}

/// The largest number that a log has behind `key=`; none where it has none.
pub(super) fn largest(log: &str, key: &str) -> Option<f64> {
    let key = format!("{key}=");
    let numbers = log.split(&key).skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        rest[..end].parse::<f64>().ok()
    });
    numbers.reduce(f64::max)
}

/// The numbers of the one row that a query gives.
async fn numbers(client: &mut Client, sql: &str) -> Result<Vec<i64>> {
    let batches = within(sql, client.query(sql)).await?;
    let row =
        batches.iter().find(|batch| batch.num_rows() > 0).with_context(|| format!("no row from {sql}"))?;
    let number = |column: &arrow::array::ArrayRef| -> Result<i64> {
        let column = cast(column, &DataType::Int64)?;
        let column = column.as_primitive::<Int64Type>();
        if column.is_null(0) {
            return Err(anyhow!("NULL from {sql}"));
        }
        Ok(column.value(0))
    };
    row.columns().iter().map(number).collect()
}

/// What a statement gives, unless it takes too long.
async fn within<T, E>(sql: &str, statement: impl Future<Output = std::result::Result<T, E>>) -> Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let ended = tokio::time::timeout(STATEMENT_MAX, statement).await;
    let ended = ended.map_err(|_| anyhow!("no answer within {STATEMENT_MAX:?} to {}", shortened(sql)))?;
    ended.with_context(|| shortened(sql))
}

fn shortened(sql: &str) -> String {
    const CHARS_MAX: usize = 120;
    if sql.chars().count() <= CHARS_MAX {
        sql.to_owned()
    } else {
        sql.chars().take(CHARS_MAX).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_of_a_log_is_found() {
        let log =
            "WARN a round took long round_ms=412 workers=3\nWARN again round_ms=1210\nINFO round_ms=x\n";
        assert_eq!(largest(log, "round_ms"), Some(1210.0));
        assert_eq!(largest(log, "workers"), Some(3.0));
        assert_eq!(largest(log, "nothing"), None);
    }
}
