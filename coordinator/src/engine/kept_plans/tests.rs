//! Which texts are planned once, and when they are planned anew.

use std::sync::Arc;

use arrow::datatypes::DataType;

use super::*;
use crate::catalog::state::tests::{commit, segment};
use crate::engine::prepared::tests::{engine, make_table};
use crate::engine::{Engine, Prepared};

const TEXT: &str = "SELECT a, count(*) FROM t WHERE a > 1 GROUP BY a";

/// Prepares a text; whether that took a plan that was kept.
async fn is_kept(engine: &Engine, session: &Arc<Session>, text: &str) -> bool {
    let settings = session.settings();
    let found = engine.plans.find(session, &settings, engine.catalog().version, text);
    let prepared: Arc<Prepared> = engine.prepare(session, text).await.unwrap();
    match found {
        Some(found) => {
            let scope = engine.scope_to_read(session).await;
            assert!(Arc::ptr_eq(&found.planned, &prepared.kept(session, &scope).unwrap()));
            assert_eq!(prepared.columns(), &found.columns);
            true
        }
        None => false,
    }
}

#[tokio::test]
async fn a_text_is_planned_once_in_each_version_of_the_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let id = make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    assert!(!is_kept(&engine, &session, TEXT).await);
    assert!(is_kept(&engine, &session, TEXT).await);
    assert!(is_kept(&engine, &session, TEXT).await);
    assert!(!is_kept(&engine, &session, &format!("{TEXT} ")).await, "another text");
    assert_eq!(engine.plans.count(), 2);
    engine.cluster.catalog().apply(commit("w", &segment(id, 0, "w1"))).await.unwrap();
    assert!(!is_kept(&engine, &session, TEXT).await, "there are rows since");
    assert_eq!(engine.plans.count(), 1, "older plans are forgotten");
    assert!(is_kept(&engine, &session, TEXT).await);
}

#[tokio::test]
async fn sessions_share_plans_as_long_as_they_change_no_setting() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let (ada, bob) = (engine.open_session("ada"), engine.open_session("bob"));
    assert!(!is_kept(&engine, &ada, TEXT).await);
    assert!(is_kept(&engine, &bob, TEXT).await);
    bob.set("datafusion.execution.batch_size", Some("100")).unwrap();
    assert!(!is_kept(&engine, &bob, TEXT).await, "it has settings of its own");
    assert!(is_kept(&engine, &bob, TEXT).await);
    assert!(is_kept(&engine, &ada, TEXT).await);
    ada.set("datafusion.execution.batch_size", Some("100")).unwrap();
    assert!(!is_kept(&engine, &ada, TEXT).await, "as many changes as in the other session");
}

#[tokio::test]
async fn a_session_for_one_statement_takes_no_place_for_settings_that_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let setting = ("datafusion.execution.batch_size".to_owned(), "100".to_owned());
    for _ in 0..3 {
        let session = engine.passing_session("ada", std::slice::from_ref(&setting)).unwrap();
        assert!(!is_kept(&engine, &session, TEXT).await);
    }
    assert_eq!(engine.plans.count(), 0);
    // Without settings it shares the plans of all that have none.
    assert!(!is_kept(&engine, &engine.passing_session("ada", &[]).unwrap(), TEXT).await);
    assert!(is_kept(&engine, &engine.passing_session("bob", &[]).unwrap(), TEXT).await);
    assert!(is_kept(&engine, &engine.open_session("bob"), TEXT).await);
    assert_eq!(engine.plans.count(), 1);
}

#[tokio::test]
async fn what_may_mean_something_else_is_planned_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let long = format!("SELECT a, '{}' FROM t", "x".repeat(TEXT_BYTES_MAX));
    for text in [
        "SELECT a, now() FROM t",
        "SELECT a FROM t WHERE random() < 0.5",
        "SELECT * FROM system.queries",
        "SELECT * FROM information_schema.tables",
        "SELECT a FROM t, system.workers",
        "EXPLAIN SELECT a FROM t",
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE u AS SELECT * FROM t",
        long.as_str(),
    ] {
        for _ in 0..2 {
            assert!(!is_kept(&engine, &session, text).await, "{text}");
        }
    }
    assert_eq!(engine.plans.count(), 0);
}

#[tokio::test]
async fn plans_that_nobody_asked_for_longest_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let text = |number: usize| format!("SELECT a FROM t WHERE a = {number}");
    for number in 0..PLANS_MAX {
        assert!(!is_kept(&engine, &session, &text(number)).await);
    }
    assert!(is_kept(&engine, &session, &text(0)).await);
    assert!(!is_kept(&engine, &session, &text(PLANS_MAX)).await);
    assert_eq!(engine.plans.count(), PLANS_MAX);
    assert!(is_kept(&engine, &session, &text(0)).await, "it was asked for since");
    assert!(!is_kept(&engine, &session, &text(1)).await);
}

#[tokio::test]
async fn physical_plans_are_kept_for_texts_that_are_kept_and_have_no_parameters() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let id = make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let planned = async |text: &str| {
        let prepared = engine.prepare(&session, text).await.unwrap();
        let scope = engine.scope_to_read(&session).await;
        prepared.kept(&session, &scope).unwrap()
    };
    let first = planned(TEXT).await;
    assert!(first.whole().is_some_and(|whole| whole.is_open()));
    assert!(planned("SELECT a FROM t WHERE a = $1").await.whole().is_none(), "another one for each value");
    assert!(planned("SELECT a, now() FROM t").await.whole().is_none());
    // Those of an older version of the catalog go, whoever has them prepared yet.
    engine.cluster.catalog().apply(commit("w", &segment(id, 0, "w1"))).await.unwrap();
    let second = planned(TEXT).await;
    assert!(!first.whole().unwrap().is_open() && second.whole().unwrap().is_open());
    // And those that nobody asked for longest.
    for number in 0..PLANS_MAX {
        planned(&format!("SELECT a FROM t WHERE a = {number}")).await;
    }
    assert!(!second.whole().unwrap().is_open());
}
