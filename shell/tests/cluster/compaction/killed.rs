//! Nodes that are killed while a shard is compacted.

use super::*;

/// How long one try of a write may take: a coordinator may have been killed.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);

async fn wait_until_crashed(cluster: &Cluster, node: &str) {
    let since = Instant::now();
    while !cluster.crashed().iter().any(|crashed| crashed == node) {
        assert!(since.elapsed() < HAPPENS_WITHIN, "{node} still runs");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[test]
fn a_worker_killed_at_any_step_of_a_compaction_costs_no_row_and_no_copy() {
    let obedient = when_asked(1);
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        let mut writes = 0;
        for (index, step) in Step::OF_WORKER.into_iter().enumerate() {
            let victim = format!("worker-{}", index % 3 + 1);
            eprintln!("{victim} is killed at {}", step.name());
            make_many(&mut client, writes..writes + 3).await;
            writes += 3;
            wait_until_settled(cluster, 3).await;
            order(&obedient, &victim, step, "kill");
            let optimized = optimizing(cluster).await;
            wait_until_crashed(cluster, &victim).await;
            obedient.order("");
            match optimized.await.unwrap() {
                Ok(_) => {}
                Err(error) => assert_eq!(error.code, Code::Unavailable, "{error}"),
            }
            check(&mut client, writes).await;
            // Whatever was compacted has all of its copies, also on the one that is away.
            let fewer = "SELECT count(*) FROM system.segments WHERE array_length(replicas) < 3";
            assert_eq!(client.number(fewer).await.unwrap(), 0, "{}", step.name());
            cluster.restart(&victim).unwrap();
            cluster.wait_until_joined(3).unwrap();
            wait_until_settled(cluster, 3).await;
            check(&mut client, writes).await;
            in_time(client.update("OPTIMIZE TABLE many")).await.unwrap();
            assert_eq!(most_segments(&mut client).await, 1, "{}", step.name());
            check(&mut client, writes).await;
        }
        // One that dies when all is staged has what is then committed.
        make_many(&mut client, writes..writes + 3).await;
        let optimized = stalled(&obedient).await;
        cluster.kill("worker-2").unwrap();
        obedient.order("");
        optimized.await.unwrap().unwrap();
        check(&mut client, writes + 3).await;
        cluster.restart("worker-2").unwrap();
        cluster.wait_until_joined(3).unwrap();
        wait_until_settled(cluster, 3).await;
        check(&mut client, writes + 3).await;
    });
}

/// Writes through any coordinator that takes it, under one id.
async fn write(cluster: &Cluster, write: i64) {
    let since = Instant::now();
    let names = cluster.coordinator_names();
    for name in names.iter().cycle() {
        let sending = async {
            let mut client = Client::connect(&cluster.url_of(name).unwrap()).await?;
            client.flight().set_header("shoal-write-id", format!("many-{write}"));
            client.update(&insert("many", write)).await
        };
        match tokio::time::timeout(TRY_TIMEOUT, sending).await {
            Ok(Ok(rows)) => return assert_eq!(rows, ROWS),
            Ok(Err(error)) => assert!(since.elapsed() < HAPPENS_WITHIN, "write {write}: {error}"),
            Err(_) => assert!(since.elapsed() < HAPPENS_WITHIN, "write {write}: no answer"),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[test]
fn a_leader_killed_while_it_compacts_leaves_it_to_the_next_one() {
    let obedient = Obedient::start(ClusterOptions { coordinators: 3, ..options(3) });
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        cluster.connect().await.unwrap().update(&create(LAYOUTS[0].0, LAYOUTS[0].1)).await.unwrap();
        let mut writes = 0;
        for step in Step::OF_COMPACTION {
            let leader = cluster.leader().unwrap();
            eprintln!("{leader} leads, and is killed at {}", step.name());
            order(&obedient, &leader, step, "kill");
            // More than a shard may keep: one of them is due in any case.
            for _ in 0..16 {
                write(cluster, writes).await;
                writes += 1;
            }
            wait_until_crashed(cluster, &leader).await;
            obedient.order("");
            let survivor = cluster.coordinator_names().into_iter().find(|name| *name != leader).unwrap();
            let mut client = cluster.connect_to(&survivor).await.unwrap();
            check(&mut client, writes).await;
            wait_until_few(&mut client, 10).await;
            check(&mut client, writes).await;
            cluster.restart(&leader).unwrap();
            cluster.wait_until_voting(3).unwrap();
            cluster.wait_until_joined(3).unwrap();
            for name in cluster.coordinator_names() {
                check(&mut cluster.connect_to(&name).await.unwrap(), writes).await;
            }
            // What the dead one had staged is gone, too.
            wait_until_settled(cluster, 3).await;
        }
    });
}
