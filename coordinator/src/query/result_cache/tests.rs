use arrow::array::{ArrayRef, AsArray, Int64Array, StringViewArray};
use arrow::datatypes::Int64Type;
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use shoal_proto::{ErrorCode, Failure, QueryId, TableId};

use super::kept::RESULTS_MAX;
use super::*;
use crate::catalog::state::tests::{commit, create, segment, table};
use crate::catalog::{Command, Outcome, View};
use crate::query::{QueryState, Registry};
use crate::sql::{LookedUp, Meaning};

const MIB: usize = 1 << 20;

fn key(statement: &str) -> ResultKey {
    ResultKey { statement: statement.to_owned(), parameters: Vec::new(), settings: Vec::new() }
}

/// A batch of so many rows, which takes some 8 bytes for each.
fn numbers(rows: i64) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    RecordBatch::try_from_iter([("k", numbers)]).unwrap()
}

/// Keeps a result of these batches that rests on nothing.
fn keep(cache: &ResultCache, key: ResultKey, batches: &[RecordBatch]) -> bool {
    let mut filling = Some(cache.fill(key, Grounds::default()));
    for batch in batches {
        filling = filling.and_then(|filling| filling.with(batch));
    }
    let is_kept = filling.is_some();
    if let Some(filling) = filling {
        filling.finish(batches[0].schema(), None, &State::new("c"));
    }
    is_kept
}

fn has(cache: &ResultCache, statement: &str) -> bool {
    cache.find(&key(statement), &State::new("c")).is_some()
}

fn reserved(state: &mut State) -> TableId {
    match state.apply(Command::ReserveTable) {
        Ok(Outcome::Table(id)) => id,
        other => panic!("no table id: {other:?}"),
    }
}

fn dropped(name: &str) -> Command {
    Command::DropTable { schema_name: "public".to_owned(), name: name.to_owned(), if_exists: false }
}

#[tokio::test]
async fn what_is_kept_comes_back_as_it_was() {
    let cache = ResultCache::new(64 * MIB);
    let batches = [numbers(3), numbers(5)];
    assert!(keep(&cache, key("q"), &batches));
    let registry = Registry::default();
    let query = QueryId::random();
    let kept = cache.find(&key("q"), &State::new("c")).unwrap();
    let rows: Vec<RecordBatch> = kept.rows(registry.begin(query, "ada", "q")).try_collect().await.unwrap();
    assert_eq!(rows, batches);
    let record = registry.find(query).unwrap();
    assert_eq!(record.state(), QueryState::Finished);
    assert_eq!(record.rows.load(std::sync::atomic::Ordering::Relaxed), 8);
    assert!(record.from_cache.load(std::sync::atomic::Ordering::Relaxed));
}

#[tokio::test]
async fn a_query_that_is_stopped_gets_no_kept_rows() {
    let cache = ResultCache::new(64 * MIB);
    keep(&cache, key("q"), &[numbers(3)]);
    let registry = Registry::default();
    let query = QueryId::random();
    let kept = cache.find(&key("q"), &State::new("c")).unwrap();
    let rows = kept.rows(registry.begin(query, "ada", "q"));
    assert!(registry.cancel(query));
    let error = rows.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(Failure::from_datafusion(&error).code, ErrorCode::Cancelled);
    assert_eq!(registry.find(query).unwrap().state(), QueryState::Cancelled);
    // One that nobody reads to its end is none that has finished.
    let unread = QueryId::random();
    let kept = cache.find(&key("q"), &State::new("c")).unwrap();
    drop(kept.rows(registry.begin(unread, "ada", "q")));
    assert_eq!(registry.find(unread).unwrap().state(), QueryState::Cancelled);
    assert_eq!(registry.live_count(), 0);
}

