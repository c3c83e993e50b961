//! All rows of some segments of one shard, in the order of their table: what
//! compaction writes anew. They are read here, from the workers that hold them.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use shoal_data::{Segment, Table};
use shoal_proto::exchange::ReadLog;

use super::planned_reads::PlannedReads;
use super::session_state::StateTemplate;
use super::shard_table::ShardTable;
use crate::catalog::TableFacts;

/// Rows of one batch. One of each segment is held, and rows may be long.
const BATCH_ROWS: usize = 2048;

impl StateTemplate {
    /// The rows of these segments of one shard of `table`: by its sort key, or one
    /// segment after the other where it has none. At their end it is certain that
    /// each segment was read, once. The caller keeps the segments readable.
    ///
    /// # Errors
    /// None in practice; those of planning.
    pub async fn merged_rows(
        &self,
        table: &Table,
        segments: &[Arc<Segment>],
    ) -> Result<SendableRecordBatchStream> {
        let mut state = self.state().clone();
        let config = self.state().config().clone();
        *state.config_mut() = config
            .with_target_partitions(1)
            .with_batch_size(BATCH_ROWS)
            .with_extension(Arc::new(ReadLog::new()));
        let mut bare = table.clone();
        bare.placement.clear();
        bare.segments.clear();
        let of = |segments: &[Arc<Segment>]| {
            let table = Arc::new(Table { segments: segments.to_vec(), ..bare.clone() });
            ShardTable::new(Arc::new(TableFacts::new(table)))
        };
        let all = of(segments);
        let plan: Arc<dyn ExecutionPlan> = match all.ordering() {
            None => all.scan(&state, None, &[], None).await?,
            Some(ordering) => {
                // A scan for each: those of one scan take one another's files.
                let mut scans = Vec::with_capacity(segments.len());
                for segment in segments {
                    scans.push(of(std::slice::from_ref(segment)).scan(&state, None, &[], None).await?);
                }
                let merge = SortPreservingMergeExec::new(ordering, UnionExec::try_new(scans)?);
                Arc::new(merge.with_round_robin_repartition(false))
            }
        };
        let planned = PlannedReads::of(&plan)?;
        let context = Arc::new(TaskContext::from(&state));
        let reads = ReadLog::of(&context);
        let rows = execute_stream(plan, context)?;
        let schema = rows.schema();
        let name = table.full_name();
        let end = futures::stream::once(async move { planned.check(&reads.by_table(), |_| name.clone()) });
        let end = end.filter_map(|end| std::future::ready(end.err().map(|failure| Err(failure.into()))));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(end))))
    }
}
