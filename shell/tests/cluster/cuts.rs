//! Workers are cut off while queries run: their connections stay open, and
//! nothing comes. And how soon silence is noticed.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use shoal_benches::{Client, ClientError, Cluster, ClusterOptions, Direction};

use crate::fixture::{Obedient, in_time, is_distributed, options, session};

const ROWS: i64 = 100_000;
const SQL: &str = "SELECT max(shoal_step(k)), s FROM cut_off GROUP BY s";
/// How long it may take on a slow machine until a cut is noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
/// Silence is known after two seconds; and some time to ask.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// Rows and the sum of their first column.
async fn sum(client: &mut Client, sql: &str) -> Result<(usize, i64), ClientError> {
    let mut stream = client.stream(sql).await?;
    let (mut rows, mut keys) = (0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        keys += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    Ok((rows, keys))
}

#[test]
fn a_worker_that_is_cut_off_changes_no_answer() {
    let obedient = Obedient::start(ClusterOptions { links: true, ..options(4) });
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = session(cluster).await;
        for sql in [
            "CREATE TABLE cut_off (k BIGINT, s VARCHAR) WITH (shards = 8, replicas = 3, shard_key = 'k')",
            &format!(
                "INSERT INTO cut_off SELECT value, 'some text that takes room ' || value \
                 FROM generate_series(1, {ROWS})"
            ),
        ] {
            client.update(sql).await.unwrap();
        }
        let plan = client.text(&format!("EXPLAIN {SQL}")).await.unwrap();
        assert!(is_distributed(&plan), "{plan}");
        let expected = (ROWS as usize, (1..=ROWS).sum());
        for (number, direction) in
            [Direction::Both, Direction::Inbound, Direction::Outbound].into_iter().enumerate()
        {
            let worker = format!("worker-{}", number + 1);
            let sql = format!("{SQL} /* without {worker} */");
            // Each worker has the first rows before it when one is cut off: it
            // still needs those of the others, and they need its own.
            let before = obedient.obeyed();
            obedient.hold(&obedient.workers());
            let asked = tokio::spawn({
                let (mut asking, sql) = (session(cluster).await, sql.clone());
                async move { in_time(sum(&mut asking, &sql)).await }
            });
            obedient.wait_until_obeyed(&before, 4).await;
            cluster.cut(&worker, direction).unwrap();
            obedient.order("");
            let since = Instant::now();
            let answer = asked.await.unwrap();
            assert_eq!(
                answer.unwrap_or_else(|error| panic!("{worker} cut, {direction}: {error}")),
                expected,
                "{worker} cut, {direction}"
            );
            let lost = format!(
                "SELECT count(*) FROM system.queries WHERE state = 'finished' AND sql = '{sql}' \
                 AND attempts > 1 AND lost LIKE '%{worker}: %'"
            );
            assert_eq!(client.number(&lost).await.unwrap(), 1, "{worker} cut, {direction}: nothing was lost");
            // Nothing breaks, and yet it is noticed.
            while client.live_workers().await.unwrap() > 3 {
                assert!(since.elapsed() < NOTICED_WITHIN, "{worker} cut, {direction}: not noticed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(in_time(sum(&mut client, SQL)).await.unwrap(), expected, "without {worker}");
            cluster.heal(&worker).unwrap();
            cluster.wait_until_joined(4).unwrap();
            assert_eq!(in_time(sum(&mut client, SQL)).await.unwrap(), expected, "{worker} is back");
        }
    });
}

/// How a worker falls silent without an end of its connections.
#[derive(Clone, Copy, Debug)]
enum Silence {
    Frozen,
    Cut(Direction),
}

impl Silence {
    fn begin(self, cluster: &Cluster, worker: &str) {
        match self {
            Self::Frozen => cluster.pause(worker).unwrap(),
            Self::Cut(direction) => cluster.cut(worker, direction).unwrap(),
        }
    }

    fn end(self, cluster: &Cluster, worker: &str) {
        match self {
            Self::Frozen => cluster.resume(worker).unwrap(),
            Self::Cut(_) => cluster.heal(worker).unwrap(),
        }
    }
}

#[test]
fn a_silent_worker_is_known_to_be_lost_within_seconds() {
    let cluster = Cluster::start(&ClusterOptions { links: true, ..options(2) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        for silent in [
            [("worker-1", Silence::Frozen), ("worker-2", Silence::Cut(Direction::Inbound))],
            [("worker-1", Silence::Cut(Direction::Both)), ("worker-2", Silence::Cut(Direction::Outbound))],
        ] {
            let since = Instant::now();
            for (worker, silence) in silent {
                silence.begin(&cluster, worker);
            }
            loop {
                let lost = "SELECT worker FROM system.workers WHERE state = 'lost'";
                let lost = client.text(lost).await.unwrap();
                let elapsed = since.elapsed();
                assert!(elapsed < KNOWN_WITHIN, "{silent:?}: after {elapsed:?} lost are only {lost:?}");
                if lost.lines().count() == 2 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for (worker, silence) in silent {
                silence.end(&cluster, worker);
            }
            cluster.wait_until_joined(2).unwrap();
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
