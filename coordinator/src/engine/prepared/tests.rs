//! What a prepared statement keeps, and when it is planned anew.

use std::path::Path;
use std::time::Duration;

use shoal_data::{ImportRoots, Table};
use shoal_proto::{Channels, TableId};
use tokio::runtime::Handle;

use super::*;
use crate::CoordinatorConfig;
use crate::catalog::state::tests::{commit, create, segment, table};
use crate::catalog::{Catalog, Command, Outcome, View};
use crate::cluster::Cluster;
use crate::query::{reads_data, tables_of};
use crate::sql::RESULT_CACHE_SETTING;

pub(in crate::engine) async fn engine(dir: &Path) -> Engine {
    let catalog = Catalog::alone(&dir.join("catalog")).await.unwrap();
    let cluster = Arc::new(Cluster::new(catalog, Duration::from_secs(300)));
    let spill = dir.join("spill");
    std::fs::create_dir(&spill).unwrap();
    let channels = Channels::new(Handle::current());
    let config = CoordinatorConfig::new(dir);
    Engine::new(&config, cluster, channels, ImportRoots::new(&[]), spill, Handle::current()).unwrap()
}

/// Makes the table `t` with one column `a` of this type, which is its shard key.
pub(in crate::engine) async fn make_table(engine: &Engine, data_type: DataType) -> TableId {
    let catalog = engine.cluster.catalog();
    let Outcome::Table(id) = catalog.apply(Command::ReserveTable).await.unwrap() else {
        panic!("no table id");
    };
    let columns = Arc::new(Schema::new(vec![Field::new("a", data_type, true)]));
    catalog.apply(create(Table { columns, ..table(id, "t") })).await.unwrap();
    id
}

fn query_of(prepared: &Prepared) -> &DfStatement {
    match &prepared.statement {
        Statement::Query(statement) => statement,
        _ => panic!("`{}` is no query", prepared.sql()),
    }
}

async fn asked(engine: &Engine, session: &Session, prepared: &Prepared, value: ScalarValue) -> Asked {
    let scope = engine.scope_to_read(session).await;
    engine.asked_of(session, &scope, prepared, query_of(prepared), vec![value], None).await.unwrap()
}

/// What the same comes to without anything kept.
async fn planned_anew(
    engine: &Engine,
    session: &Session,
    prepared: &Prepared,
    value: ScalarValue,
) -> LogicalPlan {
    let scope = engine.scope_to_read(session).await;
    let plan = engine.plan(&scope, query_of(prepared)).await.unwrap();
    engine.optimised(&scope, engine.bind(prepared, plan, vec![value]).unwrap()).unwrap()
}

fn text(plan: &LogicalPlan) -> String {
    plan.display_indent().to_string()
}

fn number(value: i64) -> ScalarValue {
    ScalarValue::Int64(Some(value))
}

/// Whether it is run where it is asked for, with this value.
fn is_short(engine: &Engine, session: &Session, prepared: &Prepared, value: ScalarValue) -> bool {
    let version = engine.catalog().version;
    prepared.kept_lookup(session, &session.settings(), version, &[value]).is_some()
}

const LOOKUP: &str = "SELECT * FROM t WHERE a = $1";

#[tokio::test]
async fn values_are_put_into_the_plan_that_was_optimised() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    for value in [number(1), number(-7), ScalarValue::Int32(Some(3)), ScalarValue::Utf8(Some("4".into()))] {
        let Asked::Optimised(plan, _) = asked(&engine, &session, &prepared, value.clone()).await else {
            panic!("{value:?} is planned anew");
        };
        assert_eq!(text(&plan), text(&planned_anew(&engine, &session, &prepared, value).await));
    }
}

#[tokio::test]
async fn values_of_other_types_are_planned_anew() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    for value in [ScalarValue::Int64(None), ScalarValue::Null, ScalarValue::Float64(Some(1.5))] {
        let asked = asked(&engine, &session, &prepared, value.clone()).await;
        assert!(matches!(asked, Asked::Plan(_)), "{value:?}");
    }
    let listed = engine.prepare(&session, "SELECT * FROM t WHERE a IN ($1)").await.unwrap();
    let Asked::Plan(_) = asked(&engine, &session, &listed, number(1)).await else {
        panic!("a list is more than is known");
    };
}

#[tokio::test]
async fn a_change_of_the_catalog_is_seen_by_what_was_prepared_before() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let id = make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    engine.cluster.catalog().apply(commit("w", &segment(id, 0, "w1"))).await.unwrap();
    for _again in 0..2 {
        let Asked::Optimised(plan, _) = asked(&engine, &session, &prepared, number(1)).await else {
            panic!("nothing was kept");
        };
        assert_eq!(tables_of(&plan).unwrap()[0].segments.len(), 1);
    }
    let dropped = Command::DropTable { schema_name: "public".into(), name: "t".into(), if_exists: false };
    engine.cluster.catalog().apply(dropped).await.unwrap();
    make_table(&engine, DataType::Utf8).await;
    // The number is one no more, and the plan must know.
    let Asked::Plan(plan) = asked(&engine, &session, &prepared, number(1)).await else {
        panic!("a number was put where a text must be");
    };
    assert!(tables_of(&plan).unwrap()[0].segments.is_empty());
}

#[tokio::test]
async fn a_snapshot_that_may_be_an_old_one_is_not_read_by_a_plan_that_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    let mut scope = engine.scope_to_read(&session).await;
    assert!(prepared.kept(&session, &scope).is_some());
    scope.is_caught_up = false;
    assert!(prepared.kept(&session, &scope).is_none());
}

