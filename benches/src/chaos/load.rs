//! The clients: TPC-H, scans, lookups, and writes of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_data::sample::{QUERIES, TpchTable, query};
use tokio::task::JoinSet;

use super::ChaosArgs;
use super::log::{Log, Verdict};
use crate::answer::{Answer, FLOAT_TOLERANCE, Numbers};
use crate::client::{Client, ClientError};
use crate::cluster::Cluster;
use crate::oracle::{Expectation, Oracle};
use crate::report::say;
use crate::tpch_data::TpchData;

/// A write that is not acknowledged is sent again under its id for so long.
const WRITE_AGAIN_FOR: Duration = Duration::from_secs(60);
const SCAN: &str = "SELECT l_orderkey, l_linenumber, l_comment FROM lineitem";

pub(super) struct Load {
    cluster: Arc<Cluster>,
    log: Arc<Log>,
    expected: Vec<Expectation>,
    scanned: (i64, i64),
    orders: i64,
    lookups: Vec<(i64, i64)>,
    /// Rows of `chaos_rows` that were acknowledged, and the sum of their keys.
    acknowledged: AtomicI64,
    acknowledged_keys: AtomicI64,
    next_key: AtomicI64,
    copy: String,
}

impl Load {
    pub(super) async fn new(data: &TpchData, cluster: Arc<Cluster>, log: Arc<Log>) -> Result<Self> {
        let oracle = Oracle::new(2);
        for table in TpchTable::ALL {
            oracle.register_parquet(table.name(), &data.table_dir(table)).await?;
        }
        let mut expected = Vec::new();
        for number in 1..=QUERIES.len() {
            let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
            expected.push(oracle.expect(sql, Numbers::Exact).await?);
        }
        let numbers = async |sql: &str| -> Result<Vec<Vec<i64>>> {
            let (_, batches) = oracle.run(sql).await?;
            let mut rows = Vec::new();
            for batch in &batches {
                let columns: Vec<_> = batch
                    .columns()
                    .iter()
                    .map(|column| arrow::compute::cast(column, &arrow::datatypes::DataType::Int64))
                    .collect::<Result<_, _>>()?;
                for row in 0..batch.num_rows() {
                    rows.push(
                        columns.iter().map(|column| column.as_primitive::<Int64Type>().value(row)).collect(),
                    );
                }
            }
            Ok(rows)
        };
        let scan = numbers("SELECT count(*), sum(l_orderkey) FROM lineitem").await?;
        let orders = numbers("SELECT count(*) FROM orders").await?;
        let lookups = numbers("SELECT o_orderkey, o_custkey FROM orders WHERE o_orderkey % 97 = 1").await?;
        let mut client = cluster.connect().await?;
        client
            .update("CREATE TABLE chaos_rows (k BIGINT, text VARCHAR) WITH (shards = 8, replicas = 3, shard_key = 'k')")
            .await?;
        Ok(Self {
            cluster,
            log,
            expected,
            scanned: (scan[0][0], scan[0][1]),
            orders: orders[0][0],
            lookups: lookups.into_iter().map(|row| (row[0], row[1])).collect(),
            acknowledged: AtomicI64::new(0),
            acknowledged_keys: AtomicI64::new(0),
            next_key: AtomicI64::new(1),
            copy: data.copy_statement(TpchTable::Orders).replacen("orders", "chaos_copy", 1),
        })
    }

