//! Workers are cut off while queries run: their connections stay open, and
//! nothing comes.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use shoal_benches::{Client, ClientError, Cluster, ClusterOptions, Direction};

use crate::fixture::options;

const ROWS: i64 = 400_000;
const SQL: &str = "SELECT max(k), s FROM cut_off GROUP BY s";
/// How long what must happen may take on a slow machine.
const HAPPENS_WITHIN: Duration = Duration::from_secs(60);

/// Rows and the sum of their first column.
async fn sum(client: &mut Client) -> Result<(usize, i64), ClientError> {
    let mut stream = client.stream(SQL).await?;
    let (mut rows, mut keys) = (0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        keys += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    Ok((rows, keys))
}

async fn session(cluster: &Cluster) -> Client {
    let mut client = cluster.connect().await.unwrap();
    client.update("SET shoal.task_bytes = 1").await.unwrap();
    client
}

#[test]
fn a_worker_that_is_cut_off_changes_no_answer() {
    let cluster = Cluster::start(&ClusterOptions { links: true, ..options(4) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = session(&cluster).await;
        for sql in [
            "CREATE TABLE cut_off (k BIGINT, s VARCHAR) WITH (shards = 8, replicas = 3, shard_key = 'k')",
            &format!(
                "INSERT INTO cut_off SELECT value, 'some text that takes room ' || value \
                 FROM generate_series(1, {ROWS})"
            ),
        ] {
            client.update(sql).await.unwrap();
        }
        let expected = (ROWS as usize, (1..=ROWS).sum());
        for (number, direction) in
            [Direction::Both, Direction::Inbound, Direction::Outbound].into_iter().enumerate()
        {
            let worker = format!("worker-{}", number + 1);
            let mut asking = session(&cluster).await;
            let asked = tokio::spawn(async move { sum(&mut asking).await });
            tokio::time::sleep(Duration::from_millis(100)).await;
            cluster.cut(&worker, direction).unwrap();
            let answer = asked.await.unwrap();
            assert_eq!(
                answer.unwrap_or_else(|error| panic!("{worker} cut, {direction}: {error}")),
                expected,
                "{worker} cut, {direction}"
            );
            // Nothing breaks, and yet it is noticed.
            let since = Instant::now();
            while client.live_workers().await.unwrap() > 3 {
                assert!(since.elapsed() < HAPPENS_WITHIN, "{worker} cut, {direction}: not noticed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(sum(&mut client).await.unwrap(), expected, "without {worker}");
            cluster.heal(&worker).unwrap();
            cluster.wait_until_joined(4).unwrap();
            assert_eq!(sum(&mut client).await.unwrap(), expected, "{worker} is back");
        }
        let lost = "SELECT count(*) FROM system.queries WHERE lost IS NOT NULL AND state = 'finished'";
        assert!(client.number(lost).await.unwrap() >= 1, "no attempt was ever lost");
    });
}