#[tokio::test]
async fn a_lookup_is_short_while_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let id = make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    let is_short = |session: &Session| is_short(&engine, session, &prepared, number(1));
    assert!(is_short(&session));
    let bob = engine.open_session("bob");
    assert!(is_short(&bob), "it has changed none of its settings either");
    bob.set("shoal.priority", Some("high")).unwrap();
    assert!(!is_short(&bob), "it has other settings");
    engine.cluster.catalog().apply(commit("w", &segment(id, 0, "w1"))).await.unwrap();
    assert!(!is_short(&session), "there are other segments");
    asked(&engine, &session, &prepared, number(1)).await;
    assert!(is_short(&session));
    session.set("datafusion.execution.batch_size", Some("100")).unwrap();
    asked(&engine, &session, &prepared, number(1)).await;
    assert!(!is_short(&session), "what it takes to plan with these settings is not known");
    let eve = engine.open_session("eve");
    let scan = engine.prepare(&eve, "SELECT * FROM t").await.unwrap();
    assert!(scan.kept_lookup(&eve, &eve.settings(), engine.catalog().version, &[]).is_none());
}

#[tokio::test]
async fn a_lookup_is_short_with_the_values_that_it_was_planned_for() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    for value in [number(1), ScalarValue::Int32(Some(3)), ScalarValue::Utf8(Some("4".into()))] {
        assert!(is_short(&engine, &session, &prepared, value.clone()), "{value:?}");
    }
    // The first makes all rows be read.
    for value in [ScalarValue::Float64(Some(1.5)), ScalarValue::Int64(None), ScalarValue::Null] {
        assert!(!is_short(&engine, &session, &prepared, value.clone()), "{value:?}");
    }
    let version = engine.catalog().version;
    assert!(prepared.kept_lookup(&session, &session.settings(), version, &[]).is_none(), "no value");
}

#[tokio::test]
async fn a_lookup_of_a_large_value_is_not_short() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Utf8).await;
    let session = engine.open_session("ada");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    let text = |bytes: usize| ScalarValue::Utf8(Some("x".repeat(bytes)));
    assert!(is_short(&engine, &session, &prepared, text(100)));
    assert!(!is_short(&engine, &session, &prepared, text(VALUES_BYTES_MAX)));
}

#[tokio::test]
async fn a_lookup_whose_text_is_long_to_look_through_is_not_short() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    for (times, expected) in [(2, true), (1000, false)] {
        let sql = format!("{LOOKUP} AND 2 IN ({}2)", "2, ".repeat(times));
        let prepared = engine.prepare(&session, &sql).await.unwrap();
        assert_eq!(is_short(&engine, &session, &prepared, number(1)), expected, "{times} times");
    }
}

#[tokio::test]
async fn rows_of_system_tables_are_not_kept_whatever_name_they_have() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    make_table(&engine, DataType::Int64).await;
    let view = View {
        schema_name: "public".to_owned(),
        name: "v".to_owned(),
        sql: "SELECT * FROM queries".to_owned(),
        columns: None,
        default_schema: Some("system".to_owned()),
    };
    engine.cluster.catalog().apply(Command::CreateView { view, or_replace: false }).await.unwrap();
    let session = engine.open_session("ada");
    session.set("datafusion.catalog.default_schema", Some("system")).unwrap();
    for sql in [
        "SELECT * FROM queries",
        "SELECT * FROM system.queries",
        "SELECT * FROM public.v",
        "SELECT * FROM information_schema.tables",
        "SELECT a FROM public.t WHERE a IN (SELECT count(*) FROM writes)",
    ] {
        let prepared = engine.prepare(&session, sql).await.unwrap();
        let scope = engine.scope_to_read(&session).await;
        assert!(prepared.kept(&session, &scope).is_none(), "{sql}");
        let plan = engine.plan(&scope, query_of(&prepared)).await.unwrap();
        assert_eq!(reads_data(&plan), sql.contains("public.t"), "{sql}");
    }
    let prepared = engine.prepare(&session, "SELECT * FROM public.t").await.unwrap();
    let scope = engine.scope_to_read(&session).await;
    assert!(prepared.kept(&session, &scope).is_some());
}

#[tokio::test]
async fn a_result_rests_on_what_was_planned_in_its_scope() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let id = make_table(&engine, DataType::Int64).await;
    let session = engine.open_session("ada");
    let key = |session: &Session| {
        let values = || Ok(vec![number(1)]);
        engine.result_key(&session.settings(), LOOKUP, values)
    };
    assert!(key(&session).is_none(), "nobody asked for it");
    session.set(RESULT_CACHE_SETTING, Some("on")).unwrap();
    assert!(key(&session).is_some());
    let settings = session.settings();
    let long = format!("SELECT '{}'", "x".repeat(64 << 10));
    assert!(engine.result_key(&settings, &long, || Ok(Vec::new())).is_none(), "a long statement");
    let text = ScalarValue::Utf8(Some("x".repeat(64 << 10)));
    assert!(engine.result_key(&settings, LOOKUP, || Ok(vec![text])).is_none(), "a large parameter");
    let prepared = engine.prepare(&session, LOOKUP).await.unwrap();
    assert!(is_short(&engine, &session, &prepared, number(1)), "with kept results, too");
    let before = engine.scope_to_read(&session).await;
    assert!(prepared.grounds(&session, &before).is_some());
    engine.cluster.catalog().apply(commit("w", &segment(id, 0, "w1"))).await.unwrap();
    let after = engine.scope_to_read(&session).await;
    assert!(prepared.grounds(&session, &after).is_none(), "it was planned before there were rows");
    let query = query_of(&prepared);
    engine.asked_of(&session, &after, &prepared, query, vec![number(1)], None).await.unwrap();
    assert!(prepared.grounds(&session, &after).is_some());
    assert!(prepared.grounds(&session, &before).is_none());
}
