//! Bad input: a clear error, nothing lost, the process lives. Files are in
//! `bad_files`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use shoal_benches::process::{peak_bytes, resident_bytes};
use shoal_benches::{Client, Cluster};

use crate::fixture::shared;

/// Runs a test with a session, and checks afterwards that every node lives
/// and answers.
pub(crate) fn with_client(cluster: &Cluster, test: impl AsyncFnOnce(&mut Client)) {
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut client = cluster.connect().await.unwrap();
        test(&mut client).await;
        let mut other = cluster.connect().await.unwrap();
        assert_eq!(other.number("SELECT 40 + 2").await.unwrap(), 42);
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

/// The statement fails, and its message has each of these parts in it.
pub(crate) async fn fails(client: &mut Client, sql: &str, parts: &[&str]) {
    let shown: String = sql.chars().take(200).collect();
    let error = match client.run(sql).await {
        Err(error) => error,
        Ok(_) => panic!("this should fail: {shown}"),
    };
    let message = error.message.to_lowercase();
    for part in parts {
        assert!(message.contains(&part.to_lowercase()), "{shown}\nno `{part}` in: {}", error.message);
    }
    assert!(!message.contains("panic"), "{shown}\n{}", error.message);
    assert!(error.message.len() < 4_000, "a message of {} bytes: {shown}", error.message.len());
}

#[test]
fn misspelt_names_get_a_hint() {
    with_client(shared(2), async |client| {
        client.update("CREATE TABLE hint_customers (customer_id INT, full_name VARCHAR)").await.unwrap();
        fails(client, "SELECT * FROM hint_custmers", &["hint_custmers", "hint_customers"]).await;
        fails(client, "SELECT full_nam FROM hint_customers", &["full_nam", "full_name"]).await;
        fails(client, "INSERT INTO hint_customer VALUES (1, 'x')", &["hint_customer", "hint_customers"])
            .await;
        fails(client, "DROP TABLE hint_custmers", &["hint_custmers"]).await;
        fails(client, "SELECT cuont(*) FROM hint_customers", &["cuont", "did you mean"]).await;
        fails(client, "SELECT * FROM no_such_schema.t", &["no_such_schema"]).await;
        client.update("DROP TABLE hint_customers").await.unwrap();
    });
}

#[test]
fn wrong_layouts_are_refused_by_name() {
    with_client(shared(2), async |client| {
        for (sql, parts) in [
            ("CREATE TABLE lay (a INT) WITH (shards = 'many')", &["shards", "many"] as &[&str]),
            ("CREATE TABLE lay (a INT) WITH (shards = 0)", &["shards", "0"]),
            ("CREATE TABLE lay (a INT) WITH (shards = -1)", &["shards", "-1"]),
            ("CREATE TABLE lay (a INT) WITH (shards = 1000000)", &["shards", "1000000"]),
            ("CREATE TABLE lay (a INT) WITH (replicas = 0)", &["replicas", "0"]),
            ("CREATE TABLE lay (a INT) WITH (replicas = 'some')", &["replicas", "some"]),
            ("CREATE TABLE lay (a INT) WITH (shard = 4)", &["shard", "shards"]),
            ("CREATE TABLE lay (a INT) WITH (shard_key = 'b')", &["shard_key", "b"]),
            ("CREATE TABLE lay (a INT) WITH (sort_key = 'b')", &["sort_key", "b"]),
            ("CREATE TABLE lay (a INT[]) WITH (shard_key = 'a')", &["shard_key", "a"]),
            ("CREATE TABLE lay (a DOUBLE) WITH (shard_key = 'a')", &["shard_key", "a"]),
        ] {
            fails(client, sql, parts).await;
        }
        // Only a value that is missing altogether is a matter of syntax.
        fails(client, "CREATE TABLE lay (a INT) WITH (shards)", &[]).await;
        let tables =
            client.number("SELECT count(*) FROM system.tables WHERE \"table\" = 'lay'").await.unwrap();
        assert_eq!(tables, 0);
    });
}

#[test]
fn more_replicas_than_workers_is_a_notice() {
    with_client(shared(2), async |client| {
        client.update("CREATE TABLE many (a INT) WITH (replicas = 5)").await.unwrap();
        let notices = client.notices().await.unwrap().join("\n");
        assert!(notices.contains("replica") && notices.contains('2'), "{notices}");
        client.update("INSERT INTO many VALUES (1), (2)").await.unwrap();
        assert_eq!(client.number("SELECT sum(a) FROM many").await.unwrap(), 3);
        client.update("DROP TABLE many").await.unwrap();
    });
}

#[test]
fn wrong_values_in_a_write_leave_nothing_behind() {
    with_client(shared(2), async |client| {
        client.update("CREATE TABLE strict (k INT NOT NULL, d DECIMAL(5,2))").await.unwrap();
        fails(client, "INSERT INTO strict VALUES (1, 1), (NULL, 2)", &["k"]).await;
        fails(client, "INSERT INTO strict VALUES (1, 1), (2, 123456.78)", &[]).await;
        fails(client, "INSERT INTO strict VALUES (3000000000, 1)", &[]).await;
        fails(client, "INSERT INTO strict VALUES ('x', 1)", &[]).await;
        fails(client, "INSERT INTO strict SELECT CASE WHEN value = 90000 THEN NULL ELSE value END, 1 FROM generate_series(1, 100000)", &[]).await;
        fails(
            client,
            "INSERT INTO strict SELECT 1 / (value - 50000), 1 FROM generate_series(1, 100000)",
            &["zero"],
        )
        .await;
        assert_eq!(client.number("SELECT count(*) FROM strict").await.unwrap(), 0);
        client.update("DROP TABLE strict").await.unwrap();
    });
}

#[test]
fn huge_statements_are_errors_or_answers_and_never_crashes() {
    with_client(shared(2), async |client| {
        let deep = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
        fails(client, &deep, &[]).await;
        let nested = format!("SELECT {}1{}", "abs(".repeat(5_000), ")".repeat(5_000));
        fails(client, &nested, &[]).await;
        let subqueries =
            format!("SELECT * FROM {}(SELECT 1){}", "(SELECT * FROM ".repeat(2_000), ")".repeat(2_000));
        fails(client, &subqueries, &[]).await;
        let sum = format!("SELECT 1{}", "+1".repeat(20_000));
        fails(client, &sum, &[]).await;
        let ors = format!("SELECT 1 WHERE 1 = 2{}", " OR 1 = 2".repeat(20_000));
        fails(client, &ors, &[]).await;
        let not = format!("SELECT {} true", "NOT ".repeat(20_000));
        fails(client, &not, &[]).await;
        // 10 MB of SQL, most of it one text; and 10 MB of a list.
        let text = format!("SELECT length('{}')", "x".repeat(10 << 20));
        match client.run(&text).await {
            Ok(_) => {}
            Err(error) => assert!(error.message.len() < 4_000, "{} bytes", error.message.len()),
        }
        let list = format!("SELECT 1 WHERE 1 IN ({})", vec!["2"; 2 << 20].join(","));
        match client.run(&list).await {
            Ok(_) => {}
            Err(error) => assert!(error.message.len() < 4_000, "{} bytes", error.message.len()),
        }
        let garbage = "\u{0}\u{1}';--\"(".repeat(1 << 10);
        fails(client, &garbage, &[]).await;
    });
}

#[test]
fn a_row_of_20_mb_is_written_and_read() {
    with_client(shared(2), async |client| {
        client
            .update("CREATE TABLE wide (k INT NOT NULL, t VARCHAR) WITH (shards = 2, shard_key = 'k')")
            .await
            .unwrap();
        client.update("INSERT INTO wide SELECT 1, repeat('wide row ', 2500000)").await.unwrap();
        client.update("INSERT INTO wide VALUES (2, 'narrow')").await.unwrap();
        assert_eq!(client.number("SELECT max(length(t)) FROM wide").await.unwrap(), 22_500_000);
        let batches = client.query("SELECT k, t FROM wide").await.unwrap();
        let bytes: usize = batches.iter().map(|batch| batch.get_array_memory_size()).sum();
        assert!(bytes > 20_000_000, "{bytes}");
        // The row goes through an exchange, too.
        let sql = "SELECT t, count(*) FROM wide GROUP BY t ORDER BY length(t) DESC";
        let rows: usize = client.query(sql).await.unwrap().iter().map(|batch| batch.num_rows()).sum();
        assert_eq!(rows, 2);
        client.update("DROP TABLE wide").await.unwrap();
    });
}

#[test]
fn a_client_that_reads_nothing_costs_bounded_memory() {
    // What other tests do in a shared one would count.
    let cluster = &crate::fixture::own(2);
    with_client(cluster, async |client| {
        const ROWS: i64 = 4_000_000;
        client
            .update("CREATE TABLE unread (k BIGINT NOT NULL, t VARCHAR) WITH (shards = 4, shard_key = 'k')")
            .await
            .unwrap();
        client
            .update(&format!(
                "INSERT INTO unread SELECT value, 'a text of some length, ' || value FROM generate_series(1, {ROWS})"
            ))
            .await
            .unwrap();
        let coordinator = cluster.pid("coordinator").unwrap();
        let before = resident_bytes(coordinator);
        shoal_benches::process::reset_peak(coordinator).unwrap();
        // The result is some 200 MB; nobody reads it.
        let mut idle = cluster.connect().await.unwrap();
        let mut stream = idle.stream("SELECT * FROM unread").await.unwrap();
        let first = stream.try_next().await.unwrap();
        assert!(first.is_some());
        // Meanwhile others are served.
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert_eq!(client.number("SELECT count(*) FROM unread").await.unwrap(), ROWS);
        }
        let grown = peak_bytes(coordinator).saturating_sub(before);
        assert!(grown < 192 << 20, "the coordinator grew by {} MiB", grown >> 20);
        drop(stream);
        drop(idle);
        // What the dropped query held is given up within some seconds.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let running = client
                .number("SELECT count(*) FROM system.queries WHERE state = 'running' AND sql LIKE 'SELECT * FROM unread'")
                .await
                .unwrap();
            if running == 0 {
                break;
            }
            assert!(Instant::now() < deadline, "the query of a client that is gone still runs");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.update("DROP TABLE unread").await.unwrap();
    });
}