#[test]
fn a_key_is_text_parameters_and_settings() {
    let cache = ResultCache::new(64 * MIB);
    let of = |parameter: ScalarValue, setting: &str| ResultKey {
        parameters: vec![(parameter.data_type(), parameter)],
        settings: vec![("datafusion.execution.time_zone".to_owned(), setting.to_owned())],
        ..key("q")
    };
    let known = of(ScalarValue::Int64(Some(1)), "+00:00");
    keep(&cache, known.clone(), &[numbers(1)]);
    let state = State::new("c");
    assert!(cache.find(&known, &state).is_some());
    for other in [
        of(ScalarValue::Int64(Some(2)), "+00:00"),
        of(ScalarValue::Int32(Some(1)), "+00:00"),
        of(ScalarValue::Int64(None), "+00:00"),
        of(ScalarValue::Int64(Some(1)), "+02:00"),
        ResultKey { statement: "r".to_owned(), ..known.clone() },
        key("q"),
    ] {
        assert!(cache.find(&other, &state).is_none(), "{other:?}");
    }
}

#[test]
fn the_same_moment_in_another_time_zone_is_another_key() {
    let cache = ResultCache::new(64 * MIB);
    let of = |zone: Option<&str>| {
        let moment = ScalarValue::TimestampSecond(Some(7), zone.map(Into::into));
        ResultKey { parameters: vec![(moment.data_type(), moment)], ..key("q") }
    };
    keep(&cache, of(Some("+00:00")), &[numbers(1)]);
    let state = State::new("c");
    assert!(cache.find(&of(Some("+00:00")), &state).is_some());
    assert!(cache.find(&of(Some("+02:00")), &state).is_none());
    assert!(cache.find(&of(None), &state).is_none());
}

#[test]
fn what_is_not_read_to_its_end_leaves_nothing() {
    let cache = ResultCache::new(64 * MIB);
    let filling = cache.fill(key("q"), Grounds::default()).with(&numbers(1000)).unwrap();
    assert!(cache.usage().bytes >= 8000);
    drop(filling);
    assert!(!has(&cache, "q"));
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.bytes, usage.stored, usage.misses), (0, 0, 0, 1));
}

#[test]
fn a_result_takes_a_sixteenth_at_most() {
    let cache = ResultCache::new(MIB);
    assert!(keep(&cache, key("small"), &[numbers(4_000), numbers(3_000)]));
    assert!(!keep(&cache, key("one batch"), &[numbers(10_000)]));
    let many: Vec<RecordBatch> = (0..20).map(|_| numbers(1_000)).collect();
    assert!(!keep(&cache, key("many batches"), &many));
    assert_eq!(
        [has(&cache, "small"), has(&cache, "one batch"), has(&cache, "many batches")],
        [true, false, false]
    );
    assert_eq!(cache.usage().entries, 1);
    // What was held of the large ones was given back.
    assert!(cache.usage().bytes < 60_000, "{:?}", cache.usage());
    let none = ResultCache::new(0);
    assert!(!none.is_on() && !keep(&none, key("q"), &[numbers(1)]));
}

#[test]
fn what_was_not_used_for_longest_makes_room() {
    let cache = ResultCache::new(MIB);
    // 40 kB each: 786 kB have room for 19.
    let name = |number: usize| format!("q{number}");
    for number in 0..15 {
        assert!(keep(&cache, key(&name(number)), &[numbers(5_000)]));
    }
    assert!(has(&cache, "q0"));
    for number in 15..30 {
        assert!(keep(&cache, key(&name(number)), &[numbers(5_000)]));
        assert!(has(&cache, "q0"), "used all the time, gone at {number}");
        let usage = cache.usage();
        assert!(usage.bytes <= usage.bytes_max * 3 / 4, "{usage:?}");
    }
    assert!(!has(&cache, "q1") && has(&cache, "q29"));
    let usage = cache.usage();
    assert_eq!(usage.stored - usage.evicted, usage.entries as u64);
    assert!(usage.evicted >= 10, "{usage:?}");
    // The same once more takes the place of the first.
    assert!(keep(&cache, key("q29"), &[numbers(5_000)]));
    assert_eq!(cache.usage().entries, usage.entries);
    assert_eq!(cache.usage().bytes, usage.bytes);
}

