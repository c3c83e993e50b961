//! Which queries' rows stay on the workers that write them.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use super::*;
use crate::query::planned_reads::PlannedReads;
use crate::query::rows_stay::staying;
use crate::query::{LastTasks, Refusal, Stay, TakesRows};

/// Takes no rows of a plan that is only made.
struct Nobody;

impl TakesRows for Nobody {
    fn begin(&self, _: u32) -> bool {
        true
    }

    fn refusal(&self) -> Option<Refusal> {
        None
    }

    fn take(self: Arc<Self>, _: LastTasks) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(std::future::pending())
    }
}

/// The plan of a query that reads so many bytes at least, where its rows stay on workers.
async fn stays(sql: &str, bytes_min: u64) -> Option<Arc<dyn ExecutionPlan>> {
    let (planned, _view) = planned(sql, |_| {}).await;
    staying(&planned.plan, &Stay { taker: Arc::new(Nobody), bytes_min }, &options_of_query()).unwrap()
}

#[tokio::test]
async fn rows_stay_where_the_coordinator_would_only_gather_them() {
    for sql in [
        "SELECT k, v FROM t",
        "SELECT v + 1, s FROM t WHERE s > 3",
        "SELECT k, sum(v) FROM t GROUP BY k",
        "SELECT v, sum(k) FROM t GROUP BY v",
        "SELECT t.v, u.s FROM t JOIN u ON t.k = u.k",
        "SELECT t.v, u.s FROM t JOIN u ON t.k = u.v",
        "SELECT k FROM t UNION ALL SELECT v FROM u",
        // Whole, on one worker, whatever it does.
        "SELECT v FROM few",
        "SELECT v FROM few ORDER BY k LIMIT 3",
    ] {
        let plan = stays(sql, 1).await.unwrap_or_else(|| panic!("rows do not stay: {sql}"));
        // All of it must still be read.
        let reads = PlannedReads::of(&plan).unwrap();
        let (before, _view) = planned(sql, |_| {}).await;
        assert_eq!(reads.segments(), PlannedReads::of(&before.plan).unwrap().segments(), "{sql}");
        assert!(reads.segments() > 0, "{sql}");
    }
    let plan = stays("SELECT k, v FROM t", 1).await.unwrap();
    let unread = PlannedReads::of(&plan).unwrap().check(&BTreeMap::new(), |table| table.0.to_string());
    assert!(unread.unwrap_err().message.contains("only 0 were read"));
}

#[tokio::test]
async fn rows_of_which_the_coordinator_makes_others_come_to_it() {
    for sql in [
        "SELECT k, v FROM t ORDER BY k",
        "SELECT k, v FROM t LIMIT 10",
        "SELECT sum(v) FROM t",
        "SELECT k, row_number() OVER (ORDER BY v) FROM t",
        "SELECT 1 AS one",
    ] {
        assert!(stays(sql, 1).await.is_none(), "{sql}");
    }
    for sql in ["SELECT k, v FROM t", "SELECT v FROM few"] {
        assert!(stays(sql, 1 << 40).await.is_none(), "too little is read: {sql}");
    }
}