#[test]
fn random_bytes_to_every_port_harm_nobody() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        client.update("CREATE TABLE calm (k INT)").await.unwrap();
        client.update("INSERT INTO calm VALUES (1), (2), (3)").await.unwrap();
        let mut random = StdRng::seed_from_u64(20);
        for name in cluster.node_names() {
            let address = cluster.address(&name).unwrap();
            for length in [1, 9, 24, 1_000, 100_000] {
                // A good HTTP/2 preface makes the server parse what follows.
                for preface in
                    [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"]
                {
                    let mut bytes = vec![0; length];
                    random.fill_bytes(&mut bytes);
                    send(address, preface, &bytes);
                }
            }
        }
        assert_eq!(client.number("SELECT sum(k) FROM calm").await.unwrap(), 6);
        client.update("DROP TABLE calm").await.unwrap();
    });
}

/// Sends bytes; the server may close whenever it has seen enough.
fn send(address: std::net::SocketAddr, preface: &[u8], bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let _closed = stream.write_all(preface).and_then(|()| stream.write_all(bytes));
    let _ignored = stream.read(&mut [0; 1024]);
}

#[test]
fn a_query_over_its_memory_limit_fails_alone() {
    let mut options = crate::fixture::options(2);
    options.worker_args = vec!["--memory-limit".into(), "8MiB".into()];
    let cluster = Cluster::start(&options).unwrap();
    with_client(&cluster, async |client| {
        client
            .update("CREATE TABLE heavy (k BIGINT NOT NULL) WITH (shards = 4, shard_key = 'k')")
            .await
            .unwrap();
        client.update("INSERT INTO heavy SELECT value FROM generate_series(1, 1000000)").await.unwrap();
        // Arrays of all rows cannot spill.
        let sql = "SELECT cardinality(array_agg('a rather long text of no use ' || k)) FROM heavy";
        let error = client.query(sql).await.unwrap_err();
        assert_eq!(error.code, tonic::Code::ResourceExhausted, "{error}");
        assert!(error.message.to_lowercase().contains("memory"), "{error}");
        assert_eq!(client.number("SELECT count(*) FROM heavy").await.unwrap(), 1_000_000);
    });
}
