//! The clients: TPC-H, scans, lookups, and writes of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
use super::asker::Asker;
use super::coordinators::Coordinators;
use super::log::{Log, Verdict};
use super::run::Run;
use crate::answer::{Answer, FLOAT_TOLERANCE, Numbers};
use crate::client::{Client, ClientError};
use crate::oracle::{Expectation, Oracle};
use crate::report::say;
use crate::tpch_data::TpchData;

/// A write that is not acknowledged is sent again under its id for so long.
const WRITE_AGAIN_FOR: Duration = Duration::from_secs(60);
const CREATE_ROWS: &str = "CREATE TABLE chaos_rows (k BIGINT, text VARCHAR) \
     WITH (shards = 8, replicas = 3, shard_key = 'k')";
const SCAN: &str = "SELECT l_orderkey, l_linenumber, l_comment FROM lineitem";

pub(super) struct Load {
    coordinators: Arc<Coordinators>,
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
    pub(super) async fn new(data: &TpchData, coordinators: Arc<Coordinators>, log: Arc<Log>) -> Result<Self> {
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
        Client::connect(coordinators.url(coordinators.seat(0))).await?.update(CREATE_ROWS).await?;
        Ok(Self {
            coordinators,
            log,
            expected,
            scanned: (scan[0][0], scan[0][1]),
            orders: orders[0][0],
            lookups: lookups.into_iter().map(|row| (row[0], row[1])).collect(),
            acknowledged: AtomicI64::new(0),
            acknowledged_keys: AtomicI64::new(0),
            next_key: AtomicI64::new(1),
            copy: data.copy_statement(TpchTable::Orders),
        })
    }

    /// The client of this number; see [`Asker::new`].
    pub(super) fn asker(&self, number: usize) -> Asker {
        Asker::new(Arc::clone(&self.coordinators), Arc::clone(&self.log), number)
    }