#[test]
fn what_is_still_read_takes_memory_until_nobody_reads_it() {
    let cache = ResultCache::new(MIB);
    let name = |number: usize| format!("q{number}");
    for number in 0..30 {
        keep(&cache, key(&name(number)), &[numbers(5_000)]);
    }
    let state = State::new("c");
    let read: Vec<_> = (0..30).filter_map(|number| cache.find(&key(&name(number)), &state)).collect();
    let full = cache.usage();
    assert_eq!((read.len(), full.evicted), (full.entries, 30 - full.entries as u64));
    // There is no room, and none can be made.
    keep(&cache, key("another"), &[numbers(5_000)]);
    assert!(!has(&cache, "another"));
    assert_eq!(CacheUsage { misses: full.misses, ..cache.usage() }, full);
    // One of the same key takes the place of what is read, and finds no room either.
    keep(&cache, key(&name(29)), &[numbers(5_000)]);
    assert!(!has(&cache, &name(29)));
    assert_eq!((cache.usage().entries, cache.usage().bytes), (full.entries - 1, full.bytes));
    drop(read);
    assert!(cache.usage().bytes < full.bytes);
    for other in ["another", "one more"] {
        keep(&cache, key(other), &[numbers(5_000)]);
        assert!(has(&cache, other));
    }
    let usage = cache.usage();
    assert!(usage.bytes <= usage.bytes_max * 3 / 4, "{usage:?}");
}

#[test]
fn what_is_read_keeps_its_place_while_others_make_room() {
    let cache = ResultCache::new(MIB);
    let name = |number: usize| format!("q{number}");
    keep(&cache, key("read"), &[numbers(5_000)]);
    let read = cache.find(&key("read"), &State::new("c"));
    for number in 0..30 {
        keep(&cache, key(&name(number)), &[numbers(5_000)]);
    }
    assert!(cache.usage().evicted > 0 && has(&cache, "read") && has(&cache, &name(29)));
    drop(read);
}

#[test]
fn the_number_of_results_is_bounded_too() {
    let cache = ResultCache::new(1 << 30);
    for number in 0..RESULTS_MAX + 5 {
        keep(&cache, key(&number.to_string()), &[numbers(1)]);
    }
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.evicted), (RESULTS_MAX, 5));
}

#[test]
fn results_that_are_still_coming_are_bounded() {
    let cache = ResultCache::new(MIB);
    let begin = |number: usize| cache.fill(key(&number.to_string()), Grounds::default());
    let coming: Vec<Filling> = (0..20).filter_map(|number| begin(number).with(&numbers(7_000))).collect();
    // 56 kB each, in 262 kB.
    assert_eq!(coming.len(), 4);
    drop(coming);
    assert_eq!(cache.usage().bytes, 0);
    assert!(begin(0).with(&numbers(7_000)).is_some());
}

#[test]
fn slices_are_kept_without_what_they_are_slices_of() {
    let cache = ResultCache::new(16 * MIB);
    let rows = 200_000;
    let text: StringViewArray =
        (0..rows).map(|number| Some(format!("a text that is too long for a view: {number}"))).collect();
    let text: ArrayRef = Arc::new(text);
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    let large = RecordBatch::try_from_iter([("k", numbers), ("text", text)]).unwrap();
    let slice = large.slice(100_000, 10);
    assert!(slice.get_array_memory_size() > 8 * MIB, "it keeps all of them");
    assert!(keep(&cache, key("q"), std::slice::from_ref(&slice)));
    assert!(cache.usage().bytes < 10_000, "{:?}", cache.usage());
    let kept = cache.find(&key("q"), &State::new("c")).unwrap();
    assert_eq!(kept.batches, [slice]);
    assert_eq!(kept.batches[0].column(0).as_primitive::<Int64Type>().value(0), 100_000);
}

/// The grounds of a query in which these names were looked up, all in `public`.
fn grounds(state: &State, names: &[&str]) -> Grounds {
    let looked_up = LookedUp::default();
    for name in names {
        let table = state.table("public", name).map(|table| Meaning::Table(state.facts(table)));
        let view = state.view("public", name).map(|view| Meaning::View(Arc::clone(view)));
        looked_up.note("public", name, table.or(view).unwrap_or(Meaning::Nothing));
    }
    Grounds::of(&looked_up).unwrap()
}

