//! A table that was compacted answers as before, and as plain DataFusion does.

use shoal_benches::answer::{FLOAT_TOLERANCE, Numbers};
use shoal_benches::{Answer, Oracle};

use super::*;

/// What is asked of a cluster, and of plain DataFusion.
const QUESTIONS: [&str; 8] = [
    "SELECT count(*), sum(k), min(k), max(k), count(DISTINCT w), min(s), max(s) FROM many",
    "SELECT w, count(*), count(s), count(f), sum(d) FROM many GROUP BY w ORDER BY w",
    "SELECT k, w, s, d FROM many ORDER BY k LIMIT 100",
    "SELECT s, k FROM many ORDER BY s, k LIMIT 100",
    "SELECT count(*) FROM many WHERE f > 1000000",
    "SELECT count(*) FROM many WHERE s IS NULL AND d IS NULL",
    "SELECT k, w, s, f, d FROM many WHERE k BETWEEN 7000 AND 9000 ORDER BY k",
    "SELECT a.k, b.w FROM many a JOIN many b ON a.k = b.k + 1 WHERE a.s = 'row 3' ORDER BY 1",
];

/// The questions that were answered otherwise than by plain DataFusion.
async fn differences(client: &mut Client, oracle: &Oracle, table: &str) -> Vec<String> {
    let mut differences = Vec::new();
    for question in QUESTIONS {
        let sql = question.replace("many", table);
        let expected = oracle.expect(&sql, Numbers::Exact).await.unwrap();
        let (schema, batches) = in_time(client.query_with_schema(&sql)).await.unwrap();
        let answer = Answer::new(&schema, &batches, Numbers::Exact).unwrap();
        let compared = expected.answer.compare(&answer, expected.order.as_deref(), FLOAT_TOLERANCE);
        differences.extend(compared.err().map(|difference| format!("{sql}: {difference}")));
    }
    differences
}

#[test]
fn a_table_that_is_optimized_answers_as_before_from_one_segment_a_shard() {
    const WRITES: i64 = 9;
    let obedient = when_asked(1);
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let oracle = Oracle::new(2);
        let mut client = session(cluster).await;
        for (table, layout) in LAYOUTS {
            oracle.run(&create(table, layout)).await.unwrap();
            client.update(&create(table, layout)).await.unwrap();
            for write in 0..WRITES {
                oracle.run(&insert(table, write)).await.unwrap();
                client.update(&insert(table, write)).await.unwrap();
            }
            assert_eq!(differences(&mut client, &oracle, table).await, Vec::<String>::new());
        }
        assert!(most_segments(&mut client).await >= 3, "there is nothing to compact");
        let rows_of_shards =
            "SELECT \"table\" || ' ' || shard || ' ' || \"rows\" FROM system.shards ORDER BY 1";
        let rows_before = client.text(rows_of_shards).await.unwrap();
        for (table, _) in LAYOUTS {
            assert_eq!(in_time(client.update(&format!("OPTIMIZE TABLE public.{table}"))).await.unwrap(), 0);
            let notices = client.notices().await.unwrap();
            assert!(notices.len() == 1 && notices[0].contains(&format!("public.{table},")), "{notices:?}");
            assert_eq!(differences(&mut client, &oracle, table).await, Vec::<String>::new());
        }
        assert_eq!(most_segments(&mut client).await, 1);
        // Whatever deals rows to shards has no part in it.
        assert_eq!(client.text(rows_of_shards).await.unwrap(), rows_before);
        client.update("OPTIMIZE TABLE many").await.unwrap();
        assert_eq!(client.notices().await.unwrap(), ["nothing to compact in public.many"]);
        wait_until_settled(cluster, 3).await;
        for (table, _) in LAYOUTS {
            assert_eq!(differences(&mut client, &oracle, table).await, Vec::<String>::new());
        }

        client.update("CREATE VIEW seen AS SELECT k FROM many").await.unwrap();
        for (sql, why) in [
            ("OPTIMIZE TABLE seen", "is a view"),
            ("OPTIMIZE TABLE mny", "Did you mean `public.many`"),
            ("OPTIMIZE TABLE nowhere.many", "not found"),
        ] {
            let error = client.update(sql).await.unwrap_err();
            assert!(error.message.contains(why), "{sql}: {error}");
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
