//! The tables of TPC-H as they are laid out for the demo and the benchmarks: those that are
//! sharded by the key that they are joined by stay where they are.

use shoal_data::sample::{TpchTable, tpch_schema};

use super::*;

/// At this scale no table is little enough to be sent to all.
const SCALE: f64 = 2.0;
/// Every scan is cut into as many tasks as there are workers.
const IN_TASKS: (&str, &str) = ("shoal.task_bytes", "1");

fn tables() -> Vec<Arc<ShardTable>> {
    let sharded = TpchTable::ALL.into_iter().filter_map(|table| Some((table, table.keys()?)));
    let made = (1..).zip(sharded).map(|(id, (of, (shard_key, sort_key)))| {
        let mut made = Table { columns: tpch_schema(of), ..table(TableId(id), of.name()) };
        made.layout.shard_key = vec![shard_key.to_owned()];
        made.layout.sort_key = vec![sort_key.to_owned()];
        let rows = of.rows(SCALE) / u64::from(SHARDS);
        provider(made, rows, rows * 50)
    });
    made.collect()
}

/// Exchanges below the first join of a plan, and in all of it.
async fn exchanges_of(sql: &str) -> ((usize, usize), (usize, usize)) {
    let plan = plan_over(tables(), &[IN_TASKS], sql).await;
    assert!(plan.contains("4 tasks on"), "{sql}\n{plan}");
    let (_, join) = plan.split_once("HashJoinExec").unwrap_or_else(|| panic!("no join: {sql}\n{plan}"));
    (exchanges(join), exchanges(&plan))
}

#[tokio::test]
async fn lineitem_joins_orders_and_partsupp_part_where_they_are() {
    let none = (0, 0);
    for (sql, in_all) in [
        ("SELECT l_quantity, o_orderdate FROM lineitem JOIN orders ON l_orderkey = o_orderkey", none),
        (
            "SELECT o_orderkey, o_orderdate, sum(l_extendedprice) FROM orders JOIN lineitem \
             ON o_orderkey = l_orderkey WHERE l_shipdate > DATE '1995-03-15' GROUP BY o_orderkey, o_orderdate",
            none,
        ),
        ("SELECT ps_supplycost, p_name FROM partsupp JOIN part ON ps_partkey = p_partkey", none),
        // What is made of the rows of a join goes through one.
        (
            "SELECT l_shipmode, count(*) FROM lineitem JOIN orders ON l_orderkey = o_orderkey GROUP BY l_shipmode",
            (1, 0),
        ),
        (
            "SELECT p_brand, sum(ps_availqty) FROM partsupp JOIN part ON ps_partkey = p_partkey GROUP BY p_brand",
            (1, 0),
        ),
    ] {
        assert_eq!(exchanges_of(sql).await, (none, in_all), "{sql}");
    }
}

#[tokio::test]
async fn tables_that_are_sharded_otherwise_go_through_exchanges() {
    for sql in [
        "SELECT c_name, o_orderdate FROM customer JOIN orders ON c_custkey = o_custkey",
        "SELECT l_quantity, p_name FROM lineitem JOIN part ON l_partkey = p_partkey",
    ] {
        let (below, _) = exchanges_of(sql).await;
        assert_ne!(below, (0, 0), "{sql}");
    }
    let sql = "SELECT l_quantity, o_orderdate FROM lineitem JOIN orders ON l_orderkey = o_orderkey";
    let plan = plan_over(tables(), &[IN_TASKS, ("shoal.colocate", "false")], sql).await;
    assert_eq!(exchanges(&plan), (2, 0), "{plan}");
}
