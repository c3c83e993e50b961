//! Rows of a task, or of a whole plan, that stay on this worker: no frames are made of
//! them. They are computed on the threads for their query, like all others.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion_distributed::{ExecuteTaskRequest, ProducerHead};
use futures::{FutureExt, StreamExt};
use http::HeaderMap;
use shoal_proto::cluster::LoadedTask;
use shoal_proto::cluster::load_rows::Source;
use shoal_proto::exchange::{QueryOptions, ReadLog, panic_failure};
use shoal_proto::query::{RunRequest, TaskKey};
use shoal_proto::{ErrorCode, Failure};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{ExecutionService, Running, joined_panic, opening_failure, task_key};

/// Batches of each partition that wait to be taken.
const BATCHES_WAITING: usize = 2;

/// What a partition gives: rows, or its end.
type Given = Result<Option<RecordBatch>>;

/// Rows that stay here. To drop them stops the work behind them.
pub(crate) struct OwnRows {
    /// Those of all partitions, as they come. Where one of these just stops, that is an error.
    pub(crate) rows: SendableRecordBatchStream,
    /// All that was read for them, once they have ended.
    pub(crate) reads: Arc<ReadLog>,
}

impl ExecutionService {
    /// Counts as a task that runs here for as long as it is kept.
    pub(crate) fn running(&self) -> Running {
        Running::start(&self.tasks_running)
    }

    /// Begins to compute rows that stay here, of a query whose header is among `headers`.
    ///
    /// # Errors
    /// `Invalid` for what no coordinator of this version says; `Unavailable` where the plan
    /// of the task does not come; those of beginning to run a plan.
    pub(crate) async fn own_rows(&self, headers: HeaderMap, source: Source) -> Result<OwnRows, Failure> {
        let options = QueryOptions::from_headers(&headers)?;
        let (service, of_query) = (self.clone(), options.clone());
        let open = AbortOnDropHandle::new(self.lanes.of(&options).spawn(&options, async move {
            match source {
                Source::Task(task) => service.open_task(task).await,
                Source::Plan(plan) => {
                    let request = RunRequest { plan, ..RunRequest::default() };
                    let opened = service.whole_plan(&of_query, &request, true).and_then(|(plan, context)| {
                        Ok((vec![plan.execute(0, Arc::clone(&context))?], context))
                    });
                    opened.map_err(|error| Failure::from_datafusion(&error))
                }
            }
        }));
        let (partitions, context) = open.await.map_err(joined_panic)??;
        let reads = ReadLog::of(&context);
        Ok(OwnRows { rows: self.together(&options, partitions)?, reads })
    }

    async fn open_task(
        &self,
        task: LoadedTask,
    ) -> Result<(Vec<SendableRecordBatchStream>, Arc<TaskContext>), Failure> {
        let LoadedTask { query, stage, task, partitions } = task;
        let request = ExecuteTaskRequest {
            task_key: task_key(Some(TaskKey { query, stage, task }))?,
            target_partition_start: 0,
            target_partition_end: partitions as usize,
            producer_head: ProducerHead::None,
        };
        self.worker.execute_task(request).await.map_err(|error| opening_failure(&error))
    }

    /// One stream of the rows of all these, each of which is polled on its own.
    fn together(
        &self,
        options: &QueryOptions,
        partitions: Vec<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream, Failure> {
        let Some(schema) = partitions.first().map(|partition| partition.schema()) else {
            return Err(Failure::new(ErrorCode::Invalid, "a task of no partitions"));
        };
        let left = partitions.len();
        let (sender, given) = mpsc::channel(BATCHES_WAITING * left);
        let lane = self.lanes.of(options);
        let pumps: Vec<_> = partitions
            .into_iter()
            .map(|partition| {
                let (sender, running) = (sender.clone(), self.running());
                AbortOnDropHandle::new(lane.spawn(options, async move {
                    pump(partition, sender).await;
                    drop(running);
                }))
            })
            .collect();
        let state = Some((given, left, pumps));
        let rows = futures::stream::unfold(state, |state| async move {
            let (mut given, mut left, pumps) = state?;
            loop {
                match given.recv().await {
                    Some(Ok(Some(batch))) => return Some((Ok(batch), Some((given, left, pumps)))),
                    Some(Ok(None)) => left -= 1,
                    Some(Err(error)) => return Some((Err(error), None)),
                    None => {
                        let message = "a partition of a task stopped before its end";
                        return Some((Err(Failure::new(ErrorCode::Internal, message).into()), None));
                    }
                }
                if left == 0 {
                    return None;
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Hands on the rows of a partition, then its end, until nobody takes them any more. A
/// panic in an operator is an error.
async fn pump(mut partition: SendableRecordBatchStream, given: mpsc::Sender<Given>) {
    loop {
        let next = match AssertUnwindSafe(partition.next()).catch_unwind().await {
            Ok(next) => next.transpose(),
            Err(panic) => Err(panic_failure(panic.as_ref()).into()),
        };
        let is_last = !matches!(next, Ok(Some(_)));
        if given.send(next).await.is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::record_batch;
    // `record_batch!` looks for it by this name.
    use arrow::datatypes as arrow_schema;
    use datafusion::common::DataFusionError;

    use super::*;

    /// What a pump makes of a partition that gives these.
    async fn pumped(
        batches: impl futures::Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Vec<Result<Option<usize>, Failure>> {
        let schema = record_batch!(("a", Int32, [1])).unwrap().schema();
        let (sender, mut given) = mpsc::channel(1);
        let pump = pump(Box::pin(RecordBatchStreamAdapter::new(schema, batches)), sender);
        let take = async {
            let mut taken = Vec::new();
            while let Some(next) = given.recv().await {
                let rows = next.map(|batch| batch.map(|batch| batch.num_rows()));
                taken.push(rows.map_err(|error| Failure::from_datafusion(&error)));
            }
            taken
        };
        tokio::join!(pump, take).1
    }

    #[tokio::test]
    async fn a_partition_tells_its_end_and_nothing_after_an_error_or_a_panic() {
        let batch = || Ok(record_batch!(("a", Int32, [1, 2, 3])).unwrap());
        let whole = pumped(futures::stream::iter([batch(), batch()])).await;
        assert_eq!(whole, [Ok(Some(3)), Ok(Some(3)), Ok(None)]);
        assert_eq!(pumped(futures::stream::empty()).await, [Ok(None)]);

        let error = || Err(DataFusionError::Execution("as it is".into()));
        let broken = pumped(futures::stream::iter([batch(), error(), batch()])).await;
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert_eq!(broken[1].as_ref().unwrap_err().message, "as it is");

        let panics = futures::stream::iter([0, 1]).map(move |number| {
            assert!(number == 0, "on purpose");
            batch()
        });
        let panicked = pumped(panics).await;
        assert_eq!(panicked[0], Ok(Some(3)));
        assert!(panicked[1].as_ref().unwrap_err().message.contains("on purpose"), "{panicked:?}");
        assert_eq!(panicked.len(), 2);
    }
}