    /// Starts all clients; they end when `is_over` says so.
    pub(super) async fn start(
        self: &Arc<Self>,
        args: &ChaosArgs,
        is_over: &Arc<AtomicBool>,
    ) -> Result<JoinSet<Result<()>>> {
        let mut tasks = JoinSet::new();
        for client in 0..args.clients as u64 {
            let (load, is_over) = (Arc::clone(self), Arc::clone(is_over));
            let mut random = StdRng::seed_from_u64(args.seed.wrapping_mul(1000).wrapping_add(client));
            tasks.spawn(async move {
                let mut client = load.cluster.connect().await?;
                while !is_over.load(Ordering::Relaxed) {
                    match random.random_range(0..10) {
                        0..5 => load.tpch(&mut client, &mut random).await?,
                        _ => load.look_up(&mut client, &mut random).await,
                    }
                }
                Ok(())
            });
        }
        let (load, over) = (Arc::clone(self), Arc::clone(is_over));
        tasks.spawn(async move {
            let mut client = load.cluster.connect().await?;
            client.update("SET shoal.task_bytes = '256KiB'").await?;
            while !over.load(Ordering::Relaxed) {
                load.scan(&mut client).await;
            }
            Ok(())
        });
        let (load, over) = (Arc::clone(self), Arc::clone(is_over));
        let mut random = StdRng::seed_from_u64(args.seed.wrapping_mul(1000).wrapping_add(999));
        tasks.spawn(async move {
            let mut client = load.cluster.connect().await?;
            while !over.load(Ordering::Relaxed) {
                match random.random_range(0..8) {
                    0 => load.copy_and_drop(&mut client).await,
                    _ => load.insert(&mut client, &mut random).await,
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        });
        Ok(tasks)
    }

    async fn tpch(&self, client: &mut Client, random: &mut StdRng) -> Result<()> {
        let number = random.random_range(1..=self.expected.len());
        let is_spread = random.random_bool(0.7);
        let bytes = if is_spread { "64KiB" } else { "24MiB" };
        client.update(&format!("SET shoal.task_bytes = '{bytes}'")).await?;
        let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
        let began = Instant::now();
        let outcome = match client.query_with_schema(sql).await {
            Err(error) => Err((Verdict::Failed, error.to_string())),
            Ok((schema, batches)) => {
                let expected = &self.expected[number - 1];
                let answer = Answer::new(&schema, &batches, Numbers::Exact)?;
                expected
                    .answer
                    .compare(&answer, expected.order.as_deref(), FLOAT_TOLERANCE)
                    .map_err(|difference| (Verdict::Wrong, difference.to_string()))
            }
        };
        self.log.answer("tpch", &format!("q{number} in tasks of {bytes}"), began, outcome);
        Ok(())
    }

    async fn look_up(&self, client: &mut Client, random: &mut StdRng) {
        let (key, customer) = self.lookups[random.random_range(0..self.lookups.len())];
        let began = Instant::now();
        let outcome =
            match client.number(&format!("SELECT o_custkey FROM orders WHERE o_orderkey = {key}")).await {
                Err(error) => Err((Verdict::Failed, error.to_string())),
                Ok(found) if found == customer => Ok(()),
                Ok(found) => Err((Verdict::Wrong, format!("{found} instead of {customer}"))),
            };
        self.log.answer("lookup", &key.to_string(), began, outcome);
    }

    async fn scan(&self, client: &mut Client) {
        let began = Instant::now();
        let outcome = match scanned(client).await {
            Err(error) => Err((Verdict::Failed, error.to_string())),
            Ok(scanned) if scanned == self.scanned => Ok(()),
            Ok(scanned) => Err((Verdict::Wrong, format!("{scanned:?} instead of {:?}", self.scanned))),
        };
        self.log.answer("scan", "lineitem", began, outcome);
    }

    async fn insert(&self, client: &mut Client, random: &mut StdRng) {
        let is_select = random.random_bool(0.3);
        let rows = random.random_range(1..if is_select { 20_000 } else { 200 });
        let first = self.next_key.fetch_add(rows, Ordering::Relaxed);
        let sql = if is_select {
            let last = first + rows - 1;
            format!(
                "INSERT INTO chaos_rows SELECT value, 'row ' || value FROM generate_series({first}, {last})"
            )
        } else {
            let values: Vec<String> =
                (first..first + rows).map(|key| format!("({key}, 'row {key}')")).collect();
            format!("INSERT INTO chaos_rows VALUES {}", values.join(", "))
        };
        let began = Instant::now();
        let outcome = match write(client, &sql, &format!("chaos-{first}")).await {
            Ok(changed) if changed == rows => {
                self.acknowledged.fetch_add(rows, Ordering::Relaxed);
                self.acknowledged_keys.fetch_add((first..first + rows).sum(), Ordering::Relaxed);
                Ok(())
            }
            Ok(changed) => Err((Verdict::Wrong, format!("{changed} rows instead of {rows}"))),
            Err(error) => Err((Verdict::Failed, error.to_string())),
        };
        let form = if is_select { "SELECT" } else { "VALUES" };
        self.log.answer("insert", &format!("{rows} rows of {form}"), began, outcome);
    }

    async fn copy_and_drop(&self, client: &mut Client) {
        let began = Instant::now();
        let outcome = self.copied(client).await;
        self.log.answer("copy", "orders", began, outcome);
    }

    async fn copied(&self, client: &mut Client) -> Result<(), (Verdict, String)> {
        let failed = |error: ClientError| (Verdict::Failed, error.to_string());
        client
            .update(&TpchTable::Orders.create_statement(4, Some(3)).replacen("orders", "chaos_copy", 1))
            .await
            .map_err(failed)?;
        let rows =
            write(client, &self.copy, &format!("copy-{:x}", rand::random::<u64>())).await.map_err(failed)?;
        let count = client.number("SELECT count(*) FROM chaos_copy").await.map_err(failed)?;
        client.update("DROP TABLE chaos_copy").await.map_err(failed)?;
        if (rows, count) != (self.orders, self.orders) {
            return Err((
                Verdict::Wrong,
                format!("{rows} said and {count} found instead of {}", self.orders),
            ));
        }
        Ok(())
    }

    /// How many acknowledged rows are not there, or are there twice.
    pub(super) async fn count_rows(&self) -> Result<i64> {
        let mut client = self.cluster.connect().await?;
        let rows = client.number("SELECT count(*) FROM chaos_rows").await?;
        let distinct = client.number("SELECT count(DISTINCT k) FROM chaos_rows").await?;
        let keys = client.number("SELECT coalesce(sum(k), 0) FROM chaos_rows").await?;
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let acknowledged_keys = self.acknowledged_keys.load(Ordering::Relaxed);
        say(format!("{acknowledged} rows acknowledged, {rows} found, {distinct} of them distinct"));
        let mut lost = (acknowledged - distinct).abs() + (rows - distinct);
        if lost == 0 && keys != acknowledged_keys {
            lost = 1;
        }
        Ok(lost)
    }
}

/// Rows and the sum of their keys, as they stream.
async fn scanned(client: &mut Client) -> Result<(i64, i64), ClientError> {
    let mut stream = client.stream(SCAN).await?;
    let (mut rows, mut keys) = (0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows() as i64;
        keys += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    Ok((rows, keys))
}

/// A write under an id: what is not acknowledged is sent again, and happens
/// once.
async fn write(client: &mut Client, sql: &str, id: &str) -> Result<i64, ClientError> {
    let began = Instant::now();
    loop {
        client.update(&format!("SET shoal.write_id = '{id}'")).await?;
        match client.update(sql).await {
            Err(_) if began.elapsed() < WRITE_AGAIN_FOR => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            outcome => return outcome,
        }
    }
}
