//! Which plans one worker runs as a whole: those of which a second task would have too little to read.

use super::*;

/// What one task reads, unless a session says otherwise; there are two from half of it on.
const TASK_BYTES: u64 = 20 * 1024 * 1024;
/// Rows of each shard, of three numbers, with which a table is just within that, or just beyond.
const ROWS_WITHIN: u64 = TASK_BYTES / 2 / 24 / SHARDS as u64;
const ROWS_BEYOND: u64 = ROWS_WITHIN + 1;

async fn planned(settings: &[(&str, &str)], sql: &str) -> String {
    let tables = vec![of_numbers(1, "within", ROWS_WITHIN), of_numbers(2, "beyond", ROWS_BEYOND)];
    plan_over(tables, settings, sql).await
}

/// Whether one worker runs a query as a whole; if not, several tasks do.
async fn is_whole(settings: &[(&str, &str)], sql: &str) -> bool {
    let plan = planned(settings, sql).await;
    let is_whole = plan.starts_with("┌─ Whole plan ── on w");
    let is_cut = plan.contains(" tasks on w");
    assert_ne!(is_whole, is_cut, "{sql}\n{plan}");
    is_whole
}

#[tokio::test]
async fn a_query_of_little_runs_on_one_worker_and_one_of_more_does_not() {
    assert!(is_whole(&[], "SELECT v, sum(k + s) FROM within GROUP BY v").await);
    assert!(!is_whole(&[], "SELECT v, sum(k + s) FROM beyond GROUP BY v").await);
    // Of a column that is not needed nothing is read.
    assert!(is_whole(&[], "SELECT v, sum(s) FROM beyond GROUP BY v").await);
    assert!(!is_whole(&[], "SELECT w.v, b.s + b.k + b.v FROM within w JOIN beyond b ON w.v = b.s").await);
}

#[tokio::test]
async fn a_session_says_what_is_little() {
    let sql = "SELECT v, sum(k + s) FROM within GROUP BY v";
    assert!(!is_whole(&[("shoal.task_bytes", "1")], sql).await);
    let sql = "SELECT v, sum(k + s) FROM beyond GROUP BY v";
    assert!(is_whole(&[("shoal.task_bytes", "1GiB")], sql).await);
}

#[tokio::test]
async fn what_reads_few_bytes_is_planned_as_one_process_would() {
    // Of each shard; at 100 bytes a row less than a MiB, and more.
    let tables =
        || vec![of_numbers(1, "little", 100), of_numbers(2, "more", 4_000), of_numbers(3, "many", 20_000)];
    let sql = "SELECT a.v, count(*) FROM little a JOIN little b ON a.v = b.s GROUP BY a.v ORDER BY a.v";
    let plan = plan_over(tables(), &[], sql).await;
    assert!(plan.starts_with("┌─ Whole plan ── on w"), "{plan}");
    assert!(!plan.contains("RepartitionExec") && !plan.contains("DynamicFilter"), "{plan}");
    for sql in [
        sql.replace("little b", "more b"),
        // Of no column there are no bytes, and rows all the same.
        sql.replace("little b", "(SELECT 1 AS s FROM many) b"),
        // Each row with each is no little work.
        "SELECT a.v, count(*) FROM little a JOIN little b ON a.v < b.s GROUP BY a.v".to_owned(),
    ] {
        let plan = plan_over(tables(), &[], &sql).await;
        assert!(plan.contains("RepartitionExec"), "{sql}\n{plan}");
    }
    let plan = plan_over(tables(), &[("shoal.task_bytes", "1")], sql).await;
    assert!(plan.contains(" tasks on w"), "{plan}");
}

/// The plan of a first attempt, which may be kept, and the worker that runs it if it is one.
async fn first_attempt(
    kept: &KeptWhole,
    planning: &Planning,
    logical: &LogicalPlan,
    (workers, memory_limit_bytes): (&[&str], u64),
) -> (Arc<dyn ExecutionPlan>, Option<String>) {
    let view = view_of(logical, workers);
    let query = QueryOptions { memory_limit_bytes, ..options_of_query() };
    let planned = planning.physical_or_kept(kept, logical, &view, &query, None).await.unwrap();
    match planned.plan.downcast_ref::<WholePlanExec>() {
        Some(whole) => {
            assert_eq!(view.used_workers(), BTreeSet::from([WorkerId::from(whole.worker())]));
            (Arc::clone(whole.plan()), Some(whole.worker().to_owned()))
        }
        None => (planned.plan, None),
    }
}

#[tokio::test]
async fn a_whole_plan_is_kept_for_the_world_that_it_was_made_for() {
    let tables = || vec![of_numbers(1, "within", ROWS_WITHIN), of_numbers(2, "beyond", ROWS_BEYOND)];
    let world = (&WORKERS[..], 1 << 30);
    let sql = "SELECT v, sum(k + s) FROM within GROUP BY v ORDER BY v LIMIT 3";
    let (planning, logical) = optimised_over(tables(), sql, |_| {}).await;
    let kept = KeptWhole::default();
    let (first, _) = first_attempt(&kept, &planning, &logical, world).await;
    let (second, _) = first_attempt(&kept, &planning, &logical, world).await;
    assert!(!Arc::ptr_eq(&first, &second) && !kept.is_kept(), "before it is opened");

    kept.open();
    let (first, worker) = first_attempt(&kept, &planning, &logical, world).await;
    let (second, same_worker) = first_attempt(&kept, &planning, &logical, world).await;
    assert!(Arc::ptr_eq(&first, &second), "it is planned again");
    assert!(worker.is_some() && worker == same_worker);
    // Whichever worker is not there any more, another one has it.
    let others: Vec<&str> = WORKERS.into_iter().filter(|it| Some(*it) != worker.as_deref()).collect();
    for other_world in [(&others[..], 1 << 30), (&WORKERS[..], 1 << 20), world] {
        let (anew, other) = first_attempt(&kept, &planning, &logical, other_world).await;
        assert!(!Arc::ptr_eq(&first, &anew) && other.is_some(), "{other_world:?}");
        let (again, _) = first_attempt(&kept, &planning, &logical, other_world).await;
        assert!(Arc::ptr_eq(&anew, &again), "{other_world:?}");
    }
    kept.close();
    assert!(!kept.is_kept());
    let (anew, _) = first_attempt(&kept, &planning, &logical, world).await;
    assert!(!Arc::ptr_eq(&first, &anew) && !kept.is_kept(), "closed for good");
}

#[tokio::test]
async fn a_plan_of_several_tasks_is_not_kept() {
    let tables = vec![of_numbers(1, "beyond", ROWS_BEYOND)];
    let sql = "SELECT v, sum(k + s) FROM beyond GROUP BY v";
    let (planning, logical) = optimised_over(tables, sql, |_| {}).await;
    let kept = KeptWhole::default();
    kept.open();
    let (_, worker) = first_attempt(&kept, &planning, &logical, (&WORKERS, 1 << 30)).await;
    assert!(worker.is_none() && !kept.is_kept());
}
