//! Queries that read few bytes, or one shard, and are no lookups: each asked by one
//! client in turn of Shoal and of single-process DataFusion.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::answer::Numbers;
use crate::client::Client;
use crate::oracle::Oracle;
use crate::report::percentile;

/// Each side answers so many times before it is timed, the first of which is compared.
const WARM_UP: usize = 10;
/// Each side is timed so many times at least, however short the time.
const TURNS_MIN: usize = 5;
/// Shoal's place among the sides; DataFusion has the other one.
const SHOAL: usize = 0;
const DATAFUSION: usize = 1;

/// What one query took at both.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SmallQuery {
    pub(super) name: &'static str,
    /// How often each was asked.
    turns: usize,
    p50_ms: f64,
    datafusion_p50_ms: f64,
    /// By how much Shoal's is more: less than 0 where it is less.
    pub(super) over_ms: f64,
}

impl SmallQuery {
    pub(super) fn new(name: &'static str, shoal_ms: &[f64], datafusion_ms: &[f64]) -> Self {
        let (p50_ms, datafusion_p50_ms) = (percentile(shoal_ms, 0.5), percentile(datafusion_ms, 0.5));
        Self { name, turns: shoal_ms.len(), p50_ms, datafusion_p50_ms, over_ms: p50_ms - datafusion_p50_ms }
    }

    /// For a person.
    pub(super) fn line(&self) -> String {
        format!(
            "{:>20}: p50 {:.2} ms, datafusion {:.2} ms, {:+.2} ms ({} turns)",
            self.name, self.p50_ms, self.datafusion_p50_ms, self.over_ms, self.turns
        )
    }
}

/// The one that takes most longer than at DataFusion; what is not a number is most.
pub(super) fn worst(queries: &[SmallQuery]) -> Option<&SmallQuery> {
    let over_ms = |query: &SmallQuery| if query.over_ms.is_nan() { f64::INFINITY } else { query.over_ms };
    queries.iter().max_by(|left, right| over_ms(left).total_cmp(&over_ms(right)))
}

/// The queries, by name; `order` is the key of one that exists.
fn queries(order: u64) -> [(&'static str, String); 5] {
    [
        ("nation_count", "SELECT count(*) FROM nation".to_owned()),
        (
            "suppliers_by_nation",
            "SELECT s_nationkey, count(*), sum(s_acctbal), max(s_acctbal) FROM supplier \
             GROUP BY s_nationkey ORDER BY s_nationkey"
                .to_owned(),
        ),
        (
            "suppliers_of_region",
            "SELECT n_name, count(*), sum(s_acctbal) FROM region \
             JOIN nation ON n_regionkey = r_regionkey JOIN supplier ON s_nationkey = n_nationkey \
             WHERE r_name = 'EUROPE' GROUP BY n_name ORDER BY n_name"
                .to_owned(),
        ),
        (
            "one_order",
            format!(
                "SELECT count(*), sum(l_quantity), sum(l_extendedprice * (1 - l_discount)), max(o_totalprice) \
                 FROM orders JOIN lineitem ON l_orderkey = o_orderkey WHERE o_orderkey = {order}"
            ),
        ),
        (
            "top_customers",
            "SELECT c_custkey, c_name, c_acctbal FROM customer ORDER BY c_acctbal DESC, c_custkey LIMIT 10"
                .to_owned(),
        ),
    ]
}

/// Asks each query for so many seconds.
///
/// # Errors
/// When one fails or is answered wrongly, by either.
pub(super) async fn measure(
    shoal_url: &str,
    datafusion_url: &str,
    oracle: &Oracle,
    order: u64,
    seconds: f64,
) -> Result<Vec<SmallQuery>> {
    let shoal = Client::connect(shoal_url).await.context("shoal")?;
    let datafusion = Client::connect(datafusion_url).await.context("datafusion")?;
    let mut sides = [shoal, datafusion];
    let mut measured = Vec::new();
    for (name, sql) in queries(order) {
        let expected = oracle.expect(&sql, Numbers::Exact).await.context(name)?;
        for (side, client) in ["shoal", "datafusion"].into_iter().zip(&mut sides) {
            let whose = || format!("{name} at {side}");
            let (schema, batches) = client.query_with_schema(&sql).await.with_context(whose)?;
            expected.check(&schema, &batches).with_context(whose)?;
            for _ in 1..WARM_UP {
                client.query(&sql).await.with_context(whose)?;
            }
        }
        let ms = timed(&mut sides, &sql, seconds).await.context(name)?;
        measured.push(SmallQuery::new(name, &ms[SHOAL], &ms[DATAFUSION]));
    }
    Ok(measured)
}

/// Milliseconds of each side, one after the other: each goes first every other time.
async fn timed(sides: &mut [Client; 2], sql: &str, seconds: f64) -> Result<[Vec<f64>; 2]> {
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    let mut ms = [Vec::new(), Vec::new()];
    let mut order = [SHOAL, DATAFUSION];
    while ms[SHOAL].len() < TURNS_MIN || Instant::now() < deadline {
        for side in order {
            let asked = Instant::now();
            sides[side].query(sql).await?;
            ms[side].push(asked.elapsed().as_secs_f64() * 1e3);
        }
        order.reverse();
    }
    Ok(ms)
}

#[cfg(test)]
mod tests {
    use arrow::record_batch::RecordBatch;
    use shoal_data::sample::TpchTable;

    use super::super::lookup::Keys;
    use super::*;
    use crate::tpch_data::TpchData;

    #[test]
    fn the_worst_is_the_one_that_is_most_over_and_not_the_slowest() {
        let slow = SmallQuery::new("slow", &[30.0, 31.0, 99.0], &[60.0, 60.0, 60.0]);
        let quick = SmallQuery::new("quick", &[3.0, 2.0, 9.0], &[1.0, 1.0, 5.0]);
        assert_eq!((slow.over_ms, quick.over_ms, quick.turns), (-29.0, 2.0, 3));
        assert_eq!(worst(&[slow.clone(), quick.clone()]).unwrap().name, "quick");
        assert_eq!(worst(std::slice::from_ref(&slow)).unwrap().over_ms, -29.0);
        let unknown = SmallQuery::new("unknown", &[], &[1.0]);
        assert_eq!(worst(&[quick, unknown, slow]).unwrap().name, "unknown");
        assert!(worst(&[]).is_none());
    }

    #[tokio::test]
    async fn each_small_query_has_rows_and_its_order_is_there() {
        let root = tempfile::tempdir().unwrap();
        let data = TpchData::ensure(root.path(), 0.01).unwrap();
        let oracle = Oracle::of_tables(2, &data).await.unwrap();
        let order = Keys::new(1, TpchTable::Orders.rows(0.01)).next();
        for (name, sql) in queries(order) {
            let expected = oracle.expect(&sql, Numbers::Exact).await.unwrap();
            let (schema, batches) = oracle.run(&sql).await.unwrap();
            expected.check(&schema, &batches).unwrap();
            assert!(expected.check(&schema, &[]).is_err(), "{name}");
        }
        let all = queries(order);
        let (_, one_order) = all.iter().find(|(name, _)| *name == "one_order").unwrap();
        let lines =
            format!("SELECT 1 FROM ({one_order}) AS found(lines, q, p, t) WHERE lines BETWEEN 1 AND 7");
        let (_, batches) = oracle.run(&lines).await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 1, "order {order}");
    }
}