    /// Starts all clients; they end when the run is over.
    pub(super) fn start(self: &Arc<Self>, args: &ChaosArgs, run: &Arc<Run>) -> JoinSet<Result<()>> {
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for number in 0..args.clients {
            let (load, run) = (Arc::clone(self), Arc::clone(run));
            let seed = args.seed.wrapping_mul(1000).wrapping_add(number as u64);
            let mut random = StdRng::seed_from_u64(seed);
            tasks.spawn(async move {
                let mut asker = load.asker(number);
                while !run.is_over() {
                    match random.random_range(0..10) {
                        0..5 => load.tpch(&mut asker, &mut random).await?,
                        _ => load.look_up(&mut asker, &mut random).await,
                    }
                }
                Ok(())
            });
        }
        let mut asker = self.asker(args.clients);
        tasks.spawn({
            let (load, run) = (Arc::clone(self), Arc::clone(run));
            async move {
                asker.set("SET shoal.task_bytes = '256KiB'").await?;
                while !run.is_over() {
                    load.scan(&mut asker).await;
                }
                Ok(())
            }
        });
        let mut asker = self.asker(args.clients + 1);
        let mut random = StdRng::seed_from_u64(args.seed.wrapping_mul(1000).wrapping_add(999));
        tasks.spawn({
            let (load, run) = (Arc::clone(self), Arc::clone(run));
            async move {
                while !run.is_over() {
                    match random.random_range(0..8) {
                        0 => load.copy_and_drop(&mut asker).await,
                        _ => load.insert(&mut asker, &mut random).await,
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            }
        });
        tasks
    }

    async fn tpch(&self, asker: &mut Asker, random: &mut StdRng) -> Result<()> {
        let number = random.random_range(1..=self.expected.len());
        let is_spread = random.random_bool(0.7);
        let bytes = if is_spread { "64KiB" } else { "24MiB" };
        let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
        let what = format!("q{number} in tasks of {bytes}");
        let is_set = asker.set(&format!("SET shoal.task_bytes = '{bytes}'")).await;
        let began = Instant::now();
        let asking = async {
            is_set?;
            let statement = move |mut client: Client| async move { client.query_with_schema(sql).await };
            asker.ask("tpch", &what, statement).await
        };
        let outcome = match asking.await {
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
        self.log.answer("tpch", &what, began, outcome);
        Ok(())
    }

    async fn look_up(&self, asker: &mut Asker, random: &mut StdRng) {
        let (key, customer) = self.lookups[random.random_range(0..self.lookups.len())];
        let what = key.to_string();
        let sql = format!("SELECT o_custkey FROM orders WHERE o_orderkey = {key}");
        let began = Instant::now();
        let outcome = match asker.number("lookup", &what, &sql).await {
            Err(error) => Err((Verdict::Failed, error.to_string())),
            Ok(found) if found == customer => Ok(()),
            Ok(found) => Err((Verdict::Wrong, format!("{found} instead of {customer}"))),
        };
        self.log.answer("lookup", &what, began, outcome);
    }

    async fn scan(&self, asker: &mut Asker) {
        let began = Instant::now();
        let asking =
            asker.ask("scan", "lineitem", |mut client: Client| async move { scanned(&mut client).await });
        let outcome = match asking.await {
            Err(error) => Err((Verdict::Failed, error.to_string())),
            Ok(scanned) if scanned == self.scanned => Ok(()),
            Ok(scanned) => Err((Verdict::Wrong, format!("{scanned:?} instead of {:?}", self.scanned))),
        };
        self.log.answer("scan", "lineitem", began, outcome);
    }

    async fn insert(&self, asker: &mut Asker, random: &mut StdRng) {
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
        let outcome = match self.write(asker, "insert", &sql, &format!("chaos-{first}")).await {
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

    async fn copy_and_drop(&self, asker: &mut Asker) {
        let began = Instant::now();
        let outcome = self.copied(asker).await;
        self.log.answer("copy", "orders", began, outcome);
    }

    async fn copied(&self, asker: &mut Asker) -> Result<(), (Verdict, String)> {
        let failed = |error: ClientError| (Verdict::Failed, error.to_string());
        let create = TpchTable::Orders.create_statement(4, Some(3));
        // A try that failed may yet be carried out: so another one finds done
        // what it does, and has nothing done to its table later.
        let (table, if_not_exists, if_exists) = if self.coordinators.are_several() {
            (format!("chaos_copy_{}", asker.failures()), "IF NOT EXISTS ", "IF EXISTS ")
        } else {
            ("chaos_copy".to_owned(), "", "")
        };
        let create = create.replacen("orders", &format!("{if_not_exists}{table}"), 1);
        let copy = self.copy.replacen("orders", &table, 1);
        let id = format!("copy-{:x}", rand::random::<u64>());
        asker.update("copy", "CREATE TABLE", &create).await.map_err(failed)?;
        let rows = self.write(asker, "copy", &copy, &id).await.map_err(failed)?;
        let count_rows = format!("SELECT count(*) FROM {table}");
        let count = asker.number("copy", "SELECT", &count_rows).await.map_err(failed)?;
        let drop_table = format!("DROP TABLE {if_exists}{table}");
        asker.update("copy", "DROP TABLE", &drop_table).await.map_err(failed)?;
        if (rows, count) != (self.orders, self.orders) {
            return Err((
                Verdict::Wrong,
                format!("{rows} said and {count} found instead of {}", self.orders),
            ));
        }
        Ok(())
    }

    /// A write under an id: what is not acknowledged is sent again, and happens
    /// once.
    async fn write(
        &self,
        asker: &mut Asker,
        kind: &'static str,
        sql: &str,
        id: &str,
    ) -> Result<i64, ClientError> {
        let began = Instant::now();
        let set_id = format!("SET shoal.write_id = '{id}'");
        let set_id = set_id.as_str();
        let statement = move |mut client: Client| async move {
            client.update(set_id).await?;
            client.update(sql).await
        };
        loop {
            match asker.ask(kind, id, statement).await {
                Err(error) if began.elapsed() < WRITE_AGAIN_FOR => {
                    self.log.note(&format!("write {id} is sent again: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// How many acknowledged rows are not there, or are there twice, as the
    /// coordinator says that misses most.
    pub(super) async fn count_rows(&self) -> Result<i64> {
        let mut lost = 0;
        for (name, url) in self.coordinators.all() {
            let whom = if self.coordinators.are_several() { format!("{name}: ") } else { String::new() };
            lost = self.count_rows_at(url, &whom).await?.max(lost);
        }
        Ok(lost)
    }

    async fn count_rows_at(&self, url: &str, whom: &str) -> Result<i64> {
        let mut client = Client::connect(url).await?;
        let rows = client.number("SELECT count(*) FROM chaos_rows").await?;
        let distinct = client.number("SELECT count(DISTINCT k) FROM chaos_rows").await?;
        let keys = client.number("SELECT coalesce(sum(k), 0) FROM chaos_rows").await?;
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let acknowledged_keys = self.acknowledged_keys.load(Ordering::Relaxed);
        say(format!("{whom}{acknowledged} rows acknowledged, {rows} found, {distinct} of them distinct"));
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
