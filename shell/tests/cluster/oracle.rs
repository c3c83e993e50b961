//! All 22 queries of TPC-H give what plain DataFusion gives over the same
//! rows, on 1, 2 and 4 workers; with 2 and more the plans are distributed.

use shoal_benches::answer::{FLOAT_TOLERANCE, Numbers};
use shoal_benches::tpch_data::{TpchData, data_root};
use shoal_benches::{Answer, Cluster, Oracle};
use shoal_data::sample::{QUERIES, TpchTable};

use crate::fixture::{is_distributed, options};

const SCALE: f64 = 0.02;
const SHARDS: u32 = 8;

#[test]
fn tpch_answers_equal_datafusion_on_one_worker() {
    check(1, 2);
}

#[test]
fn tpch_answers_equal_datafusion_on_two_workers() {
    check(2, 1);
}

#[test]
fn tpch_answers_equal_datafusion_on_four_workers() {
    check(4, 1);
}

#[test]
fn tpch_answers_equal_datafusion_on_four_workers_of_two_threads() {
    check(4, 2);
}

fn check(workers: usize, threads: usize) {
    let data = TpchData::ensure(&data_root(), SCALE).unwrap();
    let mut options = options(workers);
    options.threads = threads;
    options.import_roots = vec![data.dir().to_owned()];
    let cluster = Cluster::start(&options).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let failures = runtime.block_on(differences(&cluster, &data, workers));
    assert!(failures.is_empty(), "{} of 22 queries failed:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}

async fn differences(cluster: &Cluster, data: &TpchData, workers: usize) -> Vec<String> {
    let oracle = Oracle::new(4);
    let mut client = cluster.connect().await.unwrap();
    // Little data would go to one worker whole.
    client.update("SET shoal.task_bytes = 1").await.unwrap();
    for table in TpchTable::ALL {
        oracle.register_parquet(table.name(), &data.table_dir(table)).await.unwrap();
        client.update(&table.create_statement(SHARDS, None)).await.unwrap();
        let rows = client.update(&data.copy_statement(table)).await.unwrap();
        let written = client.number(&format!("SELECT count(*) FROM {table}")).await.unwrap();
        assert_eq!(rows, written, "{table}");
    }
    let mut failures = Vec::new();
    for (index, sql) in QUERIES.iter().enumerate() {
        let number = index + 1;
        let expected = oracle.expect(sql, Numbers::Exact).await.unwrap();
        match client.query_with_schema(sql).await {
            Err(error) => failures.push(format!("q{number}: {error}")),
            Ok((schema, batches)) => {
                let answer = Answer::new(&schema, &batches, Numbers::Exact).unwrap();
                if let Err(difference) =
                    expected.answer.compare(&answer, expected.order.as_deref(), FLOAT_TOLERANCE)
                {
                    failures.push(format!("q{number}: {difference}"));
                }
            }
        }
        if workers >= 2 {
            match client.text(&format!("EXPLAIN {sql}")).await {
                Err(error) => failures.push(format!("EXPLAIN of q{number}: {error}")),
                Ok(plan) if !is_distributed(&plan) => {
                    failures.push(format!("q{number} is not distributed:\n{plan}"));
                }
                Ok(_) => {}
            }
        }
    }
    failures
}
