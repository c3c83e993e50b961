use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use shoal_data::{ColumnStatistics, StatValue, Table};
use shoal_proto::TableId;

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};

const MIB: u64 = 1 << 20;

/// A table of four columns and four shards with a segment each, `bytes` and `rows` of
/// them. Shard i has times from 1,000 i on.
fn made(id: u64, name: &str, bytes: u64, rows: u64, sort_key: &[&str]) -> Table {
    let id = TableId(id);
    let columns = ["a", "b", "c", "time"].map(|name| Field::new(name, DataType::Int64, true));
    let mut made = Table { columns: Arc::new(Schema::new(columns.to_vec())), ..table(id, name) };
    made.layout.shards = 4;
    made.layout.sort_key = sort_key.iter().map(|&column| column.to_owned()).collect();
    let segments = (0..4).map(|shard| {
        let from = i64::from(shard) * 1_000;
        let (min, max) = (Some(StatValue::Int(from)), Some(StatValue::Int(from + 999)));
        let unknown = ColumnStatistics::default;
        let columns = vec![unknown(), unknown(), unknown(), ColumnStatistics { nulls: 0, min, max }];
        let columns = columns.into();
        Arc::new(Segment { bytes, rows, columns, ..segment(id, shard, "w1") })
    });
    made.segments = segments.collect();
    made
}

fn session() -> SessionContext {
    let context = SessionContext::new();
    let tables = [
        made(1, "small", MIB, 1_000, &[]),
        made(2, "large", 6 * MIB, 100_000, &[]),
        made(3, "sorted", 100 * MIB, 10_000_000, &["a", "b"]),
        made(4, "unsorted", 100 * MIB, 10_000_000, &["time"]),
        made(5, "constant", 1_000, 10_000_000, &[]),
    ];
    for made in tables {
        let name = made.name.clone();
        let table = ShardTable::new(Arc::new(TableFacts::new(Arc::new(made))));
        context.register_table(name, Arc::new(table)).unwrap();
    }
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
    context.register_table("other", Arc::new(MemTable::try_new(schema, vec![vec![]]).unwrap())).unwrap();
    context
}

async fn weight(sql: &str) -> Weight {
    let state = session().state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    weigh(&state.optimize(&plan).unwrap(), &state)
}

#[tokio::test]
async fn what_reads_little_is_short() {
    for sql in [
        "SELECT * FROM small",
        "SELECT b, count(*), sum(c) FROM small WHERE b > 7 GROUP BY b ORDER BY b LIMIT 3",
        "SELECT DISTINCT b FROM small UNION ALL SELECT c FROM small",
        // A few of its columns.
        "SELECT sum(b) FROM large",
        // One of its shards, and one of its segments.
        "SELECT * FROM large WHERE a = 7",
        "SELECT b, sum(c) FROM large WHERE time BETWEEN 2100 AND 2200 GROUP BY b",
        // Few rows of a shard, however large.
        "SELECT * FROM sorted WHERE a = 7",
        "SELECT count(*) FROM sorted WHERE a = 7 AND c > 9",
        "SELECT * FROM sorted LIMIT 10",
        "SELECT count(*) FROM sorted",
    ] {
        assert_eq!(weight(sql).await, Weight { class: Class::Short, memory_bytes: 0 }, "{sql}");
    }
}

#[tokio::test]
async fn all_else_is_long() {
    for sql in [
        "SELECT * FROM large",
        "SELECT * FROM large WHERE time > 100",
        "SELECT sum(b) FROM large WHERE c = 1 AND a < 7",
        "SELECT b FROM small UNION ALL SELECT b + c + time FROM large",
        "SELECT * FROM sorted WHERE b = 7",
        "SELECT * FROM unsorted WHERE a = 7",
        "SELECT * FROM sorted LIMIT 100000",
        "SELECT * FROM sorted ORDER BY c LIMIT 10",
        // Few bytes and many rows.
        "SELECT sum(b) FROM constant",
        // Any time, over the smallest tables.
        "SELECT count(*) FROM small x, small y WHERE x.b < y.b",
        "SELECT * FROM small x JOIN small y ON x.a = y.a",
        "SELECT b FROM small WHERE b > (SELECT avg(c) FROM small)",
        "SELECT b FROM small WHERE b IN (SELECT c FROM small)",
        "SELECT sum(b) OVER (ORDER BY c) FROM small",
        "SELECT unnest([a, b, c]) FROM small",
        // As many rows as there are, of no column.
        "SELECT 1 FROM constant",
        "SELECT count(random()) FROM constant",
        "SELECT random() FROM constant WHERE random() < 0.1",
        // Nothing is known of these.
        "SELECT * FROM other",
        "SELECT * FROM generate_series(1, 3)",
    ] {
        assert_eq!(weight(sql).await.class, Class::Long, "{sql}");
    }
}

#[tokio::test]
async fn what_it_may_take_follows_from_all_that_it_reads() {
    let of = async |sql: &str| weight(sql).await.memory_bytes;
    assert_eq!(of("SELECT x.a FROM small x JOIN small y ON x.a = y.a").await, MEMORY_BYTES_MIN + 8 * 2 * MIB);
    assert_eq!(
        of("SELECT * FROM large WHERE b > (SELECT avg(c) FROM small)").await,
        MEMORY_BYTES_MIN + 8 * (24 + 1) * MIB
    );
    assert_eq!(of("SELECT * FROM small x JOIN other y ON x.a = y.a").await, u64::MAX);
}

#[tokio::test]
async fn the_rows_of_one_key_are_told_from_those_of_others() {
    let state = session().state();
    for (sql, expected) in [
        ("SELECT * FROM sorted WHERE a = 7", true),
        ("SELECT b + 1 FROM sorted AS s WHERE s.a = 7 AND c > 9", true),
        ("SELECT * FROM sorted WHERE 7 = a AND b IN (1, 2)", true),
        ("SELECT * FROM sorted WHERE a > 7", false),
        // All in one shard, or not.
        ("SELECT * FROM sorted WHERE a IN (7, 8, 9, 10, 11)", false),
        ("SELECT * FROM sorted WHERE a = 7 OR a = 8", false),
        ("SELECT * FROM sorted WHERE a = b", false),
        ("SELECT * FROM sorted WHERE b = 7", false),
        ("SELECT * FROM unsorted WHERE a = 7", false),
        ("SELECT * FROM small WHERE a = 7", false),
        ("SELECT a FROM sorted WHERE a = 7 UNION ALL SELECT a FROM sorted WHERE a = 8", false),
        ("SELECT * FROM other WHERE a = 7", false),
    ] {
        let plan = state.optimize(&state.create_logical_plan(sql).await.unwrap()).unwrap();
        assert_eq!(reads_one_key(&plan).unwrap(), expected, "{sql}");
    }
}
