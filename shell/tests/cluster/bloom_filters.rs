//! Bloom filters of segments rule out row groups, also after a compaction, and change no answer.

use shoal_benches::answer::Numbers;
use shoal_benches::{Client, Oracle};

use crate::fixture::{session, shared};

const TABLES: [(&str, &str); 2] = [("with_filters", ", bloom_filters = 'k, s'"), ("without", "")];
/// Each insert has keys over all the range, so that bounds rule out nothing.
const INSERTS: u32 = 3;

/// Conditions, and whether few row groups can have such rows.
const CONDITIONS: [(&str, bool); 8] = [
    ("k = 7919", true),
    ("s = 'text 15838'", true),
    ("k IN (7919, 15838)", true),
    ("k = 7919 AND s LIKE 'text%'", true),
    ("k = 500001 AND id > 0", true),
    ("k > 500000", false),
    ("s LIKE '%99'", false),
    ("id % 1000 = 7", false),
];

/// Row groups that Bloom filters ruled out.
fn ruled_out(explained: &str) -> usize {
    let counts = explained.split("row_groups_pruned_bloom_filter=").skip(1).map(|rest| {
        let (total, rest) = rest.split_once(" total → ").unwrap_or_default();
        let (matched, _) = rest.split_once(" matched").unwrap_or_default();
        let number = |text: &str| text.trim().parse::<usize>().unwrap_or_default();
        number(total).saturating_sub(number(matched))
    });
    counts.sum()
}

async fn compare(client: &mut Client, oracle: &Oracle, failures: &mut Vec<String>) {
    for (table, with) in TABLES {
        for (condition, rules_out) in CONDITIONS {
            for sql in [
                format!("SELECT id, k, s FROM bloomed.{table} WHERE {condition}"),
                format!("SELECT count(*), sum(id) FROM bloomed.{table} WHERE {condition}"),
            ] {
                let expected = oracle.expect(&sql, Numbers::Exact).await.unwrap();
                let (schema, batches) = client.query_with_schema(&sql).await.unwrap();
                if let Err(difference) = expected.check(&schema, &batches) {
                    failures.push(format!("{sql}: {difference}"));
                }
                let ran = client.text(&format!("EXPLAIN ANALYZE VERBOSE {sql}")).await.unwrap();
                if (ruled_out(&ran) > 0) != (rules_out && !with.is_empty()) {
                    failures.push(format!("{sql}: row groups are ruled out, or none\n{ran}"));
                }
            }
        }
    }
}

fn check(workers: usize) {
    let cluster = shared(workers);
    let _logs = cluster.show_logs_on_failure();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let oracle = Oracle::new(4);
        let mut client = session(cluster).await;
        let mut setup = vec!["CREATE SCHEMA bloomed".to_owned()];
        for (table, with) in TABLES {
            setup.push(format!(
                "CREATE TABLE bloomed.{table} (id BIGINT, k BIGINT, s VARCHAR) \
                 WITH (shards = 4, shard_key = 'id', sort_key = 'id'{with})"
            ));
            for insert in 0..INSERTS {
                setup.push(format!(
                    "INSERT INTO bloomed.{table} SELECT value, value * 7919 % 1000003, \
                     'text ' || (value * 15838 % 1000003) \
                     FROM generate_series(1, 30000) WHERE value % {INSERTS} = {insert}"
                ));
            }
        }
        for sql in &setup {
            client.update(sql).await.unwrap();
            oracle.run(sql).await.unwrap();
        }
        let mut failures = Vec::new();
        compare(&mut client, &oracle, &mut failures).await;
        for (table, _) in TABLES {
            client.update(&format!("OPTIMIZE TABLE bloomed.{table}")).await.unwrap();
        }
        compare(&mut client, &oracle, &mut failures).await;
        client.update("DROP SCHEMA bloomed CASCADE").await.unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

#[test]
fn bloom_filters_rule_out_row_groups_and_answers_stay_on_one_worker() {
    check(1);
}

#[test]
fn bloom_filters_rule_out_row_groups_and_answers_stay_on_two_workers() {
    check(2);
}

#[test]
fn bloom_filters_rule_out_row_groups_and_answers_stay_on_four_workers() {
    check(4);
}
