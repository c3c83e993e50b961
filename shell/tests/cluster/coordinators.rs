//! Several coordinators: each takes every statement, none gives an answer that
//! is out of date, and a minority of them may be killed, frozen or cut off.

use std::time::{Duration, Instant};

use shoal_benches::{Client, Cluster, ClusterOptions, Direction};
use tonic::Code;

use crate::fixture::{in_time, is_distributed, options};

mod load;

use load::{Found, Load, accepted, look, make_table, session_with, urls, write};

/// Longer than the others need to take a coordinator for dead.
const AWAY: Duration = Duration::from_secs(4);
/// How long a statement may take to fail where it cannot be carried out, on a
/// machine that does other things.
const FAILS_WITHIN: Duration = Duration::from_secs(40);
/// How often something is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

fn three(workers: usize) -> Cluster {
    Cluster::start(&ClusterOptions { coordinators: 3, ..options(workers) }).unwrap()
}

/// All coordinators but this one.
fn others(cluster: &Cluster, one: &str) -> Vec<String> {
    cluster.coordinator_names().into_iter().filter(|name| name != one).collect()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

/// Every coordinator finds so many whole writes.
async fn check_everywhere(cluster: &Cluster, writes: i64) {
    for coordinator in cluster.coordinator_names() {
        let mut client = session_with(cluster, &coordinator).await;
        let found = in_time(look(&mut client)).await;
        assert_eq!(found.unwrap(), Found::whole(writes), "{coordinator}");
    }
}

#[test]
fn what_one_coordinator_wrote_all_others_read_at_once() {
    let cluster = three(3);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect_to("coordinator-2").await.unwrap()).await;
        let names = cluster.coordinator_names();
        let mut sessions: Vec<Client> = Vec::new();
        for name in &names {
            sessions.push(session_with(&cluster, name).await);
        }
        let urls = urls(&cluster, &names);
        for written in 0..12 {
            let writer = (written as usize + 1) % 3;
            write(&urls[writer..=writer], written).await;
            for (name, session) in names.iter().zip(&mut sessions) {
                let found = in_time(look(session)).await.unwrap();
                assert_eq!(
                    found,
                    Found::whole(written + 1),
                    "{name}, after a write through {}",
                    names[writer]
                );
            }
        }
        for (name, session) in names.iter().zip(&mut sessions) {
            let plan = session.text("EXPLAIN SELECT write, count(*) FROM kept GROUP BY write").await.unwrap();
            assert!(is_distributed(&plan), "{name}: {plan}");
        }
        // The names of what is there, too.
        sessions[0].update("CREATE TABLE short (k INT)").await.unwrap();
        assert_eq!(sessions[2].number("SELECT count(*) FROM short").await.unwrap(), 0);
        sessions[2].update("DROP TABLE short").await.unwrap();
        let gone = sessions[1].number("SELECT count(*) FROM short").await.unwrap_err();
        assert!(gone.message.contains("short"), "{gone}");
    });
}

