use std::sync::Arc;

use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use shoal_proto::TableId;

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::table;
use crate::query::ShardTable;

/// A session with `t`, a table of shards, and `m`, which is none.
fn session() -> SessionContext {
    let session = SessionContext::new();
    let facts = Arc::new(TableFacts::new(Arc::new(table(TableId(1), "t"))));
    let shards = ShardTable::new(facts);
    let schema = Arc::clone(&shards.table().columns);
    session.register_table("t", Arc::new(shards)).unwrap();
    session.register_table("m", Arc::new(MemTable::try_new(schema, vec![vec![]]).unwrap())).unwrap();
    session
}

/// Why the result of a query is never kept; none where it may be.
async fn why(sql: &str) -> Option<String> {
    let plan = session().state().create_logical_plan(sql).await.unwrap();
    never_kept(&plan)
}

#[tokio::test]
async fn what_follows_from_tables_alone_may_be_kept() {
    for sql in [
        "SELECT a FROM t",
        "SELECT sum(a), max(length(CAST(a AS VARCHAR))) FROM t GROUP BY a % 7 ORDER BY 1 LIMIT 3",
        "SELECT row_number() OVER (ORDER BY a) FROM t WHERE a IN (SELECT a + 1 FROM t)",
        "WITH u AS (SELECT a FROM t) SELECT * FROM u UNION ALL VALUES (1), (2)",
        "SELECT to_timestamp(a) FROM t",
    ] {
        assert_eq!(why(sql).await, None, "{sql}");
    }
}

#[tokio::test]
async fn what_changes_by_itself_is_never_kept() {
    for (sql, named) in [
        ("SELECT a, random() FROM t", "random()"),
        ("SELECT a FROM t ORDER BY random()", "random()"),
        ("SELECT a FROM t WHERE to_timestamp(a) < now()", "now()"),
        (
            "SELECT count(*) FROM t WHERE a > (SELECT max(a) FROM t WHERE current_date > DATE '2024-01-01')",
            "current_date()",
        ),
        ("SELECT a FROM t WHERE EXISTS (SELECT uuid() FROM t)", "uuid()"),
        ("SELECT sum(CASE WHEN a > 1 THEN random() ELSE 0 END) FROM t", "random()"),
    ] {
        let why = why(sql).await.unwrap_or_else(|| panic!("{sql} may be kept"));
        assert!(why.contains(named), "{sql}: {why}");
    }
}

#[tokio::test]
async fn what_the_catalog_does_not_know_is_never_kept() {
    for (sql, named) in [
        ("SELECT * FROM m", "`m`"),
        ("SELECT a FROM t WHERE a NOT IN (SELECT a FROM m)", "`m`"),
        ("SELECT a FROM t JOIN generate_series(1, 3) AS g ON a = g.value", "not in the catalog"),
        ("SELECT 1", "no table"),
        ("VALUES (1), (2)", "no table"),
    ] {
        let why = why(sql).await.unwrap_or_else(|| panic!("{sql} may be kept"));
        assert!(why.contains(named), "{sql}: {why}");
    }
}
