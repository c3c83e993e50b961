//! All rows of some segments of one shard, in the order of their table: what
//! compaction writes anew. They are read here, from the workers that hold them,
//! in a memory of their own.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use parquet::file::metadata::ParquetMetaData;
use shoal_data::{Segment, Table};
use shoal_proto::QueryPool;
use shoal_proto::exchange::ReadLog;

use super::merge_memory::{Footprint, fitting, limit_bytes};
use super::planned_reads::PlannedReads;
use super::session_state::StateTemplate;
use super::shard_table::{ShardTable, segment_file, segment_readers};
use crate::Error;
use crate::catalog::TableFacts;

/// Segments of one shard that are merged together, and the memory for that.
#[derive(Debug)]
pub struct Merge {
    segments: Vec<Arc<Segment>>,
    /// Rows of one batch. One of each segment is held, and rows may be long.
    batch_rows: usize,
    /// What is fetched of all segments at a time.
    fetched_bytes: usize,
    pool: Arc<dyn MemoryPool>,
}

impl Merge {
    /// The segments, in the order of their table.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// A part of the memory, for what is named so in messages.
    pub fn memory(&self, name: &str) -> MemoryReservation {
        MemoryConsumer::new(name).register(&self.pool)
    }
}

impl StateTemplate {
    /// As many of these segments of a shard as can be merged in the memory of a
    /// compaction. Reads their footers. `what` is what messages call them.
    ///
    /// # Errors
    /// `Exhausted`, with the limit, where not even two can; those of reading.
    pub async fn merge_of(&self, what: &str, segments: &[Arc<Segment>]) -> Result<Merge, Error> {
        let node = &self.state().runtime_env().memory_pool;
        let limit_bytes = limit_bytes(node.memory_limit());
        let mut footprints = Vec::with_capacity(segments.len());
        for segment in segments {
            footprints.push(Footprint::of(self.footer(segment).await?.as_ref(), segment.bytes));
        }
        let fitting = fitting(&footprints, limit_bytes).map_err(|needed_bytes| {
            Error::Exhausted(format!(
                "to compact two of the {} segments of {what} takes {needed_bytes} bytes of memory, and more than \
                 {limit_bytes} bytes are not taken for that on the coordinator (512 MiB, and a quarter of its \
                 --memory-limit at most): the segments stay as they are",
                segments.len()
            ))
        })?;
        let of_fitting = || fitting.places.iter().copied();
        let fetched_bytes: u64 = of_fitting().map(|place| footprints[place].fetched_bytes).sum();
        Ok(Merge {
            segments: of_fitting().map(|place| Arc::clone(&segments[place])).collect(),
            batch_rows: fitting.batch_rows,
            fetched_bytes: usize::try_from(fetched_bytes).unwrap_or(usize::MAX),
            pool: Arc::new(QueryPool::of_compaction(Arc::clone(node), "the coordinator", limit_bytes)),
        })
    }

    /// The footer of a segment, with its index of pages.
    async fn footer(&self, segment: &Segment) -> Result<Arc<ParquetMetaData>> {
        // What is read of rows is counted elsewhere.
        let reads = Arc::new(ReadLog::new());
        let readers = segment_readers(self.state().config(), self.state().runtime_env(), reads)?;
        let readers = readers.with_page_index();
        let metrics = ExecutionPlanMetricsSet::new();
        let mut reader = readers.create_reader(0, segment_file(segment), None, &metrics)?;
        let footer = reader.get_metadata(None).await;
        footer.map_err(|error| DataFusionError::ParquetError(Box::new(error)))
    }

    /// The rows of segments of one shard of `table`: by its sort key, or one
    /// segment after the other where it has none. At their end it is certain that
    /// each segment was read, once. The caller keeps the segments readable.
    ///
    /// # Errors
    /// `Exhausted` where memory is short; those of planning.
    pub async fn merged_rows(&self, table: &Table, merge: &Merge) -> Result<SendableRecordBatchStream> {
        let segments = merge.segments();
        let fetched = merge.memory("what is fetched of the segments");
        fetched.try_grow(merge.fetched_bytes)?;
        let mut state = self.state().clone();
        let config = self.state().config().clone();
        *state.config_mut() = config
            .with_target_partitions(1)
            .with_batch_size(merge.batch_rows)
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
        let node = self.state().runtime_env();
        let runtime = RuntimeEnv { memory_pool: Arc::clone(&merge.pool), ..node.as_ref().clone() };
        let context = Arc::new(TaskContext::from(&state).with_runtime(Arc::new(runtime)));
        let reads = ReadLog::of(&context);
        let rows = execute_stream(plan, context)?;
        let schema = rows.schema();
        let name = table.full_name();
        let end = futures::stream::once(async move {
            // Until all is read, or nobody reads any more.
            drop(fetched);
            planned.check(&reads.by_table(), |_| name.clone())
        });
        let end = end.filter_map(|end| std::future::ready(end.err().map(|failure| Err(failure.into()))));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(end))))
    }
}