#[test]
fn no_query_and_no_row_is_lost_with_the_leader() {
    let cluster = three(3);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        let leader = cluster.leader().unwrap();
        let survivors = others(&cluster, &leader);
        let load = Load::begin(&cluster, &survivors).await;
        load.goes_on().await;
        cluster.kill(&leader).unwrap();
        let there = urls(&cluster, &survivors);
        accepted(&there, "CREATE SCHEMA IF NOT EXISTS after_the_death", None).await;
        load.goes_on().await;
        let next = cluster.leader().unwrap();
        assert!(survivors.contains(&next), "{next} leads");

        cluster.restart(&leader).unwrap();
        cluster.wait_until_voting(3).unwrap();
        load.goes_on().await;
        let mut back = session_with(&cluster, &leader).await;
        let schemas =
            "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'after_the_death'";
        assert_eq!(back.number(schemas).await.unwrap(), 1);
        let writes = load.end().await;
        check_everywhere(&cluster, writes).await;
        let ids = "SELECT count(*) FROM system.writes WHERE write_id LIKE 'write-%'";
        assert_eq!(back.number(ids).await.unwrap(), writes);
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn one_leader_after_the_other_is_missed_and_replaced() {
    let cluster = three(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        let load = Load::begin(&cluster, &[]).await;
        for kill in 0..4 {
            load.goes_on().await;
            let leader = cluster.leader().unwrap();
            cluster.kill(&leader).unwrap();
            load.goes_on().await;
            let next = cluster.leader().unwrap();
            assert_ne!(next, leader, "kill {kill}");
            cluster.restart(&leader).unwrap();
            cluster.wait_until_voting(3).unwrap();
            cluster.wait_until_joined(2).unwrap();
        }
        let writes = load.end().await;
        check_everywhere(&cluster, writes).await;
    });
    // And not because some time had passed.
    let asked: usize = cluster.coordinator_names().iter().map(|name| times_asked(&cluster, name)).sum();
    assert!(asked > 0, "no coordinator asked for votes because it missed the leader");
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// How often a coordinator asked for votes because it missed the leader.
fn times_asked(cluster: &Cluster, coordinator: &str) -> usize {
    let log = std::fs::read(cluster.dir().join(format!("{coordinator}.log"))).unwrap();
    String::from_utf8_lossy(&log).matches("this coordinator asks for votes").count()
}

#[test]
fn a_coordinator_that_thaws_gives_no_answer_that_is_out_of_date() {
    let cluster = three(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        let mut written = 0;
        for (leads, thaws_after) in
            [(false, Duration::ZERO), (false, AWAY), (true, AWAY), (true, Duration::ZERO)]
        {
            let leader = cluster.leader().unwrap();
            let frozen = if leads { leader } else { others(&cluster, &leader).swap_remove(0) };
            let what = format!("{frozen}, which leads: {leads}, after {thaws_after:?}");
            let mut old = session_with(&cluster, &frozen).await;
            assert_eq!(in_time(look(&mut old)).await.unwrap(), Found::whole(written), "{what}");

            cluster.pause(&frozen).unwrap();
            write(&urls(&cluster, &others(&cluster, &frozen)), written).await;
            written += 1;
            // Sent when the write is acknowledged, and heard at the thaw.
            let asked = tokio::spawn(async move { in_time(look(&mut old)).await });
            tokio::time::sleep(thaws_after).await;
            cluster.resume(&frozen).unwrap();
            let mut new = session_with(&cluster, &frozen).await;
            assert_eq!(in_time(look(&mut new)).await.unwrap(), Found::whole(written), "{what}");
            match asked.await.unwrap() {
                Ok(found) => assert_eq!(found, Found::whole(written), "{what}"),
                // It may have taken its client for gone.
                Err(error) => eprintln!("{what}: the old connection: {error}"),
            }
            cluster.wait_until_voting(3).unwrap();
            cluster.wait_until_joined(2).unwrap();
            check_everywhere(&cluster, written).await;
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn a_leader_that_is_cut_off_leads_no_more() {
    let options = ClusterOptions { coordinators: 3, links: true, ..options(2) };
    let cluster = Cluster::start(&options).unwrap();
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        for (written, direction) in (0..).zip([Direction::Both, Direction::Inbound, Direction::Outbound]) {
            let leader = cluster.leader().unwrap();
            let mut alone = session_with(&cluster, &leader).await;
            cluster.cut(&leader, direction).unwrap();
            let rest = others(&cluster, &leader);
            write(&urls(&cluster, &rest), written).await;
            let what = format!("{leader} is cut off, {direction}");
            // It may know nothing of the write, and must not say so.
            match tokio::time::timeout(FAILS_WITHIN, look(&mut alone)).await {
                Ok(Ok(found)) => assert_eq!(found, Found::whole(written + 1), "{what}"),
                Ok(Err(error)) => eprintln!("{what}: {error}"),
                Err(_) => panic!("{what}: no answer within {FAILS_WITHIN:?}"),
            }
            assert!(rest.contains(&cluster.leader().unwrap()), "{what}, and still leads");
            cluster.heal(&leader).unwrap();
            cluster.wait_until_voting(3).unwrap();
            cluster.wait_until_joined(2).unwrap();
            check_everywhere(&cluster, written + 1).await;
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn without_a_majority_statements_fail_soon_and_say_why() {
    let cluster = three(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        for (written, leads) in (0..).zip([true, false]) {
            write(&urls(&cluster, &cluster.coordinator_names()), written).await;
            let leader = cluster.leader().unwrap();
            let alone = if leads { leader } else { others(&cluster, &leader).swap_remove(0) };
            let gone = others(&cluster, &alone);
            let mut client = session_with(&cluster, &alone).await;
            for name in &gone {
                cluster.kill(name).unwrap();
            }
            // For a moment nobody can know more than the leader that is left.
            let since = Instant::now();
            while let Ok(found) = in_time(look(&mut client)).await {
                assert_eq!(found, Found::whole(written + 1));
                assert!(since.elapsed() < FAILS_WITHIN, "{alone} still answers alone");
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            for sql in [
                "SELECT count(*) FROM kept",
                "INSERT INTO kept VALUES (-1, -1)",
                "CREATE TABLE IF NOT EXISTS never (k INT)",
            ] {
                let since = Instant::now();
                let error = in_time(client.run(sql)).await.expect_err(sql);
                let took = since.elapsed();
                assert!(took < FAILS_WITHIN, "{sql}: failed after {took:?}");
                assert_eq!(error.code, Code::Unavailable, "{sql}: {error}");
                assert!(error.message.contains("majority"), "{sql}: {error}");
            }

            cluster.restart(&gone[0]).unwrap();
            let two = urls(&cluster, &[alone.clone(), gone[0].clone()]);
            accepted(&two, "CREATE SCHEMA IF NOT EXISTS accepted_again", None).await;
            cluster.wait_until_joined(2).unwrap();
            for name in [&alone, &gone[0]] {
                let mut client = session_with(&cluster, name).await;
                assert_eq!(in_time(look(&mut client)).await.unwrap(), Found::whole(written + 1), "{name}");
            }
            cluster.restart(&gone[1]).unwrap();
            cluster.wait_until_joined(2).unwrap();
        }
        check_everywhere(&cluster, 2).await;
    });
}

#[test]
fn coordinators_join_while_queries_run() {
    let cluster = three(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        let first = cluster.coordinator_names();
        let load = Load::begin(&cluster, &first).await;
        load.goes_on().await;
        for (name, voters) in [("coordinator-4", 4), ("coordinator-5", 5)] {
            assert_eq!(cluster.add_coordinator().unwrap(), name);
            cluster.wait_until_voting(voters).unwrap();
            cluster.wait_until_joined(2).unwrap();
            load.goes_on().await;
        }
        let writes = load.end().await;
        check_everywhere(&cluster, writes).await;

        // They count: without two of the first, those that joined decide.
        let leader = cluster.leader().unwrap();
        let follower = first.iter().find(|name| **name != leader).unwrap();
        for name in [&leader, follower] {
            cluster.kill(name).unwrap();
        }
        let left = ["coordinator-4", "coordinator-5"].map(str::to_owned);
        let left: Vec<String> = left.into_iter().filter(|name| *name != leader).collect();
        write(&urls(&cluster, &left), writes).await;
        for name in &left {
            let mut client = session_with(&cluster, name).await;
            assert_eq!(in_time(look(&mut client)).await.unwrap(), Found::whole(writes + 1), "{name}");
        }
    });
}

#[test]
fn rows_survive_the_death_of_all_coordinators() {
    let cluster = three(2);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        make_table(&mut cluster.connect().await.unwrap()).await;
        let names = cluster.coordinator_names();
        let urls = urls(&cluster, &names);
        let mut writes = 0;
        for _ in 0..2 {
            for _ in 0..5 {
                write(&urls, writes).await;
                writes += 1;
            }
            for name in &names {
                cluster.kill(name).unwrap();
            }
            cluster.restart_all(&names).unwrap();
            cluster.wait_until_voting(3).unwrap();
            cluster.wait_until_joined(2).unwrap();
            check_everywhere(&cluster, writes).await;
        }
        write(&urls, writes).await;
        check_everywhere(&cluster, writes + 1).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn no_worker_is_taken_for_lost_when_a_coordinator_is_away() {
    let cluster = three(3);
    let _logs = cluster.show_logs_on_failure();
    run(async {
        for (leads, is_killed) in [(false, true), (true, true), (false, false), (true, false)] {
            let leader = cluster.leader().unwrap();
            let away = if leads { leader } else { others(&cluster, &leader).swap_remove(0) };
            let what = format!("{away}, which leads: {leads}, is killed: {is_killed}");
            if is_killed {
                cluster.kill(&away).unwrap();
            } else {
                cluster.pause(&away).unwrap();
            }
            for survivor in others(&cluster, &away) {
                let mut client = cluster.connect_to(&survivor).await.unwrap();
                let since = Instant::now();
                while since.elapsed() < AWAY {
                    let live = in_time(client.live_workers()).await.unwrap();
                    assert_eq!(live, 3, "{survivor}, without {what}");
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                let lost = "SELECT count(*) FROM system.events WHERE kind IN ('lost', 'dead')";
                assert_eq!(in_time(client.number(lost)).await.unwrap(), 0, "{survivor}, without {what}");
                let times = "SELECT CAST(sum(times_lost) AS BIGINT) FROM system.workers";
                assert_eq!(in_time(client.number(times)).await.unwrap(), 0, "{survivor}, without {what}");
            }
            if is_killed {
                cluster.restart(&away).unwrap();
            } else {
                cluster.resume(&away).unwrap();
            }
            cluster.wait_until_voting(3).unwrap();
            cluster.wait_until_joined(3).unwrap();
        }
    });
}