#[test]
fn a_result_holds_as_long_as_its_tables_have_the_same_segments() {
    let mut state = State::new("c");
    let [t, u, empty] = [(); 3].map(|()| reserved(&mut state));
    for (id, name) in [(t, "t"), (u, "u"), (empty, "empty")] {
        state.apply(create(table(id, name))).unwrap();
    }
    state.apply(commit("first", &segment(t, 0, "w1"))).unwrap();
    let read = grounds(&state, &["t"]);
    let old = state.clone();
    // Other tables, and copies of this one, make no difference.
    state.apply(commit("other", &segment(u, 0, "w1"))).unwrap();
    let placement = vec![vec!["w3".into()], vec!["w2".into()]];
    let seen = state.table("public", "t").unwrap().placement.clone();
    state.apply(Command::MoveShards { table: t, seen, placement }).unwrap();
    assert!(read.hold_in(&state));
    state.apply(commit("second", &segment(t, 1, "w2"))).unwrap();
    assert!(!read.hold_in(&state) && read.hold_in(&old));
    // Of the same name, and as empty as it was: another table.
    let read = grounds(&state, &["u", "empty"]);
    assert!(read.hold_in(&state));
    state.apply(dropped("empty")).unwrap();
    assert!(!read.hold_in(&state));
    let again = reserved(&mut state);
    state.apply(create(table(again, "empty"))).unwrap();
    assert!(!read.hold_in(&state) && grounds(&state, &["u", "empty"]).hold_in(&state));
}

#[test]
fn a_result_holds_as_long_as_its_views_and_free_names_do() {
    let mut state = State::new("c");
    let view = |sql: &str| View {
        schema_name: "public".to_owned(),
        name: "v".to_owned(),
        sql: sql.to_owned(),
        columns: None,
        default_schema: None,
    };
    let create_view = |sql: &str, or_replace| Command::CreateView { view: view(sql), or_replace };
    let free = grounds(&state, &["v"]);
    assert!(free.hold_in(&state));
    state.apply(create_view("SELECT 1", false)).unwrap();
    assert!(!free.hold_in(&state));
    let read = grounds(&state, &["v"]);
    assert!(read.hold_in(&state));
    state.apply(create_view("SELECT 2", true)).unwrap();
    assert!(!read.hold_in(&state));
    state.apply(create_view("SELECT 1", true)).unwrap();
    assert!(read.hold_in(&state));
}

#[test]
fn what_is_outdated_when_it_ends_is_not_kept() {
    let mut state = State::new("c");
    let t = reserved(&mut state);
    state.apply(create(table(t, "t"))).unwrap();
    let cache = ResultCache::new(64 * MIB);
    let [old, new] = [(); 2].map(|()| {
        let filling = cache.fill(key("of t"), grounds(&state, &["t"]));
        filling.with(&numbers(3)).unwrap()
    });
    new.finish(numbers(3).schema(), None, &state);
    assert_eq!((cache.usage().entries, cache.usage().stored), (1, 1));
    state.apply(commit("a write", &segment(t, 0, "w1"))).unwrap();
    old.finish(numbers(3).schema(), None, &state);
    cache.forget_outdated(&state);
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.stored, usage.bytes), (0, 1, 0));
}

#[test]
fn what_is_outdated_is_forgotten_when_it_is_asked_for_and_when_somebody_looks() {
    let mut state = State::new("c");
    let (t, u) = (reserved(&mut state), reserved(&mut state));
    for (id, name) in [(t, "t"), (u, "u")] {
        state.apply(create(table(id, name))).unwrap();
    }
    let cache = ResultCache::new(64 * MIB);
    let queries: [(&str, &[&str]); 4] =
        [("of t", &["t"]), ("of t, too", &["t"]), ("of both", &["t", "u"]), ("of u", &["u"])];
    for (statement, names) in queries {
        let filling = cache.fill(key(statement), grounds(&state, names)).with(&numbers(3)).unwrap();
        filling.finish(numbers(3).schema(), None, &state);
    }
    cache.forget_outdated(&state);
    assert_eq!(cache.usage().entries, 4);
    state.apply(commit("a write", &segment(t, 0, "w1"))).unwrap();
    assert!(cache.find(&key("of t"), &state).is_none());
    assert_eq!((cache.usage().entries, cache.usage().outdated), (3, 1));
    cache.forget_outdated(&state);
    assert_eq!((cache.usage().entries, cache.usage().outdated), (1, 3));
    assert!(cache.find(&key("of u"), &state).is_some());
    state.apply(dropped("u")).unwrap();
    cache.forget_outdated(&state);
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.bytes, usage.evicted), (0, 0, 0));
}
