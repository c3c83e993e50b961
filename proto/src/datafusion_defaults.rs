//! Our defaults for settings of DataFusion, the same on coordinators and on workers. What a session sets
//! comes after them; `max_spill_file_size_bytes` it cannot set.

use datafusion::config::{ConfigNonZeroUsize, ConfigOptions};

/// A hash join by one whole number looks partners up in an array, not by hash, where the least and the greatest key of
/// the built side are less than this apart: an array of 1 MiB at most, of each partition. DataFusion's own default is 1,024, and
/// for greater ranges that more than 0.15 of their numbers are keys: of one partition of one task of
/// several they seldom are.
const ARRAY_JOIN_RANGE: usize = 1 << 18;

/// Bytes after which rows that are dealt out to partitions and find no memory go to the next file: after each batch.
/// Of files that more than one task writes to, DataFusion 55.2 reads only the oldest, and waits there for rows that
/// lie in a newer one; the tasks wait for the reader then, for good
/// (<https://github.com/apache/datafusion/issues/24883>). Where each file is ended with its first batch, what is
/// waited for is always being written.
const DEALT_FILE_BYTES: usize = 1;

/// Sets them.
pub fn set(options: &mut ConfigOptions) {
    options.execution.perfect_hash_join_small_build_threshold = ARRAY_JOIN_RANGE;
    // It is not zero, the only number that is refused.
    if let Ok(bytes) = ConfigNonZeroUsize::try_new(DEALT_FILE_BYTES) {
        options.execution.max_spill_file_size_bytes = bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use datafusion::common::Result;
    use datafusion::execution::SessionStateBuilder;
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::physical_plan::{ExecutionPlan, collect};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    const GROUPS: usize = 13;
    const ROWS: u32 = 40_000;
    /// Too little for rows that are dealt out, enough for the groups.
    const MEMORY_BYTES: usize = 2 << 20;
    const TRIES: usize = 12;
    /// A query takes less than a tenth of a second, and with what DataFusion sets by itself the first one
    /// waited for good whenever it was tried.
    const WAITS_FOR_GOOD: Duration = Duration::from_secs(20);

    /// The rows of groups whose rows are dealt out to two partitions, and the files in which some waited.
    async fn group() -> Result<(usize, usize)> {
        let mut config = SessionConfig::new().with_target_partitions(2).with_batch_size(64);
        set(config.options_mut());
        let pool = Arc::new(GreedyMemoryPool::new(MEMORY_BYTES));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?;
        let state = SessionStateBuilder::new().with_default_features().with_config(config);
        let context = SessionContext::new_with_state(state.with_runtime_env(runtime).build());
        let sql = format!(
            "SELECT v % {GROUPS} AS g, count(DISTINCT md5(CAST(v % 337 AS VARCHAR))) AS n \
             FROM (SELECT value AS v FROM generate_series(1, {ROWS})) GROUP BY g"
        );
        let plan = context.sql(&sql).await?.create_physical_plan().await?;
        let batches = collect(Arc::clone(&plan), context.task_ctx()).await?;
        Ok((batches.iter().map(|batch| batch.num_rows()).sum(), files_of_dealt(&plan)))
    }

    fn files_of_dealt(plan: &Arc<dyn ExecutionPlan>) -> usize {
        let files = plan.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
        let own = if plan.name() == "RepartitionExec" { files } else { 0 };
        own + plan.children().into_iter().map(files_of_dealt).sum::<usize>()
    }

    #[test]
    fn rows_that_are_dealt_out_do_not_wait_for_good_where_memory_is_little() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut files_max = 0;
        for tried in 0..TRIES {
            let ended = runtime.block_on(async { tokio::time::timeout(WAITS_FOR_GOOD, group()).await });
            let (rows, files) = ended.unwrap_or_else(|_| panic!("query {tried} waits for good")).unwrap();
            assert_eq!(rows, GROUPS);
            files_max = files_max.max(files);
        }
        assert!(files_max > 1, "there was room for all");
        runtime.shutdown_background();
    }
}
