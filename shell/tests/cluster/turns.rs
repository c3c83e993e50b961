//! Who gets a turn when more is asked than runs at once: short queries do not wait for
//! long ones, neither for a place nor for a thread, and more urgent sessions come first.

use shoal_benches::{Client, ClusterOptions};
use tokio::task::JoinHandle;

use crate::fixture::{Obedient, in_time, is_distributed, options, session, wait_until};

const ROWS: i64 = 20_000;
const SUM: i64 = ROWS * (ROWS + 1) / 2;

async fn make_rows(client: &mut Client) {
    for sql in [
        "CREATE TABLE turns (k BIGINT, v BIGINT) WITH (shards = 8, replicas = 2, shard_key = 'k', sort_key = 'k')"
            .to_owned(),
        format!("INSERT INTO turns SELECT value, value % 10 FROM generate_series(1, {ROWS})"),
    ] {
        client.update(&sql).await.unwrap();
    }
}

/// A long query, as it has a window, that is [`SUM`]. Each worker computes a part of it,
/// in which a test can have it stand still.
fn long(name: &str) -> String {
    format!(
        "SELECT max(t) FROM (SELECT sum(s) OVER () AS t FROM \
         (SELECT v, sum(shoal_step(k)) AS s FROM turns GROUP BY v)) /* long {name} */"
    )
}

fn asked(mut asking: Client, sql: String) -> JoinHandle<i64> {
    tokio::spawn(async move { in_time(asking.number(&sql)).await.unwrap() })
}

/// How many long queries are in this state.
fn of_state(state: &str) -> String {
    format!(
        "SELECT count(*) FROM system.queries WHERE state = '{state}' AND class = 'long' \
         AND sql LIKE '%/* long %' AND sql NOT LIKE '%system.queries%'"
    )
}

fn obedient(max_queries: &str, queue_limit: &str) -> Obedient {
    let args = ["--max-queries", max_queries, "--queue-limit", queue_limit];
    let coordinator_args = args.map(str::to_owned).to_vec();
    Obedient::start(ClusterOptions { threads: 1, coordinator_args, ..options(2) })
}

#[test]
fn short_queries_are_answered_while_as_many_long_ones_run_and_wait_as_may() {
    let obedient = obedient("4", "2");
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(cluster).await;
        make_rows(&mut client).await;
        let plan = client.text(&format!("EXPLAIN {}", long("explained"))).await.unwrap();
        assert!(is_distributed(&plan), "{plan}");

        // From here on the only thread of each worker for long tasks stands still.
        let before = obedient.obeyed();
        obedient.stall(&obedient.workers());
        let mut long_ones = Vec::new();
        for number in 1..=4 {
            long_ones.push(asked(session(cluster).await, long(&number.to_string())));
        }
        wait_until(
            &mut client,
            &format!("SELECT count(*) FROM ({}) AS c(n) WHERE n = 2", of_state("running")),
        )
        .await;
        wait_until(
            &mut client,
            &format!("SELECT count(*) FROM ({}) AS c(n) WHERE n = 2", of_state("queued")),
        )
        .await;
        obedient.wait_until_obeyed(&before, 2).await;
        let refused = client.query(&long("5")).await.unwrap_err().to_string();
        assert!(refused.contains("2 long queries run and 2 wait"), "{refused}");
        assert!(refused.contains("--max-queries") && refused.contains("--queue-limit"), "{refused}");

        let mut other = cluster.connect().await.unwrap();
        for key in 1..=50 {
            let lookup = format!("SELECT v FROM turns WHERE k = {key}");
            assert_eq!(in_time(other.number(&lookup)).await.unwrap(), key % 10);
        }
        // Of one worker, and with an exchange between both.
        for asking in [&mut other, &mut client] {
            let groups = "SELECT sum(n * v) FROM (SELECT v, count(*) AS n FROM turns GROUP BY v)";
            assert_eq!(in_time(asking.number(groups)).await.unwrap(), ROWS / 10 * 45);
            let classes = format!("SELECT DISTINCT class FROM system.queries WHERE sql = '{groups}'");
            assert_eq!(asking.text(&classes).await.unwrap(), "short\n");
        }
        // That is not because a long one had ended meanwhile.
        assert_eq!(client.number(&of_state("running")).await.unwrap(), 2);
        assert_eq!(client.number(&of_state("queued")).await.unwrap(), 2);
        assert_eq!(client.number(&of_state("finished")).await.unwrap(), 0);

        obedient.order("");
        for long in long_ones {
            assert_eq!(long.await.unwrap(), SUM);
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn more_urgent_sessions_wait_less_and_who_gives_up_makes_room() {
    let obedient = obedient("2", "10");
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(cluster).await;
        make_rows(&mut client).await;
        let wrong = client.update("SET shoal.priority = 'urgent'").await.unwrap_err().to_string();
        assert!(wrong.contains("low, normal and high"), "{wrong}");

        obedient.hold(&obedient.workers());
        let running = asked(session(cluster).await, long("running"));
        wait_until(&mut client, &of_state("running")).await;
        let mut waiting = Vec::new();
        for (count, priority) in (1..).zip(["low", "normal", "high"]) {
            let mut asking = session(cluster).await;
            asking.update(&format!("SET shoal.priority = {priority}")).await.unwrap();
            waiting.push(asked(asking, long(priority)));
            let queued = of_state("queued");
            wait_until(&mut client, &format!("SELECT count(*) FROM ({queued}) AS c(n) WHERE n = {count}"))
                .await;
        }
        let is_at = |name: &str, place: u32| {
            format!(
                "SELECT count(*) FROM system.queries WHERE sql = '{}' AND state = 'queued' \
                 AND queue_position = {place}",
                long(name)
            )
        };
        for (name, place) in [("high", 1), ("normal", 2), ("low", 3)] {
            assert_eq!(client.number(&is_at(name, place)).await.unwrap(), 1, "{name}");
        }

        let high = waiting.pop().unwrap();
        let id = format!("SELECT id FROM system.queries WHERE sql = '{}'", long("high"));
        let id = client.text(&id).await.unwrap();
        client.update(&format!("KILL QUERY '{}'", id.trim())).await.unwrap();
        assert!(high.await.is_err(), "it was to be answered");
        wait_until(&mut client, &is_at("normal", 1)).await;
        assert_eq!(client.number(&is_at("low", 2)).await.unwrap(), 1);

        obedient.order("");
        assert_eq!(running.await.unwrap(), SUM);
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), SUM);
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
