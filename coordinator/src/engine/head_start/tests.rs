//! When a query begins before its rows are asked for, and when they are used.

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::ScalarValue;
use futures::TryStreamExt;

use super::*;
use crate::engine::prepared::tests::{engine, make_table};
use crate::query::QueryState;

/// A query that asks no worker.
const SEVEN: &str = "SELECT CAST(7 AS BIGINT) AS n";

async fn announced(
    engine: &Engine,
    session: &Arc<Session>,
    sql: &str,
) -> (Arc<Prepared>, Option<HeadStart>, QueryId) {
    let prepared = engine.prepare(session, sql).await.unwrap();
    let head_start = engine.head_start(session, &prepared, &Vec::new());
    let query = head_start.as_ref().map_or_else(QueryId::random, HeadStart::query);
    (prepared, head_start, query)
}

async fn fetched(
    engine: &Engine,
    session: &Arc<Session>,
    told: (Arc<Prepared>, Option<HeadStart>, QueryId),
) -> Vec<i64> {
    let (prepared, head_start, query) = told;
    let output = engine.query_announced(session, &prepared, Vec::new(), query, head_start).await.unwrap();
    let batches: Vec<_> = output.stream.try_collect().await.unwrap();
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// The queries that can be seen, with their states.
fn seen(engine: &Engine) -> Vec<(QueryId, QueryState)> {
    engine.registry.all().iter().map(|record| (record.query, record.state())).collect()
}

#[tokio::test]
async fn what_has_begun_gives_its_rows_and_is_seen_from_when_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.open_session("ada");
    for again in 1..=2 {
        let told = announced(&engine, &session, SEVEN).await;
        let query = told.2;
        assert!(told.1.is_some(), "it is short");
        assert!(engine.registry.find(query).is_none() && !engine.cancel(query));
        assert_eq!(fetched(&engine, &session, told).await, [7]);
        assert_eq!(engine.head_starts.used(), again);
        assert_eq!(engine.registry.find(query).unwrap().state(), QueryState::Finished);
    }
    assert_eq!(seen(&engine).len(), 2);
    assert_eq!(engine.head_starts.places.available_permits(), HEAD_STARTS_MAX);
}

#[tokio::test]
async fn what_ended_before_its_rows_were_asked_for_is_seen_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.open_session("ada");
    let told = announced(&engine, &session, SEVEN).await;
    let query = told.2;
    while engine.registry.live_count() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(seen(&engine).is_empty());
    assert_eq!(fetched(&engine, &session, told).await, [7]);
    assert_eq!(engine.head_starts.used(), 1);
    assert_eq!(seen(&engine), [(query, QueryState::Finished)]);
    assert!(engine.certificate(query).is_some(), "what its rows rest on");
}

#[tokio::test]
async fn what_began_before_a_change_is_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.open_session("ada");
    let of_the_catalog = announced(&engine, &session, SEVEN).await;
    make_table(&engine, DataType::Int64).await;
    let query = of_the_catalog.2;
    assert_eq!(fetched(&engine, &session, of_the_catalog).await, [7]);
    assert_eq!(engine.head_starts.used(), 0);
    assert_eq!(seen(&engine), [(query, QueryState::Finished)], "once");

    let of_settings = announced(&engine, &session, SEVEN).await;
    assert!(of_settings.1.is_some());
    session.set("shoal.priority", Some("low")).unwrap();
    assert_eq!(fetched(&engine, &session, of_settings).await, [7]);
    assert_eq!(engine.head_starts.used(), 0);
}

#[tokio::test]
async fn only_what_is_short_and_the_same_at_any_time_begins_early() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    for (sql, begins) in [
        ("SELECT a FROM t", true),
        ("SELECT a FROM t WHERE a = 3", true),
        ("SELECT l.a FROM t l JOIN t r ON l.a = r.a", true),
        ("SELECT l.a FROM t l CROSS JOIN t r", false),
        ("SELECT random()", false),
        ("SELECT now()", false),
        ("SELECT * FROM system.workers", false),
        ("EXPLAIN SELECT 1", false),
        ("SELECT a FROM t WHERE a = $1", false),
    ] {
        let told = announced(&engine, &session, sql).await;
        assert_eq!(told.1.is_some(), begins, "{sql}");
    }
    let lookup = engine.prepare(&session, "SELECT a FROM t WHERE a = $1").await.unwrap();
    for (value, begins) in [
        (ScalarValue::Int64(Some(3)), true),
        // These are planned anew.
        (ScalarValue::Int64(None), false),
        (ScalarValue::Float64(Some(1.5)), false),
        (ScalarValue::Utf8(Some("7".repeat(VALUES_BYTES_MAX))), false),
    ] {
        let begun = engine.head_start(&session, &lookup, &vec![value.clone()]);
        assert_eq!(begun.is_some(), begins, "{value:?}");
    }
    session.set("shoal.priority", Some("low")).unwrap();
    assert!(announced(&engine, &session, SEVEN).await.1.is_none(), "a session with settings of its own");
}

#[tokio::test]
async fn there_are_only_so_many_and_none_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.open_session("ada");
    let mut waiting = Vec::new();
    for _one in 0..HEAD_STARTS_MAX {
        waiting.push(announced(&engine, &session, SEVEN).await);
    }
    assert!(waiting.iter().all(|(_, head_start, _)| head_start.is_some()));
    assert!(announced(&engine, &session, SEVEN).await.1.is_none());
    // Who goes away makes room at once, and who only waits makes it soon.
    waiting.pop();
    let last = announced(&engine, &session, SEVEN).await;
    assert!(last.1.is_some());
    let since = Instant::now();
    while engine.head_starts.places.available_permits() < HEAD_STARTS_MAX {
        assert!(since.elapsed() < HELD_FOR * 20, "they are held for good");
        tokio::time::sleep(HELD_FOR / 10).await;
    }
    assert!(seen(&engine).is_empty() && engine.registry.live_count() == 0, "nobody asked for them");
    // The ticket is as good as ever.
    assert_eq!(fetched(&engine, &session, last).await, [7]);
    assert_eq!(engine.head_starts.used(), 0);
}

#[tokio::test]
async fn one_that_fails_is_run_again_and_seen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.open_session("ada");
    // The optimiser leaves this alone: it would fail for any row.
    let (prepared, head_start, query) =
        announced(&engine, &session, "SELECT 1 / n FROM (VALUES (0)) AS v(n)").await;
    assert!(head_start.is_some());
    while engine.registry.live_count() > 0 {
        tokio::task::yield_now().await;
    }
    let output = engine.query_announced(&session, &prepared, Vec::new(), query, head_start).await;
    let error = match output {
        Err(error) => error.to_string(),
        Ok(output) => output.stream.try_collect::<Vec<_>>().await.unwrap_err().to_string(),
    };
    assert!(error.to_lowercase().contains("divide by zero"), "{error}");
    assert_eq!(seen(&engine), [(query, QueryState::Failed)]);
}
