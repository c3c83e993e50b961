//! Queries of TPC-H over tables that say what those of scale 10 have, in shards as they are in
//! the benchmarks. How many values a column has is not known, but of numbers.

use shoal_data::sample::{TpchTable, query, tpch_schema};
use shoal_data::{ColumnStatistics as Stored, KeyHash, Segment, StatValue, Table};
use shoal_proto::TableId;

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};
use crate::query::{ShardTable, as_meant};

const SCALE: f64 = 10.0;
const SHARDS: u32 = 8;

/// The least and the greatest value of a column, for those that are numbers and dates. Decimals
/// are cents.
fn range_of(column: &str) -> Option<(i64, i64)> {
    Some(match column {
        "s_suppkey" | "ps_suppkey" | "l_suppkey" => (1, 100_000),
        "c_custkey" | "o_custkey" => (1, 1_500_000),
        "p_partkey" | "ps_partkey" | "l_partkey" => (1, 2_000_000),
        "o_orderkey" | "l_orderkey" => (1, 60_000_000),
        "s_nationkey" | "c_nationkey" | "n_nationkey" => (0, 24),
        "n_regionkey" | "r_regionkey" => (0, 4),
        "p_size" => (1, 50),
        "o_orderdate" => (8_035, 10_440),
        "l_shipdate" => (8_036, 10_561),
        _ => return None,
    })
}

fn made(id: u64, of: TpchTable) -> Arc<ShardTable> {
    let columns = tpch_schema(of);
    let known: Vec<Stored> = columns
        .fields()
        .iter()
        .map(|field| {
            let bound =
                |of: fn((i64, i64)) -> i64| range_of(field.name()).map(|range| StatValue::Int(of(range)));
            Stored { nulls: 0, min: bound(|range| range.0), max: bound(|range| range.1) }
        })
        .collect();
    let mut made = Table { columns, ..table(TableId(id), of.name()) };
    made.layout.shards = if of.keys().is_some() { SHARDS } else { 1 };
    made.layout.shard_key = of.keys().map(|(key, _)| key.to_owned()).into_iter().collect();
    made.layout.hash = KeyHash::CURRENT;
    let rows = of.rows(SCALE) / u64::from(made.layout.shards);
    let segments = (0..made.layout.shards).map(|shard| {
        let columns = known.clone().into();
        Arc::new(Segment { columns, rows, bytes: rows * 50, ..segment(made.id, shard, "w1") })
    });
    made.segments = segments.collect();
    Arc::new(ShardTable::new(Arc::new(TableFacts::new(Arc::new(made)))))
}

async fn order_of(number: usize, is_on: bool) -> String {
    let tables = (1..).zip(TpchTable::ALL).map(|(id, of)| (of.name().to_owned(), made(id, of)));
    let context = context(&tables.collect(), is_on);
    let plan = context.state().create_logical_plan(query(number).unwrap()).await.unwrap();
    order(&context.state().optimize(&as_meant(plan).unwrap()).unwrap())
}

/// With all of `names` nothing but `expected` is joined before the rest.
async fn check(number: usize, names: &[&str], expected: &[&str]) {
    let (on, off) = (order_of(number, true).await, order_of(number, false).await);
    assert_eq!(together(&on, names), expected, "q{number}: {on}");
    assert_ne!(together(&off, names), expected, "q{number}: {off}");
}

#[tokio::test]
async fn customers_of_one_region_are_found_before_their_orders() {
    check(5, &["customer", "orders"], &["customer", "nation", "orders", "region"]).await;
}

#[tokio::test]
async fn what_was_ordered_of_some_parts_is_found_where_its_orders_are() {
    check(9, &["lineitem", "orders"], &["lineitem", "orders", "part"]).await;
}

#[tokio::test]
async fn nations_of_one_region_are_found_before_their_customers() {
    check(8, &["n1", "region"], &["n1", "region"]).await;
}

#[tokio::test]
async fn suppliers_of_two_nations_are_found_before_what_they_supply() {
    check(7, &["n1", "supplier"], &["n1", "supplier"]).await;
}

/// The one of the subquery; those around it may stay as they are written.
#[tokio::test]
async fn suppliers_of_one_region_are_found_before_what_they_supply() {
    let on = order_of(2, true).await;
    assert!(on.contains("(((region nation) supplier) partsupp)"), "{on}");
    let off = order_of(2, false).await;
    assert!(!off.contains("(((region nation) supplier) partsupp)"), "{off}");
}
