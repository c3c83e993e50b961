//! Workers in two zones: what is read in the zone of the coordinator that is
//! asked, and how many bytes cross zones where that cannot be.

use shoal_benches::{Client, Cluster, ClusterOptions};

use crate::fixture::{in_time, is_distributed, options, session, wait_until};

const ROWS: i64 = 40_000;
/// Read row by row, summed up, exchanged between workers, looked up, and joined.
const QUERIES: [&str; 5] = [
    "SELECT k, s FROM zoned WHERE k % 7 = 1",
    "SELECT count(*), sum(k) FROM zoned WHERE s <> ''",
    "SELECT g, count(*), max(s) FROM zoned GROUP BY g ORDER BY g",
    "SELECT s FROM zoned WHERE k = 4711",
    "SELECT count(*) FROM zoned JOIN zoned AS other ON zoned.k = other.g",
];

/// Workers and coordinators in the zones `a` and `b`, in turn.
fn zoned(coordinators: usize) -> Cluster {
    let zones = ["a", "b"].map(str::to_owned).to_vec();
    Cluster::start(&ClusterOptions { coordinators, zones, ..options(4) }).unwrap()
}

async fn make_rows(client: &mut Client, options: &str) {
    for sql in [
        format!(
            "CREATE TABLE zoned (k BIGINT NOT NULL, g BIGINT NOT NULL, s VARCHAR) WITH (shard_key = 'k', {options})"
        ),
        format!(
            "INSERT INTO zoned SELECT value, value % 1000, md5(CAST(value AS VARCHAR)) \
             FROM generate_series(1, {ROWS})"
        ),
    ] {
        client.update(&sql).await.unwrap();
    }
}

/// How many bytes crossed zones for a query, and what it did.
async fn crossed(client: &mut Client, sql: &str) -> (u64, String) {
    let text = in_time(client.text(&format!("EXPLAIN ANALYZE {sql}"))).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("crossed zones: "));
    let (all, rest) = line.expect(&text).split_once(" bytes, at most ").expect(&text);
    let (all, most): (u64, u64) =
        (all.parse().unwrap(), rest.strip_suffix(" to one node").expect(&text).parse().unwrap());
    assert!(most <= all && (most > 0) == (all > 0), "{text}");
    (all, text)
}

#[test]
fn what_a_zone_has_all_of_crosses_to_no_other_until_it_is_gone() {
    let cluster = zoned(3);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 2").await;
        let placed = "SELECT count(*) FROM system.workers \
                      WHERE zone = CASE WHEN worker IN ('worker-1', 'worker-3') THEN 'a' ELSE 'b' END";
        assert_eq!(client.number(placed).await.unwrap(), 4);
        for (coordinator, elsewhere) in
            [("coordinator", ["worker-2", "worker-4"]), ("coordinator-2", ["worker-1", "worker-3"])]
        {
            let mut client = cluster.connect_to(coordinator).await.unwrap();
            // With failover a shard that is late is read elsewhere, too.
            for set in ["SET shoal.task_bytes = 1", "SET shoal.failover = false"] {
                client.update(set).await.unwrap();
            }
            for sql in QUERIES {
                let (bytes, text) = crossed(&mut client, sql).await;
                assert_eq!(bytes, 0, "{coordinator}: {sql}\n{text}");
                let is_elsewhere = elsewhere.iter().any(|worker| text.contains(worker));
                assert!(!is_elsewhere, "{coordinator}: {sql}\n{text}");
                assert!(is_distributed(&text) || !sql.contains("GROUP BY"), "nothing is exchanged: {text}");
            }
        }
        let none = "SELECT count(*) FROM system.workers WHERE cross_zone_bytes > 0";
        assert_eq!(client.number(none).await.unwrap(), 0);

        // The other zone has all of it, too.
        for worker in ["worker-1", "worker-3"] {
            cluster.kill(worker).unwrap();
        }
        for sql in QUERIES {
            let (bytes, text) = crossed(&mut client, sql).await;
            assert!(bytes > 0, "{sql}\n{text}");
        }
        assert_eq!(client.number("SELECT count(*) FROM zoned").await.unwrap(), ROWS);
        // What is asked for there still stays there.
        let mut there = cluster.connect_to("coordinator-2").await.unwrap();
        let (bytes, text) = crossed(&mut there, QUERIES[2]).await;
        assert_eq!(bytes, 0, "{text}");
    });
}

#[test]
fn what_no_zone_has_all_of_crosses_and_is_counted() {
    let cluster = zoned(1);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 1").await;
        // Its rows are exchanged between workers of both zones.
        let (bytes, text) = crossed(&mut client, QUERIES[2]).await;
        assert!(bytes > 0 && is_distributed(&text), "{text}");
        let told = "SELECT count(*) FROM system.workers WHERE cross_zone_bytes > 0";
        wait_until(&mut client, told).await;
        // What each shard comes to goes to the coordinator.
        let (bytes, text) = crossed(&mut client, QUERIES[1]).await;
        assert!(bytes > 0, "{text}");
    });
}

#[test]
fn where_each_process_is_a_zone_all_that_they_exchange_is_counted() {
    let zones = (1..=4).map(|number| format!("machine-{number}")).collect();
    let coordinator_zone = Some("coordinator".to_owned());
    let cluster = Cluster::start(&ClusterOptions { zones, coordinator_zone, ..options(4) }).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 3").await;
        let placed = "SELECT count(DISTINCT zone) FROM system.workers";
        assert_eq!(client.number(placed).await.unwrap(), 4);
        for sql in QUERIES {
            let (bytes, text) = crossed(&mut client, sql).await;
            // What comes to the coordinator, at least: no worker stands in its zone.
            assert!(bytes > 0, "{sql}\n{text}");
        }
        let (_, text) = crossed(&mut client, QUERIES[2]).await;
        let used = cluster.worker_names().iter().filter(|worker| text.contains(worker.as_str())).count();
        assert!(is_distributed(&text) && used > 1, "one zone is not enough for what others hold: {text}");
    });
}

#[test]
fn what_crosses_zones_is_compressed_unless_it_is_not_to_be() {
    // Numbers, of which most bytes are the same.
    const EXCHANGED: &str = "SELECT k % 30000 AS m, count(*) AS n, sum(g) AS g FROM zoned GROUP BY 1";
    let cluster = zoned(1);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = session(&cluster).await;
        make_rows(&mut client, "shards = 8, replicas = 1").await;
        let checked = format!("SELECT sum(m), sum(m * n), sum(g), count(*) FROM ({EXCHANGED}) AS t");
        let mut bytes_by = Vec::new();
        let mut answers = Vec::new();
        for setting in ["none", "lz4", "zstd", "auto"] {
            client.update(&format!("SET shoal.exchange_compression = '{setting}'")).await.unwrap();
            let (bytes, text) = crossed(&mut client, EXCHANGED).await;
            assert!(is_distributed(&text), "{text}");
            bytes_by.push(bytes);
            answers.push(client.text(&checked).await.unwrap());
            for sql in QUERIES {
                answers.push(client.text(&format!("SELECT count(*) FROM ({sql}) AS t")).await.unwrap());
            }
        }
        let [none, compressed @ ..] = bytes_by.as_slice() else { unreachable!() };
        assert!(compressed.iter().all(|bytes| bytes * 10 < none * 9), "{bytes_by:?}");
        let per_setting: Vec<&[String]> = answers.chunks(QUERIES.len() + 1).collect();
        assert!(per_setting.windows(2).all(|pair| pair[0] == pair[1]), "{per_setting:?}");
    });
}
